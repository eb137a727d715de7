//! Two VRRP groups on one node: each with its own holder, weight, members and strays.

use std::sync::Arc;

use kvip::config::{Group, Settings, Static, Transport};
use kvip::derive::EXCLUDED;
use kvip::keepalived::hold;
use kvip::model::{Frontend, ObjectKey, Protocol, Vrid};
use kvip::snapshot::Snapshot;

use crate::world::{World, dns, ip, marked, nginx, settings, snapshot, vrid};

fn edge() -> Vrid {
    Vrid::new(60).unwrap()
}

/// The group `edge` carries 10.87.2.51, `vips` the rest.
fn two_groups() -> Settings {
    let mut settings = settings();
    let mut vrrp = settings.vrrp.clone();
    vrrp.vrid = edge();
    let addresses = vec!["10.87.2.51/32".parse::<ipnet::IpNet>().unwrap().into()];
    settings.groups = vec![Group { name: "edge".into(), addresses, vrrp, interface: None }];
    settings
}

/// Only nodes with this label are members of `edge`.
fn labelled() -> Settings {
    let mut settings = two_groups();
    settings.groups[0].vrrp.members = [("edge".to_owned(), "yes".to_owned())].into();
    settings
}

fn with_edge(members: &[&str]) -> Snapshot {
    let mut snapshot = snapshot();
    for name in members {
        let node = Arc::make_mut(snapshot.nodes.get_mut(*name).unwrap());
        node.labels.insert("edge".into(), "yes".into());
    }
    snapshot
}

/// Serves with these settings, and keepalived has read everything.
fn serving(settings: Settings, snapshot: Snapshot) -> World {
    let mut world = World::new(settings);
    world.list(snapshot);
    world.turn();
    world.keepalived_reads();
    world.turn();
    world
}

/// The sync daemon follows the group of [vrrp] alone.
#[test]
fn vips_of_other_groups_are_hashed_in_mode_dsr_though_connections_are_told() {
    let mut snapshot = snapshot();
    for name in ["nginx", "dns"] {
        let service = snapshot.services.get_mut(&ObjectKey::new("default", name)).unwrap();
        let said = [("kvip.io/mode", "dsr"), ("kvip.io/scheduler", "rr")];
        Arc::make_mut(service).annotations =
            said.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
    }
    let mut settings = two_groups();
    settings.balancing.sync.on = true;
    let world = serving(settings, snapshot);
    let scheduler = |frontend: Frontend| world.kernel().table[&frontend.into()].service.scheduler.clone();
    assert_eq!([nginx(), dns()].map(scheduler), ["rr", "mh"]);
    let text = "default/dns: annotation kvip.io/scheduler counts in mode dsr for clients on the nodes alone: others are hashed \
                by mh";
    assert_eq!(world.findings(), [text]);
}

fn weights(world: &World) -> (Option<i16>, Option<i16>) {
    (world.weight(), world.weight_of(edge()))
}

/// The VIPs of a group in what keepalived is to run, `None` without an instance.
fn wanted(world: &World, vrid: Vrid) -> Option<Vec<String>> {
    let config = world.wanted().unwrap();
    let instance = config.instances.iter().find(|instance| instance.vrid == vrid)?;
    Some(instance.vips.iter().map(ToString::to_string).collect())
}

#[test]
fn a_node_is_holder_of_one_group_and_backup_of_the_other() {
    let mut world = World::new(two_groups());
    world.kernel().nft_refuses = true;
    world.list(snapshot());
    world.turn();
    assert_eq!(weights(&world), (Some(-254), Some(-254)), "closed before keepalived can track them");
    world.kernel().nft_refuses = false;
    world.tick(3);
    assert_eq!(weights(&world), (Some(0), Some(0)));
    world.keepalived_reads();
    world.become_holder_of(edge());
    world.turn();
    assert_eq!(weights(&world), (Some(0), Some(64)));

    let status = world.status();
    let groups: Vec<_> =
        status.groups.iter().map(|group| (group.name.as_str(), group.vrid, group.weight)).collect();
    assert_eq!(groups, [("edge", 60, Some(64)), ("vips", 50, Some(0))]);
    let vips: Vec<_> = status.vips.iter().map(|vip| (vip.group.as_str(), vip.here)).collect();
    assert_eq!(vips, [("vips", false), ("edge", true)]);
    assert_eq!((status.weight, status.members.len()), (Some(0), 3), "those of the group vips");

    world.become_holder();
    world.lose(edge());
    world.turn();
    assert_eq!(weights(&world), (Some(64), Some(0)));
}

#[test]
fn without_the_api_each_group_becomes_stale_by_itself() {
    let mut world = serving(two_groups(), snapshot());
    world.become_holder_of(edge());
    world.after(299);
    assert_eq!(weights(&world), (Some(0), Some(64)));
    world.after(1);
    assert_eq!(weights(&world), (Some(-128), Some(64)));
    world.after(300);
    assert_eq!(weights(&world), (Some(-128), Some(-64)));
    world.confirm();
    world.after(1);
    assert_eq!(weights(&world), (Some(0), Some(64)));
}

#[test]
fn a_drain_keeps_the_hands_off_all_weights() {
    let mut world = serving(two_groups(), snapshot());
    hold::set_drained(&world.paths).unwrap();
    world.become_holder_of(edge());
    world.after(700);
    assert_eq!(weights(&world), (Some(0), Some(0)));
    hold::clear_drained(&world.paths).unwrap();
    world.confirm();
    world.after(1);
    assert_eq!(weights(&world), (Some(0), Some(64)));
}

#[test]
fn a_group_that_is_left_keeps_its_instance_while_the_other_goes_on() {
    let mut world = serving(labelled(), with_edge(&["node-a", "node-b"]));
    world.become_holder();
    world.become_holder_of(edge());
    world.turn();
    assert_eq!(weights(&world), (Some(64), Some(64)));

    let mut snapshot = with_edge(&["node-b"]);
    snapshot.vip_map.as_mut().unwrap().insert("10.87.2.52".into(), String::new());
    world.event(snapshot);
    world.tick(3);
    assert_eq!(weights(&world), (Some(64), Some(-253)), "LEAVING: any other beats it");
    assert_eq!(wanted(&world, edge()).unwrap(), ["10.87.2.51"], "kept until another has the VIPs");
    assert_eq!(wanted(&world, vrid()).unwrap(), ["10.87.2.50", "10.87.2.52"], "not held up by the other");

    world.lose(edge());
    world.tick(2);
    assert_eq!(weights(&world), (Some(64), Some(-254)));
    assert_eq!(wanted(&world, edge()), None);
}

#[test]
fn a_vip_moves_between_groups_with_the_settings() {
    let mut world = serving(two_groups(), snapshot());
    world.daemon.take_settings(settings(), false);
    world.turn();
    assert_eq!(wanted(&world, vrid()).unwrap(), ["10.87.2.50", "10.87.2.51"]);
    assert_eq!(wanted(&world, edge()), None);
    world.keepalived_reads();
    world.daemon.take_settings(two_groups(), false);
    world.turn();
    assert_eq!(wanted(&world, vrid()).unwrap(), ["10.87.2.50"]);
    assert_eq!(wanted(&world, edge()).unwrap(), ["10.87.2.51"]);
    assert_eq!(world.kernel().table.len(), 2, "IPVS is as before");
}

#[test]
fn a_new_unicast_group_waits_although_the_other_serves() {
    let mut world = serving(settings(), snapshot());
    world.become_holder();
    world.turn();
    let mut settings = two_groups();
    settings.groups[0].vrrp.transport = Transport::Unicast;
    world.daemon.take_settings(settings, false);
    world.turn();
    assert_eq!(weights(&world), (Some(64), Some(-254)));
    world.tick(9);
    assert_eq!(weights(&world), (Some(64), Some(-254)));
    world.tick(1);
    assert_eq!(weights(&world), (Some(64), Some(0)));
}

#[test]
fn a_peer_that_left_one_group_is_spoken_to_in_that_group() {
    let mut settings = labelled();
    settings.vrrp.transport = Transport::Unicast;
    settings.groups[0].vrrp.transport = Transport::Unicast;
    let mut world = serving(settings, with_edge(&["node-a", "node-b", "node-c"]));
    let peers = |world: &World| {
        let config = world.wanted().unwrap();
        let peers = |instance: &kvip::keepalived::Instance| instance.unicast.as_ref().unwrap().peers.len();
        config.instances.iter().map(peers).collect::<Vec<_>>()
    };
    world.event(with_edge(&["node-a", "node-c"]));
    world.tick(20);
    assert_eq!(peers(&world), [2, 2]);
    world.tick(15);
    assert_eq!(peers(&world), [2, 1], "node-b is a member of vips still");
}

#[test]
fn an_address_is_a_stray_by_the_anchor_of_its_own_group() {
    let mut world = serving(two_groups(), snapshot());
    world.become_holder();
    world.add_address(marked("10.87.2.51"));
    world.tick(14);
    assert!(world.kernel().facts.borrow().has(ip("10.87.2.51")));
    world.tick(3);
    let left = world.kernel().facts.borrow().clone();
    assert!(!left.has(ip("10.87.2.51")), "nobody holds edge here");
    assert!(left.has(ip("10.87.2.50")), "vips is held");
}

#[test]
fn a_static_vip_is_served_before_the_api_and_after_it() {
    let mut settings = two_groups();
    settings.statics.push(Static {
        name: "api".into(),
        vip: ip("10.87.2.51"),
        protocol: Protocol::Tcp,
        port: 6443,
        backends: vec!["10.87.2.4:6443".parse().unwrap(), "10.87.2.6:6443".parse().unwrap()],
        check: true,
    });
    let mut world = World::new(settings);
    world.tick(2);
    assert_eq!(wanted(&world, edge()).unwrap(), ["10.87.2.51"]);
    assert_eq!(wanted(&world, vrid()), None);
    assert_eq!(weights(&world), (Some(-254), Some(0)), "this host is in no other group yet");
    let api = Frontend { vip: ip("10.87.2.51"), protocol: Protocol::Tcp, port: 6443 };
    assert_eq!(world.servers(api).unwrap().len(), 2);
    let lone = world.wanted().unwrap().instances[0].priority;
    assert!((141..=149).contains(&lone), "{lone}");
    world.keepalived_reads();
    world.become_holder_of(edge());
    world.turn();
    assert_eq!(weights(&world), (Some(-254), Some(64)));

    let mut excluded = snapshot();
    for node in ["node-a", "node-b", "node-c"] {
        let node = Arc::make_mut(excluded.nodes.get_mut(node).unwrap());
        node.labels.insert(EXCLUDED.into(), String::new());
    }
    world.list(excluded);
    world.tick(2);
    assert_eq!(weights(&world), (Some(-254), Some(64)), "a static VIP ignores the label");
    assert_eq!(wanted(&world, edge()).unwrap(), ["10.87.2.51"]);
    assert!([150, 170, 190].contains(&world.wanted().unwrap().instances[0].priority));
}
