//! kvip's one nftables table, `inet kvip`: masquerade where replies would miss the holder, refusal of other ports, and
//! who may reach a frontend.
//!
//! [`render`] and [`fingerprint`] are pure; [`client`] runs nft. The table in the kernel is the wanted one when
//! `installed()` answers the wanted ruleset's fingerprint.

mod change;
pub mod client;
mod render;
mod seal;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

pub use render::{fingerprint, render};

use crate::model::Frontend;

/// What the table must do; rendered whole, replaced in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Frontends that IPVS balances; what they forward is masqueraded where needed.
    pub frontends: BTreeSet<Frontend>,
    /// VIPs of which every TCP, UDP and SCTP port that is no frontend is refused.
    pub closed: BTreeSet<IpAddr>,
    /// Addresses of pods on this node: replies from them come back by themselves.
    pub local_pods: BTreeSet<IpNet>,
    /// From where a frontend may be reached, as `loadBalancerSourceRanges` says: what comes from elsewhere is dropped
    /// before anything balances it. Networks of the other family count for nothing, and no network means nowhere. A
    /// frontend that is no key here is open to all.
    pub sources: BTreeMap<Frontend, BTreeSet<IpNet>>,
    /// This node's own addresses. Its own processes reach a VIP that it holds from that very VIP: they may where one of
    /// these addresses may.
    pub host: BTreeSet<IpAddr>,
}
