//! From the objects that claim addresses to claims.
//!
//! Pure. What the objects look like is said in [`object`]; here is which of them count, and what is said of the others.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::convert::{Converted, Skipped};
use crate::ipam::{Claim, Kind, object};

/// An `IPAddress`; without value when it is no claim of kvip's.
pub fn ip_address(object: &networking::IPAddress) -> Converted<String, Claim> {
    claim("IPAddress", &object.metadata, object::from_ip_address(object))
}

/// A Lease; without value when it is no claim of kvip's.
pub fn lease(object: &coordination::Lease) -> Converted<String, Claim> {
    if object.metadata.namespace.as_deref() != Some(object::NAMESPACE) {
        let key = object.metadata.name.clone().unwrap_or_default();
        return Converted { key, value: None, skipped: Vec::new() };
    }
    claim("Lease", &object.metadata, object::from_lease(object))
}

/// The address that the object of that kind and name claims.
pub fn claimed(kind: Kind, name: &str) -> Option<IpAddr> {
    match kind {
        Kind::IpAddress => name.parse().ok(),
        Kind::Lease => object::lease_address(name),
    }
}

fn claim(kind: &str, metadata: &ObjectMeta, claim: Option<Claim>) -> Converted<String, Claim> {
    let key = metadata.name.clone().unwrap_or_default();
    let mut skipped = Skipped::of(format!("{kind} {key}"));
    let manager = metadata.labels.as_ref().and_then(|labels| labels.get(object::MANAGED_BY));
    if claim.is_none() && manager.is_some_and(|manager| manager == object::MANAGER) {
        skipped.add("labelled as kvip's and not as kvip writes it: its address counts as somebody else's");
    }
    Converted { key, value: claim.map(Arc::new), skipped: skipped.findings }
}

#[cfg(test)]
#[path = "claims_tests.rs"]
mod tests;
