//! Which objects are claims.

use serde_json::{Value, json};

use super::*;

#[test]
fn claims_are_kvips_own_objects_alone() {
    let users = r#"[{"service": "default/web", "uid": "u-1", "ports": [["tcp", 80]]}]"#;
    let metadata = |name: &str, namespace: Option<&str>, manager: &str, users: &str| {
        json!({"name": name, "namespace": namespace, "annotations": {"kvip.io/services": users},
            "labels": {"ipaddress.kubernetes.io/managed-by": manager}})
    };
    let check = |metadata: Value, want: Option<Kind>, said: usize| {
        let lease = metadata["namespace"].is_string();
        let got = if lease {
            super::lease(&serde_json::from_value(json!({"metadata": metadata})).unwrap())
        } else {
            let spec = json!({"parentRef": {"resource": "services", "namespace": "default", "name": "web"}});
            ip_address(&serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
        };
        assert_eq!(
            (got.value.as_ref().map(|claim| claim.kind), got.skipped.len()),
            (want, said),
            "{metadata}"
        );
        if let Some(claim) = &got.value {
            assert_eq!(claimed(claim.kind, &got.key), Some(claim.address), "what takes it away finds it");
        }
    };
    let own = Some("kvip-system");
    check(metadata("10.87.2.50", None, "kvip", users), Some(Kind::IpAddress), 0);
    check(metadata("fd00::50", None, "kvip", users), Some(Kind::IpAddress), 0);
    check(metadata("10.87.2.50", None, "ipallocator.k8s.io", users), None, 0);
    check(metadata("10.87.2.50", None, "kvip", "torn"), None, 1);
    check(metadata("kvip-0a570232", own, "kvip", users), Some(Kind::Lease), 0);
    check(metadata("kvip-0a570232", Some("default"), "kvip", users), None, 0);
    check(metadata("node-a", Some("kube-node-lease"), "other", users), None, 0);
    check(metadata("kvip-node-a", own, "kvip", users), None, 1);
}

#[test]
fn empty_objects_do_not_panic() {
    let _ = ip_address(&networking::IPAddress::default());
    let _ = lease(&coordination::Lease::default());
}
