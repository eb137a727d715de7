//! What the watches told so far, and when to tell it on.
//!
//! Pure: it reads no clock and does no IO. Owns the rules that nothing is published before every part is complete,
//! that only a real change is, and how often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Snapshot;
use super::admit::Update;
use super::convert::{Change, Converted};
use crate::model::Finding;

/// The least time between two publications; the first change after a quiet time is published at once.
const BETWEEN: Duration = Duration::from_millis(50);

/// A part of the snapshot: what one watch fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    Services,
    EndpointSlices,
    Nodes,
    ConfigMap,
}

impl Part {
    pub(super) const ALL: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ConfigMap];
}

/// Applies `change` to `snapshot`; whether that changed anything.
pub(super) fn apply(snapshot: &mut Snapshot, change: Change) -> bool {
    match change {
        Change::Service(c) => put(&mut snapshot.services, &mut snapshot.skipped, "Service", c),
        Change::Slice(c) => put(&mut snapshot.slices, &mut snapshot.skipped, "EndpointSlice", c),
        Change::Node(c) => put(&mut snapshot.nodes, &mut snapshot.skipped, "Node", c),
        Change::VipMap(data) => {
            let changed = snapshot.vip_map != data;
            snapshot.vip_map = data;
            changed
        }
    }
}

fn put<K: Ord + std::fmt::Display, T: PartialEq>(
    values: &mut BTreeMap<K, T>,
    skipped: &mut BTreeMap<String, Vec<Finding>>,
    kind: &str,
    object: Converted<K, T>,
) -> bool {
    let findings = Some(object.skipped).filter(|findings| !findings.is_empty());
    let said = set(skipped, format!("{kind} {}", object.key), findings);
    set(values, object.key, object.value) || said
}

fn set<K: Ord, T: PartialEq>(values: &mut BTreeMap<K, T>, key: K, value: Option<T>) -> bool {
    if values.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => drop(values.insert(key, value)),
        None => drop(values.remove(&key)),
    }
    true
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
    pub(super) fn begin(&mut self, cluster: String) {
        self.snapshot = Snapshot { cluster: Some(cluster), ..Snapshot::default() };
        self.complete.clear();
        self.changed = false;
    }

    /// Takes the complete contents of `part`.
    pub(super) fn list(&mut self, part: Part, contents: Vec<Change>) {
        let mut fresh = Snapshot::default();
        for change in contents {
            apply(&mut fresh, change);
        }
        let was_complete = self.is_complete();
        let differs = self.replace(part, fresh);
        self.complete.insert(part);
        if !self.is_complete() {
            return;
        }
        let news = if was_complete { differs } else { self.published.as_deref() != Some(&self.snapshot) };
        if news {
            self.changed = true;
            self.lists += 1;
        }
    }

    fn replace(&mut self, part: Part, fresh: Snapshot) -> bool {
        let have = &mut self.snapshot;
        let kind = match part {
            Part::Services => "Service ",
            Part::EndpointSlices => "EndpointSlice ",
            Part::Nodes => "Node ",
            Part::ConfigMap => return std::mem::replace(&mut have.vip_map, fresh.vip_map) != have.vip_map,
        };
        let mut skipped = fresh.skipped;
        skipped.extend(
            have.skipped.iter().filter(|(k, _)| !k.starts_with(kind)).map(|(k, f)| (k.clone(), f.clone())),
        );
        let said = std::mem::replace(&mut have.skipped, skipped) != have.skipped;
        said | match part {
            Part::Services => std::mem::replace(&mut have.services, fresh.services) != have.services,
            Part::EndpointSlices => std::mem::replace(&mut have.slices, fresh.slices) != have.slices,
            Part::Nodes | Part::ConfigMap => std::mem::replace(&mut have.nodes, fresh.nodes) != have.nodes,
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
