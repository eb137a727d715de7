//! kvip's one nftables table, `inet kvip`: masquerade where replies would miss the holder, refusal of other ports, who may
//! reach a frontend, and the marks of mode dsr.
//!
//! [`render`] and [`fingerprint`] are pure; [`client`] runs nft. The table in the kernel is the wanted one when
//! `installed()` answers the wanted ruleset's fingerprint.

mod change;
pub mod client;
pub mod firewall;
mod render;
mod seal;
mod shield;
mod sources;
mod steering;
mod untracked;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

pub use render::{fingerprint, render};

use crate::marks::{MarkBits, Marks};
use crate::model::{Family, Frontend};
use crate::net::MacAddress;

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
    /// Frontends that kube-proxy has rules for too: connections to them reach IPVS as if it had none.
    pub shielded: BTreeSet<Frontend>,
    /// Frontends of mode nat whose datagrams are balanced one by one.
    pub untracked: BTreeSet<Frontend>,
    /// Which packets go to which virtual server in mode dsr.
    pub steering: Steering,
}

impl Ruleset {
    /// Takes out what is steered in one family: the host's own programs must not answer in its place.
    pub fn close_steered(&mut self, family: Family) {
        let is_it = |frontend: &Frontend| Family::of(frontend.vip) == family;
        self.frontends.retain(|frontend| !is_it(frontend) || !self.steering.frontends.contains_key(frontend));
        self.steering.frontends.retain(|frontend, _| !is_it(frontend));
        self.steering.inward.retain(|frontend| !is_it(frontend));
    }
}

/// What mode dsr needs: packets to its frontends are marked by where they come from. And what mode nat needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steering {
    /// The bits of the mark that are kvip's.
    pub bits: MarkBits,
    /// The frontends of mode dsr, with their marks.
    pub frontends: BTreeMap<Frontend, Marks>,
    /// Link-layer addresses of the nodes that hand packets on to this one.
    pub peers: BTreeSet<MacAddress>,
    /// The IP addresses of these nodes: what they send themselves is not handed on.
    pub nodes: BTreeSet<IpAddr>,
    /// Links through which packets are handed on as well: those of an overlay network.
    pub tunnels: BTreeSet<String>,
    /// This node's own addresses: its own processes are clients on it.
    pub host: BTreeSet<IpAddr>,
    /// The VIPs are left to other nodes, so that clients' packets which pass here go on to them.
    pub left: bool,
    /// Frontends of mode nat with a server at an address of this host: what its own processes send to them stays here,
    /// wherever the VIP is.
    pub inward: BTreeSet<Frontend>,
}

impl Default for Steering {
    fn default() -> Self {
        Self {
            bits: MarkBits::standard(),
            frontends: BTreeMap::new(),
            peers: BTreeSet::new(),
            nodes: BTreeSet::new(),
            tunnels: BTreeSet::new(),
            host: BTreeSet::new(),
            left: false,
            inward: BTreeSet::new(),
        }
    }
}
