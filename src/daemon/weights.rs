//! The weights that this node should have, one a group, and what a change of membership asks for before it.
//!
//! State without IO, with the time passed in. The tiers are in [`crate::keepalived::weight`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::core::Core;
use super::pass::Outcome;
use crate::config::Transport;
use crate::derive::{Desired, GroupView};
use crate::keepalived::weight::{self, Inputs};
use crate::keepalived::{Config, Instance, State};
use crate::model::{Finding, Frontend, Vrid};
use crate::report::words::age;

/// How long a node that joins a unicast group waits before it may hold VIPs: the holder must have added it as a peer, or
/// it would hear no adverts and think itself alone.
const JOIN_WAIT: Duration = Duration::from_secs(10);
/// How long a node that is no member any more keeps its instances, so that another takes over first.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);
/// How long a holder whose HAProxy does not serve all of a group waits for the others to find that theirs does not either: longer
/// than one may take to fail.
const PROXY_WAIT: Duration = Duration::from_secs(30);

/// What is remembered from turn to turn.
#[derive(Debug, Default)]
pub struct Weights {
    /// A pass has prepared everything once: the VIPs may come.
    programmed: bool,
    /// When the host last had all that is wanted; when it was first asked to, before that.
    prepared_at: Option<Instant>,
    /// keepalived would not take its configuration, and has taken none since.
    refused: bool,
    /// The groups that an earlier run had joined since the host booted.
    joined_before: BTreeSet<Vrid>,
    memberships: BTreeMap<Vrid, Membership>,
}

/// This node in one group.
#[derive(Debug, Default)]
struct Membership {
    /// Since when this node has been a member; `None` while it is not.
    joined: Option<Joined>,
    /// Since when it has not been one.
    left: Option<Instant>,
    /// Since when HAProxy has not served all of its VIPs that it is to, and another node's may.
    unproxied: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Joined {
    at: Instant,
    /// keepalived spoke to peers already, and they to this node: a restart of kvip, no new member.
    at_once: bool,
}

impl Weights {
    /// Nothing is known yet but which groups this host could hold VIPs of when kvip began. After a boot it is none: keepalived's
    /// file has outlived it, but the others may have forgotten this node meanwhile.
    pub fn new(joined_before: BTreeSet<Vrid>) -> Self {
        Self { joined_before, ..Self::default() }
    }

    /// Whether a pass has prepared everything once in this run.
    pub fn programmed(&self) -> bool {
        self.programmed
    }

    /// The weights to write; before anything is [`programmed`](Self::programmed), the highest that may stay: a live holder
    /// keeps its weight over an upgrade, and a fresh node its -254.
    ///
    /// A host that does not get what is wanted, or whose keepalived does not, is as stale as one without the API. One that
    /// can serve a part alone is so at once.
    pub fn weights(
        &mut self,
        core: &Core,
        outcome: &Outcome,
        keepalived: &State,
        contact_age: Duration,
        now: Instant,
    ) -> BTreeMap<Vrid, i16> {
        let desired = &outcome.desired;
        let groups = || desired.groups.values();
        self.memberships.retain(|vrid, _| groups().any(|group| group.vrid == *vrid));
        for group in groups() {
            let at_once = core.carried.has_group(group.vrid) && self.joined_before.contains(&group.vrid);
            let membership = self.memberships.entry(group.vrid).or_default();
            membership.note(desired.is_member_of(group), at_once, now);
            membership.note_proxied(!lacks_proxies(core, desired, group), now);
        }
        let prepared_at = self.note_prepared(outcome.prepared, keepalived, now);
        let contact_age = contact_age.max(now.saturating_duration_since(prepared_at));
        groups().map(|group| (group.vrid, self.weight(core, desired, group, contact_age, now))).collect()
    }

    /// The highest weights that may stay in `vrids` while nothing is known of the cluster, so that nothing can be programmed.
    pub fn of_unknown(
        &mut self,
        core: &Core,
        vrids: BTreeSet<Vrid>,
        contact_age: Duration,
        now: Instant,
    ) -> BTreeMap<Vrid, i16> {
        let since = *self.prepared_at.get_or_insert(now);
        let contact_age = contact_age.max(now.saturating_duration_since(since));
        let stale_after = core.settings.cluster.stale_after;
        let weight = |vrid| {
            let holds_anchor = core.holds_anchor(vrid);
            weight::weight(&Inputs {
                programmed: true,
                drained: false,
                holds_anchor,
                contact_age,
                stale_after,
            })
        };
        vrids.into_iter().map(|vrid| (vrid, weight(vrid))).collect()
    }

    /// When the host last had all that is wanted.
    fn note_prepared(&mut self, prepared: bool, keepalived: &State, now: Instant) -> Instant {
        self.refused = match keepalived {
            State::Refused(_) | State::Failed(_) => true,
            // Each attempt begins so.
            State::Waiting(_) => self.refused,
            _ => false,
        };
        self.programmed |= prepared;
        if prepared && !self.refused {
            self.prepared_at = Some(now);
        }
        *self.prepared_at.get_or_insert(now)
    }

    /// Why others are preferred to this host, where that is the host's own fault.
    pub fn findings(&self, stale_after: Duration, now: Instant) -> Vec<Finding> {
        let for_long = |since: &Instant, long| now.saturating_duration_since(*since) >= long;
        let unprepared = self.prepared_at.filter(|since| for_long(since, stale_after)).map(|_| {
            format!(
                "this host has not had all that is wanted for {}, so nodes that have it are preferred as holders; a holder \
                 yields after {}",
                age(stale_after),
                age(stale_after * 2)
            )
        });
        let members = self.memberships.values().filter(|membership| membership.joined.is_some());
        let unproxied = members.filter_map(|membership| membership.unproxied).min();
        let unproxied = unproxied.filter(|since| for_long(since, PROXY_WAIT)).map(|_| {
            format!(
                "HAProxy has not served all that it is to for {}, so nodes whose HAProxy does are preferred as holders",
                age(PROXY_WAIT)
            )
        });
        unprepared.into_iter().chain(unproxied).map(|text| Finding::new("VIPs", text)).collect()
    }

    fn weight(
        &self,
        core: &Core,
        desired: &Desired,
        group: &GroupView,
        contact_age: Duration,
        now: Instant,
    ) -> i16 {
        let holds_anchor = core.holds_anchor(group.vrid);
        // A node that can serve all of them comes before one that leaves some of them to others.
        let serves_all = desired.assignment.yielded.is_empty() && self.proxies_all(group, holds_anchor, now);
        let contact_age = if serves_all { contact_age } else { Duration::MAX };
        if !desired.is_member_of(group) {
            return if holds_anchor { weight::LEAVING } else { weight::OUT };
        }
        weight::weight(&Inputs {
            programmed: holds_anchor || self.may_serve(group, now),
            drained: false,
            holds_anchor,
            contact_age,
            stale_after: core.settings.cluster.stale_after,
        })
    }

    /// Whether HAProxy serves the VIPs of `group`, as far as others are to know of it.
    fn proxies_all(&self, group: &GroupView, holds_anchor: bool, now: Instant) -> bool {
        let since = self.memberships.get(&group.vrid).and_then(|membership| membership.unproxied);
        since.is_none_or(|since| holds_anchor && now.duration_since(since) < PROXY_WAIT)
    }

    fn may_serve(&self, group: &GroupView, now: Instant) -> bool {
        let waited = |joined: Joined| joined.at_once || now.duration_since(joined.at) >= JOIN_WAIT;
        let joined = self.memberships.get(&group.vrid).and_then(|membership| membership.joined);
        group.transport == Transport::Multicast || joined.is_some_and(waited)
    }

    /// The groups whose VIPs this node holds and, if it is no member any more, has not been one for a short while only: its
    /// keepalived keeps their instances until another node has taken over.
    pub fn holding(&self, core: &Core, now: Instant) -> BTreeSet<Vrid> {
        let lately = |membership: Option<&Membership>| {
            let left = membership.and_then(|membership| membership.left);
            left.is_none_or(|left| now.duration_since(left) < LEAVE_LIMIT)
        };
        let groups = core.carried.vrids();
        groups.filter(|vrid| core.holds_anchor(*vrid) && lately(self.memberships.get(vrid))).collect()
    }
}

impl Membership {
    fn note(&mut self, member: bool, at_once: bool, now: Instant) {
        if member {
            self.left = None;
            self.joined.get_or_insert(Joined { at: now, at_once });
        } else {
            self.joined = None;
            self.left.get_or_insert(now);
        }
    }

    fn note_proxied(&mut self, all: bool, now: Instant) {
        self.unproxied = if all { None } else { self.unproxied.or(Some(now)) };
    }
}

/// Whether HAProxy cannot serve a VIP of `group` that it is to.
fn lacks_proxies(core: &Core, desired: &Desired, group: &GroupView) -> bool {
    let wanted = |frontend: &&Frontend| desired.haproxy.frontends.contains_key(frontend);
    core.unproxied.iter().filter(wanted).any(|frontend| group.vips.contains(&frontend.vip))
}

/// What keepalived is to run: what is desired, and of the groups in `holding` that this node left the instances that it has
/// (`last`), without VIPs that another instance is to carry. `None`: what it has is not known, so it is left alone.
pub fn switch(desired: &Desired, holding: &BTreeSet<Vrid>, last: Option<&Config>) -> Option<Config> {
    let left = |group: &&GroupView| holding.contains(&group.vrid) && !desired.is_member_of(group);
    let left: BTreeSet<Vrid> = desired.groups.values().filter(left).map(|group| group.vrid).collect();
    let mut config = (*desired.keepalived).clone();
    if left.is_empty() {
        return Some(config);
    }
    let elsewhere: BTreeSet<_> =
        config.instances.iter().flat_map(|instance| &instance.vips).copied().collect();
    let kept = last?.instances.iter().filter(|instance| left.contains(&instance.vrid)).map(|instance| {
        let vips = instance.vips.difference(&elsewhere).copied().collect();
        Instance { vips, ..instance.clone() }
    });
    config.instances.extend(kept);
    config.instances.sort_by_key(|instance| (instance.vrid, instance.family));
    Some(config)
}
