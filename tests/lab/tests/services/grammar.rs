//! What the ConfigMap's values come to in the kernel: methods, ports, lists, and a VIP that only floats.

use anyhow::{Context as _, Result};
use kvip_lab::asking::{Asking, explain, must, wait_for_answer, wait_until_gone};
use kvip_lab::lab::Lab;
use kvip_lab::scenario::{SOON, ask_for};
use serde_json::json;

use super::{asking, delete};

const AT: &str = "10.87.2.62";

/// Asks for the VIP with `value`, and waits until all nodes' IPVS tables are `good`.
fn comes_to(lab: &Lab, value: &str, good: impl Fn(&str) -> bool) -> Result<()> {
    ask_for(lab, AT, Some(value))?;
    let done = lab.wait_for(&format!("IPVS to be as {value} says"), SOON, || {
        lab.nodes().all(|node| node.ipvs().is_ok_and(|table| good(&table))).then_some(())
    });
    done.with_context(|| explain(lab, ""))
}

/// The real servers of a port of the VIP are forwarded to by `flag` of ipvsadm.
fn forwarded(port: u16, flag: &'static str) -> impl Fn(&str) -> bool {
    let server = format!("-a -t {AT}:{port} -r 10.2.");
    move |table| {
        let mut lines = table.lines().filter(|line| line.starts_with(&server)).peekable();
        lines.peek().is_some() && lines.all(|line| line.contains(&format!(" {flag} ")))
    }
}

fn has_none(table: &str) -> bool {
    !table.contains(AT)
}

#[test]
fn the_config_map_names_every_method() -> Result<()> {
    let lab = asking()?;
    let hashed = |table: &str| table.contains(&format!("-A -t {AT}:80 -s mh"));
    for (method, good) in [("DR", true), ("NAT", false), ("DSR", true)] {
        comes_to(&lab, &format!("default/nginx:{method}"), |table| {
            if good { hashed(table) } else { forwarded(80, "-m")(table) && !hashed(table) }
        })?;
        wait_for_answer(&lab, AT)?;
    }
    comes_to(&lab, "default/nginx:TUNNEL", forwarded(80, "-i"))?;
    // nginx is not told of the PROXY protocol here, and says so: an answer all the same.
    comes_to(&lab, "default/nginx:PROXY", has_none)?;
    wait_for_answer(&lab, AT)?;
    comes_to(&lab, "default/nginx:ANNOUNCE", has_none)?;
    let held = lab.wait_for("the announced VIP to be held", SOON, || {
        lab.nodes().any(|node| node.must("ip -br addr").is_ok_and(|text| text.contains(AT))).then_some(())
    });
    held.with_context(|| explain(&lab, ""))?;
    ask_for(&lab, AT, None)?;
    wait_until_gone(&lab, AT)
}

#[test]
fn the_config_map_names_ports_and_several_services() -> Result<()> {
    let lab = asking()?;
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": 80}]);
    Asking::new("several").spec("ports", ports).apply(&lab)?;
    comes_to(&lab, "default/several:81", |table| {
        forwarded(81, "-m")(table) && !table.contains(&format!("{AT}:80"))
    })?;
    wait_for_answer(&lab, &format!("{AT}:81"))?;
    comes_to(&lab, "default/nginx:80, default/several:81:DSR", |table| {
        forwarded(80, "-m")(table) && table.contains(&format!("-A -t {AT}:81 -s mh"))
    })?;
    for port in [80, 81] {
        wait_for_answer(&lab, &format!("{AT}:{port}"))?;
    }
    ask_for(&lab, AT, None)?;
    delete(&lab, "several")?;
    wait_until_gone(&lab, AT)
}

/// Its ports are the host's: the nodes' own ssh answers at it.
#[test]
fn a_vip_that_only_floats_is_its_holders() -> Result<()> {
    let lab = asking()?;
    ask_for(&lab, AT, Some(""))?;
    let answered = lab.wait_for("ssh to answer at the floating VIP", SOON, || {
        let url = format!("http://{AT}:22/");
        let output = lab.client(&["curl", "-s", "--http0.9", "--max-time", "3", &url]).ok()?;
        output.stdout.starts_with("SSH-").then_some(())
    });
    answered.with_context(|| explain(&lab, ""))?;
    must(
        &lab,
        lab.nodes().all(|node| node.ipvs().is_ok_and(|table| has_none(&table))),
        "IPVS has to do with it",
    )?;
    ask_for(&lab, AT, None)?;
    wait_until_gone(&lab, AT)
}
