//! Members that left: unicast peers are kept for a while, so that a holder never loses a peer that still listens to it.
//!
//! Removing a peer on the holder makes that peer a second master until it has yielded by itself, so the leaver goes first
//! (its weight becomes -254) and the others forget it later. Each group has its own. State without IO, with the time
//! passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::derive::{self, Leaving};
use crate::model::Vrid;
use crate::snapshot::Snapshot;

/// How long a leaver is still spoken to: enough for its kvip to see the change and yield, at any advert interval.
const KEPT: Duration = Duration::from_secs(30);

/// The members of all groups, and those that left a moment ago.
#[derive(Debug, Default)]
pub struct Members(BTreeMap<Vrid, Group>);

/// The members' addresses, and those of the members that left a moment ago.
#[derive(Debug, Default)]
struct Group {
    present: BTreeSet<IpAddr>,
    left: BTreeMap<IpAddr, Instant>,
}

impl Members {
    /// The addresses of those that left less than [`KEPT`] ago, by group.
    pub fn leaving(&mut self, snapshot: &Snapshot, settings: &Settings, now: Instant) -> Leaving {
        let mut before = std::mem::take(&mut self.0);
        let mut leaving = Leaving::new();
        for wanted in derive::groups_of(settings) {
            let vrid = wanted.vrrp.vrid;
            let members = wanted.members(snapshot);
            let present = members.values().flat_map(|node| node.addresses.iter().copied()).collect();
            let mut group = before.remove(&vrid).unwrap_or_default();
            group.note(present, now);
            if !group.left.is_empty() {
                leaving.insert(vrid, group.left.keys().copied().collect());
            }
            self.0.insert(vrid, group);
        }
        leaving
    }

    /// Whether somebody is still spoken to who left.
    pub fn any_leaving(&self) -> bool {
        self.0.values().any(|group| !group.left.is_empty())
    }
}

impl Group {
    fn note(&mut self, present: BTreeSet<IpAddr>, now: Instant) {
        self.left.extend(self.present.difference(&present).map(|address| (*address, now)));
        self.left.retain(|address, left| !present.contains(address) && now.duration_since(*left) < KEPT);
        self.present = present;
    }
}
