//! What a Service asks of the pools, and what may be given to nobody.
//!
//! Plain data, filled by whoever knows the settings: which pools a Service may use is decided before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claim::Port;
use crate::config::{AddressRange, Pool};
use crate::model::{Family, ObjectKey};
use crate::snapshot::FamilyPolicy;

/// What one Service asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The Service.
    pub service: ObjectKey,
    /// Its UID.
    pub uid: String,
    /// The families that it wants, in its order.
    pub families: Vec<Family>,
    /// Whether all of them are needed.
    pub policy: FamilyPolicy,
    /// Which addresses.
    pub wish: Wish,
    /// All pools that it may use, those without `auto_assign` among them; tried by priority, then name.
    pub pools: Vec<Arc<Pool>>,
    /// Addresses outside the pools that it may name as well.
    pub nameable: Vec<AddressRange>,
    /// The key that Services which share an address agree on, with the namespace before it.
    pub share_key: Option<String>,
    /// Its ports.
    pub ports: BTreeSet<Port>,
}

/// Which addresses a Service asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Wish {
    /// Any.
    #[default]
    Any,
    /// Any of the pool of that name.
    Pool(String),
    /// These; a family that none of them is of gets any.
    Addresses(Vec<IpAddr>),
}

/// One address that a request is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub family: Family,
    /// This very one.
    pub fixed: Option<IpAddr>,
}

impl Request {
    /// The addresses that it is to have: each one named, and one for each family that none is named of.
    pub(super) fn slots(&self) -> Vec<Slot> {
        let named: &[IpAddr] = match &self.wish {
            Wish::Addresses(named) => named,
            Wish::Any | Wish::Pool(_) => &[],
        };
        let mut slots = Vec::new();
        for &family in &self.families {
            let before = slots.len();
            let of_family = named.iter().filter(|address| Family::of(**address) == family);
            for &address in of_family {
                let slot = Slot { family, fixed: Some(address) };
                if !slots.contains(&slot) {
                    slots.push(slot);
                }
            }
            if slots.len() == before {
                slots.push(Slot { family, fixed: None });
            }
        }
        slots
    }

    /// The named addresses of families that it does not want.
    pub(super) fn of_no_family(&self) -> impl Iterator<Item = IpAddr> {
        let named: &[IpAddr] = match &self.wish {
            Wish::Addresses(named) => named,
            Wish::Any | Wish::Pool(_) => &[],
        };
        named.iter().copied().filter(|address| !self.families.contains(&Family::of(*address)))
    }

    /// Whether it needs all its families or none.
    pub fn all_or_nothing(&self) -> bool {
        self.policy == FamilyPolicy::RequireDualStack
    }

    /// The pools that an address is taken from unasked, in the order in which they are tried.
    pub(super) fn pools_to_try(&self) -> Vec<&Pool> {
        let mut pools: Vec<&Pool> = match &self.wish {
            Wish::Pool(name) => {
                self.pools.iter().map(AsRef::as_ref).filter(|pool| pool.name == *name).collect()
            }
            Wish::Any | Wish::Addresses(_) => {
                self.pools.iter().map(AsRef::as_ref).filter(|pool| pool.auto_assign).collect()
            }
        };
        pools.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        pools
    }

    /// The pool that it may use and that `address` lies in.
    pub(super) fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        let mut pools = self.pools.iter().map(AsRef::as_ref);
        pools.find(|pool| pool.addresses.iter().any(|range| range.contains(address)))
    }

    /// Whether it may have `address` at all.
    pub(super) fn may_have(&self, address: IpAddr) -> bool {
        self.pool_of(address).is_some() || self.nameable.iter().any(|range| range.contains(address))
    }
}

/// Addresses that are given to nobody, each with what it is to people: `is the address of node node-a`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Single ones: nodes, gateways, VIPs that are asked for in another way.
    pub addresses: BTreeMap<IpAddr, String>,
    /// Ranges of them: the cluster's Services and pods.
    pub ranges: Vec<(AddressRange, String)>,
}

impl Reserved {
    /// What `address` is, when it may not be given.
    pub fn why(&self, address: IpAddr) -> Option<&str> {
        let single = self.addresses.get(&address).map(String::as_str);
        single.or_else(|| self.range(address).map(|(_, why)| why.as_str()))
    }

    /// The range that `address` lies in.
    pub(super) fn range(&self, address: IpAddr) -> Option<&(AddressRange, String)> {
        self.ranges.iter().find(|(range, _)| range.contains(address))
    }
}
