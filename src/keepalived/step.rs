//! What to do next so that keepalived runs what is wanted: one pure decision at a time.
//!
//! Owns the order of things: VIPs join a running keepalived in chunks and leave at once. Does no IO.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::place::{Disk, Place};
use super::{Build, Config, Paths, carried_in};
use crate::unit::{UnitError, UnitState};

/// How many VIPs join a running keepalived at once: it sends no adverts while it adds addresses, and a thousand in one
/// reload were measured to make a second master.
pub const CHUNK: usize = 100;

/// What is known when a step is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// keepalived's files.
    pub disk: Disk,
    /// The unit.
    pub unit: UnitState,
    /// Whether the unit is being stopped, or was and has not been started since (see [`super::hold`]).
    pub stopping: bool,
    /// What keepalived was built with.
    pub build: Build,
}

/// What makes keepalived read its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It does not run.
    Start,
    /// It runs.
    Reload,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// keepalived runs what is wanted.
    Nothing,
    /// Nothing is wanted here, and there is nothing of kvip's.
    Idle,
    /// keepalived must read the file, which is as wanted.
    Act(Act),
    /// The file is not as wanted.
    Write {
        /// Which file.
        place: Place,
        /// What it must say.
        text: String,
        /// What follows; `None` when keepalived cannot or must not run now.
        act: Option<Act>,
    },
    /// Nothing is wanted here and keepalived carries nothing of it any more: the file goes, and with it the mark of a stop.
    /// A file that is left would be in the way of the next boot, as keepalived never calls itself ready without an
    /// instance; a mark, in the way of the next VIP, as nothing starts keepalived without a file.
    Remove(Place),
    /// Another must act first.
    Wait(Obstacle),
}

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// `keepalived.conf` is somebody else's and does not include kvip's file yet.
    NotIncluded,
    /// Both files are somebody else's.
    NotOurs,
    /// Somebody stopped keepalived.
    Stopped,
    /// The unit is being stopped.
    Stopping,
    /// The unit is masked or absent.
    Unit(UnitError),
}

/// Decides the next step towards `want`.
pub fn next_step(view: &View, want: &Config, paths: &Paths) -> Step {
    let Some(place) = view.disk.place(paths) else {
        return Step::Wait(Obstacle::NotOurs);
    };
    let here = view.disk.ours(place);
    if want.instances.is_empty() && here.is_none() {
        return Step::Idle;
    }
    if let Some(error) = view.unit.obstacle() {
        return Step::Wait(Obstacle::Unit(error));
    }
    let text = place.render(&next_config(view, here, want), paths, view.build);
    let written = here == Some(&*text);
    match keepalived_next(view, place, want) {
        Next::Wait(obstacle) if written => Step::Wait(obstacle),
        Next::Rest => Step::Remove(place),
        Next::Wait(_) => Step::Write { place, text, act: None },
        Next::Act(Act::Reload) if written && view.disk.loaded.as_deref() == Some(&*text) => {
            if want.instances.is_empty() { Step::Remove(place) } else { Step::Nothing }
        }
        Next::Act(act) if written => Step::Act(act),
        Next::Act(act) => Step::Write { place, text, act: Some(act) },
    }
}

/// What keepalived itself needs once the file is right.
enum Next {
    Act(Act),
    Wait(Obstacle),
    Rest,
}

fn keepalived_next(view: &View, place: Place, want: &Config) -> Next {
    if place == (Place::Fragment { included: false }) {
        return Next::Wait(Obstacle::NotIncluded);
    }
    match view.unit.active.as_str() {
        _ if view.unit.runs() => Next::Act(Act::Reload),
        "deactivating" => Next::Wait(Obstacle::Stopping),
        _ if want.instances.is_empty() => Next::Rest,
        _ if view.stopping => Next::Wait(Obstacle::Stopped),
        _ => Next::Act(Act::Start),
    }
}

/// What the file says next: all that is wanted, unless that would add more than a chunk to a running keepalived, or move a
/// VIP between two groups in one reload. Such a VIP first leaves the one and then joins the other: keepalived 2.2.7 adds
/// to its instances in their order and removes likewise, so that a holder of both that moves a VIP to the earlier of the
/// two finds it there and then removes it for the later one.
fn next_config(view: &View, here: Option<&str>, want: &Config) -> Config {
    if !view.unit.runs() {
        return want.clone();
    }
    let running = view.disk.loaded.as_deref().or(here).map(carried_in).unwrap_or_default();
    let wanted: BTreeSet<IpAddr> = want.instances.iter().flat_map(|i| i.vips.iter().copied()).collect();
    let chunk: BTreeSet<IpAddr> = wanted.difference(&running.vips()).take(CHUNK).copied().collect();
    let mut next = want.clone();
    for instance in &mut next.instances {
        let vrid = instance.vrid;
        instance.vips.retain(|vip| running.has(vrid, *vip) || chunk.contains(vip));
    }
    next
}

#[cfg(test)]
mod tests;
