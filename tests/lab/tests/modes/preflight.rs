//! What stands in the way of mode dsr on a host: found, said, got round, and seen to be mended.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::Asking;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::{CLIENT_V4, CLIENT_V6, NODES};
use kvip_lab::peer::Transport;
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::{SOON, diagnosis, explained, finding};

use super::classic::{self, DR};
use super::{DSR, answered_by, modes, pods_behind, question};

/// kvip's minute's audit, and what comes of it on a slow machine.
const AUDIT: Duration = Duration::from_secs(120);
/// The VIP of a Service of policy Local.
const LOCAL: &str = "10.87.2.61";

/// Said of mode dsr; Services of mode dr have findings of their own.
const ONE_WAY: &str = "in mode dsr: this host drops packets of connections of which it sees one way";

#[test]
fn a_firewall_that_drops_what_is_invalid_is_got_round_until_it_is_mended() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    for (tables, vip, client) in [("iptables", DSR.v4, CLIENT_V4), ("ip6tables", DSR.v6, CLIENT_V6)] {
        let node = lab.node(holder);
        node.must(&format!("{tables} -A INPUT -m conntrack --ctstate INVALID -j DROP"))?;
        said(&lab, holder, ONE_WAY, true)?;
        let seen = seen(&lab, vip)?;
        ensure!(
            seen.len() == 2,
            "pods elsewhere see the holder while they are served by NAT: {seen:?}\n{}",
            diagnosis(&lab)
        );
        let mend = mend(node)?;
        ensure!(mend == format!("{tables} -I INPUT -d {vip} -j ACCEPT"), "{mend}");
        node.must(&mend)?;
        said(&lab, holder, ONE_WAY, false)?;
        let seen = self::seen(&lab, vip)?;
        ensure!(seen == [client], "what was mended is served as before: {seen:?}\n{}", diagnosis(&lab));
        node.must(&format!("{tables} -F INPUT"))?;
    }
    Ok(())
}

/// What is handed on as it came to backends that carry the VIP is seen one way too, and there is no other way to serve them.
#[test]
fn a_firewall_that_drops_what_is_invalid_is_said_of_mode_dr_until_it_is_mended() -> Result<()> {
    let lab = modes()?;
    // A test before this one may have left such a finding of the other VIP, until the rules are read again.
    let hang = format!(
        "{} tcp 7 in mode dr: this host drops packets of connections of which it sees one way",
        DR.v4
    );
    classic::direct_routing(&lab, classic::service(DR))?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    let ask = || lab.ask(Asker::Client, &question(Transport::Tcp, DR.v4), 1);
    node.must("iptables -A INPUT -m conntrack --ctstate INVALID -j DROP")?;
    said(&lab, holder, &hang, true)?;
    let report = ask()?;
    ensure!(report.answered() == 0, "it is answered in spite of {hang}: {report}");
    let mend = format!("iptables -I INPUT -d {} -j ACCEPT", DR.v4);
    let found = finding(&lab, holder, &hang).context("the finding")?;
    ensure!(found.contains(&mend), "{found}");
    node.must(&mend)?;
    said(&lab, holder, &hang, false)?;
    let report = ask()?;
    ensure!(report.failures().is_empty(), "{report}\n{}", diagnosis(&lab));
    node.must("iptables -F INPUT")?;
    said(&lab, holder, ONE_WAY, false)
}

/// firewalld's rule against forged sources (`IPv6_rpfilter`), as of both families: by kvip's mark there is no way back.
#[test]
fn a_firewall_that_looks_for_the_way_back_by_the_mark_is_found_until_it_is_mended() -> Result<()> {
    const MARK: &str = "this host drops packets by the mark that kvip gives them";
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    node.must(
        "nft 'table inet strict { chain prerouting { type filter hook prerouting priority filter + 10; policy accept;
            meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }; }'",
    )?;
    said(&lab, holder, MARK, true)?;
    let ask = |transport| lab.ask(Asker::Client, &question(transport, DSR.v6), 1);
    for transport in [Transport::Tcp, Transport::Udp] {
        let report = ask(transport)?;
        ensure!(report.answered() == 0, "it is answered in spite of the rule: {report}");
    }
    node.must(&format!("nft insert rule inet strict prerouting ip6 daddr {} accept", DSR.v6))?;
    said(&lab, holder, MARK, false)?;
    for transport in [Transport::Tcp, Transport::Udp] {
        let report = ask(transport)?;
        ensure!(report.failures().is_empty(), "{report}\n{}", diagnosis(&lab));
    }
    node.must("nft delete table inet strict").map(drop)
}

/// The command of the node's finding of mode dsr, ready for a shell.
fn mend(node: Node<'_>) -> Result<String> {
    let status = node.kvip_status()?;
    let findings = status["findings"].as_array().context("findings")?;
    let mut of_dsr = findings.iter().filter(|one| one.to_string().contains(ONE_WAY));
    let mend = of_dsr.find_map(|one| one["mend"].as_str()?.split(", and").next());
    Ok(mend.context("a mend")?.to_owned())
}

/// The holder takes the first packet of a connection for new, and those after it for invalid: as they come in, and as IPVS
/// hands them on.
#[test]
fn a_firewall_that_lets_in_new_connections_alone_is_got_round_until_it_is_mended() -> Result<()> {
    const DROPS: &str = "policy drop (chain input of table ip strict) and policy drop (chain output of table ip strict)), so pods";
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let (node, vip) = (lab.node(holder), DSR.v4);
    node.must(&format!(
        "nft 'table ip strict {{ chain input {{ type filter hook input priority filter; policy drop;
            ip daddr != {vip} accept; ct state established,related accept; meta l4proto tcp ct state new accept; }};
          chain output {{ type filter hook output priority filter; policy drop;
            ip daddr != {vip} accept; ct state established,related,new accept; }}; }}'"
    ))?;
    said(&lab, holder, DROPS, true)?;
    let by_nat = seen(&lab, vip)?;
    ensure!(by_nat.len() == 2, "served by NAT meanwhile: {by_nat:?}\n{}", diagnosis(&lab));
    node.must(&mend(node)?)?;
    said(&lab, holder, DROPS, false)?;
    let seen = seen(&lab, vip)?;
    ensure!(seen == [CLIENT_V4], "what was mended is served as before: {seen:?}\n{}", diagnosis(&lab));
    node.must("nft delete table ip strict").map(drop)
}

/// A card that is changed, say: the others hand packets on to the new one, and take them from it.
#[test]
fn a_peers_new_card_is_learnt() -> Result<()> {
    const CARD: &str = "52:54:00:87:02:99";
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let others: Vec<&str> = NODES.iter().map(|node| node.name).filter(|node| *node != holder).collect();
    let (changed, third) = (others[0], others[1]);
    lab.node(changed).must(&format!("ip link set eth0 address {CARD}"))?;
    let learnt = lab.wait_for("the new card to be a peer's on both other nodes", SOON, || {
        let peers = |node: &&str| {
            let set = lab.node(node).must("nft list set inet kvip peers");
            set.is_ok_and(|set| set.contains(CARD))
        };
        [holder, third].iter().all(peers).then_some(())
    });
    explained(&lab, learnt)?;
    answered_by(&lab, DSR, 3)?;
    // The node of the new card holds the VIPs, and hands packets on to the others.
    for node in [third, holder] {
        lab.node(node).must_within(SOON, "kvip drain --wait 40")?;
    }
    let held = lab.wait_for(&format!("{changed} to hold the VIPs"), SOON, || {
        (lab.holder() == Some(changed)).then_some(())
    });
    explained(&lab, held)?;
    answered_by(&lab, DSR, 3)?;
    [third, holder].iter().try_for_each(|node| lab.node(node).must_within(SOON, "kvip undrain").map(drop))?;
    for vip in DSR.vips() {
        ensure!(seen(&lab, vip)?.len() == 1, "pods see others than the client\n{}", diagnosis(&lab));
    }
    Ok(())
}

#[test]
fn a_route_through_another_router_is_found() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let pods = kvip_lab::layout::node(other).context("a node")?;
    let local = Asking::echo("local").spec("type", "NodePort").spec("externalTrafficPolicy", "Local");
    local.annotation("kvip.io/vips", LOCAL).apply(&lab)?;
    let all = lab.wait_for("three pods behind policy Local", SOON, || {
        (pods_behind(&lab, LOCAL).ok()?.len() == 3).then_some(())
    });
    explained(&lab, all)?;
    let (node, network) = (lab.node(holder), pods.pod4);
    // The router knows the way, so what mode dsr cannot hand on is served by NAT.
    let route = |verb| {
        let output = lab.host(&["ip", "route", verb, network, "via", pods.v4])?;
        ensure!(output.ok(), "{output}");
        Ok(())
    };
    route("add")?;
    node.must(&format!("ip route replace {network} via 10.87.2.1"))?;
    said(&lab, holder, "leads through 10.87.2.1", true)?;
    answered_by(&lab, DSR, 3)?;
    let by_nat = seen(&lab, DSR.v4)?;
    ensure!(by_nat.len() == 2, "pods behind a router see the holder: {by_nat:?}\n{}", diagnosis(&lab));
    // Policy Local keeps the client's address, so there are fewer pods rather than another source.
    said(&lab, holder, "left out, as externalTrafficPolicy Local keeps the client's address", true)?;
    ensure!(seen(&lab, LOCAL)? == [CLIENT_V4], "policy Local lost the client\n{}", diagnosis(&lab));
    ensure!(
        pods_behind(&lab, LOCAL)?.len() == 2,
        "policy Local does not leave pods out\n{}",
        diagnosis(&lab)
    );
    route("del")?;
    node.must(&format!("ip route replace {network} via {}", pods.v4))?;
    said(&lab, holder, "leads through 10.87.2.1", false)?;
    lab.kubectl(&["delete", "service", "local"]).map(drop)
}

/// Waits until the node says so, or no more.
fn said(lab: &Lab, node: &str, text: &str, wanted: bool) -> Result<()> {
    let done = lab.wait_for(&format!("{node} to say or unsay {text:?}"), AUDIT, || {
        (finding(lab, node, text).is_some() == wanted).then_some(())
    });
    done.with_context(|| diagnosis(lab))
}

/// Whom the pods of mode dsr see, asked by the client over TCP; all answers come.
fn seen(lab: &Lab, vip: &str) -> Result<Vec<String>> {
    let question = question(Transport::Tcp, vip).connections(24).every(Duration::from_secs(1));
    let report = lab.ask(Asker::Client, &question, 1)?;
    ensure!(report.answered() == 24, "{report}\n{}", diagnosis(lab));
    Ok(report.sources().into_keys().collect())
}
