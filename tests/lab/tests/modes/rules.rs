//! Rules and routes of mode dsr beside a program that thinks that all of them are its own.

use anyhow::{Result, ensure};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::peer::Transport;
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::{SOON, diagnosis, explained};

use super::{DSR, modes, question};

/// With its defaults systemd-networkd takes away the policy rules that it did not make when it sets up a link (networkd.conf(5),
/// ManageForeignRoutingPolicyRules).
const RESTART: &str = "mkdir -p /etc/systemd/network
    printf '[Match]\\nName=dummy9\\n[Network]\\nAddress=198.51.100.9/32\\n' >/etc/systemd/network/90-dummy9.network
    ip link add dummy9 type dummy
    systemd-run --quiet --unit lab-rules --property StandardOutput=file:/run/lab-rules ip monitor rule
    systemctl restart systemd-networkd";
/// A rule of another program that is kvip's but for its protocol and its place.
const FOREIGN: &str = "priority 51 fwmark 0x1000000/0x1000000 lookup 5087";
const MEND: &str = "systemctl stop systemd-networkd lab-rules; ip link del dummy9; rm /etc/systemd/network/90-dummy9.network";

/// On a node that does not hold the VIP, so that what is handed on to it comes in by the rules and the routes.
#[test]
fn what_others_remove_comes_back() -> Result<()> {
    let lab = modes()?;
    let node = lab.node(lab.other_than(lab.wait_for_holder()?));
    node.must_within(SOON, RESTART)?;
    let gone = lab.wait_for("networkd to remove the rules", SOON, || {
        node.must("cat /run/lab-rules").ok()?.contains("Deleted 50:").then_some(())
    });
    explained(&lab, gone)?;
    check_back(&lab, node, "networkd's restart")?;
    node.must_within(SOON, MEND)?;
    node.must("for family in 4 6; do ip -$family route flush table 5087; done")?;
    check_back(&lab, node, "a flush of the routing table")?;
    for family in ["-4", "-6"] {
        node.must(&format!(
            "ip {family} rule add {FOREIGN} protocol static; ip {family} rule del priority 50"
        ))?;
    }
    check_back(&lab, node, "a removal of the rules beside another program's")?;
    // Its configuration begins with `flush ruleset`. A CNI would put its own rules back.
    node.must_within(
        SOON,
        "nft list table inet lab-cni >/run/lab-cni; systemctl restart nftables; nft -f /run/lab-cni",
    )?;
    check_back(&lab, node, "a restart of nftables")?;
    let repairs = node.kvip_status()?["repairs"].clone();
    let counted = ["routing", "nftables"].iter().all(|kind| repairs[kind].as_u64() > Some(0));
    ensure!(counted, "what was put back is not counted: {repairs}");
    for family in ["-4", "-6"] {
        let rules = node.must(&format!("ip {family} rule"))?;
        ensure!(rules.contains("51:"), "another program's rule is gone:\n{rules}");
        node.must(&format!("ip {family} rule del {FOREIGN}"))?;
    }
    Ok(())
}

/// Waits until all that the node needs of mode dsr is there, and looks that its pod answers.
fn check_back(lab: &Lab, node: Node, after: &str) -> Result<()> {
    let back = lab.wait_for(&format!("rules, routes and table to be back after {after}"), SOON, || {
        let there = |family: &str| {
            let rules = node.must(&format!("ip {family} rule")).ok()?;
            let routes = node.must(&format!("ip {family} route show table 5087")).ok()?;
            let has_rule = rules.lines().any(|rule| rule.starts_with("50:") && rule.contains("lookup 5087"));
            (has_rule && routes.contains("local default")).then_some(())
        };
        there("-4").and(there("-6"))?;
        node.must("nft list table inet kvip").ok().map(drop)
    });
    explained(lab, back)?;
    for vip in DSR.vips() {
        let report = lab.ask(Asker::Client, &question(Transport::Tcp, vip).connections(16), 1)?;
        let good = report.failures().is_empty() && report.nodes().contains_key(node.spec().name);
        ensure!(good, "{after}, {vip}: {report}\n{}", diagnosis(lab));
    }
    Ok(())
}
