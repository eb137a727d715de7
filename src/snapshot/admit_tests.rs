//! What is taken and what is held.

use super::*;
use crate::ipam::{Claim, Claims, Kind as ClaimKind, User, Version};
use crate::model::Family;
use crate::snapshot::{EndpointSlice, Node, Service};

fn vips(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.vip_map.iter().flatten().filter_map(|(key, _)| key.parse().ok()).collect()
}

/// A snapshot of cluster `uid` with `count` VIPs, Services with a slice each, and Nodes.
fn cluster(uid: &str, count: u8) -> Snapshot {
    let mut snapshot = Snapshot { cluster: Some(uid.into()), ..Snapshot::default() };
    let own = ObjectKey::new("default", "kubernetes");
    let keys = (0..count).map(|n| ObjectKey::new("default", format!("web-{n}")));
    for key in keys.chain([own]) {
        let slice = ObjectKey::new("default", format!("{}-x7", key.name));
        let of = EndpointSlice { service: key.clone(), family: Family::V4, ports: vec![], endpoints: vec![] };
        snapshot.slices.insert(slice, of.into());
        snapshot.services.insert(key, Service::default().into());
    }
    snapshot.nodes = (0..count).map(|n| (format!("node-{n}"), Node::default())).collect();
    snapshot.claims = (0..count).map(claim).collect();
    snapshot.vip_map =
        Some((0..count).map(|n| (format!("10.87.2.{n}"), format!("default/web-{n}"))).collect());
    snapshot
}

fn claim(n: u8) -> Claim {
    let user = User { service: ObjectKey::new("default", "web"), uid: "u".into(), ports: [].into() };
    Claim {
        address: [10, 87, 2, n].into(),
        kind: ClaimKind::IpAddress,
        users: vec![user],
        pool: None,
        share_key: None,
        released: None,
        created: 0,
        version: Version::default(),
    }
}

fn update(lists: u64, snapshot: &Snapshot) -> Update {
    Update { snapshot: Arc::new(snapshot.clone()), lists }
}

/// The kinds that are held when `change` came to an accepted cluster of two of each, with the list number given.
fn check(lists: u64, change: impl FnOnce(&mut Snapshot), want: &[Kind]) {
    let accepted = update(1, &cluster("a", 2));
    let mut next = cluster("a", 2);
    change(&mut next);
    let kinds = match admit(Some(&accepted), &update(lists, &next), &vips, None) {
        Admission::Take => vec![],
        Admission::Hold(held) => held.reasons.iter().map(kind).collect(),
    };
    assert_eq!(kinds, want);
}

fn kind(reason: &Reason) -> Kind {
    match reason {
        Reason::Gone { what, .. } => *what,
        Reason::OtherCluster { .. } => panic!("another cluster"),
    }
}

#[test]
fn the_first_ever_is_taken() {
    assert_eq!(admit(None, &update(1, &Snapshot::default()), &vips, None), Admission::Take);
}

#[test]
fn another_cluster_is_held_by_list_or_event() {
    let accepted = update(1, &cluster("a", 2));
    for lists in [1, 2] {
        let Admission::Hold(held) = admit(Some(&accepted), &update(lists, &cluster("b", 2)), &vips, None)
        else {
            panic!("taken")
        };
        let text = "keeping the last state: this is another cluster: kube-system has UID b, not a";
        assert_eq!(held.to_string(), text);
    }
}

#[test]
fn a_cluster_that_is_not_known_is_no_other() {
    let unknown = Snapshot { cluster: None, ..cluster("a", 2) };
    let known = update(1, &cluster("a", 2));
    assert_eq!(admit(Some(&known), &update(2, &unknown), &vips, None), Admission::Take);
    assert_eq!(admit(Some(&update(1, &unknown)), &known, &vips, None), Admission::Take);
}

#[test]
fn a_fresh_list_without_anything_of_a_kind_is_held() {
    check(2, |s| s.vip_map = None, &[Kind::Vips]);
    check(2, |s| s.vip_map = Some(imbl::OrdMap::new()), &[Kind::Vips]);
    check(2, |s| s.vip_map = Some(vec![("10.9.9.9", "")].into()), &[Kind::Vips]);
    check(
        2,
        |s| {
            s.services = std::mem::take(&mut s.services)
                .into_iter()
                .filter(|(key, _)| key.name == "kubernetes")
                .collect();
        },
        &[Kind::Services],
    );
    check(2, |s| s.slices.clear(), &[Kind::EndpointSlices]);
    check(2, |s| s.nodes.clear(), &[Kind::Nodes]);
    check(2, |s| s.claims = Claims::default(), &[Kind::Claims]);
    check(2, |s| s.claims = [claim(9)].into_iter().collect(), &[Kind::Claims]);
    let all = [Kind::Vips, Kind::Services, Kind::EndpointSlices, Kind::Nodes, Kind::Claims];
    check(2, |s| *s = Snapshot { cluster: Some("a".into()), ..Snapshot::default() }, &all);
}

#[test]
fn watch_events_may_remove_everything() {
    check(1, |s| *s = Snapshot { cluster: Some("a".into()), ..Snapshot::default() }, &[]);
}

#[test]
fn a_fresh_list_may_remove_some_of_a_kind_or_the_only_one() {
    check(2, |s| drop(s.vip_map.as_mut().unwrap().remove("10.87.2.0")), &[]);
    check(2, |s| drop(s.nodes.remove("node-0")), &[]);
    check(2, |s| assert!(s.claims.remove([10, 87, 2, 0].into(), ClaimKind::IpAddress)), &[]);
    let one = update(0, &cluster("a", 1));
    let none = Snapshot { cluster: Some("a".into()), ..Snapshot::default() };
    assert_eq!(admit(Some(&one), &update(1, &none), &vips, None), Admission::Take);
}

#[test]
fn what_is_held_stays_held_through_watch_events_and_ends_when_things_return() {
    let accepted = update(1, &cluster("a", 2));
    let mut empty = Snapshot { cluster: Some("a".into()), ..Snapshot::default() };
    let held = |snapshot: &Snapshot| admit(Some(&accepted), &update(2, snapshot), &vips, None);
    assert_ne!(held(&empty), Admission::Take);
    empty.nodes.insert("new".into(), Node::default().into());
    assert_ne!(held(&empty), Admission::Take);
    assert_eq!(held(&cluster("a", 2)), Admission::Take);
}

#[test]
fn the_saved_snapshot_counts_as_before_any_list() {
    let accepted = Update::saved(cluster("a", 2));
    let empty = Snapshot { cluster: Some("a".into()), ..Snapshot::default() };
    assert_ne!(admit(Some(&accepted), &update(1, &empty), &vips, None), Admission::Take);
}

#[test]
fn an_admin_accepts_exactly_what_was_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("accept");
    let saved = Update::saved(cluster("a", 2));
    let ask = |next: &Snapshot| {
        let accept = accepted(&path).unwrap();
        admit(Some(&saved), &update(1, next), &vips, accept.as_deref())
    };
    let Admission::Hold(held) = ask(&cluster("b", 3)) else { panic!("taken") };
    accept(&path, &held.id).unwrap();
    let mut later = cluster("b", 3);
    later.slices.clear();
    assert_ne!(ask(&later), Admission::Take, "its slices went too: another reason");
    assert_ne!(ask(&cluster("b", 4)), Admission::Take, "other VIPs");
    assert_ne!(ask(&cluster("c", 3)), Admission::Take, "a third cluster");
    assert_eq!(ask(&cluster("b", 3)), Admission::Take);
    clear(&path).unwrap();
    clear(&path).unwrap();
    assert_ne!(ask(&cluster("b", 3)), Admission::Take);
}

#[test]
fn a_claim_that_changes_its_kind_is_not_gone() {
    let lease = |n| Claim { kind: ClaimKind::Lease, ..claim(n) };
    check(2, |s| s.claims = [lease(0), lease(1)].into_iter().collect(), &[]);
}

/// The update of a run that may not read IPAddresses and so has no claim.
fn unread(uid: &str) -> Update {
    let mut fresh = cluster(uid, 2);
    fresh.claims = Claims::default();
    fresh.skipped.insert("IPAddress".into(), vec![]);
    update(1, &fresh)
}

#[test]
fn claims_that_may_not_be_read_after_a_restart_stay_and_hold_nothing() {
    for count in [1, 2] {
        let saved = Update::saved(cluster("a", count));
        let update = unread("a").with_unread_of(Some(&saved));
        assert_eq!(update.snapshot.claims, saved.snapshot.claims);
        assert_eq!(admit(Some(&saved), &update, &vips, None), Admission::Take);
    }
}

#[test]
fn what_another_cluster_had_is_none_of_it() {
    let saved = Update::saved(cluster("b", 2));
    assert_eq!(unread("a").with_unread_of(Some(&saved)), unread("a"));
    assert_eq!(
        unread("a").with_unread_of(None),
        unread("a"),
        "nor is anything known at the very first start"
    );
    let nameless = |update: Update| {
        let snapshot = Snapshot { cluster: None, ..(*update.snapshot).clone() };
        Update { snapshot: Arc::new(snapshot), ..update }
    };
    let (fresh, saved) = (nameless(unread("a")), nameless(saved));
    assert_eq!(fresh.clone().with_unread_of(Some(&saved)), fresh);
}
