//! Brings the weight files to what they should say.

use tracing::{info, warn};

use crate::keepalived::{Paths, weight};
use crate::model::Vrid;

/// Lowers what is above a backup's: a holder's weight that an earlier run left on a node that holds nothing any more. With it
/// the node would take the VIPs back as soon as keepalived sees that kvip runs again.
pub fn step_back(paths: &Paths, vrid: Vrid) {
    let current = weight::read(paths, vrid).ok().flatten();
    if current.is_some_and(|current| current > weight::FRESH_BACKUP) {
        bring(paths, vrid, Some(weight::FRESH_BACKUP));
    }
}

/// Writes `wanted` where the file of `vrid` says something else; `None` leaves it alone. What it says then, as far as known.
pub fn bring(paths: &Paths, vrid: Vrid, wanted: Option<i16>) -> Option<i16> {
    let current = weight::read(paths, vrid).unwrap_or_else(|error| {
        warn!("{error}");
        None
    });
    let Some(wanted) = wanted.filter(|wanted| current != Some(*wanted)) else { return current };
    match weight::write(paths, vrid, wanted) {
        Ok(()) => {
            info!(vrid = %vrid, "weight of VRID {vrid} is now {wanted}");
            Some(wanted)
        }
        Err(error) => {
            warn!("{error}");
            current
        }
    }
}
