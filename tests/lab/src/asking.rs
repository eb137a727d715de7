//! Services that ask for addresses: what tests say through kubectl, and what they see of it in the API and on the nodes.
//!
//! Owns the pools that the lab's tests share. Judges nothing: what is expected is in the test files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::Lab;
use crate::layout::NODES;
use crate::scenario::{SOON, diagnosis, finding};

/// The load balancer class of kvip.
pub const CLASS: &str = "kvip.io/kvip";
/// Pools of both families, one that has to be named, one for Services that name an address, and no tenants: all namespaces may
/// ask for all. What a test gave back rests for longer than the next ones take, so there is room, and nobody gets an address by
/// chance that a later test names.
pub const POOLS: &str = r#"
[asking]
external_ips = true
takeover_after = "10s"

[[pools]]
name = "lan"
addresses = ["10.87.2.128-10.87.2.191", "fd00:87:2::140-fd00:87:2::1ff"]

[[pools]]
name = "named"
addresses = ["10.87.2.96/29"]
auto_assign = false

[[pools]]
name = "wished"
addresses = ["10.87.2.64-10.87.2.95", "fd00:87:2::100-fd00:87:2::11f"]
auto_assign = false
"#;

/// The port of the echo pods, for lines over TCP and datagrams alike.
pub const ECHO: u16 = 7;
/// What the echo pods of [`Asking::echo`] answer on.
pub const ECHO_PORTS: &str =
    "{containerPort: 7, name: echo}, {containerPort: 7, name: echo-udp, protocol: UDP}";

/// A Service of the tutorial's pods, to be changed before it is applied.
#[derive(Debug, Clone)]
pub struct Asking {
    json: Value,
}

impl Asking {
    /// A ClusterIP Service of the namespace `default`, port 80 over IPv4.
    pub fn new(name: &str) -> Self {
        let json = serde_json::json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "annotations": {}},
            "spec": {
                "type": "ClusterIP", "selector": {"app": "nginx"},
                "ports": [{"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}],
            },
        });
        Self { json }
    }

    /// A ClusterIP Service of both families in front of the echo pods, over TCP and UDP.
    pub fn echo(name: &str) -> Self {
        let port = |name: &str, protocol: &str| serde_json::json!({"name": name, "port": ECHO, "targetPort": ECHO, "protocol": protocol});
        Self::new(name)
            .spec("selector", serde_json::json!({"app": "echo"}))
            .spec("ipFamilyPolicy", "RequireDualStack")
            .spec("ports", serde_json::json!([port("tcp", "TCP"), port("udp", "UDP")]))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.json["metadata"]["name"].as_str().expect("set by `new`")
    }

    /// Of type LoadBalancer and kvip's class.
    #[must_use]
    pub fn load_balancer(self) -> Self {
        self.spec("type", "LoadBalancer")
            .spec("loadBalancerClass", CLASS)
            .spec("allocateLoadBalancerNodePorts", false)
    }

    /// With a field of the spec.
    #[must_use]
    pub fn spec(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.json["spec"][field] = value.into();
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.json["metadata"]["annotations"][key] = value.into();
        self
    }

    /// On another port than 80.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.json["spec"]["ports"][0]["port"] = port.into();
        self
    }

    /// In another namespace, where the tutorial's pods are not: it has no endpoints.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.json["metadata"]["namespace"] = namespace.into();
        self
    }

    /// The manifest.
    pub fn manifest(&self) -> String {
        self.json.to_string()
    }

    /// Makes it, or changes what is there; `--server-side` so that what is no longer said is taken away.
    pub fn apply(&self, lab: &Lab) -> Result<()> {
        lab.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &self.manifest())
            .map(drop)
    }
}

/// Puts `toml` in force on all nodes, by the cluster's ConfigMap of settings.
pub fn settings(lab: &Lab, toml: &str) -> Result<()> {
    let map = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kvip", "namespace": "kvip-system"},
        "data": {"config.toml": toml},
    });
    lab.kubectl_with(&["apply", "-f", "-"], &map.to_string()).map(drop)
}

/// An object, or a list of them, as the API has it: `service/web`, `ipaddresses -l …`.
pub fn object(lab: &Lab, words: &str) -> Result<Value> {
    let arguments: Vec<&str> = ["get", "-o", "json"].into_iter().chain(words.split_whitespace()).collect();
    serde_json::from_str(&lab.kubectl(&arguments)?).with_context(|| format!("kubectl get {words}"))
}

/// The items of a list.
pub fn items(lab: &Lab, words: &str) -> Result<Vec<Value>> {
    let list = object(lab, words)?;
    list["items"].as_array().cloned().with_context(|| format!("kubectl get {words}: no list"))
}

/// The pod's address of that family.
pub fn pod_address(lab: &Lab, pod: &str, is_v6: bool) -> Result<String> {
    let pod = object(lab, &format!("pod {pod}"))?;
    let addresses = pod["status"]["podIPs"].as_array().context("a pod has addresses")?;
    let of_family =
        addresses.iter().filter_map(|one| one["ip"].as_str()).find(|ip| ip.contains(':') == is_v6);
    Ok(of_family.context("one of each family")?.to_owned())
}

/// status.loadBalancer.ingress of a Service.
pub fn ingress(lab: &Lab, service: &str) -> Result<Vec<Value>> {
    let service = object(lab, &format!("service {service}"))?;
    Ok(service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default())
}

/// The addresses in status.loadBalancer.ingress of a Service.
pub fn addresses(lab: &Lab, service: &str) -> Result<Vec<String>> {
    let ip = |entry: &Value| entry["ip"].as_str().map(str::to_owned);
    Ok(ingress(lab, service)?.iter().filter_map(ip).collect())
}

/// kvip's condition on a Service, as `STATUS REASON: MESSAGE`; empty when there is none.
pub fn condition(lab: &Lab, service: &str) -> Result<String> {
    let service = object(lab, &format!("service {service}"))?;
    let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ours = conditions.iter().find(|condition| condition["type"] == "kvip.io/Served");
    let text = |ours: &Value, field: &str| ours[field].as_str().unwrap_or_default().to_owned();
    let said = |c: &Value| format!("{} {}: {}", text(c, "status"), text(c, "reason"), text(c, "message"));
    Ok(ours.map(said).unwrap_or_default())
}

/// The Events of kvip about the Service of that name in that namespace, as `TYPE REASON: MESSAGE`.
pub fn events(lab: &Lab, namespace: &str, service: &str) -> Result<Vec<String>> {
    Ok(events_and_writers(lab, namespace, service)?.into_iter().map(|(event, _)| event).collect())
}

/// As [`events`], each with the node whose kvip wrote it.
pub fn events_and_writers(lab: &Lab, namespace: &str, service: &str) -> Result<Vec<(String, String)>> {
    let about = format!("-n {namespace} events --field-selector involvedObject.name={service},source=kvip");
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let said = |e: &Value| format!("{} {}: {}", text(e, "type"), text(e, "reason"), text(e, "message"));
    Ok(items(lab, &about)?.iter().map(|event| (said(event), text(event, "reportingInstance"))).collect())
}

/// Of all nodes that see the same one writes it down.
fn check_one_writer_each(lab: &Lab, namespace: &str, service: &str) -> Result<()> {
    let mut writers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (event, node) in events_and_writers(lab, namespace, service)? {
        writers.entry(event).or_default().insert(node);
    }
    must(
        lab,
        writers.values().all(|nodes| nodes.len() == 1),
        &format!("Events of several nodes: {writers:?}"),
    )
}

/// The addresses that kvip's claims hold for somebody, those given back and resting left out.
pub fn claimed(lab: &Lab) -> Result<BTreeSet<String>> {
    let claims = items(lab, "ipaddresses -l ipaddress.kubernetes.io/managed-by=kvip")?;
    let used =
        claims.iter().filter(|claim| claim["metadata"]["annotations"]["kvip.io/released-at"].is_null());
    Ok(used.filter_map(|claim| Some(claim["metadata"]["name"].as_str()?.to_owned())).collect())
}

/// Waits until the Service has `count` addresses in its status, and gives them.
pub fn wait_for_addresses(lab: &Lab, service: &str, count: usize) -> Result<Vec<String>> {
    let found = lab.wait_for(&format!("{count} addresses of {service}"), SOON, || {
        addresses(lab, service).ok().filter(|all| all.len() == count)
    });
    found.with_context(|| explain(lab, service))
}

/// Waits until the client is answered at `address`, which is in brackets for IPv6, with a port where it is not 80.
pub fn wait_for_answer(lab: &Lab, address: &str) -> Result<String> {
    let answered = lab.wait_for(&format!("an answer from {address}"), SOON, || lab.curl(address));
    answered.with_context(|| explain(lab, ""))
}

/// Waits until the client is refused at once at a VIP that is held.
pub fn wait_for_refusal(lab: &Lab, vip: &str) -> Result<()> {
    let refused = lab.wait_for(&format!("{vip} to refuse"), SOON, || {
        let output = lab.client(&["curl", "-s", "--max-time", "3", &format!("http://{vip}/")]).ok()?;
        (output.status == 7).then_some(())
    });
    refused.with_context(|| explain(lab, ""))
}

/// Waits until every node, the condition and an Event say that the Service is not served, and why.
pub fn wait_for_reason(lab: &Lab, namespace: &str, service: &str, words: &str) -> Result<()> {
    let object = format!("-n {namespace} {service}");
    let told = lab.wait_for(&format!("{service} to be told: {words}"), SOON, || {
        let found = NODES.iter().all(|node| finding(lab, node.name, words).is_some());
        let condition = condition(lab, &object).ok()?;
        let events = events(lab, namespace, service).ok()?;
        let said = events.iter().any(|event| event.starts_with("Warning ") && event.contains(words));
        (found && said && condition.starts_with("False ") && condition.contains(words)).then_some(())
    });
    told.with_context(|| explain(lab, &object))?;
    check_one_writer_each(lab, namespace, service)
}

/// Waits until a process of each node, and one in a pod of each, is answered at `address`, port 80.
pub fn check_answered_inside(lab: &Lab, address: &str) -> Result<()> {
    let url = format!("http://{}/", in_url(address));
    for node in lab.nodes() {
        let pod =
            node.must("lab-pod list")?.split_whitespace().next().context("a pod on each node")?.to_owned();
        for who in [String::new(), format!("ip netns exec {pod} ")] {
            let script = format!("{who}curl -s -g --max-time 5 {url}");
            let answered = lab.wait_for(&format!("{script} on {}", node.spec().name), SOON, || {
                node.run(&script).ok()?.ok().then_some(())
            });
            answered.with_context(|| explain(lab, ""))?;
        }
    }
    Ok(())
}

/// `address` as a URL has it.
pub fn in_url(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// What the node has of an address, anywhere: interface, IPVS, rules and keepalived's file.
pub fn traces(lab: &Lab, node: &str, address: &str) -> Result<String> {
    let script = "{ ip -br addr show eth0; ipvsadm -Sn; nft list table inet kvip; cat /etc/keepalived/keepalived.conf \
                  /etc/keepalived/conf.d/*; kvip status --json; } 2>/dev/null";
    let whole = lab.node(node).run(script)?.stdout;
    // As whole words: 10.87.2.6 is no part of 10.87.2.64.
    let is_of_address = |c: char| c.is_ascii_hexdigit() || c == '.' || (c == ':' && address.contains(':'));
    let named = |line: &&str| line.split(|c| !is_of_address(c)).any(|word| word == address);
    Ok(whole.lines().filter(named).collect::<Vec<_>>().join("\n"))
}

/// Waits until no node has anything of that address.
pub fn wait_until_gone(lab: &Lab, address: &str) -> Result<()> {
    wait_until_gone_but(lab, address, |_| false)
}

/// As [`wait_until_gone`], but for lines that are `of_others`.
pub fn wait_until_gone_but(lab: &Lab, address: &str, of_others: impl Fn(&str) -> bool) -> Result<()> {
    let mut left = String::new();
    let gone = lab.wait_for(&format!("all nodes to be without {address}"), SOON, || {
        left.clear();
        for node in &NODES {
            let found = traces(lab, node.name, address).ok()?;
            let ours: Vec<&str> = found.lines().filter(|line| !of_others(line)).collect();
            if !ours.is_empty() {
                let _ = write!(left, "\n{} has still:\n{}", node.name, ours.join("\n"));
            }
        }
        left.is_empty().then_some(())
    });
    gone.with_context(|| left)
}

/// Fails unless nothing in the API says any more that kvip has to do with the Service.
pub fn wait_until_unsaid(lab: &Lab, service: &str) -> Result<()> {
    let unsaid = lab.wait_for(&format!("the status of {service} to say nothing of kvip"), SOON, || {
        let bare = ingress(lab, service).ok()?.is_empty() && condition(lab, service).ok()?.is_empty();
        bare.then_some(())
    });
    unsaid.with_context(|| explain(lab, service))
}

/// Fails with everything that helps to see why, unless `holds`.
pub fn must(lab: &Lab, holds: bool, what: &str) -> Result<()> {
    ensure!(holds, "{what}\n{}", explain(lab, ""));
    Ok(())
}

/// What a person would look at first, the Services' own part first.
pub fn explain(lab: &Lab, service: &str) -> String {
    let mut text = String::new();
    for words in [
        &format!("get services {service} -o yaml")[..],
        "get ipaddresses -l ipaddress.kubernetes.io/managed-by=kvip -o yaml",
        "get events -A",
        "-n kvip-system get configmap kvip -o yaml",
    ] {
        let arguments: Vec<&str> = words.split_whitespace().collect();
        text += &lab.kubectl(&arguments).unwrap_or_else(|error| format!("{error:#}"));
    }
    text + &diagnosis(lab)
}
