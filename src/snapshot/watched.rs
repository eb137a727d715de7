//! The kinds of objects that are watched, and which part of the snapshot each fills.
//!
//! Pure.

use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use serde::de::DeserializeOwned;

use super::convert::{self, Change, Converted};
use super::store::Part;

/// A kind of object that is watched.
pub(super) trait Watched:
    Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static
{
    const PART: Part;
    /// As RBAC names it.
    const RESOURCE: &'static str;
    fn change(&self) -> Change;
    /// The change that takes this object away.
    fn removal(&self) -> Change;
}

fn gone<K, T>(object: Converted<K, T>) -> Converted<K, T> {
    Converted { value: None, skipped: Vec::new(), ..object }
}

impl Watched for Service {
    const PART: Part = Part::Services;
    const RESOURCE: &'static str = "services";
    fn change(&self) -> Change {
        Change::Service(convert::service(self))
    }
    fn removal(&self) -> Change {
        Change::Service(gone(convert::service(self)))
    }
}

impl Watched for EndpointSlice {
    const PART: Part = Part::EndpointSlices;
    const RESOURCE: &'static str = "endpointslices.discovery.k8s.io";
    fn change(&self) -> Change {
        Change::Slice(convert::slice(self))
    }
    fn removal(&self) -> Change {
        Change::Slice(gone(convert::slice(self)))
    }
}

impl Watched for Node {
    const PART: Part = Part::Nodes;
    const RESOURCE: &'static str = "nodes";
    fn change(&self) -> Change {
        Change::Node(convert::node(self))
    }
    fn removal(&self) -> Change {
        Change::Node(gone(convert::node(self)))
    }
}

impl Watched for ConfigMap {
    const PART: Part = Part::ConfigMap;
    const RESOURCE: &'static str = "configmaps";
    fn change(&self) -> Change {
        Change::VipMap(Some(convert::vip_map(self)))
    }
    fn removal(&self) -> Change {
        Change::VipMap(None)
    }
}
