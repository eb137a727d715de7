//! Which nodes may hold VIPs: labels that exclude and that select, and a cordon, which does neither.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kvip_lab::asking::{
    Asking, POOLS, events_and_writers, explain, must, settings, wait_for_answer, wait_until_gone,
};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::Lab;
use kvip_lab::layout::{API_PORT, BRIDGE_V4, NODES};
use kvip_lab::scenario::{SOON, VIP, ask_for, finding, wait_until_settled};

use super::{asking, delete};

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

#[test]
fn a_node_that_is_excluded_hands_over_and_takes_nothing_back() -> Result<()> {
    let lab = asking()?;
    let excluded = lab.wait_for_holder()?;
    lab.kubectl(&["label", "node", excluded, &format!("{EXCLUDE}=")])?;
    let moved = lab.wait_for("another holder", SOON, || lab.holder().filter(|node| *node != excluded));
    let holder = moved.with_context(|| explain(&lab, ""))?;
    must(&lab, lab.curl(VIP).is_some(), "the VIPs are served by the other holder")?;
    let said = lab.wait_for(&format!("an Event of {holder}, that it holds the VIP"), SOON, || {
        let events = events_and_writers(&lab, "default", "nginx").ok()?;
        let words = format!("Normal HolderChanged: {holder} now holds {VIP}");
        events.into_iter().find(|(event, _)| event.starts_with(&words))
    });
    let (_, writer) = said.with_context(|| explain(&lab, "nginx"))?;
    must(&lab, writer == holder, &format!("{writer} said that {holder} holds the VIP"))?;
    lab.kubectl(&["label", "node", excluded, &format!("{EXCLUDE}-")])?;
    wait_until_settled(&lab)?;
    must(&lab, lab.holder() == Some(holder), &format!("{excluded} took the VIPs back"))
}

#[test]
fn a_group_has_a_holder_of_its_own() -> Result<()> {
    const ANCHOR: &str = "169.254.255.61";
    let lab = asking()?;
    let group =
        "[[groups]]\nname = \"edge\"\nvrid = 61\naddresses = [\"10.87.2.57\"]\nmembers = \"lab=edge\"\n";
    let first = lab.wait_for_holder()?;
    let member = lab.other_than(first);
    lab.kubectl(&["label", "node", member, "lab=edge"])?;
    settings(&lab, &[POOLS, group].concat())?;
    Asking::new("edge").annotation("kvip.io/vips", "10.87.2.57").apply(&lab)?;
    wait_for_answer(&lab, "10.87.2.57")?;
    let anchors = lab.on_all_nodes(|node| node.must(&format!("ip -4 -o addr show to {ANCHOR}")));
    for (node, anchor) in NODES.iter().zip(anchors) {
        let here = !anchor?.is_empty();
        must(&lab, here == (node.name == member), &format!("{} has the group's anchor: {here}", node.name))?;
    }
    must(&lab, lab.holder() == Some(first), "the other VIPs stay where they were")?;
    delete(&lab, "edge")?;
    wait_until_gone(&lab, "10.87.2.57")?;
    settings(&lab, POOLS)?;
    lab.kubectl(&["label", "node", member, "lab-"])?;
    let gone = lab.wait_for("the group's anchor to be gone", Duration::from_secs(90), || {
        lab.node(member).must(&format!("ip -4 -o addr show to {ANCHOR}")).ok()?.is_empty().then_some(())
    });
    gone.with_context(|| explain(&lab, ""))
}

/// As kubeadm labels the nodes of a cluster that has none but those of the control plane.
#[test]
fn a_cluster_of_excluded_nodes_says_so_and_serves_when_told_to() -> Result<()> {
    let lab = asking()?;
    let all = |change: &str| {
        NODES.iter().try_for_each(|node| {
            lab.kubectl(&["label", "node", node.name, &format!("{EXCLUDE}{change}")]).map(drop)
        })
    };
    all("=")?;
    let said = lab.wait_for("all nodes to say that none is left", SOON, || {
        let words =
            "all 3 Nodes that could are labelled node.kubernetes.io/exclude-from-external-load-balancers";
        NODES.iter().all(|node| finding(&lab, node.name, words).is_some()).then_some(())
    });
    said.with_context(|| explain(&lab, ""))?;
    let unheld = lab.wait_for("nobody to hold the VIPs", SOON, || lab.curl(VIP).is_none().then_some(()));
    unheld.with_context(|| explain(&lab, ""))?;
    // The control plane's own address is on such nodes or nowhere; the VIPs of its group go with it.
    let api = format!(
        "[[static]]\nname = \"control-plane\"\nvip = \"10.87.2.60\"\nport = 6443\nbackends = [\"{BRIDGE_V4}:{API_PORT}\"]\n"
    );
    on_hosts(&lab, &api)?;
    let said = wait_for_answer(&lab, "10.87.2.60:6443")?;
    must(&lab, said.contains("HTTPS server"), &format!("the API server answers, not {said}"))?;
    wait_for_answer(&lab, VIP)?;
    let told = lab.wait_for("all nodes to say why excluded ones hold VIPs", SOON, || {
        let words = "its static VIP 10.87.2.60 ignores the label";
        NODES.iter().all(|node| finding(&lab, node.name, words).is_some()).then_some(())
    });
    told.with_context(|| explain(&lab, ""))?;
    on_hosts(&lab, "")?;
    wait_until_gone(&lab, "10.87.2.60")?;
    settings(&lab, &[POOLS, "[vrrp]\nexcluded_too = true\n"].concat())?;
    wait_for_answer(&lab, VIP)?;
    wait_until_settled(&lab)?;
    all("-")?;
    settings(&lab, POOLS)?;
    wait_until_settled(&lab)
}

/// Has every host's own settings end with `extra`, and kvip read them.
fn on_hosts(lab: &Lab, extra: &str) -> Result<()> {
    let toml = Settings { extra: extra.into(), ..Settings::default() }.toml();
    let written = lab.on_all_nodes(|node| {
        node.write("/etc/kvip/config.toml", toml.as_bytes())?;
        node.must("systemctl reload kvip").map(drop)
    });
    written.into_iter().collect()
}

/// `kubectl cordon` is about where pods may go.
#[test]
fn a_cordoned_holder_goes_on() -> Result<()> {
    let lab = asking()?;
    wait_until_settled(&lab)?;
    let holder = lab.wait_for_holder()?;
    lab.kubectl(&["cordon", holder])?;
    // Long enough for a watch to tell of the cordon, which comes before.
    ask_for(&lab, "10.87.2.58", Some("default/nginx"))?;
    wait_for_answer(&lab, "10.87.2.58")?;
    must(&lab, lab.holder() == Some(holder), "a cordon moved the VIPs")?;
    ask_for(&lab, "10.87.2.58", None)?;
    wait_until_gone(&lab, "10.87.2.58")?;
    lab.kubectl(&["uncordon", holder]).map(drop)
}
