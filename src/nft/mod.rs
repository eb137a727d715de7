//! kvip's one nftables table, `inet kvip`: masquerade where replies would miss the holder, and refusal of other ports.
//!
//! [`render`] and [`fingerprint`] are pure; [`client`] runs nft. The table in the kernel is the wanted one when
//! `installed()` answers the wanted ruleset's fingerprint.

pub mod client;
mod render;

use std::collections::BTreeSet;
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
}
