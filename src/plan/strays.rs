//! Addresses that a killed keepalived left behind.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Have;
use crate::keepalived;
use crate::model::Family;
use crate::net::Address;

/// VIPs that are on this host although no keepalived holds them here.
///
/// Only addresses that kvip `owns` (rendered itself, once) and that carry a VIP's mark. While keepalived moves VIPs they
/// look like strays for a moment, so the caller acts only on those that stay.
pub fn strays(have: &Have, owns: &BTreeSet<IpAddr>) -> Vec<Address> {
    let held = |vip: IpAddr| {
        let mut groups = have.keepalived.groups_of(vip);
        groups.any(|vrid| have.facts.has(keepalived::anchor(vrid, Family::of(vip))))
    };
    let ours =
        have.facts.addresses.iter().filter(|address| address.marked_as_vip() && owns.contains(&address.ip));
    ours.filter(|address| !held(address.ip)).cloned().collect()
}
