//! HAProxy on this host, for frontends of mode proxy: what its configuration must say, and everything that brings it there.
//!
//! HAProxy is a unit of its own, `kvip-haproxy.service`, that serves on while kvip is away. Every member runs the same
//! frontends, holder or not: it binds addresses that are not there yet.

mod control;
pub mod driver;
mod program;
pub mod render;
pub mod servers;
mod service;
pub mod status;
mod taken;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::{ProxyProtocol, Scheduler};
use crate::model::{Backend, Frontend};

pub use control::ask;
pub use driver::spawn;
pub use program::{ProgramError, haproxy_accepts};
pub use render::{name, render, sections};
pub use service::{Haproxy, Service, UNIT, cleanup};
pub use status::{State, Status};
pub use taken::listeners;

/// What HAProxy is to serve. No frontend: it is not to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The frontends. One that rests is not in the file, so that the host itself refuses connections.
    pub frontends: BTreeMap<Frontend, Proxy>,
}

/// One frontend and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// On whose behalf, for whoever reads the file.
    pub owner: String,
    /// What servers are told of the client.
    pub protocol: ProxyProtocol,
    /// How it is chosen among them.
    pub balance: Balance,
    /// The servers with their weights, up to [`MOST_WEIGHT`]; 0 gets no new connections.
    pub servers: BTreeMap<Backend, u16>,
    /// Servers that do not answer and are no servers now, so that connections to them are to end.
    pub ended: BTreeSet<Backend>,
}

impl Proxy {
    /// Whether no server gets new connections, so that there are to be none.
    pub fn rests(&self) -> bool {
        self.servers.values().all(|weight| *weight == 0)
    }
}

/// The highest weight of a server.
pub const MOST_WEIGHT: u16 = 256;

/// A weight of IPVS as one of HAProxy's.
pub fn weight(of: u32) -> u16 {
    u16::try_from(of).unwrap_or(MOST_WEIGHT).min(MOST_WEIGHT)
}

/// How a server is chosen (`balance` in HAProxy's configuration manual). All take servers that are added while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// The fewest connections, by weight.
    LeastConnections,
    /// By the client's address, as evenly as weights say; the same on every node and after every reload.
    Source,
    /// The less busy of two that are drawn by lot.
    RandomOfTwo,
    /// The first of them.
    First,
}

impl Balance {
    /// What comes nearest to an IPVS scheduler. A client that is to stay at its server stays by its address.
    pub fn of(scheduler: Scheduler, affinity: bool) -> Self {
        match scheduler {
            _ if affinity => Self::Source,
            // A VIP is one destination, so that hashing destinations would choose one server for all.
            Scheduler::Rr | Scheduler::Wrr | Scheduler::Dh => Self::RoundRobin,
            Scheduler::Lc
            | Scheduler::Wlc
            | Scheduler::Lblc
            | Scheduler::Lblcr
            | Scheduler::Sed
            | Scheduler::Nq => Self::LeastConnections,
            Scheduler::Sh | Scheduler::Mh => Self::Source,
            Scheduler::Fo | Scheduler::Ovf => Self::First,
            Scheduler::Twos => Self::RandomOfTwo,
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoundRobin => "roundrobin",
            Self::LeastConnections => "leastconn",
            Self::Source => "source",
            Self::RandomOfTwo => "random(2)",
            Self::First => "first",
        })
    }
}

impl Config {
    /// Whether each of its frontends is one of `frontends`.
    pub fn is_covered_by(&self, frontends: &BTreeSet<Frontend>) -> bool {
        self.frontends.keys().all(|frontend| frontends.contains(frontend))
    }

    /// Whether `other` differs in nothing but servers and their weights.
    fn same_but_servers(&self, other: &Self) -> bool {
        let alike = |(a, b): (&Proxy, &Proxy)| (a.protocol, a.balance) == (b.protocol, b.balance);
        self.frontends.keys().eq(other.frontends.keys())
            && self.frontends.values().zip(other.frontends.values()).all(alike)
    }
}

/// The files that kvip and HAProxy meet at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What HAProxy reads. It goes with a boot, and kvip writes it anew before this node may hold a VIP.
    pub config: PathBuf,
    /// A copy of the file that HAProxy is known to run: what a reload is compared with and rolled back to.
    pub loaded: PathBuf,
    /// HAProxy's own socket for commands and statistics, in the unit's runtime folder.
    pub socket: PathBuf,
}

impl Paths {
    /// Beside and in kvip's run folder, `/run/kvip`.
    pub fn of(run: &Path) -> Self {
        Self {
            config: run.join("haproxy.cfg"),
            loaded: run.join("haproxy.loaded"),
            socket: run.with_file_name("kvip-haproxy").join("admin.sock"),
        }
    }
}
