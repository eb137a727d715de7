//! What kvip writes to objects of the cluster: the status of Services, and Events.
//!
//! ```text
//! derive ─► State (what should be said, what the snapshot shows, who holds)
//!              │
//!           turns (pure: which Service, and when)          outbox (pure: which Event, and when)
//!              │                                              ▲        │
//!           writer: live GET ─► status (pure) ─► PATCH ───────┘        └─► Event
//! ```
//!
//! Who allocates writes the status; everybody may make Events. Nothing to say costs no request at all. Owns no other
//! object: claims are the allocator's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::model::{ObjectKey, Protocol};
use crate::rank;
use crate::snapshot::{Condition, Ingress, Map, Service};

pub mod agreement;
pub mod event;
pub mod fingerprint;
pub mod outbox;
mod pause;
pub mod settings;
pub mod status;
mod task;
pub mod turns;
mod writer;

pub use task::{Handles, spawn};

#[cfg(test)]
#[path = "fake_api.rs"]
mod fake_api;

/// All that is to be said, at one time. A copy shares what did not change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// This node's name; while it is not known nothing is written.
    pub node: Option<String>,
    /// How long the next allocator waits for the one before it.
    pub takeover_after: Duration,
    /// What should be said of each Service. A Service that is not here is left as it is: one that kvip no longer serves
    /// and that shows [`Shown::is_ours`] must be here as [`Verdict::NotOurs`].
    pub services: Map<ObjectKey, Wanted>,
    /// The Services whose VIPs this node holds now; `None` while that is not known, as at the start: what is held when
    /// it becomes known is no change of holder.
    pub held: Option<Map<ObjectKey, Held>>,
}

/// The VIPs of a Service that this node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The Service's UID.
    pub uid: String,
    /// Its VIPs that are on this node's interface.
    pub vips: BTreeSet<IpAddr>,
}

/// What should be said of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The Service's UID: one of the same name made anew is another Service.
    pub uid: String,
    /// The type and class that this was decided for: of a Service that has others by now nothing is known yet.
    pub kind: Kind,
    /// The addresses at which kvip serves it.
    pub addresses: Vec<Address>,
    /// Whether the addresses belong in status.loadBalancer.ingress: the type is LoadBalancer and the class kvip's.
    pub ingress: bool,
    /// Whether it has what it asked for.
    pub verdict: Verdict,
    /// This node's place among the allocators, 0 for the first; `None`: it does not allocate, and writes no status.
    pub place: Option<u32>,
    /// What its status shows in the snapshot.
    pub shown: Shown,
}

/// The type and class of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Type LoadBalancer, with spec.loadBalancerClass.
    LoadBalancer(Option<String>),
    /// Any other type, which has no class.
    Other,
}

/// An address at which a Service is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The VIP.
    pub ip: IpAddr,
    /// Who balances.
    pub mode: IpMode,
    /// The Service's ports.
    pub ports: Vec<Port>,
}

/// ipMode of core/v1 `LoadBalancerIngress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpMode {
    /// kvip balances: kube-proxy must leave the address alone.
    Proxy,
    /// kube-proxy or the CNI balances (announce mode).
    Vip,
}

/// A port of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port that clients use.
    pub port: u16,
    /// Why it is not served: a CamelCase word, with the prefix `kvip.io/` as the API asks of implementers.
    pub error: Option<String>,
}

/// Whether a Service has what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has.
    Allocated,
    /// It has not, or not all of it.
    Refused {
        /// A CamelCase word for programs, such as `PoolExhausted`.
        reason: String,
        /// Why, for people.
        text: String,
    },
    /// It asks kvip for nothing, or no longer.
    NotOurs,
}

/// What the status of a Service shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// status.loadBalancer.ingress.
    pub ingress: Vec<Ingress>,
    /// kvip's condition.
    pub condition: Option<Condition>,
}

impl Shown {
    /// What the status of `service` shows.
    pub fn of(service: &Service) -> Self {
        let ingress = service.load_balancer.as_ref().map(|balancer| balancer.ingress.clone());
        Self { ingress: ingress.unwrap_or_default(), condition: service.condition.clone() }
    }

    /// Whether kvip has said something of the Service: ingress entries are only ever written beside the condition.
    pub fn is_ours(&self) -> bool {
        self.condition.is_some()
    }
}

impl Wanted {
    /// Whether `other` differs in nothing but what is shown.
    pub fn wants_the_same(&self, other: &Self) -> bool {
        let Self { uid, kind, addresses, ingress, verdict, place, shown: _ } = self;
        (uid, kind, addresses) == (&other.uid, &other.kind, &other.addresses)
            && (ingress, verdict, place) == (&other.ingress, &other.verdict, &other.place)
    }
}

impl Kind {
    /// The type and class of `service`.
    pub fn of(service: &Service) -> Self {
        match &service.load_balancer {
            Some(balancer) => Self::LoadBalancer(balancer.class.clone()),
            None => Self::Other,
        }
    }
}

impl IpMode {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proxy => "Proxy",
            Self::Vip => "VIP",
        }
    }
}

/// The place of the node `own` among `allocators` for the Service with this UID, 0 for the first; all nodes agree on
/// it.
pub fn place<'a>(uid: &str, allocators: impl IntoIterator<Item = &'a str>, own: &str) -> Option<u32> {
    let weight = |node| (rank::weight(uid.as_bytes(), node), node);
    let mine = weight(own);
    let (mut before, mut allocates) = (0, false);
    for node in allocators {
        allocates |= node == own;
        before += u32::from(weight(node) > mine);
    }
    allocates.then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_rank_and_each_is_taken_once() {
        let nodes = ["node-a", "node-b", "node-c"];
        for uid in ["u1", "u2", "u3"] {
            let ranked = rank::ranked(uid.as_bytes(), nodes);
            let places = ranked.iter().map(|node| place(uid, nodes, node).unwrap());
            assert_eq!(places.collect::<Vec<_>>(), [0, 1, 2]);
        }
        assert_eq!(place("u1", nodes, "node-d"), None);
    }
}
