//! Dead nodes: finds them within 5 s, where the cluster takes 40 s and more and calls their pods ready as long.
//!
//! Each node probes every other node that has backends, holder or not, so that a new holder knows already. The
//! rules are pure, in [`Health`]; [`spawn`] gives them a clock and sockets. Nothing here touches a backend.
//!
//! # From death to notice
//!
//! A node that dies right after an answer misses its next three probes, which start within 1, 2 and 3 s; the third is given
//! up after 0.8 s: 3.8 s at most. A probe that was already under way only makes it shorter. What is left of
//! the 5 s is for deriving and programming. Only when more than half of the nodes were in doubt meanwhile, and then some
//! answered, does it take two more misses from that answer on: 2.8 s.
//!
//! # When in doubt, nothing is removed
//!
//! - A node that never answered is never dead: a firewall may hide the port from all of us.
//! - More than half of the known nodes gone at once is more likely this node's own link. *Known* are the
//!   nodes that have ever answered and are probed still, and this node itself, which counts as alive:
//!
//!   | known nodes, this one included | dead | taken out |
//!   |---|---|---|
//!   | 2 | 1 | yes: half is not more than half |
//!   | 3 | 1 | yes |
//!   | 3 | 2 | none |
//!   | 4 | 2 | yes |
//!   | 5 | 3 | none |
//!
//! - A node whose object is deleted while there are backends on it is probed on as before: that it is dead may be why.
//! - What fails on this node (no free port, no free descriptor, not permitted) says nothing about the other.

pub mod check;
mod clock;
mod machine;
pub mod node_ports;
mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use machine::{Health, Outcome, Probe};
pub use probe::spawn;

/// The nodes to probe, by name, with their addresses of type `InternalIP`; none where a node's object is gone.
pub type Targets = BTreeMap<String, Vec<IpAddr>>;

/// What the probes say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dead {
    /// The nodes whose backends are to be taken out.
    pub nodes: BTreeSet<String>,
    /// So many nodes do not answer that none is believed dead; then `nodes` is empty.
    pub suspended: bool,
}
