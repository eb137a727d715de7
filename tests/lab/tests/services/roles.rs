//! Members and allocators: one node gives addresses, the others have a kubeconfig that lets them write Events and no more.

use anyhow::{Context as _, Result};
use kvip_lab::asking::{
    Asking, POOLS, events, explain, must, settings, wait_for_addresses, wait_for_answer, wait_until_gone,
};
use kvip_lab::lab::Lab;
use kvip_lab::layout::NODES;
use kvip_lab::scenario::{SOON, VIP};

use super::{asking, delete};

/// Gives a node's kvip, which reads the file anew when it changes, the kubeconfig of that role.
fn give(lab: &Lab, node: &str, role: &str) -> Result<()> {
    let kubeconfig = lab.enroll_as(role)?;
    // As an admin does: whole, and at once.
    lab.node(node).write("/etc/kvip/kubeconfig.new", kubeconfig.as_bytes())?;
    lab.node(node)
        .must("chmod 0600 /etc/kvip/kubeconfig.new && mv /etc/kvip/kubeconfig.new /etc/kvip/kubeconfig")
        .map(drop)
}

#[test]
fn members_serve_what_the_allocator_gives() -> Result<()> {
    let lab = asking()?;
    let allocator = lab.wait_for_holder()?;
    let members: Vec<&str> = NODES.iter().map(|node| node.name).filter(|node| *node != allocator).collect();
    lab.kubectl(&["label", "node", allocator, "lab=allocator"])?;
    settings(&lab, &POOLS.replace("[asking]", "[asking]\nallocators = \"lab=allocator\""))?;
    members.iter().try_for_each(|node| give(&lab, node, "member"))?;

    Asking::new("given").load_balancer().apply(&lab)?;
    let vip = wait_for_addresses(&lab, "given", 1)?.remove(0);
    wait_for_answer(&lab, &vip)?;

    // A member that holds the VIPs says so itself, and that is all that it writes.
    lab.node(allocator).must_within(SOON, "kvip drain --wait 40")?;
    let moved =
        lab.wait_for("a member to hold the VIPs", SOON, || lab.holder().filter(|it| *it != allocator));
    let holder = moved.with_context(|| explain(&lab, ""))?;
    let words = format!("Normal HolderChanged: {holder} now holds {vip}");
    let told = lab.wait_for(&words, SOON, || {
        events(&lab, "default", "given").ok()?.iter().any(|event| event.starts_with(&words)).then_some(())
    });
    told.with_context(|| explain(&lab, "given"))?;
    wait_for_answer(&lab, &vip)?;
    wait_for_answer(&lab, VIP)?;
    for node in &members {
        let findings = lab.node(node).kvip_status()?["findings"].clone();
        must(&lab, findings == serde_json::json!([]), &format!("{node}, a member, finds {findings}"))?;
    }
    // What is asked for now is given by the allocator, though another node holds the VIPs.
    Asking::new("later").load_balancer().apply(&lab)?;
    let later = wait_for_addresses(&lab, "later", 1)?.remove(0);
    wait_for_answer(&lab, &later)?;

    lab.node(allocator).must_within(SOON, "kvip undrain")?;
    ["given", "later"].iter().try_for_each(|service| delete(&lab, service))?;
    [vip, later].iter().try_for_each(|address| wait_until_gone(&lab, address))?;
    members.iter().try_for_each(|node| give(&lab, node, "allocator"))?;
    settings(&lab, POOLS)?;
    lab.kubectl(&["label", "node", allocator, "lab-"]).map(drop)
}
