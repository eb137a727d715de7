//! Services that cannot be balanced, and the types that a Service may change to.

use anyhow::{Context as _, Result};
use kvip_lab::asking::{
    Asking, POOLS, condition, explain, must, settings, wait_for_addresses, wait_for_answer, wait_for_reason,
    wait_for_refusal, wait_until_gone, wait_until_unsaid,
};
use kvip_lab::lab::Lab;
use kvip_lab::scenario::{SOON, ask_for, finding};
use serde_json::json;

use super::{asking, check_left, delete};

#[test]
fn an_alias_and_a_headless_service_are_refused_with_the_reason() -> Result<()> {
    let lab = asking()?;
    let headless = Asking::new("headless").spec("clusterIP", "None");
    headless.annotation("kvip.io/vips", "10.87.2.57").apply(&lab)?;
    let alias = Asking::new("alias").spec("type", "ExternalName").spec("externalName", "example.com");
    alias.spec("selector", json!(null)).annotation("kvip.io/vips", "10.87.2.58").apply(&lab)?;
    wait_for_reason(&lab, "default", "headless", "not served at 10.87.2.57: it is headless")?;
    wait_for_reason(&lab, "default", "alias", "not served at 10.87.2.58: it is of type ExternalName")?;
    for vip in ["10.87.2.57", "10.87.2.58"] {
        wait_for_refusal(&lab, vip)?;
    }
    delete(&lab, "headless")?;
    delete(&lab, "alias")?;
    ["10.87.2.57", "10.87.2.58"].iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}

#[test]
fn a_service_that_changes_its_type_leaves_nothing_behind() -> Result<()> {
    let lab = asking()?;
    let plain = Asking::new("moving");
    for (change, after) in [
        ("to an alias", plain.clone().spec("type", "ExternalName").spec("externalName", "example.com")),
        ("to a NodePort", plain.clone().spec("type", "NodePort")),
        ("to no class", plain.clone().spec("type", "LoadBalancer")),
    ] {
        plain.clone().load_balancer().apply(&lab)?;
        let given = wait_for_addresses(&lab, "moving", 1)?.remove(0);
        wait_for_answer(&lab, &given)?;
        // A class cannot be changed while the type stays.
        plain.apply(&lab)?;
        after.apply(&lab)?;
        check_left(&lab, &given, change)?;
        plain.apply(&lab)?;
    }
    plain.clone().spec("externalIPs", vec!["10.87.2.59"]).apply(&lab)?;
    wait_for_answer(&lab, "10.87.2.59")?;
    plain.apply(&lab)?;
    check_left(&lab, "10.87.2.59", "without its externalIPs")?;

    // A NodePort Service of the ConfigMap becomes an alias: the VIP stays, as the admin asked for it, and refuses.
    plain.clone().spec("type", "NodePort").apply(&lab)?;
    ask_for(&lab, "10.87.2.58", Some("default/moving"))?;
    wait_for_answer(&lab, "10.87.2.58")?;
    plain.clone().spec("type", "ExternalName").spec("externalName", "example.com").apply(&lab)?;
    wait_for_refusal(&lab, "10.87.2.58")?;
    ask_for(&lab, "10.87.2.58", None)?;
    wait_until_unsaid(&lab, "moving")?;
    delete(&lab, "moving")?;
    wait_until_gone(&lab, "10.87.2.58")
}

/// A finding that is no refusal must not keep kvip's words on a Service that asks no more.
#[test]
fn what_the_config_map_gives_leaves_nothing_said() -> Result<()> {
    let lab = asking()?;
    let plain = Asking::new("mapped").annotation("kvip.io/tunnel", "ipip");
    let annotated = plain.clone().annotation("kvip.io/vips", "10.87.2.57");
    annotated.apply(&lab)?;
    wait_until_said(&lab, "mapped")?;
    ask_for(&lab, "10.87.2.58", Some("default/mapped"))?;
    plain.apply(&lab)?;
    wait_until_gone(&lab, "10.87.2.57")?;
    wait_for_answer(&lab, "10.87.2.58")?;
    wait_until_unsaid(&lab, "mapped")?;
    let words = "annotation kvip.io/tunnel has no effect in mode nat";
    must(&lab, finding(&lab, "node-a", words).is_some(), "nodes say what has no effect")?;

    annotated.apply(&lab)?;
    wait_until_said(&lab, "mapped")?;
    settings(&lab, &POOLS.replace("[asking]", "[asking]\nannotations = false"))?;
    wait_until_unsaid(&lab, "mapped")?;
    settings(&lab, POOLS)?;
    ask_for(&lab, "10.87.2.58", None)?;
    delete(&lab, "mapped")?;
    ["10.87.2.57", "10.87.2.58"].iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}

fn wait_until_said(lab: &Lab, service: &str) -> Result<()> {
    let said = lab.wait_for("a condition that it is served", SOON, || {
        condition(lab, service).ok()?.starts_with("True ").then_some(())
    });
    said.with_context(|| explain(lab, service))
}
