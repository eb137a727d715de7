//! What is said to the cluster: from what is served to what allocators shall do and Services shall show.
//!
//! Pure. Nothing here depends on endpoints: a change of them alone makes nothing of this anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Mode, Settings};
use crate::derive::{self, Assignment, Owner, Source, Task};
use crate::ipam;
use crate::model::{Frontend, ObjectKey};
use crate::report::objects::{self, Address, Held, IpMode, Kind, Port, Shown, State, Verdict};
use crate::snapshot::{Map, Node, Service, ServicePort, Snapshot};

/// The reason of a condition when no address is given.
const NO_ADDRESS: &str = "NoAddress";
/// The reason of a condition when the Service cannot be served.
const NOT_SERVED: &str = "NotServed";
/// What is wrong with a port in the status that another Service has at the address.
const PORT_TAKEN: &str = "kvip.io/PortTaken";
/// With one that cannot be served in the Service's mode.
const PORT_NOT_SERVED: &str = "kvip.io/PortNotServed";

/// What all of this is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// The cluster's state.
    pub snapshot: &'a Snapshot,
    /// What is served.
    pub assignment: &'a Assignment,
    /// What the allocator found, by Service.
    pub outcomes: &'a ipam::Outcomes,
    /// The VIPs on this host.
    pub here: &'a BTreeSet<IpAddr>,
}

/// The nodes that allocate, by name: those that the settings select. Where these select none, the members of VRRP groups,
/// as on other nodes there may be no kvip, and each that never acts makes some Services wait for the next one's turn.
pub fn allocators(settings: &Settings, snapshot: &Snapshot) -> BTreeSet<String> {
    let selector = &settings.asking.allocators;
    let nodes_that = |chosen: &dyn Fn(&Node) -> bool| -> BTreeSet<String> {
        let nodes = snapshot.nodes.iter().filter(|(_, node)| chosen(node));
        nodes.map(|(name, _)| name.clone()).collect()
    };
    if !selector.is_empty() {
        return nodes_that(&|node| selector.iter().all(|(key, value)| node.labels.get(key) == Some(value)));
    }
    let groups = derive::groups_of(settings);
    let members = nodes_that(&|node| groups.iter().any(|group| group.takes(node)));
    if members.is_empty() { nodes_that(&|_| true) } else { members }
}

/// What allocators go by.
pub fn to_allocate(inputs: &Inputs) -> ipam::Wanted {
    let Inputs { settings, snapshot, assignment, .. } = inputs;
    let requests = &assignment.requests;
    ipam::Wanted {
        requests: requests.of.iter().map(|(key, request)| (key.clone(), Arc::clone(request))).collect(),
        claims: snapshot.claims.clone(),
        reserved: Arc::new(requests.reserved.clone()),
        allocators: allocators(settings, snapshot),
        ip_addresses_served: derive::serves_ip_addresses(snapshot),
        rest: settings.cluster.stale_after,
        takeover_after: settings.asking.takeover_after,
    }
}

/// What Services shall show, and what this node holds of them; a change of what was said `before`, so that what is the same
/// is shared.
pub fn to_say(inputs: &Inputs, before: &State) -> State {
    let Inputs { settings, snapshot, assignment, .. } = inputs;
    let allocators = allocators(settings, snapshot);
    let mut services = before.services.clone();
    for key in before.services.keys().filter(|key| !snapshot.services.contains_key(*key)) {
        services.remove(key);
    }
    for (key, service) in &snapshot.services {
        let shown = Shown::of(service);
        let Some(said) = said(inputs, key, service, shown.is_ours()) else {
            services.remove(key);
            continue;
        };
        let place = assignment
            .node
            .as_deref()
            .and_then(|own| objects::place(&service.uid, allocators.iter().map(String::as_str), own));
        let wanted = objects::Wanted {
            uid: service.uid.clone(),
            kind: Kind::of(service),
            addresses: said.addresses,
            ingress: assignment.requests.of.contains_key(key),
            verdict: said.verdict,
            place,
            shown,
        };
        if services.get(key).is_none_or(|known| **known != wanted) {
            services.insert(key.clone(), Arc::new(wanted));
        }
    }
    State {
        node: assignment.node.clone(),
        takeover_after: settings.asking.takeover_after,
        services,
        held: Some(held(inputs)),
    }
}

/// What is to be said of one Service.
struct Said {
    verdict: Verdict,
    addresses: Vec<Address>,
}

/// What is to be said of a Service that asks by itself, or that shows something of kvip's; `None`: nothing, or not yet.
fn said(inputs: &Inputs, key: &ObjectKey, service: &Service, shows: bool) -> Option<Said> {
    let frontends = own_frontends(inputs.assignment, key);
    let mut addresses = addresses(inputs.assignment, service, &frontends);
    addresses.extend(kept(inputs.assignment, key, service));
    if let Some(verdict) = missing(inputs, key, service, !frontends.is_empty(), shows) {
        return Some(Said { verdict, addresses });
    }
    if !frontends.is_empty() {
        return Some(Said { verdict: Verdict::Allocated, addresses });
    }
    // What asks the pools has an answer soon; whatever else is not served asks for nothing any more.
    let waits = inputs.assignment.requests.of.contains_key(key);
    (shows && !waits).then_some(Said { verdict: Verdict::NotOurs, addresses })
}

/// What a Service asks for by itself and does not get; `None`: it gets all, or asks for nothing.
fn missing(
    inputs: &Inputs,
    key: &ObjectKey,
    service: &Service,
    served: bool,
    shows: bool,
) -> Option<Verdict> {
    let refused = |reason: &str, text: String| Verdict::Refused { reason: reason.into(), text };
    let asks = asks(inputs, key, service);
    // Of a Service that has an address the allocator may know less than the claims do.
    let by_claims = inputs.assignment.requests.refusals.get(key).and_then(|all| all.first());
    let refusal = if served { by_claims } else { refusals(inputs, key, service).first() };
    if let Some(refusal) = refusal.filter(|_| asks) {
        return Some(refused(NO_ADDRESS, refusal.to_string()));
    }
    let subject = key.to_string();
    let of_service = inputs.assignment.findings.iter().filter(|finding| finding.subject == subject);
    let mut all = of_service.filter(|finding| !served || finding.text.starts_with(derive::NOT_SERVED_AT));
    all.next().filter(|_| asks || shows).map(|finding| refused(NOT_SERVED, finding.text.clone()))
}

/// Whether a Service asks for addresses by what it says itself, given or not.
fn asks(inputs: &Inputs, key: &ObjectKey, service: &Service) -> bool {
    let asking = &inputs.settings.asking;
    inputs.assignment.requests.of.contains_key(key)
        || (asking.annotations && service.annotations.contains_key(derive::VIPS))
        || (asking.external_ips && !service.external_ips.is_empty())
}

/// Why a Service gets no address: what the allocator ran into, else what follows from the claims.
fn refusals<'a>(inputs: &Inputs<'a>, key: &ObjectKey, service: &Service) -> &'a [ipam::Refusal] {
    let outcome = inputs.outcomes.get(key).filter(|outcome| outcome.uid == service.uid);
    let found = outcome.map(|outcome| outcome.refusals.as_slice()).filter(|found| !found.is_empty());
    found.or_else(|| inputs.assignment.requests.refusals.get(key).map(Vec::as_slice)).unwrap_or_default()
}

/// The frontends that a Service has by what it says itself. What the ConfigMap gives it is the admin's, and its status is
/// left alone.
fn own_frontends(assignment: &Assignment, key: &ObjectKey) -> BTreeMap<Frontend, Mode> {
    match assignment.tasks.get(&Owner::Service(key.clone())).map(|task| &**task) {
        Some(Task::Service { frontends, .. }) => frontends
            .iter()
            .filter(|(_, serving)| serving.source != Source::ConfigMap)
            .map(|(frontend, serving)| (*frontend, serving.mode))
            .collect(),
        _ => BTreeMap::new(),
    }
}

/// The addresses of `frontends`, each with all ports of the Service and which of them are not served there.
fn addresses(
    assignment: &Assignment,
    service: &Service,
    frontends: &BTreeMap<Frontend, Mode>,
) -> Vec<Address> {
    let vips: BTreeSet<IpAddr> = frontends.keys().map(|frontend| frontend.vip).collect();
    let port = |vip: IpAddr, port: &ServicePort| {
        let frontend = Frontend { vip, protocol: port.protocol, port: port.port };
        let error = (!frontends.contains_key(&frontend)).then(|| {
            let taken = assignment.tasks.values().any(|task| task.frontends().any(|other| other == frontend));
            if taken { PORT_TAKEN.to_owned() } else { PORT_NOT_SERVED.to_owned() }
        });
        Port { protocol: port.protocol, port: port.port, error }
    };
    // Where kvip only announces, kube-proxy must not leave the address to it.
    let announced =
        |vip: IpAddr| frontends.iter().any(|(frontend, mode)| frontend.vip == vip && *mode == Mode::Announce);
    let address = |vip: IpAddr| Address {
        ip: vip,
        mode: if announced(vip) { IpMode::Vip } else { IpMode::Proxy },
        ports: service.ports.iter().map(|one| port(vip, one)).collect(),
    };
    vips.into_iter().map(address).collect()
}

/// The addresses that stay in the status although they are not served.
fn kept<'a>(
    assignment: &'a Assignment,
    key: &ObjectKey,
    service: &'a Service,
) -> impl Iterator<Item = Address> + 'a {
    let port = |one: &ServicePort| Port { protocol: one.protocol, port: one.port, error: None };
    let vips = assignment.shown.get(key).into_iter().flatten();
    vips.map(move |vip| Address {
        ip: *vip,
        mode: IpMode::Proxy,
        ports: service.ports.iter().map(port).collect(),
    })
}

/// The VIPs on this host, by the Services that they are for.
fn held(inputs: &Inputs) -> Map<ObjectKey, Held> {
    let mut held = Map::new();
    for (owner, task) in &inputs.assignment.tasks {
        let (Owner::Service(key), Task::Service { uid, .. }) = (owner, &**task) else { continue };
        let vips: BTreeSet<IpAddr> =
            task.frontends().map(|frontend| frontend.vip).filter(|vip| inputs.here.contains(vip)).collect();
        if !vips.is_empty() {
            held.insert(key.clone(), Arc::new(Held { uid: uid.clone(), vips }));
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::{Leaving, VIPS};
    use crate::model::Protocol;
    use crate::net::HostFacts;
    use crate::snapshot::ServicePort;

    /// The Service `web`, which asks for these VIPs by annotation.
    fn web(annotation: &str, ports: &[u16]) -> Service {
        let port = |port: &u16| ServicePort { name: port.to_string(), protocol: Protocol::Tcp, port: *port };
        Service {
            uid: "u1".into(),
            cluster_ips: vec!["10.96.0.9".parse().unwrap()],
            ports: ports.iter().map(port).collect(),
            created: 1,
            annotations: [(VIPS.to_owned(), annotation.to_owned())].into(),
            ..Service::default()
        }
    }

    /// What is said of `web` among these Services, where no other than 10.0.0.50 may be a VIP.
    fn said_of_web(
        services: impl IntoIterator<Item = (&'static str, Service)>,
    ) -> Option<Arc<objects::Wanted>> {
        let key = |name| ObjectKey::new("default", name);
        let services = services.into_iter().map(|(name, service)| (key(name), Arc::new(service))).collect();
        let snapshot = Snapshot { services, ..Snapshot::default() };
        let settings = Settings::standard(vec!["10.0.0.50/32".parse().unwrap()]);
        let (facts, nobody) = (HostFacts::default(), BTreeSet::new());
        let desired = derive::derive(&derive::Inputs {
            settings: &settings,
            snapshot: &snapshot,
            facts: &facts,
            dead: &nobody,
            leaving: &Leaving::new(),
            unhealthy: &crate::health::check::Down::new(),
            reach: &crate::derive::Reach::default(),
        });
        let (outcomes, here) = (ipam::Outcomes::default(), BTreeSet::new());
        let assignment = &desired.assignment;
        let inputs =
            Inputs { settings: &settings, snapshot: &snapshot, assignment, outcomes: &outcomes, here: &here };
        to_say(&inputs, &State::default()).services.get(&key("web")).cloned()
    }

    /// What is said of a Service of one port that asks for these VIPs.
    fn check(annotation: &str, addresses: &[&str], verdict: Option<Verdict>) {
        let wanted = said_of_web([("web", web(annotation, &[80]))]);
        let said = wanted.iter().flat_map(|wanted| &wanted.addresses).map(|one| one.ip.to_string());
        assert_eq!(said.collect::<Vec<_>>(), addresses);
        assert_eq!(wanted.map(|wanted| wanted.verdict.clone()), verdict);
    }

    #[test]
    fn a_refused_annotation_is_said_beside_what_is_served() {
        let outside = || {
            let text = "not served at 10.9.0.1 (kvip.io/vips): outside the allowed ranges (10.0.0.50/32)";
            Some(Verdict::Refused { reason: NOT_SERVED.into(), text: text.into() })
        };
        check("10.0.0.50", &["10.0.0.50"], Some(Verdict::Allocated));
        check("10.9.0.1", &[], outside());
        check("10.0.0.50, 10.9.0.1", &["10.0.0.50"], outside());
        check("", &[], None);
    }

    /// A server that drops ipMode would else be written to for ever.
    #[test]
    fn what_is_refused_for_what_the_status_lacks_stays_in_it() {
        let key = ObjectKey::new("default", "web");
        let ports = vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80 }];
        let service = Service { ports, ..Service::default() };
        let vip: IpAddr = "10.0.0.50".parse().unwrap();
        let assignment = Assignment { shown: [(key.clone(), [vip].into())].into(), ..Assignment::default() };
        let got: Vec<Address> = kept(&assignment, &key, &service).collect();
        let port = Port { protocol: Protocol::Tcp, port: 80, error: None };
        assert_eq!(got, [Address { ip: vip, mode: IpMode::Proxy, ports: vec![port] }]);
    }

    #[test]
    fn a_port_that_an_older_service_has_is_an_error_of_that_port_alone() {
        let older = Service { uid: "u0".into(), created: 0, ..web("10.0.0.50", &[443]) };
        let wanted = said_of_web([("web", web("10.0.0.50", &[80, 443])), ("older", older)]).unwrap();
        let [address] = &wanted.addresses[..] else { panic!("one address: {:?}", wanted.addresses) };
        let ports: Vec<_> = address.ports.iter().map(|port| (port.port, port.error.as_deref())).collect();
        assert_eq!(ports, [(80, None), (443, Some("kvip.io/PortTaken"))]);
        let text = "not served at 10.0.0.50 tcp 443: default/older has it";
        assert_eq!(wanted.verdict, Verdict::Refused { reason: NOT_SERVED.into(), text: text.into() });
    }

    #[test]
    fn a_port_that_the_mode_cannot_serve_is_nobody_elses() {
        let mut dns = web("10.0.0.50", &[53]);
        dns.annotations.insert("kvip.io/mode".into(), "proxy".into());
        dns.ports.push(ServicePort { name: "udp".into(), protocol: Protocol::Udp, port: 53 });
        let wanted = said_of_web([("web", dns)]).unwrap();
        let errors: Vec<_> = wanted.addresses[0].ports.iter().map(|port| port.error.as_deref()).collect();
        assert_eq!(errors, [None, Some("kvip.io/PortNotServed")]);
    }

    #[test]
    fn who_balances_is_said_of_each_service_by_itself() {
        let announced = || {
            let mut service = Service { uid: "u0".into(), created: 0, ..web("10.0.0.50", &[443]) };
            service.annotations.insert("kvip.io/mode".into(), "announce".into());
            service
        };
        let mode = |services: [(&'static str, Service); 2]| said_of_web(services).unwrap().addresses[0].mode;
        assert_eq!(mode([("web", web("10.0.0.50", &[80])), ("other", announced())]), IpMode::Proxy);
        assert_eq!(mode([("web", announced()), ("other", web("10.0.0.50", &[80]))]), IpMode::Vip);
    }

    /// Which of three nodes allocate: node-a is an excluded control-plane node, node-b and node-c have the role edge.
    fn check_allocators(change: impl Fn(&mut Settings), allocators: &[&str]) {
        let labels = [(derive::EXCLUDED, ""), ("role", "edge"), ("role", "edge")];
        let node = |(key, value): (&str, &str)| Node {
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..Node::default()
        };
        let names = ["node-a", "node-b", "node-c"].map(str::to_owned);
        let nodes = names.into_iter().zip(labels.map(|label| Arc::new(node(label)))).collect();
        let mut settings = Settings::standard(Vec::new());
        change(&mut settings);
        let got = super::allocators(&settings, &Snapshot { nodes, ..Snapshot::default() });
        assert_eq!(got.iter().map(String::as_str).collect::<Vec<_>>(), allocators);
    }

    #[test]
    fn those_allocate_that_are_selected_else_those_that_hold_vips() {
        let edge = || [("role".to_owned(), "edge".to_owned())].into();
        check_allocators(|_| (), &["node-b", "node-c"]);
        check_allocators(|settings| settings.vrrp.excluded_too = true, &["node-a", "node-b", "node-c"]);
        check_allocators(|settings| settings.asking.allocators = edge(), &["node-b", "node-c"]);
        let none = || [("role".to_owned(), "none".to_owned())].into();
        check_allocators(|settings| settings.asking.allocators = none(), &[]);
        check_allocators(|settings| settings.vrrp.members = none(), &["node-a", "node-b", "node-c"]);
    }
}
