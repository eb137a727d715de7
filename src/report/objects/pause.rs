//! How long nothing is tried, when what failed would fail for every object.
//!
//! Pure: the time is passed in.

use std::time::{Duration, Instant};

/// The wait after the first failure; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait while the API server does not answer.
const UNREACHABLE_LONGEST: Duration = Duration::from_secs(60);
/// The wait after the API server denied permission: somebody has to change it, and there is no hurry.
const DENIED: Duration = Duration::from_secs(600);

/// Nothing is tried before a time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    failures: u32,
}

impl Pause {
    /// `at`, or the end of the pause if that is later.
    pub(super) fn after(&self, at: Instant) -> Instant {
        self.until.map_or(at, |until| until.max(at))
    }

    /// There was no answer.
    pub(super) fn unreachable(&mut self, now: Instant) {
        self.until = Some(now + doubled(self.failures, UNREACHABLE_LONGEST));
        self.failures = self.failures.saturating_add(1);
    }

    /// There is no permission.
    pub(super) fn denied(&mut self, now: Instant) {
        *self = Self { until: Some(now + DENIED), failures: 0 };
    }
}

/// The wait after so many failures, at most `longest`.
pub(super) fn doubled(failures: u32, longest: Duration) -> Duration {
    FIRST.saturating_mul(1 << failures.min(16)).min(longest)
}
