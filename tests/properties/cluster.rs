//! Arbitrary clusters, and arbitrary changes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use kvip::config::Settings;
use kvip::model::{Family, ObjectKey, Protocol};
use kvip::net::{Address, HostFacts, Link};
use kvip::snapshot::{Endpoint, EndpointSlice, Node, Service, ServicePort, Snapshot};
use proptest::prelude::*;

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

pub fn settings() -> Settings {
    Settings::standard(vec!["10.87.2.0/24".parse().unwrap()])
}

pub fn facts() -> HostFacts {
    let link = Link { index: 2, up: true, ..Link::default() };
    let own = Address {
        ip: "10.87.2.4".parse().unwrap(),
        prefix_len: 24,
        link: "eth0".into(),
        noprefixroute: false,
    };
    HostFacts {
        hostname: "node-a".into(),
        links: [("eth0".to_owned(), link)].into(),
        addresses: [own].into(),
        gateways: ["10.87.2.1".parse().unwrap()].into(),
        policy_routes: BTreeSet::new(),
    }
}

pub fn nodes() -> BTreeMap<String, Node> {
    let node = |index: u8| Node {
        addresses: vec![Ipv4Addr::new(10, 87, 2, 4 + 2 * index).into()],
        ..Node::default()
    };
    NODES.iter().zip(0..).map(|(name, index)| ((*name).to_owned(), node(index))).collect()
}

prop_compose! {
    fn endpoint()(
        pod in 10_u8..30,
        node in 0_usize..3,
        ready: bool,
        serving: bool,
        terminating: bool,
        weight in prop::option::of(0_u16..4),
    ) -> Endpoint {
        let address = Ipv4Addr::new(10, 2, u8::try_from(node).unwrap(), pod).into();
        Endpoint { ready: ready && !terminating, serving, terminating, weight, ..Endpoint::ready(address, NODES[node]) }
    }
}

prop_compose! {
    fn service()(
        ports in prop::collection::btree_set((0_usize..2, 80_u16..83), 0..3),
        affinity: bool,
        scheduler in "rr|mh|sh|none",
        one_packet: bool,
    ) -> Service {
        let port = |(protocol, port)| {
            let protocol = [Protocol::Tcp, Protocol::Udp][protocol];
            ServicePort { name: format!("{protocol}-{port}"), protocol, port }
        };
        Service {
            ports: ports.into_iter().map(port).collect(),
            affinity: affinity.then_some(Duration::from_secs(600)),
            annotations: [
                ("kvip.io/scheduler".to_owned(), scheduler),
                ("kvip.io/one-packet".to_owned(), one_packet.to_string()),
            ].into(),
            ..Service::default()
        }
    }
}

fn value() -> impl Strategy<Value = String> {
    let entry = (0_usize..5, prop::option::of(79_u16..83), prop::option::of("NAT|DR|XX")).prop_map(
        |(service, port, method)| {
            let name = SERVICES.get(service).unwrap_or(&"missing");
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let method = method.map(|method| format!(":{method}")).unwrap_or_default();
            format!("default/{name}{port}{method}")
        },
    );
    prop_oneof![4 => prop::collection::vec(entry, 0..3).prop_map(|entries| entries.join(",")), 1 => "[a-z/:, ]{0,9}"]
}

prop_compose! {
    pub fn snapshot()(
        services in prop::collection::btree_map(0_usize..4, service(), 0..4),
        endpoints in prop::collection::vec((0_usize..4, prop::collection::vec(endpoint(), 0..6)), 0..6),
        entries in prop::collection::btree_map("10\\.87\\.2\\.(5[0-5]|4|1|300)|10-0|192\\.0\\.2\\.1", value(), 0..6),
    ) -> Snapshot {
        let key = |index: usize| ObjectKey::new("default", SERVICES[index]);
        let ports = |protocol: Protocol| (80..83).map(move |port| {
            ServicePort { name: format!("{protocol}-{port}"), protocol, port: port + 8000 }
        });
        let slice = |(index, endpoints)| EndpointSlice {
            service: key(index),
            family: Family::V4,
            ports: ports(Protocol::Tcp).chain(ports(Protocol::Udp)).collect(),
            endpoints,
        };
        Snapshot {
            cluster: Some("uid".into()),
            services: services.into_iter().map(|(index, service)| (key(index), Arc::new(service))).collect(),
            slices: (0..).zip(endpoints).map(|(n, one)| (ObjectKey::new("default", format!("slice-{n}")), Arc::new(slice(one)))).collect(),
            nodes: nodes().into_iter().map(|(name, node)| (name, Arc::new(node))).collect(),
            vip_map: Some(entries.into()),
            ..Snapshot::default()
        }
    }
}

/// One change of a cluster: the object that `which` names becomes as it is in `from`, or goes.
pub fn edit(snapshot: &mut Snapshot, which: u8, from: &Snapshot) {
    let index = usize::from(which / 4);
    match which % 4 {
        0 => {
            let key = ObjectKey::new("default", SERVICES[index % SERVICES.len()]);
            match from.services.get(&key) {
                Some(service) => drop(snapshot.services.insert(key, Arc::clone(service))),
                None => drop(snapshot.services.remove(&key)),
            }
        }
        1 => {
            let key = ObjectKey::new("default", format!("slice-{}", index % 4));
            match from.slices.get(&key) {
                Some(slice) => drop(snapshot.slices.insert(key, Arc::clone(slice))),
                None => drop(snapshot.slices.remove(&key)),
            }
        }
        2 => snapshot.vip_map.clone_from(&from.vip_map),
        _ => {
            let name = NODES[index % NODES.len()].to_owned();
            match snapshot.nodes.remove(&name) {
                Some(_) => {}
                None => {
                    let mut node = nodes().remove(&name).unwrap();
                    node.pod_cidrs =
                        (which >= 128).then(|| "10.2.0.0/28".parse().unwrap()).into_iter().collect();
                    snapshot.nodes.insert(name, Arc::new(node));
                }
            }
        }
    }
}
