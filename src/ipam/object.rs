//! Claims as the cluster's objects: IPAddresses, and Leases where those are not served.
//!
//! Pure. Owns the names, labels and annotations. An object that is not kvip's, or that somebody made unreadable, is no
//! claim: its address is then somebody else's, and the object is never written.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::claim::{Claim, Kind, User, Version};
use super::words;

/// The label that says whose an IPAddress is; the cluster's own say `ipallocator.k8s.io`.
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// That label's value on kvip's claims.
pub const MANAGER: &str = "kvip";
/// Before the UID of a Service in the label that lists its claims.
pub const SERVICE_LABEL: &str = "service.kvip.io/";
/// The namespace of Leases.
pub const NAMESPACE: &str = "kvip-system";
const SERVICES: &str = "kvip.io/services";
const POOL: &str = "kvip.io/pool";
const SHARE_KEY: &str = "kvip.io/share-key";
const RELEASED: &str = "kvip.io/released-at";
/// What a Lease's name begins with; the address follows in hex.
const LEASE: &str = "kvip-";

/// The label selector of all of kvip's claims.
pub fn selector() -> String {
    format!("{MANAGED_BY}={MANAGER}")
}

/// The label selector of the claims that name the Service with that UID.
pub fn selector_of(uid: &str) -> String {
    format!("{},{SERVICE_LABEL}{uid}", selector())
}

/// The name of the object of that kind for `address`.
pub fn name(address: IpAddr, kind: Kind) -> String {
    match (kind, address) {
        (Kind::IpAddress, address) => address.to_string(),
        (Kind::Lease, IpAddr::V4(v4)) => format!("{LEASE}{:08x}", v4.to_bits()),
        (Kind::Lease, IpAddr::V6(v6)) => format!("{LEASE}{:032x}", v6.to_bits()),
    }
}

/// The address that a Lease of that name is for.
pub fn lease_address(name: &str) -> Option<IpAddr> {
    let digits = name.strip_prefix(LEASE)?;
    let bits = u128::from_str_radix(digits, 16).ok()?;
    let address = match digits.len() {
        8 => Ipv4Addr::from_bits(u32::try_from(bits).ok()?).into(),
        32 => Ipv6Addr::from_bits(bits).into(),
        _ => return None,
    };
    (self::name(address, Kind::Lease) == name).then_some(address)
}

/// The claim that an IPAddress is; `None` when it is not kvip's or cannot be read.
pub fn from_ip_address(object: &IPAddress) -> Option<Claim> {
    let address = object.metadata.name.as_ref()?.parse().ok()?;
    read(&object.metadata, address, Kind::IpAddress)
}

/// The claim that a Lease of kvip-system is; `None` when it is not kvip's or cannot be read.
pub fn from_lease(object: &Lease) -> Option<Claim> {
    let address = lease_address(object.metadata.name.as_ref()?)?;
    read(&object.metadata, address, Kind::Lease)
}

fn read(metadata: &ObjectMeta, address: IpAddr, kind: Kind) -> Option<Claim> {
    let label = |key: &str| metadata.labels.as_ref()?.get(key);
    let said = |key: &str| metadata.annotations.as_ref()?.get(key);
    if label(MANAGED_BY).map(String::as_str) != Some(MANAGER) {
        return None;
    }
    let users: Vec<User> = serde_json::from_str(said(SERVICES)?).ok()?;
    if users.is_empty() {
        return None;
    }
    let released = match said(RELEASED) {
        Some(text) => Some(text.parse::<Timestamp>().ok()?.as_second()),
        None => None,
    };
    Some(Claim {
        address,
        kind,
        users,
        pool: said(POOL).cloned(),
        share_key: said(SHARE_KEY).cloned(),
        released,
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        version: Version {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource: metadata.resource_version.clone().unwrap_or_default(),
        },
    })
}

/// The IPAddress to make for `claim`.
pub fn to_ip_address(claim: &Claim) -> IPAddress {
    let maker = claim.users.first().map(|user| user.service.clone());
    let (namespace, name) = maker.map(|key| (key.namespace, key.name)).unzip();
    let parent_ref = ParentReference {
        group: Some(String::new()),
        resource: "services".into(),
        namespace,
        name: name.unwrap_or_default(),
    };
    IPAddress { metadata: metadata(claim, Kind::IpAddress), spec: IPAddressSpec { parent_ref } }
}

/// The Lease to make for `claim`.
pub fn to_lease(claim: &Claim) -> Lease {
    let spec = LeaseSpec { holder_identity: Some(holder(claim)), ..LeaseSpec::default() };
    Lease { metadata: metadata(claim, Kind::Lease), spec: Some(spec) }
}

/// The merge patch that turns the object of `before` into what `after` says, and fails when it is no longer as `before`
/// was read. Labels and annotations of others stay.
pub fn patch(before: &Claim, after: &Claim) -> Value {
    let mut labels: BTreeMap<String, Value> =
        labels(before).into_keys().map(|label| (label, Value::Null)).collect();
    labels.extend(self::labels(after).into_iter().map(|(label, value)| (label, value.into())));
    let mut annotations: BTreeMap<String, Value> =
        [POOL, SHARE_KEY, RELEASED].into_iter().map(|key| (key.to_owned(), Value::Null)).collect();
    annotations.extend(self::annotations(after).into_iter().map(|(key, value)| (key, value.into())));
    let mut patch = json!({"metadata": {
        "uid": before.version.uid,
        "resourceVersion": before.version.resource,
        "labels": labels,
        "annotations": annotations,
    }});
    if before.kind == Kind::Lease {
        patch["spec"] = json!({"holderIdentity": holder(after)});
    }
    patch
}

fn metadata(claim: &Claim, kind: Kind) -> ObjectMeta {
    ObjectMeta {
        name: Some(name(claim.address, kind)),
        namespace: (kind == Kind::Lease).then(|| NAMESPACE.to_owned()),
        labels: Some(labels(claim)),
        annotations: Some(annotations(claim)),
        ..ObjectMeta::default()
    }
}

fn labels(claim: &Claim) -> BTreeMap<String, String> {
    let services = claim.users.iter().map(|user| (format!("{SERVICE_LABEL}{}", user.uid), String::new()));
    services.chain([(MANAGED_BY.to_owned(), MANAGER.to_owned())]).collect()
}

fn annotations(claim: &Claim) -> BTreeMap<String, String> {
    let users = serde_json::to_string(&claim.users).expect("names and numbers are JSON");
    let released = claim.released.and_then(|at| Timestamp::from_second(at).ok()).map(|at| at.to_string());
    let optional = [(POOL, claim.pool.clone()), (SHARE_KEY, claim.share_key.clone()), (RELEASED, released)];
    let optional = optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    optional.chain([(SERVICES.to_owned(), users)]).collect()
}

/// Who has it, for people who list Leases.
fn holder(claim: &Claim) -> String {
    words::list(claim.users.iter().map(|user| &user.service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectKey, Protocol};

    fn claim(address: &str, kind: Kind) -> Claim {
        let user = |name: &str| User {
            service: ObjectKey::new("default", name),
            uid: format!("uid-{name}"),
            ports: [(Protocol::Tcp, 80), (Protocol::Udp, 53)].into(),
        };
        Claim {
            address: address.parse().unwrap(),
            kind,
            users: vec![user("a"), user("b")],
            pool: Some("lan".into()),
            share_key: Some("default/k".into()),
            released: Some(1_700_000_000),
            created: 0,
            version: Version::default(),
        }
    }

    #[test]
    fn claims_go_through_both_kinds_unchanged() {
        for address in ["10.87.2.50", "fd00::50", "0.0.0.1", "::1"] {
            let want = claim(address, Kind::IpAddress);
            assert_eq!(from_ip_address(&to_ip_address(&want)), Some(want));
            let want = claim(address, Kind::Lease);
            assert_eq!(from_lease(&to_lease(&want)), Some(want));
        }
    }

    #[test]
    fn names_are_the_addresses_own() {
        let name = |text: &str, kind| super::name(text.parse().unwrap(), kind);
        assert_eq!(name("10.87.2.50", Kind::Lease), "kvip-0a570232");
        assert_eq!(name("fd00::50", Kind::Lease), "kvip-fd000000000000000000000000000050");
        assert_eq!(name("fd00:0::50", Kind::IpAddress), "fd00::50");
        for bad in
            ["kvip-0A570232", "kvip-a570232", "kvip-", "kvip-+a570232", "other-0a570232", "kvip-node-a"]
        {
            assert_eq!(lease_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_not_ours_or_not_readable_is_no_claim() {
        let good = to_ip_address(&claim("10.87.2.50", Kind::IpAddress));
        let check = |change: &dyn Fn(&mut ObjectMeta)| {
            let mut bad = good.clone();
            change(&mut bad.metadata);
            assert_eq!(from_ip_address(&bad), None, "{:?}", bad.metadata);
        };
        let label = |meta: &mut ObjectMeta, value: &str| {
            meta.labels.get_or_insert_default().insert(MANAGED_BY.into(), value.into());
        };
        let note = |meta: &mut ObjectMeta, key: &str, value: &str| {
            meta.annotations.get_or_insert_default().insert(key.into(), value.into());
        };
        check(&|meta| label(meta, "ipallocator.k8s.io"));
        check(&|meta| meta.labels = None);
        check(&|meta| meta.annotations = None);
        check(&|meta| note(meta, SERVICES, "[]"));
        check(&|meta| note(meta, SERVICES, "nonsense"));
        check(&|meta| note(meta, RELEASED, "yesterday"));
        check(&|meta| meta.name = Some("not-an-address".into()));
    }

    #[test]
    fn a_patch_takes_back_what_is_gone() {
        let before = claim("10.87.2.50", Kind::Lease);
        let mut after = before.clone();
        after.users.remove(0);
        after.released = None;
        let patch = patch(&before, &after);
        assert_eq!(patch["metadata"]["labels"]["service.kvip.io/uid-a"], Value::Null);
        assert_eq!(patch["metadata"]["labels"]["service.kvip.io/uid-b"], "");
        assert_eq!(patch["metadata"]["annotations"][RELEASED], Value::Null);
        assert_eq!(patch["spec"]["holderIdentity"], "default/b");
    }
}
