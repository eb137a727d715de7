//! What is said of Services, by what they ask for and what they get.

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
fn said_of_web(services: impl IntoIterator<Item = (&'static str, Service)>) -> Option<Arc<objects::Wanted>> {
    let key = |name| ObjectKey::new("default", name);
    let services = services.into_iter().map(|(name, service)| (key(name), Arc::new(service))).collect();
    let snapshot = Snapshot { services, ..Snapshot::default() };
    said_in(&snapshot, |_| (), &HostFacts::default())
}

/// What is said of `web` in that cluster, by a host of these `facts`.
fn said_in(
    snapshot: &Snapshot,
    change: impl Fn(&mut Settings),
    facts: &HostFacts,
) -> Option<Arc<objects::Wanted>> {
    said_where(true, snapshot, change, facts)
}

/// As [`said_in`], where all nodes are `agreed` on the settings or not.
fn said_where(
    agreed: bool,
    snapshot: &Snapshot,
    change: impl Fn(&mut Settings),
    facts: &HostFacts,
) -> Option<Arc<objects::Wanted>> {
    let mut settings = Settings::standard(vec!["10.0.0.50/32".parse().unwrap()]);
    change(&mut settings);
    let nobody = BTreeSet::new();
    let desired = derive::derive(&derive::Inputs {
        settings: &settings,
        snapshot,
        facts,
        dead: &nobody,
        leaving: &Leaving::new(),
        unhealthy: &crate::health::check::Down::new(),
        reach: &crate::derive::Reach::default(),
        foreign_marks: &BTreeSet::new(),
    });
    let (outcomes, here) = (ipam::Outcomes::default(), BTreeSet::new());
    let assignment = &desired.assignment;
    let inputs =
        Inputs { settings: &settings, snapshot, assignment, outcomes: &outcomes, here: &here, agreed };
    to_say(&inputs, &State::default()).services.get(&ObjectKey::new("default", "web")).cloned()
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
    check("10.0.0.50, 10.0.0.999", &["10.0.0.50"], {
        let text =
            "annotation kvip.io/vips: \"10.0.0.999\" ignored: not an IP address (octet 999 is over 255)";
        Some(Verdict::Refused { reason: NOT_SERVED.into(), text: text.into() })
    });
    check("", &[], None);
}

/// `web` as the ConfigMap alone has it, with an annotation that has no effect there and a status of before, but for a change.
fn mapped(entry: &str, change: impl Fn(&mut Service)) -> Snapshot {
    let mut service = web("", &[80]);
    service.annotations = [("kvip.io/mode", "announce"), ("kvip.io/scheduler", "rr")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    service.condition = Some(crate::snapshot::Condition::default());
    change(&mut service);
    let vip_map = [("10.0.0.50".to_owned(), entry.to_owned())].into_iter().collect();
    let services = [(ObjectKey::new("default", "web"), Arc::new(service))].into_iter().collect();
    Snapshot { services, vip_map: Some(vip_map), ..Snapshot::default() }
}

#[test]
fn of_a_service_that_asks_no_more_nothing_stays_said() {
    // Where nodes differ, what this one's settings alone keep from asking may be served by another, which says so.
    let check = |snapshot: &Snapshot, change: fn(&mut Settings), by_settings: bool| {
        let verdict = |agreed| {
            let said = said_where(agreed, snapshot, change, &HostFacts::default());
            said.map(|wanted| wanted.verdict.clone())
        };
        assert_eq!(verdict(true), Some(Verdict::NotOurs));
        assert_eq!(verdict(false), (!by_settings).then_some(Verdict::NotOurs));
    };
    check(&mapped("default/web", |_| ()), |_| (), false);
    let annotated = mapped("default/web", |service| {
        service.annotations.insert(VIPS.to_owned(), "10.0.0.60".to_owned());
    });
    check(&annotated, |settings| settings.asking.annotations = false, true);
    let balancer = mapped("default/web", |service| {
        let class = Some("kvip.io/kvip".to_owned());
        service.load_balancer = Some(crate::snapshot::LoadBalancer { class, ..Default::default() });
    });
    check(&balancer, |settings| settings.asking.load_balancers = crate::config::LoadBalancers::Off, true);
}

/// What the ConfigMap asks for is the admin's, served or not.
#[test]
fn what_the_config_map_does_not_get_is_not_said_of_the_service() {
    let snapshot = mapped("default/web:81", |service| {
        service.annotations.insert(VIPS.to_owned(), "10.0.0.51".to_owned());
        service.annotations.remove("kvip.io/mode");
    });
    let wider = |settings: &mut Settings| settings.allowed = vec!["10.0.0.0/24".parse().unwrap()];
    let said = said_in(&snapshot, wider, &HostFacts::default()).unwrap();
    assert_eq!(said.verdict, Verdict::Allocated);
}

#[test]
fn the_refusal_is_said_and_not_a_misspelt_option() {
    let mut service = web("10.0.0.50", &[80]);
    service.local_policy = true;
    service.annotations.insert("kvip.io/check-intervall".into(), "5s".into());
    service.annotations.insert("kvip.io/mode".into(), "nat".into());
    let said = said_of_web([("web", service)]).unwrap();
    let text = "not served at 10.0.0.50: externalTrafficPolicy Local keeps the client's address, which mode nat cannot";
    assert_eq!(said.verdict, Verdict::Refused { reason: NOT_SERVED.into(), text: text.into() });
}

#[test]
fn a_sharer_whose_added_port_another_has_lacks_it() {
    let key = |name| ObjectKey::new("default", name);
    let balancer = |uid: &str, ports: &[u16]| {
        let mut service = web("", ports);
        service.annotations = [("kvip.io/share-key".to_owned(), "k".to_owned())].into();
        service.load_balancer =
            Some(crate::snapshot::LoadBalancer { class: Some("kvip.io/kvip".into()), ..Default::default() });
        Arc::new(Service { uid: uid.into(), ..service })
    };
    let user = |name, uid: &str, port| ipam::User {
        service: key(name),
        uid: uid.into(),
        ports: [(Protocol::Tcp, port)].into(),
    };
    let claim = ipam::Claim {
        address: "10.0.0.50".parse().unwrap(),
        kind: ipam::Kind::IpAddress,
        users: vec![user("mail", "u0", 25), user("web", "u1", 80)],
        pool: None,
        share_key: Some("default/k".into()),
        released: None,
        created: 1,
        version: ipam::Version::default(),
    };
    let services = [(key("mail"), balancer("u0", &[25])), (key("web"), balancer("u1", &[80, 25]))];
    let mut snapshot = Snapshot { services: services.into_iter().collect(), ..Snapshot::default() };
    snapshot.claims.insert(claim);
    let said = said_in(&snapshot, |_| (), &HostFacts::default()).unwrap();
    let text = "port tcp 25 of the shared 10.0.0.50 not served: in use by default/mail";
    assert_eq!(said.verdict, Verdict::Refused { reason: NOT_SERVED.into(), text: text.into() });
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
    let unheard_of = said_of_web([("web", announced())]).unwrap();
    let Verdict::Refused { text, .. } = &unheard_of.verdict else { panic!("{unheard_of:?}") };
    assert!(text.contains("10.0.0.50 is held but nobody balances it"), "{text}");
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

/// Of two allocators that see different hosts one would else write what the other undoes, for ever.
#[test]
fn what_only_this_host_refuses_is_said_until_another_one_serves_it() {
    let verdict = |facts: &HostFacts, external: bool, message: Option<&str>| {
        let mut service = web(if external { "" } else { "10.0.0.50" }, &[80]);
        if external {
            service.annotations.clear();
            service.external_ips = vec!["10.0.0.50".parse().unwrap()];
        }
        let condition =
            |message: &str| crate::snapshot::Condition { message: message.into(), ..Default::default() };
        service.condition = message.map(condition);
        let services = [(ObjectKey::new("default", "web"), Arc::new(service))].into_iter().collect();
        let snapshot = Snapshot { services, ..Snapshot::default() };
        let said = said_in(&snapshot, |settings| settings.asking.external_ips = true, facts).unwrap();
        (said.addresses.len(), said.verdict.clone())
    };
    let gateway = HostFacts { gateways: ["10.0.0.50".parse().unwrap()].into(), ..HostFacts::default() };
    let links = [("kube-ipvs0".to_owned(), crate::net::Link::default())].into();
    let beside_ipvs = HostFacts { links, ..HostFacts::default() };
    for (refusing, external) in [(gateway, false), (beside_ipvs, true)] {
        for nowhere in [None, Some("not served; it is the address of a gateway")] {
            let (addresses, verdict) = verdict(&refusing, external, nowhere);
            assert!(addresses == 0 && matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
        }
        let elsewhere = verdict(&HostFacts::default(), external, None);
        assert_eq!(elsewhere, (1, Verdict::Allocated));
        assert_eq!(verdict(&refusing, external, Some("served at 10.0.0.50")), elsewhere);
    }
}

#[test]
fn of_refusals_in_other_words_those_of_the_first_allocator_stay() {
    let nodes = ["node-a", "node-b", "node-c"];
    let places = |facts: &HostFacts, status: Option<&str>| {
        let mut service = web("10.0.0.50", &[80]);
        service.condition = status.map(|status| crate::snapshot::Condition {
            status: status.into(),
            message: "not served; in other words".into(),
            ..Default::default()
        });
        let services = [(ObjectKey::new("default", "web"), Arc::new(service))].into_iter().collect();
        let all = nodes.iter().map(|name| ((*name).to_owned(), Arc::new(Node::default()))).collect();
        let snapshot = Snapshot { services, nodes: all, ..Snapshot::default() };
        let on = |node: &str| {
            said_in(&snapshot, |settings| settings.node.name = Some(node.to_owned()), facts).unwrap().place
        };
        let mut places = nodes.map(on);
        places.sort_unstable();
        places
    };
    let gateway = HostFacts { gateways: ["10.0.0.50".parse().unwrap()].into(), ..HostFacts::default() };
    let all = [Some(0), Some(1), Some(2)];
    assert_eq!(places(&gateway, None), all);
    assert_eq!(places(&gateway, Some("False")), [None, None, Some(0)]);
    assert_eq!(places(&HostFacts::default(), Some("False")), all, "it is served, and that is to be said");
}

/// Who of three nodes would write, where they are `agreed` on the settings or not, and `web` shows this; `refusing` nodes do not
/// allow its VIP.
fn places_where(agreed: bool, (status, message): (&str, &str), refusing: bool) -> Vec<u32> {
    let nodes = ["node-a", "node-b", "node-c"];
    let mut service = web("10.0.0.50", &[80]);
    service.condition = Some(crate::snapshot::Condition {
        status: status.into(),
        message: message.into(),
        ..Default::default()
    });
    let services = [(ObjectKey::new("default", "web"), Arc::new(service))].into_iter().collect();
    let all = nodes.iter().map(|name| ((*name).to_owned(), Arc::new(Node::default()))).collect();
    let snapshot = Snapshot { services, nodes: all, ..Snapshot::default() };
    let place = |node: &str| {
        let settings = |settings: &mut Settings| {
            settings.node.name = Some(node.to_owned());
            if refusing {
                settings.allowed = vec!["10.9.0.0/24".parse().unwrap()];
            }
        };
        said_where(agreed, &snapshot, settings, &HostFacts::default()).and_then(|said| said.place)
    };
    let mut places: Vec<u32> = nodes.iter().filter_map(|node| place(node)).collect();
    places.sort_unstable();
    places
}

/// Nodes that go by other settings would else write what the others undo, for ever.
#[test]
fn where_nodes_differ_what_another_one_has_said_stands() {
    let served = ("True", "served at 10.0.0.50");
    let elsewhere = ("True", "served at 10.0.0.51");
    let partly = ("False", "served at 10.0.0.50; one port is not");
    let refused = ("False", "not served; in other words");
    for (shown, refusing, places) in [
        (served, true, &[][..]),
        (served, false, &[0]),
        (elsewhere, false, &[0, 1, 2]),
        (partly, true, &[]),
        (partly, false, &[0, 1, 2]),
        (refused, true, &[0]),
        (refused, false, &[0, 1, 2]),
    ] {
        assert_eq!(places_where(false, shown, refusing), places, "{shown:?}, refusing: {refusing}");
        assert_eq!(places_where(true, shown, refusing), [0, 1, 2], "{shown:?}, refusing: {refusing}");
    }
}
