//! Brings the weight files to what they should say.

use std::collections::BTreeSet;

use tracing::info;

use crate::files::FileError;
use crate::keepalived::{Paths, weight};
use crate::model::{Finding, Vrid};

/// Closes what would fail open, before keepalived may read a configuration that tracks it: a missing file counts as 0.
///
/// # Errors
/// Says which file cannot be read or written.
pub fn prepare(paths: &Paths, vrids: BTreeSet<Vrid>) -> Result<(), Finding> {
    weight::prepare(paths, vrids).map(drop).map_err(|error| finding(&error))
}

/// Lowers what is above a backup's: a holder's weight that an earlier run left on a node that holds nothing any more. With it
/// the node would take the VIPs back as soon as keepalived sees that kvip runs again.
///
/// # Errors
/// Says which file cannot be read or written.
pub fn step_back(paths: &Paths, vrid: Vrid) -> Result<(), Finding> {
    let current = weight::read(paths, vrid).map_err(|error| finding(&error))?;
    if current.is_some_and(|current| current > weight::FRESH_BACKUP) {
        bring(paths, vrid, Some(weight::FRESH_BACKUP))?;
    }
    Ok(())
}

/// Writes `wanted` where the file of `vrid` says something else; `None` leaves it alone. What it says then.
///
/// # Errors
/// Says which file cannot be read or written.
pub fn bring(paths: &Paths, vrid: Vrid, wanted: Option<i16>) -> Result<Option<i16>, Finding> {
    let current = weight::read(paths, vrid).map_err(|error| finding(&error))?;
    let Some(wanted) = wanted.filter(|wanted| current != Some(*wanted)) else { return Ok(current) };
    weight::write(paths, vrid, wanted).map_err(|error| finding(&error))?;
    info!(vrid = %vrid, "weight of VRID {vrid} is now {wanted}");
    Ok(Some(wanted))
}

fn finding(error: &FileError) -> Finding {
    let text = format!("{error}; keepalived goes on with the weights and the configuration that it has");
    Finding::new("keepalived", text).mend("df /run; systemctl restart kvip makes /run/kvip anew")
}
