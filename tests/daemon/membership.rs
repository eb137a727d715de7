//! Nodes that join and leave the group.

use std::sync::Arc;

use kvip::config::{Settings, Transport};
use kvip::snapshot::Snapshot;

use crate::world::{World, settings, snapshot, vrid};

fn unicast() -> Settings {
    let mut settings = settings();
    settings.vrrp.transport = Transport::Unicast;
    settings
}

/// Only nodes with this label are members.
fn labelled() -> Settings {
    let mut settings = settings();
    settings.vrrp.members = [("vip".to_owned(), "yes".to_owned())].into();
    settings
}

fn with_members(members: &[&str]) -> Snapshot {
    let mut snapshot = snapshot();
    for name in members {
        let node = Arc::make_mut(snapshot.nodes.get_mut(*name).unwrap());
        node.labels.insert("vip".into(), "yes".into());
    }
    snapshot
}

fn peers(world: &World) -> Vec<String> {
    let config = world.wanted().unwrap();
    let unicast = config.instances[0].unicast.clone().unwrap();
    unicast.peers.iter().map(ToString::to_string).collect()
}

#[test]
fn a_node_that_joins_by_unicast_waits_until_the_holder_speaks_to_it() {
    let mut world = World::new(unicast());
    world.list(snapshot());
    world.turn();
    assert_eq!(peers(&world), ["10.87.2.6", "10.87.2.8"]);
    world.keepalived_reads();
    world.tick(9);
    assert_eq!(world.weight(), Some(-254));
    world.tick(1);
    assert_eq!(world.weight(), Some(0));
}

#[test]
fn a_restart_of_kvip_is_no_joining() {
    let mut world = World::new(unicast());
    world.list(snapshot());
    world.turn();
    world.keepalived_reads();
    world.tick(12);
    let mut world = world.restart(unicast());
    world.turn();
    assert_eq!(world.weight(), Some(0));
}

/// The others may have dropped it as a peer while it was off: it would hear none of them.
#[test]
fn a_boot_is_a_joining_although_keepalived_has_its_file() {
    let booted = || {
        let mut world = World::new(unicast());
        world.list(snapshot());
        world.turn();
        world.keepalived_reads();
        world.tick(12);
        assert_eq!(world.weight(), Some(0));
        std::fs::write(world.paths.weight(vrid()), "-254\n").unwrap();
        let mut world = world.restart(unicast());
        world.kernel().table.clear();
        world.turn();
        assert_eq!(world.weight(), Some(-254));
        world
    };
    let mut world = booted();
    world.tick(9);
    assert_eq!(world.weight(), Some(-254));
    world.tick(1);
    assert_eq!(world.weight(), Some(0));

    let mut world = booted();
    let mut deleted = snapshot();
    deleted.nodes.remove("node-a");
    world.list(deleted);
    world.tick(60);
    assert_eq!(world.weight(), Some(-254), "its Node was deleted meanwhile");
}

#[test]
fn a_peer_that_left_is_spoken_to_for_a_while() {
    let mut settings = labelled();
    settings.vrrp.transport = Transport::Unicast;
    let mut world = World::new(settings);
    world.list(with_members(&["node-a", "node-b", "node-c"]));
    world.turn();
    world.event(with_members(&["node-a", "node-c"]));
    world.tick(20);
    assert_eq!(peers(&world), ["10.87.2.6", "10.87.2.8"]);
    world.tick(15);
    assert_eq!(peers(&world), ["10.87.2.8"]);
}

#[test]
fn a_backup_that_is_no_member_any_more_gives_up_at_once() {
    let mut world = World::new(labelled());
    world.list(with_members(&["node-a", "node-b"]));
    world.turn();
    world.keepalived_reads();
    world.turn();
    world.event(with_members(&["node-b"]));
    world.tick(2);
    assert_eq!(world.weight(), Some(-254));
    let config = world.wanted().unwrap();
    assert!(config.instances.is_empty());
    assert_eq!(config.router_id, "node-a", "keepalived must be able to read the file");
}

#[test]
fn a_holder_that_is_no_member_any_more_waits_for_another() {
    let mut world = World::new(labelled());
    world.list(with_members(&["node-a", "node-b"]));
    world.turn();
    world.keepalived_reads();
    world.become_holder();
    world.turn();
    assert_eq!(world.weight(), Some(64));
    world.keepalived_was_told();

    world.event(with_members(&["node-b"]));
    world.tick(3);
    assert_eq!(world.weight(), Some(-253), "LEAVING: any other beats it");
    assert!(!world.keepalived_was_told(), "it keeps its instance until another has the VIPs");
    assert_eq!(world.kernel().table.len(), 2);

    for address in ["169.254.255.50", "10.87.2.50", "10.87.2.51"] {
        world.remove_address(address);
    }
    world.tick(2);
    assert_eq!(world.weight(), Some(-254));
    assert!(world.wanted().unwrap().instances.is_empty());
}

#[test]
fn a_holder_that_nobody_relieves_gives_up_after_a_while() {
    let mut world = World::new(labelled());
    world.list(with_members(&["node-a", "node-b"]));
    world.turn();
    world.keepalived_reads();
    world.become_holder();
    world.turn();
    world.event(with_members(&["node-b"]));
    world.tick(29);
    assert!(!world.wanted().unwrap().instances.is_empty());
    world.tick(5);
    assert!(world.wanted().unwrap().instances.is_empty());
}
