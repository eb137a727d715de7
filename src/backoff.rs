//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// Waits that double with each failure, up to a limit.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits from `first` to `longest`.
    pub fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, next: first }
    }

    /// It has not failed, or others may have mended it: the next wait is the first.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// It has failed: how long to wait.
    pub fn failed(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new((seconds(1), seconds(5)));
        let waits: Vec<Duration> = (0..5).map(|_| backoff.failed()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5].map(seconds));
        backoff.reset();
        assert_eq!(backoff.failed(), seconds(1));
    }
}
