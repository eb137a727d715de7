//! Brings the weight files to what they should say.

use std::collections::BTreeSet;

use tracing::info;

use crate::files::FileError;
use crate::keepalived::{Paths, handover, weight};
use crate::model::{Finding, Vrid};

/// Closes what would fail open, before keepalived may read a configuration that tracks it: a missing file counts as 0.
///
/// # Errors
/// Says which file cannot be read or written.
pub fn prepare(paths: &Paths, vrids: BTreeSet<Vrid>) -> Result<(), Finding> {
    weight::prepare(paths, vrids).map(drop).map_err(|error| finding(&error))
}

/// The groups whose files let this host hold VIPs. One that cannot be read counts as closed.
pub fn open(paths: &Paths) -> BTreeSet<Vrid> {
    let is_open = |vrid: &Vrid| weight::read(paths, *vrid).is_ok_and(|weight| weight > Some(weight::OUT));
    handover::vrids_here(paths).unwrap_or_default().into_iter().filter(is_open).collect()
}

/// Lowers the file of `vrid` where it says more than `limit`. What it says then.
///
/// # Errors
/// Says which file cannot be read or written.
pub fn lower(paths: &Paths, vrid: Vrid, limit: i16) -> Result<Option<i16>, Finding> {
    let current = weight::read(paths, vrid).map_err(|error| finding(&error))?;
    bring(paths, vrid, current.map(|current| current.min(limit)))
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

/// What is told of a file in the run folder that cannot be read or written.
pub fn finding(error: &FileError) -> Finding {
    let text = format!("{error}; keepalived goes on with the weights and the configuration that it has");
    Finding::new("keepalived", text).mend("df /run; systemctl restart kvip makes /run/kvip anew")
}
