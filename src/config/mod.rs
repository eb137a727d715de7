//! What the admin says: the settings, checked.
//!
//! Files, environment and flags are read by the submodules; inside kvip there are only valid [`Settings`].

mod effective;
mod error;
mod keys;
mod layer;
mod load;
mod locate;
mod raw;
mod units;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{ObjectKey, Vrid};

pub use effective::effective;
pub use error::Problem;
pub use keys::{KEYS, Key};
pub use load::{CONFIG_FILE, Loaded, Sources, load, load_with_origins, require};
pub use units::{DurationError, format_duration, parse_duration};

/// All settings of one node, valid and with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the cluster is and what is read from it.
    pub cluster: Cluster,
    /// What this host is to the cluster; found by itself where not given.
    pub node: Node,
    /// Networks that VIPs must lie in.
    pub allowed: Vec<IpNet>,
    /// How VRRP is spoken.
    pub vrrp: Vrrp,
    /// How IPVS balances.
    pub balancing: Balancing,
}

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The kubeconfig's path, `/etc/kvip/kubeconfig` by default.
    pub kubeconfig: PathBuf,
    /// The ConfigMap that maps VIPs to Services, `default/vip-configmap` by default.
    pub config_map: ObjectKey,
    /// How long a node without contact to the API counts as fresh, 5 min by default.
    pub stale_after: Duration,
    /// The cluster's Service ranges, in which no VIP may lie; beside the ClusterIPs seen.
    pub service_ranges: Vec<IpNet>,
}

/// `[node]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The Node object's name.
    pub name: Option<String>,
    /// The interface that holds VIPs.
    pub interface: Option<String>,
    /// The address that VRRP speaks from, for its family.
    pub address: Option<IpAddr>,
}

/// `[vrrp]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vrrp {
    /// The group's virtual router identifier, 50 by default.
    pub vrid: Vrid,
    /// The advertisement interval, 10 ms to 10 s in steps of 10 ms, 250 ms by default.
    pub advert: Duration,
    /// How adverts travel.
    pub transport: Transport,
    /// Labels that a Node must carry to be a member; none: all Nodes are.
    pub members: BTreeMap<String, String>,
    /// How long kvip may be gone before its node yields, 60 s by default.
    pub gone_after: Duration,
}

/// How VRRP adverts travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// To 224.0.0.18 or ff02::12.
    Multicast,
    /// To each member's address, for networks without multicast.
    Unicast,
}

/// `[balancing]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancing {
    /// The forwarding mode of frontends that name none.
    pub mode: Mode,
    /// The IPVS scheduler, `wlc` by default.
    pub scheduler: Scheduler,
    /// How long a terminating endpoint may keep its connections, 60 s by default.
    pub drain_limit: Duration,
    /// The TCP port of each node that is probed for life, 10250 (the kubelet's) by default.
    pub probe_port: u16,
}

/// A forwarding mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Destination NAT by IPVS, masqueraded where replies would miss the holder.
    Nat,
}

/// An IPVS scheduler that needs no flags, by its kernel name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Source hashing.
    Sh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
}

impl Scheduler {
    /// The kernel's name, as in `ip_vs_wlc`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
        }
    }
}

#[cfg(test)]
mod tests;
