//! Arbitrary clusters, and arbitrary changes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use kvip::config::{Pool, Settings};
use kvip::derive::VIPS;
use kvip::ipam::{CLASS, Claim, Kind, User, Version};
use kvip::model::{Family, ObjectKey, Protocol};
use kvip::net::{Address, HostFacts, Link};
use kvip::snapshot::{
    Condition, Endpoint, EndpointSlice, FamilyPolicy, Ingress, LoadBalancer, Node, Service, ServiceKind,
    ServicePort, Snapshot,
};
use proptest::prelude::*;

/// Services, with their namespaces.
const SERVICES: [(&str, &str); 5] =
    [("default", "a"), ("default", "b"), ("default", "c"), ("default", "d"), ("other", "a")];
pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// The pool: some of what the ConfigMap and annotations name, and more.
const POOL: [&str; 2] = ["10.87.2.48/29", "fd00:87:2::50/126"];

fn key(index: usize) -> ObjectKey {
    let (namespace, name) = SERVICES[index % SERVICES.len()];
    ObjectKey::new(namespace, name)
}

/// Every way of asking counts.
pub fn settings() -> Settings {
    let mut settings =
        Settings::standard(["10.87.2.0/24", "fd00:87:2::/64"].map(|range| range.parse().unwrap()).into());
    settings.asking.external_ips = true;
    let pool = POOL.map(|range| range.parse::<ipnet::IpNet>().unwrap().into());
    settings.pools = vec![Pool::standard("lan", pool.into())];
    settings
}

fn own(ip: &str, prefix_len: u8) -> Address {
    Address { ip: ip.parse().unwrap(), prefix_len, link: "eth0".into(), noprefixroute: false }
}

pub fn facts() -> HostFacts {
    let link = Link { index: 2, up: true, ..Link::default() };
    HostFacts {
        hostname: "node-a".into(),
        links: [("eth0".to_owned(), link)].into(),
        addresses: [own("10.87.2.4", 24), own("fd00:87:2::4", 64)].into(),
        gateways: ["10.87.2.1".parse().unwrap()].into(),
        ..HostFacts::default()
    }
}

/// Those of node-b.
pub fn other_facts() -> HostFacts {
    let addresses = [own("10.87.2.6", 24), own("fd00:87:2::6", 64)].into();
    HostFacts { hostname: "node-b".into(), addresses, ..facts() }
}

/// Another host of the cluster, on which an address that may be asked for is its own, another its gateway's, and
/// kube-proxy runs in ipvs mode.
pub fn refusing_facts() -> HostFacts {
    let mut facts = facts();
    facts.gateways.insert("10.87.2.52".parse().unwrap());
    let own = Address {
        ip: "10.87.2.53".parse().unwrap(),
        prefix_len: 24,
        link: "eth1".into(),
        noprefixroute: false,
    };
    facts.addresses.insert(own);
    facts.links.insert("kube-ipvs0".into(), Link::default());
    facts
}

pub fn nodes() -> BTreeMap<String, Node> {
    let node = |index: u8| Node {
        addresses: vec![Ipv4Addr::new(10, 87, 2, 4 + 2 * index).into(), v6(4 + 2 * index)],
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

/// An address of the nodes' IPv6 network.
fn v6(last: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x87, 2, 0, 0, 0, 0, last.into()).into()
}

/// An address that Services ask for by themselves, and pools give.
fn vip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        3 => (50_u8..57).prop_map(|last| Ipv4Addr::new(10, 87, 2, last).into()),
        1 => (0x50_u8..0x54).prop_map(v6),
    ]
}

/// What clusters of two families say of those of a Service.
fn families() -> impl Strategy<Value = (Vec<Family>, FamilyPolicy)> {
    let (v4, v6) = (Family::V4, Family::V6);
    prop::sample::select(vec![
        (vec![v4], FamilyPolicy::SingleStack),
        (vec![v4], FamilyPolicy::SingleStack),
        (vec![v6], FamilyPolicy::SingleStack),
        (vec![v4, v6], FamilyPolicy::PreferDualStack),
        (vec![v6, v4], FamilyPolicy::RequireDualStack),
    ])
}

/// Most Services can be balanced.
fn kind() -> impl Strategy<Value = ServiceKind> {
    let [balanced, headless, external_name] =
        [ServiceKind::Balanced, ServiceKind::Headless, ServiceKind::ExternalName];
    prop_oneof![8 => Just(balanced), 1 => Just(headless), 1 => Just(external_name)]
}

/// What kvip may have said of a Service before.
fn condition() -> impl Strategy<Value = Condition> {
    let message = word(&["served at 10.87.2.50", "not served; its pool is full"]);
    message.prop_map(|message| Condition { message, ..Condition::default() })
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
        (kind, (families, family_policy), condition) in (kind(), families(), prop::option::of(condition())),
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
            kind,
            families,
            family_policy,
            condition,
            ..Service::default()
        }
    }
}

prop_compose! {
    /// A claim; some are of Services that were deleted and made again since.
    fn claim()(
        address in vip(),
        users in prop::collection::btree_map(0..SERVICES.len(), prop::collection::btree_set(80_u16..83, 1..4), 1..3),
        shared: bool,
        released in prop::bool::weighted(0.1),
        created in 0_i64..3,
    ) -> Claim {
        let user = |(index, ports): (usize, BTreeSet<u16>)| User {
            service: key(index),
            uid: format!("{}-1", key(index)),
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

/// The same endpoint with an IPv6 address.
fn of_v6(endpoint: Endpoint) -> Endpoint {
    let IpAddr::V4(address) = endpoint.address else { return endpoint };
    let [_, _, node, pod] = address.octets().map(u16::from);
    Endpoint { address: Ipv6Addr::new(0xfd00, 2, node, 0, 0, 0, 0, pod).into(), ..endpoint }
}

fn value() -> impl Strategy<Value = String> {
    let entry = (0_usize..6, prop::option::of(79_u16..83), prop::option::of(word(&["NAT", "DR", "XX"])))
        .prop_map(|(service, port, method)| {
            let (namespace, name) = SERVICES.get(service).unwrap_or(&("default", "missing"));
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let method = method.map(|method| format!(":{method}")).unwrap_or_default();
            format!("{namespace}/{name}{port}{method}")
        });
    prop_oneof![4 => prop::collection::vec(entry, 0..3).prop_map(|entries| entries.join(",")), 1 => "[a-z/:, ]{0,9}"]
}

prop_compose! {
    pub fn snapshot()(
        services in prop::collection::btree_map(0..SERVICES.len(), service(), 1..6),
        endpoints in prop::collection::vec(
            (0..SERVICES.len(), prop::collection::vec(endpoint(), 0..6), prop::bool::weighted(0.3)),
            0..8,
        ),
        claims in prop::collection::vec(claim(), 0..5),
        entries in prop::collection::btree_map(
            "10\\.87\\.2\\.(5[0-5]|4|1|300)|fd00-87-2--(5[0-3]|4)|10-0|192\\.0\\.2\\.1",
            value(),
            0..7,
        ),
    ) -> Snapshot {
        let named = |index: usize, service: Service| Service { uid: format!("{}-{}", key(index), service.uid), ..service };
        let ports = |protocol: Protocol| (80..83).map(move |port| {
            ServicePort { name: format!("{protocol}-{port}"), protocol, port: port + 8000 }
        });
        let slice = |(index, endpoints, six): (usize, Vec<Endpoint>, bool)| EndpointSlice {
            service: key(index),
            family: if six { Family::V6 } else { Family::V4 },
            ports: ports(Protocol::Tcp).chain(ports(Protocol::Udp)).collect(),
            endpoints: if six { endpoints.into_iter().map(of_v6).collect() } else { endpoints },
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

prop_compose! {
    /// A cluster with one Service, in mode dsr. Its pods have so few addresses that two such clusters share some.
    pub fn in_dsr()(
        pods in prop::collection::btree_map((0_usize..3, 1_u8..4), (prop::bool::weighted(0.8), prop::option::of(1_u16..4)), 0..9),
    ) -> Snapshot {
        let port = |port| ServicePort { name: String::new(), protocol: Protocol::Tcp, port };
        let annotations = [("kvip.io/mode", "dsr"), (VIPS, "10.87.2.50")];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let service = Service { ports: vec![port(80)], annotations, ..Service::default() };
        let endpoint = |((node, pod), (ready, weight)): ((usize, u8), (bool, Option<u16>))| {
            let address = Ipv4Addr::new(10, 2, u8::try_from(node).unwrap(), pod).into();
            Endpoint { ready, terminating: !ready, weight, ..Endpoint::ready(address, NODES[node]) }
        };
        let endpoints = pods.into_iter().map(endpoint).collect();
        let slice = EndpointSlice { service: key(0), family: Family::V4, ports: vec![port(8080)], endpoints };
        Snapshot {
            cluster: Some("uid".into()),
            services: [(key(0), Arc::new(service))].into_iter().collect(),
            slices: [(key(0), Arc::new(slice))].into_iter().collect(),
            nodes: nodes().into_iter().map(|(name, node)| (name, Arc::new(node))).collect(),
            ..Snapshot::default()
        }
    }
}

/// One change of a cluster: the object that `which` names becomes as it is in `from`, or goes.
pub fn edit(snapshot: &mut Snapshot, which: u8, from: &Snapshot) {
    let index = usize::from(which / 6);
    match which % 6 {
        0 | 1 => {
            let key = key(index);
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
