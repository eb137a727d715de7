//! Endpoints that end, endpoints that people write by hand, and who is let in, over TCP and UDP and both families.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{
    Asking, explain, items, must, object, wait_for_addresses, wait_for_answer, wait_until_gone,
};
use kvip_lab::lab::Lab;
use kvip_lab::layout::{CLIENT_V4, CLIENT_V6};
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::Report;
use kvip_lab::prober::Failure;
use kvip_lab::scenario::{SOON, echo_pods};
use serde_json::json;

use super::{asking, delete};

/// Where the answering pods are asked, for lines over TCP and datagrams.
const ECHO: u16 = 7;
const PORTS: &str = "{containerPort: 7, name: echo}, {containerPort: 7, name: echo-udp, protocol: UDP}";
/// How long a pod that was told to end goes on serving here.
const GRACE: Duration = Duration::from_secs(20);

/// A load balancer of both families in front of three pods that answer lines and datagrams.
fn echo(lab: &Lab, name: &str) -> Result<Asking> {
    lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(PORTS))?;
    let port = |name: &str, protocol: &str| json!({"name": name, "port": ECHO, "targetPort": ECHO, "protocol": protocol});
    Ok(Asking::new(name)
        .load_balancer()
        .spec("selector", json!({"app": "echo"}))
        .spec("ipFamilyPolicy", "RequireDualStack")
        .spec("ports", json!([port("tcp", "TCP"), port("udp", "UDP")])))
}

fn question(transport: Transport, vip: IpAddr) -> Question {
    Question::new(transport, SocketAddr::new(vip, ECHO)).connections(1)
}

/// One question on each of `connections` new connections.
fn asked(lab: &Lab, vip: IpAddr, connections: u16) -> Result<Report> {
    lab.ask(Asker::Client, &question(Transport::Tcp, vip).connections(connections), 1)
}

#[test]
fn an_ending_pod_keeps_its_open_connections_and_gets_no_more() -> Result<()> {
    let lab = asking()?;
    echo(&lab, "ending")?.apply(&lab)?;
    let vips = wait_for_addresses(&lab, "ending", 2)?;
    let vip: IpAddr = vips.iter().find(|vip| !vip.contains(':')).context("an IPv4 address")?.parse()?;
    let all = lab.wait_for("three pods to answer", Duration::from_secs(120), || {
        (asked(&lab, vip, 12).ok()?.pods().len() == 3).then_some(())
    });
    all.with_context(|| explain(&lab, "ending"))?;

    let held = lab.asking(Asker::Client, &question(Transport::Tcp, vip).connections(6))?;
    let ending = lab.wait_for("answers on all connections", SOON, || {
        let report = Report::new(held.so_far());
        (report.connections().len() == 6 && report.answered() > 12).then(|| report.pods().into_keys().next())
    })?;
    let ending = ending.context("a pod that has connections")?;
    let seconds = format!("lab.kvip/pre-stop-seconds={}", GRACE.as_secs());
    lab.kubectl(&["annotate", "pod", &ending, &seconds])?;
    lab.kubectl(&[
        "delete",
        "pod",
        &ending,
        "--wait=false",
        &format!("--grace-period={}", GRACE.as_secs() + 10),
    ])?;
    // Where it has no connections it is gone at once.
    let holder = lab.node(lab.wait_for_holder()?);
    let drains = lab.wait_for("the holder to give it no more connections", GRACE / 2, || {
        let table = holder.ipvs().ok()?;
        let meant = format!("-a -t {vip}:{ECHO} ");
        table.lines().any(|line| line.starts_with(&meant) && line.ends_with("-w 0")).then_some(())
    });
    drains.with_context(|| explain(&lab, "ending"))?;
    let before = answers_of(&held.so_far(), &ending);
    let new = asked(&lab, vip, 12)?;
    let on = lab.wait_for("ten more answers of the ending pod", GRACE, || {
        (answers_of(&held.so_far(), &ending) >= before + 10).then_some(())
    });
    let report = held.stop()?;
    on.with_context(|| format!("{report}\n{}", explain(&lab, "ending")))?;
    must(&lab, !new.pods().contains_key(&ending), &format!("{ending} ends and got new connections: {new}"))?;
    must(&lab, new.answered() == 12, &format!("new connections go to the others: {new}"))?;
    for (number, connection) in report.connections() {
        let pods = connection.pods();
        ensure!(pods.len() == 1, "connection {number} was answered by {pods:?}: {connection}");
    }
    delete(&lab, "ending")?;
    vips.iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}

fn answers_of(samples: &[kvip_lab::prober::Sample], pod: &str) -> usize {
    Report::new(samples.to_vec()).pods().get(pod).copied().unwrap_or_default()
}

/// How three questions from that address fare: all answered, or all without an answer.
fn is_let_in(lab: &Lab, transport: Transport, vip: &str, source: &str) -> Result<Option<bool>> {
    let port = if transport == Transport::Tcp { 80 } else { ECHO };
    let question =
        Question::new(transport, SocketAddr::new(vip.parse()?, port)).from_address(source.parse()?);
    let report = lab.ask(Asker::Client, &question, 3)?;
    let dropped = report.failures() == BTreeMap::from([(Failure::Timeout, 3)]);
    Ok(if report.answered() == 3 { Some(true) } else { dropped.then_some(false) })
}

#[test]
fn source_ranges_let_in_whom_they_name() -> Result<()> {
    const OTHER_V4: &str = "10.87.2.201";
    const OTHER_V6: &str = "fd00:87:2::201";
    let lab = asking()?;
    for address in [format!("{OTHER_V4}/24"), format!("{OTHER_V6}/64")] {
        let added = lab.client(&["ip", "addr", "replace", &address, "dev", "eth0", "nodad"])?;
        ensure!(added.ok(), "the client's second address: {added}");
    }
    let ranged = Asking::new("ranged").load_balancer().spec("ipFamilyPolicy", "RequireDualStack");
    let datagrams = echo(&lab, "ranged-udp")?;
    // By kube-proxy's rules white space is nothing, and a family without an entry is open.
    for (ranges, let_in) in [
        (vec![format!(" {CLIENT_V4}/32 "), format!("{CLIENT_V6}/128")], [true, false, true, false]),
        (vec![format!("{OTHER_V4}/32"), format!("{OTHER_V6}/128")], [false, true, false, true]),
        (vec![format!("{OTHER_V4}/32")], [false, true, true, true]),
    ] {
        for (transport, service, asking) in
            [(Transport::Tcp, "ranged", &ranged), (Transport::Udp, "ranged-udp", &datagrams)]
        {
            asking.clone().spec("loadBalancerSourceRanges", ranges.clone()).apply(&lab)?;
            let vips = wait_for_addresses(&lab, service, 2)?;
            let vip = |is_v6| vips.iter().find(|vip| vip.contains(':') == is_v6).expect("one of each family");
            let askers = [
                (vip(false), CLIENT_V4),
                (vip(false), OTHER_V4),
                (vip(true), CLIENT_V6),
                (vip(true), OTHER_V6),
            ];
            let divided = lab.wait_for(&format!("{transport} by {ranges:?}: {let_in:?}"), SOON, || {
                askers
                    .iter()
                    .zip(let_in)
                    .all(|((vip, source), expected)| {
                        is_let_in(&lab, transport, vip, source).is_ok_and(|found| found == Some(expected))
                    })
                    .then_some(())
            });
            divided.with_context(|| explain(&lab, service))?;
        }
    }
    for service in ["ranged", "ranged-udp"] {
        let vips = wait_for_addresses(&lab, service, 2)?;
        delete(&lab, service)?;
        vips.iter().try_for_each(|vip| wait_until_gone(&lab, vip))?;
    }
    Ok(())
}

/// The cluster mirrors them to slices, which is what kvip reads.
#[test]
fn endpoints_written_by_hand_serve() -> Result<()> {
    let lab = asking()?;
    let pod = items(&lab, "pods -l app=nginx")?.remove(0);
    let (name, ip) = (&pod["metadata"]["name"], &pod["status"]["podIP"]);
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "by-hand", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "http", "port": 80}]}],
    });
    Asking::new("by-hand")
        .spec("selector", json!(null))
        .annotation("kvip.io/vips", "10.87.2.57")
        .apply(&lab)?;
    lab.kubectl_with(&["apply", "-f", "-"], &endpoints.to_string())?;
    let answer = wait_for_answer(&lab, "10.87.2.57")?;
    let name = name.as_str().context("a pod has a name")?;
    must(&lab, answer.contains(name), &format!("{name} is to answer, not {answer}"))?;
    must(&lab, object(&lab, "endpoints by-hand").is_ok(), "it is an Endpoints object")?;
    delete(&lab, "by-hand")?;
    wait_until_gone(&lab, "10.87.2.57")
}
