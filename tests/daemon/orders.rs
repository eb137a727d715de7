//! What those who write to the cluster are told.

use std::time::Duration;

use crate::world::{World, settings};

#[test]
fn a_setting_that_changes_nothing_that_is_served_is_told_all_the_same() {
    let mut world = World::serving();
    let (before, own) = world.ordered();
    let mut new = settings();
    new.asking.takeover_after = Duration::from_secs(17);
    new.asking.annotations = false;
    world.daemon.take_settings(new, false);
    world.turn();
    let (after, own_after) = world.ordered();
    assert_ne!(before.unwrap().wanted.takeover_after, Duration::from_secs(17));
    assert_eq!(after.unwrap().wanted.takeover_after, Duration::from_secs(17));
    assert_ne!(own.unwrap().fingerprint, own_after.unwrap().fingerprint);
}
