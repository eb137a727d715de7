//! externalTrafficPolicy Local: it selects dsr by itself, so that the VIP need not be where the pod is.

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{Asking, POOLS, explain, settings, wait_for_addresses};
use kvip_lab::lab::Lab;
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::SOON;
use serde_json::json;

use super::{kept_source, modes, question};

#[test]
fn policy_local_keeps_the_client_wherever_the_vip_is() -> Result<()> {
    let lab = modes()?;
    settings(&lab, POOLS)?;
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone", "namespace": "default", "labels": {"app": "alone"}},
        "spec": {"nodeName": other, "containers": [{"name": "echo", "image": "echo", "ports": [
            {"containerPort": 7, "name": "echo"}, {"containerPort": 7, "name": "echo-udp", "protocol": "UDP"},
        ]}]},
    });
    lab.kubectl_with(&["apply", "-f", "-"], &pod.to_string())?;
    local_service().apply(&lab)?;
    let near = lab.node(holder).pod("echo-")?;
    let askers =
        [Asker::Client, Asker::Outside, Asker::Node(holder), Asker::Node(other), Asker::Pod(holder, &near)];
    for address in wait_for_addresses(&lab, "local", 2)? {
        for transport in [Transport::Tcp, Transport::Udp] {
            let question = question(transport, &address).connections(4);
            let answered = lab.wait_for(&format!("an answer from {address}"), SOON, || {
                lab.ask(Asker::Client, &question, 1).ok()?.failures().is_empty().then_some(())
            });
            answered.with_context(|| explain(&lab, "local"))?;
            askers.iter().try_for_each(|asker| check(&lab, *asker, &question, other))?;
        }
    }
    lab.kubectl(&["delete", "service/local", "pod/alone"]).map(drop)
}

/// All is answered by the pod on that node, which sees who asks.
fn check(lab: &Lab, asker: Asker, question: &Question, node: &str) -> Result<()> {
    let report = lab.ask(asker, question, 1)?;
    println!("Local {} from {asker:?}: {report}; the pod saw {:?}", question.arguments(), report.sources());
    let good = report.failures().is_empty()
        && report.nodes().keys().eq([node])
        && kept_source(&report, asker, question.target.is_ipv4());
    ensure!(good, "{asker:?} {}: {report}\n{}", question.arguments(), explain(lab, "local"));
    Ok(())
}

fn local_service() -> Asking {
    Asking::echo("local")
        .load_balancer()
        .spec("selector", json!({"app": "alone"}))
        .spec("externalTrafficPolicy", "Local")
}
