//! The sign of life in `/run/kvip/alive`: by it the next run knows whether kvip was gone for too long.
//!
//! keepalived sees by itself when no kvip runs for `gone_after`, and begins to count anew at each start (check_process in
//! track_process.c). One that ends at once, or hangs, and that systemd starts for ever, would never count as gone. So a run first
//! of all looks when the last turn was made, before its settings can be wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

use crate::config::Settings;
use crate::derive;
use crate::files::{self, FileError};
use crate::keepalived::{Paths, handover, weight};
use crate::model::Vrid;
use crate::report::words::age;

/// How often a daemon that turns gives a sign of life.
pub const EVERY: Duration = Duration::from_secs(5);

/// `vrrp.gone_after` where the last run said nothing of a group.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// The last sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alive {
    /// The time since boot.
    at: Duration,
    /// How long kvip may be gone from each group.
    gone_after: BTreeMap<Vrid, Duration>,
}

/// Gives a sign of life.
///
/// # Errors
/// When the file cannot be written.
pub fn beat(paths: &Paths, settings: &Settings) -> Result<(), FileError> {
    let groups = derive::groups_of(settings).into_iter();
    let gone_after = groups.map(|group| (group.vrrp.vrid, group.vrrp.gone_after)).collect();
    files::replace(&paths.alive(), Alive { at: since_boot(), gone_after }.to_string(), files::PUBLIC)
}

/// Lowers the weights of the groups that kvip was gone from for too long, as keepalived does while no kvip runs. The daemon
/// raises them when it has programmed what is wanted.
///
/// # Errors
/// When a file cannot be read or written.
pub fn yield_if_gone(paths: &Paths) -> Result<(), FileError> {
    yield_at(paths, since_boot())
}

fn yield_at(paths: &Paths, now: Duration) -> Result<(), FileError> {
    let Some(last) = files::read(&paths.alive())?.and_then(|text| Alive::parse(&text)) else {
        return Ok(());
    };
    for vrid in handover::vrids_here(paths)?.into_iter().filter(|vrid| last.is_gone(*vrid, now)) {
        let Some(before) = weight::read(paths, vrid)? else { continue };
        let lowered = weight::as_gone(before);
        if lowered != before {
            weight::write(paths, vrid, lowered)?;
            let gone = age(now.saturating_sub(last.at));
            warn!(vrid = %vrid, "kvip has not turned for {gone}: weight of VRID {vrid} is now {lowered}");
        }
    }
    Ok(())
}

impl Alive {
    /// Whether keepalived would have taken kvip for gone, had none been started since.
    fn is_gone(&self, vrid: Vrid, now: Duration) -> bool {
        let gone_after = self.gone_after.get(&vrid).copied().unwrap_or(GONE_AFTER);
        now.saturating_sub(self.at) >= gone_after + EVERY
    }

    fn parse(text: &str) -> Option<Self> {
        let seconds = |text: &str| text.trim().parse().ok().map(Duration::from_secs);
        let (at, groups) = text.split_once('\n')?;
        let group = |line: &str| {
            let (vrid, gone_after) = line.split_once(' ')?;
            Some((Vrid::new(vrid.parse().ok()?)?, seconds(gone_after)?))
        };
        Some(Self { at: seconds(at)?, gone_after: groups.lines().filter_map(group).collect() })
    }
}

/// The seconds since boot; then in each line a VRID, and for how many seconds kvip may be gone from it.
impl fmt::Display for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.at.as_secs())?;
        self.gone_after.iter().try_for_each(|(vrid, after)| writeln!(f, "{vrid} {}", after.as_secs()))
    }
}

/// The time since boot, in which a suspended host's sleep counts: it is not here for its clients then either.
fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vrid(number: i64) -> Vrid {
        Vrid::new(number).unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Weights of VRID 50, from which kvip may be gone for 60 s, before and after a start so many seconds after the last turn.
    #[track_caller]
    fn check(gone: u64, before: &str, after: &str) {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let file = paths.weight(vrid(50));
        files::replace(&file, before, files::PUBLIC).unwrap();
        files::replace(&paths.alive(), "1000\n50 60\n60 120\n", files::PUBLIC).unwrap();
        yield_at(&paths, seconds(1000 + gone)).unwrap();
        assert_eq!(files::read(&file).unwrap().unwrap(), after, "{before} after {gone} s");
    }

    #[test]
    fn who_was_gone_for_too_long_yields() {
        check(64, "64\n", "64\n");
        check(65, "64\n", "-64\n");
        check(65, "0\n", "-128\n");
        for low in ["-64\n", "-128\n", "-253\n", "-254\n", ""] {
            check(100_000, low, low);
        }
    }

    #[test]
    fn each_group_has_its_own_time() {
        let last = Alive::parse("1000\n50 1\n60 120\n").unwrap();
        let gone = |after: u64| [50, 60, 70].map(|number| last.is_gone(vrid(number), seconds(1000 + after)));
        assert_eq!(gone(5), [false; 3]);
        assert_eq!(gone(6), [true, false, false]);
        assert_eq!(gone(65), [true, false, true]);
        assert_eq!(gone(125), [true; 3]);
        assert!(!last.is_gone(vrid(50), Duration::ZERO), "a clock that went back");
    }

    #[test]
    fn what_is_written_is_read() {
        let alive = Alive { at: seconds(77), gone_after: [(vrid(50), seconds(60))].into() };
        assert_eq!(Alive::parse(&alive.to_string()), Some(alive));
        for text in ["", "77", "soon\n50 60\n"] {
            assert_eq!(Alive::parse(text), None, "{text}");
        }
    }

    #[test]
    fn without_a_sign_of_life_nothing_is_known() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        weight::write(&paths, vrid(50), weight::FRESH_HOLDER).unwrap();
        yield_if_gone(&paths).unwrap();
        assert_eq!(weight::read(&paths, vrid(50)).unwrap(), Some(weight::FRESH_HOLDER));
        beat(&paths, &Settings::standard(vec!["10.87.2.0/24".parse().unwrap()])).unwrap();
        yield_if_gone(&paths).unwrap();
        assert_eq!(weight::read(&paths, vrid(50)).unwrap(), Some(weight::FRESH_HOLDER));
        assert!(files::read(&paths.alive()).unwrap().unwrap().ends_with("\n50 60\n"));
    }
}
