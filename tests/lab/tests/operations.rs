//! What an admin does to a node that serves, and what systemd does: VIPs move softly, and nothing else changes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::scenario::{
    SOON, VIP, diagnosis, explained, serving, wait_until_settled, with_a_soft_hand_over,
    without_a_lost_request,
};
use serde_json::{Value, json};

/// A reload ends when kvip says so; one that waits for anything else takes longer than this.
const RELOAD: Duration = Duration::from_secs(20);

#[test]
fn a_drained_node_hands_over_softly() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let probe = lab.probe(VIP, 80, Duration::from_millis(100))?;
    let drained = lab.node(holder).run_within(SOON, "kvip drain --wait 40", b"");
    let successor = another_holder(&lab, holder);
    let report = probe.stop()?;
    let drained = drained?;
    ensure!(drained.ok() && drained.stdout.contains("another node took over"), "{drained}\n{report}");
    explained(&lab, successor)?;
    let gap = report.longest_gap().context("a report has a longest gap")?.length();
    ensure!(gap < Duration::from_secs(2), "a soft hand-over took {gap:?}: {report}");
    ensure!(lab.node(holder).must("cat /run/kvip/weight-50")?.trim() == "-254");
    ensure!(lab.node(holder).run("kvip undrain")?.ok());
    lab.wait_for("the weight of a backup", SOON, || {
        (lab.node(holder).must("cat /run/kvip/weight-50").ok()?.trim() == "0").then_some(())
    })
}

/// Drain and undrain work on files alone, for a host whose kvip does not run.
#[test]
fn a_node_without_kvip_is_drained_all_the_same() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    let drained = with_a_soft_hand_over(&lab, || {
        node.must_within(SOON, "systemctl stop kvip")?;
        let drained = node.must_within(SOON, "kvip drain --wait 40")?;
        another_holder(&lab, holder).map(|_| drained)
    })?;
    ensure!(drained.contains("another node took over"), "{drained}");
    let weight = || node.must("cat /run/kvip/weight-50");
    ensure!(weight()?.trim() == "-254", "a drained node may hold VIPs\n{}", diagnosis(&lab));
    let undrained = node.must_within(SOON, "kvip undrain")?;
    ensure!(weight()?.trim() == "0", "an undrained node: {undrained}\n{}", diagnosis(&lab));
    node.must_within(SOON, "systemctl start kvip")?;
    wait_until_settled(&lab)?;
    ensure!(lab.wait_for_holder()? != holder, "{holder} took the VIPs back\n{}", diagnosis(&lab));
    Ok(())
}

/// keepalived's own unit hands over before it stops, and starts closed where nobody has said what this node can serve. A
/// kvip that starts leaves one alone that was stopped by hand.
#[test]
fn keepalived_stops_softly_and_starts_closed() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    let since = node.must("date +@%s")?;
    with_a_soft_hand_over(&lab, || node.must_within(SOON, "systemctl stop keepalived"))?;
    handed_over(&node, since.trim())?;
    let addresses = node.must("ip -br addr")?;
    for vip in ["10.87.2.50/", "fd00:87:2::50/", "169.254.255.50/"] {
        ensure!(!addresses.contains(vip), "keepalived has stopped and {vip} is left: {addresses}");
    }
    node.must_within(SOON, "systemctl restart kvip")?;
    let told = lab.wait_for("kvip to say that keepalived was stopped", SOON, || {
        node.kvip_status().ok()?.to_string().contains("stopped by hand").then_some(())
    });
    explained(&lab, told)?;
    let state = node.must("systemctl show -P ActiveState keepalived")?;
    ensure!(state.trim() == "inactive", "kvip's start made keepalived {state}\n{}", diagnosis(&lab));
    node.must_within(SOON, "systemctl stop kvip; rm -r /run/kvip; systemctl start keepalived")?;
    let weight = node.must("cat /run/kvip/weight-50")?;
    ensure!(weight.trim() == "-254", "keepalived's start made a weight of {weight}\n{}", diagnosis(&lab));
    node.must_within(SOON, "systemctl start kvip")?;
    wait_until_settled(&lab)?;
    ensure!(lab.wait_for_holder()? != holder, "{holder} took the VIPs back\n{}", diagnosis(&lab));
    Ok(())
}

/// The node was a backup, as another was better, before its keepalived ended: one that ends as a master leaves the VIPs to nobody
/// until others have noticed.
fn handed_over(node: &Node<'_>, since: &str) -> Result<()> {
    let journal = node.must(&format!("journalctl -u keepalived -o cat --no-pager --since '{since}'"))?;
    let backup = journal.find("Entering BACKUP STATE");
    let stopped = journal.find("Stopped").or_else(|| journal.find("Stopping"));
    ensure!(backup.is_some() && backup < stopped, "it did not hand over before it stopped:\n{journal}");
    Ok(())
}

/// A restart of keepalived that systemd skips, for want of a file, does not keep it down when there is a VIP again.
#[test]
fn a_keepalived_that_had_nothing_to_run_is_started_again() -> Result<()> {
    let lab = serving()?;
    let backup = lab.other_than(lab.wait_for_holder()?);
    let node = lab.node(backup);
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    lab.kubectl(&["label", "node", backup, &format!("{label}=")])?;
    let gone = lab.wait_for("kvip to remove keepalived.conf", SOON * 2, || {
        node.must("test ! -e /etc/keepalived/keepalived.conf").ok().map(drop)
    });
    explained(&lab, gone)?;
    node.must_within(SOON, "systemctl restart keepalived; test ! -e /run/kvip/stopping")?;
    lab.kubectl(&["label", "node", backup, &format!("{label}-")])?;
    let back = lab.wait_for("keepalived to run and the weight of a backup", SOON * 2, || {
        let state = node.must("systemctl show -P ActiveState keepalived; cat /run/kvip/weight-50").ok()?;
        (state.trim() == "active\n0").then_some(())
    });
    explained(&lab, back)?;
    wait_until_settled(&lab)
}

/// keepalived itself notices that kvip is gone, and what has moved then stays where it is when kvip is back.
#[test]
fn a_holder_without_kvip_yields_after_a_while() -> Result<()> {
    check_yields(
        |node| node.must_within(SOON, "systemctl stop kvip").map(drop),
        |node, _| node.must_within(SOON, "systemctl start kvip").map(drop),
    )
}

/// keepalived sees a kvip that systemd starts again and again, so it is that kvip itself which notices.
#[test]
fn a_holder_whose_kvip_ends_at_each_start_yields_too() -> Result<()> {
    check_yields(
        |node| {
            node.write("/etc/kvip/config.toml", b"wrong = true\n")?;
            node.run_within(SOON, "systemctl restart --no-block kvip", b"").map(drop)
        },
        |node, settings| {
            node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
            node.must_within(SOON, "systemctl restart kvip").map(drop)
        },
    )
}

/// The holder hands over softly when its kvip goes, where that counts as gone after 5 s, and takes nothing back when it comes.
fn check_yields(
    go: impl FnOnce(&Node<'_>) -> Result<()>,
    come: impl FnOnce(&Node<'_>, &Settings) -> Result<()>,
) -> Result<()> {
    let lab = serving()?;
    let soon_gone = Settings { extra: "gone_after = \"5s\"".to_owned(), ..Settings::default() };
    take_settings(&lab, &soon_gone, "terminate_delay 5\n")?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    with_a_soft_hand_over(&lab, || {
        go(&node)?;
        another_holder(&lab, holder)
    })?;
    come(&node, &soon_gone)?;
    wait_until_settled(&lab)?;
    ensure!(lab.wait_for_holder()? != holder, "{holder} took the VIPs back\n{}", diagnosis(&lab));
    take_settings(&lab, &Settings::default(), "terminate_delay 60\n")
}

/// Has all nodes reload kvip with `settings`, and waits until their keepalived.conf has `text`.
fn take_settings(lab: &Lab, settings: &Settings, text: &str) -> Result<()> {
    for node in lab.nodes() {
        node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
        node.must_within(SOON, "systemctl reload kvip")?;
    }
    let taken = lab.wait_for(&format!("{text:?} in keepalived.conf of all nodes"), SOON, || {
        let conf = |node: Node<'_>| node.must("cat /etc/keepalived/keepalived.conf");
        lab.nodes().all(|node| conf(node).is_ok_and(|conf| conf.contains(text))).then_some(())
    });
    explained(lab, taken)?;
    wait_until_settled(lab)
}

/// Unicast: who comes and goes is made known in such an order that nobody becomes a second master.
#[test]
fn unicast_members_come_and_go() -> Result<()> {
    let lab = serving()?;
    let label = |node: &str, change: &str| lab.kubectl(&["label", "node", node, change]);
    for node in lab.nodes() {
        label(node.spec().name, "lab=vip")?;
    }
    let extra = "transport = \"unicast\"\nmembers = \"lab=vip\"".to_owned();
    take_settings(&lab, &Settings { extra, ..Settings::default() }, "unicast_peer")?;
    let holder = lab.wait_for_holder()?;
    let backup = lab.other_than(holder);
    let address = lab.node(backup).spec().v4;
    let known = |wanted: bool| {
        let known = lab.wait_for(&format!("{address} to be {holder}'s peer: {wanted}"), SOON * 2, || {
            let conf = lab.node(holder).must("cat /etc/keepalived/keepalived.conf").ok()?;
            (conf.lines().any(|line| line.trim() == address) == wanted).then_some(())
        });
        explained(&lab, known)
    };
    let before = masters(&lab)?;
    without_a_lost_request(&lab, || {
        label(backup, "lab-")?;
        known(false)?;
        label(backup, "lab=vip")?;
        known(true)?;
        wait_until_settled(&lab)
    })?;
    let after = masters(&lab)?;
    ensure!(before == after, "elections: {before}, then {after}\n{}", diagnosis(&lab));
    with_a_soft_hand_over(&lab, || {
        label(holder, "lab-")?;
        another_holder(&lab, holder)
    })?;
    label(holder, "lab=vip")?;
    wait_until_settled(&lab)?;
    ensure!(lab.wait_for_holder()? != holder, "{holder} took the VIPs back\n{}", diagnosis(&lab));
    take_settings(&lab, &Settings::default(), "virtual_ipaddress")?;
    lab.nodes().try_for_each(|node| label(node.spec().name, "lab-").map(drop))
}

/// How often keepalived became master, on all nodes.
fn masters(lab: &Lab) -> Result<usize> {
    let journals = lab.on_all_nodes(|node| node.must("journalctl -u keepalived --boot --no-pager"));
    journals.into_iter().map(|journal| Ok(journal?.matches("Entering MASTER STATE").count())).sum()
}

/// Waits until one does, not for good: of two survivors that both became master, the better one is left a moment later.
fn another_holder(lab: &Lab, than: &str) -> Result<&'static str> {
    lab.wait_for("another holder", SOON, || lab.holder().filter(|other| *other != than))
}

/// WatchdogSec is 30 s; systemd then kills and starts what does not beat.
#[test]
fn a_kvip_that_hangs_is_started_anew() -> Result<()> {
    let lab = serving()?;
    let backup = lab.other_than(lab.wait_for_holder()?);
    let node = lab.node(backup);
    let restarts = || -> Result<u32> {
        let count = node.must("systemctl show -P NRestarts kvip")?;
        count.trim().parse().with_context(|| format!("NRestarts of kvip on {backup}: {count}"))
    };
    let before = restarts()?;
    without_a_lost_request(&lab, || {
        node.must("systemctl kill --signal=STOP kvip")?;
        lab.wait_for("systemd to start kvip anew", Duration::from_secs(120), || {
            let active = node.run("systemctl is-active --quiet kvip").is_ok_and(|output| output.ok());
            (restarts().ok()? > before && active).then_some(())
        })
    })?;
    wait_until_settled(&lab)
}

/// What a person asks on a node that serves, and what the journal can be searched for.
#[test]
fn commands_answer_on_a_live_host() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(lab.other_than(holder));
    let plan = explained(&lab, node.must_within(SOON, "kvip plan --json"))?;
    let plan: Value = serde_json::from_str(&plan).with_context(|| format!("kvip plan: {plan}"))?;
    ensure!(
        plan["changes"] == json!([])
            && plan["keepalived_reload"] == false
            && plan["unchanged_virtual_servers"] == 2,
        "a settled node plans changes: {plan}"
    );
    node.must_within(SOON, "kvip check")?;
    let explanation = node.must_within(SOON, "kvip explain default/nginx")?;
    ensure!(explanation.starts_with("default/nginx is served at 10.87.2.50"), "{explanation}");
    let named = lab.wait_for(&format!("kvip status to name {holder}"), SOON, || {
        let status = node.must("kvip status").ok()?;
        let mut words = status.lines().find(|line| line.starts_with("10.87.2.50 "))?.split_whitespace();
        (words.nth(1) == Some(holder)).then_some(())
    });
    explained(&lab, named)?;
    let field =
        "journalctl -u kvip --no-pager -o json | grep -m 1 '\"KVIP_VIRTUAL_SERVER\":\"[^\"]*10.87.2.50'";
    explained(&lab, node.must_within(SOON, field)).map(drop)
}

/// A mistake in the settings is told at the reload, and what was served before is served on.
#[test]
fn a_reload_with_wrong_settings_changes_nothing() -> Result<()> {
    let lab = serving()?;
    let node = lab.node(lab.wait_for_holder()?);
    let reload = |settings: Settings| -> Result<()> {
        node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
        node.must_within(RELOAD, "systemctl reload kvip")?;
        lab.wait_for("kvip to be active after a reload", SOON, || {
            let state = node.run("systemctl is-active kvip").ok()?;
            (state.stdout.trim() == "active").then_some(())
        })
    };
    without_a_lost_request(&lab, || {
        reload(Settings { advert: "3ms", ..Settings::default() })?;
        lab.wait_for("the journal to name the mistake", SOON, || {
            let journal = node.must("journalctl -u kvip --no-pager | grep 'the old settings stay'").ok()?;
            (journal.contains("/etc/kvip/config.toml:") && journal.contains("vrrp.advert")).then_some(())
        })?;
        ensure!(node.run_within(SOON, "kvip check", b"")?.status == 1, "kvip check finds nothing wrong");
        reload(Settings::default())
    })?;
    node.must_within(SOON, "kvip check")?;
    wait_until_settled(&lab)
}
