//! The clock of probes and checks.

use std::time::Instant;

use tokio::time::sleep_until;

/// Now, by the clock that the timers follow, also when a test stops it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Waits until then; `None` is never.
pub async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
