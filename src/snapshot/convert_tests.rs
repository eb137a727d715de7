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
    assert_eq!(value.selector.as_ref().unwrap()["app"], "nginx");
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
    assert_eq!((value.affinity, value.selector.clone()), (Some(Duration::from_secs(60)), None));
    assert_eq!(service_of(json!({"sessionAffinity": "None"})).value.unwrap().affinity, None);
}

#[test]
fn slices_conditions_have_the_apis_defaults() {
    let check = |conditions: Value, want: (bool, bool, bool)| {
        let rest = json!({"endpoints": [{"addresses": ["10.2.0.5"], "conditions": conditions}]});
        let got = slice_of("web", &rest).value.unwrap().endpoints[0].clone();
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
    let _ = namespace(&core::Namespace::default());
    let _ = settings(&core::ConfigMap::default());
    let _ = service_cidr(&networking::ServiceCIDR::default());
    assert!(vip_map(&core::ConfigMap::default()).is_empty());
}

fn whole_service(object: &Value) -> Service {
    let object = serde_json::from_value(object.clone()).unwrap();
    service(&object).value.unwrap().as_ref().clone()
}

#[test]
fn services_of_type_load_balancer_say_class_address_and_what_they_have() {
    let check = |spec: Value, status: Value, want: Option<LoadBalancer>| {
        assert_eq!(whole_service(&json!({"spec": spec, "status": status})).load_balancer, want, "{spec}");
    };
    let ingress =
        |ip: &str, mode: Option<&str>| Ingress { ip: ip.into(), mode: mode.map(Into::into), ports: vec![] };
    let none = json!({});
    check(json!({"type": "LoadBalancer"}), none.clone(), Some(LoadBalancer::default()));
    check(
        json!({"type": "LoadBalancer", "loadBalancerClass": "kvip.io/kvip", "loadBalancerIP": "10.87.2.50"}),
        json!({"loadBalancer": {"ingress": [{"ip": "10.87.2.50", "ipMode": "Proxy"},
            {"hostname": "lb.example.org"}, {"ip": "fd00::50"}]}}),
        Some(LoadBalancer {
            class: Some("kvip.io/kvip".into()),
            address: Some("10.87.2.50".into()),
            ingress: vec![ingress("10.87.2.50", Some("Proxy")), ingress("", None), ingress("fd00::50", None)],
        }),
    );
    let empty_address = json!({"type": "LoadBalancer", "loadBalancerIP": ""});
    check(empty_address, none.clone(), Some(LoadBalancer::default()));
    // What an earlier type left behind is not a load balancer's.
    let had = json!({"loadBalancer": {"ingress": [{"ip": "10.87.2.50"}]}});
    check(json!({"type": "ClusterIP", "loadBalancerClass": "kvip.io/kvip"}), had, None);
    check(json!({}), none, None);
}

#[test]
fn services_families_and_their_policy() {
    let check = |spec: Value, families: &[Family], policy: FamilyPolicy| {
        let got = service_of(spec).value.unwrap();
        assert_eq!((got.families.as_slice(), got.family_policy), (families, policy));
    };
    check(json!({}), &[], FamilyPolicy::SingleStack);
    check(
        json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack",
            "clusterIPs": ["fd00:96::9", "10.96.0.9"]}),
        &[Family::V6, Family::V4],
        FamilyPolicy::RequireDualStack,
    );
    let prefers = json!({"ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack"});
    check(prefers, &[Family::V4], FamilyPolicy::PreferDualStack);
    let unknown = json!({"ipFamilies": ["IPv5", "IPv4"], "ipFamilyPolicy": "Other"});
    check(unknown, &[Family::V4], FamilyPolicy::SingleStack);
}

#[test]
fn services_external_addresses_and_source_ranges() {
    let got = service_of(json!({
        "externalIPs": ["192.0.2.7", "2001:db8::7", "192.0.2.300"],
        "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "nonsense"]
    }));
    let value = got.value.unwrap();
    let want: Vec<IpAddr> = ["192.0.2.7", "2001:db8::7"].map(|a| a.parse().unwrap()).into();
    assert_eq!(value.external_ips, want);
    assert_eq!(value.source_ranges, [" 10.0.0.0/8 ", "nonsense"], "as written, to fail closed");
    assert_eq!(
        texts(&got.skipped),
        ["Service default/nginx: externalIPs \"192.0.2.300\" cannot be read and is left out"]
    );
}

#[test]
fn services_health_check_ports() {
    let check = |spec: Value, want: Option<u16>| {
        assert_eq!(service_of(spec).value.unwrap().health_check_node_port, want);
    };
    check(json!({}), None);
    check(json!({"healthCheckNodePort": 0}), None);
    check(json!({"healthCheckNodePort": 30123}), Some(30123));
    check(json!({"healthCheckNodePort": 70000}), None);
}

#[test]
fn services_metadata() {
    let object = json!({"metadata": {
        "namespace": "shop", "name": "web", "uid": "u-1",
        "creationTimestamp": "1970-01-02T00:00:00Z", "deletionTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"tier": "gold"},
        "annotations": {"kvip.io/vips": "10.87.2.50", "metallb.io/loadBalancerIPs": "10.87.2.51",
            "metallb.universe.tf/address-pool": "lan", "kube-vip.io/loadbalancerIPs": "10.87.2.52",
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "kvip.iox/other": ""}
    }});
    let got = whole_service(&object);
    assert_eq!((got.uid.as_str(), got.created, got.deleting), ("u-1", 86_400, true));
    assert_eq!(got.labels["tier"], "gold");
    let keys: Vec<_> = got.annotations.keys().map(String::as_str).collect();
    let want = ["kube-vip.io/loadbalancerIPs", "kvip.io/vips", "metallb.io/loadBalancerIPs"];
    assert_eq!(keys, [&want[..], &["metallb.universe.tf/address-pool"]].concat());
    let plain = whole_service(&json!({"metadata": {"name": "web"}}));
    assert_eq!((plain.created, plain.deleting, plain.labels.len()), (0, false, 0));
}

#[test]
fn slices_hints() {
    let rest = json!({"endpoints": [
        {"addresses": ["10.2.0.5"], "zone": "a", "hints": {"forZones": [{"name": "a"}, {"name": "b"}]}},
        {"addresses": ["10.2.0.6"], "hints": {"forNodes": [{"name": "node-a"}]}},
        {"addresses": ["10.2.0.7"], "hints": {}}
    ]});
    let got = slice_of("web", &rest).value.unwrap();
    let hints: Vec<_> =
        got.endpoints.iter().map(|e| (e.for_zones.join(","), e.for_nodes.join(","))).collect();
    let want = [("a,b", ""), ("", "node-a"), ("", "")];
    assert_eq!(hints, want.map(|(zones, nodes)| (zones.to_owned(), nodes.to_owned())));
}

#[test]
fn namespaces_and_service_ranges() {
    let object = json!({"metadata": {"name": "shop", "labels": {"team": "shop"}}});
    let got = namespace(&serde_json::from_value(object).unwrap());
    assert_eq!((got.key.as_str(), got.value.unwrap()["team"].as_str()), ("shop", "shop"));
    let object = json!({"metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/108", "10.97.0.0"]}});
    let got = service_cidr(&serde_json::from_value(object).unwrap());
    let want: Vec<IpNet> = ["10.96.0.0/16", "fd00:96::/108"].map(|r| r.parse().unwrap()).into();
    assert_eq!(*got.value.unwrap(), want);
    assert_eq!(
        texts(&got.skipped),
        ["ServiceCIDR kubernetes: cidrs \"10.97.0.0\" cannot be read and is left out"]
    );
}

#[test]
fn the_settings_text_is_one_key_of_the_config_map() {
    let check = |data: Value, want: Option<&str>, said: usize| {
        let object = json!({"metadata": {"namespace": "kvip-system", "name": "kvip"}, "data": data});
        let got = settings(&serde_json::from_value(object).unwrap());
        assert_eq!((got.value.as_ref().map(|text| text.as_str()), got.skipped.len()), (want, said));
        assert_eq!(got.key, ObjectKey::new("kvip-system", "kvip"));
    };
    check(json!({"config.toml": "[asking]"}), Some("[asking]"), 0);
    check(json!({"config.toml": ""}), Some(""), 0);
    check(json!({"config.yaml": "a: b"}), None, 1);
    check(json!(null), None, 1);
}

#[test]
fn services_keep_kvips_own_condition_and_the_entries_with_their_ports() {
    let condition = |generation: i64| {
        json!({"type": CONDITION, "status": "True", "reason": "Allocated", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation})
    };
    let other = json!({"type": "example.com/Ready", "status": "False", "reason": "No", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let check = |generation: i64, observed: bool| {
        let ports =
            json!([{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "SCTP", "error": "kvip.io/No"}]);
        let object = json!({"metadata": {"name": "web", "generation": 3}, "spec": {"type": "LoadBalancer"},
            "status": {"conditions": [other, condition(generation)],
                "loadBalancer": {"ingress": [{"hostname": "h"}, {"ip": "10.87.2.50", "ipMode": "Proxy", "ports": ports}]}}});
        let got = service(&serde_json::from_value(object).unwrap()).value.unwrap();
        let want =
            Condition { status: "True".into(), reason: "Allocated".into(), message: "m".into(), observed };
        assert_eq!(got.condition.as_ref(), Some(&want));
        let ingress = &got.load_balancer.as_ref().unwrap().ingress;
        assert_eq!((ingress[0].ip.as_str(), ingress[1].mode.as_deref()), ("", Some("Proxy")));
        let port = |port, protocol: &str, error: Option<&str>| IngressPort {
            port,
            protocol: protocol.into(),
            error: error.map(str::to_owned),
        };
        assert_eq!(ingress[1].ports, [port(80, "TCP", None), port(81, "SCTP", Some("kvip.io/No"))]);
    };
    check(3, true);
    check(2, false);
    assert_eq!(service_of(json!({})).value.unwrap().condition, None);
}

#[test]
fn services_words_that_an_api_server_would_refuse_are_told() {
    let check = |spec: Value, want: &[&str]| {
        let want: Vec<_> = want.iter().map(|text| format!("Service default/nginx: {text}")).collect();
        assert_eq!(texts(&service_of(spec).skipped), want);
    };
    check(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "None"}), &[]);
    check(json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"], "type": ""}), &[]);
    check(
        json!({"type": "loadbalancer", "externalTrafficPolicy": "local", "sessionAffinity": "clientip",
            "ipFamilyPolicy": "DualStack", "ipFamilies": ["ipv4"]}),
        &[
            "type \"loadbalancer\" is unknown and is left out: one of ClusterIP, NodePort, LoadBalancer, ExternalName",
            "externalTrafficPolicy \"local\" is unknown and is left out: one of Cluster, Local",
            "sessionAffinity \"clientip\" is unknown and is left out: one of None, ClientIP",
            "ipFamilyPolicy \"DualStack\" is unknown and is left out: one of SingleStack, PreferDualStack, RequireDualStack",
            "ipFamilies \"ipv4\" is unknown and is left out: one of IPv4, IPv6",
        ],
    );
}

#[test]
fn an_empty_namespace_is_the_default_one() {
    let metadata =
        ObjectMeta { namespace: Some(String::new()), name: Some("a".into()), ..ObjectMeta::default() };
    assert_eq!(key_of(&metadata), ObjectKey::new("default", "a"));
}
