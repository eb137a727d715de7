//! The weight that a node adds to its base priority, and the files that carry it to keepalived (`track_file`).
//!
//! Owns the tiers and `/run/kvip/weight-VRID`; never decides who may write one (see [`super::hold`]).

use std::collections::BTreeSet;
use std::time::Duration;

use super::Paths;
use crate::files::{self, FileError};
use crate::model::Vrid;

/// keepalived puts the instance into FAULT: this node can hold nothing (`vrrp_track.c`: status <= -254).
pub const OUT: i16 = -254;

/// A holder in touch with the API: above every fresh backup, so that a node that returns takes nothing back.
pub const FRESH_HOLDER: i16 = 64;

/// A backup in touch with the API.
pub const FRESH_BACKUP: i16 = 0;

/// A holder that has lost the API: below every fresh backup.
pub const STALE_HOLDER: i16 = -64;

/// A backup that has lost the API: below every stale holder, so that an outage for all moves nothing.
pub const STALE_BACKUP: i16 = -128;

/// A holder that wants to be relieved. With any base the sum is below 1, which keepalived raises to 1: below every
/// backup that can serve at all, fresh or stale, and yet no fault, so that it answers until somebody takes over.
pub const LEAVING: i16 = -253;

/// The highest base priority of a group.
pub const HIGHEST_BASE: u8 = 190;

/// The lowest base priority of a group.
pub const LOWEST_BASE: u8 = 141;

/// What the weight is decided from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// IPVS and the ruleset are as the group's VIPs need them.
    pub programmed: bool,
    /// The admin has drained the node.
    pub drained: bool,
    /// The group's anchor is on an interface of this host.
    pub holds_anchor: bool,
    /// How long ago the API last answered.
    pub contact_age: Duration,
    /// How long a backup counts as fresh after that; a holder counts as fresh for twice as long.
    pub stale_after: Duration,
}

/// The weight for `inputs`.
pub fn weight(inputs: &Inputs) -> i16 {
    if !inputs.programmed || inputs.drained {
        return OUT;
    }
    match (inputs.holds_anchor, stale(inputs)) {
        (true, false) => FRESH_HOLDER,
        (false, false) => FRESH_BACKUP,
        (true, true) => STALE_HOLDER,
        (false, true) => STALE_BACKUP,
    }
}

/// The holder is the last to call itself stale: in an outage for all, every backup has lowered itself before it does.
fn stale(inputs: &Inputs) -> bool {
    let fresh_for = inputs.stale_after * if inputs.holds_anchor { 2 } else { 1 };
    inputs.contact_age >= fresh_for
}

/// The weight of a node that had `weight` and is a backup now: of the tier below for a holder's, else the same.
pub fn as_backup(weight: i16) -> i16 {
    match weight {
        FRESH_HOLDER => FRESH_BACKUP,
        STALE_HOLDER => STALE_BACKUP,
        other => other,
    }
}

/// The weight of a node that had `weight` and whose kvip is gone: that of one that has lost the API.
pub fn as_gone(weight: i16) -> i16 {
    match weight {
        FRESH_HOLDER => STALE_HOLDER,
        FRESH_BACKUP => STALE_BACKUP,
        other => other,
    }
}

/// Tells keepalived the weight of `vrid`. A weight that is there already is not written again.
pub fn write(paths: &Paths, vrid: Vrid, weight: i16) -> Result<(), FileError> {
    if read(paths, vrid)? == Some(weight) {
        return Ok(());
    }
    files::replace(&paths.weight(vrid), format!("{weight}\n"), files::PUBLIC)
}

/// The weight of `vrid` that keepalived sees; `None` when the file is missing or holds no weight, which keepalived takes
/// for 0.
pub fn read(paths: &Paths, vrid: Vrid) -> Result<Option<i16>, FileError> {
    let text = files::read(&paths.weight(vrid))?.unwrap_or_default();
    Ok(text.trim().parse().ok().filter(|weight| (OUT..=-OUT).contains(weight)))
}

/// Closes what would fail open: every file without a weight gets [`OUT`]. A live weight is left alone.
pub fn prepare(paths: &Paths, vrids: impl IntoIterator<Item = Vrid>) -> Result<BTreeSet<Vrid>, FileError> {
    let mut made = BTreeSet::new();
    for vrid in vrids {
        if read(paths, vrid)?.is_none() {
            files::replace(&paths.weight(vrid), format!("{OUT}\n"), files::PUBLIC)?;
            made.insert(vrid);
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STALE_AFTER: Duration = Duration::from_secs(300);

    /// From the best to the worst.
    const TIERS: [i16; 5] = [FRESH_HOLDER, FRESH_BACKUP, STALE_HOLDER, STALE_BACKUP, LEAVING];

    fn base() -> impl Strategy<Value = i16> {
        prop_oneof![Just(190), Just(170), Just(150), 141..=149i16]
    }

    /// As `vrrp_set_effective_priority` of keepalived limits it.
    fn effective(base: i16, weight: i16) -> i16 {
        (base + weight).clamp(1, 254)
    }

    proptest! {
        #[test]
        fn every_tier_beats_every_lower_one(a in base(), b in base(), high in 0usize..5, low in 0usize..5) {
            prop_assume!(high < low);
            prop_assert!(effective(a, TIERS[high]) > effective(b, TIERS[low]));
        }

        #[test]
        fn sums_of_all_tiers_but_leaving_need_no_limit(a in base(), tier in 0usize..4) {
            prop_assert!((1..=254).contains(&(a + TIERS[tier])));
        }
    }

    #[track_caller]
    fn check(programmed: bool, drained: bool, holds_anchor: bool, age_secs: u64, want: i16) {
        let contact_age = Duration::from_secs(age_secs);
        let inputs = Inputs { programmed, drained, holds_anchor, contact_age, stale_after: STALE_AFTER };
        assert_eq!(weight(&inputs), want, "{inputs:?}");
    }

    #[test]
    fn weights() {
        check(false, false, true, 0, OUT);
        check(true, true, true, 0, OUT);
        check(true, false, true, 0, FRESH_HOLDER);
        check(true, false, false, 299, FRESH_BACKUP);
        check(true, false, false, 300, STALE_BACKUP);
        check(true, false, true, 599, FRESH_HOLDER);
        check(true, false, true, 600, STALE_HOLDER);
    }

    #[test]
    fn kvip_gone_makes_a_fresh_holder_stale() {
        assert_eq!([FRESH_HOLDER, FRESH_BACKUP].map(as_gone), [STALE_HOLDER, STALE_BACKUP]);
        assert_eq!(FRESH_HOLDER + super::super::render::GONE_WEIGHT, STALE_HOLDER);
        assert_eq!(FRESH_BACKUP + super::super::render::GONE_WEIGHT, STALE_BACKUP);
    }

    #[test]
    fn prepare_closes_what_is_open_and_keeps_what_lives() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let vrid = |n| Vrid::new(n).unwrap();
        write(&paths, vrid(1), 64).unwrap();
        for (n, text) in [(2, ""), (3, "garbage"), (4, "9999")] {
            files::replace(&paths.weight(vrid(n)), text, files::PUBLIC).unwrap();
        }
        let made = prepare(&paths, (1..=5).map(vrid)).unwrap();
        assert_eq!(made, (2..=5).map(vrid).collect());
        assert_eq!(read(&paths, vrid(1)).unwrap(), Some(64));
        for n in 2..=5 {
            assert_eq!(read(&paths, vrid(n)).unwrap(), Some(OUT));
        }
        assert!(prepare(&paths, (1..=5).map(vrid)).unwrap().is_empty());
    }
}
