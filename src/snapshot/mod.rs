//! What the cluster says, in kvip's own words: free of Kubernetes types, complete or not there.
//!
//! The submodules fill a [`Snapshot`] from an API server, from a folder of manifests or from the copy on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ipam::Claims;
use crate::model::{Family, Finding, ObjectKey, Protocol};

pub mod admit;
mod claims;
pub mod convert;
pub mod feed;
pub mod files;
mod folder;
pub mod kube;
mod kubeconfig;
pub mod problem;
pub mod read;
pub mod saved;
mod store;
mod timing;
mod typed;
mod watch;
mod watched;
mod weights;
mod yaml;

pub use kubeconfig::{Link, check as check_kubeconfig};
pub use weights::WEIGHTS_WANTED;

/// Objects by key. A copy shares what it holds with its original, and two copies that grew from one are compared at the
/// cost of what differs.
pub type Map<K, V> = OrdMap<K, Arc<V>>;

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Everything that kvip needs to know of a cluster, at one time. A copy costs the same whatever it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The UID of the namespace kube-system, which tells one cluster from another.
    pub cluster: Option<String>,
    /// The addresses of the server that this host's kubeconfig names: nobody's to ask for.
    #[serde(default)]
    pub servers: BTreeSet<IpAddr>,
    /// All Services.
    pub services: Map<ObjectKey, Service>,
    /// All EndpointSlices that name their Service, by their own key.
    pub slices: Map<ObjectKey, EndpointSlice>,
    /// All Nodes, by name.
    pub nodes: Map<String, Node>,
    /// The data of the ConfigMap that maps VIPs to Services; `None` when there is no such object.
    pub vip_map: Option<OrdMap<String, String>>,
    /// The labels of all Namespaces, by name.
    #[serde(default)]
    pub namespaces: Map<String, Labels>,
    /// `config.toml` of the ConfigMap with the settings that are the cluster's; `None` when there is no such text.
    #[serde(default)]
    pub cluster_settings: Option<String>,
    /// Addresses given to Services, by the objects that say so: kvip's IPAddresses, and its Leases.
    #[serde(default)]
    pub claims: Claims,
    /// The ranges of all ServiceCIDRs, by name.
    #[serde(default)]
    pub service_cidrs: Map<String, Vec<IpNet>>,
    /// Pieces of objects that could not be read and are left out above, by the object they are of; and kinds that could
    /// not be read at all, by their name.
    #[serde(default)]
    pub skipped: OrdMap<String, Vec<Finding>>,
}

impl Snapshot {
    /// The API servers' addresses, as far as known: those of the kubeconfig, and those that they say themselves in the
    /// EndpointSlice default/kubernetes.
    pub fn api_servers(&self) -> impl Iterator<Item = IpAddr> {
        let slice = self.slices.get(&ObjectKey::new("default", "kubernetes"));
        let own = slice.into_iter().flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address));
        self.servers.iter().copied().chain(own)
    }

    /// What the cluster's settings are, as far as known: the text of the ConfigMap, `Ok(None)` when there is none.
    ///
    /// # Errors
    /// When the ConfigMap could not be read, or has no such text: then nothing is known of them.
    pub fn settings_text(&self) -> Result<Option<&str>, Unknown> {
        let unread = |key: &String| {
            key.strip_prefix("ConfigMap").is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        match &self.cluster_settings {
            Some(text) => Ok(Some(text)),
            None if self.skipped.keys().any(unread) => Err(Unknown),
            None => Ok(None),
        }
    }
}

/// Something of the cluster could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown;

/// A Service, as far as kvip serves it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The object's UID.
    pub uid: String,
    /// Its kind.
    pub kind: ServiceKind,
    /// Its ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// Its ClusterIPs; empty for headless and `ExternalName` Services.
    pub cluster_ips: Vec<IpAddr>,
    /// Its label selector, `None` when it has none.
    pub selector: Option<BTreeMap<String, String>>,
    /// externalTrafficPolicy is Local.
    pub local_policy: bool,
    /// sessionAffinity `ClientIP`: for how long a client keeps its pod.
    pub affinity: Option<Duration>,
    /// metadata.creationTimestamp, in seconds since 1970: of two Services that ask for the same thing the older wins.
    #[serde(default)]
    pub created: i64,
    /// A deletionTimestamp is set: the Service is going away.
    #[serde(default)]
    pub deleting: bool,
    /// Its labels, for the selectors of pools.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Those of its annotations that kvip reads: `kvip.io/…` and the aliases of its peers.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What type `LoadBalancer` says; `None` for other types.
    #[serde(default)]
    pub load_balancer: Option<LoadBalancer>,
    /// spec.externalIPs.
    #[serde(default)]
    pub external_ips: Vec<IpAddr>,
    /// spec.loadBalancerSourceRanges as written: what cannot be parsed must fail closed, so it is not left out here.
    #[serde(default)]
    pub source_ranges: Vec<String>,
    /// spec.ipFamilies.
    #[serde(default)]
    pub families: Vec<Family>,
    /// spec.ipFamilyPolicy.
    #[serde(default)]
    pub family_policy: FamilyPolicy,
    /// spec.healthCheckNodePort.
    #[serde(default)]
    pub health_check_node_port: Option<u16>,
    /// kvip's own condition in its status.
    #[serde(default)]
    pub condition: Option<Condition>,
}

/// The condition `kvip.io/Served` of a Service, without its time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// A word in CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
    /// It speaks of the newest spec: its observedGeneration is the object's generation.
    pub observed: bool,
}

/// What a Service of type `LoadBalancer` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancer {
    /// spec.loadBalancerClass.
    pub class: Option<String>,
    /// spec.loadBalancerIP as written.
    pub address: Option<String>,
    /// status.loadBalancer.ingress, in its order.
    pub ingress: Vec<Ingress>,
}

/// An entry of status.loadBalancer.ingress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// The address; empty for an entry with a host name, which is never kvip's.
    pub ip: String,
    /// ipMode: `Proxy` or `VIP`.
    pub mode: Option<String>,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<IngressPort>,
}

/// A port of an entry of status.loadBalancer.ingress, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressPort {
    /// The port's number.
    pub port: i32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Why it is not served.
    pub error: Option<String>,
}

/// spec.ipFamilyPolicy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FamilyPolicy {
    /// One family.
    #[default]
    SingleStack,
    /// Two where they are to be had.
    PreferDualStack,
    /// Two or nothing.
    RequireDualStack,
}

/// The type of a Service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    /// `ClusterIP`, `NodePort` or `LoadBalancer`: pods behind a cluster address.
    #[default]
    Balanced,
    /// clusterIP None: clients find the pods by DNS.
    Headless,
    /// A DNS alias.
    ExternalName,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The port's name; empty when the Service has but one.
    pub name: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port that clients use.
    pub port: u16,
}

/// An `EndpointSlice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// The Service, of the label kubernetes.io/service-name, in the slice's namespace.
    pub service: ObjectKey,
    /// The family of all its endpoints.
    pub family: Family,
    /// Its ports: name, protocol, number.
    pub ports: Vec<ServicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod's address (the first of the list: the API says all are equal and clients use one).
    pub address: IpAddr,
    /// Condition ready; absent means true.
    pub ready: bool,
    /// Condition serving; absent means true.
    pub serving: bool,
    /// Condition terminating; absent means false.
    pub terminating: bool,
    /// The node that runs it.
    pub node: Option<String>,
    /// The zone that it is in.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its weight, where its slice's annotations say one.
    #[serde(default)]
    pub weight: Option<u16>,
    /// hints.forZones: the zones whose clients should come here.
    #[serde(default)]
    pub for_zones: Vec<String>,
    /// hints.forNodes: the nodes whose clients should come here.
    #[serde(default)]
    pub for_nodes: Vec<String>,
}

impl Endpoint {
    /// A ready endpoint at `address` on `node`.
    pub fn ready(address: IpAddr, node: impl Into<String>) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            node: Some(node.into()),
            zone: None,
            weight: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }
    }
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its addresses of type `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// Its other addresses, such as those of type `ExternalIP`.
    #[serde(default)]
    pub other_addresses: Vec<IpAddr>,
    /// spec.podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
