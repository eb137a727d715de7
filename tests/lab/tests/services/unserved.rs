//! Services that cannot be balanced, and the types that a Service may change to.

use anyhow::Result;
use kvip_lab::asking::{
    Asking, wait_for_addresses, wait_for_answer, wait_for_reason, wait_for_refusal, wait_until_gone,
    wait_until_unsaid,
};
use kvip_lab::scenario::ask_for;
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
