//! How a Service is to be served, as the settings and its annotations say.
//!
//! Pure. An annotation that says nothing sensible is a finding, and counts as not written.

use std::time::Duration;

use super::checks::{self, Checking};
use crate::config::{Mode, ProxyProtocol, Scheduler, Settings};
use crate::ipvs::model::{Thresholds, Tunnel};
use crate::model::{Finding, ObjectKey};
use crate::snapshot::Service;

/// The forwarding mode, by its name.
pub const MODE: &str = "kvip.io/mode";

/// What HAProxy tells servers of clients.
const PROXY_PROTOCOL: &str = "kvip.io/proxy-protocol";

/// How a Service is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The mode that the Service names itself.
    pub mode: Option<Mode>,
    /// The IPVS scheduler.
    pub scheduler: Scheduler,
    /// Its flags, and one-packet scheduling.
    pub flags: u32,
    /// For how long a client keeps its pod.
    pub affinity: Option<Duration>,
    /// How many connections are too many for one pod.
    pub thresholds: Thresholds,
    /// How packets are wrapped in mode tunnel.
    pub tunnel: Tunnel,
    /// How its endpoints are checked.
    pub checking: Option<Checking>,
    /// What servers are told of clients in mode proxy.
    pub proxy_protocol: ProxyProtocol,
}

impl Options {
    /// What counts for a Service that says nothing.
    pub fn standard(settings: &Settings) -> Self {
        Self {
            mode: None,
            scheduler: settings.balancing.scheduler,
            flags: 0,
            affinity: None,
            thresholds: Thresholds::default(),
            tunnel: Tunnel::Ipip,
            checking: Checking::of(&settings.checks),
            proxy_protocol: settings.balancing.proxy_protocol,
        }
    }

    /// What counts for `service`.
    pub fn of(key: &ObjectKey, service: &Service, settings: &Settings, findings: &mut Vec<Finding>) -> Self {
        let checking = checks::read(key, service, &settings.checks, findings);
        let mut reader = Reader { key, service, findings };
        let standard = Self::standard(settings);
        Self {
            mode: reader.read(MODE, mode),
            affinity: service.affinity,
            checking,
            proxy_protocol: reader.read(PROXY_PROTOCOL, proxy_protocol).unwrap_or(standard.proxy_protocol),
            ..standard
        }
    }
}

/// Reads annotations.
struct Reader<'a> {
    key: &'a ObjectKey,
    service: &'a Service,
    findings: &'a mut Vec<Finding>,
}

impl Reader<'_> {
    /// What the annotation `name` says, if it says something that `parse` takes; its error is what is allowed.
    fn read<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let said = self.service.annotations.get(name)?.trim();
        match parse(said) {
            Ok(value) => Some(value),
            Err(allowed) => {
                let text = format!("annotation {name} ignored: \"{said}\" is not {allowed}");
                let mend =
                    format!("kubectl -n {} annotate service {} {name}-", self.key.namespace, self.key.name);
                self.findings.push(Finding::new(self.key, text).mend(mend));
                None
            }
        }
    }
}

fn proxy_protocol(text: &str) -> Result<ProxyProtocol, String> {
    ProxyProtocol::named(text).ok_or_else(|| "v1, v2 or off".into())
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::named(text).ok_or_else(|| "nat, dsr, dr, tunnel, proxy or announce".into())
}
