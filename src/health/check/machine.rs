//! The rules by which an endpoint is down, and when to check it next. Pure: the time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Down, Target};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The endpoint answers as it should.
    Answer,
    /// It does not, with what was found in its place, such as `status 503`.
    Failure(Arc<str>),
    /// Nothing: the check failed on this host.
    Unknown,
}

impl Found {
    /// The endpoint does not answer as it should.
    pub fn failure(found: impl Into<Arc<str>>) -> Self {
        Self::Failure(found.into())
    }
}

/// What is known of the endpoints to check.
#[derive(Debug)]
pub struct Machine {
    /// This node's name, so that no two nodes check at the same times.
    own: String,
    records: BTreeMap<Target, Record>,
    /// When each is due that is not being asked.
    schedule: BTreeSet<(Instant, Target)>,
    down: Down,
}

/// What is known of one endpoint.
#[derive(Debug)]
struct Record {
    /// How often it was asked.
    round: u64,
    /// So many findings in a row speak for the other state than it is in.
    streak: u8,
    /// When the next check is due.
    due: Instant,
    /// The answer to the last one is waited for.
    asked: bool,
}

impl Machine {
    /// Knows no endpoint yet; `own` is this node's name.
    pub fn new(own: impl Into<String>) -> Self {
        Self { own: own.into(), records: BTreeMap::new(), schedule: BTreeSet::new(), down: Down::new() }
    }

    /// Checks `target` from now on; its first check comes within its period.
    pub fn add(&mut self, target: Target, now: Instant) {
        if self.records.contains_key(&target) {
            return;
        }
        let due = now + target.check.every.mul_f64(part(&self.own, &target, 0));
        self.schedule.insert((due, target.clone()));
        self.records.insert(target, Record { round: 0, streak: 0, due, asked: false });
    }

    /// Checks `target` no more, and forgets it; whether [`Self::down`] is another now.
    pub fn remove(&mut self, target: &Target) -> bool {
        if let Some(record) = self.records.remove(target) {
            self.schedule.remove(&(record.due, target.clone()));
        }
        self.down.remove(target).is_some()
    }

    /// The endpoints to ask at `now`, at most `room` of them, those first that wait longest. Each is to be followed by
    /// [`Self::note`] and not asked again before.
    pub fn due(&mut self, now: Instant, room: usize) -> Vec<Target> {
        let mut asked = Vec::new();
        while asked.len() < room && self.next_due().is_some_and(|due| due <= now) {
            let Some((_, target)) = self.schedule.pop_first() else { break };
            let Some(record) = self.records.get_mut(&target) else { continue };
            record.round += 1;
            record.asked = true;
            record.due = now + pause(&self.own, &target, record.round);
            asked.push(target);
        }
        asked
    }

    /// When the next check is due; `None` when there is nothing to ask now.
    pub fn next_due(&self) -> Option<Instant> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// Takes in what a check found; whether [`Self::down`] is another now.
    ///
    /// What took an endpoint out is kept until it is back: an endpoint that fails now so and now otherwise is no news.
    pub fn note(&mut self, target: &Target, found: Found, now: Instant) -> bool {
        let Some(record) = self.records.get_mut(target).filter(|record| record.asked) else { return false };
        record.asked = false;
        record.due = record.due.max(now);
        self.schedule.insert((record.due, target.clone()));
        let (against, limit) = match (&found, self.down.contains_key(target)) {
            (Found::Unknown, _) => return false,
            (Found::Answer, down) => (down, target.check.rise),
            (Found::Failure(_), down) => (!down, target.check.fall),
        };
        record.streak = if against { record.streak + 1 } else { 0 };
        if record.streak < limit.max(1) {
            return false;
        }
        record.streak = 0;
        match found {
            Found::Failure(found) => self.down.insert(target.clone(), found),
            _ => self.down.remove(target),
        };
        true
    }

    /// The endpoints that do not answer as they should.
    pub fn down(&self) -> &Down {
        &self.down
    }

    /// How many endpoints are checked.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is checked.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// The time from check number `round` to the next: nine to eleven tenths of what is asked for, so that checks which began
/// together, as after a restart, drift apart.
fn pause(own: &str, target: &Target, round: u64) -> Duration {
    target.check.every.mul_f64(0.9 + 0.2 * part(own, target, round))
}

/// A part of 1, another one for each node, endpoint and round.
fn part(own: &str, target: &Target, round: u64) -> f64 {
    let mut hasher = DefaultHasher::new();
    (own, target, round).hash(&mut hasher);
    let thousandths = u32::try_from(hasher.finish() % 1000).expect("a remainder of 1000 is below 1000");
    f64::from(thousandths) / 1000.0
}

#[cfg(test)]
mod tests;
