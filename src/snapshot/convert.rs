//! From Kubernetes objects to kvip's own words.
//!
//! Pure. An object that cannot be read in part gives what can be read, and a finding for each piece left out; it
//! never panics and never hides another object. This module alone, with `watch`, knows Kubernetes' types.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Endpoint, EndpointSlice, Node, Service, ServiceKind, ServicePort};
use crate::model::{Family, Finding, ObjectKey, Protocol};

/// The label by which a slice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when the object has none (core/v1 `ClientIPConfig`).
const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);

/// One object, converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted<K, T> {
    /// The object's key.
    pub key: K,
    /// What it says; `None` when it is gone, or of no use to kvip.
    pub value: Option<T>,
    /// A finding for each piece that was left out.
    pub skipped: Vec<Finding>,
}

/// A change of one object, of a kind that a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A Service came, changed or went.
    Service(Converted<ObjectKey, Service>),
    /// An `EndpointSlice` came, changed or went.
    Slice(Converted<ObjectKey, EndpointSlice>),
    /// A Node came, changed or went.
    Node(Converted<String, Node>),
    /// The `ConfigMap` of VIPs came, changed or went.
    VipMap(Option<BTreeMap<String, String>>),
}

/// A Service.
pub fn service(object: &core::Service) -> Converted<ObjectKey, Service> {
    let key = key_of(&object.metadata);
    let mut skipped = Skipped::of(format!("Service {key}"));
    let spec = object.spec.clone().unwrap_or_default();
    let addresses = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
    let value = Service {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        kind: kind_of(spec.type_.as_deref(), spec.cluster_ip.as_deref()),
        ports: spec.ports.unwrap_or_default().iter().filter_map(|p| service_port(p, &mut skipped)).collect(),
        cluster_ips: addresses
            .iter()
            .filter(|a| !a.is_empty() && *a != "None")
            .filter_map(|a| skipped.or_skip("clusterIPs", a, parse_address(a)))
            .collect(),
        selector: spec.selector.filter(|labels| !labels.is_empty()),
        local_policy: spec.external_traffic_policy.as_deref() == Some("Local"),
        affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let seconds =
                spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
            seconds.and_then(|s| u64::try_from(s).ok()).map_or(AFFINITY_DEFAULT, Duration::from_secs)
        }),
    };
    Converted { key, value: Some(value), skipped: skipped.findings }
}

fn kind_of(kind: Option<&str>, cluster_ip: Option<&str>) -> ServiceKind {
    match (kind, cluster_ip) {
        (Some("ExternalName"), _) => ServiceKind::ExternalName,
        (_, Some("None")) => ServiceKind::Headless,
        _ => ServiceKind::Balanced,
    }
}

fn service_port(port: &core::ServicePort, skipped: &mut Skipped) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol(port.protocol.as_deref(), skipped)?,
        port: number(port.port, skipped)?,
    })
}

/// An `EndpointSlice`; without value when it names no Service or holds no IP addresses.
pub fn slice(object: &discovery::EndpointSlice) -> Converted<ObjectKey, EndpointSlice> {
    let key = key_of(&object.metadata);
    let mut skipped = Skipped::of(format!("EndpointSlice {key}"));
    let service =
        object.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_LABEL)).filter(|s| !s.is_empty());
    let Some(service) = service else { return Converted { key, value: None, skipped: Vec::new() } };
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => {
            skipped.add(format!("addressType {other}: kvip balances to IPv4 and IPv6 addresses only"));
            return Converted { key, value: None, skipped: skipped.findings };
        }
    };
    let ports = object.ports.iter().flatten().filter_map(|p| slice_port(p, &mut skipped)).collect();
    let endpoints =
        object.endpoints.iter().flatten().filter_map(|e| endpoint(e, family, &mut skipped)).collect();
    let service = ObjectKey::new(key.namespace.clone(), service.clone());
    let value = EndpointSlice { service, family, ports, endpoints };
    Converted { key, value: Some(value), skipped: skipped.findings }
}

/// A port without a number stands for "all ports" in the API, which no Service port asks for: it is left out.
fn slice_port(port: &discovery::EndpointPort, skipped: &mut Skipped) -> Option<ServicePort> {
    let number = number(port.port?, skipped)?;
    let protocol = protocol(port.protocol.as_deref(), skipped)?;
    Some(ServicePort { name: port.name.clone().unwrap_or_default(), protocol, port: number })
}

/// The defaults of the conditions are those of discovery/v1 `EndpointConditions`, and kube-proxy's: a condition that
/// is not there counts as ready, as serving, and as not terminating.
fn endpoint(object: &discovery::Endpoint, family: Family, skipped: &mut Skipped) -> Option<Endpoint> {
    let Some(text) = object.addresses.first() else {
        skipped.add("an endpoint has no address");
        return None;
    };
    let address = skipped.or_skip("endpoint address", text, parse_address(text))?;
    if Family::of(address) != family {
        skipped.add(format!("endpoint address {address} is not of the slice's addressType"));
        return None;
    }
    let conditions = object.conditions.clone().unwrap_or_default();
    Some(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: object.node_name.clone(),
    })
}

/// A Node.
pub fn node(object: &core::Node) -> Converted<String, Node> {
    let key = object.metadata.name.clone().unwrap_or_default();
    let mut skipped = Skipped::of(format!("Node {key}"));
    let spec = object.spec.clone().unwrap_or_default();
    let ranges = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let addresses = object.status.iter().filter_map(|s| s.addresses.as_ref()).flatten();
    let value = Node {
        addresses: addresses
            .filter(|a| a.type_ == "InternalIP")
            .filter_map(|a| skipped.or_skip("InternalIP", &a.address, parse_address(&a.address)))
            .collect(),
        pod_cidrs: ranges.iter().filter_map(|r| skipped.or_skip("podCIDRs", r, parse_network(r))).collect(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
    };
    Converted { key, value: Some(value), skipped: skipped.findings }
}

/// The data of a `ConfigMap`; one without data maps nothing.
pub fn vip_map(object: &core::ConfigMap) -> BTreeMap<String, String> {
    object.data.clone().unwrap_or_default()
}

/// The key of a namespaced object; a manifest that names no namespace means `default`, as for kubectl.
pub fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".into());
    ObjectKey::new(namespace, metadata.name.clone().unwrap_or_default())
}

fn protocol(text: Option<&str>, skipped: &mut Skipped) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => {
            skipped.add(format!("port protocol {other:?}: TCP, UDP or SCTP"));
            None
        }
    }
}

fn number(port: i32, skipped: &mut Skipped) -> Option<u16> {
    let good = u16::try_from(port).ok().filter(|p| *p > 0);
    skipped.or_skip("port", &port.to_string(), good)
}

/// An address as old API servers took it: IPv4 octets with leading zeros are decimal (Go's `ParseIPSloppy`).
fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| {
        let decimal = |octet: &str| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0".to_owned(),
            rest => rest.to_owned(),
        };
        text.split('.').map(decimal).collect::<Vec<_>>().join(".").parse().ok()
    })
}

fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    Some(IpNet::new(parse_address(address)?, length.parse().ok()?).ok()?.trunc())
}

/// The findings on one object, gathered on the way.
struct Skipped {
    subject: String,
    findings: Vec<Finding>,
}

impl Skipped {
    fn of(subject: String) -> Self {
        Self { subject, findings: Vec::new() }
    }

    fn add(&mut self, text: impl Into<String>) {
        self.findings.push(Finding::new(&self.subject, text));
    }

    fn or_skip<T>(&mut self, field: &str, found: &str, parsed: Option<T>) -> Option<T> {
        if parsed.is_none() {
            self.add(format!("{field} {found:?} cannot be read and is left out"));
        }
        parsed
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
