//! What an allocator does next for one Service: the whole protocol, as a pure function of what was read.
//!
//! Each step is one write, conditional on what it was decided by, and after each the Service's claims are read anew. So
//! a crash between any two leaves a state from which whoever comes next goes on.

use std::collections::BTreeSet;

use super::candidates::{self, Known};
use super::claim::{Claim, Claims, Kind, User, Version, oldest_first};
use super::granted::{self, Assignment, Granted, fits, holders, shares};
use super::refusal::Refusal;
use super::request::{Request, Reserved, Slot};
use crate::model::Family;
use crate::snapshot::FamilyPolicy;

/// What an allocator sees while it decides.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The claims that name the Service, and whatever else is claimed at their addresses: read from the API itself
    /// while it acts, from the watches while it only asks whether there is something to do.
    pub own: &'a Claims,
    /// All other claims, as last heard.
    pub known: &'a Known,
    /// What is given to nobody.
    pub reserved: &'a Reserved,
    /// Which kinds of object are made.
    pub kinds: Kinds,
    /// How long an address rests, in seconds.
    pub rest: i64,
    /// Seconds since 1970.
    pub now: i64,
}

/// Which kinds of object say claims in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    /// IPAddresses are not served, or there still is a Lease of kvip's: an allocator that knows of Leases alone must
    /// find the address taken.
    pub lease: bool,
    /// IPAddresses are served.
    pub ip_address: bool,
}

impl Kinds {
    /// The kinds of a cluster that serves IPAddresses or does not, and has a Lease of kvip's or has not.
    pub fn of(ip_address_served: bool, any_lease: bool) -> Self {
        Self { lease: any_lease || !ip_address_served, ip_address: ip_address_served }
    }

    fn first(self) -> Kind {
        if self.lease { Kind::Lease } else { Kind::IpAddress }
    }
}

/// One write, or the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make this object.
    Create(Claim),
    /// Turn an object into another state, unless it is no longer as it was.
    Change {
        /// As it was read.
        before: Claim,
        /// As it shall be.
        after: Claim,
    },
    /// Delete this object, unless it is no longer as it was.
    Delete(Claim),
    /// Nothing is left to do.
    Done(Settled),
}

/// What a request came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// What the Service has.
    pub granted: Granted,
    /// What it does not get, and why.
    pub refusals: Vec<Refusal>,
}

/// What to do next for `request`.
pub fn next_step(request: &Request, view: View<'_>) -> Step {
    let assignment = granted::assign(request, view.own);
    let step = losers(request, view)
        .or_else(|| surplus(request, &assignment, view))
        .or_else(|| foreign(&assignment, view))
        .or_else(|| amend(request, &assignment))
        .or_else(|| twins(request, view));
    step.unwrap_or_else(|| wanting(request, &assignment, view))
}

/// An object of the Service at an address that counts as another's.
fn losers(request: &Request, view: View<'_>) -> Option<Step> {
    let lost = view.own.addresses_of(&request.uid).filter(|address| {
        let counts = view.own.at(*address);
        counts.is_some_and(|claim| !claim.names(&request.uid))
    });
    let mut objects = lost.flat_map(|address| view.own.objects_at(address));
    let object = objects.find(|object| object.names(&request.uid))?;
    Some(
        without(object, &request.uid)
            .map_or_else(|| Step::Delete(object.clone()), |after| change(object, after)),
    )
}

/// A claim that the Service has no use for. It rests even if it looks too young to have been served: what the Service
/// asked for may have been something else a moment ago.
fn surplus(request: &Request, assignment: &Assignment<'_>, view: View<'_>) -> Option<Step> {
    let claim = *assignment.surplus.first()?;
    Some(leave(claim, &request.uid, view.now))
}

/// A Lease whose address turns out to be somebody else's IPAddress.
fn foreign(assignment: &Assignment<'_>, view: View<'_>) -> Option<Step> {
    let mut chosen = assignment.slots.iter().filter_map(|(_, chosen)| *chosen).map(|chosen| chosen.claim);
    let claim =
        chosen.find(|claim| claim.kind == Kind::Lease && view.known.foreign.contains(&claim.address))?;
    Some(change(claim, Claim { released: Some(view.now), ..claim.clone() }))
}

/// A claim whose share key or ports are not the Service's of today.
fn amend(request: &Request, assignment: &Assignment<'_>) -> Option<Step> {
    let chosen = assignment.slots.iter().filter_map(|(_, chosen)| *chosen);
    chosen
        .map(|chosen| (chosen.claim, amended(request, chosen.claim)))
        .find_map(|(before, after)| (*before != after).then(|| change(before, after)))
}

fn amended(request: &Request, claim: &Claim) -> Claim {
    let mut after = claim.clone();
    if let [_] = claim.users[..] {
        after.share_key.clone_from(&request.share_key);
    }
    let others: BTreeSet<_> = claim
        .users
        .iter()
        .filter(|user| user.uid != request.uid)
        .flat_map(|user| &user.ports)
        .copied()
        .collect();
    for user in after.users.iter_mut().filter(|user| user.uid == request.uid) {
        user.ports = own_ports(request).difference(&others).copied().collect();
    }
    after
}

/// The ports that are written down: only sharers need to know.
fn own_ports(request: &Request) -> BTreeSet<super::Port> {
    if request.share_key.is_some() { request.ports.clone() } else { BTreeSet::new() }
}

/// An IPAddress beside a Lease that is missing, or says something else than the Lease that counts.
fn twins(request: &Request, view: View<'_>) -> Option<Step> {
    let counting = view.own.addresses_of(&request.uid).filter_map(|address| view.own.at(address));
    counting.filter(|claim| claim.names(&request.uid)).find_map(|claim| twin(claim, view))
}

/// What brings the other object for the address of `claim` into line with it.
fn twin(claim: &Claim, view: View<'_>) -> Option<Step> {
    let other = view.own.objects_at(claim.address).find(|object| object.kind != claim.kind);
    match other {
        Some(other) if !other.users.iter().any(|user| claim.names(&user.uid)) => None,
        Some(other) => {
            let after = Claim {
                users: claim.users.clone(),
                share_key: claim.share_key.clone(),
                released: claim.released,
                ..other.clone()
            };
            (after != *other).then(|| change(other, after))
        }
        None => {
            let missing = claim.kind == Kind::Lease && view.kinds.ip_address && claim.released.is_none();
            let free = !view.known.foreign.contains(&claim.address);
            (missing && free).then(|| {
                Step::Create(Claim { kind: Kind::IpAddress, version: Version::default(), ..claim.clone() })
            })
        }
    }
}

/// The next address to get, or the end.
fn wanting(request: &Request, assignment: &Assignment<'_>, view: View<'_>) -> Step {
    let lacking = assignment.slots.iter().filter(|(_, chosen)| !chosen.is_some_and(|chosen| chosen.fits));
    let mut refusals: Vec<Refusal> = request.of_no_family().map(Refusal::OtherFamily).collect();
    let mut get = None;
    for (slot, chosen) in lacking {
        match candidate(request, *slot, view) {
            Ok(step) => get = get.or(Some(step)),
            Err(refusal) if request.all_or_nothing() && chosen.is_none() => {
                refusals.push(refusal);
                return give_up(request, assignment, refusals, view);
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    // Where two families are only preferred, pools of one are no fault.
    let content = assignment.slots.iter().any(|(_, chosen)| chosen.is_some_and(|chosen| chosen.fits));
    if request.policy == FamilyPolicy::PreferDualStack && content {
        refusals.retain(|refusal| !matches!(refusal, Refusal::NoPool { .. }));
    }
    get.unwrap_or_else(|| done(request, refusals, view))
}

fn done(request: &Request, mut refusals: Vec<Refusal>, view: View<'_>) -> Step {
    let granted = granted::granted(request, view.own);
    refusals.sort();
    Step::Done(Settled { granted, refusals })
}

/// All or nothing, and not all is to be had: what there is goes back.
fn give_up(request: &Request, assignment: &Assignment<'_>, refusals: Vec<Refusal>, view: View<'_>) -> Step {
    let held = assignment.slots.iter().find_map(|(_, chosen)| *chosen);
    held.map_or_else(|| done(request, refusals, view), |held| leave(held.claim, &request.uid, view.now))
}

fn candidate(request: &Request, slot: Slot, view: View<'_>) -> Result<Step, Refusal> {
    match slot.fixed {
        Some(address) => named(request, address, view),
        None => retake(request, slot, view)
            .or_else(|| join_any(request, slot.family, view))
            .map_or_else(|| any(request, slot.family, view), Ok),
    }
}

/// The write that gets the very address that is asked for.
fn named(request: &Request, address: std::net::IpAddr, view: View<'_>) -> Result<Step, Refusal> {
    if let Some(why) = view.reserved.why(address) {
        return Err(Refusal::Reserved { address, why: why.to_owned() });
    }
    if !request.may_have(address) {
        return Err(Refusal::OutsidePools { address, usable: candidates::names(request) });
    }
    if view.known.foreign.contains(&address) {
        return Err(Refusal::Foreign(address));
    }
    let pool = request.pool_of(address).map(|pool| pool.name.clone());
    let Some(claim) = view.own.at(address).or_else(|| view.known.claims.at(address)) else {
        return Ok(Step::Create(new(request, address, pool, view.kinds.first())));
    };
    match claim.released {
        Some(_) if was_its(request, claim) => Ok(take_back(request, claim)),
        Some(at) => Err(Refusal::Resting {
            address,
            last: services(claim),
            until: super::settle::rested(at, view.rest),
        }),
        None => join(request, claim),
    }
}

/// Whether a resting claim was last the Service's, or that of a Service of the same name, whose nodes may go on with it:
/// behind both are the same pods.
fn was_its(request: &Request, claim: &Claim) -> bool {
    claim.names(&request.uid) || claim.users.iter().all(|user| user.service == request.service)
}

fn services(claim: &Claim) -> BTreeSet<crate::model::ObjectKey> {
    claim.users.iter().map(|user| user.service.clone()).collect()
}

fn take_back(request: &Request, claim: &Claim) -> Step {
    let users = vec![user(request)];
    change(claim, Claim { users, share_key: request.share_key.clone(), released: None, ..claim.clone() })
}

/// The Service's own claim that rests, when it fits.
fn retake(request: &Request, slot: Slot, view: View<'_>) -> Option<Step> {
    let counting = view.own.addresses_of(&request.uid).filter_map(|address| view.own.at(address));
    let mut resting: Vec<&Claim> = counting
        .filter(|claim| claim.released.is_some() && claim.names(&request.uid))
        .filter(|claim| Family::of(claim.address) == slot.family && fits(request, slot, claim))
        .filter(|claim| request.may_have(claim.address) && view.reserved.why(claim.address).is_none())
        .filter(|claim| !view.known.foreign.contains(&claim.address))
        .collect();
    oldest_first(&mut resting);
    resting.first().map(|claim| take_back(request, claim))
}

/// An address that others have by the same share key, with room for the Service's ports.
fn join_any(request: &Request, family: Family, view: View<'_>) -> Option<Step> {
    request.share_key.as_ref()?;
    let pools = request.pools_to_try();
    let lies_in_pool =
        |claim: &Claim| pools.iter().any(|p| p.addresses.iter().any(|r| r.contains(claim.address)));
    let mut open: Vec<&Claim> = view
        .known
        .claims
        .addresses()
        .filter(|address| Family::of(*address) == family && view.reserved.why(*address).is_none())
        .filter_map(|address| view.known.claims.at(address))
        .filter(|claim| claim.released.is_none() && shares(request, claim) && lies_in_pool(claim))
        .collect();
    oldest_first(&mut open);
    open.into_iter().find_map(|claim| join(request, claim).ok())
}

/// The write that makes the Service one more user of `claim`.
fn join(request: &Request, claim: &Claim) -> Result<Step, Refusal> {
    let address = claim.address;
    if !shares(request, claim) {
        return Err(Refusal::Taken { address, by: services(claim) });
    }
    let taken: BTreeSet<_> =
        claim.users.iter().filter(|user| user.uid != request.uid).flat_map(|u| &u.ports).collect();
    let both: BTreeSet<_> = request.ports.iter().filter(|port| taken.contains(port)).copied().collect();
    if !both.is_empty() {
        let by = holders(request, claim, &both);
        return Err(Refusal::PortsTaken { address, ports: both, by });
    }
    let mut after = claim.clone();
    after.users.retain(|user| user.uid != request.uid);
    after.users.push(user(request));
    Ok(change(claim, after))
}

/// The write that gets any free address.
fn any(request: &Request, family: Family, view: View<'_>) -> Result<Step, Refusal> {
    let (address, pool) = candidates::free_address(request, family, view.known, view.reserved)?;
    Ok(Step::Create(new(request, address, Some(pool.name.clone()), view.kinds.first())))
}

fn new(request: &Request, address: std::net::IpAddr, pool: Option<String>, kind: Kind) -> Claim {
    Claim {
        address,
        kind,
        users: vec![user(request)],
        pool,
        share_key: request.share_key.clone(),
        released: None,
        created: 0,
        version: Version::default(),
    }
}

fn user(request: &Request) -> User {
    User { service: request.service.clone(), uid: request.uid.clone(), ports: own_ports(request) }
}

/// The write by which the Service with that UID is no longer a user of `claim`: the last one lets the address rest.
pub(super) fn leave(claim: &Claim, uid: &str, now: i64) -> Step {
    let after = without(claim, uid).unwrap_or_else(|| Claim { released: Some(now), ..claim.clone() });
    change(claim, after)
}

/// `claim` without that user; `None` when no user would be left.
fn without(claim: &Claim, uid: &str) -> Option<Claim> {
    let mut after = claim.clone();
    after.users.retain(|user| user.uid != uid);
    (!after.users.is_empty()).then_some(after)
}

fn change(before: &Claim, after: Claim) -> Step {
    Step::Change { before: before.clone(), after }
}
