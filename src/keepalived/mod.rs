//! keepalived on this host: what its configuration must say, and everything that brings it there.

pub mod binary;
mod carried;
pub mod check;
pub mod cleanup;
pub mod driver;
pub mod handover;
pub mod hold;
pub mod parse;
pub mod paths;
pub mod place;
pub mod render;
pub mod service;
pub mod status;
pub mod step;
mod trouble;
pub mod weight;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

pub use binary::{build, keepalived_accepts};
pub use carried::Carried;
pub use check::{Refusal, check};
pub use cleanup::cleanup;
pub use driver::spawn;
pub use handover::hand_over;
pub use parse::{carried_in, is_ours, vips_in};
pub use paths::Paths;
pub use render::{Build, MARKER, render, render_fragment};
pub use service::{Service, unit};
pub use status::{State, Status};

use crate::model::{Family, Vrid};

/// The configuration that kvip wants keepalived to run. No instance: this node takes no part in VRRP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `router_id`: the node's name.
    pub router_id: String,
    /// How long kvip may be gone before keepalived lowers this node (`vrrp_track_process`), in groups that say nothing else.
    pub gone_after: Duration,
    /// VRRP instances, one for each family of a group, in the order of VRID and family.
    pub instances: Vec<Instance>,
}

/// One VRRP instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The group's VRID.
    pub vrid: Vrid,
    /// The family of its addresses.
    pub family: Family,
    /// The interface that holds the VIPs.
    pub interface: String,
    /// The base priority, 141 to 190; the weight file is added to it.
    pub priority: u8,
    /// The advertisement interval.
    pub advert: Duration,
    /// How long kvip may be gone before keepalived lowers this node in this instance.
    pub gone_after: Duration,
    /// Unicast source and peers; `None` is multicast.
    pub unicast: Option<Unicast>,
    /// The service VIPs, all of the instance's family, at most 300.
    pub vips: BTreeSet<IpAddr>,
}

/// How an instance reaches its peers without multicast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unicast {
    /// This node's address.
    pub source: IpAddr,
    /// The other members' addresses, never empty: keepalived would fall back to multicast.
    pub peers: BTreeSet<IpAddr>,
}

/// The group's fixed advertised address, the same on all nodes, which whoever is the holder carries.
///
/// 169.254.255.VRID for IPv4; fe80::6b76:6970:VRID ("kvip", the VRID in decimal digits read as hexadecimal) for IPv6.
pub fn anchor(vrid: Vrid, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([169, 254, 255, vrid.get()]),
        Family::V6 => {
            let digits = u16::from_str_radix(&vrid.get().to_string(), 16)
                .expect("three decimal digits are hexadecimal");
            IpAddr::from([0xfe80, 0, 0, 0, 0, 0x6b76, 0x6970, digits])
        }
    }
}
