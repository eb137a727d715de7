//! Which frontends are to be kept from kube-proxy, as it has rules for them too.
//!
//! kube-proxy serves spec.externalIPs, and each address of status.loadBalancer that does not say `ipMode: Proxy`: the
//! status that API servers before 1.30 keep, and what others than kvip write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::assign::Task;
use super::{Inputs, Owner};
use crate::config::Shield;
use crate::model::Frontend;
use crate::snapshot::{Service, Snapshot};

/// The frontends that connections are to reach past kube-proxy.
pub fn shielded(inputs: &Inputs, tasks: &BTreeMap<Owner, Task>) -> BTreeSet<Frontend> {
    let known = match inputs.settings.balancing.shield {
        Shield::Off => return BTreeSet::new(),
        // There it has the addresses on a device of its own, and its virtual servers stand in the way of kvip's.
        Shield::Auto if inputs.facts.kube_proxy_has_ipvs_mode() => return BTreeSet::new(),
        Shield::Auto => Some(known_to_kube_proxy(inputs.snapshot)),
        Shield::On => None,
    };
    let frontends = tasks.values().flat_map(Task::balanced_here);
    frontends.filter(|frontend| known.as_ref().is_none_or(|known| known.contains(&frontend.vip))).collect()
}

/// The addresses that kube-proxy serves itself, beside ClusterIPs: in ipvs mode they are on its device, on every node.
pub fn known_to_kube_proxy(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.services.values().flat_map(|service| addresses(service)).collect()
}

/// The addresses for which kube-proxy has rules because of this Service, beside its ClusterIPs.
pub fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let balancer = service.load_balancer.iter().flat_map(|balancer| &balancer.ingress);
    let foreign = balancer.filter(|entry| entry.mode.as_deref() != Some("Proxy"));
    service.external_ips.iter().copied().chain(foreign.filter_map(|entry| entry.ip.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::derive::assign::assign;
    use crate::derive::{Leaving, VIPS};
    use crate::model::{ObjectKey, Protocol};
    use crate::net::{HostFacts, Link};
    use crate::snapshot::{Ingress, LoadBalancer, ServicePort};

    /// A Service that asks for that VIP.
    fn service(vip: &str) -> Service {
        Service {
            cluster_ips: vec!["10.96.0.9".parse().unwrap()],
            ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80 }],
            annotations: [(VIPS.to_owned(), vip.to_owned())].into(),
            ..Service::default()
        }
    }

    /// One that others write into the status of a Service, with that ipMode.
    fn written(vip: &str, mode: Option<&str>) -> Service {
        let entry = Ingress { ip: vip.into(), mode: mode.map(str::to_owned), ports: Vec::new() };
        Service {
            load_balancer: Some(LoadBalancer { ingress: vec![entry], ..LoadBalancer::default() }),
            ..service(vip)
        }
    }

    /// What is shielded of these: 50 is unknown to kube-proxy, 51 and 52 are known, 53 is to be left alone.
    #[track_caller]
    fn check(shield: Shield, link: &str, expected: &[&str]) {
        let external = Service { external_ips: vec!["10.0.0.51".parse().unwrap()], ..service("10.0.0.51") };
        let services =
            [service("10.0.0.50"), external, written("10.0.0.52", None), written("10.0.0.53", Some("Proxy"))];
        let mut snapshot = Snapshot::default();
        for (name, service) in ["a", "b", "c", "d"].into_iter().zip(services) {
            snapshot.services.insert(ObjectKey::new("default", name), service.into());
        }
        let mut settings = Settings::standard(vec!["10.0.0.0/24".parse().unwrap()]);
        settings.balancing.shield = shield;
        let mut facts = HostFacts::default();
        facts.links.insert(link.into(), Link { index: 2, up: true, ..Link::default() });
        let inputs = Inputs {
            settings: &settings,
            snapshot: &snapshot,
            facts: &facts,
            dead: &BTreeSet::new(),
            leaving: &Leaving::new(),
            unhealthy: &crate::health::check::Down::new(),
            reach: &crate::derive::Reach::default(),
            foreign_marks: &BTreeSet::new(),
        };
        let shielded: Vec<String> =
            assign(&inputs, &BTreeMap::new()).shielded.iter().map(|one| one.vip.to_string()).collect();
        assert_eq!(shielded, expected, "{shield:?} with {link}");
    }

    #[test]
    fn what_kube_proxy_knows_is_kept_from_it() {
        let all = ["10.0.0.50", "10.0.0.51", "10.0.0.52", "10.0.0.53"];
        check(Shield::Auto, "eth0", &["10.0.0.51", "10.0.0.52"]);
        check(Shield::On, "eth0", &all);
        check(Shield::Off, "eth0", &[]);
    }

    #[test]
    fn in_its_ipvs_mode_there_is_nothing_to_keep() {
        check(Shield::Auto, "kube-ipvs0", &[]);
        check(Shield::On, "kube-ipvs0", &["10.0.0.50", "10.0.0.51", "10.0.0.52", "10.0.0.53"]);
    }
}
