//! Connection tracking is told of each VIP that comes or goes.

use std::sync::Arc;

use kvip::model::{Finding, ObjectKey};
use kvip::net::{KUBE_PROXY_DEVICE, Link};

use crate::dsr::dsr_snapshot;
use crate::world::{World, dns, ip, nginx, settings, snapshot, vrid};

#[test]
fn each_move_is_told_and_nothing_else_is() {
    let mut world = World::serving();
    let told = world.moves().expect("what may have moved while kvip was not there");
    assert_eq!((told.here.len(), told.frontends.contains(&nginx())), (0, true));
    world.keepalived_reads();
    world.become_holder();
    world.turn();
    let told = world.moves().expect("VIPs came");
    assert!(told.here.contains(&nginx().vip) && told.own.contains(&ip("10.87.2.4")), "{told:?}");
    world.event(snapshot());
    world.tick(90);
    assert_eq!(world.moves(), None);
    world.lose(vrid());
    world.turn();
    assert_eq!(world.moves().expect("VIPs went").here.len(), 0);
}

#[test]
fn only_mode_nat_hands_packets_on_by_the_main_table() {
    let mut world = World::new(settings());
    world.list(dsr_snapshot());
    world.turn();
    assert_eq!(world.moves().unwrap().frontends, [].into());
}

/// A VIP that kube-proxy balances is at all times an address of a host in its ipvs mode; others are as without it.
#[test]
fn what_is_on_kube_proxys_device_is_never_handed_on() {
    let mut world = World::new(settings());
    let mut snapshot = snapshot();
    let service = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(service).external_ips = vec![nginx().vip];
    world
        .kernel()
        .facts
        .send_modify(|facts| _ = facts.links.insert(KUBE_PROXY_DEVICE.into(), Link::default()));
    world.list(snapshot);
    world.turn();
    assert_eq!(world.moves().unwrap().frontends, [dns()].into());
}

#[test]
fn what_stands_in_the_way_is_told() {
    let mut world = World::serving();
    let trouble = Finding::new("conntrack", "nf_conntrack_netlink is not loaded");
    world.conntrack_fails(Some(trouble.clone()));
    world.turn();
    assert!(world.findings().contains(&trouble.to_string()), "{:?}", world.findings());
    world.conntrack_fails(None);
    world.turn();
    assert!(!world.findings().contains(&trouble.to_string()), "{:?}", world.findings());
}
