//! Where packets travel: which node sends the answers, and that nothing goes round in circles when tables differ.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::ECHO;
use kvip_lab::lab::Lab;
use kvip_lab::layout::NODES;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::Report;
use kvip_lab::scenario::{SOON, diagnosis};
use kvip_lab::trace::Packets;

use super::{DSR, MODES, Mode, NAT, modes};

/// Connections, so that each pod has some: they are hashed, not dealt out.
const CONNECTIONS: u16 = 24;
/// On its way to a pod a packet comes to the holder, and from there to the pod's node.
const PASSES: usize = 2;

/// What all nodes' cards see of somebody who asks a VIP, each connection a few times.
fn traced(lab: &Lab, asker: Asker, question: Question, count: u64) -> Result<(Report, Packets)> {
    let question = question.connections(CONNECTIONS).count(count);
    let trace = lab.trace(&format!("host {} and port {ECHO}", question.target.ip()))?;
    let report = lab.asking(asker, &question)?.stop()?;
    Ok((report, trace.stop()?))
}

#[test]
fn answers_leave_from_the_pods_node_or_through_the_holder() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    for mode in MODES {
        for question in mode.questions() {
            let (report, packets) = traced(&lab, Asker::Client, question, 5)?;
            let answers = packets.sent_from(question.target.ip());
            println!(
                "{:4} {} {:14} answers by pods of {:?}, sent by {:?}",
                mode.name,
                question.transport,
                question.target.ip(),
                report.nodes(),
                answers.sent()
            );
            let why = || format!("{}: {report}\n{packets}", mode.name);
            ensure!(report.failures().is_empty(), "not all was answered, {}", why());
            ensure!(report.nodes().len() == NODES.len(), "not all pods were met, {}", why());
            check_senders(mode, holder, &report, &answers.sent()).with_context(why)?;
            ensure!(
                packets.most_passes() <= PASSES,
                "a packet passed {} times, {}",
                packets.most_passes(),
                why()
            );
        }
    }
    Ok(())
}

fn check_senders(mode: Mode, holder: &str, report: &Report, sent: &BTreeMap<&str, usize>) -> Result<()> {
    if mode == NAT {
        ensure!(sent.keys().eq([&holder]), "answers left from {sent:?}, not only from {holder}");
        return Ok(());
    }
    for (node, answers) in report.nodes() {
        // Each answer is a packet at least, and what answers two nodes share would show as more at one and fewer at the other.
        let packets = sent.get(&*node).copied().unwrap_or(0);
        ensure!(packets >= answers, "{node} sent {packets} packets, and its pods answered {answers} times");
    }
    Ok(())
}

/// A process and a pod of a node that does not hold the VIP: their own node balances for them, so that the VIP is on no wire.
/// What pods ask in mode nat is routed to the holder, as from anywhere else.
#[test]
fn who_asks_in_the_cluster_is_served_by_its_own_node() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let pod = lab.node(other).pod("echo-")?;
    for mode in MODES {
        for asker in [Asker::Node(other), Asker::Pod(other, &pod)] {
            for question in mode.questions() {
                let (report, packets) = traced(&lab, asker, question, 2)?;
                let (received, sent) = (packets.received(), packets.sent());
                println!(
                    "{:4} {asker:?} {}: cards received {received:?}, sent {sent:?}",
                    mode.name,
                    question.arguments()
                );
                let why = || format!("{} {asker:?}: {report}\n{packets}", mode.name);
                ensure!(report.failures().is_empty(), "not all was answered, {}", why());
                ensure!(report.nodes().len() == NODES.len(), "not all pods were met, {}", why());
                if mode == NAT && matches!(asker, Asker::Pod(..)) {
                    let senders = packets.sent_from(question.target.ip()).sent();
                    ensure!(senders.keys().eq([&holder]), "answers did not leave from {holder}, {}", why());
                } else {
                    ensure!(packets.is_empty(), "packets for the VIP were on the wire, {}", why());
                }
            }
        }
    }
    Ok(())
}

/// All nodes but the holder are told, behind kvip's back, that the pods are on each other.
#[test]
fn nothing_goes_round_where_tables_differ() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let others: Vec<&str> = NODES.iter().map(|node| node.name).filter(|node| *node != holder).collect();
    lab.nodes().try_for_each(|node| node.must_within(SOON, "systemctl stop kvip").map(drop))?;
    let seen = crossed(&lab, holder, &others);
    lab.nodes().try_for_each(|node| node.must_within(SOON, "systemctl start kvip").map(drop))?;
    seen
}

fn crossed(lab: &Lab, holder: &str, others: &[&str]) -> Result<()> {
    let (first, second) = (others[0], others[1]);
    keep_only(lab, holder, first)?;
    keep_only(lab, first, second)?;
    keep_only(lab, second, first)?;
    for question in DSR.questions() {
        let (report, packets) = traced(lab, Asker::Client, question, 3)?;
        println!(
            "tables differ, {}: {report}; a packet passed {} times at most",
            question.arguments(),
            packets.most_passes()
        );
        ensure!(packets.most_passes() <= PASSES, "packets go round: {report}\n{packets}\n{}", diagnosis(lab));
        let nodes: Vec<String> = report.nodes().into_keys().collect();
        ensure!(
            nodes == [first] && report.failures().is_empty(),
            "{first} has the pod, and {report}\n{}",
            diagnosis(lab)
        );
    }
    Ok(())
}

/// In the node's tables for the VIPs of dsr, leaves the pod of `kept` alone. What serves packets of peers stays.
fn keep_only(lab: &Lab, node: &str, kept: &str) -> Result<()> {
    let pod = lab.node(kept).pod("echo-")?;
    let shown = lab.node(kept).must_within(SOON, &format!("ip -n {pod} -br addr show eth0"))?;
    let addresses = shown.split_whitespace().filter_map(|word| word.split_once('/'));
    let kept: Vec<String> = addresses.flat_map(|(address, _)| at_port(address)).collect();
    let vips: Vec<String> = DSR.vips().into_iter().flat_map(at_port).collect();
    let table = lab.node(node).ipvs()?;
    let remove = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        ["-a", kind, vip, "-r", server, ..] if is_in(&vips, vip) && !is_in(&kept, server) => {
            Some(format!("ipvsadm -d {kind} {vip} -r {server}\n"))
        }
        _ => None,
    };
    let script: String = table.lines().filter_map(remove).collect();
    ensure!(!script.is_empty(), "{node} has no real servers to remove:\n{table}");
    lab.node(node).must(&format!("set -e\n{script}")).map(drop)
}

/// As ipvsadm writes an address of either family.
fn at_port(address: &str) -> [String; 2] {
    [format!("{address}:{ECHO}"), format!("[{address}]:{ECHO}")]
}

fn is_in(list: &[String], word: &str) -> bool {
    list.iter().any(|listed| listed == word)
}
