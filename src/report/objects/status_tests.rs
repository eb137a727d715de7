//! Cases of the status' patch: each says what is there, what is wanted, and what is left.

use proptest::prelude::*;

use super::*;
use crate::model::Protocol;
use crate::report::objects::fake_api::merge;
use crate::report::objects::{IpMode, Port};
use crate::snapshot::convert;

const NOW: &str = "2026-01-02T03:04:05Z";
const EARLIER: &str = "2025-01-01T00:00:00Z";

fn service(status: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": "web", "uid": "u1", "resourceVersion": "7", "generation": 3},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "kvip.io/kvip"}, "status": status})
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn address(ip: &str) -> Address {
    let port = Port { protocol: Protocol::Tcp, port: 80, error: None };
    Address { ip: ip.parse().unwrap(), mode: IpMode::Proxy, ports: vec![port] }
}

fn wanted(ips: &[&str]) -> Wanted {
    Wanted {
        uid: "u1".into(),
        kind: Kind::LoadBalancer(Some("kvip.io/kvip".into())),
        addresses: ips.iter().map(|ip| address(ip)).collect(),
        ingress: true,
        verdict: Verdict::Allocated,
        place: Some(0),
        shown: Shown::default(),
    }
}

fn refused(ips: &[&str]) -> Wanted {
    let verdict =
        Verdict::Refused { reason: "PoolExhausted".into(), text: "pool a has no free address".into() };
    Wanted { verdict, ..wanted(ips) }
}

fn not_ours() -> Wanted {
    Wanted { verdict: Verdict::NotOurs, ingress: false, ..wanted(&[]) }
}

fn entry(ip: &str) -> Value {
    json!({"ip": ip, "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]})
}

fn said(status: &str, reason: &str, message: &str) -> Value {
    json!({"type": CONDITION, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": EARLIER, "observedGeneration": 3})
}

fn allocated(list: &str) -> Value {
    said("True", "Allocated", &format!("load balancer at {list}"))
}

fn status(ingress: Value, conditions: Value) -> Value {
    json!({"loadBalancer": {"ingress": ingress}, "conditions": conditions})
}

/// Applies what is wanted to a Service with `before`, and checks the status after and the words said; and that nothing
/// differs then.
fn check(wanted: &Wanted, before: Value, after: &Value, said: &[&str]) -> Value {
    let mut live = service(before);
    let Step::Patch { body, words } = step(wanted, &object(live.clone()), NOW.parse().unwrap()) else {
        panic!("a patch of {live}");
    };
    assert_eq!(body["metadata"], json!({"resourceVersion": "7", "uid": "u1"}));
    merge(&mut live, &body);
    assert_eq!(&live["status"], after);
    let told =
        words.iter().map(|w| format!("{} {}: {}", if w.warning { "!" } else { "-" }, w.reason, w.note));
    assert_eq!(told.collect::<Vec<_>>(), said);
    assert_eq!(step(wanted, &object(live.clone()), NOW.parse().unwrap()), Step::Nothing);
    assert!(was_kept(wanted, &object(live.clone())));
    // What the snapshot would show says the same, so that the API is not even asked.
    let typed = serde_json::from_value::<core::Service>(live.clone()).unwrap();
    let shown = Shown::of(&convert::service(&typed).value.unwrap());
    assert!(is_shown(&Wanted { shown, ..wanted.clone() }));
    live
}

fn now(mut condition: Value) -> Value {
    condition["lastTransitionTime"] = NOW.into();
    condition
}

#[test]
fn an_address_is_written_with_mode_ports_and_condition() {
    let ips = ["10.87.2.50", "fd00::50"];
    let after =
        status(json!([entry(ips[0]), entry(ips[1])]), json!([now(allocated("10.87.2.50, fd00::50"))]));
    check(
        &wanted(&ips),
        json!({"loadBalancer": {}}),
        &after,
        &["- Allocated: load balancer at 10.87.2.50, fd00::50"],
    );
}

#[test]
fn an_address_that_is_added_or_goes_is_told_and_the_condition_keeps_its_time() {
    let one = status(json!([entry("10.87.2.50")]), json!([allocated("10.87.2.50")]));
    let two = status(
        json!([entry("10.87.2.50"), entry("10.87.2.51")]),
        json!([allocated("10.87.2.50, 10.87.2.51")]),
    );
    let (both, single) = (wanted(&["10.87.2.50", "10.87.2.51"]), wanted(&["10.87.2.50"]));
    check(&both, one.clone(), &two, &["- Allocated: load balancer at 10.87.2.50, 10.87.2.51"]);
    check(
        &single,
        two,
        &one,
        &["- Released: released 10.87.2.51", "- Allocated: load balancer at 10.87.2.50"],
    );
}

#[test]
fn foreign_entries_and_conditions_stay_in_place_with_fields_that_kvip_does_not_know() {
    let host = json!({"hostname": "lb.example", "newField": {"a": [1]}});
    let foreign = json!({"ip": "192.0.2.1", "ipMode": "VIP"});
    let other = json!({"type": "example.com/Ready", "status": "True", "reason": "Because",
        "message": "", "lastTransitionTime": EARLIER, "extra": 1});
    let before = status(json!([host, entry("10.87.2.50"), foreign]), json!([other, allocated("10.87.2.50")]));
    let after = status(json!([host, foreign, entry("10.87.2.51")]), json!([other, allocated("10.87.2.51")]));
    let words = ["- Released: released 10.87.2.50", "- Allocated: load balancer at 10.87.2.51"];
    check(&wanted(&["10.87.2.51"]), before.clone(), &after, &words);
    let gone = status(json!([host, foreign]), json!([other]));
    check(&not_ours(), before, &gone, &["- Released: released 10.87.2.50"]);
}

#[test]
fn an_entry_that_the_condition_does_not_name_is_never_deleted() {
    let before = json!({"loadBalancer": {"ingress": [entry("10.87.2.60")]}});
    // Neither by a Service that is not kvip's, ...
    let live = object(service(before.clone()));
    assert_eq!(step(&not_ours(), &live, NOW.parse().unwrap()), Step::Nothing);
    // ... nor by a refusal, whose text names the address, nor for a message that is no list.
    let mut wanted = refused(&[]);
    wanted.verdict = Verdict::Refused { reason: "Taken".into(), text: "load balancer at 10.87.2.60".into() };
    let condition = said("False", "Taken", "not served; load balancer at 10.87.2.60");
    let live = check(
        &wanted,
        before.clone(),
        &status(json!([entry("10.87.2.60")]), json!([now(condition)])),
        &["! Taken: not served; load balancer at 10.87.2.60"],
    );
    check(&not_ours(), live["status"].clone(), &before, &["- Released: no longer served by kvip"]);
    let served =
        status(json!([entry("10.87.2.60")]), json!([said("True", "Allocated", "served at 10.87.2.60")]));
    check(&not_ours(), served, &before, &["- Released: no longer served by kvip"]);
}

#[test]
fn a_refusal_takes_kvips_entries_and_says_why() {
    let before = status(json!([entry("10.87.2.50")]), json!([allocated("10.87.2.50")]));
    let condition = now(said("False", "PoolExhausted", "not served; pool a has no free address"));
    let after = json!({"loadBalancer": {}, "conditions": [condition]});
    let words =
        ["- Released: released 10.87.2.50", "! PoolExhausted: not served; pool a has no free address"];
    check(&refused(&[]), before, &after, &words);
}

#[test]
fn a_part_that_is_refused_leaves_the_other_served() {
    let condition =
        now(said("False", "PoolExhausted", "load balancer at 10.87.2.50; pool a has no free address"));
    let after = status(json!([entry("10.87.2.50")]), json!([condition]));
    let words = ["! PoolExhausted: load balancer at 10.87.2.50; pool a has no free address"];
    let live = check(&refused(&["10.87.2.50"]), json!({"loadBalancer": {}}), &after, &words);
    let gone = json!({"loadBalancer": {}});
    check(&not_ours(), live["status"].clone(), &gone, &["- Released: released 10.87.2.50"]);
}

#[test]
fn a_changed_mode_or_port_is_rewritten_in_place_without_an_event() {
    let foreign = json!({"ip": "192.0.2.1"});
    let before = status(json!([entry("10.87.2.50"), foreign]), json!([allocated("10.87.2.50")]));
    let mut announced = wanted(&["10.87.2.50"]);
    announced.addresses[0].mode = IpMode::Vip;
    let error = Some("kvip.io/SctpUnsupported".to_owned());
    announced.addresses[0].ports.push(Port { protocol: Protocol::Sctp, port: 81, error });
    let ports = json!([{"port": 80, "protocol": "TCP"},
        {"port": 81, "protocol": "SCTP", "error": "kvip.io/SctpUnsupported"}]);
    let entry = json!({"ip": "10.87.2.50", "ipMode": "VIP", "ports": ports});
    check(&announced, before, &status(json!([entry, foreign]), json!([allocated("10.87.2.50")])), &[]);
}

#[test]
fn an_entry_that_somebody_took_away_or_doubled_is_mended() {
    let want = wanted(&["10.87.2.50"]);
    let good = status(json!([entry("10.87.2.50")]), json!([allocated("10.87.2.50")]));
    let twice = json!([entry("10.87.2.50"), {"ip": "10.87.2.50"}]);
    check(&want, status(twice, json!([allocated("10.87.2.50")])), &good, &[]);
    check(&want, json!({"conditions": [allocated("10.87.2.50")]}), &good, &[]);
}

#[test]
fn a_new_generation_is_observed_without_an_event() {
    let mut old = allocated("10.87.2.50");
    old["observedGeneration"] = 2.into();
    let after = status(json!([entry("10.87.2.50")]), json!([allocated("10.87.2.50")]));
    check(&wanted(&["10.87.2.50"]), status(json!([entry("10.87.2.50")]), json!([old])), &after, &[]);
}

#[test]
fn a_service_without_a_load_balancer_gets_the_condition_alone() {
    let want = Wanted { kind: Kind::Other, ingress: false, ..wanted(&["10.87.2.50"]) };
    let mut live = service(json!({"loadBalancer": {}}));
    live["spec"] = json!({"type": "ClusterIP"});
    let Step::Patch { body, words } = step(&want, &object(live), NOW.parse().unwrap()) else {
        panic!("a patch")
    };
    let condition = now(said("True", "Allocated", "served at 10.87.2.50"));
    assert_eq!(body["status"], json!({"conditions": [condition]}));
    assert_eq!(words, [Word::normal("Allocated", "served at 10.87.2.50")]);
}

#[test]
fn another_object_type_or_class_is_left_alone() {
    let change = |pointer: &str, value: Value| {
        let mut live = service(json!({}));
        *live.pointer_mut(pointer).unwrap() = value;
        step(&wanted(&["10.87.2.50"]), &object(live), NOW.parse().unwrap())
    };
    assert_eq!(change("/metadata/uid", "u2".into()), Step::Another);
    assert_eq!(change("/spec/loadBalancerClass", "example.com/other".into()), Step::Another);
    assert_eq!(change("/spec/loadBalancerClass", Value::Null), Step::Another);
    assert_eq!(change("/spec/type", "ClusterIP".into()), Step::Another);
    assert_eq!(change("/spec", "nonsense".into()), Step::Another);
    assert!(matches!(change("/spec/loadBalancerClass", "kvip.io/kvip".into()), Step::Patch { .. }));
}

#[test]
fn a_server_that_drops_the_mode_is_noticed() {
    let mut live = service(status(json!([entry("10.87.2.50")]), json!([allocated("10.87.2.50")])));
    assert!(was_kept(&wanted(&["10.87.2.50"]), &object(live.clone())));
    live["status"]["loadBalancer"]["ingress"][0].as_object_mut().unwrap().remove("ipMode");
    assert!(!was_kept(&wanted(&["10.87.2.50"]), &object(live.clone())));
    let mut announced = wanted(&["10.87.2.50"]);
    announced.addresses[0].mode = IpMode::Vip;
    assert!(was_kept(&announced, &object(live)), "without a mode it means what is wanted");
}

#[test]
fn texts_are_cut_between_characters() {
    assert_eq!(
        [shortened("aä", 2), shortened("aä", 3), shortened("aä", 9), shortened("", 0)],
        ["a", "aä", "aä", ""]
    );
}

fn ips() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1_u8..6, 0..4)
}

proptest! {
    #[test]
    fn whatever_is_there_only_what_kvip_named_or_wants_is_changed(
        there in prop::collection::vec((0_u8..6, any::<bool>()), 0..6),
        named in ips(),
        want in ips(),
        verdict in 0_usize..3,
    ) {
        let ip = |n: &u8| format!("10.87.2.{n}");
        let list: Vec<Value> = there
            .iter()
            .map(|(n, full)| match (n, full) {
                (0, _) => json!({"hostname": "lb.example"}),
                (n, true) => entry(&ip(n)),
                (n, false) => json!({"ip": ip(n), "odd": 1}),
            })
            .collect();
        let named: BTreeSet<String> = named.iter().map(ip).collect();
        let want: BTreeSet<String> = want.iter().map(ip).collect();
        let message = format!("load balancer at {}", named.iter().cloned().collect::<Vec<_>>().join(", "));
        let mut live = service(status(list.into(), json!([said("True", "Allocated", &message)])));
        let ips: Vec<&str> = want.iter().map(String::as_str).collect();
        let wanted = [wanted(&ips), refused(&ips), not_ours()][verdict].clone();
        let want = if verdict == 2 { BTreeSet::new() } else { want };
        let foreign = |live: &Value| -> (Vec<Value>, Vec<Value>) {
            let all = live["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
            let ours = |entry: &Value| {
                entry["ip"].as_str().is_some_and(|ip| named.contains(ip) || want.contains(ip))
            };
            all.into_iter().partition(|entry| !ours(entry))
        };
        let before = foreign(&live).0;
        if let Step::Patch { body, .. } = step(&wanted, &object(live.clone()), NOW.parse().unwrap()) {
            merge(&mut live, &body);
        }
        let (after, kvips) = foreign(&live);
        prop_assert_eq!(before, after);
        let kvips: Vec<String> = kvips.iter().map(|entry| entry["ip"].as_str().unwrap().to_owned()).collect();
        prop_assert_eq!(kvips.len(), want.len());
        prop_assert_eq!(kvips.into_iter().collect::<BTreeSet<_>>(), want);
        prop_assert_eq!(step(&wanted, &object(live), NOW.parse().unwrap()), Step::Nothing);
    }
}
