//! `kvip cleanup` on a node that has had everything.

use anyhow::{Result, ensure};
use kvip_lab::asking::{Asking, POOLS, settings};
use kvip_lab::scenario::{SOON, diagnosis, explained};

use super::{DSR, answered_by, modes};

/// Whatever is left of kvip on a host, a line each.
const LEFT: &str = "{ ls -d /var/lib/kvip/owned.json /etc/keepalived/keepalived.conf /run/kvip/haproxy.cfg /run/kvip/weight-50
    ip -o addr | grep -e 10.87.2.5 -e fd00:87:2::5 -e 169.254.255 -e fe80::6b76
    ipvsadm -Sn | grep -e 10.87.2.5 -e fd00:87:2::5 -e '^-[Aa] -f [^7]'; ipvsadm -L --daemon
    nft list tables | grep kvip; ip rule | grep 5087; ip -6 rule | grep 5087; ip route show table 5087; ip -6 route show table 5087
    systemctl is-active kvip-haproxy | grep -vx inactive; } 2>/dev/null; true";

/// What other programs have of the same kinds.
const FOREIGN: &str =
    "ipvsadm -A -f 7 -s rr; ip rule add fwmark 7 lookup 77 priority 77; nft add table inet foreign";
const KEPT: &str =
    "ipvsadm -Sn | grep -q -e '-A -f 7' && ip rule | grep -q '^77:' && nft list table inet foreign";
const GONE: &str = "ipvsadm -D -f 7; ip rule del priority 77; nft delete table inet foreign";

#[test]
fn all_that_is_kvips_goes_and_nothing_else() -> Result<()> {
    let lab = modes()?;
    settings(&lab, &[POOLS, "[balancing]\nsync = true\n"].concat())?;
    let proxied =
        Asking::new("proxied").annotation("kvip.io/vips", "10.87.2.59").annotation("kvip.io/mode", "proxy");
    proxied
        .annotation("kvip.io/proxy-protocol", "off")
        .spec("selector", serde_json::json!({"app": "echo"}))
        .apply(&lab)?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(lab.other_than(holder));
    let full = lab.wait_for("a node that has everything", SOON, || {
        let left = node.must(LEFT).ok()?;
        let kinds = ["/run/kvip/haproxy.cfg", "-A -f ", "backup sync", "inet kvip", "lookup 5087", "active"];
        kinds.iter().all(|kind| left.contains(kind)).then_some(())
    });
    explained(&lab, full)?;
    node.must(FOREIGN)?;
    let cleaned = node.must_within(SOON, "systemctl stop kvip; kvip cleanup")?;
    let left = node.must(LEFT)?;
    ensure!(left.trim().is_empty(), "kvip cleanup left\n{left}\nand said\n{cleaned}\n{}", diagnosis(&lab));
    ensure!(node.run(KEPT)?.ok(), "kvip cleanup took what is not kvip's:\n{cleaned}\n{}", diagnosis(&lab));
    ensure!(lab.holder() == Some(holder), "the VIPs have moved\n{}", diagnosis(&lab));
    node.must(GONE)?;
    node.must_within(SOON, "systemctl start kvip")?;
    let back = lab.wait_for("a node that has everything again", SOON, || {
        (node.kvip_status().ok()?["as_planned"] == true).then_some(())
    });
    explained(&lab, back)?;
    lab.kubectl(&["delete", "service", "proxied"])?;
    settings(&lab, POOLS)?;
    answered_by(&lab, DSR, 3)
}
