//! What the cluster says, in kvip's own words: free of Kubernetes types, complete or not there.
//!
//! The submodules fill a [`Snapshot`] from an API server, from a folder of manifests or from the copy on disk.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Family, Finding, ObjectKey, Protocol};

pub mod admit;
pub mod convert;
pub mod files;
pub mod kube;
mod kubeconfig;
pub mod problem;
pub mod saved;
mod store;
mod timing;
mod watch;
mod watched;

/// Everything that kvip needs to know of a cluster, at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The UID of the namespace kube-system, which tells one cluster from another.
    pub cluster: Option<String>,
    /// All Services.
    pub services: BTreeMap<ObjectKey, Service>,
    /// All EndpointSlices that name their Service, by their own key.
    pub slices: BTreeMap<ObjectKey, EndpointSlice>,
    /// All Nodes, by name.
    pub nodes: BTreeMap<String, Node>,
    /// The data of the ConfigMap that maps VIPs to Services; `None` when there is no such object.
    pub vip_map: Option<BTreeMap<String, String>>,
    /// Pieces of objects that could not be read and are left out above, by the object they are of.
    #[serde(default)]
    pub skipped: BTreeMap<String, Vec<Finding>>,
}

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
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its addresses of type `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// spec.podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
