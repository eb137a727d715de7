//! What this host should do: a pure function of snapshot, settings, host facts and dead nodes.
//!
//! Owns every decision about what is served; never asks the kernel, the disk or the clock. What cannot be served becomes
//! a finding and stands in nobody's way.

mod aliases;
mod annotations;
mod asks;
mod assign;
mod checks;
mod counted;
mod endpoints;
mod external;
mod grammar;
mod groups;
mod kube_proxy;
mod load_balancer;
mod local_pods;
mod membership;
mod memo;
mod mode;
mod options;
mod policy;
mod reach;
mod serve;
mod shield;
mod source_ranges;
mod steering;
mod virtual_servers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Mode, ProxyProtocol, Settings};
use crate::haproxy;
use crate::health::check::{Check, Down, Target};
use crate::ipvs::model::{Forward, Thresholds};
use crate::ipvs::{self, Key, RealServer};
use crate::keepalived;
use crate::model::{Backend, Finding, Frontend, ObjectKey, Vrid};
use crate::net::{HostFacts, PolicyRoute};
use crate::nft;
use crate::snapshot::{Map, Snapshot};

pub use aliases::VIPS;
pub use asks::{Source, vips_asked_for};
pub use assign::{Assignment, Requests, Serving, Task};
pub use counted::Counted;
pub use groups::{GroupView, MOST_VIPS};
pub use load_balancer::{could_be_ours, serves_ip_addresses};
pub use membership::{DEFAULT_GROUP, EXCLUDED, Group, groups as groups_of};
pub use memo::{Changed, Deriver};
pub use options::Options;
pub use reach::Reach;
pub use shield::known_to_kube_proxy;

/// Everything that a derivation looks at.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What the admin says.
    pub settings: &'a Settings,
    /// What the cluster says.
    pub snapshot: &'a Snapshot,
    /// What the host is.
    pub facts: &'a HostFacts,
    /// Nodes that do not answer.
    pub dead: &'a BTreeSet<String>,
    /// By group: addresses of nodes that ceased to be members a moment ago and are still spoken to.
    pub leaving: &'a Leaving,
    /// Endpoints that do not answer their checks.
    pub unhealthy: &'a Down,
    /// What is known of the ways to other nodes.
    pub reach: &'a Reach,
    /// Firewall marks by which other programs have virtual servers on this host.
    pub foreign_marks: &'a BTreeSet<u32>,
}

/// By group: addresses of nodes that ceased to be members a moment ago.
pub type Leaving = BTreeMap<Vrid, BTreeSet<IpAddr>>;

/// What this host should do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// This node's name, when it is known.
    pub node: Option<String>,
    /// The VRRP groups by name.
    pub groups: Arc<BTreeMap<String, GroupView>>,
    /// VIPs to hold, with what they are for.
    pub vips: Arc<BTreeMap<IpAddr, Vip>>,
    /// Frontends to balance.
    pub frontends: Map<Frontend, Served>,
    /// Everything that was decided before endpoints were looked at.
    pub assignment: Arc<Assignment>,
    /// How many Services and static VIPs are served.
    pub owners: usize,
    /// What the nftables table must do.
    pub ruleset: Arc<nft::Ruleset>,
    /// What keepalived must run.
    pub keepalived: Arc<keepalived::Config>,
    /// What HAProxy must serve.
    pub haproxy: Arc<haproxy::Config>,
    /// Policy rules and routes that bring packets to a VIP into this host's own stack although it is not here.
    pub policy_routes: Arc<BTreeSet<PolicyRoute>>,
    /// Addresses of the nodes that hand packets on to this one, whose link-layer addresses tell such packets apart.
    pub peers: Arc<BTreeSet<IpAddr>>,
    /// Pods of other nodes that packets are handed on to as they came, as far as their nodes' ways are to be looked at.
    pub ways: Counted<(String, IpAddr)>,
    /// Nodes whose life decides over backends, with their addresses as far as known: all that run backends, but this one.
    pub probed: Arc<BTreeMap<String, Vec<IpAddr>>>,
    /// Endpoints to check, each by how many owners.
    pub checked: Counted<Target>,
    /// What is not served, or not as asked, and why.
    pub findings: Counted<Finding>,
}

impl Desired {
    /// The group that carries `vip`, with its name.
    pub fn group_of(&self, vip: IpAddr) -> Option<(&str, &GroupView)> {
        let found = self.groups.iter().find(|(_, group)| group.vips.contains(&vip));
        found.map(|(name, group)| (name.as_str(), group))
    }

    /// What the virtual server `key` is for.
    pub fn owner_of(&self, key: &Key) -> Option<&Owner> {
        let is_it =
            |served: &&Arc<Served>| served.virtual_servers.iter().any(|balanced| balanced.key == *key);
        let served = match key {
            Key::Frontend(frontend) => self.frontends.get(frontend),
            Key::Mark(..) => self.frontends.values().find(is_it),
        };
        served.map(|served| &served.owner)
    }

    /// Whether this node is a member of `group`.
    pub fn is_member_of(&self, group: &GroupView) -> bool {
        group.has_member(self.node.as_deref())
    }
}

/// What a frontend is served for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A Service.
    Service(ObjectKey),
    /// A static VIP, by its name.
    Static(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Static(name) => f.pad(&format!("static {name}")),
        }
    }
}

/// A VIP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vip {
    /// Nothing was asked to be balanced on it: it floats, and its ports are the host's.
    pub floats_only: bool,
    /// Others balance connections to it, so that kvip cannot know which of its ports are taken.
    pub announced: bool,
}

/// A frontend with what serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The Service behind it, or the static VIP.
    pub owner: Owner,
    /// How it is asked for.
    pub source: Source,
    /// The forwarding mode.
    pub mode: Mode,
    /// IPVS's virtual servers for it, none where something else balances.
    pub virtual_servers: Vec<Balanced>,
    /// What serves it, by where that listens.
    pub servers: BTreeMap<Backend, Server>,
    /// How many connections are too many for one of them.
    pub thresholds: Thresholds,
    /// How they are checked.
    pub check: Option<Arc<Check>>,
    /// How HAProxy serves it, where the mode is that.
    pub proxying: Option<Proxying>,
    /// Endpoints in whatever state.
    pub total: usize,
}

/// How HAProxy serves a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxying {
    /// What servers are told of clients.
    pub protocol: ProxyProtocol,
    /// How a server is chosen.
    pub balance: haproxy::Balance,
    /// Those that do not answer and do not serve, so that connections to them are to end.
    pub ended: BTreeSet<Backend>,
}

/// A virtual server of IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balanced {
    /// Which packets it takes.
    pub key: Key,
    /// How it balances.
    pub service: ipvs::Service,
    /// How packets go on from it, and to whom.
    pub forwarding: Forwarding,
}

impl Balanced {
    /// Whether, when it is balanced by `service`, its real servers must stand in the same order on all nodes: another holder
    /// takes up open connections in their middle, and must come to the same pods. It takes up none that were translated
    /// here, and what is for pods on this node alone is no other's affair.
    pub fn goes_by_order(&self, service: &ipvs::Service) -> bool {
        let is_taken_up = match self.forwarding {
            Forwarding::Split => true,
            Forwarding::All(forward) => forward != Forward::Masquerade,
            Forwarding::OnThisNode => false,
        };
        is_taken_up && service.goes_by_order()
    }
}

/// How packets go on from a virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// To all alike.
    All(Forward),
    /// To pods of peers by direct routing, as their own node translates; to all others by NAT.
    Split,
    /// By NAT, to pods on this node alone.
    OnThisNode,
}

/// One of those that serve a frontend. The order is that of precedence, where two slices list one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// What is wanted of it.
    pub wanted: WantedServer,
    /// Its weight while it gets connections.
    pub weight: u32,
    /// Where it is, as seen from this node.
    pub place: Place,
}

/// Where a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On this node.
    Here,
    /// On another one. In mode dsr: that translates what it is handed as it came.
    Elsewhere,
    /// Out of reach of mode dsr, so that there too it gets what this node has translated.
    Beyond,
}

/// What is wanted of a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WantedServer {
    /// Where it has connections it keeps them for as long as they last. It gets no more, and is nowhere without any.
    Lingering,
    /// Keeps the connections that it has, gets no more, and goes when they have ended.
    Draining,
    /// Keeps the connections that it has and gets no more.
    Idle,
    /// Gets connections.
    Active,
}

impl Served {
    /// How many servers get connections.
    pub fn active(&self) -> usize {
        self.servers.values().filter(|server| server.wanted == WantedServer::Active).count()
    }

    /// What HAProxy must do for it, where it is to.
    pub fn proxy(&self) -> Option<haproxy::Proxy> {
        let Proxying { protocol, balance, ended } = self.proxying.clone()?;
        let weight = |server: &Server| match server.wanted {
            WantedServer::Active => haproxy::weight(server.weight),
            WantedServer::Lingering | WantedServer::Draining | WantedServer::Idle => 0,
        };
        // HAProxy by itself leaves connections to those that it is not to have any more.
        let those = self.servers.iter().filter(|(_, server)| server.wanted != WantedServer::Lingering);
        let servers = those.map(|(backend, server)| (*backend, weight(server))).collect();
        Some(haproxy::Proxy { owner: self.owner.to_string(), protocol, balance, servers, ended })
    }

    /// Each node counts its own connections, so that where all must send a client to the same pod none may count.
    fn thresholds_in(&self, forwarding: Forwarding) -> Thresholds {
        match forwarding {
            Forwarding::All(_) => self.thresholds,
            Forwarding::Split | Forwarding::OnThisNode => Thresholds::default(),
        }
    }

    /// The real servers that one of its virtual servers is to have, at the weights of when they get connections.
    pub fn real_servers(&self, of: &Balanced) -> impl Iterator<Item = (Backend, WantedServer, RealServer)> {
        self.servers.iter().filter_map(|(backend, server)| {
            let forward = match (of.forwarding, server.place) {
                (Forwarding::All(forward), _) => forward,
                (Forwarding::Split, Place::Elsewhere) => Forward::DirectRoute,
                (Forwarding::Split, Place::Beyond) | (_, Place::Here) => Forward::Masquerade,
                (Forwarding::OnThisNode, Place::Elsewhere | Place::Beyond) => return None,
            };
            let thresholds = self.thresholds_in(of.forwarding);
            let real = RealServer { thresholds, ..RealServer::new(forward, server.weight) };
            Some((*backend, server.wanted, real))
        })
    }
}

/// Derives what this host should do.
pub fn derive(inputs: &Inputs) -> Desired {
    Deriver::default().derive(inputs).0
}
