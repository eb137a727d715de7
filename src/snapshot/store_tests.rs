//! When the store publishes, and what it counts as a list.

use super::*;
use crate::model::ObjectKey;
use crate::snapshot::{Node, Service};

fn service(name: &str, uid: &str) -> Change {
    let value = Some(Service { uid: uid.into(), ..Service::default() });
    Change::Service(Converted { key: ObjectKey::new("default", name), value, skipped: vec![] })
}

fn without(name: &str) -> Change {
    Change::Service(Converted { key: ObjectKey::new("default", name), value: None, skipped: vec![] })
}

fn node(name: &str, said: &[&str]) -> Change {
    let skipped = said.iter().map(|text| Finding::new(name, *text)).collect();
    Change::Node(Converted { key: name.into(), value: Some(Node::default()), skipped })
}

/// A store that began and has all parts, and the time.
fn complete() -> (Store, Instant) {
    let mut store = Store::default();
    fill(&mut store, "a", vec![service("web", "1")]);
    (store, Instant::now())
}

fn fill(store: &mut Store, cluster: &str, services: Vec<Change>) {
    store.begin(cluster.into());
    store.list(Part::EndpointSlices, vec![]);
    store.list(Part::Nodes, vec![]);
    store.list(Part::ConfigMap, vec![]);
    store.list(Part::Services, services);
}

/// What is published now, if anything: the number of lists, and the Services.
fn published(store: &mut Store, now: Instant) -> Option<(u64, Vec<String>)> {
    store.due(now).filter(|due| *due <= now)?;
    let update = store.publish(now)?;
    Some((update.lists, update.snapshot.services.keys().map(|k| k.name.clone()).collect()))
}

#[test]
fn nothing_before_all_parts_are_complete() {
    let now = Instant::now();
    let mut store = Store::default();
    store.begin("a".into());
    for part in [Part::Services, Part::EndpointSlices, Part::Nodes] {
        store.list(part, vec![]);
        store.change(service("web", "1"));
        assert_eq!(store.due(now), None);
    }
    store.list(Part::ConfigMap, vec![]);
    assert_eq!(published(&mut store, now), Some((1, vec!["web".into()])));
    assert_eq!(store.due(now), None);
}

#[test]
fn an_empty_cluster_is_a_snapshot_too() {
    let mut store = Store::default();
    fill(&mut store, "a", vec![]);
    assert_eq!(published(&mut store, Instant::now()), Some((1, vec![])));
}

#[test]
fn the_first_change_at_once_and_a_burst_together() {
    let (mut store, start) = complete();
    assert!(published(&mut store, start).is_some());
    store.change(service("a", "1"));
    assert_eq!(store.due(start), Some(start + BETWEEN));
    store.change(service("b", "1"));
    assert_eq!(published(&mut store, start + BETWEEN / 2), None);
    assert_eq!(published(&mut store, start + BETWEEN), Some((1, vec!["a".into(), "b".into(), "web".into()])));
    let later = start + BETWEEN * 10;
    store.change(without("a"));
    assert!(store.due(later).is_some_and(|due| due <= later), "at once after a quiet time");
}

#[test]
fn what_changes_nothing_is_not_published() {
    let (mut store, now) = complete();
    assert!(published(&mut store, now).is_some());
    let later = now + BETWEEN;
    store.change(service("web", "1"));
    store.change(without("never-there"));
    store.list(Part::Services, vec![service("web", "1")]);
    assert_eq!(store.due(later), None);
    store.change(service("web", "2"));
    store.change(service("web", "1"));
    assert_eq!(store.publish(later), None, "there and back");
}

#[test]
fn a_list_counts_when_it_brings_news() {
    let (mut store, now) = complete();
    assert_eq!(published(&mut store, now), Some((1, vec!["web".into()])));
    store.list(Part::Services, vec![service("web", "1")]);
    store.change(service("b", "1"));
    let next = now + BETWEEN;
    assert_eq!(published(&mut store, next), Some((1, vec!["b".into(), "web".into()])));
    store.list(Part::Services, vec![]);
    assert_eq!(published(&mut store, next + BETWEEN), Some((2, vec![])));
}

#[test]
fn a_new_session_publishes_nothing_until_complete_and_only_news() {
    let (mut store, now) = complete();
    assert!(published(&mut store, now).is_some());
    let mut next = now + BETWEEN;
    store.begin("a".into());
    store.list(Part::Services, vec![]);
    assert_eq!(store.due(next), None);
    fill(&mut store, "a", vec![service("web", "1")]);
    assert_eq!(store.due(next), None, "the same again");
    fill(&mut store, "b", vec![service("web", "1")]);
    assert_eq!(published(&mut store, next), Some((2, vec!["web".into()])), "another cluster");
    next += BETWEEN;
    fill(&mut store, "b", vec![]);
    assert_eq!(published(&mut store, next), Some((3, vec![])));
}

#[test]
fn findings_come_and_go_with_their_object() {
    let (mut store, _) = complete();
    store.change(node("node-a", &["odd"]));
    assert_eq!(store.snapshot.skipped["Node node-a"].len(), 1);
    store.list(Part::Services, vec![]);
    assert_eq!(store.snapshot.skipped.len(), 1, "another part's list");
    store.change(node("node-a", &[]));
    assert!(store.snapshot.skipped.is_empty());
    store.list(Part::Nodes, vec![node("node-b", &["odd"])]);
    store.list(Part::Nodes, vec![]);
    assert!(store.snapshot.skipped.is_empty());
}
