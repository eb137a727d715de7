//! Services that ask by themselves: what allocators and the status of Services are told, and what that costs.

use std::sync::Arc;

use kvip::config::{Pool, Settings, Static, Tenant};
use kvip::ipam::{Claim, Kind, User, Version};
use kvip::model::{Family, Frontend, ObjectKey, Protocol};
use kvip::report::objects::{IpMode, Verdict};
use kvip::snapshot::{Endpoint, EndpointSlice, LoadBalancer, Service, ServicePort, Snapshot};

use crate::world::{World, endpoint, ip, pods, settings, snapshot};

fn with_pool() -> Settings {
    let mut settings = settings();
    settings.pools =
        vec![Pool::standard("lan", vec!["10.87.2.64/28".parse::<ipnet::IpNet>().unwrap().into()])];
    settings
}

fn web() -> ObjectKey {
    ObjectKey::new("default", "web")
}

/// The cluster with `default/web` of type LoadBalancer.
fn with_web() -> Snapshot {
    let mut snapshot = snapshot();
    let ports = vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80 }];
    let service = Service {
        uid: "uid-web".into(),
        ports,
        families: vec![kvip::model::Family::V4],
        load_balancer: Some(LoadBalancer { class: Some("kvip.io/kvip".into()), ..LoadBalancer::default() }),
        ..Service::default()
    };
    snapshot.services.insert(web(), Arc::new(service));
    snapshot
}

fn claim(address: &str) -> Claim {
    let user = User { service: web(), uid: "uid-web".into(), ports: [(Protocol::Tcp, 80)].into() };
    Claim {
        address: ip(address),
        kind: Kind::IpAddress,
        users: vec![user],
        pool: Some("lan".into()),
        share_key: None,
        released: None,
        created: 1,
        version: Version { uid: "claim".into(), resource: "7".into() },
    }
}

fn with_claim() -> Snapshot {
    let mut snapshot = with_web();
    snapshot.claims.insert(claim("10.87.2.65"));
    snapshot
}

fn frontend(vip: &str) -> Frontend {
    Frontend { vip: ip(vip), protocol: Protocol::Tcp, port: 80 }
}

#[test]
fn a_service_without_a_claim_is_an_allocators_to_see_to() {
    let mut world = World::new(with_pool());
    world.list(with_web());
    world.turn();
    let order = world.allocation().unwrap();
    assert_eq!((order.node.as_str(), order.wanted.requests.len()), ("node-a", 1));
    assert_eq!(order.wanted.allocators.len(), 3);
    assert!(order.wanted.reserved.why(ip("10.87.2.50")).is_some(), "the ConfigMap's VIP is not to be given");
    assert_eq!(world.said(&web()), None, "nothing is said before it is known what becomes of it");
}

#[test]
fn a_claim_makes_a_vip_and_a_status() {
    let mut world = World::new(with_pool());
    world.list(with_web());
    world.turn();
    world.event(with_claim());
    world.turn();
    assert!(world.servers(frontend("10.87.2.65")).is_some());
    let said = world.said(&web()).unwrap();
    assert_eq!(said.verdict, Verdict::Allocated);
    assert_eq!((said.addresses[0].ip, said.addresses[0].mode), (ip("10.87.2.65"), IpMode::Proxy));
    assert!(said.ingress && said.place.is_some());
    // What the status shows comes back as a change of the Service, of which nothing follows.
    world.acts();
    world.keepalived_was_told();
    let mut shown = with_claim();
    let service = Arc::make_mut(shown.services.get_mut(&web()).unwrap());
    service.load_balancer.as_mut().unwrap().ingress =
        vec![kvip::snapshot::Ingress { ip: "10.87.2.65".into(), mode: Some("Proxy".into()), ports: vec![] }];
    world.event(shown);
    world.turn();
    assert_eq!((world.acts(), world.keepalived_was_told()), (vec![], false));
}

#[test]
fn what_no_pool_gives_is_refused_with_the_reason() {
    let mut world = World::new(settings());
    world.list(with_web());
    world.turn();
    let said = world.said(&web()).unwrap();
    let Verdict::Refused { reason, text } = &said.verdict else { panic!("{said:?}") };
    assert_eq!(reason, "NoAddress");
    assert!(text.contains("no pool"), "{text}");
    assert!(world.findings().iter().any(|finding| finding.contains("default/web: no pool")));
}

#[test]
fn a_service_that_no_longer_asks_loses_what_was_said_of_it() {
    let mut world = World::new(with_pool());
    let mut asked = with_claim();
    let service = Arc::make_mut(asked.services.get_mut(&web()).unwrap());
    service.condition = Some(kvip::snapshot::Condition { status: "True".into(), ..Default::default() });
    world.list(asked.clone());
    world.turn();
    let service = Arc::make_mut(asked.services.get_mut(&web()).unwrap());
    service.load_balancer = None;
    world.event(asked);
    world.turn();
    assert_eq!(world.said(&web()).unwrap().verdict, Verdict::NotOurs);
    assert!(world.allocation().unwrap().wanted.requests.is_empty(), "so that its claim is released");
}

#[test]
fn a_tenant_gets_only_what_the_admin_lets_it_have() {
    let mut settings = settings();
    settings.tenants = vec![Tenant {
        addresses: vec!["10.87.2.80/32".parse::<ipnet::IpNet>().unwrap().into()],
        annotations: None,
        ..Tenant::nobody()
    }];
    settings.tenants[0].namespaces = vec![kvip::config::NamePattern::new("default")];
    let mut world = World::new(settings);
    let mut asked = snapshot();
    let nginx = ObjectKey::new("default", "dns");
    let service = Arc::make_mut(asked.services.get_mut(&nginx).unwrap());
    // Its own, another's, one outside, and one that the ConfigMap gave to nginx.
    service.annotations =
        [("kvip.io/vips".to_owned(), "10.87.2.80, 10.87.2.81 10.87.2.50".to_owned())].into();
    world.list(asked);
    world.turn();
    let vips = world.wanted().unwrap().instances[0].vips.clone();
    assert_eq!(vips, ["10.87.2.50", "10.87.2.51", "10.87.2.80"].map(ip).into());
    let about = |vip: &str| {
        world.findings().iter().any(|f| f.contains("default/dns: not served at ") && f.contains(vip))
    };
    assert!(about("10.87.2.81") && about("10.87.2.50"), "{:?}", world.findings());
}

/// An endpoint that comes or goes costs its own Service's work, however many others there are.
#[test]
fn an_endpoint_touches_its_own_service_alone() {
    let mut world = World::new(settings());
    let mut many = snapshot();
    for n in 1..=200_u16 {
        let key = ObjectKey::new("default", format!("s{n}"));
        let ports = vec![ServicePort { name: "main".into(), protocol: Protocol::Tcp, port: 1000 + n }];
        let nginx = &many.slices[&ObjectKey::new("default", "nginx")];
        let slice =
            kvip::snapshot::EndpointSlice { service: key.clone(), ports: ports.clone(), ..(**nginx).clone() };
        many.slices.insert(key.clone(), Arc::new(slice));
        many.services.insert(key, Arc::new(Service { ports, ..Service::default() }));
    }
    let all: Vec<String> = (1..=200).map(|n| format!("default/s{n}")).collect();
    many.vip_map.as_mut().unwrap().insert("10.87.2.60".into(), all.join(","));
    world.list(many.clone());
    world.turn();
    world.keepalived_reads();
    world.turn();
    let reads = world.kernel().reads;
    world.orders();
    world.acts();
    pods(&mut many, "s7").push(endpoint("10.2.8.77"));
    world.event(many.clone());
    world.turn();
    assert_eq!(world.acts(), ["add real server 10.2.8.77:1007 weight 1 to tcp 10.87.2.60:1007"]);
    pods(&mut many, "s7").pop();
    world.event(many);
    world.turn();
    assert_eq!(world.acts(), ["remove real server 10.2.8.77:1007 from tcp 10.87.2.60:1007"]);
    assert_eq!(world.kernel().reads, reads, "the kernel was not read again");
    assert!(!world.orders(), "nobody was told to write anything");
    assert!(world.status().as_planned);
}

fn control_plane() -> Settings {
    let mut settings = settings();
    settings.node.name = Some("node-a".into());
    settings.statics = vec![Static {
        name: "api".into(),
        vip: ip("10.87.2.10"),
        protocol: Protocol::Tcp,
        port: 80,
        backends: vec!["10.87.2.4:6443".parse().unwrap(), "10.87.2.6:6443".parse().unwrap()],
        check: true,
    }];
    settings
}

#[test]
fn a_static_vip_is_served_before_any_api_and_by_what_answers() {
    let mut world = World::new(control_plane());
    world.turn();
    let both = |weight: u32| ["10.87.2.4:6443", "10.87.2.6:6443"].map(|at| (at.to_owned(), weight)).to_vec();
    assert_eq!(world.servers(frontend("10.87.2.10")), Some(both(1)));
    assert_eq!(world.wanted().unwrap().instances[0].vips, [ip("10.87.2.10")].into());
    world.unhealthy(&["10.87.2.6:6443"]);
    world.turn();
    assert_eq!(world.servers(frontend("10.87.2.10")).unwrap().len(), 1);
    world.unhealthy(&["10.87.2.4:6443", "10.87.2.6:6443"]);
    world.turn();
    assert_eq!(
        world.servers(frontend("10.87.2.10")),
        Some(both(1)),
        "all out: the checks may be what is broken"
    );
    world.list(snapshot());
    world.turn();
    assert!(world.wanted().unwrap().instances[0].vips.contains(&ip("10.87.2.50")));
    assert!(world.servers(frontend("10.87.2.10")).is_some());
}

/// Without the cluster's state nobody knows what the other VIPs need, so nothing may be taken from them (invariant 4).
#[test]
fn a_host_with_other_vips_waits_for_the_cluster() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.turn();
    std::fs::remove_file(world.paths.state.join("snapshot.json")).unwrap();
    let mut world = world.restart(control_plane());
    world.tick(5);
    assert_eq!(world.acts(), [""; 0]);
    assert_eq!(world.wanted(), None);
}

#[test]
fn nobody_but_the_admin_gets_an_api_servers_address() {
    let mut by_kubeconfig = with_claim();
    by_kubeconfig.servers.insert(ip("10.87.2.60"));
    check_reserved(by_kubeconfig);
    let mut by_its_endpoints = with_claim();
    let key = ObjectKey::new("default", "kubernetes");
    let endpoints = vec![Endpoint::ready(ip("10.87.2.60"), "node-x")];
    let slice = EndpointSlice { service: key.clone(), family: Family::V4, ports: vec![], endpoints };
    by_its_endpoints.slices.insert(key, Arc::new(slice));
    check_reserved(by_its_endpoints);
}

/// Nobody may ask for 10.87.2.60, and the admin may.
#[track_caller]
fn check_reserved(mut snapshot: Snapshot) {
    let dns = snapshot.services.get_mut(&ObjectKey::new("default", "dns")).unwrap();
    Arc::make_mut(dns).annotations.insert("kvip.io/vips".into(), "10.87.2.60".into());
    let mut world = World::new(with_pool());
    world.list(snapshot.clone());
    world.turn();
    let findings: Vec<String> = world.status().findings.iter().map(ToString::to_string).collect();
    let why = "is the address of an API server";
    assert!(findings.iter().any(|finding| finding.contains(why)), "{findings:?}");
    snapshot.vip_map.as_mut().unwrap().insert("10.87.2.60".into(), "default/nginx".into());
    world.event(snapshot);
    world.turn();
    assert!(
        world.status().vips.iter().any(|vip| vip.vip == ip("10.87.2.60")),
        "an entry of the ConfigMap is"
    );
}
