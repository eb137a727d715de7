//! A client behind a link that takes 1400 octets: the router's word about it has to reach the pod.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvip_lab::lab::Lab;
use kvip_lab::layout::OUTSIDE_MTU;
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::Report;
use kvip_lab::scenario::{SOON, diagnosis};

use super::{MODES, Mode, modes};

/// Connections, so that each pod has some.
const CONNECTIONS: u16 = 6;
/// Octets of a download, and what six of them may take on a slow machine.
const DOWNLOAD: (usize, Duration) = (120_000, Duration::from_secs(4));
/// Octets of a datagram, with its headers as long as the nodes' network takes, and datagrams on each connection: those before
/// the router has spoken are lost.
const DATAGRAMS: (usize, u64) = (1440, 5);

#[test]
fn what_is_too_long_for_the_way_is_made_shorter_by_the_pod() -> Result<()> {
    let lab = modes()?;
    for mode in MODES {
        for question in mode.questions() {
            forget_the_way(&lab)?;
            check(&lab, mode, question)?;
        }
    }
    Ok(())
}

/// Pods know what routers said for ten minutes.
fn forget_the_way(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let pod = node.pod("echo-")?;
        let script = format!("for family in -4 -6; do ip -n {pod} $family route flush cache; done");
        node.must_within(SOON, &script)?;
    }
    Ok(())
}

fn check(lab: &Lab, mode: Mode, question: Question) -> Result<()> {
    let is_stream = question.transport == Transport::Tcp;
    let question = question.connections(CONNECTIONS);
    let (question, count) = if is_stream {
        (question.octets(DOWNLOAD.0).every(DOWNLOAD.1), 1)
    } else {
        (question.octets(DATAGRAMS.0), DATAGRAMS.1)
    };
    let report = lab.ask(Asker::Outside, &question, count)?;
    println!("{:4} {}: {report}", mode.name, question.arguments());
    let why = || format!("{} {}: {report}\n{}", mode.name, question.arguments(), diagnosis(lab));
    ensure!(!is_stream || report.failures().is_empty(), "a download did not complete, {}", why());
    let ends: Vec<_> = report.connections().into_values().filter_map(|view| view.end()).collect();
    ensure!(ends.is_empty(), "connections ended without an answer: {ends:?}, {}", why());
    for node in report.nodes().keys() {
        let known = known_limit(lab, node, &report.from_node(node))?;
        ensure!(known, "the pod on {node} was not told of {OUTSIDE_MTU} octets, {}", why());
    }
    Ok(())
}

/// Whether the pod on that node knows the limit of the way to whom it saw.
fn known_limit(lab: &Lab, node: &str, report: &Report) -> Result<bool> {
    let pod = lab.node(node).pod("echo-")?;
    let limit = format!("mtu {OUTSIDE_MTU}");
    for source in report.sources().keys() {
        let route = lab.node(node).must_within(SOON, &format!("ip -n {pod} route get {source}"))?;
        if !route.contains(&limit) {
            return Ok(false);
        }
    }
    Ok(true)
}
