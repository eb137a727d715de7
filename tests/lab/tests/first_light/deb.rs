//! The package's life on a host: installed, upgraded under load, booted, removed, purged.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::kvip::{Settings, old_deb};
use kvip_lab::lab::Lab;
use kvip_lab::scenario::{
    SOON, VIP, ask_for, bare, diagnosis, explained, package, tutorial, wait_until_settled,
    with_a_soft_hand_over, without_a_lost_request,
};

const MINUTES: Duration = Duration::from_secs(180);
/// From kvip's start to its READY. One that waits for a job that waits for it calls itself ready after 20 s.
const READY: Duration = Duration::from_secs(15);
/// The same on a machine that boots, which has much else to do. A job that is waited for ends after 60 s.
const READY_AT_BOOT: Duration = Duration::from_secs(45);
/// A reload that waits for a job of keepalived's ends after 60 s.
const RELOAD: Duration = Duration::from_secs(40);
/// What `systemd-analyze security` may say of kvip.service, out of 10.
const EXPOSURE: f64 = 2.1;
/// The version that is installed.
const VERSION: &str = "dpkg-query -W -f '${Version}' kvip";

/// Writes down each state that systemd sees kvip.service in.
const WATCH_UNIT: &str = "systemd-run --quiet --unit lab-unit --property StandardOutput=file:/run/lab-unit \
    busctl monitor --match \"type='signal',path='/org/freedesktop/systemd1/unit/kvip_2eservice'\"";

/// Runs a script on a node and gives what it says, whatever its status.
fn said(lab: &Lab, node: &str, script: &str) -> String {
    lab.node(node).run(script).map(|output| output.stdout).unwrap_or_default()
}

#[test]
fn a_life_on_a_host() -> Result<()> {
    let lab = bare()?;
    installing_starts_nothing(&lab)?;
    lab.install_kvip(&old_deb(lab.layout())?, &Settings::default())?;
    tutorial(&lab)?;
    wait_until_settled(&lab)?;
    an_upgrade_loses_nothing(&lab)?;
    ready_does_not_wait_for_keepalived(&lab)?;
    cleanup_is_refused_while_kvip_runs(&lab)?;
    a_removal_that_fails_leaves_kvip_running(&lab)?;
    removing_leaves_the_data_path_and_purging_leaves_nothing(&lab)
}

fn installing_starts_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node("node-a");
    node.install_deb(&package()?)?;
    ensure!(said(lab, "node-a", "systemctl is-enabled kvip").trim() == "disabled");
    ensure!(said(lab, "node-a", "systemctl is-active kvip").trim() == "inactive");
    ensure!(said(lab, "node-a", "cat /run/kvip/weight-50").trim() == "-254", "the weight file fails closed");
    ensure!(said(lab, "node-a", "sysctl -n net.ipv4.vs.conntrack").trim() == "1");
    let hardening = said(lab, "node-a", "systemd-analyze security --no-pager kvip.service | tail -n 1");
    let exposure = hardening.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    ensure!(exposure.is_some_and(|exposure| exposure <= EXPOSURE), "kvip.service is open: {hardening}");
    let after = said(lab, "node-a", "systemctl show -P After kvip");
    ensure!(after.contains("keepalived.service"), "kvip.service starts after {after}, and stops before them");
    // As an upgrade does that finds kvip stopped.
    node.install_deb(&package()?)?;
    ensure!(said(lab, "node-a", "systemctl is-active kvip").trim() == "inactive");
    let next = node.run("kvip")?;
    ensure!(next.stdout.contains("next:"), "{next}");
    Ok(())
}

/// The holder goes from a lower version to this one: it keeps its weight, its VIPs and its keepalived process.
fn an_upgrade_loses_nothing(lab: &Lab) -> Result<()> {
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    let facts =
        "cat /run/kvip/weight-50; systemctl show -P MainPID keepalived; ip -4 -o addr show to 10.87.2.50";
    let before = node.must(facts)?;
    ensure!(before.starts_with("64\n"), "the holder's weight is not 64: {before}\n{}", diagnosis(lab));
    let kvip = || node.must("systemctl show -P MainPID kvip");
    let old_kvip = kvip()?;
    let package = package()?;
    without_a_lost_request(lab, || node.install_deb(&package))?;
    wait_until_settled(lab)?;
    let after = node.must(facts)?;
    ensure!(before == after, "before the upgrade:\n{before}\nafter:\n{after}\n{}", diagnosis(lab));
    ensure!(said(lab, holder, VERSION).starts_with("0.1.0"));
    ensure!(kvip()? != old_kvip, "the upgrade left the old kvip running\n{}", diagnosis(lab));
    let version = node.kvip_status()?["version"].clone();
    ensure!(version == "0.1.0", "kvip {version} runs\n{}", diagnosis(lab));
    let others: Result<Vec<()>> = lab
        .on_all_nodes(|node| if node.spec().name == holder { Ok(()) } else { node.install_deb(&package) })
        .into_iter()
        .collect();
    others?;
    wait_until_settled(lab)
}

/// Starts, a reload and a boot, each with a change of keepalived pending and in one transaction with keepalived's own
/// start, which systemd holds back while a unit ordered before it starts.
fn ready_does_not_wait_for_keepalived(lab: &Lab) -> Result<()> {
    let backup = lab.other_than(lab.wait_for_holder()?);
    let node = lab.node(backup);
    for (vip, script) in [
        ("10.87.2.61", "systemctl restart keepalived kvip"),
        ("10.87.2.62", "systemctl restart kvip & systemctl restart keepalived; wait"),
    ] {
        asked_for_without_kvip(lab, backup, vip)?;
        node.must_within(MINUTES, script)?;
        ready_in_time(lab, backup, script, READY)?;
        written(lab, backup, &format!("{vip}/32"))?;
    }
    let settings = |settings: Settings| node.write("/etc/kvip/config.toml", settings.toml().as_bytes());
    // What the node finds out itself may be told as well.
    let own = format!("[node]\nname = \"{backup}\"\ninterface = \"eth0\"\naddress = \"{}\"", node.spec().v4);
    settings(Settings { extra: format!("gone_after = \"90s\"\n{own}"), ..Settings::default() })?;
    node.must(WATCH_UNIT)?;
    node.must_within(
        RELOAD,
        "systemctl reload kvip & reload=$!; systemctl restart keepalived && wait $reload",
    )?;
    let reloading = lab.wait_for("systemd to be told of the reload", SOON, || {
        // Nothing says from when on signals are written down.
        let states = said(lab, backup, "systemctl reload kvip; cat /run/lab-unit");
        states.contains("\"reloading\"").then_some(())
    });
    explained(lab, reloading)?;
    node.must("systemctl stop lab-unit")?;
    is_active(lab, backup, "a reload")?;
    written(lab, backup, "terminate_delay 90")?;
    for vip in ["10.87.2.61", "10.87.2.62"] {
        ask_for(lab, vip, None)?;
    }
    a_backup_boots_without_the_api(lab, backup)
}

/// With a change of keepalived pending again: it is programmed from the saved state, and may take over.
fn a_backup_boots_without_the_api(lab: &Lab, backup: &str) -> Result<()> {
    let node = lab.node(backup);
    node.must_within(MINUTES, "systemctl stop kvip && test -s /var/lib/kvip/snapshot.json")?;
    node.write("/etc/kvip/config.toml", Settings::default().toml().as_bytes())?;
    lab.control("kill", "kube-apiserver")?;
    node.reboot()?;
    let programmed = lab.wait_for("the booted node to be programmed", MINUTES, || {
        let table = node.ipvs().ok()?;
        let state = said(lab, backup, "systemctl is-active kvip keepalived; cat /run/kvip/weight-50");
        (table.contains(&format!("-t {VIP}:80")) && state.trim() == "active\nactive\n0").then_some(())
    });
    explained(lab, programmed)?;
    ready_in_time(lab, backup, "a boot", READY_AT_BOOT)?;
    written(lab, backup, "terminate_delay 60")?;
    lab.control("start", "kube-apiserver")?;
    wait_until_settled(lab)
}

/// A VIP that the node's kvip finds at its next start, so that its keepalived is to be reloaded then.
fn asked_for_without_kvip(lab: &Lab, node: &str, vip: &str) -> Result<()> {
    lab.node(node).must_within(MINUTES, "systemctl stop kvip")?;
    ask_for(lab, vip, Some(""))
}

fn is_active(lab: &Lab, node: &str, act: &str) -> Result<()> {
    let state = said(lab, node, "systemctl is-active kvip");
    ensure!(state.trim() == "active", "kvip is {state} after {act}\n{}", diagnosis(lab));
    Ok(())
}

/// kvip was ready soon enough: but for a boot, because of its first pass and not because it gave up waiting for it.
fn ready_in_time(lab: &Lab, node: &str, act: &str, limit: Duration) -> Result<()> {
    is_active(lab, node, act)?;
    let time = |property: &str| -> Result<Duration> {
        let text = lab.node(node).must(&format!("systemctl show -P {property} kvip"))?;
        let since_boot_us = text.trim().parse().with_context(|| format!("{property}: {text}"))?;
        Ok(Duration::from_micros(since_boot_us))
    };
    let (started, ready) = (time("ExecMainStartTimestampMonotonic")?, time("ActiveEnterTimestampMonotonic")?);
    let took = ready.checked_sub(started).with_context(|| format!("ready {ready:?}, started {started:?}"))?;
    println!("{act}: kvip was ready after {took:?}");
    ensure!(took < limit, "{act}: kvip was ready after {took:?}\n{}", diagnosis(lab));
    Ok(())
}

/// Waits until a node's keepalived.conf has `text`.
fn written(lab: &Lab, node: &str, text: &str) -> Result<()> {
    let written = lab.wait_for(&format!("{text} in keepalived.conf of {node}"), SOON, || {
        said(lab, node, "cat /etc/keepalived/keepalived.conf").contains(text).then_some(())
    });
    explained(lab, written)
}

fn cleanup_is_refused_while_kvip_runs(lab: &Lab) -> Result<()> {
    let node = lab.node(lab.wait_for_holder()?);
    let facts = "ipvsadm -Sn; nft list table inet kvip; cat /etc/keepalived/keepalived.conf /run/kvip/weight-50; \
                 ip -br addr show eth0; ls /run/kvip /var/lib/kvip";
    let before = node.must_within(MINUTES, facts)?;
    let refused = node.run_within(SOON, "kvip cleanup", b"")?;
    ensure!(
        refused.status == 1
            && refused.stderr.contains("kvip is running")
            && refused.stderr.contains("systemctl disable --now kvip"),
        "kvip cleanup beside the daemon: {refused}"
    );
    let after = node.must_within(MINUTES, facts)?;
    ensure!(before == after, "before kvip cleanup:\n{before}\nafter:\n{after}");
    Ok(())
}

fn a_removal_that_fails_leaves_kvip_running(lab: &Lab) -> Result<()> {
    let node = lab.node(lab.wait_for_holder()?);
    let prerm = "/var/lib/dpkg/info/kvip.prerm";
    let refused = node.run_within(MINUTES, &format!("echo 'exit 1' >>{prerm}; dpkg -r kvip"), b"")?;
    ensure!(!refused.ok(), "dpkg removes a package whose prerm fails: {refused}");
    is_active(lab, node.spec().name, "a removal that failed")?;
    node.must(&format!("sed -i '$ d' {prerm}; test ! -e /run/kvip/stopped-by-removal"))?;
    wait_until_settled(lab)
}

fn removing_leaves_the_data_path_and_purging_leaves_nothing(lab: &Lab) -> Result<()> {
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    let foreign = "ipvsadm -A -t 10.99.0.1:443 -s rr; nft add table inet foreign";
    node.must(foreign)?;
    without_a_lost_request(lab, || {
        node.must_within(MINUTES, "DEBIAN_FRONTEND=noninteractive dpkg -r kvip 2>&1").map(drop)
    })?;
    ensure!(lab.holder() == Some(holder), "removing the package moved the VIPs\n{}", diagnosis(lab));
    let purged = with_a_soft_hand_over(lab, || {
        node.must_within(MINUTES, "DEBIAN_FRONTEND=noninteractive dpkg -P kvip 2>&1")
    })?;
    let left = said(
        lab,
        holder,
        "ls -d /etc/kvip /var/lib/kvip /run/kvip /etc/keepalived/keepalived.conf 2>/dev/null; ip -o addr | grep -e 10.87.2.50 -e fd00:87:2::50 -e 169.254.255 -e fe80::6b76; \
         ipvsadm -Sn | grep -e 10.87.2.50 -e fd00:87:2::50; nft list tables | grep kvip",
    );
    ensure!(left.is_empty(), "purge left {left}\nit said {purged}");
    let kept = said(lab, holder, "ipvsadm -Sn; nft list tables");
    ensure!(
        kept.contains("10.99.0.1:443") && kept.contains("inet foreign"),
        "purge took what is not kvip's: {kept}"
    );
    let served = lab.wait_for("the VIP elsewhere", SOON, || lab.curl(VIP));
    explained(lab, served)?;
    node.install_deb(&package()?)?;
    node.configure_kvip(&Settings::default(), lab.enroll()?.as_bytes())?;
    node.must_within(MINUTES, "systemctl enable --now kvip").context("a purged host can be used again")?;
    wait_until_settled(lab)
}
