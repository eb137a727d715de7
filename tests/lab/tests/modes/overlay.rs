//! Pods behind an overlay network, as flannel makes one: what is handed on comes out of a device, not from a peer's card.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::{NODES, NodeSpec};
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::{SOON, diagnosis, explained, finding};

use super::{DSR, kept_source, modes};

/// The devices, named as flannel names its own.
const VXLAN: &str = "flannel.1";
const IPIP: &str = "flannel.ipip";
/// kvip's minute's audit, and what comes of it on a slow machine.
const AUDIT: Duration = Duration::from_secs(120);

#[test]
fn pods_behind_vxlan_see_the_client() -> Result<()> {
    let lab = modes()?;
    lab.on_all_nodes(|node| node.must(&vxlan(node)).map(drop)).into_iter().collect::<Result<()>>()?;
    check(&lab, VXLAN)?;
    strict(&lab)?;
    lab.on_all_nodes(|node| node.must(&unwrap(node, VXLAN)).map(drop)).into_iter().collect()
}

/// IPIP carries IPv4; IPv6 goes from node to node as it is.
#[test]
fn pods_behind_ipip_see_the_client() -> Result<()> {
    let lab = modes()?;
    lab.on_all_nodes(|node| node.must(&ipip(node)).map(drop)).into_iter().collect::<Result<()>>()?;
    check(&lab, IPIP)?;
    lab.on_all_nodes(|node| node.must(&unwrap(node, IPIP)).map(drop)).into_iter().collect()
}

/// All are answered by all pods, and those see who asks from outside.
fn check(lab: &Lab, device: &str) -> Result<()> {
    let marked = lab.wait_for("packets out of the overlay to be marked", SOON, || {
        let chain = "nft list chain inet kvip steer4";
        lab.nodes().all(|node| node.must(chain).is_ok_and(|text| text.contains(device))).then_some(())
    });
    explained(lab, marked)?;
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let far = lab.node(other).pod("echo-")?;
    for question in DSR.questions() {
        for asker in [Asker::Client, Asker::Outside, Asker::Node(holder), Asker::Pod(other, &far)] {
            let question = question.connections(24).every(Duration::from_secs(1));
            let report = lab.ask(asker, &question, 1)?;
            println!(
                "{device}, {} from {asker:?}: {report}; pods saw {:?}",
                question.arguments(),
                report.sources()
            );
            let all = report.answered() == 24 && report.pods().len() == 3;
            let good = all && kept_source(&report, asker, question.target.is_ipv4());
            ensure!(good, "{asker:?} {}: {report}\n{}", question.arguments(), diagnosis(lab));
        }
    }
    Ok(())
}

/// A device that takes only what it would answer to drops what is handed on through it, and so does one without an address.
fn strict(lab: &Lab) -> Result<()> {
    let node = lab.node(lab.other_than(lab.wait_for_holder()?));
    let filter = |value: u8| format!("sysctl -w net.ipv4.conf.flannel/1.rp_filter={value}");
    let address = |verb: &str| format!("ip addr {verb} {}/32 dev flannel.1", address(node.spec()));
    for (script, said) in [
        (filter(1), Some("is strict")),
        (filter(2), None),
        (address("del"), Some("has no IPv4 address")),
        (address("add"), None),
    ] {
        node.must(&script)?;
        let judged = lab.wait_for(&format!("{script} to be judged"), AUDIT, || {
            let found = finding(lab, node.spec().name, "flannel/1.rp_filter");
            let as_is = match said {
                Some(said) => found?.contains(said),
                None => found.is_none(),
            };
            as_is.then_some(())
        });
        judged.with_context(|| diagnosis(lab))?;
    }
    Ok(())
}

/// The device's address, which is the first of the node's pods' range, as flannel has it.
fn address(node: &NodeSpec) -> &str {
    node.pod4.split('/').next().unwrap_or_default()
}

/// The last number of a node's addresses, by which its pod ranges and its device's address are named.
fn number(address: &str) -> &str {
    address.rsplit('.').next().unwrap_or_default()
}

/// The device's link-layer address. It is given when the device is made: udev changes one that the kernel made up.
fn card(node: &NodeSpec) -> String {
    format!("0e:00:00:00:00:{:0>2}", number(node.v4))
}

/// Makes the device, and sends pods' packets over IPv4 through it.
fn ipip(node: Node<'_>) -> String {
    let own = node.spec();
    let mut script = format!(
        "set -e; ip link add {IPIP} type ipip local {}; ip link set {IPIP} up
        ip addr add {}/32 dev {IPIP}
        sysctl -q -w net.ipv4.conf.{}.rp_filter=2\n",
        own.v4,
        address(own),
        IPIP.replace('.', "/")
    );
    for other in NODES.iter().filter(|other| other.name != own.name) {
        let _ = writeln!(script, "ip route replace {} via {} dev {IPIP} onlink", other.pod4, other.v4);
    }
    script
}

/// Makes the device, and sends pods' packets through it.
fn vxlan(node: Node<'_>) -> String {
    let own = node.spec();
    let mut script = format!(
        "set -e; ip link add flannel.1 address {} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning
        ip link set flannel.1 up
        ip addr add {}/32 dev flannel.1
        sysctl -q -w net.ipv4.conf.flannel/1.rp_filter=2\n",
        card(own),
        own.v4,
        address(own)
    );
    for other in NODES.iter().filter(|other| other.name != own.name) {
        let card = card(other);
        let _ = writeln!(script, "bridge fdb append {card} dev flannel.1 dst {}", other.v4);
        let link_local = format!("fe80::{}", number(other.v4));
        for (network, via) in [(other.pod4, address(other)), (other.pod6, &link_local)] {
            let _ = writeln!(
                script,
                "ip neigh replace {via} lladdr {card} dev flannel.1 nud permanent
                ip route replace {network} via {via} dev flannel.1 onlink"
            );
        }
    }
    script
}

/// Takes the device away and sends pods' packets to their nodes again.
fn unwrap(node: Node<'_>, device: &str) -> String {
    let mut script = format!("set -e; ip link del {device}\n");
    for other in NODES.iter().filter(|other| other.name != node.spec().name) {
        let routes = [(other.pod4, other.v4), (other.pod6, other.v6)];
        for (network, via) in routes {
            let _ = writeln!(script, "ip route replace {network} via {via}");
        }
    }
    script
}
