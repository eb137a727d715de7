//! The rules by which a node is dead, and when to probe it next. Pure: the time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Dead, Targets};

/// The time from one probe of a node to its next.
const PERIOD: Duration = Duration::from_secs(1);

/// So many probes in a row must fail. One may be lost, two by chance; three are a second and more of silence.
const MISSES: u32 = 3;

/// So many misses in a row put a node in doubt. When this node itself is cut off, every other node is in doubt by
/// the time the first has missed three: the probes of a period are spread over it.
const DOUBT: u32 = MISSES - 1;

/// Addresses probed of one node: one a family, and room for a second network.
const ADDRESSES_MAX: usize = 4;

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nothing: the probe failed on this node.
    Unknown,
    /// No answer, or a router's that there is no such host.
    Miss,
    /// The node accepted or refused a connection, so it is alive.
    Alive,
}

/// A probe to make now. One answer of any address is an answer of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The node's name.
    pub node: String,
    /// Its addresses, at least one.
    pub addresses: Vec<IpAddr>,
}

/// What is known of the probed nodes.
#[derive(Debug)]
pub struct Health {
    /// This node's name.
    own: String,
    nodes: BTreeMap<String, Record>,
    /// When each node is due; holds the same names as `nodes`.
    schedule: BTreeSet<(Instant, String)>,
}

/// What is known of one node.
#[derive(Debug)]
struct Record {
    addresses: Vec<IpAddr>,
    due: Instant,
    answered: bool,
    misses: u32,
    dead: bool,
}

impl Record {
    fn new(addresses: Vec<IpAddr>, due: Instant) -> Self {
        Self { addresses, due, answered: false, misses: 0, dead: false }
    }

    /// Answered once, and since then not to the last `misses` probes.
    fn has_missed(&self, misses: u32) -> bool {
        self.answered && self.misses >= misses
    }
}

impl Health {
    /// Knows no node yet; `own` is this node's name and never probed.
    pub fn new(own: impl Into<String>) -> Self {
        Self { own: own.into(), nodes: BTreeMap::new(), schedule: BTreeSet::new() }
    }

    /// Replaces the nodes to probe. What is known of a node stays while it keeps one of its addresses, or while nobody knows
    /// any; a node that never had addresses cannot be probed, so it is never dead.
    pub fn set_targets(&mut self, targets: &Targets, now: Instant) {
        let mut before = std::mem::take(&mut self.nodes);
        for (node, addresses) in targets.iter().filter(|(node, _)| **node != self.own) {
            let wanted: BTreeSet<IpAddr> = addresses.iter().copied().collect();
            let addresses: Vec<IpAddr> = wanted.into_iter().take(ADDRESSES_MAX).collect();
            let record = match before.remove(node) {
                Some(record) if addresses.is_empty() => record,
                None if addresses.is_empty() => continue,
                Some(record) if record.addresses.iter().any(|ip| addresses.contains(ip)) => {
                    Record { addresses, ..record }
                }
                _ => Record::new(addresses, now + phase(&self.own, node)),
            };
            self.nodes.insert(node.clone(), record);
        }
        self.schedule = self.nodes.iter().map(|(node, record)| (record.due, node.clone())).collect();
    }

    /// The probes to start at `now`, at most `room` of them, those first that wait longest.
    ///
    /// The next probe of each is a period after this one, not after the time it was due: after a stall there is
    /// no burst.
    pub fn due(&mut self, now: Instant, room: usize) -> Vec<Probe> {
        let mut probes = Vec::new();
        while probes.len() < room && self.next_due().is_some_and(|due| due <= now) {
            let Some((_, node)) = self.schedule.pop_first() else { break };
            let Some(record) = self.nodes.get_mut(&node) else { continue };
            record.due = now + PERIOD;
            self.schedule.insert((record.due, node.clone()));
            probes.push(Probe { node, addresses: record.addresses.clone() });
        }
        probes
    }

    /// When the next probe is due; `None` when there is no node to probe.
    pub fn next_due(&self) -> Option<Instant> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// Takes in what a probe of `node` found; whether [`Self::dead`] may be another now.
    ///
    /// A node is dead by a miss, its third in a row or a later one, while at most half of the known nodes are in
    /// doubt; and when more than half were, all but one of the misses from that time are forgotten. So neither the
    /// first nodes that fall silent nor the last that come back are called dead when it is this node that
    /// was cut off. (One is kept, as two more show it: the first may be of a probe that was sent before.)
    pub fn note(&mut self, node: &str, outcome: Outcome) -> bool {
        let Some(record) = self.nodes.get_mut(node) else { return false };
        match outcome {
            Outcome::Unknown => false,
            Outcome::Alive if record.answered && record.misses < DOUBT => {
                record.misses = 0;
                false
            }
            Outcome::Alive => {
                self.welcome(node);
                true
            }
            Outcome::Miss => {
                record.misses = record.misses.saturating_add(1);
                record.has_missed(MISSES) && self.judge(node)
            }
        }
    }

    /// The dead nodes, or none when more than half of the known nodes are silent (see the module's head).
    pub fn dead(&self) -> Dead {
        if self.is_majority(MISSES) {
            return Dead { nodes: BTreeSet::new(), suspended: true };
        }
        let dead = self.nodes.iter().filter(|(_, record)| record.dead);
        Dead { nodes: dead.map(|(node, _)| node.clone()).collect(), suspended: false }
    }

    /// Takes in an answer of `node` after doubts, or its first.
    fn welcome(&mut self, node: &str) {
        let in_doubt = self.is_majority(DOUBT);
        if let Some(record) = self.nodes.get_mut(node) {
            (record.answered, record.misses, record.dead) = (true, 0, false);
        }
        if in_doubt && !self.is_majority(DOUBT) {
            let doubted = self.nodes.values_mut().filter(|record| !record.dead);
            doubted.for_each(|record| record.misses = record.misses.min(1));
        }
    }

    /// Whether the silence of `node` changes anything. Suspending forgets all deaths, so that each
    /// must be seen again afterwards.
    fn judge(&mut self, node: &str) -> bool {
        if self.is_majority(MISSES) {
            self.nodes.values_mut().for_each(|record| record.dead = false);
            return true;
        }
        let in_doubt = self.is_majority(DOUBT);
        let Some(record) = self.nodes.get_mut(node) else { return false };
        let changed = !record.dead && !in_doubt;
        record.dead |= !in_doubt;
        changed
    }

    /// Whether more than half of the known nodes, this one included, have missed `misses` probes in a row.
    fn is_majority(&self, misses: u32) -> bool {
        let known = 1 + self.nodes.values().filter(|record| record.answered).count();
        self.nodes.values().filter(|record| record.has_missed(misses)).count() * 2 > known
    }
}

/// How long after `node` became known to `own` it is probed first: another part of the period for each pair, so
/// that neither one node sends all its probes at once nor one gets them all at once.
fn phase(own: &str, node: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    (own, node).hash(&mut hasher);
    let part = hasher.finish() % 1000;
    PERIOD * u32::try_from(part).expect("a remainder of 1000 is below 1000") / 1000
}

#[cfg(test)]
mod tests;
