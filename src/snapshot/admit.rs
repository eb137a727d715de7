//! Whether a snapshot may take the place of the one kvip serves by (invariant 4).
//!
//! [`admit`] is pure and decides. A snapshot of another cluster, or a fresh list in which everything of a kind is
//! gone, is held until an admin says `kvip accept`, which leaves the held snapshot's id in a file. This module owns
//! that file; it never takes or drops a snapshot itself.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Snapshot, store};
use crate::files;
use crate::model::ObjectKey;

/// Where `kvip accept` leaves the id of what the admin accepts.
pub const PATH: &str = "/var/lib/kvip/accept";

/// How many of a kind must be there before the loss of all of them is held: one may well be deleted.
const WHOLESALE: usize = 2;

/// A snapshot together with the lists that it stems from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// What the cluster says.
    pub snapshot: Arc<Snapshot>,
    /// How many times, since the start, a list changed what the watches had told; 0 for what was loaded from disk.
    ///
    /// A number and not a flag, as an update may be overtaken before it is read, and as what was held once must stay
    /// held when a watch event follows on it.
    pub lists: u64,
}

impl Update {
    /// The snapshot that was saved before the start.
    pub fn saved(snapshot: Snapshot) -> Self {
        Self { snapshot: Arc::new(snapshot), lists: 0 }
    }

    /// This with what `accepted`, if it is of the same cluster, has of the parts that the server does not let kvip read:
    /// that is no word that there is nothing. They are empty when it was so from this run's start on.
    #[must_use]
    pub fn with_unread_of(self, accepted: Option<&Self>) -> Self {
        let known = accepted.map(|accepted| &*accepted.snapshot);
        let known = known.filter(|known| known.cluster.is_some() && known.cluster == self.snapshot.cluster);
        let kept = known.and_then(|known| store::with_unread_of(&self.snapshot, known));
        Self { snapshot: kept.map_or(self.snapshot, Arc::new), ..self }
    }

    /// Whether a list, and not watch events alone, lies between `accepted` and this.
    pub fn fresh_list(&self, accepted: &Self) -> bool {
        self.lists != accepted.lists
    }
}

/// What to do with an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Serve by it.
    Take,
    /// Go on with the accepted one and tell the admin.
    Hold(Held),
}

/// A snapshot that waits for an admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What [`accept`] must name: 16 hexadecimal digits, of the cluster, its VIPs and the reasons.
    pub id: String,
    /// Why it is held; at least one reason.
    pub reasons: Vec<Reason>,
}

/// Why an update is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// It is of another cluster.
    OtherCluster {
        /// The accepted cluster's UID (that of its namespace kube-system).
        accepted: String,
        /// The update's.
        found: String,
    },
    /// A fresh list has none of the things that were there.
    Gone {
        /// What is gone.
        what: Kind,
        /// How many there were, two or more.
        count: usize,
    },
}

/// What can go wholesale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// The VIPs of the mapping.
    Vips,
    /// The Services, and with them all frontends.
    Services,
    /// The `EndpointSlices` of all Services, and with them all backends.
    EndpointSlices,
    /// The Nodes, and with them all members.
    Nodes,
    /// The claims of addresses, and with them what pools gave to Services.
    Claims,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vips => "VIPs",
            Self::Services => "Services",
            Self::EndpointSlices => "EndpointSlices",
            Self::Nodes => "Nodes",
            Self::Claims => "claims of addresses",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCluster { accepted, found } => {
                write!(f, "this is another cluster: kube-system has UID {found}, not {accepted}")
            }
            Self::Gone { what, count } => write!(f, "all {count} {what} are gone in a fresh list"),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<_> = self.reasons.iter().map(ToString::to_string).collect();
        write!(f, "keeping the last state: {}", reasons.join("; "))
    }
}

/// Whether `update` may follow `accepted`, where `vips` tells a snapshot's VIPs and `accept` is the id of the one
/// snapshot that an admin let through, if any.
///
/// The first snapshot ever (nothing accepted, nothing saved) is taken.
pub fn admit(
    accepted: Option<&Update>,
    update: &Update,
    vips: &dyn Fn(&Snapshot) -> BTreeSet<IpAddr>,
    accept: Option<&str>,
) -> Admission {
    let Some(accepted) = accepted else { return Admission::Take };
    let mut reasons: Vec<_> = other_cluster(&accepted.snapshot, &update.snapshot).into_iter().collect();
    if update.fresh_list(accepted) {
        reasons.extend(gone(&accepted.snapshot, &update.snapshot, vips));
    }
    // Most updates end here, and must not cost a walk over all VIPs.
    if reasons.is_empty() {
        return Admission::Take;
    }
    let id = fingerprint(&update.snapshot, &vips(&update.snapshot), &reasons);
    if accept == Some(id.as_str()) { Admission::Take } else { Admission::Hold(Held { id, reasons }) }
}

fn other_cluster(accepted: &Snapshot, update: &Snapshot) -> Option<Reason> {
    let (accepted, found) = (accepted.cluster.clone()?, update.cluster.clone()?);
    (accepted != found).then_some(Reason::OtherCluster { accepted, found })
}

fn gone(
    accepted: &Snapshot,
    update: &Snapshot,
    vips: &dyn Fn(&Snapshot) -> BTreeSet<IpAddr>,
) -> impl Iterator<Item = Reason> {
    let nodes = |s: &Snapshot| s.nodes.keys().cloned().collect();
    let claims = |s: &Snapshot| s.claims.addresses().collect();
    [
        (Kind::Vips, lost(&vips(accepted), &vips(update))),
        (Kind::Services, lost(&services(accepted), &services(update))),
        (Kind::EndpointSlices, lost(&sliced(accepted), &sliced(update))),
        (Kind::Nodes, lost::<String>(&nodes(accepted), &nodes(update))),
        (Kind::Claims, lost::<IpAddr>(&claims(accepted), &claims(update))),
    ]
    .into_iter()
    .filter_map(|(what, count)| Some(Reason::Gone { what, count: count? }))
}

/// How many there were when none of them is left.
fn lost<T: Ord>(accepted: &BTreeSet<T>, update: &BTreeSet<T>) -> Option<usize> {
    (accepted.len() >= WHOLESALE && accepted.is_disjoint(update)).then_some(accepted.len())
}

fn services(snapshot: &Snapshot) -> BTreeSet<&ObjectKey> {
    snapshot.services.keys().filter(|key| !is_own_of_api_server(key)).collect()
}

/// The Services that have slices: the slices' own names are drawn anew when they are made again.
fn sliced(snapshot: &Snapshot) -> BTreeSet<&ObjectKey> {
    snapshot.slices.values().map(|slice| &slice.service).filter(|key| !is_own_of_api_server(key)).collect()
}

/// `default/kubernetes` is made by every API server by itself: it says nothing of what the cluster holds.
fn is_own_of_api_server(key: &ObjectKey) -> bool {
    key.namespace == "default" && key.name == "kubernetes"
}

/// The id of a held snapshot: its cluster, its VIPs and why it is held. Endpoints that come and go meanwhile do not
/// change it. FNV-1a, 64 bits: it tells snapshots apart and guards nothing.
pub fn fingerprint(snapshot: &Snapshot, vips: &BTreeSet<IpAddr>, reasons: &[Reason]) -> String {
    let text = format!("{:?} {vips:?} {reasons:?}", snapshot.cluster);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Lets the snapshot with `id` through: writes it to `path`, for the daemon to find.
pub fn accept(path: &Path, id: &str) -> io::Result<()> {
    files::replace(path, format!("{id}\n"), files::PRIVATE).map_err(|error| error.reason)
}

/// The id that an admin let through; `None` when there is none.
pub fn accepted(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes the file once what it names was taken, or is held no more; already gone is fine.
pub fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
