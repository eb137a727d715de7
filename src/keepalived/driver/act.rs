//! Has keepalived read its file, sees whether it survives that, and brings back the file before when it does not.
//!
//! Owns the text that keepalived fell over last. Decides nothing of what the file says.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::super::place::Place;
use super::super::service::Service;
use super::super::step::{Act, Obstacle, View};
use super::super::trouble::Trouble;
use super::super::{Paths, carried_in, hold};
use super::Driver;
use crate::files;
use crate::unit::UnitError;

/// How long a text that keepalived fell over is left alone: each try costs an election.
pub(super) const DISTRUST: Duration = Duration::from_secs(300);

/// How long keepalived must have run after an act to have survived it: it reads its files after SIGHUP, and dies of them.
pub(super) const STEADY: Duration = Duration::from_secs(1);

/// How long keepalived may take to read its files.
const READING: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(200);

/// A text that keepalived fell over.
pub(super) struct Distrusted {
    text: String,
    until: Instant,
    trouble: Trouble,
}

/// How keepalived came out of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Survival {
    /// It runs steadily.
    Steady,
    /// It runs, and is another process: it fell, or somebody restarted it.
    Replaced,
    /// It does not run, or never gets ready.
    Fell,
}

impl<S: Service> Driver<S> {
    pub(super) fn trusted(&self, text: &str) -> Result<(), Trouble> {
        match &self.distrusted {
            Some(bad) if bad.text == text && Instant::now() < bad.until => Err(bad.trouble.clone()),
            _ => Ok(()),
        }
    }

    /// Has keepalived read `text`, and confirms that it survived; otherwise brings back what was there before.
    pub(super) async fn act(
        &mut self,
        view: &View,
        act: Act,
        text: &str,
        before: Option<Before>,
    ) -> Result<(), Trouble> {
        let outcome = match act {
            Act::Start => self.service.start().await,
            Act::Reload => self.service.reload().await,
        };
        let pid = (act == Act::Reload).then_some(view.unit.main_pid);
        let survival = match outcome {
            Ok(()) => self.survival(pid).await?,
            Err(UnitError::Job { result, .. }) if result == "failed" => Survival::Fell,
            Err(error) => return Err(error.into()),
        };
        let again = std::mem::replace(&mut self.replaced, survival == Survival::Replaced);
        match survival {
            Survival::Steady => {}
            // The new process may have read the file before or after it was replaced: it is to read it once more.
            Survival::Replaced if !again => return Ok(()),
            Survival::Replaced | Survival::Fell => return Err(self.roll_back(view, act, text, before).await),
        }
        files::replace(&self.paths.loaded(), text, files::PUBLIC)?;
        let vips = carried_in(text);
        info!(vips = vips.len(), "keepalived {}", if act == Act::Start { "started" } else { "reloaded" });
        self.publish(|status| {
            status.vips = vips;
            status.reloads += u64::from(act == Act::Reload);
        });
        Ok(())
    }

    /// Whether keepalived runs steadily. A reload leaves the main process `pid` as it is. A stop by hand says nothing of the
    /// file: its mark is made early in it, so a unit that is deactivating without one is ending what is left of a fall, or will
    /// have it soon.
    async fn survival(&mut self, pid: Option<u32>) -> Result<Survival, Trouble> {
        let started = Instant::now();
        let mut steady_since = None;
        while started.elapsed() < READING {
            let stopping = hold::stopping(&self.paths);
            let unit = self.service.state().await?;
            match unit.active.as_str() {
                _ if unit.runs() && pid.is_some_and(|pid| unit.main_pid != pid) => {
                    return Ok(Survival::Replaced);
                }
                "active" => {
                    if steady_since.get_or_insert_with(Instant::now).elapsed() >= STEADY {
                        return Ok(Survival::Steady);
                    }
                }
                "reloading" => steady_since = None,
                _ if stopping => return Err(Trouble::from_obstacle(Obstacle::Stopping, &self.paths)),
                "deactivating" => {}
                _ => return Ok(Survival::Fell),
            }
            sleep(POLL).await;
        }
        Ok(Survival::Fell)
    }

    /// Brings back the file that keepalived is known to have run, and keepalived with it.
    async fn roll_back(&mut self, view: &View, act: Act, text: &str, before: Option<Before>) -> Trouble {
        let verb = if act == Act::Start { "start" } else { "survive a reload" };
        let trouble = Trouble::failed(format!("keepalived did not {verb} with its new configuration"));
        self.distrusted = Some(Distrusted {
            text: text.to_owned(),
            until: Instant::now() + DISTRUST,
            trouble: trouble.clone(),
        });
        let Some(before) = before.map(|before| before.or_loaded(view, text)) else {
            return trouble;
        };
        warn!("keepalived did not {verb} with its new configuration: the one before is brought back");
        if let Err(error) = before.restore(&self.paths) {
            return error.into();
        }
        match self.revive().await {
            Ok(()) => {
                if let Some(text) = &before.text {
                    self.publish(|status| status.vips = carried_in(text));
                }
                trouble
            }
            Err(error) => Trouble::failed(format!(
                "keepalived did not {verb} with its new configuration, nor the one before: {error}"
            )),
        }
    }

    async fn revive(&mut self) -> Result<(), UnitError> {
        match self.service.state().await? {
            unit if unit.runs() => self.service.reload().await,
            _ => self.service.start().await,
        }
    }
}

/// A file as it was before kvip replaced it.
pub(super) struct Before {
    /// Which file.
    pub(super) place: Place,
    /// What it said; `None` when it was not there or not kvip's.
    pub(super) text: Option<String>,
}

impl Before {
    /// What keepalived is known to have run is better than what happened to be on disk.
    fn or_loaded(self, view: &View, failed: &str) -> Self {
        let loaded = view.disk.loaded.clone().filter(|loaded| loaded != failed);
        Self { text: loaded.or(self.text), ..self }
    }

    /// Puts it back.
    pub(super) fn restore(&self, paths: &Paths) -> Result<(), files::FileError> {
        match &self.text {
            Some(text) => files::replace(&self.place.path(paths), text, files::PUBLIC),
            None => files::remove(&self.place.path(paths)),
        }
    }
}
