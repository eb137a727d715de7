//! How long the watches wait: for answers, in silence, and after failures.
//!
//! Pure but for the jitter, which is drawn from the standard library.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Limits on time, in one place so that tests can shorten them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// How long an answer may take.
    pub(super) answer: Duration,
    /// How long a kubeconfig's credential plugin may run: less than an answer may take, as it runs again within a request
    /// when its credentials expire.
    pub(super) plugin: Duration,
    /// How long a watch may be silent before it is taken for dead. The API server sends bookmarks each minute and a
    /// bit, so that 60 s would cut every idle watch.
    pub(super) silence: Duration,
    /// The first wait after a failure; each further one is twice as long.
    pub(super) retry_first: Duration,
    /// The longest wait after a failure.
    pub(super) retry_longest: Duration,
    /// The wait before a kind that the server does not have, or does not let kvip read, is asked for again.
    pub(super) refused: Duration,
    /// How often the files are looked at and the loop shows that it lives.
    pub(super) beat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            plugin: Duration::from_secs(25),
            silence: Duration::from_secs(90),
            retry_first: Duration::from_millis(500),
            retry_longest: Duration::from_secs(30),
            refused: Duration::from_secs(60),
            beat: Duration::from_secs(2),
        }
    }
}

/// Waits that double, with jitter so that nodes that lost the server together do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    timing: Timing,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(timing: Timing) -> Self {
        Self { timing, failures: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        // The standard library seeds each hasher at random: randomness enough to spread nodes.
        let random = RandomState::new().build_hasher().finish();
        let wait = delay(self.timing, self.failures, random);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// The wait after `failures` earlier ones: half of it certain, half by `random`.
fn delay(timing: Timing, failures: u32, random: u64) -> Duration {
    let whole = timing.retry_first.saturating_mul(1 << failures.min(16)).min(timing.retry_longest);
    let share = u32::try_from(random % 1000).unwrap_or(0);
    whole / 2 + whole * share / 2000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_watch_outlives_the_time_between_bookmarks() {
        let silence = Timing::default().silence;
        // The API server's bookmarkFrequency is a minute, and an eighth of jitter (k8s.io/apiserver, storage/cacher).
        assert!(silence > Duration::from_secs(68) && silence <= Duration::from_secs(90), "{silence:?}");
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let timing = Timing::default();
        let check = |failures, random, want_ms| {
            assert_eq!(delay(timing, failures, random), Duration::from_millis(want_ms), "{failures}");
        };
        check(0, 0, 250);
        check(0, 996, 499);
        check(1, 0, 500);
        check(5, 0, 8_000);
        check(6, 0, 15_000);
        check(u32::MAX, 0, 15_000);
        check(u32::MAX, 500, 22_500);
    }
}
