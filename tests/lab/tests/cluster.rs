//! The lab's cluster: what tests of kvip rely on when they say kubectl.
//!
//! Real controllers act on what the kubelet stand-ins say; pods come, go and serve; parts of the control plane and
//! whole nodes fail and come back. One lab for all, as its parts build on each other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvip_lab::lab::{Lab, Options};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// Four missed renewals, a beat of the kubelet, a beat of the controller, and a slow machine.
const DEATH: Duration = Duration::from_secs(75);
const APP: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec: {containers: [{name: nginx, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: nginx}, ports: [{port: 80}]}
";
const BARE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec: {nodeName: node-b, containers: [{name: c, image: any, ports: [{containerPort: 8080}, {containerPort: 9090}]}]}
";
const READER: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [nodes], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: default}
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: readers}
"#;

#[test]
fn the_cluster_works() -> Result<()> {
    let lab = Lab::start(Options::default())?;
    deployments_serve_and_change(&lab).context("a Deployment")?;
    pods_end_and_are_replaced(&lab).context("single Pods")?;
    identities_are_limited(&lab).context("identities")?;
    the_api_server_fails_and_returns(&lab).context("a failing API server")?;
    nodes_die_and_return(&lab).context("a dying node")?;
    a_reset_leaves_nothing(&lab).context("a reset")
}

fn deployments_serve_and_change(lab: &Lab) -> Result<()> {
    lab.kubectl_with(&["apply", "-f", "-"], APP)?;
    let endpoints = serving(lab, 3)?;
    let address = endpoints[0]["addresses"][0].as_str().context("an endpoint has an address")?;
    let answer = lab.node("node-a").must(&format!("curl -sS -m 10 http://{address}/"))?;
    ensure!(answer.contains("saw"), "a pod answers: {answer}");
    lab.kubectl(&["scale", "deployment", "nginx", "--replicas=5"])?;
    serving(lab, 5)?;
    lab.kubectl(&["scale", "deployment", "nginx", "--replicas=3"])?;
    serving(lab, 3)?;
    lab.kubectl(&["rollout", "restart", "deployment", "nginx"])?;
    lab.kubectl(&["rollout", "status", "deployment", "nginx", "--timeout=55s"])?;
    serving(lab, 3).map(drop)
}

fn pods_end_and_are_replaced(lab: &Lab) -> Result<()> {
    let pod = lab.kubectl(&["get", "pods", "-l", "app=nginx", "-o", "jsonpath={.items[0].metadata.name}"])?;
    lab.kubectl(&["annotate", "pod", &pod, "lab.kvip/ready=false"])?;
    lab.wait_for("a Pod that is not ready", SOON, || {
        endpoints(lab).ok()?.iter().any(|endpoint| endpoint["conditions"]["ready"] == false).then_some(())
    })?;
    lab.kubectl(&["delete", "pod", &pod, "--timeout=55s"])?;
    serving(lab, 3)?;
    lab.kubectl_with(&["apply", "-f", "-"], BARE)?;
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/bare", "--timeout=55s"])?;
    lab.kubectl(&["delete", "pod", "bare", "--force", "--grace-period=0"])?;
    // A namesake, while the machine still has the first.
    lab.kubectl_with(&["apply", "-f", "-"], BARE)?;
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/bare", "--timeout=55s"])?;
    let address = lab.kubectl(&["get", "pod", "bare", "-o", "jsonpath={.status.podIPs[1].ip}"])?;
    lab.node("node-a").must(&format!("curl -sS -m 10 'http://[{address}]:9090/'"))?;
    lab.kubectl(&["delete", "pod", "bare", "--timeout=55s"])?;
    let left = lab.node("node-b").must("lab-pod list")?;
    ensure!(!left.contains("bare"), "it is gone from its machine: {left}");
    Ok(())
}

/// What a kubeconfig may do, by a service account's token and by a client certificate.
fn identities_are_limited(lab: &Lab) -> Result<()> {
    lab.kubectl_with(&["apply", "-f", "-"], READER)?;
    let by_token = lab.service_account_kubeconfig("default", "reader")?;
    let by_certificate = lab.certificate_kubeconfig("kvip:test", &["readers"], 1)?;
    let expired = lab.certificate_kubeconfig("kvip:late", &["readers"], 0)?;
    for (kubeconfig, verdicts) in
        [(by_token, [true, false]), (by_certificate, [true, false]), (expired, [false, false])]
    {
        let file = lab.layout().state.join("test.kubeconfig");
        std::fs::write(&file, kubeconfig)?;
        let option = format!("--kubeconfig={}", file.display());
        for (what, verdict) in ["nodes", "secrets"].into_iter().zip(verdicts) {
            let output = lab.kubectl_within(SOON, &[&option, "get", what], "")?;
            ensure!(output.ok() == verdict, "may list {what} should be {verdict}: {output}");
        }
    }
    Ok(())
}

fn the_api_server_fails_and_returns(lab: &Lab) -> Result<()> {
    lab.control("freeze", "kube-apiserver")?;
    let frozen = lab.kubectl(&["get", "nodes", "--request-timeout=1s"]);
    lab.control("thaw", "kube-apiserver")?;
    ensure!(frozen.is_err(), "a frozen API server does not answer");
    lab.control("kill", "kube-apiserver")?;
    ensure!(lab.kubectl(&["get", "nodes"]).is_err(), "a dead API server does not answer");
    lab.control("start", "kube-apiserver")?;
    lab.kubectl(&["scale", "deployment", "nginx", "--replicas=4"])?;
    serving(lab, 4)?;
    lab.kubectl(&["scale", "deployment", "nginx", "--replicas=3"])?;
    serving(lab, 3).map(drop)
}

fn nodes_die_and_return(lab: &Lab) -> Result<()> {
    let died = Instant::now();
    lab.node("node-c").kill()?;
    lab.wait_for("node-c to be called dead", DEATH, || (ready_nodes(lab).ok()? == 2).then_some(()))?;
    ensure!(died.elapsed() > Duration::from_secs(25), "the cluster is slow to notice, as in life");
    lab.node("node-c").restore()?;
    lab.wait_for("node-c to be ready", SOON, || (ready_nodes(lab).ok()? == 3).then_some(()))?;
    serving(lab, 3)?;
    lab.control("kill", "kubelet-node-a")?;
    lab.control("start", "kubelet-node-a")?;
    serving(lab, 3).map(drop)
}

/// The nodes stay as they are: the pods in them belong to nobody, and end.
fn a_reset_leaves_nothing(lab: &Lab) -> Result<()> {
    lab.control_reset()?;
    ensure!(lab.kubectl(&["get", "pods", "-o", "name"])?.is_empty(), "the new cluster has no Pods");
    lab.wait_for("machines without pods", SOON, || {
        lab.nodes().all(|node| node.must("lab-pod list").is_ok_and(|list| list.is_empty())).then_some(())
    })
}

/// Waits until so many endpoints, and no others, are ready; gives them.
fn serving(lab: &Lab, count: usize) -> Result<Vec<Value>> {
    lab.wait_for(&format!("{count} ready endpoints"), SOON, || {
        let found = endpoints(lab).ok()?;
        let ready = found.iter().all(|endpoint| endpoint["conditions"]["ready"] == true);
        (ready && found.len() == count).then_some(found)
    })
}

/// The IPv4 endpoints of the Service.
fn endpoints(lab: &Lab) -> Result<Vec<Value>> {
    let label = "kubernetes.io/service-name=nginx";
    let list: Value =
        serde_json::from_str(&lab.kubectl(&["get", "endpointslices", "-l", label, "-o", "json"])?)?;
    let slices = list["items"].as_array().context("a list has items")?;
    let slices = slices.iter().filter(|slice| slice["addressType"] == "IPv4");
    Ok(slices.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default()).collect())
}

fn ready_nodes(lab: &Lab) -> Result<usize> {
    let path = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
    let words = lab.kubectl(&["get", "nodes", "-o", path])?;
    Ok(words.split_whitespace().filter(|word| *word == "True").count())
}
