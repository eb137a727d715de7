//! The Pods of one node: what the API wants, what the machine has, and the way from one to the other.
//!
//! [`decide`] is pure; each action on a Pod is a task of its own, and a Pod has at most one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::guest::Guest;
use crate::layout::NodeSpec;

/// A Pod with this annotation set to "false" is not ready.
const READY: &str = "lab.kvip/ready";
/// Host numbers of the node's pod ranges that Pods get.
const HOSTS: std::ops::RangeInclusive<u8> = 10..=250;
/// Before an action that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What this node runs for a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Local {
    /// Its name in the machine.
    name: String,
    namespace: String,
    pod: String,
    host: u8,
    stage: Stage,
    /// The readiness last written to its status.
    reported: Option<bool>,
    busy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Wanted,
    Runs,
    Stopped,
}

/// What to do about a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Add,
    Report {
        ready: bool,
    },
    Stop {
        grace: Duration,
        pre_stop: Duration,
    },
    /// The API may forget it.
    Delete,
    Forget,
}

/// What happened to the Pod with that UID.
pub struct Done {
    uid: String,
    result: anyhow::Result<Action>,
}

/// The Pods of one node.
pub struct Pods {
    client: Client,
    guest: Guest,
    spec: &'static NodeSpec,
    local: BTreeMap<String, Local>,
    tasks: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Pods {
    /// No Pods yet.
    pub fn new(client: Client, guest: Guest, spec: &'static NodeSpec) -> Self {
        Self { client, guest, spec, local: BTreeMap::new(), tasks: FuturesUnordered::new() }
    }

    /// What the machine runs: what it lost (it was started afresh) is to be made again.
    pub fn running(&mut self, names: &BTreeSet<String>) {
        for local in self.local.values_mut().filter(|local| !local.busy && local.stage == Stage::Runs) {
            if !names.contains(&local.name) {
                local.stage = Stage::Wanted;
            }
        }
    }

    /// The next action that ended; never while none is under way.
    pub async fn next_done(&mut self) -> Done {
        match self.tasks.next().await {
            Some(done) => done,
            None => futures::future::pending().await,
        }
    }

    /// Takes note of an action's end.
    pub fn finish(&mut self, done: Done) {
        let Some(local) = self.local.get_mut(&done.uid) else { return };
        local.busy = false;
        match done.result {
            Ok(Action::Add) => local.stage = Stage::Runs,
            Ok(Action::Report { ready }) => local.reported = Some(ready),
            Ok(Action::Stop { .. }) => local.stage = Stage::Stopped,
            Ok(Action::Delete | Action::Forget) => drop(self.local.remove(&done.uid)),
            Err(error) => tracing::warn!("{}/{}: {error:#}", local.namespace, local.pod),
        }
    }

    /// Starts what has to be done for the Pods that the API has.
    pub fn reconcile(&mut self, pods: &[Arc<Pod>]) {
        let wanted: BTreeMap<String, &Pod> =
            pods.iter().filter_map(|pod| Some((pod.uid()?, pod.as_ref()))).collect();
        for (uid, pod) in &wanted {
            if !self.local.contains_key(uid) && pod.metadata.deletion_timestamp.is_none() {
                self.take(uid, pod);
            }
        }
        let uids: Vec<String> =
            self.local.keys().chain(wanted.keys()).cloned().collect::<BTreeSet<_>>().into_iter().collect();
        for uid in uids {
            let pod = wanted.get(&uid).copied();
            let local = self.local.get(&uid);
            if local.is_some_and(|local| local.busy) {
                continue;
            }
            if let Some(action) = decide(pod, local) {
                self.start(&uid, pod, action);
            }
        }
    }

    fn take(&mut self, uid: &str, pod: &Pod) {
        let used: BTreeSet<u8> = self.local.values().map(|local| local.host).collect();
        let reported = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).and_then(host_of);
        let free = reported.filter(|host| !used.contains(host)).or_else(|| free_host(&used));
        let Some(host) = free else {
            tracing::warn!("{}: the pod range is used up", pod.name_any());
            return;
        };
        let (namespace, pod) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let name = if namespace == "default" { pod.clone() } else { format!("{namespace}.{pod}") };
        let local = Local { name, namespace, pod, host, stage: Stage::Wanted, reported: None, busy: false };
        self.local.insert(uid.to_owned(), local);
    }

    fn start(&mut self, uid: &str, pod: Option<&Pod>, action: Action) {
        let Some(local) = self.local.get_mut(uid) else {
            // Deleted before this node ever ran it.
            let Some(pod) = pod else { return };
            let orphan = Local {
                name: String::new(),
                namespace: pod.namespace().unwrap_or_default(),
                pod: pod.name_any(),
                host: 0,
                stage: Stage::Stopped,
                reported: None,
                busy: false,
            };
            self.local.insert(uid.to_owned(), orphan);
            return self.start(uid, Some(pod), action);
        };
        local.busy = true;
        tracing::info!("{}/{}: {action:?}", local.namespace, local.pod);
        let work = Work {
            api: Api::namespaced(self.client.clone(), &local.namespace),
            guest: self.guest.clone(),
            spec: self.spec,
            local: local.clone(),
            uid: uid.to_owned(),
            ports: pod.map(ports).unwrap_or_default(),
        };
        self.tasks.push(work.run(action).boxed());
    }
}

/// What to do about a Pod, given the API's view and ours.
fn decide(pod: Option<&Pod>, local: Option<&Local>) -> Option<Action> {
    let Some(pod) = pod else {
        // Deleted by force: the API has forgotten it already.
        return local.map(|local| match local.stage {
            Stage::Stopped => Action::Forget,
            Stage::Wanted | Stage::Runs => Action::Stop { grace: Duration::ZERO, pre_stop: Duration::ZERO },
        });
    };
    let Some(local) = local else { return Some(Action::Delete) };
    if pod.metadata.deletion_timestamp.is_some() {
        let grace = u64::try_from(pod.metadata.deletion_grace_period_seconds.unwrap_or(30)).unwrap_or(30);
        return Some(match local.stage {
            Stage::Stopped => Action::Delete,
            Stage::Wanted | Stage::Runs => Action::Stop {
                grace: Duration::from_secs(grace),
                pre_stop: pre_stop(pod).min(Duration::from_secs(grace)),
            },
        });
    }
    let ready = pod.annotations().get(READY).is_none_or(|value| value != "false");
    match local.stage {
        Stage::Wanted => Some(Action::Add),
        Stage::Runs if local.reported != Some(ready) => Some(Action::Report { ready }),
        Stage::Runs | Stage::Stopped => None,
    }
}

/// The longest `preStop` sleep of its containers: it goes on serving for so long (KEP-3960).
fn pre_stop(pod: &Pod) -> Duration {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let sleeps =
        containers.filter_map(|container| container.lifecycle.as_ref()?.pre_stop.as_ref()?.sleep.as_ref());
    Duration::from_secs(sleeps.filter_map(|sleep| u64::try_from(sleep.seconds).ok()).max().unwrap_or(0))
}

/// The TCP ports of its containers; 80 when none is named.
fn ports(pod: &Pod) -> Vec<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let found: BTreeSet<u16> = tcp.filter_map(|port| u16::try_from(port.container_port).ok()).collect();
    if found.is_empty() { vec![80] } else { found.into_iter().collect() }
}

/// The first host number that nobody has.
fn free_host(used: &BTreeSet<u8>) -> Option<u8> {
    HOSTS.into_iter().find(|host| !used.contains(host))
}

/// The host number in a pod's IPv4 address.
fn host_of(address: &str) -> Option<u8> {
    let host = address.parse::<Ipv4Addr>().ok()?.octets()[3];
    HOSTS.contains(&host).then_some(host)
}

/// One action on one Pod.
struct Work {
    api: Api<Pod>,
    guest: Guest,
    spec: &'static NodeSpec,
    local: Local,
    uid: String,
    ports: Vec<u16>,
}

impl Work {
    async fn run(self, action: Action) -> Done {
        let result = match action {
            Action::Add => self.add().await,
            Action::Report { ready } => self.report(ready).await,
            Action::Stop { grace, pre_stop } => self.stop(grace, pre_stop).await,
            Action::Delete => self.delete().await,
            Action::Forget => Ok(()),
        };
        if result.is_err() {
            tokio::time::sleep(RETRY).await;
        }
        Done { uid: self.uid, result: result.map(|()| action) }
    }

    fn addresses(&self) -> (String, String) {
        let host = self.local.host;
        let v4: Ipv4Addr = prefix(self.spec.pod4).parse().expect("the layout's pod range");
        let v6: Ipv6Addr = prefix(self.spec.pod6).parse().expect("the layout's pod range");
        let [a, b, c, _] = v4.octets();
        let mut segments = v6.segments();
        // The digits of the host number, so that both addresses of a Pod look alike.
        segments[7] = u16::from_str_radix(&host.to_string(), 16).expect("decimal digits are hexadecimal");
        (Ipv4Addr::new(a, b, c, host).to_string(), Ipv6Addr::from(segments).to_string())
    }

    async fn add(&self) -> anyhow::Result<()> {
        let (v4, v6) = self.addresses();
        self.guest.add(&self.local.name, &v4, &v6, &self.ports).await
    }

    async fn stop(&self, grace: Duration, pre_stop: Duration) -> anyhow::Result<()> {
        tokio::time::sleep(pre_stop).await;
        self.guest.remove(&self.local.name, grace.saturating_sub(pre_stop)).await
    }

    async fn report(&self, ready: bool) -> anyhow::Result<()> {
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let (v4, v6) = self.addresses();
        let condition = |kind: &str, on: bool| json!({"type": kind, "status": if on { "True" } else { "False" }, "lastTransitionTime": now});
        let status = json!({"status": {
            "phase": "Running", "startTime": now,
            "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
            "hostIP": self.spec.v4, "hostIPs": [{"ip": self.spec.v4}, {"ip": self.spec.v6}],
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", ready), condition("Ready", ready),
            ],
        }});
        let patched =
            self.api.patch_status(&self.local.pod, &PatchParams::default(), &Patch::Merge(status)).await;
        already_gone(patched.map(drop)).context("write the Pod's status")
    }

    async fn delete(&self) -> anyhow::Result<()> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        already_gone(self.api.delete(&self.local.pod, &params).await.map(drop))
            .context("let the API forget the Pod")
    }
}

/// The address part of a range.
fn prefix(range: &str) -> &str {
    range.split_once('/').map_or(range, |(address, _)| address)
}

/// Not there, or another by the same name: both are what was wanted.
fn already_gone(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(deleted: bool, ready: &str) -> Pod {
        let mut object = json!({
            "metadata": {"name": "a", "namespace": "default", "uid": "u", "annotations": {READY: ready}},
            "spec": {"containers": [{"name": "nginx", "lifecycle": {"preStop": {"sleep": {"seconds": 3}}}}]},
        });
        if deleted {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        }
        serde_json::from_value(object).unwrap()
    }

    fn local(stage: Stage, reported: Option<bool>) -> Local {
        Local {
            name: "a".into(),
            namespace: "default".into(),
            pod: "a".into(),
            host: 10,
            stage,
            reported,
            busy: false,
        }
    }

    #[test]
    fn a_pod_is_made_then_reported_then_left_alone() {
        let pod = pod(false, "true");
        assert_eq!(decide(Some(&pod), Some(&local(Stage::Wanted, None))), Some(Action::Add));
        assert_eq!(decide(Some(&pod), Some(&local(Stage::Runs, None))), Some(Action::Report { ready: true }));
        assert_eq!(decide(Some(&pod), Some(&local(Stage::Runs, Some(true)))), None);
    }

    #[test]
    fn readiness_follows_the_annotation() {
        let report = decide(Some(&pod(false, "false")), Some(&local(Stage::Runs, Some(true))));
        assert_eq!(report, Some(Action::Report { ready: false }));
    }

    #[test]
    fn a_deleted_pod_is_stopped_gracefully_and_then_forgotten() {
        let pod = pod(true, "true");
        let stop = Action::Stop { grace: Duration::from_secs(30), pre_stop: Duration::from_secs(3) };
        assert_eq!(decide(Some(&pod), Some(&local(Stage::Runs, Some(true)))), Some(stop));
        assert_eq!(decide(Some(&pod), Some(&local(Stage::Stopped, Some(true)))), Some(Action::Delete));
        assert_eq!(decide(Some(&pod), None), Some(Action::Delete));
        assert_eq!(decide(None, Some(&local(Stage::Stopped, Some(true)))), Some(Action::Forget));
    }

    #[test]
    fn host_numbers_are_used_once() {
        assert_eq!(free_host(&BTreeSet::new()), Some(10));
        assert_eq!(free_host(&(10..=12).collect()), Some(13));
        assert_eq!(free_host(&HOSTS.collect()), None);
    }
}
