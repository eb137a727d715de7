//! The weight file over time.

use kvip::keepalived::{State, hold};

use crate::world::{World, settings, snapshot, vrid};

#[test]
fn a_node_comes_up_as_a_backup_and_becomes_a_sticky_holder() {
    let mut world = World::new(settings());
    world.kernel().nft_refuses = true;
    world.list(snapshot());
    world.tick(3);
    assert_eq!(world.weight(), Some(-254), "not all is prepared");
    world.kernel().nft_refuses = false;
    world.tick(3);
    assert_eq!(world.weight(), Some(0));
    world.keepalived_reads();
    world.become_holder();
    world.turn();
    assert_eq!(world.weight(), Some(64));
    world.remove_address("169.254.255.50");
    world.turn();
    assert_eq!(world.weight(), Some(0));
}

#[test]
fn a_weight_file_that_cannot_be_read_is_a_finding_until_it_can() {
    let mut world = World::serving();
    let file = world.paths.weight(vrid());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    world.tick(3);
    let findings = world.findings();
    assert!(findings.len() == 1 && findings[0].contains("weight-50"), "{findings:?}");
    std::fs::remove_dir(&file).unwrap();
    world.tick(3);
    assert_eq!(world.findings(), [""; 0]);
    assert_eq!(world.weight(), Some(0));
}

/// It would take a missing file for 0, with which a node that has prepared nothing could become holder.
#[test]
fn keepalived_is_told_of_no_group_whose_weight_file_cannot_be_written() {
    let mut world = World::new(settings());
    let file = world.paths.weight(vrid());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    world.list(snapshot());
    world.tick(3);
    assert_eq!(world.wanted(), None);
    assert!(world.findings()[0].contains("weight-50"), "{:?}", world.findings());
    std::fs::remove_dir(&file).unwrap();
    world.turn();
    assert_eq!(world.wanted().unwrap().instances.len(), 1);
    assert_eq!((world.weight(), world.findings().len()), (Some(0), 0));
}

#[test]
fn a_reload_that_follows_the_cluster_anew_leaves_the_holder_what_it_is() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    for _ in 0..15 {
        world.tick(60);
        world.confirm();
    }
    world.turn();
    world.follow_anew();
    world.tick(30);
    assert_eq!(world.weight(), Some(64));
}

#[test]
fn without_the_api_a_backup_is_stale_before_the_holder() {
    let mut world = World::serving();
    world.after(299);
    assert_eq!(world.weight(), Some(0));
    world.after(1);
    assert_eq!(world.weight(), Some(-128));
    world.keepalived_reads();
    world.become_holder();
    world.after(299);
    assert_eq!(world.weight(), Some(64));
    world.after(1);
    assert_eq!(world.weight(), Some(-64));
    world.confirm();
    world.after(1);
    assert_eq!(world.weight(), Some(64));
}

#[test]
fn a_daemon_that_turns_gives_signs_of_life() {
    let mut world = World::serving();
    let file = world.paths.alive();
    let there = |_: &World| std::fs::read_to_string(&file).ok();
    assert!(there(&world).unwrap().ends_with("\n50 60\n"));
    std::fs::remove_file(&file).unwrap();
    world.after(4);
    assert_eq!(there(&world), None, "from time to time");
    world.after(1);
    assert!(there(&world).is_some());
}

const YIELDS: &str = "VIPs: this host has not had all that is wanted for 5m, so nodes that have it are preferred as holders; \
                      a holder yields after 10m";

/// Turns each minute for `minutes`, in touch with the API.
pub fn minutes(world: &mut World, minutes: u32) {
    for _ in 0..minutes {
        world.confirm();
        world.after(60);
    }
}

#[test]
fn a_host_that_can_no_longer_be_programmed_is_stale_after_as_long() {
    let mut world = World::serving();
    world.kernel().ipvs_is_gone = true;
    minutes(&mut world, 4);
    assert_eq!(world.weight(), Some(0));
    minutes(&mut world, 1);
    assert_eq!(world.weight(), Some(-128));
    assert_eq!(world.findings(), ["IPVS: the kernel has no ip_vs", YIELDS]);
    world.keepalived_reads();
    world.become_holder();
    minutes(&mut world, 4);
    assert_eq!(world.weight(), Some(64), "where all are broken nobody moves");
    minutes(&mut world, 1);
    assert_eq!(world.weight(), Some(-64));
    world.kernel().ipvs_is_gone = false;
    minutes(&mut world, 1);
    assert_eq!((world.weight(), world.findings()), (Some(64), Vec::new()));
}

#[test]
fn a_restart_on_a_host_that_cannot_be_programmed_lowers_weights_and_raises_none() {
    for (weight, stale, after) in [(64, -64, 11), (0, -128, 6), (-254, -254, 20)] {
        let mut world = World::serving();
        world.keepalived_reads();
        if weight == 64 {
            world.become_holder();
            world.turn();
        }
        std::fs::write(world.paths.weight(vrid()), format!("{weight}\n")).unwrap();
        let mut world = world.restart(settings());
        world.kernel().ipvs_is_gone = true;
        minutes(&mut world, after - 1);
        assert_eq!(world.weight(), Some(weight));
        minutes(&mut world, 1);
        assert_eq!(world.weight(), Some(stale), "{weight}");
    }
}

/// As with a saved state that is damaged, while the API is away.
#[test]
fn without_any_state_a_holder_becomes_stale_too() {
    for (holds, fresh, stale, minutes) in [(true, 64, -64, 10), (false, 0, -128, 5)] {
        let mut world = World::serving();
        world.keepalived_reads();
        if holds {
            world.become_holder();
        }
        world.tick(10);
        assert_eq!(world.weight(), Some(fresh));
        std::fs::remove_file(world.paths.state.join("snapshot.json")).unwrap();
        let mut world = world.restart(settings());
        world.turn();
        world.after(minutes * 60 - 1);
        assert_eq!(world.weight(), Some(fresh));
        world.after(1);
        assert_eq!(world.weight(), Some(stale));
        assert_eq!(world.acts(), [""; 0], "and nothing is removed");
        world.list(snapshot());
        world.tick(1);
        assert_eq!(world.weight(), Some(fresh));
    }
}

#[test]
fn a_keepalived_that_takes_no_configuration_makes_its_host_stale() {
    let mut world = World::serving();
    minutes(&mut world, 1);
    let refused = State::Refused("it says no".into());
    for state in [refused.clone(), State::Waiting("for keepalived to read its configuration".into()), refused]
    {
        world.keepalived_is(state);
        assert_eq!(world.weight(), Some(0));
        minutes(&mut world, 2);
    }
    assert_eq!((world.weight(), world.findings()), (Some(-128), vec![YIELDS.to_owned()]));
    world.keepalived_is(State::Active);
    minutes(&mut world, 1);
    assert_eq!((world.weight(), world.findings()), (Some(0), Vec::new()));
}

#[test]
fn who_drains_or_stops_sets_the_weight() {
    let mut world = World::serving();
    world.keepalived_reads();
    hold::set_drained(&world.paths).unwrap();
    world.become_holder();
    world.after(1);
    assert_eq!(world.weight(), Some(0), "the drain lowers it softly by itself");
    assert!(world.status().drained);
    assert!(world.status().summary.contains("; drained"), "{}", world.status().summary);
    world.after(700);
    assert_eq!(world.weight(), Some(0));
    hold::clear_drained(&world.paths).unwrap();
    hold::set_stopping(&world.paths).unwrap();
    world.after(1);
    assert_eq!(world.weight(), Some(0));
    world.confirm();
    hold::clear_stopping(&world.paths).unwrap();
    world.after(1);
    assert_eq!(world.weight(), Some(64));
}

#[test]
fn a_restart_leaves_the_weight_of_a_live_holder() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.tick(10);
    assert_eq!(world.weight(), Some(64));
    let mut world = world.restart(settings());
    world.kernel().ipvs_is_gone = true;
    world.tick(5);
    assert_eq!(world.weight(), Some(64), "before a pass prepared everything it stays");
    world.kernel().ipvs_is_gone = false;
    world.acts();
    world.tick(5);
    assert_eq!(world.weight(), Some(64));
    assert_eq!(world.acts(), [""; 0], "what the run before made is found as it should be");
}

/// While kvip was away for long another node took over. A holder's weight would take the VIPs back as soon as keepalived sees
/// kvip again.
#[test]
fn a_node_that_lost_the_vips_while_kvip_was_away_comes_back_as_a_backup() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.after(1);
    assert_eq!(world.weight(), Some(64));
    for address in ["169.254.255.50", "10.87.2.50", "10.87.2.51"] {
        world.remove_address(address);
    }
    let mut world = world.restart(settings());
    world.kernel().ipvs_is_gone = true;
    world.turn();
    assert_eq!(world.weight(), Some(0), "before anything is programmed");
}

#[test]
fn a_restart_without_the_api_serves_the_saved_state() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.tick(10);
    let mut world = world.restart(settings());
    world.tick(599);
    assert_eq!(world.weight(), Some(64));
    assert!(world.status().cluster.from_disk);
    assert_eq!(world.wanted().unwrap().instances[0].vips.len(), 2);
    world.tick(2);
    assert_eq!(world.weight(), Some(-64));
    world.list(snapshot());
    world.tick(1);
    assert_eq!(world.weight(), Some(64));
    assert!(!world.status().cluster.from_disk);
}

#[test]
fn a_fresh_boot_without_the_api_comes_up_from_the_saved_state() {
    let mut world = World::serving();
    world.tick(10);
    let mut world = world.restart(settings());
    std::fs::write(world.paths.weight(crate::world::vrid()), "-254\n").unwrap();
    world.kernel().table.clear();
    world.kernel().ruleset = None;
    world.tick(1);
    assert_eq!(world.weight(), Some(0));
    assert_eq!(world.kernel().table.len(), 2);
}

/// A kvip that ends right after a reload, and at each start from then on, counts as gone as the new settings say.
#[test]
fn a_new_limit_for_being_gone_counts_at_once() {
    let mut world = World::serving();
    let said = |world: &World| std::fs::read_to_string(world.paths.alive()).unwrap();
    assert!(said(&world).contains("50 60\n"), "{}", said(&world));
    let mut settings = settings();
    settings.vrrp.gone_after = std::time::Duration::from_secs(5);
    world.daemon.take_settings(settings, false);
    world.turn();
    assert!(said(&world).contains("50 5\n"), "{}", said(&world));
}
