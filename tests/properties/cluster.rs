//! Arbitrary clusters, and arbitrary changes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use kvip::config::{Pool, Settings};
use kvip::derive::VIPS;
use kvip::ipam::{CLASS, Claim, Kind, User, Version};
use kvip::model::{Family, ObjectKey, Protocol};
use kvip::net::{Address, HostFacts, Link};
use kvip::snapshot::{Endpoint, EndpointSlice, Ingress, LoadBalancer, Node, Service, ServicePort, Snapshot};
use proptest::prelude::*;

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// The pool: some of what the ConfigMap and annotations name, and more.
const POOL: &str = "10.87.2.48/29";

/// Every way of asking counts.
pub fn settings() -> Settings {
    let mut settings = Settings::standard(vec!["10.87.2.0/24".parse().unwrap()]);
    settings.asking.external_ips = true;
    settings.pools = vec![Pool::standard("lan", vec![POOL.parse::<ipnet::IpNet>().unwrap().into()])];
    settings
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

/// One of a few words; a pattern would be parsed anew for each.
fn word(words: &[&str]) -> impl Strategy<Value = String> + use<> {
    prop::sample::select(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
}

/// An address that Services ask for by themselves, and pools give.
fn vip() -> impl Strategy<Value = IpAddr> {
    (50_u8..57).prop_map(|last| Ipv4Addr::new(10, 87, 2, last).into())
}

/// What a Service of type LoadBalancer says, of kvip's class and of another.
fn load_balancer() -> impl Strategy<Value = LoadBalancer> {
    let entry = (vip(), prop::option::of(word(&["Proxy", "VIP"])));
    let entry = entry.prop_map(|(ip, mode)| Ingress { ip: ip.to_string(), mode, ..Ingress::default() });
    let class = word(&[CLASS, CLASS, CLASS, "example.com/other"]);
    (class, prop::option::of(vip()), prop::option::of(entry)).prop_map(|(class, address, entry)| {
        LoadBalancer {
            class: Some(class),
            address: address.map(|address| address.to_string()),
            ingress: entry.into_iter().collect(),
        }
    })
}

fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
    let text = |vips: Vec<IpAddr>| vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let modes = word(&["nat", "dsr", "dr", "tunnel", "proxy", "announce", "none"]);
    (
        prop::option::weighted(0.4, prop::collection::vec(vip(), 1..3).prop_map(text)),
        prop::option::weighted(0.3, modes),
        prop::option::weighted(0.3, word(&["k"])),
        word(&["rr", "mh", "sh", "none"]),
        any::<bool>(),
    )
        .prop_map(|(vips, mode, share_key, scheduler, one_packet)| {
            let written = [
                (VIPS, vips),
                ("kvip.io/mode", mode),
                ("kvip.io/share-key", share_key),
                ("kvip.io/scheduler", Some(scheduler)),
                ("kvip.io/one-packet", Some(one_packet.to_string())),
            ];
            written.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
        })
}

prop_compose! {
    fn service()(
        ports in prop::collection::btree_set((0_usize..2, 80_u16..83), 0..5),
        affinity: bool,
        annotations in annotations(),
        external_ips in prop::option::weighted(0.3, vip()),
        load_balancer in prop::option::of(load_balancer()),
        local_policy in prop::bool::weighted(0.3),
        source_ranges in prop::option::weighted(0.3, word(&["10.0.0.0/8", "0.0.0.0/0", "none"])),
        (uid, created, deleting) in (word(&["1", "1", "1", "2"]), 0_i64..3, prop::bool::weighted(0.1)),
    ) -> Service {
        let port = |(protocol, port)| {
            let protocol = [Protocol::Tcp, Protocol::Udp][protocol];
            ServicePort { name: format!("{protocol}-{port}"), protocol, port }
        };
        Service {
            ports: ports.into_iter().map(port).collect(),
            affinity: affinity.then_some(Duration::from_secs(600)),
            uid,
            created,
            deleting,
            annotations,
            external_ips: external_ips.into_iter().collect(),
            load_balancer,
            local_policy,
            source_ranges: source_ranges.into_iter().collect(),
            ..Service::default()
        }
    }
}

prop_compose! {
    /// A claim; some are of Services that were deleted and made again since.
    fn claim()(
        address in vip(),
        users in prop::collection::btree_map(0_usize..4, prop::collection::btree_set(80_u16..83, 1..4), 1..3),
        shared: bool,
        released in prop::bool::weighted(0.1),
        created in 0_i64..3,
    ) -> Claim {
        let user = |(index, ports): (usize, BTreeSet<u16>)| User {
            service: ObjectKey::new("default", SERVICES[index]),
            uid: format!("{}-1", SERVICES[index]),
            ports: ports.into_iter().flat_map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)]).collect(),
        };
        Claim {
            address,
            kind: Kind::IpAddress,
            users: users.into_iter().take(if shared { 2 } else { 1 }).map(user).collect(),
            pool: Some("lan".into()),
            share_key: shared.then(|| "default/k".into()),
            released: released.then_some(5),
            created,
            version: Version::default(),
        }
    }
}

fn value() -> impl Strategy<Value = String> {
    let entry = (0_usize..5, prop::option::of(79_u16..83), prop::option::of(word(&["NAT", "DR", "XX"])))
        .prop_map(|(service, port, method)| {
            let name = SERVICES.get(service).unwrap_or(&"missing");
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let method = method.map(|method| format!(":{method}")).unwrap_or_default();
            format!("default/{name}{port}{method}")
        });
    prop_oneof![4 => prop::collection::vec(entry, 0..3).prop_map(|entries| entries.join(",")), 1 => "[a-z/:, ]{0,9}"]
}

prop_compose! {
    pub fn snapshot()(
        services in prop::collection::btree_map(0_usize..4, service(), 1..5),
        endpoints in prop::collection::vec((0_usize..4, prop::collection::vec(endpoint(), 0..6)), 0..8),
        claims in prop::collection::vec(claim(), 0..5),
        entries in prop::collection::btree_map("10\\.87\\.2\\.(5[0-5]|4|1|300)|10-0|192\\.0\\.2\\.1", value(), 0..6),
    ) -> Snapshot {
        let key = |index: usize| ObjectKey::new("default", SERVICES[index]);
        let named = |index: usize, service: Service| Service { uid: format!("{}-{}", SERVICES[index], service.uid), ..service };
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
            services: services.into_iter().map(|(index, service)| (key(index), Arc::new(named(index, service)))).collect(),
            claims: claims.into_iter().collect(),
            slices: (0..).zip(endpoints).map(|(n, one)| (ObjectKey::new("default", format!("slice-{n}")), Arc::new(slice(one)))).collect(),
            nodes: nodes().into_iter().map(|(name, node)| (name, Arc::new(node))).collect(),
            vip_map: Some(entries.into()),
            ..Snapshot::default()
        }
    }
}

/// One change of a cluster: the object that `which` names becomes as it is in `from`, or goes.
pub fn edit(snapshot: &mut Snapshot, which: u8, from: &Snapshot) {
    let index = usize::from(which / 6);
    match which % 6 {
        0 | 1 => {
            let key = ObjectKey::new("default", SERVICES[index % SERVICES.len()]);
            match from.services.get(&key) {
                Some(service) => drop(snapshot.services.insert(key, Arc::clone(service))),
                None => drop(snapshot.services.remove(&key)),
            }
        }
        2 => {
            let key = ObjectKey::new("default", format!("slice-{}", index % 8));
            match from.slices.get(&key) {
                Some(slice) => drop(snapshot.slices.insert(key, Arc::clone(slice))),
                None => drop(snapshot.slices.remove(&key)),
            }
        }
        3 => snapshot.vip_map.clone_from(&from.vip_map),
        4 => edit_claim(snapshot, index, from),
        _ => edit_node(snapshot, NODES[index % NODES.len()], index),
    }
}

fn edit_claim(snapshot: &mut Snapshot, index: usize, from: &Snapshot) {
    let addresses: BTreeSet<IpAddr> = snapshot.claims.addresses().chain(from.claims.addresses()).collect();
    let Some(address) = addresses.iter().nth(index % addresses.len().max(1)) else { return };
    match from.claims.at(*address) {
        Some(claim) => drop(snapshot.claims.insert(claim.clone())),
        None => drop(snapshot.claims.remove(*address, Kind::IpAddress)),
    }
}

/// The node goes, or is there, with a range of pods or without.
fn edit_node(snapshot: &mut Snapshot, name: &str, index: usize) {
    if index.is_multiple_of(4) {
        snapshot.nodes.remove(name);
        return;
    }
    let mut node = nodes().remove(name).unwrap();
    // Too small for its own pods, or so large that pods of another node are in it.
    let range = if index.is_multiple_of(2) { "10.2.0.0/28" } else { "10.2.0.0/23" };
    node.pod_cidrs = (index > 20).then(|| range.parse().unwrap()).into_iter().collect();
    snapshot.nodes.insert(name.to_owned(), Arc::new(node));
}
