//! What an IPVS table holds, and the commands that change it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::model::{Backend, Frontend};

/// Virtual servers by frontend. Virtual servers by firewall mark are not kvip's and never appear here.
pub type Table = BTreeMap<Frontend, VirtualServer>;

/// A virtual server with its real servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// How it balances.
    pub service: Service,
    /// Its real servers.
    pub real_servers: BTreeMap<Backend, RealServer>,
}

/// The properties of a virtual server that SET_SERVICE can change in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The scheduler's kernel name, such as `wlc` (15 bytes at most).
    pub scheduler: String,
    /// Persistence: for how long a client keeps its real server, in whole seconds.
    pub persistence: Option<Duration>,
    /// Scheduler and one-packet flags; IP_VS_SVC_F_HASHED and PERSISTENT are not among them.
    pub flags: u32,
}

/// A real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealServer {
    /// The forwarding method.
    pub forward: Forward,
    /// The weight; 0 takes no new connections.
    pub weight: u32,
    /// Connections now, active and inactive; 0 in a wanted table, never compared.
    pub connections: u32,
}

/// IP_VS_CONN_F_FWD_MASK of `<linux/ip_vs.h>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Network address translation.
    Masquerade,
    /// To this host itself.
    Local,
    /// By a tunnel.
    Tunnel,
    /// By direct routing.
    DirectRoute,
    /// Cache bypass.
    Bypass,
}

/// One change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Adds a virtual server.
    NewService(Frontend, Service),
    /// Changes a virtual server in place.
    SetService(Frontend, Service),
    /// Removes a virtual server with its real servers.
    DelService(Frontend),
    /// Adds a real server.
    NewDest(Frontend, Backend, RealServer),
    /// Changes a real server's weight or forwarding method.
    SetDest(Frontend, Backend, RealServer),
    /// Removes a real server.
    DelDest(Frontend, Backend),
}

impl Command {
    /// The virtual server that is changed, or whose real server is.
    pub fn frontend(&self) -> &Frontend {
        match self {
            Self::NewService(frontend, _)
            | Self::SetService(frontend, _)
            | Self::DelService(frontend)
            | Self::NewDest(frontend, ..)
            | Self::SetDest(frontend, ..)
            | Self::DelDest(frontend, _) => frontend,
        }
    }

    /// Changes `table` as the kernel's table changes by this command, where there and gone already are success.
    pub fn apply(&self, table: &mut Table) {
        match self {
            Self::NewService(frontend, service) | Self::SetService(frontend, service) => {
                let fresh = || VirtualServer { service: service.clone(), real_servers: BTreeMap::new() };
                table.entry(*frontend).or_insert_with(fresh).service = service.clone();
            }
            Self::DelService(frontend) => drop(table.remove(frontend)),
            Self::NewDest(frontend, backend, real_server) | Self::SetDest(frontend, backend, real_server) => {
                if let Some(server) = table.get_mut(frontend) {
                    let slot = server.real_servers.entry(*backend).or_insert(*real_server);
                    *slot = RealServer { connections: slot.connections, ..*real_server };
                }
            }
            Self::DelDest(frontend, backend) => {
                if let Some(server) = table.get_mut(frontend) {
                    server.real_servers.remove(backend);
                }
            }
        }
    }
}

/// As a person reads it in the journal: `add real server 10.2.4.10:80 weight 1 to tcp 10.87.2.50:80`.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewService(frontend, service) => write!(f, "add virtual server {frontend} {service}"),
            Self::SetService(frontend, service) => write!(f, "set virtual server {frontend} to {service}"),
            Self::DelService(frontend) => write!(f, "remove virtual server {frontend}"),
            Self::NewDest(frontend, backend, real) => {
                write!(f, "add real server {backend} {real} to {frontend}")
            }
            Self::SetDest(frontend, backend, real) => {
                write!(f, "set real server {backend} of {frontend} to {real}")
            }
            Self::DelDest(frontend, backend) => write!(f, "remove real server {backend} from {frontend}"),
        }
    }
}

/// `wlc`, or `sh flags 0x10 persistent 10800 s`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.scheduler)?;
        if self.flags != 0 {
            write!(f, " flags {:#x}", self.flags)?;
        }
        self.persistence.map_or(Ok(()), |time| write!(f, " persistent {} s", time.as_secs()))
    }
}

/// `weight 1`, and the forwarding method unless it is the usual one: `weight 1 tunnel`.
impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {}", self.weight)?;
        match self.forward {
            Forward::Masquerade => Ok(()),
            Forward::Local => write!(f, " local"),
            Forward::Tunnel => write!(f, " tunnel"),
            Forward::DirectRoute => write!(f, " direct route"),
            Forward::Bypass => write!(f, " bypass"),
        }
    }
}
