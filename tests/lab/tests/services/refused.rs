//! Wishes that cannot be granted: what is said, that nobody else has less for it, and how they are granted after all.

use anyhow::Result;
use kvip_lab::asking::{
    Asking, POOLS, claimed, ingress, must, settings, wait_for_addresses, wait_for_answer, wait_for_reason,
    wait_until_gone,
};
use kvip_lab::lab::Lab;

use super::{asking, delete};

/// Two addresses, both IPv4.
const TINY: &str =
    "[[pools]]\nname = \"tiny\"\naddresses = [\"10.87.2.112-10.87.2.113\"]\nauto_assign = false\n";

/// A Service that asks for an address of the tiny pool.
fn of_tiny(name: &str) -> Asking {
    Asking::new(name).load_balancer().annotation("kvip.io/pool", "tiny")
}

/// The Service has no address, and of the tiny pool no more than so many are claimed.
fn check_has_nothing(lab: &Lab, service: &str, claims: usize) -> Result<()> {
    must(lab, ingress(lab, service)?.is_empty(), &format!("{service} was refused and has a status"))?;
    let tiny = claimed(lab)?.into_iter().filter(|address| address.starts_with("10.87.2.11")).count();
    must(lab, tiny == claims, &format!("{service} was refused and {tiny} addresses are claimed"))
}

#[test]
fn what_no_pool_can_give_is_said_and_given_when_one_can() -> Result<()> {
    let lab = asking()?;
    settings(&lab, &[POOLS, TINY].concat())?;
    // All or nothing: the pool has IPv4 addresses, and not even these are taken.
    of_tiny("both").spec("ipFamilyPolicy", "RequireDualStack").apply(&lab)?;
    wait_for_reason(&lab, "default", "both", "no pool tiny with IPv6 addresses for it")?;
    check_has_nothing(&lab, "both", 0)?;
    delete(&lab, "both")?;

    of_tiny("one").apply(&lab)?;
    let one = wait_for_addresses(&lab, "one", 1)?.remove(0);
    of_tiny("two").apply(&lab)?;
    let two = wait_for_addresses(&lab, "two", 1)?.remove(0);
    of_tiny("three").apply(&lab)?;
    let full = "no IPv4 address is free: pool tiny (10.87.2.112-10.87.2.113): 2 of 2 in use";
    wait_for_reason(&lab, "default", "three", full)?;
    let wishing = |address: &str| Asking::new("four").load_balancer().annotation("kvip.io/vips", address);
    wishing(&one).apply(&lab)?;
    wait_for_reason(&lab, "default", "four", &format!("{one} is in use by default/one"))?;
    check_has_nothing(&lab, "three", 2)?;
    check_has_nothing(&lab, "four", 2)?;
    for address in [&one, &two] {
        wait_for_answer(&lab, address)?;
    }

    settings(&lab, &[POOLS, &TINY.replace(".113", ".114")].concat())?;
    must(&lab, wait_for_addresses(&lab, "three", 1)? == ["10.87.2.114"], "the pool's new address is given")?;
    wishing("10.87.2.90").apply(&lab)?;
    must(&lab, wait_for_addresses(&lab, "four", 1)? == ["10.87.2.90"], "the other wish is granted")?;
    for address in ["10.87.2.114", "10.87.2.90"] {
        wait_for_answer(&lab, address)?;
    }
    ["one", "two", "three", "four"].iter().try_for_each(|service| delete(&lab, service))?;
    settings(&lab, POOLS)?;
    [&one, &two, "10.87.2.114", "10.87.2.90"].iter().try_for_each(|address| wait_until_gone(&lab, address))
}

/// What Services bring along that were written for MetalLB or kube-vip.
#[test]
fn the_annotations_of_others_are_understood() -> Result<()> {
    let lab = asking()?;
    let mut all = Vec::new();
    for (name, annotation, value, expected) in [
        (
            "of-metallb",
            "metallb.io/loadBalancerIPs",
            "10.87.2.80,fd00:87:2::110",
            vec!["10.87.2.80", "fd00:87:2::110"],
        ),
        ("of-older", "metallb.universe.tf/loadBalancerIPs", "10.87.2.81", vec!["10.87.2.81"]),
        ("of-kube-vip", "kube-vip.io/loadbalancerIPs", "10.87.2.82", vec!["10.87.2.82"]),
        ("of-a-pool", "metallb.io/address-pool", "named", vec!["10.87.2.96"]),
    ] {
        let policy = if expected.len() == 2 { "RequireDualStack" } else { "SingleStack" };
        let asking = Asking::new(name).load_balancer().spec("ipFamilyPolicy", policy);
        asking.annotation(annotation, value).apply(&lab)?;
        let given = wait_for_addresses(&lab, name, expected.len())?;
        // The pool's first addresses may rest, as other tests gave them back.
        let of_pool = || (96..104).any(|last| given[0] == format!("10.87.2.{last}"));
        let as_asked = given == expected || (value == "named" && of_pool());
        must(&lab, as_asked, &format!("{annotation}: {value} gave {given:?}"))?;
        all.extend(given);
    }
    let sharing =
        |name: &str| Asking::new(name).load_balancer().annotation("metallb.io/allow-shared-ip", "key");
    sharing("sharing-a").apply(&lab)?;
    sharing("sharing-b").port(8080).apply(&lab)?;
    let [a, b] = [wait_for_addresses(&lab, "sharing-a", 1)?, wait_for_addresses(&lab, "sharing-b", 1)?];
    must(&lab, a == b, &format!("one key, two ports: {a:?} and {b:?}"))?;
    wait_for_answer(&lab, &format!("{}:8080", a[0]))?;
    all.extend(a);
    for address in &all {
        wait_for_answer(&lab, &kvip_lab::asking::in_url(address))?;
    }
    ["of-metallb", "of-older", "of-kube-vip", "of-a-pool", "sharing-a", "sharing-b"]
        .iter()
        .try_for_each(|service| delete(&lab, service))?;
    all.iter().try_for_each(|address| wait_until_gone(&lab, address))
}
