//! The virtual servers of a frontend, by its forwarding mode.
//!
//! Mode dsr has three: all pods for clients elsewhere; by mark, this node's own pods for what a peer hands on, so that
//! nodes whose tables differ never send a packet in circles; and by another mark all pods by NAT for clients on this node,
//! whose replies come back here anyway. Which pod a connection goes to follows from its addresses alone (Maglev hashing),
//! so that every node comes to the same and open connections survive their holder; unless the kernel's sync daemon tells
//! the others of them, when any scheduler will do.

use super::assign::Serving;
use super::options::Options;
use super::{Balanced, Forwarding};
use crate::config::Mode;
use crate::ipvs::model::{FLAG_SCHED_1, FLAG_SCHED_2, Forward};
use crate::ipvs::{Key, Service};
use crate::model::{Family, Frontend};

/// The virtual servers of `frontend`.
pub fn virtual_servers(options: &Options, frontend: Frontend, serving: &Serving) -> Vec<Balanced> {
    let forward = match serving.mode {
        Mode::Nat => Forward::Masquerade,
        Mode::Dr => Forward::DirectRoute,
        Mode::Tunnel => Forward::Tunnel(options.tunnel),
        Mode::Dsr => return dsr(options, frontend, serving),
        Mode::Proxy | Mode::Announce => return Vec::new(),
    };
    let service = options.balancing(frontend);
    vec![Balanced { key: frontend.into(), service, forwarding: Forwarding::All(forward) }]
}

fn dsr(options: &Options, frontend: Frontend, serving: &Serving) -> Vec<Balanced> {
    let Some(marks) = serving.marks else { return Vec::new() };
    let family = Family::of(frontend.vip);
    let shared = || if serving.synced { options.balancing(frontend) } else { hashed(options) };
    let balanced = |key, forwarding| Balanced { key, service: shared(), forwarding };
    vec![
        balanced(frontend.into(), Forwarding::Split),
        balanced(Key::Mark(family, marks.peers), Forwarding::OnThisNode),
        Balanced {
            key: Key::Mark(family, marks.own),
            service: options.balancing(frontend),
            forwarding: Forwarding::All(Forward::Masquerade),
        },
    ]
}

/// Maglev hashing by the client's address, and by its port too unless a client is to stay at one pod.
fn hashed(options: &Options) -> Service {
    let port = if options.affinity.is_some() { 0 } else { FLAG_SCHED_2 };
    Service { scheduler: "mh".into(), persistence: None, flags: FLAG_SCHED_1 | port }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::Source;
    use super::*;
    use crate::config::Settings;
    use crate::marks::Marks;
    use crate::model::{ObjectKey, Protocol};
    use crate::snapshot::ServicePort;

    /// The schedulers of mode dsr's three virtual servers.
    fn check(synced: bool, expected: [&str; 3]) {
        let settings = Settings::standard(Vec::new());
        let key = ObjectKey::new("default", "web");
        let options = Options::of(&key, &crate::snapshot::Service::default(), &settings, &mut Vec::new());
        let frontend = Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        let serving = Serving {
            port: ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80 },
            source: Source::ConfigMap,
            mode: Mode::Dsr,
            named: None,
            members: Arc::new(BTreeSet::new()),
            keeps_client: false,
            synced,
            marks: Some(Marks { peers: 2, own: 3 }),
        };
        let made = virtual_servers(&options, frontend, &serving);
        let schedulers: Vec<String> = made.iter().map(|one| one.service.to_string()).collect();
        assert_eq!(schedulers, expected);
    }

    #[test]
    fn nodes_that_learn_of_connections_need_not_hash() {
        check(false, ["mh mh-fallback mh-port", "mh mh-fallback mh-port", "wlc"]);
        check(true, ["wlc", "wlc", "wlc"]);
    }
}
