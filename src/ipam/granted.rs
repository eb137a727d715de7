//! Which addresses a Service has, by the claims that exist: what every node serves, allocator or not.
//!
//! Pure, and the one place that decides it: the allocators work until this says what the Service asked for.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::claim::{Claim, Claims, Port, oldest_first};
use super::request::{Request, Slot, Wish};
use super::words;
use crate::model::{Family, Finding, ObjectKey};

/// What a Service has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Its addresses, in the order of its families.
    pub addresses: Vec<Grant>,
    /// What is not quite as it asked for.
    pub notices: Vec<Notice>,
}

/// One address that a Service has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The address.
    pub address: IpAddr,
    /// The pool that it came from.
    pub pool: Option<String>,
    /// The ports that the Service may serve there: all of its own, unless the address is shared.
    pub ports: BTreeSet<Port>,
}

/// Something about an address that a Service has, said to whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// No pool of today that the Service may use holds it: it is kept as long as the Service asks for an address.
    OutsidePools(IpAddr),
    /// It is not the one asked for, which is kept until that is to be had.
    StandsIn(IpAddr),
    /// These ports are not served on the shared address.
    PortsNotOurs {
        /// The shared address.
        address: IpAddr,
        /// The Service's ports that are missing there.
        ports: BTreeSet<Port>,
        /// The sharers that have them; empty while they are only not yet written down.
        by: BTreeSet<ObjectKey>,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsidePools(address) => {
                write!(f, "{address} lies in no pool that the Service may use today; it is kept")
            }
            Self::StandsIn(address) => {
                write!(f, "{address} is kept until the address asked for is to be had")
            }
            Self::PortsNotOurs { address, ports, by } if by.is_empty() => {
                write!(f, "{} of the shared {address} not served yet", words::ports(ports))
            }
            Self::PortsNotOurs { address, ports, by } => {
                let by = words::list(by);
                write!(f, "{} of the shared {address} not served: in use by {by}", words::ports(ports))
            }
        }
    }
}

impl Notice {
    /// The finding on `service` that it is.
    pub fn finding(&self, service: &ObjectKey) -> Finding {
        let finding = Finding::new(service, self.to_string());
        match self {
            Self::OutsidePools(_) => {
                finding.mend("add the address to a pool again, or delete the Service and make it again")
            }
            Self::PortsNotOurs { by, .. } if !by.is_empty() => Finding {
                refuses: true,
                ..finding.mend(
                    "let the Services that share an address have distinct ports, or give this one no share key",
                )
            },
            Self::StandsIn(_) | Self::PortsNotOurs { .. } => finding,
        }
    }
}

/// What the Service of `request` has by `claims`.
pub fn granted(request: &Request, claims: &Claims) -> Granted {
    let assignment = assign(request, claims);
    if request.all_or_nothing() && !assignment.covers(&request.families) {
        return Granted::default();
    }
    let mut granted = Granted::default();
    for chosen in assignment.slots.iter().filter_map(|(_, chosen)| *chosen) {
        let grant = grant(request, chosen.claim);
        granted.notices.extend(notices(request, chosen, &grant));
        granted.addresses.push(grant);
    }
    granted
}

fn grant(request: &Request, claim: &Claim) -> Grant {
    Grant { address: claim.address, pool: claim.pool.clone(), ports: ports_on(request, claim) }
}

/// The request's ports that are its own on `claim`. Where others may join, only what is written down counts: the next
/// one who joins goes by that as well.
fn ports_on(request: &Request, claim: &Claim) -> BTreeSet<Port> {
    if claim.share_key.is_none() && claim.users.len() == 1 {
        return request.ports.clone();
    }
    let mut earlier: BTreeSet<Port> = BTreeSet::new();
    for user in &claim.users {
        if user.uid == request.uid {
            return request
                .ports
                .iter()
                .filter(|p| user.ports.contains(p) && !earlier.contains(p))
                .copied()
                .collect();
        }
        earlier.extend(user.ports.iter());
    }
    BTreeSet::new()
}

fn notices(request: &Request, chosen: Chosen<'_>, grant: &Grant) -> Vec<Notice> {
    let mut notices = Vec::new();
    if !chosen.fits {
        notices.push(Notice::StandsIn(grant.address));
    } else if !request.may_have(grant.address) {
        notices.push(Notice::OutsidePools(grant.address));
    }
    let missing: BTreeSet<Port> = request.ports.difference(&grant.ports).copied().collect();
    if !missing.is_empty() {
        let by = holders(request, chosen.claim, &missing);
        notices.push(Notice::PortsNotOurs { address: grant.address, ports: missing, by });
    }
    notices
}

/// The other users of `claim` that have one of `ports`.
pub(super) fn holders(request: &Request, claim: &Claim, ports: &BTreeSet<Port>) -> BTreeSet<ObjectKey> {
    let others = claim.users.iter().filter(|user| user.uid != request.uid);
    others.filter(|user| !user.ports.is_disjoint(ports)).map(|user| user.service.clone()).collect()
}

/// Which claim serves which address that is asked for.
#[derive(Debug)]
pub(super) struct Assignment<'a> {
    pub slots: Vec<(Slot, Option<Chosen<'a>>)>,
    /// Claims of the Service that it has no use for.
    pub surplus: Vec<&'a Claim>,
}

/// A claim that serves a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen<'a> {
    pub claim: &'a Claim,
    /// It is what was asked for; else it stands in until that is there.
    pub fits: bool,
}

impl Assignment<'_> {
    fn covers(&self, families: &[Family]) -> bool {
        let has = |family| self.slots.iter().any(|(slot, chosen)| slot.family == family && chosen.is_some());
        families.iter().all(|family| has(*family))
    }
}

/// Gives each slot the oldest claim that fits, then each that is left without one the oldest of its family.
pub(super) fn assign<'a>(request: &Request, claims: &'a Claims) -> Assignment<'a> {
    let (mut free, unusable) = claims_of(request, claims);
    oldest_first(&mut free);
    let mut slots: Vec<_> = request.slots().into_iter().map(|slot| (slot, None)).collect();
    for must_fit in [true, false] {
        for (slot, chosen) in slots.iter_mut().filter(|(_, chosen)| chosen.is_none()) {
            let serves = |claim: &&Claim| {
                Family::of(claim.address) == slot.family && (!must_fit || fits(request, *slot, claim))
            };
            if let Some(place) = free.iter().position(serves) {
                *chosen = Some(Chosen { claim: free.remove(place), fits: must_fit });
            }
        }
    }
    free.extend(unusable);
    Assignment { slots, surplus: free }
}

/// The claims whose user the Service is: those that it may go on with, and those that it may not, as others share them
/// by another key.
fn claims_of<'a>(request: &Request, claims: &'a Claims) -> (Vec<&'a Claim>, Vec<&'a Claim>) {
    let all = claims.addresses_of(&request.uid).filter_map(|address| claims.at(address));
    let ours = all.filter(|claim| claim.user(&request.uid).is_some());
    ours.partition(|claim| claim.users.len() == 1 || shares(request, claim))
}

/// Whether the Service and the claim name the same share key.
pub(super) fn shares(request: &Request, claim: &Claim) -> bool {
    request.share_key.is_some() && request.share_key == claim.share_key
}

/// Whether `claim` is what is asked for. One that no pool holds any more is: pools may shrink under use.
pub(super) fn fits(request: &Request, slot: Slot, claim: &Claim) -> bool {
    match (slot.fixed, &request.wish) {
        (Some(address), _) => claim.address == address,
        (None, Wish::Pool(name)) => {
            let lies_in = request.pool_of(claim.address).is_some_and(|pool| pool.name == *name);
            claim.pool.as_ref() == Some(name) || lies_in
        }
        (None, Wish::Any | Wish::Addresses(_)) => true,
    }
}

#[cfg(test)]
#[path = "granted_tests.rs"]
mod tests;
