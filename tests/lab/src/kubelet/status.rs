//! What a Pod's status should say, given what it says and what the machine does.
//!
//! Pure. Starts from the present status, so that an unchanged Pod gives an equal one, and so that what others
//! wrote there is left alone.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateWaiting, ContainerStatus, HostIP, Pod,
    PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::layout::NodeSpec;

/// Where a Pod runs and by which addresses it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its node.
    pub spec: &'static NodeSpec,
    /// Its own IPv4 address.
    pub v4: String,
    /// Its own IPv6 address.
    pub v6: String,
}

/// How a Pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its nginx listens.
    pub serving: bool,
    /// It should get traffic. Never true unless serving.
    pub ready: bool,
    /// How often it was made anew.
    pub restarts: i32,
    /// Why it does not run: a word and a sentence.
    pub waiting: (&'static str, String),
}

/// The status that says so.
pub fn want(pod: &Pod, place: &Place, health: &Health, now: Timestamp) -> PodStatus {
    let now = Time(whole_seconds(now));
    let mut status = pod.status.clone().unwrap_or_default();
    let ran = status.phase.as_deref() == Some("Running");
    status.phase = Some(if ran || health.serving { "Running" } else { "Pending" }.into());
    status.start_time.get_or_insert_with(|| now.clone());
    status.host_ip = Some(place.spec.v4.into());
    status.host_ips = Some([place.spec.v4, place.spec.v6].map(|ip| HostIP { ip: ip.into() }).into());
    if health.serving {
        status.pod_ip = Some(place.v4.clone());
        status.pod_ips = Some([&place.v4, &place.v6].map(|ip| PodIP { ip: ip.clone() }).into());
    }
    let old = status.container_statuses.take().unwrap_or_default();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    status.container_statuses = Some(
        containers
            .map(|container| {
                let old = old.iter().find(|status| status.name == container.name);
                container_status(container, old, health, &now)
            })
            .collect(),
    );
    let conditions = status.conditions.get_or_insert_default();
    for (kind, holds) in [
        ("PodScheduled", true),
        ("Initialized", true),
        ("PodReadyToStartContainers", health.serving),
        ("ContainersReady", health.ready),
        ("Ready", health.ready),
    ] {
        set_condition(conditions, kind, holds, health, &now);
    }
    status
}

/// Times in the API have no fraction of a second: one would come back changed.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).expect("a timestamp's own second is in range")
}

fn container_status(
    container: &Container,
    old: Option<&ContainerStatus>,
    health: &Health,
    now: &Time,
) -> ContainerStatus {
    let state = if health.serving {
        let running = old.filter(|old| old.restart_count == health.restarts);
        let running = running.and_then(|old| old.state.as_ref()?.running.clone());
        let running = running.unwrap_or(ContainerStateRunning { started_at: Some(now.clone()) });
        ContainerState { running: Some(running), ..ContainerState::default() }
    } else {
        let (reason, message) = health.waiting.clone();
        let message = (!message.is_empty()).then_some(message);
        let waiting = ContainerStateWaiting { reason: Some(reason.into()), message };
        ContainerState { waiting: Some(waiting), ..ContainerState::default() }
    };
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ready: health.ready,
        started: Some(health.serving),
        restart_count: health.restarts,
        state: Some(state),
        // The API makes an absent one empty.
        last_state: Some(ContainerState::default()),
        ..ContainerStatus::default()
    }
}

/// Leaves a condition that says so already as it is, with its time.
fn set_condition(conditions: &mut Vec<PodCondition>, kind: &str, holds: bool, health: &Health, now: &Time) {
    let status = if holds { "True" } else { "False" };
    let reason = match (holds, health.serving) {
        (true, _) => None,
        (false, true) => Some(("ContainersNotReady", "it was told not to be ready".to_owned())),
        (false, false) => Some(("ContainersNotReady", "its containers do not run".to_owned())),
    };
    let fresh = PodCondition {
        type_: kind.into(),
        status: status.into(),
        last_transition_time: Some(now.clone()),
        reason: reason.as_ref().map(|(reason, _)| (*reason).into()),
        message: reason.map(|(_, message)| message),
        ..PodCondition::default()
    };
    match conditions.iter_mut().find(|have| have.type_ == kind) {
        Some(have) if have.status == status => {}
        Some(have) => *have = fresh,
        None => conditions.push(fresh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::NODES;
    use serde_json::json;

    fn place() -> Place {
        Place { spec: &NODES[0], v4: "10.2.4.10".into(), v6: "fd00:2:4::10".into() }
    }

    fn health(serving: bool, ready: bool, restarts: i32) -> Health {
        Health { serving, ready, restarts, waiting: ("ContainerCreating", String::new()) }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millisecond(second * 1000 + 7).unwrap()
    }

    fn bound() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "nginx", "image": "nginx"}]},
            "status": {"phase": "Pending", "qosClass": "BestEffort",
                "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:09Z"}]},
        }))
        .unwrap()
    }

    fn told(pod: &Pod, health: &Health, second: i64) -> Pod {
        Pod { status: Some(want(pod, &place(), health, at(second))), ..pod.clone() }
    }

    fn condition<'a>(pod: &'a Pod, kind: &str) -> &'a PodCondition {
        let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
        conditions.iter().find(|condition| condition.type_ == kind).unwrap()
    }

    #[test]
    fn a_running_pod_has_addresses_and_is_ready() {
        let pod = told(&told(&bound(), &health(false, false, 0), 10), &health(true, true, 0), 12);
        let status = pod.status.as_ref().unwrap();
        assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("10.2.4.10")));
        assert_eq!(status.pod_ips.as_ref().unwrap()[1].ip, "fd00:2:4::10");
        assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
        assert_eq!(status.start_time, Some(Time(whole_seconds(at(10)))));
        assert_eq!(condition(&pod, "Ready").status, "True");
        assert_eq!(condition(&pod, "PodScheduled").last_transition_time, Some(Time(whole_seconds(at(9)))));
        assert!(status.container_statuses.as_ref().unwrap()[0].ready);
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        for health in [health(true, true, 0), health(true, false, 0), health(false, false, 0)] {
            let pod = told(&bound(), &health, 10);
            assert_eq!(told(&pod, &health, 99), pod);
            let text = serde_json::to_string(&pod).unwrap();
            assert_eq!(serde_json::from_str::<Pod>(&text).unwrap(), pod, "the API gives back what it got");
        }
    }

    #[test]
    fn a_pod_made_anew_keeps_its_address_and_counts_a_restart() {
        let running = told(&bound(), &health(true, true, 0), 10);
        let lost = told(&running, &health(false, false, 1), 20);
        let status = lost.status.as_ref().unwrap();
        assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("10.2.4.10")));
        assert_eq!(condition(&lost, "Ready").status, "False");
        let again = told(&lost, &health(true, true, 1), 30);
        let container = &again.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
        let started = container.state.as_ref().unwrap().running.as_ref().unwrap().started_at.clone();
        assert_eq!((container.restart_count, started), (1, Some(Time(whole_seconds(at(30))))));
    }

    #[test]
    fn a_verdict_of_the_node_controller_is_taken_back() {
        let mut pod = told(&bound(), &health(true, true, 0), 10);
        let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions.iter_mut().find(|condition| condition.type_ == "Ready").unwrap().status = "False".into();
        assert_eq!(condition(&told(&pod, &health(true, true, 0), 60), "Ready").status, "True");
    }
}
