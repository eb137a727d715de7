//! Fields of Services whose effect is in the kernel or on the wire, one after the other.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use kvip_lab::asking::{
    Asking, POOLS, explain, items, must, object, settings, wait_for_addresses, wait_for_answer,
    wait_for_refusal, wait_until_gone,
};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::{CLIENT_V4, NODES, NodeSpec};
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::SOON;

use serde_json::Value;

use super::{asking, delete};

/// A pod on node-b that its readiness probe calls not ready; its port has a name.
const UNREADY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: unready, labels: {app: unready}, annotations: {lab.kvip/ready: "false"}}
spec: {nodeName: node-b, containers: [{name: c, image: nginx, ports: [{name: web, containerPort: 80}]}]}
"#;

/// The status of a request over HTTP that the client makes; 0 when there is no answer.
fn status_of(lab: &Lab, url: &str) -> Option<u32> {
    let words = ["curl", "-s", "-g", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "3", url];
    lab.client(&words).ok()?.stdout.parse().ok()
}

#[test]
fn pods_that_are_not_ready_serve_where_a_service_publishes_them() -> Result<()> {
    let lab = asking()?;
    lab.kubectl_with(&["apply", "-f", "-"], UNREADY)?;
    let single = Asking::new("single")
        .annotation("kvip.io/vips", "10.87.2.57")
        .spec("selector", serde_json::json!({"app": "unready"}))
        .spec("ports", serde_json::json!([{"port": 80, "targetPort": "web"}]));
    single.clone().spec("publishNotReadyAddresses", true).apply(&lab)?;
    let answer = wait_for_answer(&lab, "10.87.2.57")?;
    must(&lab, answer.starts_with("node-b unready "), &format!("the pod does not answer but {answer}"))?;
    single.spec("publishNotReadyAddresses", false).apply(&lab)?;
    wait_for_refusal(&lab, "10.87.2.57")?;
    health_check_node_ports_tell_who_has_ready_pods(&lab)?;
    lab.kubectl(&["delete", "pod", "unready", "--wait=false"])?;
    delete(&lab, "single")?;
    wait_until_gone(&lab, "10.87.2.57")
}

/// The pod becomes ready: its node says so on the Service's healthCheckNodePort, and the others say that they have none.
fn health_check_node_ports_tell_who_has_ready_pods(lab: &Lab) -> Result<()> {
    settings(lab, &[POOLS, "[balancing]\nhealth_check_node_port = true\n"].concat())?;
    Asking::new("checked")
        .load_balancer()
        .spec("externalTrafficPolicy", "Local")
        .spec("selector", serde_json::json!({"app": "unready"}))
        .apply(lab)?;
    let port = object(lab, "service checked")?["spec"]["healthCheckNodePort"].as_u64();
    let port = port.context("policy Local gives a healthCheckNodePort")?;
    lab.kubectl(&["annotate", "pod", "unready", "lab.kvip/ready=true", "--overwrite"])?;
    let told = lab.wait_for("200 of node-b and 503 of the others", SOON, || {
        let said = |node: &NodeSpec| status_of(lab, &format!("http://{}:{port}/", node.v4));
        let wanted = NODES.iter().map(|node| Some(if node.name == "node-b" { 200 } else { 503 }));
        NODES.iter().map(said).eq(wanted).then_some(())
    });
    told.with_context(|| explain(lab, "checked"))?;
    delete(lab, "checked")?;
    settings(lab, POOLS)
}

/// The nodes that have pods of `service`.
fn nodes_with_pods(lab: &Lab, service: &str) -> Result<BTreeSet<String>> {
    let slices = items(lab, &format!("endpointslices -l kubernetes.io/service-name={service}"))?;
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let nodes: BTreeSet<String> =
        endpoints.filter_map(|endpoint| Some(endpoint["nodeName"].as_str()?.to_owned())).collect();
    must(lab, nodes.len() > 1, &format!("pods on one node alone tell nothing: {nodes:?}"))?;
    Ok(nodes)
}

/// Waits until on each node the pods of those nodes get connections at `vip` that `wanted` names for it.
fn wait_for_nodes(lab: &Lab, what: &str, vip: &str, wanted: impl Fn(&str) -> BTreeSet<String>) -> Result<()> {
    let found = lab.wait_for(what, SOON, || {
        let served = lab.on_all_nodes(|node| nodes_served(&node, vip));
        let wanted = NODES.iter().map(|node| Some(wanted(node.name)));
        served.into_iter().eq(wanted).then_some(())
    });
    found.with_context(|| explain(lab, ""))
}

/// The nodes whose pods get connections at `vip`, by the IPVS table of `node`.
fn nodes_served(node: &Node<'_>, vip: &str) -> Option<BTreeSet<String>> {
    let table = node.ipvs().ok()?;
    let servers = table.lines().filter(|line| line.starts_with(&format!("-a -t {vip}:80 ")));
    let with_weight = servers.filter(|line| !line.contains(" -w 0"));
    let runs =
        |line: &str, spec: &NodeSpec| line.contains(&format!(" -r {}", spec.pod4.trim_end_matches("0/24")));
    Some(
        with_weight
            .filter_map(|line| Some(NODES.iter().find(|spec| runs(line, spec))?.name.to_owned()))
            .collect(),
    )
}

/// Labels each node with its zone, where NODE stands for its name; `-` takes the label away.
fn label_zones(lab: &Lab, value: &str) -> Result<()> {
    NODES.iter().try_for_each(|node| {
        let zone = format!("topology.kubernetes.io/zone{}", value.replace("NODE", node.name));
        lab.kubectl(&["label", "--overwrite", "node", node.name, &zone]).map(drop)
    })
}

/// Waits until all endpoints of a Service are hinted to one zone. The EndpointSlice controller looks at the zones when it looks
/// at the Service, and not each time that a Node's is another.
fn wait_for_hints(lab: &Lab, service: &str, zone: &str) -> Result<()> {
    let mut turn = 0;
    let hinted = lab.wait_for(&format!("hints of zone {zone} for {service}"), SOON, || {
        turn += 1;
        let looked_at = format!("lab.kvip/turn={turn}");
        lab.kubectl(&["annotate", "--overwrite", "service", service, &looked_at]).ok()?;
        let slices = items(lab, &format!("endpointslices -l kubernetes.io/service-name={service}")).ok()?;
        let all = |slice: &Value| {
            let endpoints = slice["endpoints"].as_array()?;
            let of_zone = |one: &Value| one["hints"]["forZones"][0]["name"] == zone;
            endpoints.iter().all(of_zone).then_some(())
        };
        slices.iter().try_for_each(all)
    });
    hinted.with_context(|| explain(lab, service))
}

/// The EndpointSlice controller writes the hints, from the Nodes' zones and names.
#[test]
fn traffic_is_kept_in_the_holders_zone_or_on_its_node() -> Result<()> {
    let lab = asking()?;
    label_zones(&lab, "=zone-of-NODE")?;
    let zoned = Asking::new("zoned").load_balancer();
    zoned.clone().apply(&lab)?;
    let vip = wait_for_addresses(&lab, "zoned", 1)?.remove(0);
    let pods = nodes_with_pods(&lab, "zoned")?;
    wait_for_nodes(&lab, "pods of all zones to serve", &vip, |_| pods.clone())?;
    zoned.clone().spec("trafficDistribution", "PreferClose").apply(&lab)?;
    // A node whose zone has no pod takes all.
    let own = |node: &str| if pods.contains(node) { [node.to_owned()].into() } else { pods.clone() };
    wait_for_nodes(&lab, "pods of its own zone alone to serve each node", &vip, own)?;
    wait_for_answer(&lab, &vip)?;
    label_zones(&lab, "=one")?;
    wait_for_hints(&lab, "zoned", "one")?;
    wait_for_nodes(&lab, "pods of the one zone to serve", &vip, |_| pods.clone())?;
    zoned.spec("trafficDistribution", "PreferSameNode").apply(&lab)?;
    wait_for_nodes(&lab, "its own pods alone to serve each node", &vip, own)?;
    wait_for_answer(&lab, &vip)?;
    delete(&lab, "zoned")?;
    label_zones(&lab, "-")?;
    wait_until_gone(&lab, &vip)
}

/// All Services are served in the mode that the settings name, but for those that name another. In mode dsr all nodes must have the
/// same table, so that hints of zones count for nothing.
#[test]
fn the_settings_name_the_mode_of_all_services() -> Result<()> {
    let lab = asking()?;
    settings(&lab, &[POOLS, "[balancing]\nmode = \"dsr\"\n"].concat())?;
    label_zones(&lab, "=zone-of-NODE")?;
    let near = Asking::new("near").load_balancer().spec("trafficDistribution", "PreferClose");
    near.apply(&lab)?;
    let other = Asking::new("other").load_balancer().annotation("kvip.io/mode", "nat");
    other.apply(&lab)?;
    let near = wait_for_addresses(&lab, "near", 1)?.remove(0);
    let other = wait_for_addresses(&lab, "other", 1)?.remove(0);
    for vip in [&near, &other] {
        wait_for_answer(&lab, vip)?;
    }
    let hinted = lab.wait_for("hints of zones", SOON, || {
        let slices = items(&lab, "endpointslices -l kubernetes.io/service-name=near").ok()?;
        slices[0]["endpoints"][0]["hints"]["forZones"].is_array().then_some(())
    });
    hinted.with_context(|| explain(&lab, "near"))?;
    let balanced = lab.wait_for("all pods on all nodes, by mode dsr and by NAT", SOON, || {
        let good = |node: Node<'_>| -> Option<()> {
            let table = node.ipvs().ok()?;
            let marked =
                table.lines().filter(|line| line.starts_with("-a -f ") && !line.ends_with(" -w 0")).count();
            let named = |vip: &str| {
                table.lines().filter(|line| line.starts_with(&format!("-a -t {vip}:80 "))).count()
            };
            // Both tables of the one in mode dsr, and whoever asks by the address itself on its own node.
            let dsr = table.contains(&format!("-A -t {near}:80 ")) && marked >= 3;
            (dsr && named(&other) == 3).then_some(())
        };
        lab.nodes().all(|node| good(node).is_some()).then_some(())
    });
    balanced.with_context(|| explain(&lab, "near"))?;
    let report =
        lab.ask(Asker::Client, &Question::new(Transport::Tcp, SocketAddr::new(near.parse()?, 80)), 24)?;
    must(&lab, report.pods().len() > 1, &format!("a zone alone serves in mode dsr: {report}"))?;
    must(&lab, report.sources().keys().eq([CLIENT_V4]), &format!("pods saw {:?}", report.sources()))?;
    for name in ["near", "other"] {
        delete(&lab, name)?;
    }
    label_zones(&lab, "-")?;
    settings(&lab, POOLS)?;
    [&near, &other].iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}
