//! Which VIPs keepalived carries in which group, as the file that it runs tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use crate::model::Vrid;

/// VIPs by the group whose instances carry them. While a VIP moves between groups it is in both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Carried(BTreeMap<Vrid, BTreeSet<IpAddr>>);

impl Carried {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the group `vrid` carries `vip`.
    pub fn has(&self, vrid: Vrid, vip: IpAddr) -> bool {
        self.0.get(&vrid).is_some_and(|vips| vips.contains(&vip))
    }

    /// Whether any group carries `vip`.
    pub fn contains(&self, vip: IpAddr) -> bool {
        self.0.values().any(|vips| vips.contains(&vip))
    }

    /// The groups that carry `vip`.
    pub fn groups_of(&self, vip: IpAddr) -> impl Iterator<Item = Vrid> + '_ {
        self.0.iter().filter(move |(_, vips)| vips.contains(&vip)).map(|(vrid, _)| *vrid)
    }

    /// The groups.
    pub fn vrids(&self) -> impl Iterator<Item = Vrid> + '_ {
        self.0.keys().copied()
    }

    /// Whether keepalived has an instance of this group.
    pub fn has_group(&self, vrid: Vrid) -> bool {
        self.0.contains_key(&vrid)
    }

    /// All VIPs.
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        self.0.values().flatten().copied().collect()
    }

    /// All VIPs, each with a group that carries it.
    pub fn pairs(&self) -> BTreeSet<(IpAddr, Vrid)> {
        self.0.iter().flat_map(|(vrid, vips)| vips.iter().map(|vip| (*vip, *vrid))).collect()
    }

    /// How many VIPs there are.
    pub fn len(&self) -> usize {
        self.vips().len()
    }

    /// Whether no group carries a VIP.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(BTreeSet::is_empty)
    }

    /// Takes in what another carries as well.
    pub fn merge(&mut self, other: Self) {
        for (vrid, vips) in other.0 {
            self.0.entry(vrid).or_default().extend(vips);
        }
    }
}

impl FromIterator<(Vrid, BTreeSet<IpAddr>)> for Carried {
    fn from_iter<T: IntoIterator<Item = (Vrid, BTreeSet<IpAddr>)>>(groups: T) -> Self {
        let mut all = Self::default();
        for (vrid, vips) in groups {
            all.0.entry(vrid).or_default().extend(vips);
        }
        all
    }
}
