//! From what the ConfigMap asks for to frontends with real servers.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::endpoints::{self, Behind, SlicesOf};
use super::grammar::{self, Entry, Method};
use super::{Inputs, Served, policy};
use crate::config::Mode;
use crate::ipvs;
use crate::model::{Family, Finding, Frontend, ObjectKey};
use crate::snapshot::{Service, ServiceKind, ServicePort, Snapshot};

/// What is asked of one VIP.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The value is empty: the address floats and nothing is balanced.
    pub floats_only: bool,
    /// The Services to balance, in sorted order.
    pub entries: BTreeSet<Entry>,
}

/// Frontends with what serves them, and the nodes that run real servers.
#[derive(Debug, Default)]
pub struct Serving {
    /// The frontends.
    pub frontends: BTreeMap<Frontend, Served>,
    /// The nodes.
    pub nodes: BTreeSet<String>,
}

/// The VIPs that a snapshot asks for, whether they may be served or not.
pub fn vips_asked_for(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.vip_map.iter().flatten().filter_map(|(key, _)| grammar::key(key).ok()).collect()
}

/// Reads the ConfigMap: every VIP that may be held, with what is asked of it.
pub fn asked(inputs: &Inputs, findings: &mut Vec<Finding>) -> BTreeMap<IpAddr, Asked> {
    let map = &inputs.settings.cluster.config_map;
    let mut asked: BTreeMap<IpAddr, Asked> = BTreeMap::new();
    let Some(entries) = &inputs.snapshot.vip_map else {
        let text = "there is no such ConfigMap, so no VIP is asked for";
        let mend = format!(
            "kubectl -n {} create configmap {} --from-literal=VIP=NAMESPACE/SERVICE",
            map.namespace, map.name
        );
        findings.push(Finding::new(map, text).mend(mend));
        return asked;
    };
    for (key, value) in entries {
        let vip = match grammar::key(key) {
            Ok(vip) => vip,
            Err(why) => {
                findings.push(Finding::new(map, format!("key \"{key}\" ignored: {why}")));
                continue;
            }
        };
        if let Some(why) = policy::refusal(inputs, vip) {
            findings.push(Finding::new(map, format!("key \"{key}\" ignored: {why}")));
            continue;
        }
        match asked.entry(vip) {
            Slot::Vacant(slot) => {
                slot.insert(read_value(map, key, value, findings));
            }
            Slot::Occupied(_) => {
                findings.push(Finding::new(
                    map,
                    format!("key \"{key}\" ignored: {vip} is written by an earlier key"),
                ));
            }
        }
    }
    asked
}

fn read_value(map: &ObjectKey, key: &str, value: &str, findings: &mut Vec<Finding>) -> Asked {
    let entries = grammar::value(value);
    let mut asked = Asked { floats_only: entries.is_empty(), entries: BTreeSet::new() };
    for entry in entries {
        match entry {
            Ok(entry) => drop(asked.entries.insert(entry)),
            Err(why) => findings.push(Finding::new(map, format!("key \"{key}\": {why}"))),
        }
    }
    asked
}

/// Finds the real servers of all frontends of the VIPs that are `held`.
///
/// Of two entries for one frontend the first in sorted order wins.
pub fn serve(
    inputs: &Inputs,
    asked: &BTreeMap<IpAddr, Asked>,
    held: &BTreeSet<IpAddr>,
    findings: &mut Vec<Finding>,
) -> Serving {
    let slices = endpoints::slices_by_service(inputs);
    let mut serving = Serving::default();
    for (vip, asked) in asked.iter().filter(|(vip, _)| held.contains(vip)) {
        for entry in &asked.entries {
            match serviceable(inputs, *vip, entry) {
                Ok((service, ports)) => {
                    for port in ports {
                        serve_port(inputs, &slices, *vip, entry, service, port, &mut serving, findings);
                    }
                }
                Err(finding) => findings.push(finding),
            }
        }
    }
    serving
}

/// The Service of an entry and those of its ports that the entry means, or why it cannot be served.
fn serviceable<'a>(
    inputs: &Inputs<'a>,
    vip: IpAddr,
    entry: &Entry,
) -> Result<(&'a Service, Vec<&'a ServicePort>), Finding> {
    let key = &entry.service;
    let refused = |why: String| Finding::new(key, format!("not served at {vip}: {why}"));
    if let Some(method) = entry.method.filter(|method| *method != Method::Nat) {
        let why = format!("method {} is not available in this version; NAT is", method.name());
        let port = entry.port.map_or(String::new(), |port| format!(":{port}"));
        return Err(refused(why).mend(format!("write {key}{port} or {key}{port}:NAT in the ConfigMap")));
    }
    let Some(service) = inputs.snapshot.services.get(key) else {
        let mend = format!("kubectl -n {} get services", key.namespace);
        return Err(refused("there is no such Service".into()).mend(mend));
    };
    match service.kind {
        ServiceKind::Balanced => {}
        ServiceKind::Headless => {
            return Err(refused("it is headless (clusterIP None), so there is nothing to balance".into()));
        }
        ServiceKind::ExternalName => {
            return Err(refused("it is of type ExternalName, an alias in DNS".into()));
        }
    }
    if service.local_policy {
        let why = "externalTrafficPolicy Local keeps the client's address, which NAT cannot".to_owned();
        return Err(refused(why).mend(policy_cluster(key)));
    }
    let ports: Vec<_> =
        service.ports.iter().filter(|port| entry.port.is_none_or(|number| number == port.port)).collect();
    match (entry.port, ports.is_empty()) {
        (Some(number), true) => {
            Err(refused(format!("it has no port {number}; it has {}", port_list(service))))
        }
        (None, true) => Err(refused("it has no ports".into())),
        _ => Ok((service, ports)),
    }
}

fn policy_cluster(key: &ObjectKey) -> String {
    let ObjectKey { namespace, name } = key;
    format!(
        "kubectl -n {namespace} patch service {name} -p '{{\"spec\":{{\"externalTrafficPolicy\":\"Cluster\"}}}}'"
    )
}

fn port_list(service: &Service) -> String {
    let ports: Vec<String> =
        service.ports.iter().map(|port| format!("{} {}", port.protocol, port.port)).collect();
    if ports.is_empty() { "none".into() } else { ports.join(", ") }
}

#[expect(clippy::too_many_arguments, reason = "the context of a walk over VIP, entry, Service and port")]
fn serve_port(
    inputs: &Inputs,
    slices: &SlicesOf,
    vip: IpAddr,
    entry: &Entry,
    service: &Service,
    port: &ServicePort,
    serving: &mut Serving,
    findings: &mut Vec<Finding>,
) {
    let key = &entry.service;
    let frontend = Frontend { vip, protocol: port.protocol, port: port.port };
    if let Some(first) = serving.frontends.get(&frontend) {
        if first.service != *key {
            let text =
                format!("not served at {vip} {} {}: {} has it", port.protocol, port.port, first.service);
            findings.push(
                Finding::new(key, text)
                    .mend("give one of the two another VIP, or select ports (ns/svc:port)"),
            );
        }
        return;
    }
    let behind = slices
        .get(key)
        .map_or_else(Behind::default, |slices| endpoints::behind(inputs, slices, port, Family::of(vip)));
    findings.extend(nothing_behind(key, service, frontend, &behind));
    let served = Served {
        service: key.clone(),
        mode: Mode::Nat,
        virtual_server: ipvs::model::Service {
            scheduler: inputs.settings.balancing.scheduler.name().to_owned(),
            persistence: service.affinity,
            flags: 0,
        },
        servers: behind.servers,
        total: behind.total,
    };
    serving.nodes.extend(behind.nodes);
    serving.frontends.insert(frontend, served);
}

/// The finding of a frontend that nobody serves.
fn nothing_behind(
    key: &ObjectKey,
    service: &Service,
    frontend: Frontend,
    behind: &Behind,
) -> Option<Finding> {
    if behind.servers.values().any(|wanted| *wanted == super::WantedServer::Active) {
        return None;
    }
    let Frontend { vip, protocol, port } = frontend;
    let family = Family::of(vip).number();
    let why = if !behind.dead.is_empty() {
        let nodes: Vec<&str> = behind.dead.iter().map(String::as_str).collect();
        format!("its ready pods are on nodes that do not answer ({})", nodes.join(", "))
    } else if behind.total == 0 {
        format!("it has no IPv{family} endpoints")
    } else {
        format!("no ready endpoints (0 of {} ready)", behind.total)
    };
    let text = format!("{vip} is held but {protocol} {port} refuses connections: {why}");
    let selector: Vec<String> =
        service.selector.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    let mend = if selector.is_empty() {
        format!("kubectl -n {} get endpointslices -l kubernetes.io/service-name={}", key.namespace, key.name)
    } else {
        format!("kubectl -n {} get pods -l {}", key.namespace, selector.join(","))
    };
    Some(Finding::new(key, text).mend(mend))
}
