//! Other programs' rules that drop what is for a frontend: found, said, got round where that helps, and seen to be mended.

use std::sync::Arc;

use kvip::config::Mode;
use kvip::model::{Family, Finding, ObjectKey};
use kvip::net::{Hop, Link, Way, Wraps};
use kvip::snapshot::Snapshot;

use crate::dsr::{dsr_snapshot, forwarded, only_finding};
use crate::world::{World, ip, settings, snapshot};

/// The firewall of many a host.
const INVALID: &str = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tct state \
                       invalid drop\n\t}\n}\n";

#[test]
fn a_firewall_that_drops_what_is_invalid_is_found_and_its_mend_seen() {
    let mut world = World::new(settings());
    world.kernel().rules = INVALID.into();
    world.list(dsr_snapshot());
    world.turn();
    world.after(1);
    assert_eq!(forwarded(&world)[1], "10.2.6.10:80 weight 1");
    let finding = only_finding(&world);
    let text = finding.to_string();
    assert!(text.contains("(ct state invalid drop (chain INPUT of table ip filter))"), "{text}");
    assert_eq!(finding.mend.unwrap(), "iptables -I INPUT -d 10.87.2.50 -j ACCEPT, and make it stay there");
    let mended = INVALID.replace("\t\tct state", "\t\tip daddr 10.87.2.50 accept\n\t\tct state");
    world.kernel().rules = mended;
    world.tick(62);
    assert_eq!(forwarded(&world)[1], "10.2.6.10:80 weight 1 direct route");
    assert_eq!(world.status().findings, []);
}

/// No other way of serving helps: what comes in is dropped whoever is to have it.
#[test]
fn a_firewall_that_drops_what_is_marked_is_a_finding_until_it_is_mended() {
    let drops = "table inet firewall {\n\tchain prerouting {\n\t\ttype filter hook prerouting priority filter + 10; policy \
                 accept;\n\t\tfib saddr . mark . iif oif missing drop\n\t}\n}\n";
    let mut world = World::new(settings());
    world.kernel().rules = drops.into();
    world.list(dsr_snapshot());
    world.turn();
    world.after(1);
    let direct = "10.2.6.10:80 weight 1 direct route";
    assert_eq!(forwarded(&world)[1], direct);
    let finding = only_finding(&world);
    let text = "default/nginx: 10.87.2.50 tcp 80 in mode dsr: this host drops packets by the mark that kvip gives them (fib saddr . \
                mark . iif oif missing drop (chain prerouting of table inet firewall)), so none that comes here gets to a pod";
    assert_eq!(finding.to_string(), text);
    let accept =
        "nft insert rule inet firewall prerouting ip daddr 10.87.2.50 accept, and make it stay there";
    assert_eq!(finding.mend.unwrap(), accept);
    world.kernel().rules = drops.replace("\t\tfib", "\t\tip daddr 10.87.2.50 accept\n\t\tfib");
    world.tick(62);
    assert_eq!(world.status().findings, []);
    assert_eq!(forwarded(&world)[1], direct);
}

/// DNS, whose datagrams are balanced one by one.
fn one_by_one() -> Snapshot {
    let mut snapshot = snapshot();
    let service = snapshot.services.get_mut(&ObjectKey::new("default", "dns")).unwrap();
    Arc::make_mut(service).annotations.insert("kvip.io/one-packet".into(), "true".into());
    snapshot
}

/// To connection tracking such datagrams are not new, and not of a flow that it knows.
#[test]
fn a_firewall_that_drops_what_is_untracked_is_a_finding_until_it_is_mended() {
    let drops = "table inet firewall {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t\tct state \
                 established,related accept\n\t\tudp dport 53 ct state new accept\n\t}\n}\n";
    let mut world = World::new(settings());
    world.kernel().rules = drops.into();
    world.list(snapshot());
    world.tick(62);
    assert_eq!(world.status().findings, [], "a flow's datagrams are let in");
    world.event(one_by_one());
    world.turn();
    world.after(1);
    let finding = only_finding(&world);
    let text = "default/dns: 10.87.2.51 udp 53, one by one: this host drops datagrams that connection tracking does not know \
                (policy drop (chain input of table inet firewall)), so none gets to a pod while it holds the VIP";
    assert_eq!(finding.to_string(), text);
    let accept = "nft insert rule inet firewall input ip daddr 10.87.2.51 accept, and make it stay there";
    assert_eq!(finding.mend.unwrap(), accept);
    world.kernel().rules = drops.replace("ct state new", "ct state new,untracked");
    world.tick(62);
    assert_eq!(world.status().findings, []);
}

/// They come to pods on other nodes with the client's address, which an overlay's device must let in.
#[test]
fn a_strict_way_over_which_unmasked_datagrams_come_is_a_finding() {
    let mut world = World::new(settings());
    world.list(one_by_one());
    world.turn();
    assert!(!world.ways().is_empty(), "the ways to the pods elsewhere are looked for");
    let device = Link { index: 6, up: true, wraps: Wraps::ByRoute, ..Link::default() };
    world.kernel().facts.send_modify(|facts| _ = facts.links.insert("flannel.1".into(), device));
    let way = Way { to: ip("10.2.6.10"), hop: Some(Hop { link: 6, via: None }) };
    world.hops([(("node-b".to_owned(), Family::V4), way)].into());
    world.kernel().sysctls = [("net.ipv4.conf.flannel/1.rp_filter".to_owned(), "1".to_owned())].into();
    world.tick(62);
    let found = only_finding(&world).to_string();
    assert!(found.starts_with("net.ipv4.conf.flannel/1.rp_filter: is strict and must be 2"), "{found}");
    world.event(snapshot());
    world.tick(62);
    assert_eq!(world.status().findings, [], "masqueraded they come from an address of the overlay");
}

/// What is said of connections that hang, where nginx is served in `mode` behind these rules.
fn hanging(world: &mut World, mode: Mode) -> Option<Finding> {
    let mut snapshot = snapshot();
    let service = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(service).annotations.insert("kvip.io/mode".into(), mode.name().into());
    snapshot.vip_map.as_mut().unwrap().remove("10.87.2.51");
    world.list(snapshot);
    world.tick(62);
    let findings = world.status().findings;
    findings.iter().find(|finding| finding.text.contains("connections hang")).cloned()
}

/// Backends that carry the VIP can be served in no other way.
#[test]
fn modes_dr_and_tunnel_have_a_finding_where_the_holder_drops_what_is_invalid() {
    for mode in [Mode::Dr, Mode::Tunnel] {
        let mut world = World::new(settings());
        world.kernel().rules = INVALID.into();
        let finding = hanging(&mut world, mode).unwrap();
        let text = format!(
            "default/nginx: 10.87.2.50 tcp 80 in mode {}: this host drops packets of connections of which it sees one way (ct \
             state invalid drop (chain INPUT of table ip filter)), so connections hang while it holds the VIP",
            mode.name()
        );
        assert_eq!(finding.to_string(), text);
        assert_eq!(
            finding.mend.unwrap(),
            "iptables -I INPUT -d 10.87.2.50 -j ACCEPT, and make it stay there"
        );
        world.kernel().rules =
            INVALID.replace("\t\tct state", "\t\tip daddr 10.87.2.50 accept\n\t\tct state");
        assert_eq!(hanging(&mut world, mode), None);
    }
}

#[test]
fn other_modes_and_nodes_that_hold_no_vip_have_none() {
    for mode in [Mode::Nat, Mode::Dsr, Mode::Proxy, Mode::Announce] {
        let mut world = World::new(settings());
        world.kernel().rules = INVALID.into();
        assert_eq!(hanging(&mut world, mode), None, "{}", mode.name());
    }
    let mut settings = settings();
    settings.vrrp.members.insert("kvip".into(), "yes".into());
    let mut world = World::new(settings);
    world.kernel().rules = INVALID.into();
    assert_eq!(hanging(&mut world, Mode::Dr), None, "no node has the label");
}
