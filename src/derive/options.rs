//! How a Service is to be served, as the settings and its annotations say.
//!
//! Pure. An annotation that says nothing sensible is a finding, and counts as not written.

use std::collections::BTreeMap;
use std::time::Duration;

use super::annotations::{self, Reader};
use super::checks::{self, Checking};
use crate::config::{Mode, ProxyProtocol, Scheduler, Settings};
use crate::ipvs::{
    self,
    model::{FLAG_ONE_PACKET, Persistence, Thresholds, Tunnel},
};
use crate::model::{Family, Finding, Frontend, ObjectKey, Protocol};
use crate::snapshot::Service;

/// The forwarding mode, by its name.
pub const MODE: &str = "kvip.io/mode";
/// The IPVS scheduler, by its kernel name.
pub const SCHEDULER: &str = "kvip.io/scheduler";
/// The scheduler's flags, as `sh-port,sh-fallback`.
pub const SCHEDULER_FLAGS: &str = "kvip.io/scheduler-flags";
/// Which IPv4 addresses sessionAffinity takes for one client: a prefix length or a mask.
pub const NETMASK: &str = "kvip.io/persistence-netmask";
/// Which IPv6 addresses sessionAffinity takes for one client: a prefix length.
pub const NETMASK_V6: &str = "kvip.io/persistence-netmask-v6";
/// How many connections are too many for one pod, as `UPPER` or `LOWER-UPPER`.
pub const THRESHOLDS: &str = "kvip.io/thresholds";
/// Whether each datagram is balanced by itself.
pub const ONE_PACKET: &str = "kvip.io/one-packet";
/// How mode tunnel wraps packets.
pub const TUNNEL: &str = "kvip.io/tunnel";
/// The weight of endpoints by their zone, as `zone-a=3,zone-b=1`.
pub const ZONE_WEIGHTS: &str = "kvip.io/zone-weights";

/// What HAProxy tells servers of clients.
const PROXY_PROTOCOL: &str = "kvip.io/proxy-protocol";

/// How a Service is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The mode that the Service names itself.
    pub mode: Option<Mode>,
    /// The IPVS scheduler.
    pub scheduler: Scheduler,
    /// Its flags.
    pub scheduler_flags: u32,
    /// Each datagram is balanced by itself.
    pub one_packet: bool,
    /// Which clients keep their pod, and for how long.
    pub affinity: Option<Affinity>,
    /// How many connections are too many for one pod.
    pub thresholds: Thresholds,
    /// How packets are wrapped in mode tunnel.
    pub tunnel: Tunnel,
    /// How its endpoints are checked.
    pub checking: Option<Checking>,
    /// What servers are told of clients in mode proxy.
    pub proxy_protocol: ProxyProtocol,
    /// The weights of endpoints by their zone.
    pub zone_weights: BTreeMap<String, u16>,
}

/// sessionAffinity `ClientIP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity {
    /// For how long a client keeps its pod.
    pub timeout: Duration,
    /// How many leading bits of IPv4 addresses make one client.
    pub prefix_v4: u8,
    /// How many leading bits of IPv6 addresses make one client.
    pub prefix_v6: u8,
}

impl Options {
    /// What counts for `service`.
    pub fn of(key: &ObjectKey, service: &Service, settings: &Settings, findings: &mut Vec<Finding>) -> Self {
        let balancing = &settings.balancing;
        let checking = checks::read(key, service, &settings.checks, findings);
        let mut reader = Reader { key, service, findings };
        let scheduler = reader.read(SCHEDULER, annotations::scheduler).unwrap_or(balancing.scheduler);
        let flags = reader.read(SCHEDULER_FLAGS, |text| annotations::scheduler_flags(scheduler, text));
        Self {
            mode: reader.read(MODE, annotations::mode),
            scheduler,
            scheduler_flags: scheduler.bits(&flags.unwrap_or_else(|| balancing.scheduler_flags.clone())),
            one_packet: one_packet(&mut reader),
            affinity: affinity(&mut reader),
            thresholds: reader.read(THRESHOLDS, annotations::thresholds).unwrap_or_default(),
            tunnel: reader.read(TUNNEL, annotations::tunnel).unwrap_or(balancing.tunnel),
            checking,
            proxy_protocol: reader
                .read(PROXY_PROTOCOL, annotations::proxy_protocol)
                .unwrap_or(balancing.proxy_protocol),
            zone_weights: reader.read(ZONE_WEIGHTS, annotations::zone_weights).unwrap_or_default(),
        }
    }

    /// Whether the datagrams to `frontend` are balanced one by one.
    fn one_by_one(&self, frontend: Frontend) -> bool {
        self.one_packet && frontend.protocol == Protocol::Udp
    }

    /// Whether connection tracking is not to know the datagrams to `frontend` in that mode.
    pub fn is_untracked(&self, frontend: Frontend, mode: Mode) -> bool {
        mode == Mode::Nat && self.one_by_one(frontend)
    }

    /// How IPVS balances `frontend` by itself.
    pub fn balancing(&self, frontend: Frontend) -> ipvs::Service {
        let one_packet = self.one_by_one(frontend);
        let persistence = self.affinity.map(|affinity| Persistence {
            timeout: affinity.timeout,
            prefix_len: match Family::of(frontend.vip) {
                Family::V4 => affinity.prefix_v4,
                Family::V6 => affinity.prefix_v6,
            },
        });
        ipvs::Service {
            scheduler: self.scheduler.name().to_owned(),
            persistence,
            flags: self.scheduler_flags | if one_packet { FLAG_ONE_PACKET } else { 0 },
        }
    }
}

fn one_packet(reader: &mut Reader) -> bool {
    let said = reader.read(ONE_PACKET, annotations::truth) == Some(true);
    let udp = reader.service.ports.iter().any(|port| port.protocol == Protocol::Udp);
    if said && !udp {
        reader.ignore(ONE_PACKET, "the Service has no UDP port");
    }
    said && udp
}

fn affinity(reader: &mut Reader) -> Option<Affinity> {
    let prefix_v4 = reader.read(NETMASK, annotations::prefix_v4);
    let prefix_v6 = reader.read(NETMASK_V6, annotations::prefix_v6);
    let Some(timeout) = reader.service.affinity else {
        for (name, _) in [(NETMASK, prefix_v4), (NETMASK_V6, prefix_v6)].iter().filter(|(_, it)| it.is_some())
        {
            reader.ignore(name, "the Service has not sessionAffinity ClientIP");
        }
        return None;
    };
    Some(Affinity { timeout, prefix_v4: prefix_v4.unwrap_or(32), prefix_v6: prefix_v6.unwrap_or(128) })
}

/// The annotations of `service` that have no effect, or less than one may think, in the mode that serves it at a VIP.
/// `synced`: other nodes learn of the VIP's connections from the holder's sync daemon.
pub fn without_effect(
    key: &ObjectKey,
    service: &Service,
    options: &Options,
    mode: Mode,
    synced: bool,
) -> Vec<Finding> {
    let written = |name: &str| service.annotations.contains_key(name);
    let found = |name: &str, why: &str| annotations::finding(key, name, &format!("annotation {name} {why}"));
    let balancing = [SCHEDULER, SCHEDULER_FLAGS, NETMASK, NETMASK_V6, ONE_PACKET, THRESHOLDS];
    let mut findings = Vec::new();
    let mut all = |names: &[&str], why: &str| {
        findings.extend(names.iter().filter(|name| written(name)).map(|name| found(name, why)));
    };
    match mode {
        Mode::Announce => {
            all(&balancing, "has no effect in mode announce, in which others balance");
            all(&[ZONE_WEIGHTS], "has no effect in mode announce, in which others balance");
            let of_checks: Vec<&str> = checks::written(service).map(|(name, _)| name.as_str()).collect();
            all(&of_checks, "has no effect in mode announce, in which others balance");
        }
        Mode::Proxy => all(&balancing[1..], "has no effect in mode proxy, in which HAProxy balances"),
        Mode::Dsr if synced => {}
        Mode::Dsr => {
            all(&balancing, "counts in mode dsr for clients on the nodes alone: others are hashed by mh");
        }
        Mode::Nat | Mode::Dr | Mode::Tunnel => {
            let scheduler = options.scheduler;
            if !scheduler.weighs() && options.zone_weights.values().any(|weight| *weight > 1) {
                all(
                    &[ZONE_WEIGHTS],
                    &format!("has no effect: scheduler {} goes by no weights", scheduler.name()),
                );
            }
        }
    }
    if mode != Mode::Proxy {
        all(&[PROXY_PROTOCOL], &format!("has no effect in mode {}", mode.name()));
    }
    if mode != Mode::Tunnel {
        all(&[TUNNEL], &format!("has no effect in mode {}", mode.name()));
    }
    findings
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
