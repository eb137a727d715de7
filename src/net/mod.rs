//! The host's network as rtnetlink tells it: links, addresses, gateways and neighbours.
//!
//! [`read()`] asks once, [`watch()`] keeps asking, [`neighbours()`] and [`resolve`] tell who else answers for an
//! address, and [`remove_address`] is the only act that changes the host. None of them ever adds an address:
//! only keepalived moves VIPs.

mod change;
mod neighbour;
mod netlink;
mod read;
mod tables;
mod watch;

pub use change::remove_address;
pub use neighbour::{MacAddress, neighbours, owner_of, resolve};
pub use netlink::Error;
pub use read::read;
pub use watch::watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What kvip knows of its host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The host's name.
    pub hostname: String,
    /// Links by their names.
    #[serde(default)]
    pub links: BTreeMap<String, Link>,
    /// Addresses on the links.
    #[serde(default)]
    pub addresses: BTreeSet<Address>,
    /// Next hops of default routes.
    #[serde(default)]
    pub gateways: BTreeSet<IpAddr>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The kernel's index of it.
    pub index: u32,
    /// IFF_UP and a carrier.
    pub up: bool,
    /// IFF_LOOPBACK.
    #[serde(default)]
    pub loopback: bool,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// The name of the link that holds `ip`.
    pub fn link_of(&self, ip: IpAddr) -> Option<&str> {
        self.addresses.iter().find(|a| a.ip == ip).map(|a| a.link.as_str())
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
