//! The life of a Pod, step by step, and every interruption of it that was thought of.

use serde_json::{Value, json};

use super::*;
use crate::layout::NODES;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn place() -> Place {
    Place { spec: &NODES[0], v4: "10.2.4.10".into(), v6: "fd00:2:4::10".into() }
}

fn pod(annotations: &Value, spec: &Value) -> Pod {
    let mut object = json!({
        "metadata": {"name": "a", "namespace": "default", "uid": "u", "annotations": annotations},
        "spec": {"containers": [{"name": "nginx", "ports": [{"containerPort": 8080}]}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn plain() -> Pod {
    pod(&json!({}), &json!({}))
}

fn tcp(ports: &[u16]) -> Ports {
    Ports { tcp: ports.iter().copied().collect(), ..Ports::default() }
}

/// Deleted at NOW with thirty seconds of grace.
fn deleted(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW + 30)));
    pod.metadata.deletion_grace_period_seconds = Some(30);
    pod
}

fn serving() -> Local {
    Local { holds: Some("u".into()), serving: true, ..Local::default() }
}

/// The step after all that is to be published has been; and whether that said "ready".
fn check(pod: &Pod, local: &Local, second: i64) -> (Step, bool) {
    let mut pod = pod.clone();
    let mut step = next(Some(&pod), local, &place(), at(second));
    if let Step::Publish(status) = step {
        pod.status = Some(*status);
        step = next(Some(&pod), local, &place(), at(second));
    }
    let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
    (step, conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

fn remove(seconds: u64) -> Step {
    Step::Remove { grace: Duration::from_secs(seconds) }
}

#[test]
fn a_pod_is_made_published_and_left_alone() {
    let add = Step::Add { uid: "u".into(), ports: tcp(&[8080]) };
    assert_eq!(check(&plain(), &Local::default(), NOW), (add, false));
    assert_eq!(check(&plain(), &serving(), NOW), (Step::Wait(None), true));
}

#[test]
fn readiness_follows_the_annotation() {
    let told = pod(&json!({READY: "false"}), &json!({}));
    assert_eq!(check(&told, &serving(), NOW), (Step::Wait(None), false));
}

#[test]
fn a_deleted_pod_is_unready_ended_within_its_grace_and_forgotten() {
    let pod = deleted(plain());
    assert_eq!(check(&pod, &serving(), NOW), (remove(30), false));
    assert_eq!(check(&pod, &serving(), NOW + 12), (remove(18), false));
    assert_eq!(check(&pod, &serving(), NOW + 99), (remove(1), false));
    let forget = Step::Forget { uid: "u".into() };
    assert_eq!(next(Some(&pod), &Local::default(), &place(), at(NOW)), forget);
}

#[test]
fn a_deleted_pod_serves_on_for_its_pre_stop_time() {
    let sleep = json!([{"name": "nginx", "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}]);
    let slept = deleted(pod(&json!({}), &json!({"containers": sleep})));
    let annotated = deleted(pod(&json!({PRE_STOP: "5"}), &json!({})));
    for pod in [slept, annotated] {
        assert_eq!(check(&pod, &serving(), NOW + 4), (Step::Wait(Some(at(NOW + 5))), true));
        assert_eq!(check(&pod, &serving(), NOW + 5), (remove(25), false));
    }
    let long = deleted(pod(&json!({PRE_STOP: "900"}), &json!({})));
    assert_eq!(check(&long, &serving(), NOW + 29), (Step::Wait(Some(at(NOW + 30))), true));
}

#[test]
fn a_pod_that_the_api_forgot_is_ended() {
    assert_eq!(next(None, &serving(), &place(), at(NOW)), remove(1));
    assert_eq!(next(None, &Local::default(), &place(), at(NOW)), Step::End);
}

#[test]
fn a_namesake_is_ended_first() {
    let other = Local { holds: Some("another".into()), ..serving() };
    assert_eq!(next(Some(&plain()), &other, &place(), at(NOW)), remove(1));
}

#[test]
fn a_pod_that_its_machine_lost_is_made_again() {
    let mut local = serving();
    local.lost();
    local.lost();
    assert_eq!(local.restarts, 1);
    let add = Step::Add { uid: "u".into(), ports: tcp(&[8080]) };
    assert_eq!(check(&plain(), &local, NOW), (add, false));
}

#[test]
fn a_pod_in_the_hosts_network_is_refused_in_its_status() {
    let host = pod(&json!({}), &json!({"hostNetwork": true}));
    assert_eq!(check(&host, &Local::default(), NOW), (Step::Wait(None), false));
}

#[test]
fn a_kubelet_started_anew_knows_a_pod_by_its_address() {
    let mut pod = plain();
    pod.status = Some(status::want(&pod, &place(), &health(&pod, &serving(), false), at(NOW)));
    let here = Some(Ipv4Addr::new(10, 2, 4, 10));
    assert_eq!(Local::found(Some(&pod), here), serving());
    let strange = Local { holds: Some(String::new()), restarts: 1, ..Local::default() };
    assert_eq!(Local::found(Some(&pod), Some(Ipv4Addr::new(10, 2, 4, 11))), strange);
    assert_eq!(Local::found(Some(&pod), None), Local { restarts: 1, ..Local::default() });
    let orphan = Local { holds: Some(String::new()), ..Local::default() };
    assert_eq!(Local::found(None, here), orphan);
    assert_eq!(Local::found(Some(&plain()), None), Local::default());
}

#[test]
fn what_the_api_adds_is_not_argued_about() {
    let mut pod = plain();
    let want = status::want(&pod, &place(), &health(&pod, &serving(), false), at(NOW));
    let mut kept = want.clone();
    kept.container_statuses.as_mut().unwrap()[0].stop_signal = Some("SIGQUIT".into());
    pod.status = Some(kept.clone());
    let local = Local { told: Some((want, kept)), ..serving() };
    assert_eq!(next(Some(&pod), &local, &place(), at(NOW + 9)), Step::Wait(None));
    pod.status.as_mut().unwrap().conditions = None;
    assert!(matches!(next(Some(&pod), &local, &place(), at(NOW + 9)), Step::Publish(_)));
}

#[test]
fn ports_are_by_protocol_and_nginx_has_eighty_by_default() {
    let ports_of =
        |list: Value| ports(&pod(&json!({}), &json!({"containers": [{"name": "c", "ports": list}]})));
    assert_eq!(ports_of(json!([])), tcp(&[80]));
    let other =
        json!([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 3868, "protocol": "SCTP"}]);
    assert_eq!(ports_of(other), Ports { udp: [53].into(), sctp: [3868].into(), ..tcp(&[80]) });
    let two = json!([{"containerPort": 443}, {"containerPort": 80, "protocol": "TCP"}]);
    assert_eq!(ports_of(two), tcp(&[80, 443]));
    let echo = json!([{"containerPort": 7, "name": "echo"}, {"containerPort": 7, "name": "echo-udp", "protocol": "UDP"}]);
    assert_eq!(ports_of(echo), Ports { echo: [7].into(), udp: [7].into(), ..tcp(&[80]) });
}
