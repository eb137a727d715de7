//! The task that brings keepalived to what is wanted, one step after another, for as long as kvip runs.
//!
//! ```text
//! wants ──► next_step (pure) ──► check, write, keepalived -t, rename ──► start or reload ──► confirm ──► Status
//!              ▲                                                              │
//!              └──────────── again: at new wants, after a delay ◄── roll back ┘
//! ```
//!
//! Owns kvip's keepalived file and the record of what keepalived runs. Never stops keepalived, never writes a weight.

mod act;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use self::act::{Before, Distrusted};
use super::place::{Disk, Place};
use super::service::Service;
use super::status::{State, Status};
use super::step::{Act, Step, View, next_step};
use super::trouble::Trouble;
use super::{Build, Carried, Config, Paths, anchor, carried_in, check, hold};
use crate::backoff::Backoff;
use crate::files;
use crate::model::Finding;
use crate::net::HostFacts;
use crate::report::beats;
use crate::unit::UnitState;

/// Changes that come within this time are one.
pub const DEBOUNCE: Duration = Duration::from_millis(200);

/// How often a keepalived that is as wanted is looked at again: the admin may have stopped it or changed its files.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long keepalived rests between two chunks, in which it announces the addresses of the first.
const CHUNK_PAUSE: Duration = Duration::from_secs(1);

/// The first and the longest delay before something that failed is tried again. A keepalived that others start meanwhile is
/// seen before its VIPs are taken for what a killed one left, which the daemon removes after 15 s.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How long a holder may take to add its VIPs.
const CARRYING: Duration = Duration::from_secs(10);

/// Starts the task. It ends when the sender of `wants` is gone.
///
/// `None` means that nobody knows yet what is wanted, and changes nothing; a configuration without instances takes this
/// node out of VRRP.
pub fn spawn<S: Service + 'static>(
    wants: watch::Receiver<Option<Config>>,
    facts: watch::Receiver<HostFacts>,
    paths: Paths,
    service: S,
) -> watch::Receiver<Status> {
    let vips = Disk::read(&paths).map(|disk| vips_on(&disk, &paths)).unwrap_or_default();
    let (status, seen) = watch::channel(Status::waiting("for what the cluster wants", vips));
    let driver = Driver { service, paths, facts, status, build: None, distrusted: None, replaced: false };
    tokio::spawn(driver.run(wants));
    seen
}

/// All VIPs that keepalived may run, given its files: it may have read kvip's file without kvip.
fn vips_on(disk: &Disk, paths: &Paths) -> Carried {
    let here = disk.place(paths).and_then(|place| disk.ours(place));
    let mut all = Carried::new();
    for text in [here, disk.loaded.as_deref()].into_iter().flatten() {
        all.merge(carried_in(text));
    }
    all
}

/// None of the VIPs that a keepalived which does not run left on an interface are carried. One that is being stopped answers
/// until another node takes over.
fn carries(disk: &Disk, unit: &UnitState, paths: &Paths) -> Carried {
    let lives = unit.runs() || unit.active == "deactivating";
    if lives { vips_on(disk, paths) } else { Carried::new() }
}

struct Driver<S> {
    service: S,
    paths: Paths,
    facts: watch::Receiver<HostFacts>,
    status: watch::Sender<Status>,
    build: Option<Build>,
    distrusted: Option<Distrusted>,
    /// The last reload met another main process than the one that was to read the file.
    replaced: bool,
}

/// What to do with the outcome of a step.
enum Done {
    /// keepalived is in this state, and will be until something changes.
    Rest(State),
    /// There may be more to do.
    More,
}

impl<S: Service> Driver<S> {
    async fn run(mut self, mut wants: watch::Receiver<Option<Config>>) {
        let mut retry = Backoff::new(RETRY);
        loop {
            beats::beat("keepalived", beats::PATIENT);
            let want = wants.borrow_and_update().clone();
            let pause = match self.advance(want.as_ref()).await {
                Ok(pause) => {
                    retry.reset();
                    pause
                }
                Err(trouble) => {
                    self.tell(trouble);
                    retry.failed()
                }
            };
            tokio::select! {
                changed = wants.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    retry.reset();
                    sleep(DEBOUNCE).await;
                }
                () = self.host_may_have_mended_it() => sleep(DEBOUNCE).await,
                () = sleep(pause) => {}
            }
        }
    }

    /// One step; how long to pause after it unless something changes.
    async fn advance(&mut self, want: Option<&Config>) -> Result<Duration, Trouble> {
        let Some(want) = want else {
            return Ok(LOOK_AGAIN);
        };
        match self.step(want).await? {
            Done::More => Ok(self.more_to_join(want)),
            Done::Rest(state) => {
                let problem = if state == State::Active { self.uncarried(want).await } else { None };
                self.publish(|status| {
                    status.state = state;
                    status.problem = problem;
                });
                Ok(LOOK_AGAIN)
            }
        }
    }

    /// VIPs that are left for the next chunk wait until those of the last are announced; anything else goes on at once.
    fn more_to_join(&self, want: &Config) -> Duration {
        let vips = want.instances.iter().flat_map(|i| &i.vips);
        let left = vips.filter(|vip| !self.status.borrow().vips.contains(**vip)).count();
        if left == 0 {
            return Duration::ZERO;
        }
        self.publish(|status| status.state = State::Waiting(format!("to add {left} more VIPs")));
        CHUNK_PAUSE
    }

    async fn step(&mut self, want: &Config) -> Result<Done, Trouble> {
        let view = self.look().await?;
        check(want, &self.facts.borrow())?;
        match next_step(&view, want, &self.paths) {
            Step::Nothing => Ok(Done::Rest(State::Active)),
            Step::Idle => {
                // There may be some of an earlier kvip, or of a stop while the file went.
                files::remove(&self.paths.loaded())?;
                hold::clear_stopping(&self.paths)?;
                self.publish(|status| status.vips = Carried::new());
                Ok(Done::Rest(State::Idle))
            }
            Step::Remove(place) => {
                files::remove(&place.path(&self.paths))?;
                files::remove(&self.paths.loaded())?;
                hold::clear_stopping(&self.paths)?;
                self.publish(|status| status.vips = Carried::new());
                Ok(Done::More)
            }
            Step::Wait(obstacle) => Err(Trouble::from_obstacle(obstacle, &self.paths)),
            Step::Act(act) => {
                let place = view.disk.place(&self.paths);
                if act == Act::Reload && place == Some(Place::Fragment { included: true }) {
                    self.spare().await?;
                }
                let text = place.and_then(|place| view.disk.ours(place)).unwrap_or_default();
                // A write that was interrupted has not shown yet that keepalived survives it.
                let loaded = view.disk.loaded.clone().filter(|loaded| loaded != text);
                let before = place.zip(loaded).map(|(place, text)| Before { place, text: Some(text) });
                self.act(&view, act, text, before).await.map(|()| Done::More)
            }
            Step::Write { place, text, act } => {
                self.write(&view, place, &text, act).await.map(|()| Done::More)
            }
        }
    }

    async fn look(&mut self) -> Result<View, Trouble> {
        let disk = Disk::read(&self.paths)?;
        let marked = hold::stopping(&self.paths);
        let unit = self.service.state().await?;
        let vips = carries(&disk, &unit, &self.paths);
        self.publish(|status| status.vips = vips);
        // ExecStop, which makes the mark, runs while the unit is deactivating: this one has outlived its stop.
        let outlived = marked && unit.active == "active";
        if outlived {
            hold::clear_stopping(&self.paths)?;
        }
        let build = match self.build {
            Some(build) => build,
            // Without a unit there may be no program to ask, and there is nothing to render.
            None if unit.obstacle().is_some() => Build::default(),
            None => *self.build.insert(self.service.build().await?),
        };
        Ok(View { disk, unit, stopping: marked && !outlived, build })
    }

    /// Replaces the file by one that keepalived accepts, then has it read.
    async fn write(
        &mut self,
        view: &View,
        place: Place,
        text: &str,
        act: Option<Act>,
    ) -> Result<(), Trouble> {
        if let Err(trouble) = self.trusted(text) {
            // The file that is there is the good one: a keepalived that is down runs it meanwhile.
            if act == Some(Act::Start) && view.disk.ours(place).is_some() {
                self.service.start().await?;
            }
            return Err(trouble);
        }
        let path = place.path(&self.paths);
        let draft = files::draft(&path);
        files::write_draft(&draft, text, files::PUBLIC)?;
        if let Err(error) = self.service.accepts(&draft).await {
            self.build = None;
            files::remove(&draft)?;
            return Err(error.into());
        }
        self.publish(|status| {
            status.state = State::Waiting("for keepalived to read its configuration".to_owned());
            status.vips.merge(carried_in(text));
        });
        let before = Before { place, text: view.disk.ours(place).map(str::to_owned) };
        if place == (Place::Fragment { included: true }) {
            self.publish_included(&draft, &path, &before).await?;
        } else {
            files::publish(&draft, &path)?;
        }
        match act {
            Some(act) => self.act(view, act, text, Some(before)).await,
            None => Ok(()),
        }
    }

    /// Publishes the fragment unless keepalived refuses the two files together for its sake, or would end on them whoever wrote
    /// the line. What it says of the other's file anyway and survives, a warning perhaps, is for the other to mend.
    async fn publish_included(&mut self, draft: &Path, path: &Path, before: &Before) -> Result<(), Trouble> {
        let as_it_was = self.service.accepts(&self.paths.keepalived_conf).await;
        files::publish(draft, path)?;
        match (as_it_was, self.service.accepts(&self.paths.keepalived_conf).await) {
            (_, Ok(())) => Ok(()),
            (Err(old), Err(new)) if new.is_survived() && old.to_string() == new.to_string() => Ok(()),
            (_, Err(error)) => {
                before.restore(&self.paths)?;
                Err(error.into())
            }
        }
    }

    /// Sees to it that a running keepalived is not made to read another's file, or kvip's beside it, that it would end on.
    async fn spare(&mut self) -> Result<(), Trouble> {
        match self.service.accepts(&self.paths.keepalived_conf).await {
            Err(error) if !error.is_survived() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Waits until a holder carries its VIPs, and tells which it does not.
    async fn uncarried(&mut self, want: &Config) -> Option<Finding> {
        let carried = self.facts.wait_for(|facts| missing(want, facts).is_empty());
        let _ = tokio::time::timeout(CARRYING, carried).await;
        let missing = missing(want, &self.facts.borrow());
        let first = missing.first()?;
        let text =
            format!("holds the group of {first} ({} in all) without having the address", missing.len());
        Some(Finding::new("keepalived", text).mend("journalctl -u keepalived -n 50"))
    }

    /// Ends when the host has changed after its state was the reason for a refusal.
    async fn host_may_have_mended_it(&mut self) {
        let refused = matches!(self.status.borrow().state, State::Refused(_));
        if !refused || self.facts.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn tell(&self, trouble: Trouble) {
        if self.status.borrow().state != trouble.state {
            warn!(state = %trouble.state, "keepalived is not as wanted");
        }
        self.publish(|status| {
            status.state = trouble.state;
            status.problem = trouble.finding.map(|finding| *finding);
        });
    }

    /// Wakes the readers only when something changed.
    fn publish(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

/// The VIPs that this node should carry, as it has the anchor of their instance, and does not.
fn missing(want: &Config, facts: &HostFacts) -> BTreeSet<IpAddr> {
    let held = want.instances.iter().filter(|i| facts.has(anchor(i.vrid, i.family)));
    held.flat_map(|i| i.vips.iter().copied()).filter(|vip| !facts.has(*vip)).collect()
}

#[cfg(test)]
mod tests;
