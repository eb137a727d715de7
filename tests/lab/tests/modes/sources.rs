//! Who asks, from where, and whom the pods see.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use kvip_lab::lab::Lab;
use kvip_lab::layout::{self, NodeSpec};
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::Report;
use kvip_lab::scenario::diagnosis;

use super::{MODES, Mode, NAT, modes, promised};

/// So many connections, each asked once: enough to meet every pod.
const CONNECTIONS: u16 = 24;

#[test]
fn all_are_answered_and_pods_see_whom_the_mode_promises() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let (near, far) = (lab.node(holder).pod("echo-")?, lab.node(other).pod("echo-")?);
    let askers = [
        ("client", Asker::Client),
        ("outside", Asker::Outside),
        ("the holder", Asker::Node(holder)),
        ("another node", Asker::Node(other)),
        ("a pod of the holder", Asker::Pod(holder, &near)),
        ("a pod elsewhere", Asker::Pod(other, &far)),
    ];
    println!("{holder} holds the VIPs, {other} is another node");
    for mode in MODES {
        thread::scope(|scope| {
            let lab: &Lab = &lab;
            let asking: Vec<_> =
                askers.map(|(name, asker)| scope.spawn(move || check(lab, mode, holder, name, asker))).into();
            asking.into_iter().try_for_each(|asked| asked.join().expect("an asking thread does not panic"))
        })?;
    }
    Ok(())
}

fn check(lab: &Lab, mode: Mode, holder: &str, name: &str, asker: Asker) -> Result<()> {
    for question in mode.questions() {
        // A tick is the time for answers: guests have several askers at once.
        let question = question.connections(CONNECTIONS).every(Duration::from_secs(1));
        let report = lab.ask(asker, &question, 1)?;
        let Question { transport, target, .. } = question;
        for node in report.nodes().keys() {
            let seen = seen(&report.from_node(node));
            println!(
                "{:4} {transport} {:14} from {name:20} pod of {node} saw {seen}",
                mode.name,
                target.ip()
            );
        }
        let why = || format!("{} {}: {report}\n{}", mode.name, question.arguments(), diagnosis(lab));
        ensure!(report.answered() == usize::from(CONNECTIONS), "{name} was not always answered, {}", why());
        ensure!(report.pods().len() == 3, "{name} met not all pods, {}", why());
        for node in report.nodes().keys() {
            let saw: Vec<String> = report.from_node(node).sources().into_keys().collect();
            let expected = expected(mode, asker, holder, node, target.ip());
            ensure!(saw == [&*expected], "{name}: on {node} {saw:?} was seen, not {expected}, {}", why());
        }
    }
    Ok(())
}

/// Whom a pod on `node` is to see.
fn expected(mode: Mode, asker: Asker, holder: &str, node: &str, vip: IpAddr) -> String {
    let is_v4 = vip.is_ipv4();
    // Where the holder picks in mode nat, what leaves it for another node gets its address.
    let through_holder =
        |client: &str| if mode == NAT && node != holder { address(holder, is_v4) } else { client }.to_owned();
    match asker {
        Asker::Client | Asker::Outside => {
            through_holder(promised(asker, is_v4).expect("they are promised it"))
        }
        // What a node sends to an address of its own comes from there.
        Asker::Node(own) if own == node && own == holder => vip.to_string(),
        // The CNI gives it its node's address on the way to the holder.
        Asker::Pod(own, _) if mode == NAT && own != holder => through_holder(address(own, is_v4)),
        Asker::Pod(own, _) if own == node => bridge(own, is_v4),
        // Its own node picks.
        Asker::Node(own) | Asker::Pod(own, _) => address(own, is_v4).to_owned(),
    }
}

fn address(node: &str, is_v4: bool) -> &'static str {
    let spec = spec(node);
    if is_v4 { spec.v4 } else { spec.v6 }
}

/// The address that the node has in the network of its own pods.
fn bridge(node: &str, is_v4: bool) -> String {
    let spec = spec(node);
    if is_v4 { spec.pod4.replace(".0/24", ".1") } else { spec.pod6.replace("/64", "1") }
}

fn spec(node: &str) -> &'static NodeSpec {
    layout::node(node).expect("a node of the lab")
}

/// `10.87.2.4 (8), 10.87.2.200 (4)`.
fn seen(report: &Report) -> String {
    let sources = report.sources();
    sources.iter().map(|(source, count)| format!("{source} ({count})")).collect::<Vec<_>>().join(", ")
}
