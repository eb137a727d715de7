//! Says in the journal, group by group, which VIPs moved.

use std::net::IpAddr;

use tracing::info;

use super::status::{Moves, list};
use crate::derive::Desired;

/// Says for each group which of its VIPs came and which went.
pub fn log(moves: &Moves, desired: Option<&Desired>) {
    for (group, view) in desired.iter().flat_map(|desired| &*desired.groups) {
        let of_group = |vips: &[IpAddr]| -> Vec<IpAddr> {
            vips.iter().copied().filter(|vip| view.vips.contains(vip)).collect()
        };
        let (came, went) = (of_group(&moves.came), of_group(&moves.went));
        if !came.is_empty() {
            let vips = list(&came);
            info!(group, vips = came.len(), "group {group}: now holder (VRRP moved {vips} here)");
        }
        if !went.is_empty() {
            let vips = list(&went);
            info!(group, vips = went.len(), "group {group}: no longer holder ({vips} left this host)");
        }
    }
}
