//! A pod that ends in mode dsr: it keeps what it has for as long as it serves, and gets nothing new.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{ECHO, in_url, pod_address};
use kvip_lab::lab::Node;
use kvip_lab::peer::Transport;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::Report;
use kvip_lab::scenario::{SOON, diagnosis, explained};

use super::{DSR, answered_by, modes, question};

/// mh hashes some of all clients to the pod, which has weight 0 then: they fall back to others, on the holder and on the pod's own
/// node alike.
#[test]
fn a_pod_that_ends_keeps_its_connections_and_gets_no_new_ones() -> Result<()> {
    let lab = modes()?;
    for vip in DSR.vips() {
        let held = question(Transport::Tcp, vip).connections(12).every(Duration::from_millis(300));
        let probe = lab.asking(Asker::Client, &held)?;
        let open = lab.wait_for("all connections to be open", SOON, || {
            let views = Report::new(probe.so_far());
            (views.connections().len() == 12 && views.answered() >= 24).then_some(())
        });
        explained(&lab, open)?;
        let pod = Report::new(probe.so_far()).pods().into_keys().next().context("a pod answered")?;
        lab.kubectl(&["annotate", "pod", &pod, "lab.kvip/pre-stop-seconds=45"])?;
        lab.kubectl(&["delete", "pod", &pod, "--wait=false", "--grace-period=60"])?;
        // It stays in the table that all nodes have alike, with weight 0.
        let server = format!(
            "-a -t {}:{ECHO} -r {}:",
            in_url(vip),
            in_url(&pod_address(&lab, &pod, vip.contains(':'))?)
        );
        let drains = |node: Node<'_>| {
            let table = node.ipvs().ok()?;
            table.lines().any(|line| line.starts_with(&server) && line.ends_with(" -w 0")).then_some(())
        };
        let drained = lab.wait_for("all nodes to drain it", SOON, || {
            lab.nodes().all(|node| drains(node).is_some()).then_some(())
        });
        explained(&lab, drained)?;
        let fresh = lab.ask(Asker::Client, &question(Transport::Tcp, vip).connections(24), 1)?;
        let report = probe.stop()?;
        println!("{pod} ends at {vip}: held {report}; new ones {fresh}, of {:?}", fresh.pods());
        ensure!(fresh.answered() == 24, "new connections were lost: {fresh}\n{}", diagnosis(&lab));
        ensure!(
            !fresh.pods().contains_key(&pod),
            "{pod} got new ones: {:?}\n{}",
            fresh.pods(),
            diagnosis(&lab)
        );
        for view in report.connections().values() {
            let kept = view.end().is_none() && view.pods().len() == 1;
            ensure!(kept, "a connection that was open did not go on: {view}\n{}", diagnosis(&lab));
        }
        // The next begins when it has gone, and another has come.
        let gone = lab.wait_for(&format!("{pod} to be gone"), SOON * 2, || {
            lab.kubectl(&["get", "pod", &pod]).is_err().then_some(())
        });
        explained(&lab, gone)?;
        answered_by(&lab, DSR, 3)?;
    }
    Ok(())
}
