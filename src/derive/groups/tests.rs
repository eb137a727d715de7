//! Who is in which group with which VIPs, and what is said where nobody is.

use std::time::Duration;

use super::super::{DEFAULT_GROUP, Desired, EXCLUDED, Leaving, derive};
use super::*;
use crate::config::{self, Settings, Static};
use crate::health::check::Down;
use crate::keepalived::Unicast;
use crate::model::Protocol;
use crate::net::{Address, HostFacts, Link};
use crate::snapshot::Snapshot;

mod unicast;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// node-a, which has eth0 and eth1.
fn facts() -> HostFacts {
    let address = |ip: IpAddr, link: &str| Address {
        ip,
        prefix_len: if ip.is_ipv4() { 24 } else { 64 },
        link: link.into(),
        noprefixroute: false,
    };
    let link = |index| Link { index, up: true, ..Link::default() };
    HostFacts {
        hostname: "node-a".into(),
        links: [("eth0".to_owned(), link(2)), ("eth1".to_owned(), link(3))].into(),
        addresses: [address(ip("10.0.0.1"), "eth0"), address(ip("10.1.0.1"), "eth1")].into(),
        ..HostFacts::default()
    }
}

/// The nodes with their labels; node-a has 10.0.0.1 and 10.1.0.1, node-b 10.0.0.2 and so on.
fn cluster(nodes: &[(&str, &[&str])], vips: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, labels) in nodes {
        let last = name.as_bytes().last().unwrap() - b'a' + 1;
        let labels = labels.iter().map(|label| ((*label).to_owned(), "yes".to_owned())).collect();
        let addresses = vec![IpAddr::from([10, 0, 0, last]), IpAddr::from([10, 1, 0, last])];
        let node = Node { addresses, labels, ..Node::default() };
        snapshot.nodes.insert((*name).to_owned(), node.into());
    }
    let map = vips.iter().map(|vip| ((*vip).to_owned(), String::new()));
    snapshot.vip_map = Some(map.collect());
    snapshot
}

/// `[vrrp]` with VRID 50, and the group `edge` for 10.0.1.0/24 with VRID 60.
fn settings() -> Settings {
    let mut settings = Settings::standard(vec!["10.0.0.0/8".parse().unwrap()]);
    let mut vrrp = settings.vrrp.clone();
    vrrp.vrid = Vrid::new(60).unwrap();
    let addresses = vec!["10.0.1.0/24".parse::<IpNet>().unwrap().into()];
    settings.groups = vec![config::Group { name: "edge".into(), addresses, vrrp, interface: None }];
    settings
}

fn with_static(mut settings: Settings, vip: &str) -> Settings {
    settings.statics.push(Static {
        name: "api".into(),
        vip: ip(vip),
        protocol: Protocol::Tcp,
        port: 6443,
        backends: vec!["10.0.0.1:6443".parse().unwrap()],
        check: true,
    });
    settings
}

fn desired(settings: &Settings, snapshot: &Snapshot) -> Desired {
    desired_on(&facts(), settings, snapshot)
}

fn desired_on(facts: &HostFacts, settings: &Settings, snapshot: &Snapshot) -> Desired {
    let (dead, leaving, unhealthy) = (BTreeSet::new(), Leaving::new(), Down::new());
    derive(&Inputs {
        settings,
        snapshot,
        facts,
        dead: &dead,
        leaving: &leaving,
        unhealthy: &unhealthy,
        reach: &crate::derive::Reach::default(),
        foreign_marks: &BTreeSet::new(),
    })
}

fn findings(desired: &Desired) -> Vec<String> {
    desired.findings.iter().map(ToString::to_string).collect()
}

/// The members and VIPs of a group, and whether this node has instances of it.
#[track_caller]
fn check(desired: &Desired, group: &str, members: &[&str], vips: &[&str], here: bool) {
    let view = &desired.groups[group];
    assert_eq!(view.members.keys().collect::<Vec<_>>(), members, "members of {group}");
    assert_eq!(view.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), vips, "VIPs of {group}");
    let instances = &desired.keepalived.instances;
    assert_eq!(instances.iter().any(|instance| instance.vrid == view.vrid), here, "instances of {group}");
}

#[test]
fn a_vip_is_of_the_first_group_that_has_it() {
    let mut settings = settings();
    let mut second = settings.groups[0].clone();
    (second.name, second.vrrp.vrid) = ("late".into(), Vrid::new(61).unwrap());
    second.addresses.push("10.0.2.0/24".parse::<IpNet>().unwrap().into());
    settings.groups.push(second);
    let nodes = &[("node-a", &[][..]), ("node-b", &[])];
    let desired = desired(&settings, &cluster(nodes, &["10.0.0.50", "10.0.1.50", "10.0.2.50"]));
    let both = &["node-a", "node-b"];
    check(&desired, DEFAULT_GROUP, both, &["10.0.0.50"], true);
    check(&desired, "edge", both, &["10.0.1.50"], true);
    check(&desired, "late", both, &["10.0.2.50"], true);
    assert_eq!(findings(&desired), [""; 0]);
}

#[test]
fn each_group_has_members_of_its_own() {
    let mut settings = settings();
    settings.groups[0].vrrp.members = [("edge".to_owned(), "yes".to_owned())].into();
    settings.groups[0].vrrp.excluded_too = true;
    let nodes = &[("node-a", &[][..]), ("node-b", &["edge"]), ("node-c", &["edge", EXCLUDED])];
    let desired = desired(&settings, &cluster(nodes, &["10.0.0.50", "10.0.1.50"]));
    check(&desired, DEFAULT_GROUP, &["node-a", "node-b"], &["10.0.0.50"], true);
    check(&desired, "edge", &["node-b", "node-c"], &["10.0.1.50"], false);
    assert!(desired.vips.contains_key(&ip("10.0.1.50")), "its IPVS is programmed here all the same");
    assert_eq!(findings(&desired), [""; 0]);
}

#[test]
fn a_group_without_members_says_why() {
    let mut settings = settings();
    settings.groups[0].vrrp.members = [("edge".to_owned(), "yes".to_owned())].into();
    let nodes = &[("node-a", &[EXCLUDED][..]), ("node-b", &[EXCLUDED])];
    let desired = desired(&settings, &cluster(nodes, &["10.0.0.50", "10.0.0.51", "10.0.1.50"]));
    check(&desired, DEFAULT_GROUP, &[], &["10.0.0.50", "10.0.0.51"], false);
    let wanted = [
        "group edge: no node may hold 10.0.1.50: none of the cluster's 2 Nodes has the labels edge=yes",
        "group vips: no node may hold 10.0.0.50 and 1 more: all 2 Nodes that could are labelled \
         node.kubernetes.io/exclude-from-external-load-balancers",
    ];
    assert_eq!(findings(&desired), wanted);
    let empty = super::super::derive(&Inputs {
        settings: &settings,
        snapshot: &cluster(nodes, &[]),
        facts: &facts(),
        dead: &BTreeSet::new(),
        leaving: &Leaving::new(),
        unhealthy: &Down::new(),
        reach: &crate::derive::Reach::default(),
        foreign_marks: &BTreeSet::new(),
    });
    assert_eq!(findings(&empty), [""; 0], "without VIPs nobody is missed");
}

#[test]
fn a_static_vip_ignores_the_label_and_others_of_its_group_are_told() {
    let nodes = &[("node-a", &[EXCLUDED][..]), ("node-b", &[])];
    let own_group = with_static(settings(), "10.0.1.10");
    let alone = desired(&own_group, &cluster(nodes, &["10.0.0.50"]));
    check(&alone, "edge", &["node-a", "node-b"], &["10.0.1.10"], true);
    check(&alone, DEFAULT_GROUP, &["node-b"], &["10.0.0.50"], false);
    assert_eq!(findings(&alone), [""; 0]);

    let mixed = desired(&own_group, &cluster(nodes, &["10.0.1.50"]));
    check(&mixed, "edge", &["node-a", "node-b"], &["10.0.1.10", "10.0.1.50"], true);
    let wanted = "group edge: nodes labelled node.kubernetes.io/exclude-from-external-load-balancers are members \
                  too (node-a): its static VIP 10.0.1.10 ignores the label, and its other VIPs go with it";
    assert_eq!(findings(&mixed), [wanted]);
    let mut agreed = own_group;
    agreed.groups[0].vrrp.excluded_too = true;
    assert_eq!(findings(&desired(&agreed, &cluster(nodes, &["10.0.1.50"]))), [""; 0]);
}

#[test]
fn static_vips_are_held_before_any_node_is_known() {
    let mut settings = with_static(settings(), "10.1.0.10");
    settings.vrrp.members = [("edge".to_owned(), "yes".to_owned())].into();
    let nothing = Snapshot::default();
    let first = desired(&settings, &nothing);
    assert_eq!(first.node.as_deref(), Some("node-a"), "the host's name");
    check(&first, DEFAULT_GROUP, &["node-a"], &["10.1.0.10"], true);
    check(&first, "edge", &[], &[], false);
    let instance = &first.keepalived.instances[0];
    assert_eq!(instance.interface, "eth1", "the one in the network of the VIP");
    assert!((141..=149).contains(&instance.priority), "{}", instance.priority);
    assert_eq!(findings(&first), [""; 0]);

    settings.node.name = Some("cp-1".into());
    settings.node.address = Some(ip("10.0.0.1"));
    settings.vrrp.transport = Transport::Unicast;
    let named = desired(&settings, &nothing);
    check(&named, DEFAULT_GROUP, &["cp-1"], &["10.1.0.10"], true);
    assert_eq!(named.keepalived.router_id, "cp-1");
    assert_eq!(named.keepalived.instances[0].interface, "eth0", "the one with node.address");
    assert_eq!(named.keepalived.instances[0].unicast, None);
    assert!(findings(&named)[0].starts_with("group vips: its peers are not known"), "{:?}", findings(&named));

    settings.node.interface = Some("eth1".into());
    assert_eq!(desired(&settings, &nothing).keepalived.instances[0].interface, "eth1");
}

#[test]
fn without_an_interface_a_static_vip_is_told() {
    let settings = with_static(settings(), "10.9.0.10");
    let desired = desired(&settings, &Snapshot::default());
    check(&desired, DEFAULT_GROUP, &["node-a"], &["10.9.0.10"], false);
    let wanted = "node.interface: no interface of this host is in the network of a VIP, so it holds no VIPs; \
                  it has eth0, eth1";
    assert_eq!(findings(&desired), [wanted]);
}

#[test]
fn a_group_with_an_interface_speaks_from_there() {
    let mut settings = settings();
    settings.groups[0].interface = Some("eth1".into());
    settings.groups[0].vrrp.transport = Transport::Unicast;
    settings.groups[0].vrrp.gone_after = Duration::from_secs(5);
    let nodes = &[("node-a", &[][..]), ("node-b", &[])];
    let snapshot = cluster(nodes, &["10.0.0.50", "10.0.1.50"]);
    let both = desired(&settings, &snapshot);
    let [vips, edge] = &both.keepalived.instances[..] else { panic!("{:?}", both.keepalived) };
    assert_eq!((vips.interface.as_str(), vips.gone_after), ("eth0", Duration::from_secs(60)));
    assert_eq!((edge.interface.as_str(), edge.gone_after), ("eth1", Duration::from_secs(5)));
    let unicast = Unicast { source: ip("10.1.0.1"), peers: [ip("10.0.0.2"), ip("10.1.0.2")].into() };
    assert_eq!(edge.unicast, Some(unicast), "from that interface, to whatever the other speaks from");

    settings.groups[0].interface = Some("eth9".into());
    settings.groups[0].vrrp.transport = Transport::Multicast;
    let missing = desired(&settings, &snapshot);
    check(&missing, DEFAULT_GROUP, &["node-a", "node-b"], &["10.0.0.50"], true);
    check(&missing, "edge", &["node-a", "node-b"], &["10.0.1.50"], false);
    let wanted = "group edge: no interface eth9 on this host, so it holds no VIPs; it has eth0, eth1";
    assert_eq!(findings(&missing), [wanted]);
}

#[test]
fn a_node_that_has_no_address_yet_is_known_by_its_name() {
    let settings = with_static(settings(), "10.1.0.10");
    let mut snapshot = cluster(&[("node-b", &[][..])], &[]);
    snapshot.nodes.insert("node-a".into(), Node::default().into());
    let own = desired(&settings, &snapshot);
    check(&own, DEFAULT_GROUP, &["node-a", "node-b"], &["10.1.0.10"], true);
    assert_eq!(own.keepalived.instances[0].interface, "eth1", "the one in the network of the VIP");
    let elsewhere = Node { addresses: vec![ip("10.0.0.9")], ..Node::default() };
    snapshot.nodes.insert("node-a".into(), elsewhere.into());
    assert_eq!(desired(&settings, &snapshot).node, None, "another host of this name");
}

#[test]
fn an_interface_without_an_address_is_told() {
    let mut settings = settings();
    settings.groups[0].interface = Some("eth2".into());
    let mut facts = facts();
    facts.links.insert("eth2".into(), Link { index: 4, up: true, ..Link::default() });
    let snapshot = cluster(&[("node-a", &[][..])], &["10.0.0.50", "10.0.1.50"]);
    let (dead, leaving, unhealthy) = (BTreeSet::new(), Leaving::new(), Down::new());
    let inputs = Inputs {
        settings: &settings,
        snapshot: &snapshot,
        facts: &facts,
        dead: &dead,
        leaving: &leaving,
        unhealthy: &unhealthy,
        reach: &crate::derive::Reach::default(),
        foreign_marks: &BTreeSet::new(),
    };
    let wanted =
        "group edge: eth2 has no IPv4 address to speak VRRP from, so this host holds none of its VIPs";
    assert_eq!(findings(&derive(&inputs)), [wanted]);
    assert_eq!(derive(&inputs).keepalived.instances.len(), 2, "it may get an address");
}

/// Whoever makes one Service more must not take a VIP away that is in use.
#[test]
fn where_a_group_cannot_carry_all_the_youngest_go_without() {
    let many: Vec<String> = (0..299_u16).map(|n| format!("10.0.{}.{}", 2 + n / 200, 1 + n % 200)).collect();
    let mut snapshot = cluster(&[("node-a", &[])], &many.iter().map(String::as_str).collect::<Vec<_>>());
    for (name, created, vip) in [("old", 1, "10.0.9.9"), ("young", 2, "10.0.2.250")] {
        let service = crate::snapshot::Service {
            uid: name.into(),
            created,
            annotations: [("kvip.io/vips".to_owned(), vip.to_owned())].into(),
            ..Default::default()
        };
        snapshot.services.insert(crate::model::ObjectKey::new("default", name), service.into());
    }
    let desired = desired(&settings(), &snapshot);
    let carried = &desired.assignment.groups[DEFAULT_GROUP].vips;
    assert_eq!((carried.len(), carried.contains(&ip("10.0.9.9"))), (MOST_VIPS, true));
    assert!(!carried.contains(&ip("10.0.2.250")));
}
