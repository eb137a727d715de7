//! What is to be done next about one Pod, given the API's view, the machine's and the time.
//!
//! Pure: one step at a time, decided anew from what is known, so that it matters neither what was missed nor
//! when this kubelet was started. The worker does the steps.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::status::{self, Health, Place};

/// A Pod with this annotation set to "false" is not ready: its readiness probe, so to speak.
const READY: &str = "lab.kvip/ready";
/// How long, in seconds, a deleted Pod goes on serving before it is told to end; see [`pre_stop`].
const PRE_STOP: &str = "lab.kvip/pre-stop-seconds";
/// The name of a TCP port on which `lab-peer` answers instead of nginx.
const ECHO: &str = "echo";
/// What a Pod that was deleted by force still gets, as from a real kubelet.
const SHORTEST_GRACE: Duration = Duration::from_secs(1);

/// What this kubelet knows of a Pod in the machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Local {
    /// UID of the Pod that is in the machine, or may be (an attempt counts); empty when it is unknown.
    pub holds: Option<String>,
    /// It was made and was not lost since.
    pub serving: bool,
    /// How often it was made anew.
    pub restarts: i32,
    /// Why the last attempt to make it failed.
    pub failure: Option<String>,
    /// The status last written, and what the API made of it: it may add something, and is not to be told again.
    pub told: Option<(PodStatus, PodStatus)>,
}

/// Ports on which a Pod listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Of nginx.
    pub tcp: BTreeSet<u16>,
    /// Of `lab-peer`, over TCP.
    pub echo: BTreeSet<u16>,
    /// Of `lab-peer`.
    pub udp: BTreeSet<u16>,
    /// Of `lab-peer`.
    pub sctp: BTreeSet<u16>,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make it in the machine.
    Add {
        /// The Pod's UID.
        uid: String,
        /// Ports on which it listens.
        ports: Ports,
    },
    /// Tell the API.
    Publish(Box<PodStatus>),
    /// End what is in the machine.
    Remove {
        /// How long open connections may take.
        grace: Duration,
    },
    /// Let the API forget it: it is no more.
    Forget {
        /// The Pod's UID: another by its name is not meant.
        uid: String,
    },
    /// Nothing until something changes, or until then.
    Wait(Option<Timestamp>),
    /// Nothing ever: it is gone on both sides.
    End,
}

impl Local {
    /// What a kubelet finds that was started while the Pod was there. The Pod in the machine is this one if the API
    /// knows it by the address that it has there.
    pub fn found(pod: Option<&Pod>, in_machine: Option<Ipv4Addr>) -> Self {
        let status = pod.and_then(|pod| pod.status.as_ref());
        let known: Option<Ipv4Addr> = status.and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let serving = in_machine.is_some() && known == in_machine;
        let uid = pod.filter(|_| serving).and_then(ResourceExt::uid).unwrap_or_default();
        let containers = status.and_then(|status| status.container_statuses.as_ref());
        let counts = containers.into_iter().flatten().map(|status| status.restart_count);
        let restarts = counts.max().unwrap_or(0) + i32::from(known.is_some() && !serving);
        Self { holds: in_machine.map(|_| uid), serving, restarts, ..Self::default() }
    }

    /// The machine was asked and has it no more: it is another machine, or started afresh.
    pub fn lost(&mut self) {
        if self.serving {
            self.serving = false;
            self.restarts += 1;
        }
    }
}

/// What to do next. `pod` is None when the API has none by this name.
pub fn next(pod: Option<&Pod>, local: &Local, place: &Place, now: Timestamp) -> Step {
    let Some(pod) = pod else {
        return if local.holds.is_some() { Step::Remove { grace: SHORTEST_GRACE } } else { Step::End };
    };
    let uid = pod.uid().unwrap_or_default();
    if local.holds.as_ref().is_some_and(|held| *held != uid) {
        return Step::Remove { grace: SHORTEST_GRACE };
    }
    let deletion = deletion(pod);
    if deletion.is_some() && local.holds.is_none() {
        return Step::Forget { uid };
    }
    let stopping = deletion.is_some_and(|(stop, _)| now >= stop);
    let health = health(pod, local, stopping);
    let want = status::want(pod, place, &health, now);
    let told =
        local.told.as_ref().is_some_and(|(said, kept)| *said == want && pod.status.as_ref() == Some(kept));
    if pod.status.as_ref() != Some(&want) && !told {
        return Step::Publish(Box::new(want));
    }
    match deletion {
        Some((_, end)) if stopping => Step::Remove { grace: until(now, end).max(SHORTEST_GRACE) },
        Some((stop, _)) => Step::Wait(Some(stop)),
        None if local.serving || refusal(pod).is_some() => Step::Wait(None),
        None => Step::Add { uid, ports: ports(pod) },
    }
}

fn health(pod: &Pod, local: &Local, stopping: bool) -> Health {
    let told = pod.annotations().get(READY).is_none_or(|value| value != "false");
    let waiting = match (refusal(pod), &local.failure) {
        (Some(why), _) => ("CreateContainerConfigError", why.to_owned()),
        (None, Some(why)) => ("CreateContainerError", why.clone()),
        (None, None) => ("ContainerCreating", String::new()),
    };
    let ready = local.serving && told && !stopping;
    Health { serving: local.serving, ready, restarts: local.restarts, waiting }
}

/// Why this kubelet cannot run the Pod at all.
fn refusal(pod: &Pod) -> Option<&'static str> {
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    host.then_some("the lab's kubelet runs no Pod in the host's network")
}

/// When a deleted Pod is told to end, and when it must have ended.
fn deletion(pod: &Pod) -> Option<(Timestamp, Timestamp)> {
    let end = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
    let serve_on = grace - pre_stop(pod).min(grace);
    Some((end - SignedDuration::from_secs(serve_on), end))
}

/// How long a deleted Pod goes on serving, in seconds: the annotation, else the longest preStop sleep of its containers
/// (KEP-3960).
fn pre_stop(pod: &Pod) -> i64 {
    let annotated = pod.annotations().get(PRE_STOP).and_then(|value| value.parse().ok());
    let sleep = |container: &Container| {
        Some(container.lifecycle.as_ref()?.pre_stop.as_ref()?.sleep.as_ref()?.seconds)
    };
    let sleeps = containers(pod).filter_map(sleep);
    annotated.unwrap_or_else(|| sleeps.max().unwrap_or(0)).max(0)
}

/// The ports of its containers; a TCP port named `echo` is lab-peer's. nginx listens on 80 when it has no port.
fn ports(pod: &Pod) -> Ports {
    let mut found = Ports::default();
    for port in containers(pod).flat_map(|container| container.ports.iter().flatten()) {
        let ports = match port.protocol.as_deref() {
            Some("UDP") => &mut found.udp,
            Some("SCTP") => &mut found.sctp,
            _ if port.name.as_deref() == Some(ECHO) => &mut found.echo,
            _ => &mut found.tcp,
        };
        ports.extend(u16::try_from(port.container_port));
    }
    if found.tcp.is_empty() {
        found.tcp.insert(80);
    }
    found
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| &spec.containers)
}

fn until(now: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
