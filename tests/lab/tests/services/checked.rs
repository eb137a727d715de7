//! Health checks of a Service: what the cluster calls ready and kvip cannot reach gets no connections.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvip_lab::asking::{
    Asking, ECHO, ECHO_PORTS, POOLS, explain, items, must, settings, wait_for_addresses, wait_for_answer,
    wait_for_refusal, wait_until_gone,
};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::NODES;
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::{SOON, echo_pods, finding, without_a_lost_request_at};

use super::{asking, check_pods, delete};

/// The pod's port 80 refuses, of which the kubelet's stand-in knows nothing: its endpoint stays ready.
const CLOSE: &str = "nft add table inet closed
nft add chain inet closed input '{ type filter hook input priority 0; }'
nft add rule inet closed input tcp dport 80 reject with tcp reset";

/// Waits until every node gives connections to so many of the VIP's servers.
fn wait_for_servers(lab: &Lab, vip: &str, count: usize) -> Result<()> {
    let meant = format!("-a -t {vip}:80 ");
    let serving = |node: Node<'_>| {
        let table = node.ipvs().ok()?;
        Some(table.lines().filter(|line| line.starts_with(&meant) && !line.ends_with("-w 0")).count())
    };
    let found = lab.wait_for(&format!("{count} servers of {vip} on all nodes"), SOON, || {
        lab.nodes().all(|node| serving(node) == Some(count)).then_some(())
    });
    found.with_context(|| explain(lab, "checked"))
}

#[test]
fn a_pod_that_fails_its_check_gets_no_connections_until_it_answers() -> Result<()> {
    let lab = asking()?;
    let checked = |kind: &str| {
        let asking = Asking::new("checked").load_balancer().annotation("kvip.io/check", kind);
        asking.annotation("kvip.io/check-every", "1s").annotation("kvip.io/check-rise", "2")
    };
    checked("tcp").apply(&lab)?;
    let vip = wait_for_addresses(&lab, "checked", 1)?.remove(0);
    wait_for_answer(&lab, &vip)?;
    wait_for_servers(&lab, &vip, 3)?;
    let pod = items(&lab, "pods -l app=nginx --field-selector status.phase=Running")?.remove(0);
    let word = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("a name");
    let (name, node) = (word(&pod["metadata"]["name"])?, word(&pod["spec"]["nodeName"])?);
    let node = lab.node(&node);
    let inside = |script: &str| node.must(&format!("ip netns exec {name} sh -c \"{script}\"")).map(drop);
    inside(CLOSE)?;
    wait_for_servers(&lab, &vip, 2)?;
    check_pods(&lab, &vip, 2, "with one closed")?;
    must(
        &lab,
        finding(&lab, "node-a", "does not answer its tcp check").is_some(),
        "a pod that does not answer is a finding",
    )?;
    without_a_lost_request_at(&lab, &vip, || {
        inside("nft delete table inet closed")?;
        wait_for_servers(&lab, &vip, 3)
    })?;

    // A page that no pod has: all fail. The check may be what is broken, so all go on, unless the Service says otherwise.
    let missing = checked("http").annotation("kvip.io/check-path", "/missing");
    let missing = missing.annotation("kvip.io/check-status", "204");
    missing.apply(&lab)?;
    let told = lab.wait_for("a finding about a page that is missing", SOON, || {
        finding(&lab, "node-a", "does not answer its http check").map(drop)
    });
    told.with_context(|| explain(&lab, "checked"))?;
    wait_for_servers(&lab, &vip, 3)?;
    wait_for_answer(&lab, &vip)?;
    missing.annotation("kvip.io/check-all-unhealthy", "refuse").apply(&lab)?;
    wait_for_refusal(&lab, &vip)?;
    checked("none").apply(&lab)?;
    wait_for_answer(&lab, &vip)?;
    delete(&lab, "checked")?;
    wait_until_gone(&lab, &vip)
}

/// By the settings, for a pod that says nothing at all, in mode dsr: it stays in the table that all nodes have alike, and those
/// who are hashed to it come to others.
#[test]
fn a_silent_pod_gets_no_connections_in_mode_dsr() -> Result<()> {
    let lab = asking()?;
    let checks = "[checks]\nkind = \"tcp\"\nevery = \"1s\"\ntimeout = \"1s\"\n";
    settings(&lab, &[POOLS, checks].concat())?;
    lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(ECHO_PORTS))?;
    Asking::echo("silent").load_balancer().annotation("kvip.io/mode", "dsr").apply(&lab)?;
    let vips = wait_for_addresses(&lab, "silent", 2)?;
    let ask = |vip: &str| {
        let question = Question::new(Transport::Tcp, SocketAddr::new(vip.parse()?, ECHO));
        lab.ask(Asker::Client, &question.connections(24).every(Duration::from_secs(1)), 1)
    };
    for vip in &vips {
        let all = lab.wait_for(&format!("three pods at {vip}"), SOON, || {
            (ask(vip).ok()?.pods().len() == 3).then_some(())
        });
        all.with_context(|| explain(&lab, "silent"))?;
    }
    let node = lab.node("node-b");
    let pod = node.pod("echo-")?;
    node.must(&format!("ip netns exec {pod} nft 'table inet closed {{ chain input {{ type filter hook input priority 0; tcp dport {ECHO} drop; }}; }}'"))?;
    let said = lab.wait_for("all nodes to say so of both addresses", SOON, || {
        let all = NODES.iter().all(|node| {
            let found = finding(&lab, node.name, "no answer within");
            found.is_some_and(|text| text.contains("tcp check"))
        });
        let idle = |node: Node<'_>| {
            node.ipvs().is_ok_and(|table| {
                table.lines().filter(|l| l.starts_with("-a -f ") && l.ends_with(" -w 0")).count() >= 2
            })
        };
        (all && lab.nodes().all(idle)).then_some(())
    });
    said.with_context(|| explain(&lab, "silent"))?;
    for vip in &vips {
        let report = ask(vip)?;
        println!("a silent pod behind {vip}: {report}");
        must(
            &lab,
            report.answered() == 24 && !report.pods().contains_key(&pod),
            &format!("{vip}: {report}"),
        )?;
    }
    node.must(&format!("ip netns exec {pod} nft delete table inet closed"))?;
    for vip in &vips {
        let all = lab.wait_for(&format!("three pods at {vip} again"), SOON, || {
            (ask(vip).ok()?.pods().len() == 3).then_some(())
        });
        all.with_context(|| explain(&lab, "silent"))?;
    }
    delete(&lab, "silent")?;
    settings(&lab, POOLS)?;
    vips.iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}
