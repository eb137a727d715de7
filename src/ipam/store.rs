//! What allocators ask of the API, so that tests can stand in for it.

use std::future::Future;
use std::net::IpAddr;

use super::claim::{Claim, Kind};
use super::step::Kinds;
use crate::model::ObjectKey;

/// The cluster's objects, read from the API itself and never from a cache. Each call ends within a limit of its own.
pub trait ClaimStore: Send + Sync {
    /// The objects that name the Service with that UID, and which kinds the cluster has.
    fn look(&self, uid: &str) -> impl Future<Output = Result<Look, StoreError>> + Send;

    /// The object of that kind for `address`.
    fn get(&self, address: IpAddr, kind: Kind) -> impl Future<Output = Result<Found, StoreError>> + Send;

    /// Makes the object of `claim`.
    fn create(&self, claim: &Claim) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Turns the object of `before` into `after`, unless it is another object or in another state by now.
    fn change(&self, before: &Claim, after: &Claim) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Deletes the object of `claim`, unless it is another object or in another state by now.
    fn delete(&self, claim: &Claim) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The Service, as far as it matters here.
    fn service(
        &self,
        key: &ObjectKey,
    ) -> impl Future<Output = Result<Option<LiveService>, StoreError>> + Send;
}

/// What a look at the claims of one Service gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The objects.
    pub claims: Vec<Claim>,
    /// The kinds that are made.
    pub kinds: Kinds,
}

/// What there is for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A claim of kvip's.
    Ours(Claim),
    /// An object that is not kvip's, or that cannot be read.
    Foreign,
    /// Nothing.
    Nothing,
}

/// A Service as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveService {
    /// Its UID.
    pub uid: String,
    /// Whether it asks for an address out of a pool.
    pub asks: Asks,
}

/// Whether a Service asks kvip for an address out of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Its type and class say so, and it is not being deleted.
    Yes,
    /// They do, but by this node's settings such a Service gets nothing. A node with other settings may serve it.
    NotBySettings,
    /// It is of another type or of the class of others, or it is being deleted: no node's settings change that.
    No,
}

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is such an object already, of whomever.
    #[error("it exists already")]
    Exists,
    /// The object is gone, is another one, or is in another state than it was read in.
    #[error("it changed meanwhile")]
    Changed,
    /// The API did not do it, or it is not known whether it did.
    #[error("{attempt}: {reason}")]
    Failed {
        /// What was tried, with the object's name.
        attempt: String,
        /// What the API, or the way to it, said.
        reason: String,
    },
    /// There was always one more step to take: others change the same objects.
    #[error("no end after {steps} steps")]
    Restless {
        /// How many steps were taken.
        steps: usize,
    },
}
