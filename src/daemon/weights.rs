//! The weight that this node should have, and what a change of membership asks for before it.
//!
//! State without IO, with the time passed in. The tiers are in [`crate::keepalived::weight`].

use std::time::{Duration, Instant};

use super::core::Core;
use super::pass::Outcome;
use crate::config::Transport;
use crate::derive::Desired;
use crate::keepalived::weight::{self, Inputs};

/// How long a node that joins a unicast group waits before it may hold VIPs: the holder must have added it as a peer, or
/// it would hear no adverts and think itself alone.
const JOIN_WAIT: Duration = Duration::from_secs(10);
/// How long a node that is no member any more keeps its instances, so that another takes over first.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);

/// What is remembered from turn to turn.
#[derive(Debug, Default)]
pub struct Weights {
    /// A pass has prepared everything once: the VIPs may come.
    programmed: bool,
    /// Since when this node has been a member; `None` while it is not.
    joined: Option<Joined>,
    /// Since when it has not been one.
    left: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Joined {
    at: Instant,
    /// keepalived spoke to peers already: a restart of kvip, no new member.
    at_once: bool,
}

impl Weights {
    /// The weight to write; `None` leaves the file as it is: before the first pass that prepared everything a live holder
    /// keeps its weight over an upgrade, and a fresh node its -254.
    pub fn weight(&mut self, core: &Core, outcome: &Outcome, contact: Instant, now: Instant) -> Option<i16> {
        let member = is_member(&outcome.desired);
        self.note_membership(core, member, now);
        self.programmed |= outcome.prepared;
        if !self.programmed {
            return None;
        }
        let holds_anchor = core.holds_anchor();
        if !member {
            return Some(if holds_anchor { weight::LEAVING } else { weight::OUT });
        }
        Some(weight::weight(&Inputs {
            programmed: holds_anchor || self.may_serve(core, now),
            drained: false,
            holds_anchor,
            contact_age: now.saturating_duration_since(contact),
            stale_after: core.settings.cluster.stale_after,
        }))
    }

    fn note_membership(&mut self, core: &Core, member: bool, now: Instant) {
        if member {
            self.left = None;
            self.joined.get_or_insert(Joined { at: now, at_once: !core.keepalived_vips.is_empty() });
        } else {
            self.joined = None;
            self.left.get_or_insert(now);
        }
    }

    fn may_serve(&self, core: &Core, now: Instant) -> bool {
        let waited = |joined: Joined| joined.at_once || now.duration_since(joined.at) >= JOIN_WAIT;
        core.settings.vrrp.transport == Transport::Multicast || self.joined.is_some_and(waited)
    }

    /// Whether this node holds VIPs and, if it is no member any more, has not been one for a short while only: its
    /// keepalived keeps its instances until another node has taken over.
    pub fn holding(&self, core: &Core, now: Instant) -> bool {
        core.holds_anchor() && self.left.is_none_or(|left| now.duration_since(left) < LEAVE_LIMIT)
    }
}

/// Whether this node is in the group.
pub fn is_member(desired: &Desired) -> bool {
    desired.node.as_ref().is_some_and(|node| desired.members.contains_key(node))
}
