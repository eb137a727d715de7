//! When the store publishes, and what it counts as a list.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::*;
use crate::ipam::{User, Version};
use crate::model::ObjectKey;
use crate::snapshot::{Node, Service};

fn service(name: &str, uid: &str) -> Change {
    let value = Some(Service { uid: uid.into(), ..Service::default() }.into());
    Change::Service(Converted { key: ObjectKey::new("default", name), value, skipped: vec![] })
}

fn without(name: &str) -> Change {
    Change::Service(Converted { key: ObjectKey::new("default", name), value: None, skipped: vec![] })
}

fn node(name: &str, said: &[&str]) -> Change {
    let skipped = said.iter().map(|text| Finding::new(name, *text)).collect();
    Change::Node(Converted { key: name.into(), value: Some(Node::default().into()), skipped })
}

/// A store that began and has all parts, and the time.
fn complete() -> (Store, Instant) {
    let mut store = Store::default();
    fill(&mut store, "a", vec![service("web", "1")]);
    (store, Instant::now())
}

fn fill(store: &mut Store, cluster: &str, services: Vec<Change>) {
    store.begin(cluster.into(), BTreeSet::new());
    for part in Part::ALL.into_iter().filter(|part| *part != Part::Services) {
        store.list(part, vec![]);
    }
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
    store.begin("a".into(), BTreeSet::new());
    let (last, others) = Part::ALL.split_last().unwrap();
    for &part in others {
        store.list(part, vec![]);
        store.change(service("web", "1"));
        assert_eq!(store.due(now), None);
    }
    store.list(*last, vec![]);
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
    store.begin("a".into(), BTreeSet::new());
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

#[test]
fn what_cannot_be_had_counts_as_complete_with_what_is_known() {
    let now = Instant::now();
    let mut store = Store::default();
    store.begin("a".into(), BTreeSet::new());
    for part in Part::ALL.into_iter().filter(|part| *part != Part::Namespaces) {
        store.list(part, vec![]);
    }
    assert_eq!(store.due(now), None);
    store.refuse(Part::Namespaces, Some(Finding::new("cluster", "forbidden")));
    assert_eq!(store.due(now), Some(now));
    let first = store.publish(now).unwrap();
    assert_eq!(first.snapshot.skipped["Namespace"].len(), 1);

    store.list(Part::Namespaces, vec![namespace("shop")]);
    let second = store.publish(now).unwrap();
    assert!(second.snapshot.skipped.is_empty(), "it is there after all");
    assert!(second.snapshot.namespaces.contains_key("shop"));

    store.begin("a".into(), BTreeSet::new());
    for part in Part::ALL {
        store.refuse(part, None);
    }
    let third = store.publish(now).unwrap().snapshot;
    assert_eq!(third.namespaces, second.snapshot.namespaces, "the same is known");
    assert!(third.skipped["Namespace"].is_empty(), "and that it is not read is said, to no one");
    for part in Part::ALL {
        store.refuse(part, None);
    }
    assert_eq!(store.publish(now), None, "once");
    store.begin("b".into(), BTreeSet::new());
    for part in Part::ALL {
        store.refuse(part, None);
    }
    assert!(
        store.publish(now).unwrap().snapshot.namespaces.is_empty(),
        "nothing is known of another cluster"
    );
}

/// The extras of a snapshot whose `unread` parts a fresh start was refused, when all was known before.
#[track_caller]
fn check_unread(unread: &[Part], want: (usize, Option<&str>, usize)) {
    let (mut before, mut after) = (Store::default(), Store::default());
    fill(&mut before, "a", vec![]);
    fill(&mut after, "a", vec![]);
    before.list(Part::Namespaces, vec![namespace("shop")]);
    let settings = Converted {
        key: ObjectKey::new("kvip-system", "kvip"),
        value: Some(Arc::new("a = 1".to_owned())),
        skipped: vec![],
    };
    before.list(Part::Settings, vec![Change::Settings(settings)]);
    before.snapshot.claims = [claim(Kind::IpAddress), claim(Kind::Lease)].into_iter().collect();
    for part in unread {
        after.refuse(*part, None);
    }
    let kept = with_unread_of(&after.snapshot, &before.snapshot);
    let kept = kept.as_ref().unwrap_or(&after.snapshot);
    assert_eq!((kept.namespaces.len(), kept.cluster_settings.as_deref(), kept.claims.len()), want);
    assert_eq!(with_unread_of(kept, &before.snapshot), None, "the same again");
}

#[test]
fn what_a_fresh_start_is_not_let_read_is_what_was_known_and_what_it_reads_counts() {
    check_unread(&[], (0, None, 0));
    check_unread(&[Part::Namespaces], (1, None, 0));
    check_unread(&[Part::Settings, Part::Leases], (0, Some("a = 1"), 1));
    check_unread(&[Part::IpAddresses, Part::Leases], (0, None, 2));
}

fn namespace(name: &str) -> Change {
    let labels = BTreeMap::from([("team".to_owned(), name.to_owned())]);
    Change::Namespace(Converted { key: name.into(), value: Some(labels.into()), skipped: vec![] })
}

#[test]
fn settings_are_text_and_their_absence_is_a_finding() {
    let (mut store, now) = complete();
    store.publish(now);
    let settings = |text: Option<&str>, said: &[&str]| {
        let skipped = said.iter().map(|said| Finding::new("kvip-system/kvip", *said)).collect();
        let value = text.map(|text| Arc::new(text.to_owned()));
        Change::Settings(Converted { key: ObjectKey::new("kvip-system", "kvip"), value, skipped })
    };
    store.change(settings(Some("a = 1"), &[]));
    assert_eq!(store.publish(now).unwrap().snapshot.cluster_settings.as_deref(), Some("a = 1"));
    store.change(settings(None, &["no key"]));
    let update = store.publish(now).unwrap();
    assert_eq!((update.snapshot.cluster_settings.clone(), update.snapshot.skipped.len()), (None, 1));
    store.list(Part::Settings, vec![]);
    assert!(store.publish(now).unwrap().snapshot.skipped.is_empty());
}

fn claim(kind: Kind) -> Claim {
    let user = User { service: ObjectKey::new("default", "web"), uid: "u".into(), ports: [].into() };
    Claim {
        address: [10, 87, 2, 50].into(),
        kind,
        users: vec![user],
        pool: None,
        share_key: None,
        released: None,
        created: 0,
        version: Version::default(),
    }
}

#[test]
fn an_address_and_a_lease_for_it_come_and_go_each_by_itself() {
    let address = |there: bool| {
        let value = there.then(|| claim(Kind::IpAddress).into());
        Change::IpAddress(Converted { key: "10.87.2.50".into(), value, skipped: vec![] })
    };
    let lease = |there: bool| {
        let value = there.then(|| claim(Kind::Lease).into());
        Change::Lease(Converted { key: "kvip-0a570232".into(), value, skipped: vec![] })
    };
    let (mut store, _) = complete();
    let count = |store: &Store, want: usize| assert_eq!(store.snapshot.claims.len(), want);
    store.change(address(true));
    store.change(lease(true));
    count(&store, 2);
    store.list(Part::Leases, vec![]);
    count(&store, 1);
    store.list(Part::Leases, vec![lease(true)]);
    store.change(address(false));
    count(&store, 1);
    store.list(Part::IpAddresses, vec![address(true)]);
    count(&store, 2);
    store.change(lease(false));
    assert!(!store.snapshot.claims.any_lease());
}

#[test]
fn a_change_leaves_all_other_parts_shared_with_what_was_published() {
    let (mut store, now) = complete();
    store.change(node("node-a", &[]));
    let first = store.publish(now).unwrap().snapshot;
    store.change(service("shop", "1"));
    store.list(Part::Nodes, vec![node("node-a", &[])]);
    let second = store.publish(now).unwrap().snapshot;
    assert!(first.nodes.ptr_eq(&second.nodes), "listed anew, and the same");
    assert!(first.slices.ptr_eq(&second.slices));
    assert_eq!(first.services.diff(&second.services).count(), 1);
    store.begin("a".into(), BTreeSet::new());
    let again = vec![service("web", "1"), service("shop", "1"), service("new", "1")];
    for part in Part::ALL {
        let contents = if part == Part::Services { again.clone() } else { vec![] };
        store.list(part, contents);
    }
    let third = store.publish(now).unwrap().snapshot;
    let (before, after) = (&second.services, &third.services);
    assert!(before.iter().all(|(key, value)| Arc::ptr_eq(value, &after[key])), "a new session shares too");
}

thread_local! {
    static COMPARED: Cell<usize> = const { Cell::new(0) };
}

/// Counts how often it is compared.
#[derive(Debug, Clone, Copy, Eq)]
struct Counted(u32);

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Ord for Counted {
    fn cmp(&self, other: &Self) -> Ordering {
        COMPARED.set(COMPARED.get() + 1);
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Counted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[test]
fn maps_that_share_are_compared_at_the_cost_of_what_differs() {
    const MANY: u32 = 20_000;
    let compared = |job: &dyn Fn() -> bool| {
        COMPARED.set(0);
        assert!(job());
        COMPARED.get()
    };
    let map: OrdMap<Counted, Counted> = (0..MANY).map(|n| (Counted(n), Counted(n))).collect();
    let copy = map.clone();
    assert_eq!(compared(&|| copy == map), 0);
    for key in [0, MANY / 2, MANY - 1, MANY + 1] {
        let mut changed = map.clone();
        changed.insert(Counted(key), Counted(MANY));
        let count = compared(&|| changed.diff(&map).count() == 1);
        assert!(count < 100, "{count} comparisons after a change at {key} of {MANY}");
        changed.insert(Counted(key), Counted(key));
        let count = compared(&|| key > MANY || changed == map);
        assert!(count < 100, "{count} comparisons after a change there and back at {key} of {MANY}");
    }
}
