//! systemd's watchdog: fed while every loop of the daemon beats.
//!
//! Runs beside the loops, so that one that waits for a slow host, within its limits, is not taken for a dead one. Owns when a sign of
//! life is sent and what is said while none is.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use crate::report::systemd::Notifier;

/// How often the loops are looked at: one that beats again is soon believed.
const LOOK: Duration = Duration::from_secs(1);

/// Feeds the watchdog, if systemd wants that, while `late` names no loop. An API that is away is no reason to stop: the loops
/// turn without it.
pub fn spawn(notifier: Notifier, late: impl Fn() -> Option<&'static str> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async move {
        let Some(every) = notifier.watchdog_interval() else { return };
        let mut looks = interval(LOOK.min(every));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut feeding = Feeding::default();
        loop {
            let now = looks.tick().await;
            if feeding.is_due(now, every, late()) {
                notifier.alive();
            }
        }
    })
}

/// When the watchdog was fed, and why it is not.
#[derive(Debug, Default)]
struct Feeding {
    last: Option<Instant>,
    /// The loop that was said not to turn.
    told: Option<&'static str>,
}

impl Feeding {
    fn is_due(&mut self, now: Instant, every: Duration, late: Option<&'static str>) -> bool {
        if let Some(name) = late.filter(|name| self.told != Some(name)) {
            warn!(loop_name = name, "a loop does not turn; systemd will restart kvip unless it does soon");
        }
        self.told = late;
        let due = late.is_none() && self.last.is_none_or(|last| now.duration_since(last) >= every);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tempfile::TempDir;

    use super::*;

    /// Messages that came within `time`.
    async fn fed(socket: &UnixDatagram, time: Duration) -> Vec<String> {
        tokio::time::sleep(time).await;
        let mut bytes = [0; 64];
        let text = |length: usize, bytes: &[u8]| String::from_utf8_lossy(&bytes[..length]).into_owned();
        std::iter::from_fn(|| socket.recv(&mut bytes).ok().map(|length| text(length, &bytes))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_no_loop_is_late() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let stalled = Arc::new(AtomicBool::new(false));
        let late = Arc::clone(&stalled);
        let notifier = Notifier::new(Some(path), Some(Duration::from_secs(30)));
        let task = spawn(notifier, move || late.load(Ordering::Relaxed).then_some("a loop of this test"));

        let minute = Duration::from_secs(60);
        let signs = fed(&socket, minute).await;
        assert!((4..=5).contains(&signs.len()), "each 15 s: {signs:?}");
        assert!(signs.iter().all(|sign| sign == "WATCHDOG=1"), "{signs:?}");
        stalled.store(true, Ordering::Relaxed);
        assert_eq!(fed(&socket, minute).await, [""; 0], "while a loop is late");
        stalled.store(false, Ordering::Relaxed);
        assert_eq!(fed(&socket, 2 * LOOK).await.len(), 1, "as soon as it beats again");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_watchdog_there_is_nothing_to_do() {
        spawn(Notifier::new(None, None), || None).await.unwrap();
    }
}
