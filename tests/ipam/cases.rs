//! Single stories, each a thing that people do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvip::ipam::{Claims, Refusal, granted};
use kvip::model::ObjectKey;
use tokio::time::sleep;

use crate::cluster::{Cluster, Event, Shape, address};

/// Runs a story in a cluster whose three allocators are up.
fn story(tell: impl AsyncFnOnce(&mut Cluster)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::new(true, 7);
        for node in 0..3 {
            cluster.start(node, [0, 0], false);
        }
        tell(&mut cluster).await;
        cluster.end_well().await;
    });
}

fn shape(fixed: Option<u8>, shared: bool, port: u16) -> Shape {
    Shape { policy: 0, fixed, shared, ports: vec![port] }
}

fn ask(name: u8, shape: Shape) -> Event {
    Event::Ask { name, again: false, shape }
}

/// The last numbers of the addresses that a Service has.
fn has(cluster: &Cluster, name: u8) -> Vec<String> {
    let truth = cluster.api.truth.borrow();
    let request = truth.requests.get(&ObjectKey::new("default", format!("service-{name}"))).unwrap();
    let grants = granted(request, &truth.claims).addresses;
    grants.iter().map(|grant| grant.address.to_string()).collect()
}

fn refusals(cluster: &Cluster, name: u8) -> Vec<String> {
    let key = ObjectKey::new("default", format!("service-{name}"));
    let allocators = cluster.allocators.iter().flatten();
    let outcomes = allocators.map(|(allocator, _)| Arc::clone(&allocator.outcomes.borrow()));
    let first = outcomes.filter_map(|all| all.get(&key).cloned()).find(|outcome| outcome.rank == Some(0));
    first.unwrap().refusals.iter().map(Refusal::to_string).collect()
}

#[test]
fn a_full_pool_says_how_full_it_is_and_a_freed_address_goes_on_after_its_rest() {
    story(async |cluster| {
        for name in 0..6 {
            cluster.happen(&ask(name, shape(None, false, 80)));
            sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(has(cluster, 5), Vec::<String>::new());
        let full = "no IPv4 address is free: pool lan (10.0.0.1-10.0.0.5): 5 of 5 in use";
        assert_eq!(refusals(cluster, 5), [full]);
        let freed = has(cluster, 0);
        cluster.happen(&Event::Delete { name: 0 });
        sleep(Duration::from_secs(200)).await;
        let rests = "no IPv4 address is free: pool lan (10.0.0.1-10.0.0.5): 4 of 5 in use, 1 given back and still resting";
        assert_eq!(refusals(cluster, 5), [rests]);
        sleep(Duration::from_secs(200)).await;
        assert_eq!(has(cluster, 5), freed);
    });
}

#[test]
fn a_service_made_again_asks_anew_and_may_name_its_address_at_once() {
    story(async |cluster| {
        cluster.happen(&ask(0, shape(Some(3), false, 80)));
        sleep(Duration::from_secs(100)).await;
        assert_eq!(has(cluster, 0), ["10.0.0.3"]);
        cluster.happen(&Event::Ask { name: 0, again: true, shape: shape(Some(3), false, 80) });
        assert_eq!(has(cluster, 0), Vec::<String>::new(), "the claim names another UID");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(has(cluster, 0), ["10.0.0.3"]);
    });
}

#[test]
fn of_two_sharers_of_one_port_one_is_told_who_has_it() {
    story(async |cluster| {
        cluster.happen(&ask(0, shape(Some(2), true, 80)));
        cluster.happen(&ask(1, shape(Some(2), true, 80)));
        cluster.happen(&ask(2, shape(Some(2), true, 443)));
        sleep(Duration::from_secs(100)).await;
        let (one, other) = (has(cluster, 0), has(cluster, 1));
        assert_eq!(one.len() + other.len(), 1, "{one:?} {other:?}");
        assert_eq!(has(cluster, 2), ["10.0.0.2"]);
        let (winner, loser) = if one.is_empty() { (1, 0) } else { (0, 1) };
        let text = format!("port tcp 80 of the shared 10.0.0.2 is in use by default/service-{winner}");
        assert_eq!(refusals(cluster, loser), [text]);
    });
}

#[test]
fn another_wish_moves_a_service_and_keeps_what_it_has_until_then() {
    story(async |cluster| {
        cluster.happen(&ask(0, shape(Some(1), false, 80)));
        cluster.happen(&ask(1, shape(Some(2), false, 80)));
        sleep(Duration::from_secs(100)).await;
        cluster.happen(&ask(0, shape(Some(2), false, 80)));
        sleep(Duration::from_secs(100)).await;
        assert_eq!(has(cluster, 0), ["10.0.0.1"]);
        assert_eq!(refusals(cluster, 0), ["10.0.0.2 is in use by default/service-1"]);
        cluster.happen(&Event::Delete { name: 1 });
        sleep(Duration::from_secs(500)).await;
        assert_eq!(has(cluster, 0), ["10.0.0.2"]);
    });
}

#[test]
fn both_families_or_none() {
    story(async |cluster| {
        for last in 1..=5 {
            cluster.api.add_foreign(address(last));
        }
        cluster.happen(&ask(0, Shape { policy: 2, ..shape(None, false, 80) }));
        cluster.happen(&ask(1, Shape { policy: 1, ..shape(None, false, 80) }));
        sleep(Duration::from_secs(400)).await;
        assert_eq!(has(cluster, 0), Vec::<String>::new());
        assert_eq!(has(cluster, 1).len(), 1, "one is enough where two are preferred");
    });
}

#[test]
fn when_the_first_allocator_is_dead_the_next_one_acts_after_the_delay() {
    story(async |cluster| {
        cluster.happen(&Event::Crash { node: 0 });
        cluster.happen(&Event::Crash { node: 1 });
        cluster.happen(&ask(0, shape(None, false, 80)));
        sleep(Duration::from_secs(40)).await;
        assert_eq!(has(cluster, 0).len(), 1);
    });
}

/// Claims with what they are at; another write is another state.
fn claims(cluster: &Cluster) -> Claims {
    cluster.api.truth.borrow().claims.clone()
}

#[test]
fn a_node_whose_settings_take_no_services_leaves_those_of_the_others_alone() {
    story(async |cluster| {
        for name in 0..3 {
            cluster.happen(&ask(name, shape(None, false, 80)));
        }
        sleep(Duration::from_secs(100)).await;
        let given = claims(cluster);
        assert_eq!(given.len(), 3);
        cluster.agree.store(false, Ordering::Relaxed);
        for node in [0, 1] {
            cluster.start_set_otherwise(node);
            let calls = cluster.api.calls();
            sleep(Duration::from_secs(24 * 3600)).await;
            assert_eq!(claims(cluster), given, "not even for a moment");
            let looks = cluster.api.calls() - calls;
            assert!(looks <= 2 * 3 * (24 * 12 + 10), "{looks} calls in a day");
        }
        cluster.happen(&Event::Delete { name: 0 });
        sleep(Duration::from_secs(400)).await;
        assert_eq!(claims(cluster).len(), 2, "but one that is gone is gone");
    });
}

#[test]
fn once_no_node_takes_services_any_more_what_they_have_is_given_back() {
    story(async |cluster| {
        cluster.happen(&ask(0, shape(None, false, 80)));
        sleep(Duration::from_secs(100)).await;
        cluster.agree.store(false, Ordering::Relaxed);
        for node in 0..3 {
            cluster.start_set_otherwise(node);
            sleep(Duration::from_secs(1000)).await;
            assert_eq!(has(cluster, 0).len(), 1);
        }
        cluster.agree.store(true, Ordering::Relaxed);
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(claims(cluster).len(), 0);
    });
}

#[test]
fn a_node_that_has_not_heard_the_others_yet_waits() {
    story(async |cluster| {
        cluster.happen(&ask(0, shape(None, false, 80)));
        sleep(Duration::from_secs(100)).await;
        let given = claims(cluster);
        cluster.start_set_otherwise(0);
        cluster.start_set_otherwise(1);
        sleep(Duration::from_secs(250)).await;
        cluster.agree.store(false, Ordering::Relaxed);
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(claims(cluster), given);
    });
}

#[test]
fn a_service_that_changes_itself_gives_its_address_back_at_once() {
    story(async |cluster| {
        for name in 0..2 {
            cluster.happen(&ask(name, shape(None, false, 80)));
        }
        sleep(Duration::from_secs(100)).await;
        cluster.api.take_class_away(&ObjectKey::new("default", "service-0"));
        sleep(Duration::from_secs(10)).await;
        assert_eq!(resting(cluster), 1);

        // By others' settings it may well ask.
        cluster.agree.store(false, Ordering::Relaxed);
        cluster.api.take_class_away(&ObjectKey::new("default", "service-1"));
        sleep(Duration::from_secs(200)).await;
        assert_eq!(resting(cluster), 1);
        cluster.agree.store(true, Ordering::Relaxed);
        sleep(Duration::from_secs(300)).await;
        assert_eq!(resting(cluster), 1, "the first one's rest is over");
    });
}

fn resting(cluster: &Cluster) -> usize {
    claims(cluster).objects().filter(|claim| claim.released.is_some()).count()
}
