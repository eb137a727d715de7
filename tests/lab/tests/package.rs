//! The package's life on a host: installed, upgraded under load, booted, removed, purged.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::kvip::{Settings, old_deb};
use kvip_lab::lab::Lab;
use kvip_lab::scenario::{
    SOON, VIP, ask_for, bare, diagnosis, explained, package, tutorial, wait_until_settled,
    without_a_lost_request,
};

const MINUTES: Duration = Duration::from_secs(180);
/// The version that is installed.
const VERSION: &str = "dpkg-query -W -f '${Version}' kvip";

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
    a_node_boots_without_the_api(&lab)?;
    removing_leaves_the_data_path_and_purging_leaves_nothing(&lab)
}

fn installing_starts_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node("node-a");
    node.install_deb(&package()?)?;
    ensure!(said(lab, "node-a", "systemctl is-enabled kvip").trim() == "disabled");
    ensure!(said(lab, "node-a", "systemctl is-active kvip").trim() == "inactive");
    ensure!(said(lab, "node-a", "cat /run/kvip/weight-50").trim() == "-254", "the weight file fails closed");
    ensure!(said(lab, "node-a", "sysctl -n net.ipv4.vs.conntrack").trim() == "1");
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
    let package = package()?;
    without_a_lost_request(lab, || node.install_deb(&package))?;
    wait_until_settled(lab)?;
    let after = node.must(facts)?;
    ensure!(before == after, "before the upgrade:\n{before}\nafter:\n{after}\n{}", diagnosis(lab));
    ensure!(said(lab, holder, VERSION).starts_with("0.1.0"));
    let others: Result<Vec<()>> = lab
        .on_all_nodes(|node| if node.spec().name == holder { Ok(()) } else { node.install_deb(&package) })
        .into_iter()
        .collect();
    others?;
    wait_until_settled(lab)
}

/// A start, a restart and a reload with a change of keepalived pending, in one transaction with keepalived's own restart,
/// which systemd holds back while a unit ordered before it starts.
fn ready_does_not_wait_for_keepalived(lab: &Lab) -> Result<()> {
    let backup = lab.other_than(lab.wait_for_holder()?);
    let node = lab.node(backup);
    node.must_within(MINUTES, "systemctl stop kvip")?;
    ask_for(lab, "10.87.2.61", Some(""))?;
    for script in [
        "systemctl restart keepalived kvip",
        "systemctl restart kvip & systemctl restart keepalived; wait",
        "systemctl reload kvip",
    ] {
        node.must_within(MINUTES, script)?;
        ensure!(
            said(lab, backup, "systemctl is-active kvip").trim() == "active",
            "{script}: {}",
            diagnosis(lab)
        );
    }
    let listed = lab.wait_for("10.87.2.61 in keepalived.conf", SOON, || {
        said(lab, backup, "cat /etc/keepalived/keepalived.conf").contains("10.87.2.61/32").then_some(())
    });
    explained(lab, listed)?;
    ask_for(lab, "10.87.2.61", None)?;
    wait_until_settled(lab)
}

/// A backup boots while the API server is away: it is programmed from the saved state and may take over.
fn a_node_boots_without_the_api(lab: &Lab) -> Result<()> {
    let backup = lab.other_than(lab.wait_for_holder()?);
    let node = lab.node(backup);
    node.must("test -s /var/lib/kvip/snapshot.json")?;
    lab.control("kill", "kube-apiserver")?;
    node.reboot()?;
    let programmed = lab.wait_for("the booted node to be programmed", MINUTES, || {
        let table = node.ipvs().ok()?;
        let weight = said(lab, backup, "cat /run/kvip/weight-50");
        (table.contains(&format!("-t {VIP}:80")) && weight.trim() == "0").then_some(())
    });
    let programmed = explained(lab, programmed);
    ensure!(
        said(lab, backup, "systemctl is-active kvip keepalived").trim() == "active\nactive",
        "{}",
        diagnosis(lab)
    );
    lab.control("start", "kube-apiserver")?;
    programmed?;
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
    let purged = node.must_within(MINUTES, "DEBIAN_FRONTEND=noninteractive dpkg -P kvip 2>&1")?;
    let left = said(
        lab,
        holder,
        "ls -d /etc/kvip /var/lib/kvip /run/kvip /etc/keepalived/keepalived.conf 2>/dev/null; ip -o addr | grep -e 10.87.2.50 -e 169.254.255; \
         ipvsadm -Sn | grep 10.87.2.50; nft list tables | grep kvip",
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
