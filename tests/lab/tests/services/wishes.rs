//! Which address a Service of type LoadBalancer gets, and what its status says, as its wishes and the settings change.

use anyhow::{Context as _, Result};
use kvip_lab::asking::{
    Asking, POOLS, claimed, condition, explain, ingress, must, settings, wait_for_addresses, wait_for_answer,
    wait_until_gone,
};
use kvip_lab::lab::Lab;
use kvip_lab::layout::NODES;
use kvip_lab::scenario::{SOON, finding};
use serde_json::{Value, json};

use super::{asking, delete};

/// Waits until the status has these entries and no other; of ours as kvip writes them for port 80.
fn wait_for_ingress(lab: &Lab, service: &str, expected: &[Value]) -> Result<()> {
    let said = lab.wait_for(&format!("the status of {service} to say {expected:?}"), SOON, || {
        (ingress(lab, service).ok()? == expected).then_some(())
    });
    said.with_context(|| explain(lab, service))
}

/// An entry as kvip writes it.
fn entry(ip: &str, mode: &str) -> Value {
    json!({"ip": ip, "ipMode": mode, "ports": [{"port": 80, "protocol": "TCP"}]})
}

#[test]
fn a_wish_is_granted_and_a_changed_one_moves_the_address() -> Result<()> {
    let lab = asking()?;
    let wishing = |address: &str| Asking::new("wishing").load_balancer().spec("loadBalancerIP", address);
    wishing("10.87.2.70").apply(&lab)?;
    wait_for_ingress(&lab, "wishing", &[entry("10.87.2.70", "Proxy")])?;
    wait_for_answer(&lab, "10.87.2.70")?;

    // Somebody else's entry stays, whatever becomes of kvip's.
    let other = json!({"hostname": "other.example.com"});
    let both = json!({"status": {"loadBalancer": {"ingress": [entry("10.87.2.70", "Proxy"), other]}}});
    let patch = ["patch", "service", "wishing", "--subresource=status", "--type=merge", "-p"];
    lab.kubectl(&[&patch[..], &[&both.to_string()]].concat())?;
    wishing("10.87.2.71").apply(&lab)?;
    let moved = lab.wait_for("the status to name 10.87.2.71 beside the other's entry", SOON, || {
        let said = ingress(&lab, "wishing").ok()?;
        (said.len() == 2 && said.contains(&entry("10.87.2.71", "Proxy")) && said.contains(&other))
            .then_some(())
    });
    moved.with_context(|| explain(&lab, "wishing"))?;
    wait_for_answer(&lab, "10.87.2.71")?;
    wait_until_gone(&lab, "10.87.2.70")?;
    must(&lab, !claimed(&lab)?.contains("10.87.2.70"), "the address that was moved from is given back")?;

    // What cannot be had: the reason is said, and what there is goes on.
    wishing("10.87.3.1").apply(&lab)?;
    let refused = lab.wait_for("the condition to say that 10.87.3.1 is not to be had", SOON, || {
        condition(&lab, "wishing").ok()?.contains("10.87.3.1 lies in no pool").then_some(())
    });
    refused.with_context(|| explain(&lab, "wishing"))?;
    wait_for_answer(&lab, "10.87.2.71")?;
    delete(&lab, "wishing")?;
    wait_until_gone(&lab, "10.87.2.71")
}

#[test]
fn pools_and_classes_are_what_the_settings_say() -> Result<()> {
    let lab = asking()?;
    Asking::new("named").load_balancer().annotation("kvip.io/pool", "named").apply(&lab)?;
    let named = wait_for_addresses(&lab, "named", 1)?.remove(0);
    let last: u8 = named.rsplit('.').next().context("four octets")?.parse()?;
    must(&lab, (96..104).contains(&last), &format!("{named} is not of the pool that was named"))?;
    wait_for_answer(&lab, &named)?;

    Asking::new("classless").spec("type", "LoadBalancer").apply(&lab)?;
    settings(&lab, &POOLS.replace("[asking]", "[asking]\nload_balancers = \"default\""))?;
    let classless = wait_for_addresses(&lab, "classless", 1)?.remove(0);
    wait_for_answer(&lab, &classless)?;

    // The pool no longer has the address: it is kept and said, and nobody else gets one of what was taken away.
    settings(&lab, &POOLS.replace("10.87.2.96/29", "10.87.2.104/29"))?;
    let words = format!("{named} lies in no pool that the Service may use today; it is kept");
    let told = lab.wait_for("all nodes to say so", SOON, || {
        NODES.iter().all(|node| finding(&lab, node.name, &words).is_some()).then_some(())
    });
    told.with_context(|| explain(&lab, "named"))?;
    wait_for_answer(&lab, &named)?;
    Asking::new("later").load_balancer().annotation("kvip.io/pool", "named").apply(&lab)?;
    let later = wait_for_addresses(&lab, "later", 1)?.remove(0);
    let last: u8 = later.rsplit('.').next().context("four octets")?.parse()?;
    must(&lab, (104..112).contains(&last), &format!("{later} is not of the pool as it is now"))?;

    // Without a class it is no longer kvip's.
    wait_until_gone(&lab, &classless)?;
    wait_for_ingress(&lab, "classless", &[])?;
    ["named", "classless", "later"].iter().try_for_each(|service| delete(&lab, service))?;
    [named, later].iter().try_for_each(|address| wait_until_gone(&lab, address))
}

/// Who balances is said by ipMode, and changes in place.
#[test]
fn the_status_follows_the_mode() -> Result<()> {
    let lab = asking()?;
    let plain = Asking::new("modal").load_balancer();
    plain.clone().annotation("kvip.io/mode", "announce").apply(&lab)?;
    let given = wait_for_addresses(&lab, "modal", 1)?.remove(0);
    wait_for_ingress(&lab, "modal", &[entry(&given, "VIP")])?;
    let unbalanced = lab.nodes().all(|node| node.ipvs().is_ok_and(|table| !table.contains(&given)));
    must(&lab, unbalanced, &format!("{given} is announced, and balanced too"))?;
    plain.apply(&lab)?;
    wait_for_ingress(&lab, "modal", &[entry(&given, "Proxy")])?;
    wait_for_answer(&lab, &given)?;
    delete(&lab, "modal")?;
    wait_until_gone(&lab, &given)
}
