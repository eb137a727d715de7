//! What an IPVS table holds, and the commands that change it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::model::{Backend, Family, Frontend};

/// Virtual servers by what they take.
pub type Table = BTreeMap<Key, VirtualServer>;

/// Which packets a virtual server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Those to a VIP, protocol and port.
    Frontend(Frontend),
    /// Those of a family that carry a firewall mark. A virtual server by mark comes before one by address.
    Mark(Family, u32),
}

impl Key {
    /// The family of its packets.
    pub fn family(&self) -> Family {
        match self {
            Self::Frontend(frontend) => Family::of(frontend.vip),
            Self::Mark(family, _) => *family,
        }
    }

    /// The frontend, unless it is by firewall mark.
    pub fn frontend(&self) -> Option<&Frontend> {
        match self {
            Self::Frontend(frontend) => Some(frontend),
            Self::Mark(..) => None,
        }
    }
}

impl Key {
    /// The family and the mark, unless it is by address.
    pub fn mark(&self) -> Option<(Family, u32)> {
        match self {
            Self::Frontend(_) => None,
            Self::Mark(family, mark) => Some((*family, *mark)),
        }
    }
}

impl From<Frontend> for Key {
    fn from(frontend: Frontend) -> Self {
        Self::Frontend(frontend)
    }
}

/// `tcp 10.87.2.50:80`, or `mark 0x101 (IPv4)`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(frontend) => frontend.fmt(f),
            Self::Mark(family, mark) => write!(f, "mark {mark:#x} (IPv{})", family.number()),
        }
    }
}

/// A virtual server with its real servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// How it balances.
    pub service: Service,
    /// Its real servers.
    pub real_servers: BTreeMap<Backend, RealServer>,
    /// Its real servers in the order in which they were added, each with the last weight above 0 that it is known to have
    /// had, else 0; nothing where the scheduler does not go by these.
    pub added: Vec<(Backend, u32)>,
}

impl VirtualServer {
    /// A virtual server without real servers.
    pub fn new(service: Service) -> Self {
        Self { service, real_servers: BTreeMap::new(), added: Vec::new() }
    }

    /// Whether `other` is set up alike, whatever connections its real servers have and when they were added.
    pub fn same_as(&self, other: &Self) -> bool {
        let pairs = || self.real_servers.iter().zip(&other.real_servers);
        self.service == other.service
            && self.real_servers.len() == other.real_servers.len()
            && pairs().all(|((at, real), (other_at, other))| at == other_at && real.same_as(other))
    }

    /// The last weight above 0 that the real server at `backend` is known to have had, else 0.
    pub fn last_weight(&self, backend: &Backend) -> u32 {
        self.added.iter().find(|(at, _)| at == backend).map_or(0, |(_, weight)| *weight)
    }

    /// Takes the last weights over from how it was known `before`, as the kernel does not tell them; not where another hand
    /// has changed it since.
    pub fn remember(&mut self, before: &Self) {
        let order = self.added.iter().map(|(at, _)| at);
        let before_order = before.added.iter().map(|(at, _)| at);
        if !self.added.is_empty() && order.eq(before_order) && self.same_as(before) {
            self.added.clone_from(&before.added);
        }
    }
}

/// IP_VS_SVC_F_ONEPACKET: each datagram is scheduled by itself.
pub const FLAG_ONE_PACKET: u32 = 0x4;
/// IP_VS_SVC_F_SCHED1: sh-fallback, mh-fallback: another real server takes what one without weight cannot.
pub const FLAG_SCHED_1: u32 = 0x8;
/// IP_VS_SVC_F_SCHED2: sh-port, mh-port: the client's port is hashed with its address.
pub const FLAG_SCHED_2: u32 = 0x10;
/// IP_VS_SVC_F_SCHED3; no scheduler of the kernel has a use for it.
pub const FLAG_SCHED_3: u32 = 0x20;

/// Flags with their names; those of schedulers are called after the scheduler.
const FLAGS: [(u32, Option<&str>); 4] = [
    (FLAG_ONE_PACKET, Some("ops")),
    (FLAG_SCHED_1, None),
    (FLAG_SCHED_2, None),
    (FLAG_SCHED_3, Some("flag-3")),
];

/// The properties of a virtual server that SET_SERVICE can change in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The scheduler's kernel name, such as `wlc` (15 bytes at most).
    pub scheduler: String,
    /// For how long which clients keep their real server.
    pub persistence: Option<Persistence>,
    /// Scheduler and one-packet flags; IP_VS_SVC_F_HASHED and PERSISTENT are not among them.
    pub flags: u32,
}

impl Service {
    /// Whether it matters in which order real servers are added: mh fills its table in the order of their list
    /// (ip_vs_mh_populate, net/netfilter/ipvs/ip_vs_mh.c). To one without weight it gives the places of its last weight.
    pub fn goes_by_order(&self) -> bool {
        self.scheduler == "mh"
    }
}

/// Persistence: connections of one client go to one real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistence {
    /// For how long after the last connection, in whole seconds.
    pub timeout: Duration,
    /// How many leading bits of addresses make one client: 32 or 128 is each address for itself.
    pub prefix_len: u8,
}

impl Persistence {
    /// Persistence for each address of `family` by itself.
    pub fn of_address(timeout: Duration, family: Family) -> Self {
        let prefix_len = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        Self { timeout, prefix_len }
    }
}

/// A real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealServer {
    /// The forwarding method.
    pub forward: Forward,
    /// The weight; 0 takes no new connections.
    pub weight: u32,
    /// How many connections are too many.
    pub thresholds: Thresholds,
    /// Connections now, active and inactive; 0 in a wanted table, never compared.
    pub connections: u32,
}

impl RealServer {
    /// A real server without thresholds and connections.
    pub fn new(forward: Forward, weight: u32) -> Self {
        Self { forward, weight, thresholds: Thresholds::default(), connections: 0 }
    }

    /// Whether `other` is set up alike, whatever connections it has.
    pub fn same_as(&self, other: &Self) -> bool {
        Self { connections: 0, ..*self } == Self { connections: 0, ..*other }
    }
}

/// From which number of connections on a real server gets no more, and below which it gets some again (ipvsadm(8),
/// `--u-threshold` and `--l-threshold`). 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// No more from here on.
    pub upper: u32,
    /// Some again below; 0 is three quarters of the upper one.
    pub lower: u32,
}

/// How packets are wrapped for a tunnel (IP_VS_CONN_F_TUNNEL_TYPE of `<linux/ip_vs.h>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// IP in IP (RFC 2003), or IPv6 in the one and the other.
    Ipip,
    /// Generic UDP encapsulation, to a port.
    Gue(u16),
    /// Generic routing encapsulation (RFC 2784).
    Gre,
}

impl Tunnel {
    /// What one is written as, for people.
    pub const WANTED: &str = "ipip, gre, or gue and a UDP port, as in gue:6080";

    /// The one that is written `text`.
    pub fn named(text: &str) -> Option<Self> {
        match text {
            "ipip" => Some(Self::Ipip),
            "gre" => Some(Self::Gre),
            _ => {
                let port = text.strip_prefix("gue:")?.parse().ok().filter(|port| *port > 0);
                port.map(Self::Gue)
            }
        }
    }
}

/// `ipip`, `gre`, or `gue:6080`.
impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipip => write!(f, "ipip"),
            Self::Gue(port) => write!(f, "gue:{port}"),
            Self::Gre => write!(f, "gre"),
        }
    }
}

/// IP_VS_CONN_F_FWD_MASK of `<linux/ip_vs.h>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Network address translation.
    Masquerade,
    /// To this host itself.
    Local,
    /// By a tunnel.
    Tunnel(Tunnel),
    /// By direct routing.
    DirectRoute,
    /// Cache bypass.
    Bypass,
}

/// One change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Adds a virtual server.
    NewService(Key, Service),
    /// Changes a virtual server in place.
    SetService(Key, Service),
    /// Removes a virtual server with its real servers.
    DelService(Key),
    /// Adds a real server.
    NewDest(Key, Backend, RealServer),
    /// Changes a real server's weight, thresholds or forwarding method.
    SetDest(Key, Backend, RealServer),
    /// Removes a real server.
    DelDest(Key, Backend),
}

impl Command {
    /// The virtual server that is changed, or whose real server is.
    pub fn key(&self) -> &Key {
        match self {
            Self::NewService(key, _)
            | Self::SetService(key, _)
            | Self::DelService(key)
            | Self::NewDest(key, ..)
            | Self::SetDest(key, ..)
            | Self::DelDest(key, _) => key,
        }
    }

    /// The real server that is changed, if it is one.
    pub fn backend(&self) -> Option<&Backend> {
        match self {
            Self::NewService(..) | Self::SetService(..) | Self::DelService(_) => None,
            Self::NewDest(_, backend, _) | Self::SetDest(_, backend, _) | Self::DelDest(_, backend) => {
                Some(backend)
            }
        }
    }

    /// Whether something is gone by it.
    pub fn removes(&self) -> bool {
        matches!(self, Self::DelService(_) | Self::DelDest(..))
    }

    /// Changes `table` as the kernel's table changes by this command, where there and gone already are success.
    pub fn apply(&self, table: &mut Table) {
        match self {
            Self::NewService(key, service) | Self::SetService(key, service) => {
                let server = table.entry(*key).or_insert_with(|| VirtualServer::new(service.clone()));
                if server.service.goes_by_order() != service.goes_by_order() {
                    // Added in whatever order while it did not matter: it is taken for a wrong one.
                    let last_first = server.real_servers.iter().rev();
                    server.added = last_first.map(|(backend, real)| (*backend, real.weight)).collect();
                }
                server.service = service.clone();
                if !service.goes_by_order() {
                    server.added.clear();
                }
            }
            Self::DelService(key) => drop(table.remove(key)),
            Self::NewDest(key, backend, real_server) | Self::SetDest(key, backend, real_server) => {
                if let Some(server) = table.get_mut(key) {
                    server.put(*backend, *real_server);
                }
            }
            Self::DelDest(key, backend) => {
                if let Some(server) = table.get_mut(key) {
                    server.real_servers.remove(backend);
                    server.added.retain(|(other, _)| other != backend);
                }
            }
        }
    }
}

impl VirtualServer {
    /// Adds or changes a real server; its connections stay, and so does its last weight when it is to have none.
    fn put(&mut self, backend: Backend, real_server: RealServer) {
        let weight = real_server.weight;
        let connections = match self.real_servers.get(&backend) {
            Some(before) => before.connections,
            None => {
                if self.service.goes_by_order() {
                    self.added.push((backend, weight));
                }
                real_server.connections
            }
        };
        if let Some((_, last)) = self.added.iter_mut().find(|(at, _)| *at == backend && weight > 0) {
            *last = weight;
        }
        self.real_servers.insert(backend, RealServer { connections, ..real_server });
    }
}

/// As a person reads it in the journal: `add real server 10.2.4.10:80 weight 1 to tcp 10.87.2.50:80`.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewService(key, service) => write!(f, "add virtual server {key} {service}"),
            Self::SetService(key, service) => write!(f, "set virtual server {key} to {service}"),
            Self::DelService(key) => write!(f, "remove virtual server {key}"),
            Self::NewDest(key, backend, real) => {
                write!(f, "add real server {backend} {real} to {key}")
            }
            Self::SetDest(key, backend, real) => {
                write!(f, "set real server {backend} of {key} to {real}")
            }
            Self::DelDest(key, backend) => write!(f, "remove real server {backend} from {key}"),
        }
    }
}

/// `wlc`, or `mh mh-fallback mh-port`, or `wlc persistent 10800 s`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.scheduler)?;
        for (flag, name) in FLAGS.iter().filter(|(flag, _)| self.flags & flag != 0) {
            match name {
                Some(name) => write!(f, " {name}")?,
                None => write!(
                    f,
                    " {}-{}",
                    self.scheduler,
                    if *flag == FLAG_SCHED_1 { "fallback" } else { "port" }
                )?,
            }
        }
        let Some(Persistence { timeout, prefix_len }) = self.persistence else { return Ok(()) };
        write!(f, " persistent {} s", timeout.as_secs())?;
        if prefix_len == 32 || prefix_len == 128 { Ok(()) } else { write!(f, " by /{prefix_len}") }
    }
}

/// `weight 1`, and the forwarding method unless it is the usual one: `weight 1 tunnel`.
impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {}", self.weight)?;
        let Thresholds { upper, lower } = self.thresholds;
        if upper != 0 || lower != 0 {
            write!(f, " thresholds {lower}-{upper}")?;
        }
        match self.forward {
            Forward::Masquerade => Ok(()),
            Forward::Local => write!(f, " local"),
            Forward::Tunnel(tunnel) => write!(f, " tunnel {tunnel}"),
            Forward::DirectRoute => write!(f, " direct route"),
            Forward::Bypass => write!(f, " bypass"),
        }
    }
}
