//! The Node object and its Lease.

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::layout::NodeSpec;

/// How long a Lease holds, in seconds: the kubelet's default.
const LEASE_SECONDS: u32 = 40;
const MANAGER: &str = "lab-kubelet";

/// Registers the Node, says that it is ready, and renews its Lease. Doing so again changes nothing but times.
pub async fn renew(client: &Client, spec: &NodeSpec) -> anyhow::Result<()> {
    let apply = PatchParams::apply(MANAGER).force();
    let nodes = Api::<Node>::all(client.clone());
    nodes.patch(spec.name, &apply, &Patch::Apply(object(spec))).await.context("register the Node")?;
    // Not applied but merged: an apply takes two addresses of one type for a duplicate.
    let status = Patch::Merge(status(spec));
    nodes
        .patch_status(spec.name, &PatchParams::default(), &status)
        .await
        .context("write the Node's status")?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": spec.name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": spec.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": micro_time()},
    });
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    leases.patch(spec.name, &apply, &Patch::Apply(lease)).await.context("renew the Lease")?;
    Ok(())
}

fn object(spec: &NodeSpec) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": spec.name, "labels": {
            "kubernetes.io/hostname": spec.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        }},
        "spec": {"podCIDR": spec.pod4, "podCIDRs": [spec.pod4, spec.pod6]},
    })
}

fn status(spec: &NodeSpec) -> serde_json::Value {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let resources = json!({"cpu": "4", "memory": "4Gi", "pods": "110"});
    json!({
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": spec.v4},
                {"type": "InternalIP", "address": spec.v6},
                {"type": "Hostname", "address": spec.name},
            ],
            "capacity": resources, "allocatable": resources,
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the machine answers",
                "lastHeartbeatTime": now,
            }],
        },
    })
}

fn micro_time() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
