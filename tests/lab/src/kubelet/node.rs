//! The Node object and its Lease.
//!
//! Owns what this node says of itself. As a kubelet, it registers once, when it starts: a Node that somebody deletes
//! later stays deleted. Conditions of others are left alone.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::LIMIT;
use super::status::whole_seconds;
use crate::layout::NodeSpec;

/// How long a Lease holds, in seconds: the kubelet's default.
const LEASE_SECONDS: u32 = 40;
/// A Node's status is written when it changed, else so often: the kubelet's nodeStatusReportFrequency.
const REPORT_EVERY: Duration = Duration::from_secs(300);
const LEASES: &str = "kube-node-lease";

/// One node's place in the cluster.
pub struct Membership {
    client: Client,
    spec: &'static NodeSpec,
    registered: bool,
    /// The Lease, once it is known to exist.
    leased: bool,
}

impl Membership {
    /// Not registered yet.
    pub fn new(client: Client, spec: &'static NodeSpec) -> Self {
        Self { client, spec, registered: false, leased: false }
    }

    /// Says that the node is alive and ready: registers it the first time, renews its Lease, mends its status.
    pub async fn renew(&mut self, now: Timestamp) -> anyhow::Result<()> {
        tokio::time::timeout(LIMIT, self.renew_unbounded(now))
            .await
            .with_context(|| format!("the API did not answer within {LIMIT:?}"))?
    }

    async fn renew_unbounded(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let nodes = Api::<Node>::all(self.client.clone());
        if !self.registered {
            present(nodes.create(&PostParams::default(), &object(self.spec, now)?).await)
                .context("cannot register the Node")?;
            self.registered = true;
        }
        let found = nodes.get_opt(self.spec.name).await.context("cannot read the Node")?;
        let Some(node) = found else {
            tracing::warn!("the Node was deleted; this kubelet registers it again when it is restarted");
            return Ok(());
        };
        self.lease(now).await.context("cannot renew the Lease")?;
        let have = node.status.unwrap_or_default();
        let want = status(self.spec, &have, now);
        if want != have {
            let patch = Patch::Merge(json!({ "status": want }));
            nodes
                .patch_status(self.spec.name, &PatchParams::default(), &patch)
                .await
                .context("cannot write the Node's status")?;
        }
        Ok(())
    }

    async fn lease(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), LEASES);
        let name = self.spec.name;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": LEASES},
            "spec": {
                "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            },
        });
        if !self.leased {
            present(leases.create(&PostParams::default(), &serde_json::from_value(lease.clone())?).await)?;
            self.leased = true;
        }
        leases.patch(name, &PatchParams::default(), &Patch::Merge(lease)).await?;
        Ok(())
    }
}

/// A creation that came too late is one that succeeded.
fn present<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

fn object(spec: &NodeSpec, now: Timestamp) -> anyhow::Result<Node> {
    let node = json!({
        "metadata": {"name": spec.name, "labels": {
            "kubernetes.io/hostname": spec.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        }},
        "spec": {"podCIDR": spec.pod4, "podCIDRs": [spec.pod4, spec.pod6]},
        "status": status(spec, &NodeStatus::default(), now),
    });
    Ok(serde_json::from_value(node)?)
}

/// What the node's status should be, given what it is. The same again unless something has to be written.
fn status(spec: &NodeSpec, have: &NodeStatus, now: Timestamp) -> NodeStatus {
    let resources = json!({"cpu": "4", "memory": "4Gi", "ephemeral-storage": "8Gi", "pods": "110"});
    let fixed = json!({
        "addresses": [
            {"type": "InternalIP", "address": spec.v4},
            {"type": "InternalIP", "address": spec.v6},
            {"type": "Hostname", "address": spec.name},
        ],
        "capacity": resources, "allocatable": resources,
        "nodeInfo": {
            "architecture": "amd64", "operatingSystem": "linux", "osImage": "Debian GNU/Linux", "bootID": "",
            "machineID": "", "systemUUID": "", "kernelVersion": "linux", "kubeProxyVersion": "",
            "kubeletVersion": "v1.37.2", "containerRuntimeVersion": "lab://1",
        },
    });
    let fixed: NodeStatus = serde_json::from_value(fixed).expect("the status is well formed");
    let mut want = have.clone();
    (want.addresses, want.capacity) = (fixed.addresses, fixed.capacity);
    (want.allocatable, want.node_info) = (fixed.allocatable, fixed.node_info);
    let conditions = want.conditions.get_or_insert_default();
    for (kind, value, reason, message) in [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "the machine answers"),
    ] {
        let fresh = condition(kind, value, reason, message, now);
        match conditions.iter_mut().find(|have| have.type_ == kind) {
            Some(have) if have.status == value && !is_old(have, now) => {}
            Some(have) => {
                let since = if have.status == value {
                    &have.last_transition_time
                } else {
                    &fresh.last_transition_time
                };
                *have = NodeCondition { last_transition_time: since.clone(), ..fresh };
            }
            None => conditions.push(fresh),
        }
    }
    want
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> NodeCondition {
    let now = Some(Time(whole_seconds(now)));
    NodeCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: now.clone(),
        last_transition_time: now,
    }
}

fn is_old(condition: &NodeCondition, now: Timestamp) -> bool {
    let age = |time: &Time| now.as_second() - time.0.as_second();
    condition
        .last_heartbeat_time
        .as_ref()
        .is_none_or(|time| age(time) >= REPORT_EVERY.as_secs().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::NODES;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_status_is_written_when_it_changed_or_is_old() {
        let first = status(&NODES[0], &NodeStatus::default(), at(1000));
        assert_eq!(status(&NODES[0], &first, at(1290)), first);
        assert_ne!(status(&NODES[0], &first, at(1300)), first);
    }

    #[test]
    fn a_node_declared_dead_says_that_it_lives_and_leaves_foreign_conditions() {
        let mut have = status(&NODES[0], &NodeStatus::default(), at(1000));
        let conditions = have.conditions.as_mut().unwrap();
        for condition in conditions.iter_mut() {
            condition.status = "Unknown".into();
        }
        conditions.push(condition("NetworkUnavailable", "False", "Foreign", "", at(5)));
        let mended = status(&NODES[0], &have, at(1010)).conditions.unwrap();
        let ready = mended.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!((&*ready.status, &ready.last_transition_time), ("True", &Some(Time(at(1010)))));
        assert_eq!(mended.last(), have.conditions.unwrap().last());
    }
}
