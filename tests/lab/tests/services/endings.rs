//! Endpoints that end, endpoints that people write by hand, and who is let in, over TCP and UDP and both families.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{
    Asking, ECHO, ECHO_PORTS, POOLS, explain, items, must, object, settings, wait_for_addresses,
    wait_for_answer, wait_until_gone,
};
use kvip_lab::lab::Lab;
use kvip_lab::layout::{CLIENT_V4, CLIENT_V6};
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::{Probe, Report};
use kvip_lab::prober::Failure;
use kvip_lab::scenario::{SOON, echo_pods};
use serde_json::json;

use super::{asking, delete};

/// How long a pod that was told to end goes on serving here.
const GRACE: Duration = Duration::from_secs(20);

/// A load balancer of both families in front of three pods that answer lines and datagrams.
fn echo(lab: &Lab, name: &str) -> Result<Asking> {
    lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(ECHO_PORTS))?;
    Ok(Asking::echo(name).load_balancer())
}

fn question(transport: Transport, vip: IpAddr) -> Question {
    Question::new(transport, SocketAddr::new(vip, ECHO)).connections(1)
}

/// One question on each of `connections` new connections.
fn asked(lab: &Lab, vip: IpAddr, connections: u16) -> Result<Report> {
    lab.ask(Asker::Client, &question(Transport::Tcp, vip).connections(connections), 1)
}

/// Connections that the client holds at the VIP, and a pod of theirs that ends but goes on serving for so long.
struct Ending {
    held: Probe,
    pod: String,
}

impl Ending {
    /// Waits until three pods answer, holds connections to them, and tells one to end.
    fn begin(lab: &Lab, vip: IpAddr, grace: Duration) -> Result<Self> {
        let all = lab.wait_for("three pods to answer", Duration::from_secs(120), || {
            (asked(lab, vip, 12).ok()?.pods().len() == 3).then_some(())
        });
        all.with_context(|| explain(lab, ""))?;
        let held = lab.asking(Asker::Client, &question(Transport::Tcp, vip).connections(6))?;
        let pod = lab.wait_for("answers on all connections", SOON, || {
            let report = Report::new(held.so_far());
            (report.connections().len() == 6 && report.answered() > 12)
                .then(|| report.pods().into_keys().next())
        })?;
        let pod = pod.context("a pod that has connections")?;
        let seconds = grace.as_secs();
        lab.kubectl(&["annotate", "pod", &pod, &format!("lab.kvip/pre-stop-seconds={seconds}")])?;
        let within = format!("--grace-period={}", seconds + 10);
        lab.kubectl(&["delete", "pod", &pod, "--wait=false", &within])?;
        Ok(Self { held, pod })
    }

    /// Waits for so many more answers of the pod on the connections that it had.
    fn answers(&self, lab: &Lab, more: usize) -> Result<()> {
        let of_pod = || Report::new(self.held.so_far()).pods().get(&self.pod).copied().unwrap_or_default();
        let before = of_pod();
        let on = lab.wait_for(&format!("{more} more answers of {}", self.pod), GRACE, || {
            (of_pod() >= before + more).then_some(())
        });
        on.with_context(|| format!("{}\n{}", Report::new(self.held.so_far()), explain(lab, "")))
    }
}

/// Waits until the node gives one of the VIP's servers no more connections, or `gone`: has none such.
fn wait_for_drain(lab: &Lab, node: &str, vip: IpAddr, gone: bool) -> Result<()> {
    let meant = format!("-a -t {vip}:{ECHO} ");
    let drains = |table: String| table.lines().any(|l| l.starts_with(&meant) && l.ends_with("-w 0"));
    let what = format!("a server of weight 0 on {node} {}", if gone { "to be gone" } else { "" });
    let found = lab.wait_for(&what, SOON, || {
        lab.node(node).ipvs().is_ok_and(|table| drains(table) != gone).then_some(())
    });
    found.with_context(|| explain(lab, ""))
}

fn only_v4(vips: &[String]) -> Result<IpAddr> {
    Ok(vips.iter().find(|vip| !vip.contains(':')).context("an IPv4 address")?.parse()?)
}

#[test]
fn an_ending_pod_keeps_its_open_connections_and_gets_no_more() -> Result<()> {
    let lab = asking()?;
    echo(&lab, "ending")?.apply(&lab)?;
    let vips = wait_for_addresses(&lab, "ending", 2)?;
    let vip = only_v4(&vips)?;
    let ending = Ending::begin(&lab, vip, GRACE)?;
    // Where it has no connections it is gone at once.
    wait_for_drain(&lab, lab.wait_for_holder()?, vip, false)?;
    let new = asked(&lab, vip, 12)?;
    ending.answers(&lab, 10)?;
    let Ending { held, pod } = ending;
    let report = held.stop()?;
    must(&lab, !new.pods().contains_key(&pod), &format!("{pod} ends and got new connections: {new}"))?;
    must(&lab, new.answered() == 12, &format!("new connections go to the others: {new}"))?;
    for (number, connection) in report.connections() {
        let pods = connection.pods();
        ensure!(pods.len() == 1, "connection {number} was answered by {pods:?}: {connection}");
    }
    delete(&lab, "ending")?;
    vips.iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}

/// The pod itself would go on for longer than the limit.
#[test]
fn a_drain_goes_on_over_a_restart_and_ends_at_its_limit() -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(20);
    /// The drain begins with kvip's first pass, before its restart has ended.
    const ROOM: Duration = Duration::from_secs(6);
    let lab = asking()?;
    settings(&lab, &[POOLS, "[balancing]\ndrain_limit = \"20s\"\n"].concat())?;
    echo(&lab, "draining")?.apply(&lab)?;
    let vips = wait_for_addresses(&lab, "draining", 2)?;
    let vip = only_v4(&vips)?;
    let ending = Ending::begin(&lab, vip, Duration::from_secs(150))?;
    let holder = lab.wait_for_holder()?;
    wait_for_drain(&lab, holder, vip, false)?;
    lab.node(holder).must_within(SOON, "systemctl restart kvip")?;
    let restarted = Instant::now();
    ending.answers(&lab, 10)?;
    wait_for_drain(&lab, holder, vip, false)?;
    wait_for_drain(&lab, holder, vip, true)?;
    let took = restarted.elapsed();
    must(&lab, took + ROOM > LIMIT && took < LIMIT * 2, &format!("the drain took {took:?}, not {LIMIT:?}"))?;
    let pod = object(&lab, &format!("pod {}", ending.pod));
    must(&lab, pod.is_ok(), "the pod ended before its drain did")?;
    let ended = lab.wait_for("its connections to end", SOON, || {
        let report = Report::new(ending.held.so_far());
        let mut of_pod =
            report.connections().into_values().filter(|one| one.pods().contains_key(&ending.pod));
        of_pod.all(|one| one.end().is_some()).then_some(())
    });
    ended.with_context(|| explain(&lab, "draining"))?;
    must(&lab, asked(&lab, vip, 12)?.answered() == 12, "the others go on")?;
    delete(&lab, "draining")?;
    settings(&lab, POOLS)?;
    vips.iter().try_for_each(|vip| wait_until_gone(&lab, vip))
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
