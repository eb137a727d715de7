//! Other programs on a node, and what is the whole host's: real kernels, real nft and ipvsadm.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::scenario::{SOON, VIP, diagnosis, explained, finding, serving, wait_until_settled};

/// What kvip promises.
const PROMISE_MS: u64 = 1000;
/// What an emulated machine gets beyond it: there a repair alone takes longer than its notice on a real one.
const PATIENCE_MS: u64 = 10_000;
/// A minute is between two audits.
const AUDIT: Duration = Duration::from_secs(150);

/// kvip's virtual servers and real servers, and its rules, as text that is the same whenever they are.
const KVIPS: &str = "{ ipvsadm -Sn | grep -v 10.99.0.1 | sort; nft list table inet kvip | grep -v comment; }";

const REMOVE_A_REAL_SERVER: &str =
    "ipvsadm -d -t 10.87.2.50:80 -r $(ipvsadm -Sn | awk '/^-a -t 10.87.2.50:80 / { print $5; exit }')";

/// Another program runs `act` on a node: how many milliseconds of the node's own time pass until all of kvip's is as before.
fn repaired_after(node: &Node, act: &str) -> Result<u64> {
    let script = format!(
        "before=$({KVIPS} | md5sum); from=$(date +%s%3N); {act}
         for i in $(seq 1000); do
             if [ \"$({KVIPS} 2>/dev/null | md5sum)\" = \"$before\" ]; then echo $(($(date +%s%3N) - from)); exit; fi
         done; {KVIPS}; exit 1"
    );
    let output = node.must_within(Duration::from_secs(120), &script)?;
    output.trim().parse().with_context(|| format!("{act}: {output}"))
}

fn repairs(node: &Node, of: &str) -> Result<u64> {
    node.kvip_status()?["repairs"][of].as_u64().with_context(|| format!("repairs of {of}"))
}

/// What other programs do is put right within a second, counted and told; what is theirs stays as they left it.
#[test]
fn other_programs_are_repaired_within_a_second() -> Result<()> {
    let lab = serving()?;
    let node = &lab.node(lab.wait_for_holder()?);
    node.must("ipvsadm -A -t 10.99.0.1:80 -s rr; ipvsadm -a -t 10.99.0.1:80 -r 10.99.0.2 -m -w 7")?;
    node.must("nft add table inet theirs; nft add chain inet theirs some")?;
    let theirs = |wanted: [bool; 2]| -> Result<()> {
        let there = ["ipvsadm -Sn | grep -q '10.99.0.2:80 -m -w 7'", "nft list chain inet theirs some"];
        let found = there.map(|command| node.run(command).is_ok_and(|output| output.ok()));
        ensure!(found == wanted, "the other programs' virtual server and table: {found:?}, not {wanted:?}");
        Ok(())
    };
    for (act, of, left) in [
        ("ipvsadm -D -t 10.87.2.50:80", "ipvs", [true, true]),
        ("ipvsadm -E -t 10.87.2.50:80 -s rr", "ipvs", [true, true]),
        (REMOVE_A_REAL_SERVER, "ipvs", [true, true]),
        ("nft delete table inet kvip", "nftables", [true, true]),
        ("nft add element inet kvip vips4 '{ 10.87.2.99 }'", "nftables", [true, true]),
        ("ipvsadm -C", "ipvs", [false, true]),
        ("nft flush ruleset", "nftables", [false, false]),
    ] {
        let before = repairs(node, of)?;
        let after_ms = explained(&lab, repaired_after(node, act))?;
        println!("{act}: repaired after {after_ms} ms ({PROMISE_MS} ms are promised, on real machines)");
        ensure!(after_ms < PATIENCE_MS, "{act}: repaired after {after_ms} ms\n{}", diagnosis(&lab));
        lab.wait_for("the repair to be counted", SOON, || {
            (repairs(node, of).ok()? == before + 1).then_some(())
        })?;
        theirs(left)?;
    }
    let journal = node.journal();
    for told in
        ["repaired: 1 virtual server was removed by", "inet kvip was removed by another program (nft)"]
    {
        ensure!(journal.contains(told), "the journal does not say {told:?}:\n{journal}");
    }
    wait_until_settled(&lab)
}

/// The node to whom `text` is said, or not, within an audit.
fn said(lab: &Lab, node: &str, text: &str, wanted: bool) -> Result<()> {
    let told = lab.wait_for(&format!("{node} to say {text:?}: {wanted}"), AUDIT, || {
        (finding(lab, node, text).is_some() == wanted).then_some(())
    });
    explained(lab, told)
}

#[test]
fn kernel_settings_are_verified() -> Result<()> {
    let lab = serving()?;
    let name = lab.other_than(lab.wait_for_holder()?);
    lab.node(name).must("sysctl -w net.ipv4.vs.conntrack=0")?;
    said(&lab, name, "sysctl -w net.ipv4.vs.conntrack=1", true)?;
    // At the start too, and not a minute later.
    lab.node(name).must_within(SOON, "systemctl restart kvip")?;
    let started = lab.wait_for("the finding of a start", SOON / 2, || {
        finding(&lab, name, "sysctl -w net.ipv4.vs.conntrack=1").map(drop)
    });
    explained(&lab, started)?;
    lab.node(name).must("sysctl -w net.ipv4.vs.conntrack=1")?;
    said(&lab, name, "net.ipv4.vs.conntrack", false)
}

/// IPVS's timeouts and the sync daemon are as the settings say, and the daemon's role follows the holder.
#[test]
fn timeouts_and_the_sync_daemon() -> Result<()> {
    let lab = serving()?;
    let configure = |settings: &Settings| -> Result<()> {
        for node in lab.nodes() {
            node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
            node.must_within(SOON, "systemctl reload kvip")?;
        }
        Ok(())
    };
    let extra =
        "[balancing]\ntcp_timeout = \"20m\"\ntcp_fin_timeout = \"45s\"\nudp_timeout = \"90s\"\nsync = true\n"
            .to_owned();
    configure(&Settings { extra, ..Settings::default() })?;
    let holder = wait_for_roles(&lab, "")?;
    for node in lab.nodes() {
        let text = node.must("ipvsadm -L --timeout")?;
        ensure!(text.contains("1200 45 90"), "{}: {text}", node.spec().name);
    }
    lab.node(holder).must_within(SOON, "kvip drain --wait")?;
    wait_for_roles(&lab, holder)?;
    lab.node(holder).must_within(SOON, "kvip undrain")?;
    configure(&Settings::default())?;
    for node in lab.nodes() {
        lab.wait_for("no sync daemon", SOON, || {
            node.must("ipvsadm -L --daemon").ok()?.trim().is_empty().then_some(())
        })?;
    }
    wait_until_settled(&lab)
}

/// Waits until the holder, another one than `before`, tells of connections, and the others hear of them.
fn wait_for_roles(lab: &Lab, before: &str) -> Result<&'static str> {
    let seen = lab.wait_for("the sync daemons to have their roles", SOON, || {
        let holder = lab.holder().filter(|holder| *holder != before)?;
        let has_role = |node: Node<'_>| {
            let role = if node.spec().name == holder { "master" } else { "backup" };
            let text = node.must("ipvsadm -L --daemon").ok()?;
            (text.lines().count() == 1 && text.starts_with(role)).then_some(())
        };
        lab.nodes().all(|node| has_role(node).is_some()).then_some(holder)
    });
    explained(lab, seen)
}

/// A node on which kube-proxy makes its device, and tells nothing, leaves the VIPs to the others, until the admin gives his
/// word.
#[test]
fn kube_proxy_in_ipvs_mode() -> Result<()> {
    let lab = serving()?;
    let name = lab.wait_for_holder()?;
    let node = lab.node(name);
    node.must("ip link add kube-ipvs0 type dummy")?;
    said(&lab, name, "balancing.beside_kube_proxy_ipvs", true)?;
    lab.wait_for("another holder", SOON, || lab.holder().filter(|holder| *holder != name))?;
    ensure!(lab.curl(VIP).is_some(), "nobody serves the VIP");
    lab.wait_for("no virtual server", SOON, || (!node.ipvs().ok()?.contains(VIP)).then_some(()))?;
    let word =
        Settings { extra: "[balancing]\nbeside_kube_proxy_ipvs = true\n".to_owned(), ..Settings::default() };
    node.write("/etc/kvip/config.toml", word.toml().as_bytes())?;
    node.must_within(SOON, "systemctl reload kvip")?;
    lab.wait_for("the virtual server", SOON, || node.ipvs().ok()?.contains(VIP).then_some(()))?;
    node.must("ip link del kube-ipvs0")?;
    node.write("/etc/kvip/config.toml", Settings::default().toml().as_bytes())?;
    node.must_within(SOON, "systemctl reload kvip")?;
    wait_until_settled(&lab)
}
