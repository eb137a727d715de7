//! What the watches told so far, and when to tell it on.
//!
//! Pure: it reads no clock and does no IO. Owns the rules that nothing is published before every part is complete,
//! that only a real change is, and how often.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::time::Instant;

use super::admit::Update;
use super::claims::claimed;
use super::convert::{Change, Converted, Unread};
use super::{Map, Snapshot};
use crate::ipam::{Claim, Claims, Kind};
use crate::model::{Finding, ObjectKey};

/// The least time between two publications; the first change after a quiet time is published at once.
const BETWEEN: Duration = Duration::from_millis(50);

/// A part of the snapshot: what one watch fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Services,
    EndpointSlices,
    Nodes,
    VipMap,
    Namespaces,
    Settings,
    ServiceCidrs,
    IpAddresses,
    Leases,
}

impl Part {
    pub(super) const ALL: [Self; 9] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Nodes,
        Self::VipMap,
        Self::Namespaces,
        Self::Settings,
        Self::ServiceCidrs,
        Self::IpAddresses,
        Self::Leases,
    ];

    /// The kind of its objects, with which their keys in [`Snapshot::skipped`] begin.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::VipMap => "map of VIPs",
            Self::Namespaces => "Namespace",
            Self::Settings => "ConfigMap",
            Self::ServiceCidrs => "ServiceCIDR",
            Self::IpAddresses => "IPAddress",
            Self::Leases => "Lease",
        }
    }

    /// Whether `key` of [`Snapshot::skipped`] is of this part: an object of its kind, or the kind itself.
    fn has(self, key: &str) -> bool {
        key.strip_prefix(self.kind()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }
}

/// Applies `change` to `snapshot`; whether that changed anything.
pub(super) fn apply(snapshot: &mut Snapshot, change: Change) -> bool {
    match change {
        Change::Service(c) => put(&mut snapshot.services, &mut snapshot.skipped, "Service", c),
        Change::Slice(c) => put(&mut snapshot.slices, &mut snapshot.skipped, "EndpointSlice", c),
        Change::Node(c) => put(&mut snapshot.nodes, &mut snapshot.skipped, "Node", c),
        Change::VipMap(data) => adopt_map(&mut snapshot.vip_map, data.map(OrdMap::from).as_ref()),
        Change::Namespace(c) => put(&mut snapshot.namespaces, &mut snapshot.skipped, "Namespace", c),
        Change::ServiceCidr(c) => put(&mut snapshot.service_cidrs, &mut snapshot.skipped, "ServiceCIDR", c),
        Change::IpAddress(c) => put_claim(snapshot, Kind::IpAddress, "IPAddress", c),
        Change::Lease(c) => put_claim(snapshot, Kind::Lease, "Lease", c),
        Change::Settings(c) => {
            let said = set(&mut snapshot.skipped, format!("ConfigMap {}", c.key), some(c.skipped));
            let text = c.value.as_deref().cloned();
            let changed = snapshot.cluster_settings != text;
            snapshot.cluster_settings = text;
            said | changed
        }
        Change::Unread(unread) => put_unread(snapshot, &unread),
    }
}

fn put_unread(snapshot: &mut Snapshot, unread: &Unread) -> bool {
    let subject = unread.subject();
    let Some(why) = &unread.why else {
        let went = copy(snapshot, unread.part, &unread.key, &Snapshot::default());
        return set(&mut snapshot.skipped, subject, None) | went;
    };
    let text = format!("cannot be understood, so what was known of it stays: {why}");
    let about = match unread.part {
        Part::Services | Part::VipMap => Some(unread.key.clone()),
        Part::EndpointSlices => snapshot.slices.get(&unread.key).map(|slice| slice.service.clone()),
        _ => None,
    };
    let finding = Finding::new(&subject, text).about(about);
    set(&mut snapshot.skipped, subject, Some(vec![finding]))
}

/// Makes the one object of `have` with that key what it is in `from`; whether that changed anything.
fn copy(have: &mut Snapshot, part: Part, key: &ObjectKey, from: &Snapshot) -> bool {
    fn one<K: Ord + Clone, T: PartialEq>(have: &mut Map<K, T>, key: &K, from: &Map<K, T>) -> bool {
        set(have, key.clone(), from.get(key).cloned())
    }
    let mut claim = |kind| {
        let Some(address) = claimed(kind, &key.name) else { return false };
        match from.claims.object(address, kind) {
            Some(claim) => have.claims.insert(claim.clone()),
            None => have.claims.remove(address, kind),
        }
    };
    match part {
        Part::IpAddresses => claim(Kind::IpAddress),
        Part::Leases => claim(Kind::Lease),
        Part::Services => one(&mut have.services, key, &from.services),
        Part::EndpointSlices => one(&mut have.slices, key, &from.slices),
        Part::Nodes => one(&mut have.nodes, &key.name, &from.nodes),
        Part::Namespaces => one(&mut have.namespaces, &key.name, &from.namespaces),
        Part::ServiceCidrs => one(&mut have.service_cidrs, &key.name, &from.service_cidrs),
        Part::VipMap | Part::Settings => adopt_part(have, part, from),
    }
}

fn put_claim(snapshot: &mut Snapshot, kind: Kind, name: &str, object: Converted<String, Claim>) -> bool {
    let said = set(&mut snapshot.skipped, format!("{name} {}", object.key), some(object.skipped));
    let changed = match object.value {
        Some(claim) => snapshot.claims.insert(claim),
        None => claimed(kind, &object.key).is_some_and(|address| snapshot.claims.remove(address, kind)),
    };
    said | changed
}

fn some(findings: Vec<Finding>) -> Option<Vec<Finding>> {
    Some(findings).filter(|findings| !findings.is_empty())
}

fn put<K: Ord + Clone + std::fmt::Display, T: PartialEq>(
    values: &mut Map<K, T>,
    skipped: &mut OrdMap<String, Vec<Finding>>,
    kind: &str,
    object: Converted<K, T>,
) -> bool {
    let said = set(skipped, format!("{kind} {}", object.key), some(object.skipped));
    said | set(values, object.key, object.value)
}

/// Makes `values` hold `value` at `key`; whether it did not before.
fn set<K: Ord + Clone, T: PartialEq + Clone>(values: &mut OrdMap<K, T>, key: K, value: Option<T>) -> bool {
    if values.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => drop(values.insert(key, value)),
        None => drop(values.remove(&key)),
    }
    true
}

/// Makes `have` hold what `fresh` does, by changing only what differs, so that it goes on sharing the rest with its
/// copies; whether anything differed.
fn adopt<K: Ord + Clone, T: PartialEq + Clone>(have: &mut OrdMap<K, T>, fresh: &OrdMap<K, T>) -> bool {
    let differing: Vec<_> = have
        .diff(fresh)
        .map(|item| match item {
            DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => {
                (key.clone(), Some(value.clone()))
            }
            DiffItem::Remove(key, _) => (key.clone(), None),
        })
        .collect();
    let differs = !differing.is_empty();
    for (key, value) in differing {
        set(have, key, value);
    }
    differs
}

fn adopt_map(have: &mut Option<OrdMap<String, String>>, fresh: Option<&OrdMap<String, String>>) -> bool {
    match (have.as_mut(), fresh) {
        (Some(have), Some(fresh)) => adopt(have, fresh),
        (None, None) => false,
        _ => {
            *have = fresh.cloned();
            true
        }
    }
}

fn adopt_claims(have: &mut Claims, kind: Kind, fresh: &Claims) -> bool {
    if have.is_copy_of(fresh) {
        return false;
    }
    let of_kind = |claims: &Claims| {
        let objects = claims.objects().filter(|claim| claim.kind == kind);
        objects.map(|claim| claim.address).collect::<Vec<_>>()
    };
    let mut differ = false;
    for address in of_kind(have) {
        differ |= fresh.object(address, kind).is_none() && have.remove(address, kind);
    }
    for claim in of_kind(fresh).into_iter().filter_map(|address| fresh.object(address, kind)) {
        differ |= have.object(claim.address, kind) != Some(claim) && have.insert(claim.clone());
    }
    differ
}

/// Makes `part` of `have` hold what it does in `fresh`; whether anything differed. Findings are not of it.
fn adopt_part(have: &mut Snapshot, part: Part, fresh: &Snapshot) -> bool {
    match part {
        Part::Services => adopt(&mut have.services, &fresh.services),
        Part::EndpointSlices => adopt(&mut have.slices, &fresh.slices),
        Part::Nodes => adopt(&mut have.nodes, &fresh.nodes),
        Part::VipMap => adopt_map(&mut have.vip_map, fresh.vip_map.as_ref()),
        Part::Namespaces => adopt(&mut have.namespaces, &fresh.namespaces),
        Part::ServiceCidrs => adopt(&mut have.service_cidrs, &fresh.service_cidrs),
        Part::IpAddresses => adopt_claims(&mut have.claims, Kind::IpAddress, &fresh.claims),
        Part::Leases => adopt_claims(&mut have.claims, Kind::Lease, &fresh.claims),
        Part::Settings => {
            let differs = have.cluster_settings != fresh.cluster_settings;
            have.cluster_settings.clone_from(&fresh.cluster_settings);
            differs
        }
    }
}

/// `fresh` with what `known` has of the parts that the server did not let be read; `None` when that is the same. They may
/// be empty only because this run never read them.
pub(super) fn with_unread_of(fresh: &Snapshot, known: &Snapshot) -> Option<Snapshot> {
    let unread = |part: &Part| fresh.skipped.contains_key(part.kind());
    let unread: Vec<Part> = Part::ALL.into_iter().filter(unread).collect();
    if unread.is_empty() {
        return None;
    }
    let mut kept = fresh.clone();
    let differing = unread.into_iter().filter(|part| adopt_part(&mut kept, *part, known)).count();
    (differing > 0).then_some(kept)
}

/// The snapshot as it grows, and what was published of it.
#[derive(Debug, Default)]
pub(super) struct Store {
    snapshot: Snapshot,
    complete: BTreeSet<Part>,
    published: Option<Arc<Snapshot>>,
    published_at: Option<Instant>,
    changed: bool,
    lists: u64,
}

impl Store {
    /// Begins anew, with the cluster whose kube-system has this UID; what was published stays so until all is complete.
    /// What is known of the same cluster stays too, until it is listed: a list changes what differs.
    pub(super) fn begin(&mut self, cluster: String, servers: BTreeSet<IpAddr>) {
        if self.snapshot.cluster.as_ref() != Some(&cluster) {
            self.snapshot = Snapshot { cluster: Some(cluster), ..Snapshot::default() };
        }
        self.snapshot.servers = servers;
        self.complete.clear();
        self.changed = false;
    }

    /// Takes the complete contents of `part`.
    pub(super) fn list(&mut self, part: Part, contents: Vec<Change>) {
        let mut fresh = Snapshot::default();
        for change in contents {
            if let Change::Unread(unread) = &change {
                copy(&mut fresh, part, &unread.key, &self.snapshot);
            }
            apply(&mut fresh, change);
        }
        let others = self.snapshot.skipped.iter().filter(|(key, _)| !part.has(key));
        fresh.skipped.extend(others.map(|(key, findings)| (key.clone(), findings.clone())));
        let said = adopt(&mut self.snapshot.skipped, &fresh.skipped);
        let differs = said | adopt_part(&mut self.snapshot, part, &fresh);
        self.filled(&[part], differs);
    }

    /// Takes that `part` cannot be had: it counts as complete with what is known of it, at first nothing. `finding`
    /// says why, when a person is to mend it; that it cannot be had is said in any case.
    pub(super) fn refuse(&mut self, part: Part, finding: Option<Finding>) {
        let findings = finding.into_iter().collect();
        let said = set(&mut self.snapshot.skipped, part.kind().to_owned(), Some(findings));
        self.filled(&[part], said);
    }

    /// Takes the contents of all parts at once, as a folder of manifests has them.
    pub(super) fn take(&mut self, fresh: &Snapshot) {
        let mut differs = self.snapshot.cluster != fresh.cluster;
        self.snapshot.cluster.clone_from(&fresh.cluster);
        differs |= adopt(&mut self.snapshot.skipped, &fresh.skipped);
        for part in Part::ALL {
            differs |= adopt_part(&mut self.snapshot, part, fresh);
        }
        self.filled(&Part::ALL, differs);
    }

    /// Notes that `parts` are complete, by lists that `differ` from what was known, or not.
    fn filled(&mut self, parts: &[Part], differ: bool) {
        let was_complete = self.is_complete();
        self.complete.extend(parts);
        if !self.is_complete() {
            return;
        }
        let news = if was_complete { differ } else { self.published.as_deref() != Some(&self.snapshot) };
        if news {
            self.changed = true;
            self.lists += 1;
        }
    }

    /// Takes a change that a watch told.
    pub(super) fn change(&mut self, change: Change) {
        let changed = apply(&mut self.snapshot, change);
        self.changed |= changed && self.is_complete();
    }

    fn is_complete(&self) -> bool {
        self.complete.len() == Part::ALL.len()
    }

    /// When there is something to publish; in the past or now when it may be at once.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let ready = self.changed && self.is_complete();
        ready.then(|| self.published_at.map_or(now, |at| at + BETWEEN))
    }

    /// Publishes what there is; `None` when changes since the last time cancelled each other.
    pub(super) fn publish(&mut self, now: Instant) -> Option<Update> {
        self.changed = false;
        if self.published.as_deref() == Some(&self.snapshot) {
            return None;
        }
        let snapshot = Arc::new(self.snapshot.clone());
        self.published = Some(Arc::clone(&snapshot));
        self.published_at = Some(now);
        Some(Update { snapshot, lists: self.lists })
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
