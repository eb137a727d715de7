//! From Kubernetes objects to kvip's own words.
//!
//! Pure. An object that cannot be read in part gives what can be read, and a finding for each piece left out; it
//! never panics and never hides another object. This module alone, with `watch`, knows Kubernetes' types.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::store::Part;
use super::{
    Condition, Endpoint, EndpointSlice, FamilyPolicy, Ingress, IngressPort, Labels, LoadBalancer, Node,
    Service, ServiceKind, ServicePort, weights,
};
use crate::ipam::Claim;
use crate::model::{Family, Finding, ObjectKey, Protocol};

/// The label by which a slice names its Service.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when the object has none (core/v1 `ClientIPConfig`).
const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);

/// The type of kvip's condition in the status of a Service.
pub const CONDITION: &str = "kvip.io/Served";

/// One object, converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted<K, T> {
    /// The object's key.
    pub key: K,
    /// What it says; `None` when it is gone, or of no use to kvip.
    pub value: Option<Arc<T>>,
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
    /// A Namespace came, changed or went.
    Namespace(Converted<String, Labels>),
    /// The `ConfigMap` of the cluster's settings came, changed or went.
    Settings(Converted<ObjectKey, String>),
    /// A `ServiceCIDR` came, changed or went.
    ServiceCidr(Converted<String, Vec<IpNet>>),
    /// An `IPAddress` came, changed or went, as a claim.
    IpAddress(Converted<String, Claim>),
    /// A Lease came, changed or went, as a claim.
    Lease(Converted<String, Claim>),
    /// An object came or changed that cannot be understood: what was known of it stays. Or one went that never was.
    Unread(Unread),
}

/// An object that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Where it belongs.
    pub(super) part: Part,
    /// Its key; the namespace is empty where the kind has none.
    pub(super) key: ObjectKey,
    /// Why; `None` when it is gone.
    pub(super) why: Option<String>,
}

impl Unread {
    /// The object in words: also what its key in [`super::Snapshot::skipped`] is.
    pub(super) fn subject(&self) -> String {
        let Self { part, key, .. } = self;
        let kind = part.kind();
        if key.namespace.is_empty() { format!("{kind} {}", key.name) } else { format!("{kind} {key}") }
    }
}

/// A Service.
pub fn service(object: &core::Service) -> Converted<ObjectKey, Service> {
    let key = key_of(&object.metadata);
    let mut skipped = Skipped::of(format!("Service {key}"));
    let spec = object.spec.clone().unwrap_or_default();
    skipped.words(&spec);
    let load_balancer = load_balancer(object);
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
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        deleting: object.metadata.deletion_timestamp.is_some(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        annotations: annotations(&object.metadata),
        load_balancer,
        external_ips: spec
            .external_ips
            .iter()
            .flatten()
            .filter_map(|a| skipped.or_skip("externalIPs", a, parse_address(a)))
            .collect(),
        source_ranges: spec.load_balancer_source_ranges.clone().unwrap_or_default(),
        families: spec.ip_families.iter().flatten().filter_map(|family| family_named(family)).collect(),
        family_policy: family_policy(spec.ip_family_policy.as_deref()),
        condition: condition(object),
        health_check_node_port: spec
            .health_check_node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0),
        affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let seconds =
                spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
            seconds.and_then(|s| u64::try_from(s).ok()).map_or(AFFINITY_DEFAULT, Duration::from_secs)
        }),
    };
    Converted { skipped: skipped.about(&key), key, value: Some(Arc::new(value)) }
}

/// The prefixes of the annotations that kvip reads.
const ANNOTATIONS: [&str; 4] = ["kvip.io/", "kube-vip.io/", "metallb.io/", "metallb.universe.tf/"];

fn annotations(metadata: &ObjectMeta) -> BTreeMap<String, String> {
    let all = metadata.annotations.iter().flatten();
    let ours = all.filter(|(key, _)| ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)));
    ours.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn load_balancer(object: &core::Service) -> Option<LoadBalancer> {
    let spec = object.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"))?;
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    Some(LoadBalancer {
        class: spec.load_balancer_class.clone(),
        address: spec.load_balancer_ip.clone().filter(|address| !address.is_empty()),
        ingress: ingress
            .map(|entry| Ingress {
                ip: entry.ip.clone().unwrap_or_default(),
                mode: entry.ip_mode.clone(),
                ports: entry.ports.iter().flatten().map(ingress_port).collect(),
            })
            .collect(),
    })
}

fn ingress_port(status: &core::PortStatus) -> IngressPort {
    IngressPort { port: status.port, protocol: status.protocol.clone(), error: status.error.clone() }
}

fn condition(object: &core::Service) -> Option<Condition> {
    let all = object.status.as_ref()?.conditions.as_ref()?;
    let ours = all.iter().find(|condition| condition.type_ == CONDITION)?;
    Some(Condition {
        status: ours.status.clone(),
        reason: ours.reason.clone(),
        message: ours.message.clone(),
        observed: ours.observed_generation == object.metadata.generation,
    })
}

fn family_named(name: &str) -> Option<Family> {
    match name {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn family_policy(name: Option<&str>) -> FamilyPolicy {
    match name {
        Some("PreferDualStack") => FamilyPolicy::PreferDualStack,
        Some("RequireDualStack") => FamilyPolicy::RequireDualStack,
        _ => FamilyPolicy::SingleStack,
    }
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
    let service = ObjectKey::new(key.namespace.clone(), service.clone());
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => {
            skipped.add(format!("addressType {other}: kvip balances to IPv4 and IPv6 addresses only"));
            return Converted { key, value: None, skipped: skipped.about(&service) };
        }
    };
    let ports = object.ports.iter().flatten().filter_map(|p| slice_port(p, &mut skipped)).collect();
    let mut endpoints: Vec<Endpoint> =
        object.endpoints.iter().flatten().filter_map(|e| endpoint(e, family, &mut skipped)).collect();
    weights::weigh(&key, &object.metadata, &mut endpoints, &mut skipped.findings);
    let skipped = skipped.about(&service);
    let value = EndpointSlice { service, family, ports, endpoints };
    Converted { key, value: Some(Arc::new(value)), skipped }
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
        zone: object.zone.clone(),
        weight: None,
        for_zones: hinted(object, |hints| {
            hints.for_zones.iter().flatten().map(|zone| zone.name.clone()).collect()
        }),
        for_nodes: hinted(object, |hints| {
            hints.for_nodes.iter().flatten().map(|node| node.name.clone()).collect()
        }),
    })
}

fn hinted(
    object: &discovery::Endpoint,
    names: impl Fn(&discovery::EndpointHints) -> Vec<String>,
) -> Vec<String> {
    object.hints.as_ref().map(names).unwrap_or_default()
}

/// A Node.
pub fn node(object: &core::Node) -> Converted<String, Node> {
    let key = object.metadata.name.clone().unwrap_or_default();
    let mut skipped = Skipped::of(format!("Node {key}"));
    let spec = object.spec.clone().unwrap_or_default();
    let ranges = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let addresses = || object.status.iter().filter_map(|s| s.addresses.as_ref()).flatten();
    let value = Node {
        addresses: addresses()
            .filter(|a| a.type_ == "InternalIP")
            .filter_map(|a| skipped.or_skip("InternalIP", &a.address, parse_address(&a.address)))
            .collect(),
        // Names are among them.
        other_addresses: addresses()
            .filter(|a| a.type_ != "InternalIP")
            .filter_map(|a| a.address.parse().ok())
            .collect(),
        pod_cidrs: ranges.iter().filter_map(|r| skipped.or_skip("podCIDRs", r, parse_network(r))).collect(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
    };
    Converted { key, value: Some(Arc::new(value)), skipped: skipped.findings }
}

/// The data of a `ConfigMap`; one without data maps nothing.
pub fn vip_map(object: &core::ConfigMap) -> BTreeMap<String, String> {
    object.data.clone().unwrap_or_default()
}

/// A Namespace: its labels.
pub fn namespace(object: &core::Namespace) -> Converted<String, Labels> {
    let key = object.metadata.name.clone().unwrap_or_default();
    let labels = object.metadata.labels.clone().unwrap_or_default();
    Converted { key, value: Some(Arc::new(labels)), skipped: Vec::new() }
}

/// The key in the ConfigMap of the cluster's settings.
const SETTINGS_KEY: &str = "config.toml";

/// The text of the cluster's settings, not read any further here.
pub fn settings(object: &core::ConfigMap) -> Converted<ObjectKey, String> {
    let key = key_of(&object.metadata);
    let mut skipped = Skipped::of(format!("ConfigMap {key}"));
    let text = object.data.as_ref().and_then(|data| data.get(SETTINGS_KEY));
    if text.is_none() {
        skipped.add(format!("no key {SETTINGS_KEY} in its data: the cluster's settings belong there"));
    }
    Converted { key, value: text.map(|text| Arc::new(text.clone())), skipped: skipped.findings }
}

/// A `ServiceCIDR`: its ranges.
pub fn service_cidr(object: &networking::ServiceCIDR) -> Converted<String, Vec<IpNet>> {
    let key = object.metadata.name.clone().unwrap_or_default();
    let mut skipped = Skipped::of(format!("ServiceCIDR {key}"));
    let ranges = object.spec.iter().filter_map(|spec| spec.cidrs.as_ref()).flatten();
    let value = ranges.filter_map(|r| skipped.or_skip("cidrs", r, parse_network(r))).collect();
    Converted { key, value: Some(Arc::new(value)), skipped: skipped.findings }
}

/// The key of a namespaced object; a manifest that names no namespace means `default`, as for kubectl.
pub fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    let namespace = metadata.namespace.clone().filter(|name| !name.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".into());
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

/// A network whose address is as [`parse_address`] takes it, without the bits beyond its prefix.
pub(crate) fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    Some(IpNet::new(parse_address(address)?, length.parse().ok()?).ok()?.trunc())
}

/// The findings on one object, gathered on the way.
pub(super) struct Skipped {
    subject: String,
    pub(super) findings: Vec<Finding>,
}

impl Skipped {
    pub(super) fn of(subject: String) -> Self {
        Self { subject, findings: Vec::new() }
    }

    pub(super) fn add(&mut self, text: impl Into<String>) {
        self.findings.push(Finding::new(&self.subject, text));
    }

    /// All of them, as such that matter to `service`.
    fn about(self, service: &ObjectKey) -> Vec<Finding> {
        self.findings.into_iter().map(|finding| finding.about([service.clone()])).collect()
    }

    /// Words of a Service that an API server would refuse: only manifests can have them.
    fn words(&mut self, spec: &core::ServiceSpec) {
        self.word("type", spec.type_.as_ref(), &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]);
        self.word("externalTrafficPolicy", spec.external_traffic_policy.as_ref(), &["Cluster", "Local"]);
        self.word("sessionAffinity", spec.session_affinity.as_ref(), &["None", "ClientIP"]);
        let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
        self.word("ipFamilyPolicy", spec.ip_family_policy.as_ref(), &policies);
        for family in spec.ip_families.iter().flatten() {
            self.word("ipFamilies", Some(family), &["IPv4", "IPv6"]);
        }
    }

    fn word(&mut self, field: &str, said: Option<&String>, known: &[&str]) {
        if let Some(said) = said.filter(|said| !said.is_empty() && !known.contains(&said.as_str())) {
            self.add(format!("{field} {said:?} is unknown and is left out: one of {}", known.join(", ")));
        }
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
