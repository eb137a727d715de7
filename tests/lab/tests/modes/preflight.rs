//! What stands in the way of mode dsr on a host: found, said, got round, and seen to be mended.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::lab::Lab;
use kvip_lab::layout::CLIENT_V4;
use kvip_lab::peer::Transport;
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::{diagnosis, finding};

use super::{DSR, modes, question};

/// kvip's minute's audit, and what comes of it on a slow machine.
const AUDIT: Duration = Duration::from_secs(120);

#[test]
fn a_firewall_that_drops_what_is_invalid_is_got_round_until_it_is_mended() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    node.must("iptables -A INPUT -m conntrack --ctstate INVALID -j DROP")?;
    said(&lab, holder, "ct state invalid", true)?;
    let seen = seen(&lab)?;
    ensure!(
        seen.len() == 2,
        "pods elsewhere see the holder while they are served by NAT: {seen:?}\n{}",
        diagnosis(&lab)
    );
    let status = node.kvip_status()?;
    let findings = status["findings"].as_array().context("findings")?;
    let mend =
        findings.iter().find_map(|one| one["mend"].as_str()?.split(", and").next()).context("a mend")?;
    ensure!(mend == format!("iptables -I INPUT -d {} -j ACCEPT", DSR.v4), "{mend}");
    node.must(mend)?;
    said(&lab, holder, "ct state invalid", false)?;
    let seen = self::seen(&lab)?;
    ensure!(seen == [CLIENT_V4], "what was mended is served as before: {seen:?}\n{}", diagnosis(&lab));
    node.must("iptables -F INPUT").map(drop)
}

#[test]
fn a_route_through_another_router_is_found() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let pods = kvip_lab::layout::node(other).context("a node")?;
    let (node, network) = (lab.node(holder), pods.pod4);
    node.must(&format!("ip route replace {network} via 10.87.2.1"))?;
    said(&lab, holder, "leads through 10.87.2.1", true)?;
    node.must(&format!("ip route replace {network} via {}", pods.v4))?;
    said(&lab, holder, "leads through 10.87.2.1", false)
}

/// Waits until the node says so, or no more.
fn said(lab: &Lab, node: &str, text: &str, wanted: bool) -> Result<()> {
    let done = lab.wait_for(&format!("{node} to say or unsay {text:?}"), AUDIT, || {
        (finding(lab, node, text).is_some() == wanted).then_some(())
    });
    done.with_context(|| diagnosis(lab))
}

/// Whom the pods of mode dsr see, asked by the client over TCP; all answers come.
fn seen(lab: &Lab) -> Result<Vec<String>> {
    let question = question(Transport::Tcp, DSR.v4).connections(24).every(Duration::from_secs(1));
    let report = lab.ask(Asker::Client, &question, 1)?;
    ensure!(report.answered() == 24, "{report}\n{}", diagnosis(lab));
    Ok(report.sources().into_keys().collect())
}
