//! kvip at work while no node dies: who is served, and what may happen without a lost request.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvip_lab::asking::wait_for_refusal;
use kvip_lab::lab::Lab;
use kvip_lab::scenario::{
    SOON, VIP, VIP6, ask_for, diagnosis, explained, finding, reloads, serving, wait_until_settled,
    without_a_lost_request,
};

/// Runs curl where `prefix` says, until it gets an answer; from then on each pod in turn must answer there.
fn curl_on(lab: &Lab, node: &str, prefix: &str, address: &str) -> Result<()> {
    let script = format!("{prefix} curl -s -S -g --max-time 5 http://{address}/");
    let asked = lab.wait_for(&format!("{script} on {node}"), SOON, || {
        lab.node(node).run(&script).is_ok_and(|output| output.ok()).then_some(())
    });
    explained(lab, asked)?;
    let again = format!("for turn in 1 2 3 4 5 6; do {script} || exit; done");
    explained(lab, lab.node(node).must_within(SOON, &again)).map(drop)
}

#[test]
fn client_nodes_and_pods_are_served() -> Result<()> {
    let lab = serving()?;
    for address in [VIP, VIP6] {
        ensure!(lab.curl(address).is_some(), "the client gets nothing from {address}");
        for node in lab.nodes() {
            let name = node.spec().name;
            curl_on(&lab, name, "", address)?;
            curl_on(&lab, name, &format!("ip netns exec {}", node.pod("")?), address)?;
        }
    }
    Ok(())
}

#[test]
fn endpoints_come_and_go_without_a_reload() -> Result<()> {
    let lab = serving()?;
    let before = reloads(&lab)?;
    without_a_lost_request(&lab, || {
        lab.kubectl(&["scale", "deployment/nginx-deployment", "--replicas=4"])?;
        let all = |count: usize| {
            move |ipvs: &str| {
                ipvs.lines().filter(|line| line.contains(&format!("-t {VIP}:80 -r"))).count() == count
            }
        };
        wait_for_tables(&lab, "4 real servers on every node", all(4))?;
        lab.kubectl(&["scale", "deployment/nginx-deployment", "--replicas=3"])?;
        wait_for_tables(&lab, "3 real servers on every node", all(3))
    })?;
    ensure!(reloads(&lab)? == before, "keepalived was reloaded for an endpoint");
    Ok(())
}

fn wait_for_tables(lab: &Lab, what: &str, good: impl Fn(&str) -> bool) -> Result<()> {
    lab.wait_for(what, Duration::from_secs(120), || {
        lab.nodes().all(|node| node.ipvs().is_ok_and(|table| good(&table))).then_some(())
    })
}

#[test]
fn other_ports_are_refused_at_once() -> Result<()> {
    let lab = serving()?;
    for port in ["22", "8443"] {
        let output = lab.client(&["curl", "-s", "--max-time", "3", &format!("http://{VIP}:{port}/")])?;
        ensure!(output.status == 7, "port {port} is not refused: {output}");
    }
    Ok(())
}

#[test]
fn a_service_without_endpoints_keeps_its_vip_and_refuses() -> Result<()> {
    let lab = serving()?;
    lab.kubectl_with(
        &["apply", "-f", "-"],
        "{apiVersion: v1, kind: Service, metadata: {name: empty}, spec: {ports: [{port: 80}], selector: {app: none}}}",
    )?;
    ask_for(&lab, "10.87.2.53", Some("default/empty"))?;
    let holder = lab.wait_for_holder()?;
    wait_for_refusal(&lab, "10.87.2.53")?;
    ensure!(finding(&lab, holder, "10.87.2.53 is held but tcp 80 refuses connections").is_some());
    ask_for(&lab, "10.87.2.53", None)?;
    lab.wait_for("10.87.2.53 to be gone", SOON, || {
        let gone = |script: &str| {
            lab.nodes().all(|node| node.must(script).is_ok_and(|text| !text.contains("10.87.2.53")))
        };
        (gone("ip -br addr") && gone("ipvsadm -Sn") && gone("nft list table inet kvip")).then_some(())
    })?;
    lab.kubectl(&["delete", "service", "empty"]).map(drop)
}

#[test]
fn the_api_server_may_be_away() -> Result<()> {
    let lab = serving()?;
    without_a_lost_request(&lab, || {
        lab.control("stop", "kube-apiserver")?;
        let away = Duration::from_secs(60);
        std::thread::sleep(away);
        for node in lab.nodes() {
            let status = node.kvip_status()?;
            ensure!(status["cluster"]["problem"].is_string(), "{} does not tell: {status}", node.spec().name);
        }
        lab.control("start", "kube-apiserver")
    })?;
    let heard = lab.wait_for("the API server to be heard again", Duration::from_secs(120), || {
        lab.nodes()
            .all(|node| node.kvip_status().is_ok_and(|status| status["cluster"]["problem"].is_null()))
            .then_some(())
    });
    explained(&lab, heard)
}

#[test]
fn kvip_may_be_restarted_and_killed() -> Result<()> {
    let lab = serving()?;
    let before = reloads(&lab)?;
    without_a_lost_request(&lab, || {
        for node in lab.nodes() {
            node.must_within(SOON, "systemctl restart kvip")?;
        }
        no_kvip_has_reloaded_keepalived(&lab, before)?;
        for node in lab.nodes() {
            node.must("systemctl kill --signal=KILL --kill-who=main kvip")?;
            lab.wait_for("kvip to be back", SOON, || {
                node.run("systemctl is-active --quiet kvip").ok()?.ok().then_some(())
            })?;
        }
        no_kvip_has_reloaded_keepalived(&lab, before)
    })
}

fn no_kvip_has_reloaded_keepalived(lab: &Lab, before: u64) -> Result<()> {
    wait_until_settled(lab)?;
    ensure!(reloads(lab)? == before, "a start of kvip reloaded keepalived\n{}", diagnosis(lab));
    Ok(())
}

#[test]
fn all_pods_may_be_rolled_out() -> Result<()> {
    let lab = serving()?;
    without_a_lost_request(&lab, || {
        lab.kubectl(&["rollout", "restart", "deployment/nginx-deployment"])?;
        let output = lab.kubectl_within(
            Duration::from_secs(240),
            &["rollout", "status", "deployment/nginx-deployment", "--timeout=230s"],
            "",
        )?;
        ensure!(output.ok(), "{output}");
        Ok(())
    })
}
