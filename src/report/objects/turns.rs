//! Whose status is to be written, and when.
//!
//! Pure: the time is passed in. A Service whose status already says what is wanted is not known here, so that an idle
//! cluster costs nothing. The first allocator acts at once, each next one `takeover_after` later if it is still needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Wanted;
use super::pause::{Pause, doubled};
use super::status::is_shown;
use crate::model::ObjectKey;

/// So many attempts at one Service go without a wait while what is wanted stays: one, a conflict and its repetition.
const FREE: u32 = 3;
/// The longest wait after them: two writers that undo each other write no more often.
const WAIT_LONGEST: Duration = Duration::from_secs(300);
/// So long without an attempt and the earlier ones are forgotten.
const QUIET: Duration = Duration::from_secs(600);
/// So many attempts at a Service whose status the API server refuses; then it waits for a change.
const ATTEMPTS: u32 = 8;
/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The status says what is wanted, or the object is gone or another: only a change makes it due again.
    Settled,
    /// Somebody wrote in between: again with the fresh object.
    Conflict,
    /// The API server refuses this status.
    Refused,
    /// The API server does not let kvip write any status.
    Denied,
    /// The API server does not answer, or is overloaded.
    Unreachable,
}

/// The Services that need a write, with when; and those that had one of late.
#[derive(Debug, Default)]
pub struct Turns {
    services: BTreeMap<ObjectKey, Turn>,
    due: BTreeSet<(Instant, ObjectKey)>,
    pause: Pause,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    /// `None`: settled, until something changes.
    due: Option<Instant>,
    attempts: u32,
    last: Instant,
}

impl Turns {
    /// What is wanted of the Service `key`, or what it shows, changed from `before` to `wanted`.
    pub fn update(
        &mut self,
        key: &ObjectKey,
        before: Option<&Wanted>,
        wanted: Option<&Wanted>,
        takeover_after: Duration,
        now: Instant,
    ) {
        let place = wanted.filter(|wanted| !is_shown(wanted)).and_then(|wanted| wanted.place);
        let Some(place) = place else {
            self.set(key, None);
            return;
        };
        let turn = self.services.entry(key.clone()).or_insert(Turn { due: None, attempts: 0, last: now });
        // A person's change is served at once; another writer that undoes what was written is not.
        let new = wanted.is_some_and(|wanted| before.is_none_or(|before| !before.wants_the_same(wanted)));
        if new || now.saturating_duration_since(turn.last) > QUIET {
            turn.attempts = 0;
        } else if turn.due.is_some() {
            return;
        }
        // A Service that changes each second must not put its status off for ever.
        let at = now + takeover_after.saturating_mul(place) + wait(turn.attempts);
        let at = turn.due.map_or(at, |due| due.min(at));
        self.set(key, Some(at));
    }

    /// The Service to write at `now`, if one is due.
    pub fn next(&self, now: Instant) -> Option<&ObjectKey> {
        let (at, key) = self.due.first()?;
        (self.deadline()? <= now && *at <= now).then_some(key)
    }

    /// When [`Turns::next`] will have something.
    pub fn deadline(&self) -> Option<Instant> {
        let (at, _) = self.due.first()?;
        Some(self.pause.after(*at))
    }

    /// The attempt at the Service `key` ended so.
    pub fn finish(&mut self, key: &ObjectKey, outcome: Outcome, now: Instant) {
        let Some(turn) = self.services.get_mut(key) else { return };
        match outcome {
            Outcome::Unreachable => return self.pause.unreachable(now),
            Outcome::Denied => self.pause.denied(now),
            _ => self.pause = Pause::default(),
        }
        turn.attempts = turn.attempts.saturating_add(1);
        turn.last = now;
        let attempts = turn.attempts;
        let due = match outcome {
            Outcome::Settled => None,
            Outcome::Conflict => Some(now + wait(attempts)),
            Outcome::Refused => (attempts < ATTEMPTS).then(|| now + wait(FREE + attempts)),
            Outcome::Denied | Outcome::Unreachable => Some(now),
        };
        self.set(key, due);
    }

    /// There is another connection, or other credentials: what failed may work now.
    pub fn reconnected(&mut self) {
        self.pause = Pause::default();
    }

    /// Forgets attempts of long ago.
    pub fn prune(&mut self, now: Instant) {
        let old = |turn: &Turn| turn.due.is_none() && now.saturating_duration_since(turn.last) > QUIET;
        self.services.retain(|_, turn| !old(turn));
    }

    fn set(&mut self, key: &ObjectKey, due: Option<Instant>) {
        let Some(turn) = self.services.get_mut(key) else { return };
        if let Some(at) = turn.due {
            self.due.remove(&(at, key.clone()));
        }
        turn.due = due;
        if let Some(at) = due {
            self.due.insert((at, key.clone()));
        } else if turn.attempts == 0 {
            self.services.remove(key);
        }
    }
}

/// The wait before the next attempt after so many.
fn wait(attempts: u32) -> Duration {
    match attempts.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(more) => doubled(more, WAIT_LONGEST),
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
