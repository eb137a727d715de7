//! The accepted state on disk: written beside the loop, so that a large cluster holds nobody up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::model::Finding;
use crate::snapshot::{Snapshot, saved};

/// The snapshot on disk is at most this much older than the accepted one.
const SAVE: Duration = Duration::from_secs(5);

/// When the accepted state is written to disk: beside the loop, one writing at a time.
#[derive(Debug)]
pub(super) struct Saving {
    path: PathBuf,
    last: Option<Instant>,
    /// There is something to save.
    pub pending: bool,
    running: Option<JoinHandle<std::io::Result<()>>>,
    problem: Option<Finding>,
}

impl Saving {
    /// Saves to the file `path`.
    pub fn to(path: PathBuf) -> Self {
        Self { path, last: None, pending: false, running: None, problem: None }
    }

    /// Saves `snapshot` when there is something new to save and the last time is long enough ago.
    pub async fn save_when_due(&mut self, snapshot: Option<Arc<Snapshot>>, now: Instant) {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish().await;
        }
        let Some(snapshot) = snapshot.filter(|_| self.pending && self.running.is_none()) else { return };
        if self.last.is_some_and(|last| now.duration_since(last) < SAVE) {
            return;
        }
        self.last = Some(now);
        self.begin(snapshot);
    }

    fn begin(&mut self, snapshot: Arc<Snapshot>) {
        self.pending = false;
        self.running = Some(saved::save_aside(&self.path, snapshot));
    }

    /// Saves what is not saved yet, without delay: the next run begins with it, and would undo what is newer.
    pub async fn save_rest(&mut self, snapshot: Option<Arc<Snapshot>>) {
        self.finish().await;
        if let Some(snapshot) = snapshot.filter(|_| self.pending) {
            self.begin(snapshot);
            self.finish().await;
        }
    }

    /// Waits for the writing that runs; what failed is tried again.
    pub async fn finish(&mut self) {
        let Some(running) = self.running.take() else { return };
        let failed = match running.await {
            Ok(Ok(())) => {
                self.problem = None;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let text = format!(
            "the cluster's state cannot be saved: {failed}; a boot without the API would know an older one"
        );
        self.problem = Some(
            Finding::new(self.path.display(), text).mend("check the disk and the unit's StateDirectory"),
        );
        self.pending = true;
    }

    /// Why what was served last is not on disk.
    pub fn problem(&self) -> Option<&Finding> {
        self.problem.as_ref()
    }
}
