//! Mode dsr: virtual servers by mark, the order of real servers, and the rules and routes that go with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvip::config::Mode;
use kvip::daemon::Ledger;
use kvip::daemon::pass::Ledger as _;
use kvip::ipvs::model::Forward;
use kvip::ipvs::{Key, RealServer, Service, VirtualServer};
use kvip::marks::Marks;
use kvip::model::{Backend, Family, Finding, ObjectKey, Protocol};
use kvip::net::{Address, Hop, Hops, Link, MacAddress, PolicyRoute, Way, Wraps};
use kvip::snapshot::{ServicePort, Snapshot};

mod order;

use crate::world::{World, backend, dns, end, endpoint, ip, marked, named, nginx, pods, settings, snapshot};

/// The tutorial's nginx, in mode dsr.
pub fn dsr_snapshot() -> Snapshot {
    let mut snapshot = snapshot();
    let service = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(service).annotations.insert("kvip.io/mode".into(), Mode::Dsr.name().into());
    snapshot.vip_map.as_mut().unwrap().remove("10.87.2.51");
    snapshot
}

fn serving() -> World {
    let mut world = World::new(settings());
    world.list(dsr_snapshot());
    world.turn();
    world
}

fn server(world: &World, key: Key) -> VirtualServer {
    world.kernel().table[&key].clone()
}

/// The virtual servers by mark, that for peers first.
fn by_mark(world: &World) -> [VirtualServer; 2] {
    let kernel = world.kernel();
    let mut all = kernel.table.iter().filter(|(key, _)| key.mark().is_some()).map(|(_, one)| one.clone());
    let [peers, own] = [all.next().unwrap(), all.next().unwrap()];
    assert_eq!(all.next(), None);
    [peers, own]
}

fn weights(server: &VirtualServer) -> BTreeMap<Backend, u32> {
    server.real_servers.iter().map(|(at, real)| (*at, real.weight)).collect()
}

fn addresses(server: &VirtualServer) -> Vec<String> {
    server.added.iter().map(|(at, _)| at.address.to_string()).collect()
}

#[test]
fn there_is_a_tier_for_others_for_peers_and_for_this_node() {
    let world = serving();
    let shown = |server: &VirtualServer| {
        let reals = server.real_servers.iter().map(|(at, real)| format!("{at} {real}"));
        (server.service.to_string(), reals.collect::<Vec<_>>())
    };
    let others = server(&world, nginx().into());
    let hashed = "mh mh-fallback mh-port".to_owned();
    let two = |first: &str, second: &str| vec![first.to_owned(), second.to_owned()];
    let split = two("10.2.4.10:80 weight 1", "10.2.6.10:80 weight 1 direct route");
    assert_eq!(shown(&others), (hashed.clone(), split));
    let [peers, own] = by_mark(&world);
    assert_eq!(shown(&peers), (hashed, vec!["10.2.4.10:80 weight 1".into()]));
    assert_eq!(shown(&own), ("wlc".into(), two("10.2.4.10:80 weight 1", "10.2.6.10:80 weight 1")));
    let status = world.status();
    assert_eq!((status.as_planned, status.faults), (true, 0));
    assert_eq!(status.vips[0].frontends[0].mode, "dsr");
}

#[test]
fn packets_are_marked_and_routed_before_keepalived_may_hold_the_vip() {
    let world = serving();
    let acts = world.acts();
    let routes: Vec<&String> = acts.iter().filter(|act| act.starts_with("add IPv4")).collect();
    assert_eq!(
        routes,
        [
            "add IPv4 route local default dev lo table 5087",
            "add IPv4 rule 50: fwmark 0x1000000/0x1000000 lookup 5087"
        ]
    );
    assert!(acts.last().unwrap().contains("ruleset"), "{acts:?}");
    assert_eq!(world.kernel().acts_after_switch, 0);
}

#[test]
fn a_reload_moves_the_rules_and_routes_to_another_table() {
    let mut world = serving();
    world.acts();
    let mut settings = settings();
    settings.dsr.route_table = 5088;
    settings.dsr.rule_priority = 60;
    world.daemon.take_settings(settings, false);
    world.turn();
    let acts = world.acts();
    let routes: Vec<&String> = acts.iter().filter(|act| act.contains("IPv4")).collect();
    assert_eq!(
        routes,
        [
            "add IPv4 route local default dev lo table 5088",
            "add IPv4 rule 60: fwmark 0x1000000/0x1000000 lookup 5088",
            "remove IPv4 route local default dev lo table 5087",
            "remove IPv4 rule 50: fwmark 0x1000000/0x1000000 lookup 5087"
        ]
    );
}

#[test]
fn an_address_that_the_host_gains_counts_as_its_own() {
    let mut world = serving();
    let of_host = |world: &World| world.kernel().written.steering.host.clone();
    assert!(!of_host(&world).contains(&ip("10.87.2.5")));
    world.add_address(Address { prefix_len: 24, noprefixroute: false, ..marked("10.87.2.5") });
    world.turn();
    assert!(of_host(&world).contains(&ip("10.87.2.5")));
}

/// kube-proxy in ipvs mode deletes the virtual servers of a host's VIPs, but none by mark.
#[test]
fn a_host_that_yields_its_vips_still_serves_what_peers_hand_on() {
    let mut world = serving();
    world.keepalived_reads();
    world.become_holder();
    world.tick(1);
    let served = by_mark(&world);
    world.kernel().facts.send_modify(|facts| _ = facts.links.insert("kube-ipvs0".into(), Link::default()));
    world.turn();
    assert!(world.servers(nginx()).is_some(), "the VIP is still here");
    world.keepalived_reads();
    for address in ["169.254.255.50", "10.87.2.50"] {
        world.remove_address(address);
    }
    world.tick(1);
    assert_eq!(world.servers(nginx()), None);
    assert_eq!(by_mark(&world), served);
    let written = world.kernel().written.clone();
    assert!(written.frontends.contains(&nginx()) && written.steering.frontends.contains_key(&nginx()));
    assert!(written.steering.left, "packets of clients are let through to the holder");
    let status = world.status();
    assert_eq!((status.as_planned, status.faults), (true, 0));
    assert_eq!(world.wanted().unwrap().instances, []);
}

#[test]
fn rules_that_another_program_removes_are_put_back() {
    let world = &mut serving();
    world.acts();
    let removed: PolicyRoute = *world.kernel().facts.borrow().policy_routes.first().unwrap();
    assert_eq!(removed.family, Family::V4);
    world.kernel().facts.send_modify(|facts| _ = facts.policy_routes.remove(&removed));
    world.after(0);
    assert_eq!(world.acts(), [format!("add {removed}")]);
    assert_eq!(world.status().repairs.routing, 1);
}

/// The weights and methods of all pods, as the tier for clients elsewhere has them.
pub fn forwarded(world: &World) -> Vec<String> {
    server(world, nginx().into()).real_servers.iter().map(|(at, real)| format!("{at} {real}")).collect()
}

fn local_policy(mut snapshot: Snapshot) -> Snapshot {
    let service = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(service).local_policy = true;
    snapshot
}

pub fn only_finding(world: &World) -> Finding {
    let [finding] = &world.status().findings[..] else { panic!("{:?}", world.status().findings) };
    finding.clone()
}

/// The way to node-b's pods: its link is eth0.
fn over(via: Option<&str>) -> Hops {
    let hop = via.map(|via| Hop { link: 2, via: Some(ip(via)) });
    [(("node-b".to_owned(), Family::V4), Way { to: ip("10.2.6.10"), hop })].into()
}

#[test]
fn pods_behind_another_router_are_served_by_nat() {
    let mut world = serving();
    assert_eq!(world.ways(), ["node-b 10.2.6.10"]);
    world.hops(over(Some("10.87.2.6")));
    world.after(1);
    assert_eq!(world.status().findings, []);
    world.hops(over(Some("10.87.2.1")));
    world.after(1);
    assert_eq!(forwarded(&world), ["10.2.4.10:80 weight 1", "10.2.6.10:80 weight 1"]);
    let finding = only_finding(&world);
    let text = "default/nginx: 10.87.2.50 tcp 80 in mode dsr: packets cannot be handed on as they came to pods on node-b (the \
                route to 10.2.6.10 leads through 10.87.2.1, which is not its node), so these are served by NAT and see this \
                node's address";
    assert_eq!(finding.to_string(), text);
    let mend = "kubectl -n default annotate --overwrite service nginx kvip.io/mode=nat";
    assert_eq!(finding.mend.as_deref(), Some(mend));
    world.hops(over(Some("10.87.2.6")));
    world.after(1);
    assert_eq!(forwarded(&world)[1], "10.2.6.10:80 weight 1 direct route");
    assert_eq!((world.status().findings.len(), world.status().faults), (0, 0));
}

#[test]
fn policy_local_leaves_them_out_and_keeps_the_order_of_all() {
    let mut world = World::new(settings());
    world.list(local_policy(dsr_snapshot()));
    world.hops(over(None));
    world.turn();
    assert_eq!(forwarded(&world)[1], "10.2.6.10:80 weight 0 direct route");
    let finding = only_finding(&world);
    let text = finding.to_string();
    assert!(text.contains("node-b (there is no route to 10.2.6.10), so these are left out"), "{text}");
    let mend = "give the group these nodes (vrrp.members), or their pods a direct route or a tunnel; see Forwarding modes in \
                docs/services.md";
    assert_eq!(finding.mend.as_deref(), Some(mend));
}

/// All nodes leave them to NAT alike, as that follows from what the cluster says.
#[test]
fn pods_of_nodes_that_are_no_members_are_served_by_nat() {
    let mut settings = settings();
    settings.vrrp.members.insert("kvip".into(), "yes".into());
    let mut snapshot = dsr_snapshot();
    for name in ["node-a", "node-c"] {
        let node = snapshot.nodes.get_mut(name).unwrap();
        Arc::make_mut(node).labels.insert("kvip".into(), "yes".into());
    }
    let mut world = World::new(settings);
    world.list(snapshot);
    world.turn();
    assert_eq!(forwarded(&world), ["10.2.4.10:80 weight 1", "10.2.6.10:80 weight 1"]);
    let text = only_finding(&world).to_string();
    assert!(text.contains("node-b (no member of the VIP's group), so these are served by NAT"), "{text}");
}

#[test]
fn what_maglev_hashing_takes_is_counted() {
    assert_eq!(serving().status().hash_tables, 2);
}

/// A host with an overlay network, a VPN, and a VXLAN where the VIPs' clients are.
fn with_tunnels(world: &World) {
    let link = |index, wraps| Link { index, up: true, wraps, ..Link::default() };
    let links = [
        ("flannel.1", link(3, Wraps::ByRoute)),
        ("gre1", link(4, Wraps::ByRoute)),
        ("wg0", link(5, Wraps::ByDestination)),
        ("eth0", link(2, Wraps::ByRoute)),
    ];
    let links = links.map(|(name, link)| (name.to_owned(), link));
    world.kernel().facts.send_modify(|facts| facts.links.extend(links));
}

fn handed_on_through(world: &World) -> Vec<String> {
    world.kernel().written.steering.tunnels.iter().cloned().collect()
}

#[test]
fn who_comes_through_another_tunnel_than_the_pods_network_is_a_client() {
    let mut world = serving();
    with_tunnels(&world);
    world.after(1);
    assert_eq!(handed_on_through(&world), ["flannel.1", "gre1"], "while the ways are unknown");
    let over = |link| {
        let way = Way { to: ip("10.2.6.10"), hop: Some(Hop { link, via: Some(ip("10.2.6.0")) }) };
        [(("node-b".to_owned(), Family::V4), way)].into()
    };
    for (link, expected) in [(3, Some("flannel.1")), (5, None), (2, None), (4, Some("gre1"))] {
        world.hops(over(link));
        world.after(1);
        assert_eq!(handed_on_through(&world), Vec::from_iter(expected), "pods behind link {link}");
    }
    let mut all_here = dsr_snapshot();
    pods(&mut all_here, "nginx").retain(|endpoint| endpoint.node.as_deref() == Some("node-a"));
    world.event(all_here);
    world.hops(Hops::new());
    world.after(1);
    assert_eq!(handed_on_through(&world), [""; 0], "without a pod elsewhere");
    assert_eq!(world.status().faults, 0);
}

#[test]
fn settings_by_which_the_kernel_drops_what_is_handed_on_are_findings() {
    let mut world = serving();
    let link = Link { index: 6, up: true, ..Link::default() };
    world.kernel().facts.send_modify(|facts| _ = facts.links.insert("eth1".into(), link));
    let way = Way { to: ip("10.2.6.10"), hop: Some(Hop { link: 6, via: Some(ip("10.87.2.6")) }) };
    world.hops([(("node-b".to_owned(), Family::V4), way)].into());
    for (name, value, expected) in [
        ("net.ipv4.conf.eth1.rp_filter", "1", "is strict and must be 2"),
        ("net.ipv4.conf.eth0.src_valid_mark", "1", "is 1 and must be 0"),
        ("net.ipv4.conf.all.src_valid_mark", "1", "is 1 and must be 0"),
    ] {
        world.kernel().sysctls = [(name.to_owned(), value.to_owned())].into();
        world.tick(62);
        let found = only_finding(&world).to_string();
        assert!(found.starts_with(&format!("{name}: {expected}")), "{found}");
    }
    // The link of the VIPs takes what its clients send whatever it is.
    world.kernel().sysctls = [("net.ipv4.conf.eth0.rp_filter".to_owned(), "1".to_owned())].into();
    world.tick(62);
    assert_eq!(world.status().findings, []);
    world.event(snapshot());
    world.kernel().sysctls = [("net.ipv4.conf.all.src_valid_mark".to_owned(), "1".to_owned())].into();
    world.tick(62);
    assert_eq!(world.status().findings, [], "without mode dsr");
}

#[test]
fn peers_are_known_by_their_cards() {
    let mut world = serving();
    assert_eq!(world.peers(), ["10.87.2.6", "10.87.2.8"].map(ip).into());
    let mac = MacAddress([0x52, 0x54, 0, 0xaa, 0, 6]);
    world.macs([(ip("10.87.2.6"), mac)].into());
    world.after(1);
    assert_eq!(world.kernel().written.steering.peers, [mac].into());
}

/// A peer's pods may be behind another card of it than that of its InternalIP.
#[test]
fn all_cards_of_a_peer_are_asked_for() {
    let mut more = dsr_snapshot();
    let node = Arc::make_mut(more.nodes.get_mut("node-b").unwrap());
    node.other_addresses = ["10.87.2.66", "198.51.100.6"].map(ip).into();
    let mut world = World::new(settings());
    world.list(more);
    world.turn();
    let near = ["10.87.2.6", "10.87.2.66", "10.87.2.8"].map(ip);
    assert_eq!(world.peers(), near.into(), "and what is on no link has none");
    world.hops(over(Some("fe80::66")));
    world.after(1);
    assert_eq!(world.peers(), [&near[..], &[ip("fe80::66")]].concat().into_iter().collect());
    assert_eq!(world.kernel().written.steering.nodes, world.peers());
}

#[test]
fn nothing_is_left_when_the_mode_is_another() {
    let mut world = serving();
    world.event(snapshot());
    world.after(1);
    assert!(world.kernel().table.keys().all(|key| key.mark().is_none()));
    assert!(world.kernel().facts.borrow().policy_routes.is_empty());
    assert!(world.kernel().written.steering.frontends.is_empty());
    assert_eq!(world.status().faults, 0);
}

/// By the rules that are in the kernel its packets have them until the next are written.
#[test]
fn a_frontend_keeps_its_marks_in_the_next_run() {
    let world = serving();
    let marked = |world: &World| Ledger::new(&world.paths.state).load().unwrap().marked;
    let [(frontend, marks)] = marked(&world).into_iter().collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(frontend, nginx());
    let others = Marks { peers: marks.peers ^ 2, own: marks.own ^ 2 };
    let mut owned = Ledger::new(&world.paths.state).load().unwrap();
    owned.marked = [(frontend, others)].into();
    Ledger::new(&world.paths.state).save(&owned).unwrap();
    let mut world = world.restart(settings());
    world.list(dsr_snapshot());
    world.turn();
    assert_eq!(world.kernel().written.steering.frontends, [(frontend, others)].into());
    world.event(snapshot());
    world.after(1);
    assert_eq!(marked(&world), [].into());
}

#[test]
fn a_virtual_server_by_mark_of_another_program_stays_as_it_is() {
    let hashed = serving().kernel().written.steering.frontends[&nginx()];
    for mark in [hashed.peers, hashed.own] {
        let key = Key::Mark(Family::V4, mark);
        let service = Service { scheduler: "rr".into(), persistence: None, flags: 0 };
        let real = (backend("10.99.0.2", 443), RealServer::new(Forward::Masquerade, 3));
        let theirs = VirtualServer { real_servers: [real].into(), ..VirtualServer::new(service) };
        let mut world = World::new(settings());
        world.kernel().table.insert(key, theirs.clone());
        world.list(dsr_snapshot());
        world.turn();
        assert_eq!(server(&world, key), theirs);
        let marks = world.kernel().written.steering.frontends[&nginx()];
        assert!(
            world.kernel().table.contains_key(&Key::Mark(Family::V4, marks.own)),
            "it has marks of its own"
        );
        assert_eq!((world.status().as_planned, world.status().faults), (true, 0));
        world.event(snapshot());
        world.after(1);
        let left: Vec<Key> =
            world.kernel().table.keys().copied().filter(|key| key.mark().is_some()).collect();
        assert_eq!(left, [key]);
        assert_eq!(server(&world, key), theirs);
    }
}

/// Its own marks of the run before are no other program's.
#[test]
fn marks_are_kept_where_the_list_of_them_is_lost() {
    let world = serving();
    let kept = |world: &World| {
        let kernel = world.kernel();
        (kernel.table.clone(), kernel.ruleset.clone())
    };
    let before = kept(&world);
    std::fs::write(world.paths.state.join("owned.json"), "{").unwrap();
    let mut world = world.restart(settings());
    world.list(dsr_snapshot());
    world.turn();
    assert_eq!(kept(&world), before);
    assert_eq!((world.status().as_planned, world.status().faults), (true, 0));
    world.event(snapshot());
    world.after(1);
    assert!(world.kernel().table.keys().all(|key| key.mark().is_none()), "they are its own to retire");
}

#[test]
fn what_an_earlier_run_marked_is_retired_by_the_next() {
    let mut world = serving().restart(settings());
    world.list(snapshot());
    world.turn();
    assert!(world.kernel().table.keys().all(|key| key.mark().is_none()));
    assert!(world.kernel().facts.borrow().policy_routes.is_empty());
}
