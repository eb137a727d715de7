//! Carries one thing to its end against the API: a request, a user that is gone, a rest that is over.
//!
//! Reads, asks the pure functions for one write, does it, and reads again. Whoever is interrupted leaves a state from
//! which any other allocator goes on. Never retries a failed call: its caller does, later.

use std::net::IpAddr;

use super::candidates::Known;
use super::claim::{Claim, Claims, Kind};
use super::request::{Request, Reserved};
use super::step::{self, Kinds, Settled, Step, View};
use super::store::{Asks, ClaimStore, Found, Look, StoreError};
use crate::model::ObjectKey;

/// Steps that one request may take before its turn is over: a create may meet an address that is taken, once for each
/// claim that the watches have not yet told of.
const STEPS: usize = 64;
/// A claim of a clock that goes before by more than this rests from now on, in seconds.
const CLOCK_TOLERANCE: i64 = 60;

/// Beyond its rest an address waits for so many seconds: the write that began the rest may have been on its way as long
/// as a call may take, and claims have whole seconds.
const SLACK: i64 = 12;

/// Tells the time in seconds since 1970, as claims have it.
pub type Now<'a> = &'a (dyn Fn() -> i64 + Send + Sync);

/// What is the same for all requests.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// What is given to nobody.
    pub reserved: &'a Reserved,
    /// How long an address rests, in seconds.
    pub rest: i64,
    /// The time.
    pub clock: Now<'a>,
}

/// Brings the claims of `request` to what it asks for. What is learnt about other claims on the way goes into `known`,
/// which may be behind.
pub async fn settle<S: ClaimStore>(
    store: &S,
    request: &Request,
    known: &mut Known,
    terms: Terms<'_>,
) -> Result<Settled, StoreError> {
    for _ in 0..STEPS {
        let Look { claims, kinds } = store.look(&request.uid).await?;
        let own = with_others(store, claims, kinds, known).await?;
        let (rest, now, reserved) = (terms.rest, (terms.clock)(), terms.reserved);
        let step = step::next_step(request, View { own: &own, known, reserved, kinds, rest, now });
        match step {
            Step::Done(settled) => return Ok(settled),
            Step::Create(claim) if belongs_to_others(store, &claim, kinds, known).await? => {}
            step => take(store, step, known).await?,
        }
    }
    Err(StoreError::Restless { steps: STEPS })
}

/// The claims with whatever else there is at their addresses, where there may be two kinds; `known` learns all of it.
async fn with_others<S: ClaimStore>(
    store: &S,
    claims: Vec<Claim>,
    kinds: Kinds,
    known: &mut Known,
) -> Result<Claims, StoreError> {
    let mut own: Claims = claims.into_iter().collect();
    if kinds.lease && kinds.ip_address {
        let missing: Vec<(IpAddr, Kind)> = own
            .addresses()
            .flat_map(|address| [(address, Kind::Lease), (address, Kind::IpAddress)])
            .filter(|(address, kind)| own.object(*address, *kind).is_none())
            .collect();
        for (address, kind) in missing {
            match store.get(address, kind).await? {
                Found::Ours(claim) => drop(own.insert(claim)),
                Found::Foreign => drop(known.foreign.insert(address)),
                Found::Nothing => {}
            }
        }
    }
    for address in own.addresses() {
        for kind in [Kind::Lease, Kind::IpAddress] {
            known.claims.remove(address, kind);
        }
        for claim in own.objects_at(address) {
            known.claims.insert(claim.clone());
        }
    }
    Ok(own)
}

/// Whether the address of a Lease that is about to be made is somebody's IPAddress; the Lease itself would not meet it.
async fn belongs_to_others<S: ClaimStore>(
    store: &S,
    claim: &Claim,
    kinds: Kinds,
    known: &mut Known,
) -> Result<bool, StoreError> {
    if claim.kind == Kind::IpAddress || !kinds.ip_address {
        return Ok(false);
    }
    learn(store, claim.address, Kind::IpAddress, known).await?;
    let taken = known.claims.object(claim.address, Kind::IpAddress).is_some();
    Ok(taken || known.foreign.contains(&claim.address))
}

/// Does one write. When something else is there than was thought, `known` learns it, and that is all.
async fn take<S: ClaimStore>(store: &S, step: Step, known: &mut Known) -> Result<(), StoreError> {
    let (done, address) = match &step {
        Step::Create(claim) => (store.create(claim).await, claim.address),
        Step::Change { before, after } => (store.change(before, after).await, before.address),
        Step::Delete(claim) => (store.delete(claim).await, claim.address),
        Step::Done(_) => return Ok(()),
    };
    match (done, step) {
        (Err(StoreError::Exists | StoreError::Changed), Step::Create(claim)) => {
            learn(store, address, claim.kind, known).await
        }
        (
            Err(StoreError::Changed | StoreError::Exists),
            Step::Change { before, .. } | Step::Delete(before),
        ) => learn(store, address, before.kind, known).await,
        (done, _) => done,
    }
}

async fn learn<S: ClaimStore>(
    store: &S,
    address: IpAddr,
    kind: Kind,
    known: &mut Known,
) -> Result<(), StoreError> {
    known.claims.remove(address, kind);
    match store.get(address, kind).await? {
        Found::Ours(claim) => drop(known.claims.insert(claim)),
        Found::Foreign => drop(known.foreign.insert(address)),
        Found::Nothing => {}
    }
    Ok(())
}

/// Ends the use of `address` by the Service with that UID, if it is gone or asks for no address any more, or if
/// `by_settings` and nothing but this node's settings keeps it from asking; whether it was so. The Service is asked for
/// by name first: the watches may be behind.
pub async fn release<S: ClaimStore>(
    store: &S,
    address: IpAddr,
    service: &ObjectKey,
    uid: &str,
    by_settings: bool,
    clock: Now<'_>,
) -> Result<bool, StoreError> {
    let live = store.service(service).await?.filter(|live| live.uid == uid);
    let stays = match live.map_or(Asks::No, |live| live.asks) {
        Asks::Yes => true,
        Asks::NotBySettings => !by_settings,
        Asks::No => false,
    };
    if stays {
        return Ok(false);
    }
    for kind in [Kind::Lease, Kind::IpAddress] {
        if let Found::Ours(claim) = store.get(address, kind).await?
            && claim.user(uid).is_some()
        {
            once(store, step::leave(&claim, uid, clock())).await?;
        }
    }
    Ok(true)
}

/// Deletes the objects for `address` whose rest is over. The object that counts, a Lease, goes last.
pub async fn expire<S: ClaimStore>(
    store: &S,
    address: IpAddr,
    rest: i64,
    clock: Now<'_>,
) -> Result<(), StoreError> {
    for kind in [Kind::IpAddress, Kind::Lease] {
        if let Found::Ours(claim) = store.get(address, kind).await?
            && let Some(step) = after_rest(&claim, rest, clock())
        {
            once(store, step).await?;
        }
    }
    Ok(())
}

/// Whether `address` belongs to others.
pub(super) async fn is_foreign<S: ClaimStore>(store: &S, address: IpAddr) -> Result<bool, StoreError> {
    let ip_address = store.get(address, Kind::IpAddress).await?;
    Ok(ip_address == Found::Foreign || store.get(address, Kind::Lease).await? == Found::Foreign)
}

/// What becomes of a claim that rests. The time was written by another node's clock: one that is ahead must not keep
/// the address for ever.
fn after_rest(claim: &Claim, rest: i64, now: i64) -> Option<Step> {
    let released = claim.released?;
    if released > now + CLOCK_TOLERANCE {
        let after = Claim { released: Some(now), ..claim.clone() };
        return Some(Step::Change { before: claim.clone(), after });
    }
    (now >= rested(released, rest)).then(|| Step::Delete(claim.clone()))
}

/// When an address that was given back at `released` may be given again.
pub(super) fn rested(released: i64, rest: i64) -> i64 {
    released.saturating_add(rest).saturating_add(SLACK)
}

/// Does one write that another allocator may have done before.
async fn once<S: ClaimStore>(store: &S, step: Step) -> Result<(), StoreError> {
    let done = match step {
        Step::Create(claim) => store.create(&claim).await,
        Step::Change { before, after } => store.change(&before, &after).await,
        Step::Delete(claim) => store.delete(&claim).await,
        Step::Done(_) => Ok(()),
    };
    match done {
        Err(StoreError::Exists | StoreError::Changed) => Ok(()),
        other => other,
    }
}
