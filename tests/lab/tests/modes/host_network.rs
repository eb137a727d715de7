//! Pods of the host's own network: their node's address is theirs. In mode dsr they see the client all the same, and in both
//! modes their node's own processes reach them too, whoever holds the VIP.

use anyhow::{Result, ensure};
use kvip_lab::asking::{Asking, ECHO, wait_until_gone};
use kvip_lab::lab::Lab;
use kvip_lab::layout::{NODES, NodeSpec};
use kvip_lab::peer::drive::Asker;
use kvip_lab::peer::install;
use kvip_lab::scenario::{SOON, diagnosis};
use serde_json::json;

use super::{Mode, answered_by, kept_source, modes};

const HOST: [Mode; 2] = [
    Mode { name: "dsr", v4: "10.87.2.57", v6: "fd00:87:2::57" },
    Mode { name: "nat", v4: "10.87.2.61", v6: "fd00:87:2::61" },
];
const NAME: &str = "host-network";

#[test]
fn pods_of_the_hosts_network_answer_everybody() -> Result<()> {
    let lab = modes()?;
    for node in lab.nodes() {
        let (spec, program) = (node.spec(), install::PROGRAM);
        let [v4, v6] = [format!("{}:{ECHO}", spec.v4), format!("[{}]:{ECHO}", spec.v6)];
        let listeners = format!("'tcp:{v4}' 'udp:{v4}' 'tcp:{v6}' 'udp:{v6}'");
        node.install_peer()?;
        node.must(&format!(
            "systemd-run --quiet --unit {NAME} {program} serve {} {NAME}-{} {listeners}",
            spec.name, spec.name
        ))?;
    }
    HOST.iter().try_for_each(|mode| answers(&lab, *mode))?;
    lab.nodes().try_for_each(|node| node.must_within(SOON, &format!("systemctl stop {NAME}")).map(drop))
}

fn answers(lab: &Lab, mode: Mode) -> Result<()> {
    let name = format!("{NAME}-{}", mode.name);
    mode.on(Asking::echo(&name)).spec("selector", json!(null)).apply(lab)?;
    for (kind, address) in [("IPv4", NODES.map(|node| node.v4)), ("IPv6", NODES.map(|node| node.v6))] {
        let endpoint =
            |(node, address): (&NodeSpec, &str)| json!({"addresses": [address], "nodeName": node.name});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "name": format!("{name}-{}", kind.to_lowercase()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "endpoints": NODES.iter().zip(address).map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "tcp", "port": ECHO, "protocol": "TCP"}, {"name": "udp", "port": ECHO, "protocol": "UDP"}],
        });
        lab.kubectl_with(&["apply", "-f", "-"], &slice.to_string())?;
    }
    answered_by(lab, mode, 3)?;
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let (near, far) = (lab.node(holder).pod("echo-")?, lab.node(other).pod("echo-")?);
    let nodes = NODES.map(|node| Asker::Node(node.name));
    let others = [Asker::Client, Asker::Outside, Asker::Pod(holder, &near), Asker::Pod(other, &far)];
    for question in mode.questions() {
        for asker in nodes.into_iter().chain(others) {
            // Each packet of a connection but the first is routed once more.
            let report = lab.ask(asker, &question.connections(24), 4)?;
            println!("{name} {} from {asker:?}: {report}; saw {:?}", question.arguments(), report.sources());
            let kept = mode.name == "nat" || kept_source(&report, asker, question.target.is_ipv4());
            let good = report.failures().is_empty() && report.nodes().len() == 3 && kept;
            ensure!(good, "{asker:?} {}: {report}\n{}", question.arguments(), diagnosis(lab));
        }
    }
    lab.kubectl(&["delete", "service", &name])?;
    mode.vips().iter().try_for_each(|vip| wait_until_gone(lab, vip))
}
