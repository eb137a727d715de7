//! Invariant 4 in the loop: what is another cluster, or empties everything, waits for an admin.

use std::os::unix::fs::MetadataExt as _;

use kvip::snapshot::{Snapshot, admit};

use crate::world::{World, nginx, settings, snapshot};

/// `state` is held, and taken once the accept file names it.
#[track_caller]
fn check_held(mut world: World, state: Snapshot, why: &str) {
    world.keepalived_reads();
    world.turn();
    world.acts();
    world.keepalived_was_told();
    assert!(world.ordered().0.is_some());
    world.list(state.clone());
    world.tick(120);
    assert_eq!(world.acts(), [""; 0], "the last state stays");
    assert!(world.ordered().0.is_none(), "nothing is written to a cluster by what it is not");
    assert!(!world.keepalived_was_told());
    let status = world.status();
    assert!(status.cluster.held.as_ref().is_some_and(|held| held.contains(why)), "{:?}", status.cluster);
    assert!(status.summary.contains("a new state waits for `kvip accept`"), "{}", status.summary);

    // A later watch event does not smuggle it in.
    let mut more = state.clone();
    more.nodes.insert("node-d".into(), kvip::snapshot::Node::default().into());
    world.event(more);
    world.tick(2);
    assert_eq!(world.acts(), [""; 0]);

    let accept = world.paths.state.join("accept");
    admit::accept(&accept, "0123456789abcdef").unwrap();
    let file = world.paths.state.join("snapshot.json");
    let saved = || std::fs::metadata(&file).unwrap().ino();
    let before = saved();
    world.tick(12);
    assert!(world.status().cluster.held.is_some(), "the file names another state");
    assert_eq!(saved(), before, "what is served did not change, so it is not saved again");
    admit::accept(&accept, &world.status().cluster.held_id.unwrap()).unwrap();
    world.tick(1);
    assert_eq!(world.status().cluster.held, None);
    assert_eq!(world.ordered().0.is_some(), !state.nodes.is_empty());
    assert!(!accept.exists());
    assert!(world.wanted().unwrap().instances.is_empty());
}

#[test]
fn a_list_without_anything_waits_for_an_admin() {
    let empty =
        Snapshot { cluster: Some("uid-1".into()), vip_map: Some(imbl::OrdMap::new()), ..Snapshot::default() };
    check_held(World::serving(), empty, "2");
}

#[test]
fn another_cluster_waits_for_an_admin() {
    let mut other = snapshot();
    other.cluster = Some("uid-2".into());
    other.vip_map = Some(imbl::OrdMap::new());
    check_held(World::serving(), other, "uid-2");
}

#[test]
fn another_cluster_waits_after_a_restart_too() {
    let mut world = World::serving();
    world.tick(6);
    let mut world = world.restart(settings());
    let mut other = snapshot();
    other.cluster = Some("uid-2".into());
    other.vip_map = Some(imbl::OrdMap::new());
    world.list(other);
    world.tick(10);
    assert!(world.status().cluster.held.is_some());
    assert_eq!(world.servers(nginx()).unwrap().len(), 2);
}

#[test]
fn a_held_state_that_turns_good_again_is_taken() {
    let mut world = World::serving();
    let mut other = snapshot();
    other.cluster = Some("uid-2".into());
    world.list(other);
    world.tick(2);
    assert!(world.status().cluster.held.is_some());
    world.list(snapshot());
    world.tick(2);
    assert_eq!(world.status().cluster.held, None);
    assert_eq!(world.status().summary, "holds 0 of 2 VIPs; 2 Services; in sync");
}

/// Whoever serves what is held back is preferred in the end, as by nodes without the API.
#[test]
fn a_node_that_holds_a_state_back_becomes_stale() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.turn();
    let mut other = snapshot();
    other.cluster = Some("uid-2".into());
    world.list(other);
    world.tick(290);
    assert_eq!(world.weight(), Some(0));
    world.tick(20);
    assert_eq!(world.weight(), Some(-128));
    world.list(snapshot());
    world.tick(2);
    assert_eq!(world.weight(), Some(0));
}
