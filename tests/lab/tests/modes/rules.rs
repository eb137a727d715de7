//! Rules and routes of mode dsr beside a program that thinks that all of them are its own.

use anyhow::{Result, ensure};
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
const MEND: &str = "systemctl stop systemd-networkd lab-rules; ip link del dummy9; rm /etc/systemd/network/90-dummy9.network";

#[test]
fn what_networkd_removes_comes_back() -> Result<()> {
    let lab = modes()?;
    let node = lab.node(lab.wait_for_holder()?);
    node.must_within(SOON, RESTART)?;
    let gone = lab.wait_for("networkd to remove the rules", SOON, || {
        node.must("cat /run/lab-rules").ok()?.contains("Deleted 50:").then_some(())
    });
    explained(&lab, gone)?;
    let back = lab.wait_for("the rules to be back", SOON, || {
        let families = ["-4", "-6"].map(|family| node.must(&format!("ip {family} rule")));
        families.into_iter().all(|rules| rules.is_ok_and(|rules| rules.contains("lookup 5087"))).then_some(())
    });
    explained(&lab, back)?;
    let report = lab.ask(Asker::Client, &question(Transport::Tcp, DSR.v4).connections(12), 1)?;
    node.must_within(SOON, MEND)?;
    ensure!(report.failures().is_empty(), "{report}\n{}", diagnosis(&lab));
    Ok(())
}
