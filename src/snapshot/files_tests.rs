//! Folders of small files and what is read of them.

use super::*;
use crate::config::Settings;
use crate::model::ObjectKey;

fn settings() -> Cluster {
    Settings::standard(Vec::new()).cluster
}

/// What these files say, and all that is said of them.
fn loaded(files: &[(&str, &str)]) -> (Snapshot, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let (snapshot, findings) = load(dir.path(), &settings()).unwrap();
    let prefix = format!("{}/", dir.path().display());
    let said = findings.iter().chain(snapshot.skipped.values().flatten());
    let said = said.map(|finding| finding.to_string().replace(&prefix, "")).collect();
    (snapshot, said)
}

#[test]
fn documents_lists_and_json_make_one_snapshot() {
    let yaml = "\
# the tutorial
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  ports: [{port: 80}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: node-a}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: vip-configmap}, data: {10.87.2.50: default/nginx}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: other}, data: {10.87.2.51: default/nginx}}
---
";
    let json = r#"{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","items":[{"metadata":
        {"name":"nginx-1","labels":{"kubernetes.io/service-name":"nginx"}},"addressType":"IPv4",
        "endpoints":[{"addresses":["10.2.0.5"]}],"ports":[{"port":80}]}]}"#;
    let space = r#"{"kind":"Namespace","metadata":{"name":"kube-system","uid":"u-1"}}"#;
    let (snapshot, findings) =
        loaded(&[("a.yaml", yaml), ("b.json", json), ("c.yml", space), ("notes.txt", ": not read")]);
    assert_eq!(findings, [""; 0]);
    assert_eq!(snapshot.cluster.as_deref(), Some("u-1"));
    assert_eq!(snapshot.services[&ObjectKey::new("default", "nginx")].ports[0].port, 80);
    assert_eq!(snapshot.slices[&ObjectKey::new("default", "nginx-1")].endpoints.len(), 1);
    assert!(snapshot.nodes.contains_key("node-a"));
    assert_eq!(
        snapshot.vip_map.unwrap(),
        [("10.87.2.50".to_owned(), "default/nginx".to_owned())].into_iter().collect()
    );
}

#[test]
fn the_parts_that_pools_and_tenants_need_are_read_too() {
    let users = r#"[{"service":"default/web","uid":"u-1","ports":[["tcp",80]]}]"#;
    let meta = |name: &str| {
        format!(
            "name: '{name}', labels: {{ipaddress.kubernetes.io/managed-by: kvip}}, annotations: {{kvip.io/services: '{users}'}}"
        )
    };
    let yaml = format!(
        "\
kind: Namespace
metadata: {{name: shop, labels: {{team: shop}}}}
---
kind: ServiceCIDR
metadata: {{name: kubernetes}}
spec: {{cidrs: [10.96.0.0/16, 'fd00:96::/108']}}
---
kind: ConfigMap
metadata: {{name: kvip, namespace: kvip-system}}
data: {{config.toml: '[asking]'}}
---
kind: IPAddress
metadata: {{{}}}
spec: {{parentRef: {{resource: services, namespace: default, name: web}}}}
---
kind: Lease
metadata: {{namespace: kvip-system, {}}}
",
        meta("10.87.2.50"),
        meta("kvip-0a570233"),
    );
    let (snapshot, findings) = loaded(&[("x.yaml", &yaml)]);
    assert_eq!(findings, [""; 0]);
    assert_eq!((snapshot.cluster, snapshot.vip_map), (None, None));
    assert_eq!(snapshot.namespaces["shop"]["team"], "shop");
    assert_eq!(snapshot.service_cidrs["kubernetes"].len(), 2);
    assert_eq!(snapshot.cluster_settings.as_deref(), Some("[asking]"));
    let claims: Vec<_> = snapshot.claims.objects().map(|claim| claim.address.to_string()).collect();
    assert_eq!(claims, ["10.87.2.50", "10.87.2.51"]);
}

#[test]
fn what_cannot_be_read_is_a_finding_with_file_and_line_and_the_rest_loads() {
    let yaml = "\
kind: Service
metadata: {name: good}
---
kind: Service
metadata:
  name: [broken
---
a: b
---
kind: Service
metadata: {name: typed}
spec: {ports: [{port: eighty}]}
---
kind: Node
---
just text
---
kind: Node
metadata: {name: last}
";
    let (snapshot, findings) = loaded(&[("x.yaml", yaml)]);
    assert_eq!(snapshot.services.len(), 1);
    assert!(snapshot.nodes.contains_key("last"));
    let want = [
        ("x.yaml:6:9: ", "not YAML or JSON: unclosed bracket"),
        ("x.yaml:8:", "no kind"),
        ("x.yaml:10:", "Service typed: spec.ports[0].port = \"eighty\": a number"),
        ("x.yaml:14:", "Node without metadata.name"),
        ("x.yaml:16:", "no kind"),
    ];
    assert_eq!(findings.len(), want.len(), "{findings:#?}");
    for (found, (place, text)) in findings.iter().zip(want) {
        assert!(found.starts_with(place) && found.contains(text), "{found}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let error = load(Path::new("/nowhere/at-all"), &settings()).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the folder of manifests /nowhere/at-all: No such"));
}

/// This file alone: what is said of it, with the names of the Services and the VIPs that are read.
#[track_caller]
fn check(yaml: &str, said: &[&str], read: &[&str]) {
    let (snapshot, findings) = loaded(&[("x.yaml", yaml)]);
    assert_eq!(findings, said, "{yaml}");
    let services = snapshot.services.keys().map(ToString::to_string);
    let found: Vec<_> =
        services.chain(snapshot.vip_map.iter().flatten().map(|(vip, _)| vip.clone())).collect();
    assert_eq!(found, read, "{yaml}");
}

#[test]
fn what_is_no_text_costs_its_entry_alone() {
    check(
        "{kind: ConfigMap, metadata: {name: vip-configmap}, data: {10.87.2.50: default/nginx, 10.87.2.51: }}",
        &[
            "x.yaml:1: ConfigMap vip-configmap: key \"10.87.2.51\" is empty: write \"\" for a VIP that only floats",
        ],
        &["10.87.2.50"],
    );
    check(
        "{kind: Service, metadata: {name: web, annotations: {kvip.io/thresholds: 100, kvip.io/one-packet: true}, labels: {team: , a: [b]}}}",
        &[
            "x.yaml:1: Service web: annotation \"kvip.io/one-packet\" = true is no text: put it in quotes",
            "x.yaml:1: Service web: annotation \"kvip.io/thresholds\" = 100 is no text: put it in quotes",
            "x.yaml:1: Service web: label \"a\" is left out: it is to be one line of text",
            "x.yaml:1: Service web: label \"team\" is empty: write \"\" or leave it out",
        ],
        &["default/web"],
    );
    check(
        "{kind: Service, metadata: {name: 5}}",
        &["x.yaml:1: Service: metadata.name = 5 is no text: put it in quotes"],
        &[],
    );
}

#[test]
fn a_map_of_vips_that_cannot_be_read_is_there_all_the_same() {
    let (snapshot, findings) =
        loaded(&[("x.yaml", "{kind: ConfigMap, metadata: {name: vip-configmap}, data: default/nginx}")]);
    assert_eq!((snapshot.vip_map.map(|map| map.len()), findings.len()), (Some(0), 1));
}

#[test]
fn a_map_of_vips_that_is_no_yaml_is_there_too_and_does_not_hide_another() {
    let broken =
        "kind: ConfigMap\nmetadata: {name: vip-configmap}\ndata:\n  10.87.2.51: a/b\n  10.87.2.51: a/c\n";
    let (snapshot, findings) = loaded(&[("x.yaml", broken)]);
    assert_eq!((snapshot.vip_map.map(|map| map.len()), findings.len()), (Some(0), 1));
    let map = "{kind: ConfigMap, metadata: {name: vip-configmap}, data: {10.87.2.50: ''}}";
    for wrong in [broken, "{kind: ConfigMap, metadata: {name: vip-configmap}, data: []}"] {
        let (snapshot, findings) = loaded(&[("a.yaml", map), ("b.yaml", wrong)]);
        assert_eq!((snapshot.vip_map.map(|map| map.len()), findings.len()), (Some(1), 1), "{wrong}");
    }
    let (snapshot, _) = loaded(&[("x.yaml", "kind: ConfigMap\nmetadata: {name: other, name: other}\n")]);
    assert_eq!(snapshot.vip_map, None);
}

#[test]
fn fields_that_nobody_knows_are_told_and_the_object_is_read() {
    check(
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {loadBalancerSourceRange: [10.0.0.0/8], \
         ports: [{port: 80, protcol: UDP}]}}",
        &[
            "x.yaml:1: Service web: spec.loadBalancerSourceRange is no field of it; did you mean loadBalancerSourceRanges?",
            "x.yaml:1: Service web: spec.ports[0].protcol is no field of it; did you mean protocol?",
        ],
        &["default/web"],
    );
    check(
        "{kind: ConfigMap, metadata: {name: vip-configmap}, Data: {10.87.2.50: ''}, binaryData: {10.87.2.51: ''}}",
        &[
            "x.yaml:1: ConfigMap vip-configmap: binaryData does nothing: VIPs are read under data",
            "x.yaml:1: ConfigMap vip-configmap: Data is no field of it; did you mean data?",
        ],
        &[],
    );
}

#[test]
fn objects_of_others_kinds_are_passed_over_and_kubernetes_own_are_not() {
    for other in [
        "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: web}, spec: {template: {}}}",
        "{apiVersion: ipam.cluster.x-k8s.io/v1beta1, kind: IPAddress, metadata: {name: web}}",
        "{apiVersion: management.cattle.io/v3, kind: Nodes, metadata: {name: web}}",
        "{apiVersion: serving.knative.dev/v1, kind: ServiceList, items: [{metadata: {name: web}}]}",
    ] {
        check(other, &[], &[]);
    }
    check(
        "{apiVersion: apps/v1, kind: Service, metadata: {name: web}}",
        &["x.yaml:1: Service web: apiVersion = \"apps/v1\": write v1"],
        &[],
    );
    check("{kind: ServiceList, items: [{metadata: {name: web}}]}", &[], &["default/web"]);
}

/// What `kubectl get -o yaml` prints.
const PRINTED: &str = "\
apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {\"apiVersion\":\"v1\",\"kind\":\"Service\"}
    creationTimestamp: \"2026-01-01T00:00:00Z\"
    managedFields:
    - apiVersion: v1
      fieldsType: FieldsV1
      fieldsV1: {\"f:spec\": {\"f:ports\": {\".\": {}, 'k:{\"port\":80,\"protocol\":\"TCP\"}': {}}}}
      manager: kubectl
      operation: Update
      time: \"2026-01-01T00:00:00Z\"
    name: web
    namespace: default
    resourceVersion: \"1\"
    uid: 5f0e3a52-0c51-4f63-9d0c-3a3f4e2b7a10
  spec:
    allocateLoadBalancerNodePorts: true
    clusterIP: 10.96.0.10
    clusterIPs: [10.96.0.10]
    externalTrafficPolicy: Cluster
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    ports: [{name: http, nodePort: 30080, port: 80, protocol: TCP, targetPort: http}]
    selector: {app: web}
    sessionAffinity: ClientIP
    sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
    type: LoadBalancer
  status: {loadBalancer: {ingress: [{ip: 10.87.2.50, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}]}}
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses: [10.2.4.10]
    conditions: {ready: true, serving: true, terminating: false}
    hints: {forNodes: [{name: node-a}], forZones: [{name: zone-a}]}
    nodeName: node-a
    targetRef: {kind: Pod, name: web-0, namespace: default, uid: u}
    zone: zone-a
  kind: EndpointSlice
  metadata:
    generateName: web-
    generation: 3
    labels: {kubernetes.io/service-name: web}
    name: web-abcde
    ownerReferences: [{apiVersion: v1, blockOwnerDeletion: true, controller: true, kind: Service, name: web, uid: u}]
  ports: [{appProtocol: http, name: http, port: 8080, protocol: TCP}]
- apiVersion: v1
  kind: Node
  metadata: {name: node-a}
  spec:
    podCIDR: 10.2.4.0/24
    podCIDRs: [10.2.4.0/24]
    providerID: x://y
    taints: [{effect: NoSchedule, key: a, timeAdded: \"2026-01-01T00:00:00Z\"}]
  status:
    addresses: [{address: 10.87.2.4, type: InternalIP}]
    allocatable: {cpu: \"4\", memory: 1Gi}
    capacity: {cpu: \"4\", memory: 1Gi}
    conditions: [{lastHeartbeatTime: \"2026-01-01T00:00:00Z\", lastTransitionTime: \"2026-01-01T00:00:00Z\", \
        message: m, reason: r, status: \"True\", type: Ready}]
    daemonEndpoints: {kubeletEndpoint: {Port: 10250}}
    features: {supplementalGroupsPolicy: true}
    images: [{names: [a], sizeBytes: 1}]
    nodeInfo: {architecture: amd64, bootID: b, containerRuntimeVersion: c, kernelVersion: k, kubeProxyVersion: \"\", \
        kubeletVersion: v, machineID: m, operatingSystem: linux, osImage: o, swap: {capacity: 1}, systemUUID: s}
    runtimeHandlers: [{features: {recursiveReadOnlyMounts: true, userNamespaces: true}, name: runc}]
kind: List
metadata:
  resourceVersion: \"\"
";

#[test]
fn of_what_a_cluster_prints_nothing_is_said() {
    let (snapshot, findings) = loaded(&[("x.yaml", PRINTED)]);
    assert_eq!(findings, [""; 0]);
    assert_eq!((snapshot.services.len(), snapshot.slices.len(), snapshot.nodes.len()), (1, 1, 1));
}

#[test]
fn how_much_is_read_goes_by_the_length_and_what_is_made_of_little_is_refused() {
    let web = "{kind: Service, metadata: {name: web}}\n---\n";
    let numbers = "0,".repeat(300_000);
    let (snapshot, findings) =
        loaded(&[("x.yaml", &format!("{web}{{kind: Other, numbers: [{numbers}]}}\n"))]);
    assert_eq!((snapshot.services.len(), findings), (1, Vec::new()));
    let deep = format!("{web}{}{}\n", "[".repeat(70), "]".repeat(70));
    check(
        &deep,
        &["x.yaml:3:65: too large or too deeply nested to be read: write it as several documents"],
        &["default/web"],
    );
}

#[test]
fn what_is_no_yaml_has_one_place_and_no_advice_for_programmers() {
    check(
        "kind: Service\nmetadata:\n  name: a\n---\nkind: Service\nmetadata:\n  name: b\n  name: c\n",
        &["x.yaml:8:3: not YAML or JSON: duplicate key \"name\""],
        &["default/a"],
    );
    check("kind: [\n", &["x.yaml:1:7: not YAML or JSON: unclosed bracket '['"], &[]);
    check("a: {b: c\n  d\n", &["x.yaml:1:4: not YAML or JSON: unclosed bracket '{'"], &[]);
}

#[test]
fn manifests_that_come_to_nothing_say_so() {
    for (kind, meant) in
        [("service", "Service"), ("Serivce", "Service"), ("Configmap", "ConfigMap"), ("Nodes", "Node")]
    {
        let said = format!("x.yaml:1: {kind} web is of no known kind; did you mean {meant}?");
        check(&format!("{{kind: {kind}, metadata: {{name: web}}}}"), &[&said], &[]);
    }
    for kind in
        ["Deployment", "Role", "Pod", "Device", "Secret", "ServiceAccount", "Ingress", "ServiceMonitor"]
    {
        check(&format!("{{kind: {kind}, metadata: {{name: web}}}}"), &[], &[]);
    }
    check(
        "{kind: Endpoints, metadata: {name: web}}",
        &["x.yaml:1: Endpoints web does nothing: a folder mirrors none, so write an EndpointSlice"],
        &[],
    );
    let slice = "{kind: EndpointSlice, metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, endpoints: []}";
    check(&format!("{slice}\n---\n{{kind: Endpoints, metadata: {{name: web}}}}"), &[], &[]);
    check(
        "{kind: EndpointSlice, metadata: {name: web-1}, addressType: IPv4, endpoints: []}",
        &[
            "x.yaml:1: EndpointSlice web-1 does nothing: no label kubernetes.io/service-name names its Service",
        ],
        &[],
    );
}

#[test]
fn a_file_with_what_comes_to_nothing_is_read_wholly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    let slice = "{kind: EndpointSlice, metadata: {name: web-1}, addressType: IPv4, endpoints: []}";
    fs::write(&path, format!("{{kind: Endpoints, metadata: {{name: web}}}}\n---\n{slice}\n---\n{slice}\n"))
        .unwrap();
    let contents = read(&path, &settings());
    assert_eq!((contents.findings.len(), contents.notes.len(), contents.endpoints.len()), (0, 3, 1));
}

#[test]
fn what_is_written_twice_is_told_with_both_places() {
    let web = "{kind: Service, metadata: {name: web}}";
    let same = "{kind: Service, metadata: {name: web, namespace: ''}}";
    check(
        &format!("{web}\n---\n{same}\n---\n{{kind: Service, metadata: {{name: web, namespace: shop}}}}\n"),
        &["x.yaml:3: Service default/web is written twice: what x.yaml:1 says of it does not count"],
        &["default/web", "shop/web"],
    );
    let (snapshot, findings) = loaded(&[("a.yaml", web), ("b.yaml", same)]);
    assert_eq!(
        findings,
        ["b.yaml:1: Service default/web is written twice: what a.yaml:1 says of it does not count"]
    );
    assert_eq!(snapshot.services.len(), 1);
}
