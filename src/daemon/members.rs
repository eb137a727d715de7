//! Members that left: unicast peers are kept for a while, so that a holder never loses a peer that still listens to it.
//!
//! Removing a peer on the holder makes that peer a second master until it has yielded by itself, so the leaver goes first
//! (its weight becomes -254) and the others forget it later. State without IO, with the time passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::snapshot::Snapshot;

/// How long a leaver is still spoken to: enough for its kvip to see the change and yield, at any advert interval.
const KEPT: Duration = Duration::from_secs(30);

/// The members' addresses, and those of the members that left a moment ago.
#[derive(Debug, Default)]
pub struct Members {
    present: BTreeSet<IpAddr>,
    left: BTreeMap<IpAddr, Instant>,
}

impl Members {
    /// The addresses of those that left less than [`KEPT`] ago.
    pub fn leaving(&mut self, snapshot: &Snapshot, settings: &Settings, now: Instant) -> BTreeSet<IpAddr> {
        let selector = &settings.vrrp.members;
        let member =
            |labels: &BTreeMap<String, String>| selector.iter().all(|(k, v)| labels.get(k) == Some(v));
        let nodes = snapshot.nodes.values().filter(|node| member(&node.labels));
        let present: BTreeSet<IpAddr> = nodes.flat_map(|node| node.addresses.iter().copied()).collect();
        self.left.extend(self.present.difference(&present).map(|address| (*address, now)));
        self.left.retain(|address, left| !present.contains(address) && now.duration_since(*left) < KEPT);
        self.present = present;
        self.left.keys().copied().collect()
    }

    /// Whether somebody is still spoken to who left.
    pub fn any_leaving(&self) -> bool {
        !self.left.is_empty()
    }
}
