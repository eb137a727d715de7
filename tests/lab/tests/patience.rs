//! What takes minutes to show: credentials that run out, watches on which nothing happens, nodes that hear nothing of the API any
//! more, and a loop that stands still.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::{API_PORT, BRIDGE_V4, NODES};
use kvip_lab::scenario::{
    SOON, VIP, ask_for, diagnosis, explained, serving, wait_until_settled, with_a_soft_hand_over,
};

const MINUTES: Duration = Duration::from_secs(240);
/// More than the API server takes from one bookmark to the next, and than a watch may be silent, one after the other.
const IDLE: Duration = Duration::from_secs(190);
/// A VIP that tests ask for, to see who follows the cluster.
const ASKED: &str = "10.87.2.62";

/// What is logged of a watch on which nothing came for too long.
const BEGUN_ANEW: &str = "the watch has been silent for too long";

/// Adds a drop-in of these lines to the unit's section `[Service]`, and restarts kvip.
fn with_drop_in(node: &Node<'_>, lines: &str) -> Result<()> {
    node.must("mkdir -p /etc/systemd/system/kvip.service.d")?;
    let text = format!("[Service]\n{lines}\n");
    node.write("/etc/systemd/system/kvip.service.d/test.conf", text.as_bytes())?;
    node.must_within(SOON, "systemctl daemon-reload; systemctl restart kvip").map(drop)
}

fn without_drop_in(node: &Node<'_>) -> Result<()> {
    let script =
        "rm /etc/systemd/system/kvip.service.d/test.conf; systemctl daemon-reload; systemctl restart kvip";
    node.must_within(SOON, script).map(drop)
}

/// Waits until the VIP [`ASKED`] is in the file of that node's keepalived, or is not.
fn wait_for_asked(node: &Node<'_>, wanted: bool) -> Result<()> {
    let lab = node.lab();
    let seen = lab.wait_for(&format!("{ASKED} on {}: {wanted}", node.spec().name), MINUTES, || {
        let text = node.must("cat /etc/keepalived/keepalived.conf").ok()?;
        (text.contains(&format!("{ASKED}/32")) == wanted).then_some(())
    });
    explained(lab, seen)
}

/// The weight that keepalived goes by.
fn weight(node: &Node<'_>) -> Option<i16> {
    node.must("cat /run/kvip/weight-50").ok()?.trim().parse().ok()
}

/// A credential that the API server takes for as long as the Secret of that name is there.
fn bound_token(lab: &Lab, secret: &str) -> Result<String> {
    lab.kubectl(&["-n", "kvip-system", "create", "secret", "generic", secret])?;
    let words = ["-n", "kvip-system", "create", "token", "kvip", "--bound-object-kind=Secret"];
    let bound = format!("--bound-object-name={secret}");
    Ok(lab.kubectl(&[&words[..], &[&bound[..]]].concat())?.trim().to_owned())
}

/// Prints the credential of the day, which is said to be good for 90 s, and notes that it was asked.
const PLUGIN: &str = r#"#!/bin/sh
date +%s >>/var/lib/kvip/asked
until=$(date -u -d '+90 seconds' +%Y-%m-%dT%H:%M:%SZ)
read -r token </etc/kvip/credential
printf '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s", "expirationTimestamp": "%s"}}\n' "$token" "$until"
"#;

/// Puts a credential where the plugin finds it.
fn give(node: &Node<'_>, token: &str) -> Result<()> {
    node.write("/etc/kvip/credential", format!("{token}\n").as_bytes())
}

/// The plugin is asked again before what it gave runs out, so that no request is refused.
#[test]
fn credentials_of_a_plugin_are_renewed_before_they_run_out() -> Result<()> {
    let lab = serving()?;
    let node = lab.node(lab.other_than(lab.wait_for_holder()?));
    let good = lab.enroll()?;
    give(&node, &bound_token(&lab, "first")?)?;
    node.write("/etc/kvip/plugin", PLUGIN.as_bytes())?;
    node.must("chmod 0700 /etc/kvip/plugin")?;
    let (before, _) = good.split_once("token: ").context("the script's kubeconfig ends with a token")?;
    let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: /etc/kvip/plugin, interactiveMode: Never}";
    node.write("/etc/kvip/kubeconfig", format!("{before}{exec}\n").as_bytes())?;
    ask_for(&lab, ASKED, Some(""))?;
    wait_for_asked(&node, true)?;
    let asked = || -> Result<u64> { Ok(node.must("cat /var/lib/kvip/asked | wc -l")?.trim().parse()?) };
    let at_first = asked()?;
    ensure!(at_first > 0, "the plugin was never asked");

    // The first credential is over: by its own word, and for the API server too.
    give(&node, &bound_token(&lab, "second")?)?;
    let over = "test $(( $(date +%s) - $(tail -n 1 /var/lib/kvip/asked) )) -gt 90";
    lab.wait_for("the first credential to run out", MINUTES, || node.run(over).ok()?.ok().then_some(()))?;
    lab.kubectl(&["-n", "kvip-system", "delete", "secret", "first"])?;
    let since = node.must("date '+%F %T'")?;
    // Watches last for minutes, and go on with what they began with. All begin anew when the server does.
    lab.control("stop", "kube-apiserver")?;
    lab.control("start", "kube-apiserver")?;
    ask_for(&lab, ASKED, None)?;
    wait_for_asked(&node, false)?;
    let now = asked()?;
    println!("the plugin was asked {at_first} times, and {} more", now - at_first);
    ensure!(now > at_first, "the plugin was not asked again");
    let journal = node.must(&format!("journalctl -u kvip --no-pager --since '{}'", since.trim()))?;
    ensure!(!journal.contains("401"), "the old credential was used:\n{journal}");
    node.write("/etc/kvip/kubeconfig", good.as_bytes())?;
    node.must("rm /var/lib/kvip/asked /etc/kvip/plugin /etc/kvip/credential")?;
    wait_until_settled(&lab)
}

/// Drops what goes to the API server, and says nothing.
fn cut_off_from_the_api(node: &Node<'_>) -> Result<()> {
    node.must(&format!(
        "nft 'table inet cut {{ chain output {{ type filter hook output priority filter; \
         ip daddr {BRIDGE_V4} tcp dport {API_PORT} drop; }}; }}'"
    ))
    .map(drop)
}

/// Waits until that node's weight is `wanted`.
fn wait_for_weight(node: &Node<'_>, wanted: i16) -> Result<()> {
    let what = format!("weight {wanted} of {}", node.spec().name);
    explained(node.lab(), node.lab().wait_for(&what, MINUTES, || (weight(node)? == wanted).then_some(())))
}

/// A backup that is cut off from the API counts as stale after `stale_after`, a holder after twice that, and then the VIPs move
/// to the one that hears it. That one hears nothing but bookmarks, and takes no watch for dead.
#[test]
fn nodes_that_have_lost_the_api_come_after_the_one_that_hears_it() -> Result<()> {
    let lab = serving()?;
    for node in lab.nodes() {
        let settings =
            Settings { extra: "[cluster]\nstale_after = \"2m\"\n".to_owned(), ..Settings::default() };
        node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
        with_drop_in(&node, "Environment=KVIP_LOG=kvip=debug")?;
    }
    wait_until_settled(&lab)?;
    let holder = lab.wait_for_holder()?;
    let others: Vec<&str> = NODES.iter().map(|node| node.name).filter(|name| *name != holder).collect();
    let [holder, backup, fresh] = [holder, others[0], others[1]].map(|name| lab.node(name));
    for node in [&holder, &backup] {
        cut_off_from_the_api(node)?;
    }
    wait_for_weight(&backup, -128)?;
    ensure!(weight(&holder) == Some(64), "a holder lowers itself after the backups\n{}", diagnosis(&lab));
    ensure!(weight(&fresh) == Some(0), "the one that hears the API stays\n{}", diagnosis(&lab));
    with_a_soft_hand_over(&lab, || {
        let moved = lab.wait_for("the one that hears the API to hold the VIPs", MINUTES, || {
            (lab.holder() == Some(fresh.spec().name)).then_some(())
        });
        explained(&lab, moved)
    })?;
    wait_for_weight(&fresh, 64)?;
    let journal = |node: &Node<'_>| node.must("journalctl -u kvip --no-pager -b");
    let said = journal(&holder)?;
    ensure!(said.contains("weight of VRID 50 is now -64"), "the holder yielded for another reason:\n{said}");
    let since = format!("the watches of {} to be idle for {} s", fresh.spec().name, IDLE.as_secs());
    let idle =
        "test $(( $(date +%s) - $(date -d \"$(systemctl show -P ActiveEnterTimestamp kvip)\" +%s) )) -gt ";
    lab.wait_for(&since, IDLE * 2, || {
        fresh.run(&format!("{idle}{}", IDLE.as_secs())).ok()?.ok().then_some(())
    })?;
    ensure!(!journal(&fresh)?.contains(BEGUN_ANEW), "an idle watch was cut:\n{}", journal(&fresh)?);
    for node in [&holder, &backup] {
        ensure!(journal(node)?.contains(BEGUN_ANEW), "a dead watch was not: {}", journal(node)?);
        node.must("nft delete table inet cut")?;
    }
    for node in [&holder, &backup] {
        wait_for_weight(node, 0)?;
    }
    for node in lab.nodes() {
        node.write("/etc/kvip/config.toml", Settings::default().toml().as_bytes())?;
        without_drop_in(&node)?;
    }
    wait_until_settled(&lab)
}

/// A disk of its own under kvip's state, so that it can be made to hang.
const OWN_DISK: &str = "systemctl stop kvip
    truncate -s 16M /root/state.img; mkfs.ext4 -q /root/state.img
    mv /var/lib/kvip /root/state; mkdir /var/lib/kvip; mount -o loop /root/state.img /var/lib/kvip; rmdir /var/lib/kvip/lost+found
    cp -a /root/state/. /var/lib/kvip/; rm -r /root/state";
const NO_DISK: &str = "systemctl stop kvip
    cp -a /var/lib/kvip /root/state; umount /var/lib/kvip; rmdir /var/lib/kvip; mv /root/state /var/lib/kvip; rm /root/state.img";

/// One loop waits for a disk that hangs, while the others go on: systemd is not told that kvip lives, and starts it anew.
#[test]
fn one_loop_that_stands_still_ends_kvip() -> Result<()> {
    let lab = serving()?;
    let node = lab.node(lab.other_than(lab.wait_for_holder()?));
    node.must_within(SOON, OWN_DISK)?;
    // More threads than the machine has processors, so that one loop holds up none of the others.
    with_drop_in(&node, "Environment=TOKIO_WORKER_THREADS=4")?;
    wait_until_settled(&lab)?;
    let pid = || node.must("systemctl show -P MainPID kvip");
    let wedged = pid()?;
    let since = node.must("date '+%F %T'")?;
    node.must("fsfreeze --freeze /var/lib/kvip")?;
    // What is owned is noted before it is made.
    ask_for(&lab, ASKED, Some(""))?;
    let journal = || node.must(&format!("journalctl --no-pager --since '{}'", since.trim()));
    let missed = "journalctl -u kvip KVIP_LOOP_NAME=turn --no-pager | grep -q 'a loop does not turn'";
    let told = lab.wait_for("the loop to be missed", MINUTES, || node.run(missed).ok()?.ok().then_some(()));
    explained(&lab, told)?;
    ensure!(pid()? == wedged, "systemd has waited no longer\n{}", journal()?);
    let status = node.kvip_status()?;
    ensure!(status["as_planned"].is_boolean(), "the other loops stand still too: {status}\n{}", journal()?);
    let missed = lab.wait_for("systemd to miss kvip", MINUTES, || {
        journal().ok()?.contains("kvip.service: Watchdog timeout").then_some(())
    });
    explained(&lab, missed)?;
    node.must("fsfreeze --unfreeze /var/lib/kvip")?;
    wait_for_asked(&node, true)?;
    ensure!(pid()? != wedged, "the old kvip goes on\n{}", journal()?);
    ensure!(lab.curl(VIP).is_some(), "a backup's trouble took the VIP away");
    ask_for(&lab, ASKED, None)?;
    wait_for_asked(&node, false)?;
    node.must_within(SOON, NO_DISK)?;
    without_drop_in(&node)?;
    wait_until_settled(&lab)
}
