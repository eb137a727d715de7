//! Which endpoints serve, by hints and by the names of ports.

use super::*;
use WantedServer::{Active, Draining, Lingering};

fn slice(ports: Vec<ServicePort>, endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
    let service = crate::model::ObjectKey::new("default", "web");
    Arc::new(EndpointSlice { service, family: Family::V4, ports, endpoints })
}

fn tcp(name: &str, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol: Protocol::Tcp, port }
}

/// What three ready pods, hinted for `zones` and `nodes`, are to a node `node-a` of zone `z1`.
fn hinted(zones: [&[&str]; 3], nodes: [&[&str]; 3], ordered: bool) -> Vec<WantedServer> {
    let around =
        Surroundings { node: Some("node-a".into()), zone: Some("z1".into()), ..Surroundings::default() };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let endpoints = zones.iter().zip(nodes).zip(1_u8..).map(|((zones, nodes), last)| Endpoint {
        for_zones: words(zones),
        for_nodes: words(nodes),
        ..Endpoint::ready([10, 2, 4, last].into(), "node-b")
    });
    let slice = slice(vec![tcp("", 80)], endpoints.collect());
    let names = [("", Protocol::Tcp)].into();
    let sought = Sought { port: &tcp("", 80), names: &names, family: Family::V4, ordered, unmasked: false };
    let found = behind(&around, &[&slice], sought, Scope::ThisNode, &BTreeMap::new());
    found.servers.into_values().map(|server| server.wanted).collect()
}

/// Which of three ready pods serve.
#[track_caller]
fn check_hints(zones: [&[&str]; 3], nodes: [&[&str]; 3], active: &[u8]) {
    let all = (1_u8..).zip(hinted(zones, nodes, false));
    let got: Vec<u8> = all.filter(|(_, wanted)| *wanted == Active).map(|(last, _)| last).collect();
    assert_eq!(got, active);
}

#[test]
fn hints_count_when_all_endpoints_have_them_and_one_is_for_here() {
    let none: [&[&str]; 3] = [&[], &[], &[]];
    check_hints(none, none, &[1, 2, 3]);
    check_hints([&["z1"], &["z2"], &["z1", "z2"]], none, &[1, 3]);
    check_hints([&["z1"], &["z2"], &[]], none, &[1, 2, 3]);
    check_hints([&["z2"], &["z2"], &["z3"]], none, &[1, 2, 3]);
    check_hints([&["z1"], &["z1"], &["z2"]], [&["node-b"], &["node-a"], &["node-c"]], &[2]);
    check_hints([&["z1"], &["z1"], &["z2"]], [&["node-b"], &["node-b"], &["node-c"]], &[1, 2]);
}

#[test]
fn hints_take_connections_from_nobody_but_where_the_order_counts() {
    let wanted = |ordered| hinted([&["z1"], &["z2"], &["z1"]], [&[], &[], &[]], ordered)[1];
    assert_eq!([wanted(false), wanted(true)], [Lingering, Draining]);
}

/// What a ready pod and one that is not are to port `http` of a Service that has a port `admin` too, where their slice has
/// this port alone.
#[track_caller]
fn check_name(port: ServicePort, ordered: bool, want: &[WantedServer]) {
    let is_it = port.name == "http";
    let unready = Endpoint { ready: false, ..Endpoint::ready([10, 2, 4, 2].into(), "node-b") };
    let slice = slice(vec![port], vec![Endpoint::ready([10, 2, 4, 1].into(), "node-b"), unready]);
    let names = [("http", Protocol::Tcp), ("admin", Protocol::Tcp)].into();
    let sought =
        Sought { port: &tcp("http", 80), names: &names, family: Family::V4, ordered, unmasked: false };
    let found = behind(&Surroundings::default(), &[&slice], sought, Scope::ThisNode, &BTreeMap::new());
    assert_eq!(found.servers.values().map(|server| server.wanted).collect::<Vec<_>>(), want);
    assert_eq!(found.lacks_port, !is_it);
    assert_eq!(found.nodes.is_empty(), want.is_empty(), "who runs them is asked for life on");
}

#[test]
fn a_name_that_slices_have_not_heard_of_takes_connections_from_nobody() {
    check_name(tcp("http", 8080), false, &[Active, Lingering]);
    check_name(tcp("", 8080), false, &[Lingering, Lingering]);
    check_name(tcp("web", 8080), false, &[Lingering, Lingering]);
    check_name(tcp("web", 8080), true, &[Draining, Lingering]);
    check_name(tcp("admin", 8080), false, &[]);
    check_name(ServicePort { protocol: Protocol::Udp, ..tcp("web", 8080) }, false, &[]);
}

/// What a ready pod of a slice with these ports is wanted for, by number, where the Service's two ports have new names.
#[track_caller]
fn check_two_names(ports: &[ServicePort], ordered: bool, want: &[u16]) {
    let slice = slice(ports.to_vec(), vec![Endpoint::ready([10, 2, 4, 1].into(), "node-b")]);
    let names = [("web", Protocol::Tcp), ("metrics", Protocol::Tcp)].into();
    let sought =
        Sought { port: &tcp("web", 80), names: &names, family: Family::V4, ordered, unmasked: false };
    let found = behind(&Surroundings::default(), &[&slice], sought, Scope::ThisNode, &BTreeMap::new());
    assert_eq!(found.servers.keys().map(|backend| backend.port).collect::<Vec<_>>(), want);
}

#[test]
fn of_two_ports_that_may_have_been_it_none_gets_a_place() {
    let before = [tcp("http", 8080), tcp("admin", 9090)];
    check_two_names(&before, false, &[8080, 9090]);
    check_two_names(&before, true, &[]);
    check_two_names(&[tcp("http", 8080), tcp("metrics", 9090)], true, &[8080]);
    check_two_names(&[tcp("web", 8080), tcp("admin", 9090)], true, &[8080]);
}
