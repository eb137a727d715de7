//! The host's network as rtnetlink tells it: links, addresses, gateways and neighbours.
//!
//! [`read()`] asks once, [`watch()`] keeps asking, [`resolve`] tells who else answers for an
//! address, [`peers`] follows some of them, and [`hops`] tells how packets to pods elsewhere leave. [`remove_address`], [`add_policy_route`] and [`remove_policy_route`] are
//! the only acts that change the host. None of them ever adds an address: only keepalived moves VIPs.

mod change;
pub mod hops;
mod neighbour;
mod netlink;
pub mod peers;
mod policy;
mod read;
mod tables;
mod watch;

pub use change::remove_address;
pub use hops::{Hop, Hops, Way};
pub use neighbour::{MacAddress, owner_of, resolve};
pub use netlink::Error;
pub use policy::{add_policy_route, remove_policy_route};
pub use read::read;
pub use watch::watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::Family;

/// The device that kube-proxy makes in its ipvs mode (pkg/proxy/ipvs in Kubernetes). It puts each address on it that it
/// balances.
pub const KUBE_PROXY_DEVICE: &str = "kube-ipvs0";

/// What kvip knows of its host.
///
/// All of it is rtnetlink's to tell but for what kube-proxy says, which [`crate::kube_proxy`] adds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// The host's name.
    pub hostname: String,
    /// Links by their names.
    #[serde(default)]
    pub links: BTreeMap<String, Link>,
    /// Addresses on the links, but those of [`KUBE_PROXY_DEVICE`].
    #[serde(default)]
    pub addresses: BTreeSet<Address>,
    /// Next hops of default routes.
    #[serde(default)]
    pub gateways: BTreeSet<IpAddr>,
    /// Policy rules and routes that are kvip's.
    #[serde(skip)]
    pub policy_routes: BTreeSet<PolicyRoute>,
    /// The networks in which kube-proxy deletes no virtual server of another program; `None` where it does not tell, or its
    /// device is not there.
    #[serde(default)]
    pub kube_proxy_excludes: Option<BTreeSet<IpNet>>,
}

/// A policy rule, or a route of the table that it names. kvip's carry a routing protocol number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRoute {
    /// The family.
    pub family: Family,
    /// The routing table.
    pub table: u32,
    /// Which of the two.
    pub kind: PolicyKind,
}

/// A rule or a route (ip-rule(8), ip-route(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyKind {
    /// `local default dev lo`: everything is for this host.
    LocalRoute,
    /// Packets with the bit `mark` are looked up in the table.
    Rule {
        /// A bit of the firewall mark.
        mark: u32,
        /// The lower, the earlier.
        priority: u32,
    },
}

impl std::fmt::Display for PolicyRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { family, table, kind } = self;
        match kind {
            PolicyKind::Rule { mark, priority } => {
                write!(f, "IPv{} rule {priority}: fwmark {mark:#x}/{mark:#x} lookup {table}", family.number())
            }
            PolicyKind::LocalRoute => {
                write!(f, "IPv{} route local default dev lo table {table}", family.number())
            }
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The kernel's index of it.
    pub index: u32,
    /// IFF_UP and a carrier.
    pub up: bool,
    /// IFF_LOOPBACK.
    #[serde(default)]
    pub loopback: bool,
    /// Whether it wraps packets to other hosts.
    #[serde(default)]
    pub wraps: Wraps,
}

/// Whether a link wraps packets to other hosts, and how it knows to which.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wraps {
    /// It wraps none.
    #[default]
    Nothing,
    /// By the route: its kind is vxlan, geneve, ipip, sit, ip6tnl or gre.
    ByRoute,
    /// By the packet's destination: its kind is wireguard.
    ByDestination,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Its prefix length in bits.
    pub prefix_len: u8,
    /// The link's name.
    pub link: String,
    /// IFA_F_NOPREFIXROUTE, which keepalived's VIPs carry.
    #[serde(default)]
    pub noprefixroute: bool,
}

impl HostFacts {
    /// Whether kube-proxy runs in ipvs mode on this host, or did before.
    pub fn kube_proxy_has_ipvs_mode(&self) -> bool {
        self.links.contains_key(KUBE_PROXY_DEVICE)
    }

    /// Whether kube-proxy leaves alone what others balance at `vip`, as far as it tells.
    pub fn kube_proxy_leaves_alone(&self, vip: IpAddr) -> Option<bool> {
        let networks = self.kube_proxy_excludes.as_ref()?;
        Some(networks.iter().any(|network| network.contains(&vip)))
    }

    /// The same without the addresses on kube-proxy's device. They are not this host's own: on every node a VIP that kube-proxy
    /// balances is among them.
    #[must_use]
    pub fn without_kube_proxys(mut self) -> Self {
        self.addresses.retain(|address| address.link != KUBE_PROXY_DEVICE);
        self
    }

    /// The name of the link that holds `ip`.
    pub fn link_of(&self, ip: IpAddr) -> Option<&str> {
        self.addresses.iter().find(|a| a.ip == ip).map(|a| a.link.as_str())
    }

    /// The name and the properties of the link with that index.
    pub fn link_at(&self, index: u32) -> Option<(&str, &Link)> {
        let found = self.links.iter().find(|(_, link)| link.index == index);
        found.map(|(name, link)| (name.as_str(), link))
    }

    /// Whether packets to `ip` go out on a link of this host without a gateway, as the addresses on the links say.
    pub fn has_neighbour(&self, ip: IpAddr) -> bool {
        let network = |address: &Address| IpNet::new(address.ip, address.prefix_len).ok();
        self.addresses.iter().filter_map(network).any(|network| network.contains(&ip))
    }

    /// Whether `ip` is on any link.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.link_of(ip).is_some()
    }
}

impl Address {
    /// Whether the address carries the mark of a VIP: a host prefix without a prefix route.
    pub fn marked_as_vip(&self) -> bool {
        self.noprefixroute && self.prefix_len == if self.ip.is_ipv4() { 32 } else { 128 }
    }
}
