//! sessionAffinity ClientIP in mode dsr: clients are hashed by their address, so that another holder sends them to the same pod.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use kvip_lab::asking::{Asking, wait_until_gone};
use kvip_lab::lab::Lab;
use kvip_lab::peer::drive::Asker;
use kvip_lab::scenario::{SOON, diagnosis};

use super::{Mode, modes, successor};

const STICKY: Mode = Mode { name: "dsr", v4: "10.87.2.59", v6: "fd00:87:2::59" };

#[test]
fn a_client_stays_at_its_pod_whoever_holds_the_vip() -> Result<()> {
    let lab = modes()?;
    STICKY.on(Asking::echo("sticky")).spec("sessionAffinity", "ClientIP").apply(&lab)?;
    let before = pods(&lab)?;
    let holder = lab.wait_for_holder()?;
    lab.node(holder).must_within(SOON, "kvip drain --wait 40")?;
    successor(&lab, holder)?;
    let after = pods(&lab)?;
    lab.node(holder).must_within(SOON, "kvip undrain")?;
    ensure!(before == after, "before {before:?} answered, after the change {after:?}\n{}", diagnosis(&lab));
    lab.kubectl(&["delete", "service", "sticky"])?;
    STICKY.vips().iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}

/// The pod that answers all connections of the client, for either transport at either address.
fn pods(lab: &Lab) -> Result<Vec<String>> {
    let mut pods = Vec::new();
    for question in STICKY.questions() {
        let question = question.connections(16);
        let answered = lab.wait_for(&format!("{} to be answered", question.arguments()), SOON, || {
            let report = lab.ask(Asker::Client, &question, 1).ok()?;
            report.failures().is_empty().then(|| report.pods().into_keys().collect::<BTreeSet<_>>())
        })?;
        println!("ClientIP, {}: {answered:?}", question.arguments());
        ensure!(answered.len() == 1, "one client was sent to {answered:?}\n{}", diagnosis(lab));
        pods.extend(answered);
    }
    Ok(pods)
}
