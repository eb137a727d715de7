//! Hosts and clusters that go wrong by halves: what kvip must not make worse, and what it takes away that others left.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::object;
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::BRIDGE;
use kvip_lab::scenario::{
    SOON, VIP, VIP6, ask_for, diagnosis, explained, finding, serving, wait_until_settled,
};
use serde_json::Value;

/// The limit of 15 s after which an address is known to be left, and what comes of it on a slow machine.
const STRAY: Duration = Duration::from_secs(60);
/// Three misses of the probe each second take a node for dead; this is several times as long.
const LONG_DEAD: Duration = Duration::from_secs(15);
/// An address that no kvip ever had.
const FOREIGN: &str = "10.87.2.99";

/// A node that holds nothing, so that its trouble is its own.
fn backup(lab: &Lab) -> Result<Node<'_>> {
    Ok(lab.node(lab.other_than(lab.wait_for_holder()?)))
}

/// Waits until that node says `text`, or no more.
fn told(node: &Node<'_>, text: &str, wanted: bool) -> Result<()> {
    let (lab, name) = (node.lab(), node.spec().name);
    let told = lab.wait_for(&format!("{name} to say {text:?}: {wanted}"), SOON, || {
        (finding(lab, name, text).is_some() == wanted).then_some(())
    });
    explained(lab, told)
}

fn configure(node: &Node<'_>, settings: &Settings) -> Result<()> {
    node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
    node.must_within(SOON, "systemctl reload kvip").map(drop)
}

fn addresses(node: &Node<'_>) -> Option<String> {
    node.must("ip -br addr show eth0").ok()
}

/// keepalived is killed on the holder and does not come again: its VIPs stay on the interface, beside the next holder's, until
/// kvip takes them away. It takes nothing else.
#[test]
fn what_a_killed_keepalived_leaves_is_removed() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    node.must(&format!("ip addr add {FOREIGN}/32 dev eth0 noprefixroute"))?;
    node.must_within(SOON, "systemctl mask --runtime keepalived; systemctl kill --signal=KILL keepalived")?;
    let vips = ["10.87.2.50/", "fd00:87:2::50/"];
    let left = addresses(&node).context("addresses")?;
    ensure!(vips.iter().all(|vip| left.contains(vip)), "nothing is left to be removed: {left}");
    let gone = lab.wait_for("what keepalived left to be removed", STRAY, || {
        let addresses = addresses(&node)?;
        (!vips.iter().any(|vip| addresses.contains(vip))).then_some(())
    });
    explained(&lab, gone)?;
    ensure!(
        addresses(&node).is_some_and(|all| all.contains(FOREIGN)),
        "{FOREIGN} is nobody's but the admin's"
    );
    ensure!(lab.curl(VIP).is_some(), "nobody else holds the VIP\n{}", diagnosis(&lab));
    let journal = node.journal();
    ensure!(journal.contains("keepalived had left it behind"), "the journal does not say so:\n{journal}");
    node.must_within(SOON, "systemctl unmask --runtime keepalived; systemctl start keepalived")?;
    wait_until_settled(&lab)?;
    node.must(&format!("ip addr del {FOREIGN}/32 dev eth0")).map(drop)
}

/// To a holder that is cut off all others look dead. It takes none of them out, and when it is back it is a backup.
#[test]
fn a_holder_that_is_cut_off_takes_nobody_for_dead() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    // It notes what it sees while nobody can ask it.
    let look = format!(
        "sleep {}; ipvsadm -Sn | grep -c -F -e '-a -t {VIP}:80 -r' -e '-a -t {VIP6}:80 -r' >/run/lab-cut",
        LONG_DEAD.as_secs()
    );
    node.write("/run/lab-cut.sh", look.as_bytes())?;
    node.must("systemd-run --quiet --unit lab-cut sh /run/lab-cut.sh")?;
    node.cut_link()?;
    let taken = lab.wait_for("another node to answer", SOON, || lab.curl(VIP));
    explained(&lab, taken)?;
    let successor = lab.wait_for("another holder", SOON, || lab.holder().filter(|now| *now != holder));
    let successor = explained(&lab, successor)?;
    let others = format!("ipvsadm -Sn | grep -c -e '-a -t {VIP}:80 -r'");
    let dead = lab.wait_for("the others to take the cut node for dead", SOON, || {
        (lab.node(successor).run(&others).ok()?.stdout.trim() == "2").then_some(())
    });
    explained(&lab, dead)?;
    // As long again: nothing but time passes on the cut node.
    let until = std::time::Instant::now() + LONG_DEAD * 2;
    lab.wait_for("time to pass", SOON, || (std::time::Instant::now() > until).then_some(()))?;
    node.heal_link()?;
    let seen = lab.wait_for("what the cut node saw", SOON, || node.must("cat /run/lab-cut").ok());
    let seen = explained(&lab, seen)?;
    ensure!(seen.trim() == "6", "of 6 real servers the cut node kept {seen}\n{}", diagnosis(&lab));
    wait_until_settled(&lab)?;
    ensure!(lab.wait_for_holder()? == successor, "{holder} took the VIPs back\n{}", diagnosis(&lab));
    Ok(())
}

/// All VIPs are gone from a list that is fresh: perhaps somebody has emptied the ConfigMap by mistake, or it is another cluster.
/// Who has seen them go by an event knows that it is meant.
#[test]
fn a_fresh_list_without_any_vip_waits_for_accept() -> Result<()> {
    let lab = serving()?;
    let node = backup(&lab)?;
    node.must_within(SOON, "systemctl stop kvip")?;
    let vips = ["10.87.2.50", "fd00-87-2--50"];
    let ask = |value: Option<&str>| vips.iter().try_for_each(|vip| ask_for(&lab, vip, value));
    let serves = |node: &Node<'_>| node.ipvs().is_ok_and(|table| table.contains(&format!("-t {VIP}:80")));
    for accepted in [false, true] {
        ask(None)?;
        let others = || lab.nodes().filter(|other| other.spec().name != node.spec().name);
        let seen = lab.wait_for("those who saw them go to let go", SOON, || {
            (!others().any(|other| serves(&other))).then_some(())
        });
        explained(&lab, seen)?;
        node.must_within(SOON, "systemctl start kvip")?;
        told(&node, "kvip accept", true)?;
        ensure!(serves(&node), "an empty list took the VIP away\n{}", diagnosis(&lab));
        if accepted {
            node.must_within(SOON, "kvip accept")?;
            let gone = lab.wait_for("what was accepted", SOON, || (!serves(&node)).then_some(()));
            explained(&lab, gone)?;
        }
        // Without a word of the admin too, when they are back.
        ask(Some("default/nginx"))?;
        wait_until_settled(&lab)?;
        node.must_within(SOON, "systemctl stop kvip")?;
    }
    node.must_within(SOON, "systemctl start kvip")?;
    wait_until_settled(&lab)
}

/// One of the lists cannot be had: nothing is programmed of the others, and the node does not offer itself.
#[test]
fn nothing_is_programmed_before_all_is_known() -> Result<()> {
    let lab = serving()?;
    let node = backup(&lab)?;
    let role = object(&lab, "clusterrole kvip-member")?;
    let mut without = role.clone();
    let rules = without["rules"].as_array_mut().context("rules")?;
    rules.retain(|rule| {
        !rule["resources"].as_array().is_some_and(|all| all.contains(&"endpointslices".into()))
    });
    ensure!(without != role, "no rule is about EndpointSlices: {role}");
    let patch = |role: &Value| {
        let rules =
            serde_json::json!([{"op": "replace", "path": "/rules", "value": role["rules"]}]).to_string();
        lab.kubectl(&["patch", "clusterrole", "kvip-member", "--type=json", "-p", &rules]).map(drop)
    };
    patch(&without)?;
    node.must_within(
        SOON,
        "systemctl stop kvip; rm /var/lib/kvip/snapshot.json; ipvsadm -C; echo -254 >/run/kvip/weight-50",
    )?;
    node.must_within(SOON, "systemctl start kvip")?;
    told(&node, "403", true)?;
    let state =
        node.must("systemctl is-active kvip; systemctl show -P StatusText kvip; cat /run/kvip/weight-50")?;
    let [active, text, weight] = state.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("{state}") };
    ensure!(
        active == "active" && text.starts_with("degraded") && weight == "-254",
        "{state}\n{}",
        diagnosis(&lab)
    );
    ensure!(node.ipvs()?.trim().is_empty(), "something is programmed\n{}", diagnosis(&lab));
    ensure!(lab.curl(VIP).is_some(), "a backup's trouble took the VIP away");
    patch(&role)?;
    wait_until_settled(&lab)
}

/// `[node]` names what there is not: said, and nothing is held by guess.
#[test]
fn a_node_that_is_told_wrong_about_itself_says_so() -> Result<()> {
    let lab = serving()?;
    let node = backup(&lab)?;
    for (lines, words) in [("interface = \"eth9\"", "eth9"), ("name = \"nobody\"", "nobody")] {
        configure(&node, &Settings { extra: format!("[node]\n{lines}\n"), ..Settings::default() })?;
        told(&node, words, true)?;
        ensure!(lab.curl(VIP).is_some(), "a backup's trouble took the VIP away");
        configure(&node, &Settings::default())?;
        told(&node, words, false)?;
        wait_until_settled(&lab)?;
    }
    // And another one that there is, which the node would not have found by itself.
    node.must("ip link add dummy0 type dummy && ip addr add 192.0.2.9/24 dev dummy0 && ip link set dummy0 up multicast on")?;
    let file = node.run("kvip plan --set node.interface=dummy0 --show keepalived")?;
    ensure!(file.stdout.contains("interface dummy0\n"), "the file for dummy0: {file}");
    node.must("ip link del dummy0").map(drop)
}

/// What an admin looks at: the status of the unit, what a plan would mend, and settings of a drop-in.
#[test]
fn an_admin_sees_what_is_so() -> Result<()> {
    let lab = serving()?;
    let node = backup(&lab)?;
    let text = node.must("systemctl show -P StatusText kvip")?;
    ensure!(text.contains("2 VIPs"), "kvip tells systemd {text:?}");
    node.must_within(SOON, &format!("systemctl stop kvip; ipvsadm -D -t {VIP}:80"))?;
    let changes = || -> Result<String> {
        let plan: Value = serde_json::from_str(&node.must_within(SOON, "kvip plan --json")?)?;
        Ok(plan["changes"].to_string())
    };
    let missing = changes()?;
    ensure!(missing.contains(&format!("{VIP}:80")), "a plan for what is missing: {missing}");
    node.must_within(SOON, "systemctl start kvip")?;
    wait_until_settled(&lab)?;
    ensure!(changes()? == "[]", "nothing is missing: {}", changes()?);
    node.must("mkdir -p /etc/kvip/config.d")?;
    node.write("/etc/kvip/config.d/longer.toml", b"[vrrp]\ngone_after = \"61s\"\n")?;
    node.must_within(SOON, "systemctl reload kvip")?;
    let taken = lab.wait_for("the drop-in's setting", SOON, || {
        node.must("grep -q 'terminate_delay 61' /etc/keepalived/keepalived.conf").ok()
    });
    explained(&lab, taken)?;
    node.must_within(SOON, "rm /etc/kvip/config.d/longer.toml; systemctl reload kvip")?;
    // A variable of the unit counts before all files.
    let unit = "/etc/systemd/system/kvip.service.d/lab.conf";
    node.must("mkdir -p /etc/systemd/system/kvip.service.d")?;
    node.write(unit, b"[Service]\nEnvironment=KVIP_VRRP__GONE_AFTER=62s\n")?;
    node.must_within(SOON, "systemctl daemon-reload; systemctl restart kvip")?;
    let taken = lab.wait_for("the variable's setting", SOON, || {
        node.must("grep -q 'terminate_delay 62' /etc/keepalived/keepalived.conf").ok()
    });
    explained(&lab, taken)?;
    node.must_within(SOON, &format!("rm {unit}; systemctl daemon-reload; systemctl restart kvip"))?;
    wait_until_settled(&lab)
}

/// Nobody of the cluster holds a VIP that has left all nodes, nor one that a machine beside it has: no node is named, not even
/// the last holder, whom the kernel remembers.
#[test]
fn a_vip_on_no_node_is_elsewhere() -> Result<()> {
    let lab = serving()?;
    let seen = seen_elsewhere(&lab);
    // Nothing of it is left to the next test.
    let _ = lab.host(&["ip", "addr", "del", &[VIP, "/32"].concat(), "dev", BRIDGE]);
    for node in lab.nodes() {
        node.must_within(SOON, "kvip undrain")?;
    }
    seen?;
    wait_until_settled(&lab)
}

fn seen_elsewhere(lab: &Lab) -> Result<()> {
    let node = backup(lab)?;
    let shown = |holder: &str| {
        let shown = lab.wait_for(&format!("kvip status to show {VIP} on {holder}"), SOON, || {
            let status = node.must("kvip status").ok()?;
            let line = status.lines().find(|line| line.starts_with(&format!("{VIP} ")))?;
            (line.split_whitespace().nth(1) == Some(holder)).then_some(())
        });
        explained(lab, shown)
    };
    shown(lab.wait_for_holder()?)?;
    for node in lab.nodes() {
        node.must_within(SOON, "kvip drain --force")?;
    }
    shown("elsewhere")?;
    let address = [VIP, "/32"].concat();
    let on_bridge = |verb: &str| -> Result<()> {
        let done = lab.host(&["ip", "addr", verb, &address, "dev", BRIDGE])?;
        ensure!(done.ok(), "{done}");
        Ok(())
    };
    on_bridge("add")?;
    let answers = lab.wait_for("the machine beside the nodes to answer for the VIP", SOON, || {
        node.must(&format!("ping -c 1 -W 1 {VIP}")).ok()
    });
    explained(lab, answers)?;
    shown("elsewhere")?;
    on_bridge("del")?;
    for node in lab.nodes() {
        node.must_within(SOON, "kvip undrain")?;
    }
    wait_until_settled(lab)?;
    shown(lab.wait_for_holder()?)
}
