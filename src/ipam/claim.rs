//! Claims: which Service an address was given to, as the cluster's objects say it, and all of them by address.
//!
//! Plain data. Owns the rule which of two objects for one address counts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use crate::model::{ObjectKey, Protocol};

/// A port that a Service serves on its address.
pub type Port = (Protocol, u16);

/// The kind of object that says a claim. The order matters: a Lease is made first, and counts first of two made in one
/// second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A Lease in kvip-system, for clusters that do not serve `networking.k8s.io/v1` IPAddress (before 1.33).
    Lease,
    /// An IPAddress.
    IpAddress,
}

/// One object that claims one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The address; the object is named after it, so the API itself lets only one be made.
    pub address: IpAddr,
    /// The kind of the object.
    pub kind: Kind,
    /// The Services that have the address, the one that made the claim first; several only where they share it. Of a
    /// claim that rests, those that had it last.
    pub users: Vec<User>,
    /// The pool that it came from, if any.
    pub pool: Option<String>,
    /// What the sharers agree on, with their namespace; `None`: others may not join.
    pub share_key: Option<String>,
    /// Since when the address rests, in seconds since 1970: it has no user and is not given to another Service until
    /// no node can serve it for the last one.
    pub released: Option<i64>,
    /// metadata.creationTimestamp, in seconds since 1970.
    pub created: i64,
    /// The very object, as it was read.
    pub version: Version,
}

/// A Service that has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The Service.
    pub service: ObjectKey,
    /// Its UID: a Service deleted and made again under the same name is another one.
    pub uid: String,
    /// The ports that are its own on a shared address.
    pub ports: BTreeSet<Port>,
}

/// Which object, and which state of it: what writes are conditional on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// metadata.uid; empty for an object that is yet to be made.
    pub uid: String,
    /// metadata.resourceVersion.
    pub resource: String,
}

impl Claim {
    /// The user with that UID, unless the address rests.
    pub fn user(&self, uid: &str) -> Option<&User> {
        self.users.iter().find(|user| user.uid == uid && self.released.is_none())
    }

    /// Whether the Service with that UID has the address, or was the last to have it.
    pub fn names(&self, uid: &str) -> bool {
        self.users.iter().any(|user| user.uid == uid)
    }

    /// What puts the claims of one Service in the order in which they were made: creationTimestamp has whole seconds, and
    /// within one the API server's counter of changes decides.
    pub fn age(&self) -> (i64, u64, Kind, IpAddr) {
        (self.created, self.version.resource.parse().unwrap_or(0), self.kind, self.address)
    }
}

/// All claims, by address. Copies share what they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Arc<Claim>>", into = "Vec<Arc<Claim>>")]
pub struct Claims {
    objects: OrdMap<(IpAddr, Kind), Arc<Claim>>,
    services: OrdMap<String, OrdSet<IpAddr>>,
}

impl Claims {
    /// Takes in an object, in place of what was known of it; whether that changed anything.
    pub fn insert(&mut self, claim: impl Into<Arc<Claim>>) -> bool {
        let claim = claim.into();
        let id = (claim.address, claim.kind);
        if self.objects.get(&id) == Some(&claim) {
            return false;
        }
        self.remove(claim.address, claim.kind);
        for user in &claim.users {
            let mut addresses = self.services.get(&user.uid).cloned().unwrap_or_default();
            addresses.insert(claim.address);
            self.services.insert(user.uid.clone(), addresses);
        }
        self.objects.insert(id, claim);
        true
    }

    /// Forgets an object; whether it was known.
    pub fn remove(&mut self, address: IpAddr, kind: Kind) -> bool {
        let Some(gone) = self.objects.remove(&(address, kind)) else { return false };
        for user in &gone.users {
            if self.objects_at(address).any(|other| other.names(&user.uid)) {
                continue;
            }
            let mut addresses = self.services.get(&user.uid).cloned().unwrap_or_default();
            addresses.remove(&address);
            if addresses.is_empty() {
                self.services.remove(&user.uid);
            } else {
                self.services.insert(user.uid.clone(), addresses);
            }
        }
        true
    }

    /// The claim that counts for `address`: of two objects the older, and the Lease when both are of one second.
    pub fn at(&self, address: IpAddr) -> Option<&Claim> {
        self.objects_at(address).min_by_key(|claim| (claim.created, claim.kind))
    }

    /// Both kinds of object for `address`, the Lease first.
    pub fn objects_at(&self, address: IpAddr) -> impl Iterator<Item = &Claim> {
        let kinds = [Kind::Lease, Kind::IpAddress];
        kinds.into_iter().filter_map(move |kind| self.object(address, kind))
    }

    /// The object of that kind for `address`.
    pub fn object(&self, address: IpAddr, kind: Kind) -> Option<&Claim> {
        self.objects.get(&(address, kind)).map(AsRef::as_ref)
    }

    /// The addresses that some object gives to the Service with that UID, or gave it last.
    pub fn addresses_of(&self, uid: &str) -> impl Iterator<Item = IpAddr> {
        self.services.get(uid).into_iter().flatten().copied()
    }

    /// All objects, by address, of two the Lease first.
    pub fn objects(&self) -> impl Iterator<Item = &Claim> {
        self.objects.values().map(AsRef::as_ref)
    }

    /// All addresses with a claim, from the highest down or the lowest up as the caller turns it.
    pub fn addresses(&self) -> impl DoubleEndedIterator<Item = IpAddr> {
        let mut addresses: Vec<IpAddr> = self.objects.keys().map(|(address, _)| *address).collect();
        addresses.dedup();
        addresses.into_iter()
    }

    /// The UIDs of all Services that some object names.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Whether there is any Lease: then both kinds are read and made.
    pub fn any_lease(&self) -> bool {
        self.objects.values().any(|claim| claim.kind == Kind::Lease)
    }

    /// Whether `other` is a copy of this that has not changed since; cheap, and false for equals of another making.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        self.objects.ptr_eq(&other.objects)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

impl<C: Into<Arc<Claim>>> FromIterator<C> for Claims {
    fn from_iter<I: IntoIterator<Item = C>>(claims: I) -> Self {
        let mut all = Self::default();
        for claim in claims {
            all.insert(claim);
        }
        all
    }
}

impl From<Vec<Arc<Claim>>> for Claims {
    fn from(claims: Vec<Arc<Claim>>) -> Self {
        claims.into_iter().collect()
    }
}

impl From<Claims> for Vec<Arc<Claim>> {
    fn from(claims: Claims) -> Self {
        claims.objects.values().cloned().collect()
    }
}

/// Sorts claims so that the oldest comes first.
pub(super) fn oldest_first(claims: &mut [&Claim]) {
    claims.sort_unstable_by_key(|claim| claim.age());
}
