//! Signs of life: every loop of the daemon beats, and systemd's watchdog is fed only while all do.
//!
//! Owns the one register of the process: a loop should not need to be handed a place to say that it lives.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a loop that has nothing to do wakes up to beat.
pub const EVERY: Duration = Duration::from_secs(5);
/// A loop that waits for events only, or for a second at most, beats at least once in so long.
pub const PROMPT: Duration = Duration::from_secs(20);
/// A loop that waits for others, each within a limit, beats at least once in so long.
pub const PATIENT: Duration = Duration::from_secs(300);

static REGISTER: LazyLock<Mutex<Heartbeats>> = LazyLock::new(Mutex::default);

/// The loop `name` of this process lives, and will say so again within `limit`.
pub fn beat(name: &'static str, limit: Duration) {
    with(|register| register.beat(name, limit, Instant::now()));
}

/// A loop that may end while the daemon lives, as when the settings no longer want it: its promise ends with it.
#[derive(Debug)]
pub struct Promise {
    name: &'static str,
    limit: Duration,
}

impl Promise {
    /// The loop `name` will beat within each `limit`, until this is dropped.
    pub fn new(name: &'static str, limit: Duration) -> Self {
        Self { name, limit }
    }

    /// It lives.
    pub fn beat(&self) {
        beat(self.name, self.limit);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // One that died of a bug has not ended: it is to be missed, so that kvip is started anew.
        if std::thread::panicking() {
            return;
        }
        // One that has taken its place already beats again before it is late.
        with(|register| {
            register.loops.remove(self.name);
        });
    }
}

/// The loop that is longest overdue, if one is.
pub fn late() -> Option<&'static str> {
    with(|register| register.late(Instant::now()))
}

fn with<T>(work: impl FnOnce(&mut Heartbeats) -> T) -> T {
    work(&mut REGISTER.lock().unwrap_or_else(PoisonError::into_inner))
}

/// When each loop last said that it lives. Pure: the caller brings the time.
#[derive(Debug, Clone, Default)]
struct Heartbeats {
    loops: BTreeMap<&'static str, (Instant, Duration)>,
}

impl Heartbeats {
    fn beat(&mut self, name: &'static str, limit: Duration, now: Instant) {
        self.loops.insert(name, (now, limit));
    }

    fn late(&self, now: Instant) -> Option<&'static str> {
        let overdue =
            |(last, limit): &(Instant, Duration)| now.saturating_duration_since(*last).checked_sub(*limit);
        let late = self.loops.iter().filter_map(|(name, beat)| Some((overdue(beat)?, *name)));
        late.filter(|(by, _)| !by.is_zero()).max().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_has_ended_is_not_late() {
        let name = "a loop of this test";
        let is_known = || with(|register| register.loops.contains_key(name));
        let promise = Promise::new(name, PATIENT);
        promise.beat();
        assert!(is_known());
        drop(promise);
        assert!(!is_known());
    }

    #[test]
    fn a_loop_that_panics_is_missed() {
        let name = "a loop of this test that panics";
        let promise = Promise::new(name, PATIENT);
        promise.beat();
        let died = std::thread::spawn(move || {
            let _promise = promise;
            panic!("as a bug does");
        });
        assert!(died.join().is_err());
        assert!(with(|register| register.loops.remove(name)).is_some(), "it was forgotten");
    }

    #[test]
    fn the_loop_that_is_longest_overdue_is_named() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut beats = Heartbeats::default();
        assert_eq!(beats.late(after(1000)), None, "nobody promised anything");
        beats.beat("network", Duration::from_secs(20), start);
        beats.beat("keepalived", Duration::from_secs(300), start);
        assert_eq!(beats.late(after(20)), None);
        assert_eq!(beats.late(after(21)), Some("network"));
        beats.beat("network", Duration::from_secs(20), after(300));
        assert_eq!(beats.late(after(301)), Some("keepalived"));
        assert_eq!(beats.late(after(621)), Some("keepalived"), "by 321 s against 301 s");
    }
}
