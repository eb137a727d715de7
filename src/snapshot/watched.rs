//! The kinds of objects that are watched, and which part of the snapshot each fills.
//!
//! Pure. A type of its own for each watch and not for each kind of object, as two of them watch ConfigMaps.

use std::fmt::Debug;

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::claims;
use super::convert::{self, Change, Converted, Unread};
use super::read::Read;
use super::store::Part;
use crate::model::ObjectKey;

/// Which objects of a kind are watched.
#[derive(Debug, Clone)]
pub(super) enum Scope {
    All,
    /// The one object of that name.
    Named(ObjectKey),
    /// Those that the label selector selects.
    Labelled(String),
}

impl Scope {
    pub(super) fn fields(&self) -> Option<String> {
        self.one().map(|key| format!("metadata.name={}", key.name))
    }

    pub(super) fn labels(&self) -> Option<String> {
        match self {
            Self::Labelled(labels) => Some(labels.clone()),
            Self::All | Self::Named(_) => None,
        }
    }

    /// The object, where it is one.
    pub(super) fn one(&self) -> Option<&ObjectKey> {
        match self {
            Self::Named(key) => Some(key),
            Self::All | Self::Labelled(_) => None,
        }
    }
}

/// What one watch follows.
pub(super) trait Watched {
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;
    const PART: Part;
    /// As RBAC names it.
    const RESOURCE: &'static str;
    /// What holds where the cluster does not serve it or does not let kvip read it; `None` when kvip cannot do
    /// without it.
    const WITHOUT: Option<&'static str> = None;
    fn change(object: &Self::Object) -> Change;
    /// The change that takes `object` away.
    fn removal(object: &Self::Object) -> Change;
}

/// The change that `read` tells of, as it came or changed.
pub(super) fn change<W: Watched>(read: &Read<W::Object>) -> Change {
    match &read.object {
        Ok(object) => W::change(object),
        Err(why) => unread::<W>(read, Some(why.clone())),
    }
}

/// As it went.
pub(super) fn removal<W: Watched>(read: &Read<W::Object>) -> Change {
    read.object.as_ref().map_or_else(|_| unread::<W>(read, None), W::removal)
}

fn unread<W: Watched>(read: &Read<W::Object>, why: Option<String>) -> Change {
    let key = ObjectKey::new(read.namespace().unwrap_or_default(), read.name_any());
    Change::Unread(Unread { part: W::PART, key, why })
}

fn gone<K, T>(object: Converted<K, T>) -> Converted<K, T> {
    Converted { value: None, skipped: Vec::new(), ..object }
}

/// A watch of `$object`s that fills `Part::$name` with `Change::$change`, by `$function`.
macro_rules! watched {
    ($name:ident, $object:ty, $resource:literal, $change:ident, $function:path $(, without $without:literal)?) => {
        #[derive(Debug)]
        pub(super) struct $name;

        impl Watched for $name {
            type Object = $object;
            const PART: Part = Part::$name;
            const RESOURCE: &'static str = $resource;
            $(const WITHOUT: Option<&'static str> = Some($without);)?
            fn change(object: &$object) -> Change {
                Change::$change($function(object))
            }
            fn removal(object: &$object) -> Change {
                Change::$change(gone($function(object)))
            }
        }
    };
}

watched!(Services, core::Service, "services", Service, convert::service);
watched!(EndpointSlices, discovery::EndpointSlice, "endpointslices.discovery.k8s.io", Slice, convert::slice);
watched!(Nodes, core::Node, "nodes", Node, convert::node);
watched!(
    Namespaces, core::Namespace, "namespaces", Namespace, convert::namespace,
    without "pools and tenants that go by labels of namespaces match none"
);
watched!(
    Settings, core::ConfigMap, "configmaps", Settings, convert::settings,
    without "this node knows no settings but those of config.toml"
);
watched!(
    ServiceCidrs, networking::ServiceCIDR, "servicecidrs.networking.k8s.io", ServiceCidr, convert::service_cidr,
    without "the cluster's Service ranges are known from service_ranges in [cluster] and the ClusterIPs alone"
);
watched!(
    IpAddresses, networking::IPAddress, "ipaddresses.networking.k8s.io", IpAddress, claims::ip_address,
    without "kvip knows no addresses that Services got from pools"
);
watched!(
    Leases, coordination::Lease, "leases.coordination.k8s.io", Lease, claims::lease,
    without "kvip knows no addresses that Services got from pools as long as the cluster had no IPAddresses"
);

/// The ConfigMap that maps VIPs to Services.
#[derive(Debug)]
pub(super) struct VipMap;

impl Watched for VipMap {
    type Object = core::ConfigMap;
    const PART: Part = Part::VipMap;
    const RESOURCE: &'static str = "configmaps";
    fn change(object: &core::ConfigMap) -> Change {
        Change::VipMap(Some(convert::vip_map(object)))
    }
    fn removal(_: &core::ConfigMap) -> Change {
        Change::VipMap(None)
    }
}
