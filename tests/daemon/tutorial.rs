//! The cluster and the host that the tests begin with: the tutorial's nginx, and a dns, on three nodes.

use std::net::IpAddr;
use std::sync::Arc;

use kvip::config::Settings;
use kvip::model::{Backend, Family, Frontend, ObjectKey, Protocol, Vrid};
use kvip::net::{Address, HostFacts, Link};
use kvip::snapshot::{Endpoint, EndpointSlice, Node, Service, ServicePort, Snapshot};

pub const NODES: [(&str, &str); 3] =
    [("node-a", "10.87.2.4"), ("node-b", "10.87.2.6"), ("node-c", "10.87.2.8")];

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn vrid() -> Vrid {
    Vrid::new(50).unwrap()
}

pub fn settings() -> Settings {
    Settings::standard(vec!["10.87.2.0/24".parse().unwrap()])
}

/// `10.87.2.50` is the tutorial's nginx with a pod on each of two nodes; `10.87.2.51` is dns over UDP.
pub fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot { cluster: Some("uid-1".into()), ..Snapshot::default() };
    for (name, address) in NODES {
        let node = Node { addresses: vec![ip(address)], ..Node::default() };
        snapshot.nodes.insert(name.into(), node.into());
    }
    add_service(&mut snapshot, "nginx", Protocol::Tcp, 80, &["10.2.4.10", "10.2.6.10"]);
    add_service(&mut snapshot, "dns", Protocol::Udp, 53, &["10.2.6.53", "10.2.8.53"]);
    let map = [("10.87.2.50", "default/nginx"), ("10.87.2.51", "default/dns")];
    snapshot.vip_map = Some(map.as_slice().into());
    snapshot
}

fn add_service(snapshot: &mut Snapshot, name: &str, protocol: Protocol, port: u16, pods: &[&str]) {
    let key = ObjectKey::new("default", name);
    let ports = vec![ServicePort { name: "main".into(), protocol, port }];
    snapshot.services.insert(key.clone(), Service { ports: ports.clone(), ..Service::default() }.into());
    let endpoints = pods.iter().map(|pod| endpoint(pod)).collect();
    let slice = EndpointSlice { service: key.clone(), family: Family::V4, ports, endpoints };
    snapshot.slices.insert(key, slice.into());
}

/// A ready pod; the third octet of its address is the last of its node's.
pub fn endpoint(address: &str) -> Endpoint {
    let last = address.split('.').nth(2).unwrap();
    let node = NODES.iter().find(|(_, node)| node.ends_with(&format!(".{last}"))).unwrap().0;
    Endpoint::ready(ip(address), node)
}

/// The endpoints of a Service.
pub fn pods<'a>(snapshot: &'a mut Snapshot, name: &str) -> &'a mut Vec<Endpoint> {
    &mut Arc::make_mut(snapshot.slices.get_mut(&ObjectKey::new("default", name)).unwrap()).endpoints
}

/// Gives nginx these annotations and no others.
pub fn annotate(snapshot: &mut Snapshot, annotations: &[(&str, &str)]) {
    let nginx = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(nginx).annotations =
        annotations.iter().map(|(key, text)| (format!("kvip.io/{key}"), (*text).to_owned())).collect();
}

/// The cluster when nginx has given its port a name, and when its slice has it too.
pub fn named(mut snapshot: Snapshot) -> [Snapshot; 2] {
    let nginx = ObjectKey::new("default", "nginx");
    Arc::make_mut(snapshot.services.get_mut(&nginx).unwrap()).ports[0].name = "http".into();
    let service = snapshot.clone();
    Arc::make_mut(snapshot.slices.get_mut(&nginx).unwrap()).ports[0].name = "http".into();
    [service, snapshot]
}

pub fn end(endpoint: &mut Endpoint) {
    (endpoint.ready, endpoint.serving, endpoint.terminating) = (false, true, true);
}

pub fn nginx() -> Frontend {
    Frontend { vip: ip("10.87.2.50"), protocol: Protocol::Tcp, port: 80 }
}

pub fn dns() -> Frontend {
    Frontend { vip: ip("10.87.2.51"), protocol: Protocol::Udp, port: 53 }
}

pub fn backend(address: &str, port: u16) -> Backend {
    Backend { address: ip(address), port }
}

/// An address as keepalived makes VIPs and anchors.
pub fn marked(address: &str) -> Address {
    Address { ip: ip(address), prefix_len: 32, link: "eth0".into(), noprefixroute: true }
}

pub fn facts() -> HostFacts {
    let own = Address { prefix_len: 24, noprefixroute: false, ..marked("10.87.2.4") };
    HostFacts {
        hostname: "node-a".into(),
        links: [("eth0".to_owned(), Link { index: 2, up: true, ..Link::default() })].into(),
        addresses: [own].into(),
        gateways: [ip("10.87.2.1")].into(),
        ..HostFacts::default()
    }
}
