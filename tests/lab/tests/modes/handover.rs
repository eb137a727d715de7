//! Open connections when the holder hands over, in order and by dying.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvip_lab::asking::{ECHO, settings};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::{Probe, Report};
use kvip_lab::prober::Failure;
use kvip_lab::scenario::{SOON, diagnosis, explained};

use super::{DSR, MODES, Mode, modes, successor};

/// Of either transport at each VIP.
const CONNECTIONS: u16 = 8;
/// Between two questions on a connection. Emulated machines that are asked more stand still, and are taken for dead.
const EVERY: Duration = Duration::from_millis(250);
/// VRRP's own time to notice a death with adverts of 1 s: three of them and a skew of less than one.
const DETECTION: Duration = Duration::from_secs(4);
/// How long connections are watched after the other node has taken over: TCP tries again ever more rarely.
const WATCHED: Duration = Duration::from_secs(10);

#[test]
fn a_drained_holder_hands_connections_over() -> Result<()> {
    let lab = modes()?;
    let rows = drain(&lab)?;
    check_kept(&lab, &rows, None)
}

/// What becomes of connections while the holder is drained.
fn drain(lab: &Lab) -> Result<Vec<Row>> {
    let holder = lab.wait_for_holder()?;
    let held = hold(lab)?;
    let drained = lab.node(holder).run_within(SOON, "kvip drain --wait 40", b"")?;
    let taken = successor(lab, holder);
    let rows = stop(lab, held)?;
    println!("open connections while {holder} is drained:\n{}", table(&rows, holder));
    ensure!(drained.ok(), "{drained}");
    taken?;
    lab.node(holder).must_within(SOON, "kvip undrain")?;
    Ok(rows)
}

/// Nodes that are told of connections take them over wherever a scheduler sent them.
#[test]
fn b_with_the_sync_daemon_any_scheduler_will_do() -> Result<()> {
    let lab = modes()?;
    settings(&lab, "[balancing]\nsync = true\n")?;
    let by_wlc = format!("-A -t {}:{ECHO} -s wlc", DSR.v4);
    let told = lab.wait_for("the sync daemon, and mode dsr by wlc", SOON, || {
        let ready = |node: Node<'_>| -> Result<bool> {
            Ok(node.ipvs()?.contains(&by_wlc) && !node.must("ipvsadm -L --daemon")?.is_empty())
        };
        lab.nodes().all(|node| ready(node).is_ok_and(|ready| ready)).then_some(())
    });
    explained(&lab, told)?;
    let rows = drain(&lab)?;
    settings(&lab, "")?;
    check_kept(&lab, &rows, None)
}

/// Last of all by its name: a node is dead afterwards.
#[test]
fn z_a_holder_that_dies_takes_only_its_own_pods_connections_along() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let held = hold(&lab)?;
    lab.node(holder).kill()?;
    let taken = successor(&lab, holder);
    let rows = stop(&lab, held)?;
    println!("open connections while {holder} is killed:\n{}", table(&rows, holder));
    taken?;
    check_kept(&lab, &rows, Some(holder))
}

/// The connections of a mode over one transport to one VIP, and what became of them.
struct Row {
    mode: Mode,
    question: Question,
    connections: BTreeMap<u32, Report>,
}

/// Holds connections of all modes, once all of them are answered.
fn hold(lab: &Lab) -> Result<Vec<(Mode, Question, Probe)>> {
    let mut held = Vec::new();
    for mode in MODES {
        for question in mode.questions() {
            let question = question.connections(CONNECTIONS).every(EVERY);
            held.push((mode, question, lab.asking(Asker::Client, &question)?));
        }
    }
    lab.wait_for("answers on all connections", SOON, || {
        let all = |probe: &Probe| {
            let report = Report::new(probe.so_far());
            report.connections().len() == usize::from(CONNECTIONS)
                && report.answered() >= 3 * usize::from(CONNECTIONS)
        };
        held.iter().all(|(_, _, probe)| all(probe)).then_some(())
    })?;
    Ok(held)
}

fn stop(lab: &Lab, held: Vec<(Mode, Question, Probe)>) -> Result<Vec<Row>> {
    let until = Instant::now() + WATCHED;
    lab.wait_for("what becomes of connections", WATCHED * 2, || (Instant::now() >= until).then_some(()))?;
    let row = |(mode, question, probe): (Mode, Question, Probe)| {
        Ok(Row { mode, question, connections: probe.stop()?.connections() })
    };
    held.into_iter().map(row).collect()
}

/// Whether it was answered to the end, by one pod all the time.
fn is_kept(view: &Report) -> bool {
    view.end().is_none() && view.pods().len() == 1
}

fn gap(view: &Report) -> Duration {
    view.longest_gap().map(|gap| gap.length()).unwrap_or_default()
}

/// A line for each row: how many connections were kept, to pods of `node` and to others.
fn table(rows: &[Row], node: &str) -> String {
    let head = format!("mode  via  to             {node}'s pods  other pods  longest gap  ends\n");
    head + &rows.iter().map(|row| row.line(node)).collect::<String>()
}

impl Row {
    fn line(&self, node: &str) -> String {
        let Self { mode, question, connections } = self;
        let kept = |near: bool| {
            let of = || connections.values().filter(move |view| view.nodes().contains_key(node) == near);
            format!("{} of {}", of().filter(|view| is_kept(view)).count(), of().count())
        };
        let (near, far) = (kept(true), kept(false));
        let longest = connections.values().filter(|view| is_kept(view)).map(gap).max().unwrap_or_default();
        let mut ends = BTreeMap::<Failure, usize>::new();
        for end in connections.values().filter_map(Report::end) {
            *ends.entry(end).or_default() += 1;
        }
        let Question { transport, target, .. } = question;
        let name = mode.name;
        format!("{name:5} {transport:4} {:14} {near:13} {far:11} {longest:11.3?}  {ends:?}\n", target.ip())
    }
}

/// In dsr every connection to a pod of a node that lives is kept, and the gap is VRRP's.
fn check_kept(lab: &Lab, rows: &[Row], dead: Option<&str>) -> Result<()> {
    for Row { connections, question, .. } in rows.iter().filter(|row| row.mode == DSR) {
        let living = |view: &&Report| dead.is_none_or(|dead| !view.nodes().contains_key(dead));
        for view in connections.values().filter(living) {
            let why = || format!("{}: {view}\n{}", question.arguments(), diagnosis(lab));
            ensure!(is_kept(view), "a connection was lost, {}", why());
            ensure!(gap(view) < DETECTION * 3, "no answer for {:?}, {}", gap(view), why());
        }
    }
    Ok(())
}
