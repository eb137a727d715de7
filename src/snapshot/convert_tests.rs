//! Tables of small objects and what they become.

use serde_json::{Value, json};

use super::*;

fn service_of(spec: Value) -> Converted<ObjectKey, Service> {
    let object = json!({"metadata": {"namespace": "default", "name": "nginx", "uid": "u"}, "spec": spec});
    service(&serde_json::from_value(object).unwrap())
}

fn slice_of(label: &str, rest: &Value) -> Converted<ObjectKey, EndpointSlice> {
    let mut object =
        json!({"addressType": "IPv4", "endpoints": [], "metadata": {"namespace": "shop", "name": "web-1"}});
    object["metadata"]["labels"] = json!({ SERVICE_LABEL: label });
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    slice(&serde_json::from_value(object).unwrap())
}

fn texts(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn services_kinds() {
    let check = |spec: Value, want: ServiceKind| assert_eq!(service_of(spec).value.unwrap().kind, want);
    check(json!({"type": "ClusterIP", "clusterIP": "10.96.0.9"}), ServiceKind::Balanced);
    check(json!({"type": "NodePort", "clusterIP": "10.96.0.9"}), ServiceKind::Balanced);
    check(json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9"}), ServiceKind::Balanced);
    check(json!({"clusterIP": "None"}), ServiceKind::Headless);
    check(json!({"type": "ExternalName", "externalName": "example.org"}), ServiceKind::ExternalName);
    check(json!({}), ServiceKind::Balanced);
}

#[test]
fn services_cluster_ips_leave_out_none_and_what_is_no_address() {
    let check = |spec: Value, want: &[&str], skipped: usize| {
        let got = service_of(spec);
        let addresses: Vec<_> = got.value.unwrap().cluster_ips.iter().map(ToString::to_string).collect();
        assert_eq!((addresses, got.skipped.len()), (want.iter().map(ToString::to_string).collect(), skipped));
    };
    check(json!({"clusterIP": "10.96.0.9"}), &["10.96.0.9"], 0);
    check(
        json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"]}),
        &["10.96.0.9", "fd00:96::9"],
        0,
    );
    check(json!({"clusterIP": "None", "clusterIPs": ["None"]}), &[], 0);
    check(json!({"clusterIP": ""}), &[], 0);
    check(json!({"clusterIP": "010.096.000.009"}), &["10.96.0.9"], 0);
    check(json!({"clusterIPs": ["10.96.0.300", "10.96.0.1"]}), &["10.96.0.1"], 1);
}

#[test]
fn services_ports_affinity_policy_and_selector() {
    let got = service_of(json!({
        "ports": [{"name": "dns", "protocol": "UDP", "port": 53}, {"port": 80}, {"port": 70000},
                  {"port": 9, "protocol": "QUIC"}],
        "selector": {"app": "nginx"}, "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"
    }));
    let value = got.value.unwrap();
    assert_eq!(
        value.ports,
        [
            ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53 },
            ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80 }
        ]
    );
    assert_eq!(value.selector.unwrap()["app"], "nginx");
    assert!(value.local_policy);
    assert_eq!(value.affinity, Some(AFFINITY_DEFAULT));
    assert_eq!(
        texts(&got.skipped),
        [
            "Service default/nginx: port \"70000\" cannot be read and is left out",
            "Service default/nginx: port protocol \"QUIC\": TCP, UDP or SCTP"
        ]
    );
    let timed = json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "selector": {}});
    let value = service_of(timed).value.unwrap();
    assert_eq!((value.affinity, value.selector), (Some(Duration::from_secs(60)), None));
    assert_eq!(service_of(json!({"sessionAffinity": "None"})).value.unwrap().affinity, None);
}

#[test]
fn slices_conditions_have_the_apis_defaults() {
    let check = |conditions: Value, want: (bool, bool, bool)| {
        let rest = json!({"endpoints": [{"addresses": ["10.2.0.5"], "conditions": conditions}]});
        let got = slice_of("web", &rest).value.unwrap().endpoints.remove(0);
        assert_eq!((got.ready, got.serving, got.terminating), want, "{conditions}");
    };
    check(json!(null), (true, true, false));
    check(json!({}), (true, true, false));
    check(json!({"ready": false}), (false, true, false));
    check(json!({"ready": false, "serving": false}), (false, false, false));
    check(json!({"ready": false, "serving": true, "terminating": true}), (false, true, true));
}

#[test]
fn slices_that_name_no_service_or_hold_no_addresses_have_no_value() {
    assert!(slice_of("", &json!({})).value.is_none());
    let names = slice_of("web", &json!({"addressType": "FQDN"}));
    assert!(names.value.is_none());
    assert_eq!(
        texts(&names.skipped),
        ["EndpointSlice shop/web-1: addressType FQDN: kvip balances to IPv4 and IPv6 addresses only"]
    );
}

#[test]
fn slices_ports_and_endpoints_that_cannot_be_read_leave_the_others() {
    let got = slice_of(
        "web",
        &json!({
            "addressType": "IPv6",
            "ports": [{"name": "http", "port": 8080}, {"name": "all"}, {"name": "d", "protocol": "UDP", "port": 53}],
            "endpoints": [{"addresses": ["fd00::5"], "nodeName": "node-a"}, {"addresses": []},
                          {"addresses": ["10.2.0.5"]}, {"addresses": ["fe80::1%eth0"]}]
        }),
    );
    let value = got.value.unwrap();
    assert_eq!(value.service, ObjectKey::new("shop", "web"));
    assert_eq!(value.family, Family::V6);
    assert_eq!(value.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [8080, 53]);
    assert_eq!(value.endpoints.len(), 1);
    assert_eq!(value.endpoints[0].node.as_deref(), Some("node-a"));
    assert_eq!(got.skipped.len(), 3, "{:?}", texts(&got.skipped));
}

#[test]
fn nodes() {
    let got = node(
        &serde_json::from_value(json!({
            "metadata": {"name": "node-a", "labels": {"zone": "a"}},
            "spec": {"podCIDR": "10.2.0.0/24", "podCIDRs": ["10.2.0.7/24", "fd00:2::/64", "10.2.0.0/40"]},
            "status": {"addresses": [{"type": "Hostname", "address": "node-a"},
                {"type": "InternalIP", "address": "10.87.2.4"}, {"type": "InternalIP", "address": "node-a.lan"},
                {"type": "ExternalIP", "address": "192.0.2.4"}]}
        }))
        .unwrap(),
    );
    let value = got.value.unwrap();
    assert_eq!(got.key, "node-a");
    assert_eq!(value.addresses, ["10.87.2.4".parse::<IpAddr>().unwrap()]);
    let ranges: Vec<IpNet> = ["10.2.0.0/24", "fd00:2::/64"].map(|r| r.parse().unwrap()).into();
    assert_eq!(value.pod_cidrs, ranges);
    assert_eq!(value.labels["zone"], "a");
    assert_eq!(
        texts(&got.skipped),
        [
            "Node node-a: InternalIP \"node-a.lan\" cannot be read and is left out",
            "Node node-a: podCIDRs \"10.2.0.0/40\" cannot be read and is left out"
        ]
    );
    let old = json!({"metadata": {"name": "b"}, "spec": {"podCIDR": "10.2.1.0/24"}});
    assert_eq!(node(&serde_json::from_value(old).unwrap()).value.unwrap().pod_cidrs.len(), 1);
}

#[test]
fn empty_objects_do_not_panic() {
    let _ = service(&core::Service::default());
    let _ = slice(&discovery::EndpointSlice::default());
    let _ = node(&core::Node::default());
    assert!(vip_map(&core::ConfigMap::default()).is_empty());
}
