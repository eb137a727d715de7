//! Members that speak to each other's addresses: each hears every other, or says why it holds nothing.

use super::*;

/// A host with these InternalIPs in the order that its Node tells them, and what its own config.toml says.
struct Host {
    name: &'static str,
    internal: &'static [&'static str],
    /// Addresses that no Node tells.
    private: &'static [&'static str],
    address: Option<&'static str>,
}

const A: Host = Host { name: "node-a", internal: &["10.0.0.1", "10.1.0.1"], private: &[], address: None };
const B: Host = Host { name: "node-b", internal: &["10.1.0.2", "10.0.0.2"], private: &[], address: None };

/// The first address of a host is on eth0, the next on eth1 and so on.
fn facts_of(host: &Host) -> HostFacts {
    let mut facts = HostFacts { hostname: host.name.into(), ..HostFacts::default() };
    for (index, text) in (2..).zip(host.internal.iter().chain(host.private)) {
        let (link, ip) = (format!("eth{}", index - 2), ip(text));
        let prefix_len = if ip.is_ipv4() { 24 } else { 64 };
        facts.links.insert(link.clone(), Link { index, up: true, ..Link::default() });
        facts.addresses.insert(Address { ip, prefix_len, link, noprefixroute: false });
    }
    facts
}

/// What `hosts[0]` is to do for the VIP, as unicast.
fn seen_by_first(hosts: &[&Host], vip: &str, change: impl Fn(&mut Settings)) -> Desired {
    let mut snapshot = cluster(&[], &[vip]);
    for host in hosts {
        let addresses = host.internal.iter().map(|text| ip(text)).collect();
        snapshot.nodes.insert(host.name.into(), Node { addresses, ..Node::default() }.into());
    }
    let allowed = ["10.0.0.0/8", "fd00::/16"].map(|range| range.parse().unwrap());
    let mut settings = Settings::standard(allowed.to_vec());
    settings.vrrp.transport = Transport::Unicast;
    settings.node.address = hosts[0].address.map(ip);
    change(&mut settings);
    desired_on(&facts_of(hosts[0]), &settings, &snapshot)
}

/// Its source and peers.
fn unicast_of(desired: &Desired) -> Option<(IpAddr, BTreeSet<IpAddr>)> {
    let unicast = desired.keepalived.instances.first()?.unicast.clone()?;
    Some((unicast.source, unicast.peers))
}

/// The two hear each other: what one speaks from is a peer of the other, and the reverse.
#[track_caller]
fn check_hearing(one: &Host, other: &Host, sources: [&str; 2]) {
    let (first, second) = (
        seen_by_first(&[one, other], "10.0.0.50", |_| ()),
        seen_by_first(&[other, one], "10.0.0.50", |_| ()),
    );
    let (first, second) = (unicast_of(&first).unwrap(), unicast_of(&second).unwrap());
    assert_eq!([first.0, second.0], sources.map(ip), "sources");
    assert!(first.1.contains(&second.0) && second.1.contains(&first.0), "{first:?} {second:?}");
}

/// This host has no instance for `vip`, and says this.
#[track_caller]
fn check_silent(hosts: &[&Host], vip: &str, wanted: &[&str]) {
    let desired = seen_by_first(hosts, vip, |_| ());
    assert_eq!(desired.keepalived.instances, []);
    assert_eq!(findings(&desired), wanted);
}

#[test]
fn members_hear_each_other_whatever_they_speak_from() {
    check_hearing(&A, &B, ["10.0.0.1", "10.1.0.2"]);
    check_hearing(&Host { address: Some("10.1.0.1"), ..A }, &B, ["10.1.0.1", "10.1.0.2"]);
    check_hearing(&A, &Host { address: Some("10.0.0.2"), ..B }, ["10.0.0.1", "10.0.0.2"]);
    let single = Host { internal: &["10.0.0.2"], ..B };
    check_hearing(&Host { address: Some("10.1.0.1"), ..A }, &single, ["10.1.0.1", "10.0.0.2"]);
}

#[test]
fn an_address_that_others_cannot_know_is_refused() {
    let private = Host { private: &["10.99.0.1"], address: Some("10.99.0.1"), ..A };
    let wanted = "node.address: group vips: 10.99.0.1 is no InternalIP of the Node node-a (10.0.0.1, 10.1.0.1), so other \
                  members would not listen to it: this host holds no VIPs there";
    check_silent(&[&private, &B], "10.0.0.50", &[wanted]);
    let multicast = seen_by_first(&[&private, &B], "10.0.0.50", |s| s.vrrp.transport = Transport::Multicast);
    assert_eq!(multicast.keepalived.instances[0].interface, "eth2");
    assert_eq!(findings(&multicast), [""; 0]);
}

#[test]
fn without_addresses_of_the_family_nothing_is_spoken_or_all_alone() {
    let no_source = "node node-a: it has no IPv6 InternalIP to speak unicast VRRP from";
    check_silent(&[&A, &B], "fd00::50", &[no_source]);
    let private = Host { private: &["fd00:99::1"], address: Some("fd00:99::1"), ..A };
    let wanted = "node.address: group vips: fd00:99::1 is no InternalIP of the Node node-a (10.0.0.1, 10.1.0.1), so \
                  other members would not listen to it: this host holds no VIPs there";
    check_silent(&[&private, &B], "fd00::50", &[wanted]);

    let dual = Host { internal: &["10.0.0.1", "fd00::1"], ..A };
    let alone = seen_by_first(&[&dual, &B], "fd00::50", |_| ());
    assert_eq!(
        (alone.keepalived.instances.len(), unicast_of(&alone)),
        (1, None),
        "the others have no instance"
    );
    let wanted = "group vips: no other member has an IPv6 InternalIP of its own to speak unicast VRRP from, so this \
                  host alone may hold its IPv6 VIPs";
    assert_eq!(findings(&alone), [wanted]);
    let sole = seen_by_first(&[&dual], "fd00::50", |_| ());
    assert_eq!((sole.keepalived.instances.len(), findings(&sole)), (1, vec![]));
}

#[test]
fn an_address_that_is_not_here_is_told() {
    let wanted =
        "node.address: 10.0.0.9 is on no interface of this host; it has 10.0.0.1 on eth0, 10.1.0.1 on eth1";
    let wrong = Host { address: Some("10.0.0.9"), ..A };
    let multicast = |settings: &mut Settings| settings.vrrp.transport = Transport::Multicast;
    let desired = seen_by_first(&[&wrong, &B], "10.0.0.50", multicast);
    assert_eq!(findings(&desired), [wanted]);
    assert_eq!(desired.keepalived.instances[0].interface, "eth0", "the one with the Node's address");
    let of_v6 = seen_by_first(&[&Host { address: Some("fd00::9"), ..A }, &B], "10.0.0.50", multicast);
    let wanted = "node.address: fd00::9 is on no interface of this host; it has none of that family";
    assert_eq!(findings(&of_v6), [wanted]);
}

#[test]
fn an_address_that_counts_for_nothing_is_told() {
    let other = Host { address: Some("10.1.0.1"), ..A };
    let on = |link: &str, transport| {
        let desired = seen_by_first(&[&other, &B], "10.0.0.50", |settings| {
            settings.node.interface = Some(link.into());
            settings.vrrp.transport = transport;
        });
        findings(&desired)
    };
    let wanted = "node.address: 10.1.0.1 is not on eth0, where node.interface has multicast VRRP speak: it counts for \
                  nothing";
    assert_eq!(on("eth0", Transport::Multicast), [wanted]);
    assert_eq!(on("eth1", Transport::Multicast), [""; 0]);
    assert_eq!(on("eth0", Transport::Unicast), [""; 0]);
}
