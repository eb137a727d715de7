//! Open connections when the holder hands over, in order and by dying.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{Asking, ECHO, settings};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::NODES;
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::{Probe, Report};
use kvip_lab::prober::Failure;
use kvip_lab::scenario::{SOON, Turn, diagnosis, explained, package};

use super::classic::{self, DR, TUNNEL};
use super::{DSR, MODES, Mode, NAT, answered_by, modes, successor};

/// Of either transport at each VIP, in the modes that need nothing of pods, and in the others.
const CONNECTIONS: u16 = 6;
const FEWER: u16 = 4;
/// Between two questions on a connection. Emulated machines that are asked more stand still, and are taken for dead.
const EVERY: Duration = Duration::from_millis(300);
/// Answers on each connection by which it is open, and by which other nodes were told of it: the kernel tells of a connection
/// after its third packet, and in batches of two seconds (ip_vs_sync.c).
const OPEN: usize = 3;
const SYNCED: usize = 20;
const PROXY: Mode = Mode { name: "proxy", v4: "10.87.2.58", v6: "fd00:87:2::58" };
/// The VIPs of mode tunnel have a group of their own, so that a node is left which never holds them: its pod carries them.
const GROUP: &str = "
[[groups]]
name = \"carried\"
vrid = 61
addresses = [\"10.87.2.56\", \"fd00:87:2::56\"]
members = \"lab=carried\"
";
/// VRRP's own time to notice a death with adverts of 1 s: three of them and a skew of less than one.
const DETECTION: Duration = Duration::from_secs(4);
/// How long connections are watched after the other node has taken over: TCP tries again ever more rarely.
const WATCHED: Duration = Duration::from_secs(10);

/// The lab with Services in all modes, and all VIPs on one node. In modes dr and tunnel clients are hashed, so that another
/// holder comes to the same backend.
fn all_modes(sync: bool) -> Result<(Turn, &'static str)> {
    let lab = modes()?;
    let sync = if sync { "[balancing]\nsync = true\n" } else { "" };
    settings(&lab, &[sync, GROUP].concat())?;
    let holder = lab.wait_for_holder()?;
    let others: Vec<&str> = NODES.iter().map(|node| node.name).filter(|node| *node != holder).collect();
    lab.kubectl(&["label", "node", "--overwrite", holder, others[0], "lab=carried"])?;
    lab.kubectl(&["label", "node", others[1], "lab-"])?;
    let hashed = |mode| {
        classic::service(mode)
            .annotation("kvip.io/scheduler", "mh")
            .annotation("kvip.io/scheduler-flags", "mh-port")
    };
    classic::direct_routing(&lab, hashed(DR))?;
    classic::tunnels(&lab, hashed(TUNNEL), &others[1..])?;
    PROXY.on(Asking::echo("echo-proxy")).annotation("kvip.io/proxy-protocol", "off").apply(&lab)?;
    // What has moved stays, so this brings the group's VIPs to where the others are.
    lab.node(others[0]).must_within(SOON, "kvip drain --wait 40")?;
    lab.node(others[0]).must_within(SOON, "kvip undrain")?;
    let moved = lab.wait_for(&format!("all VIPs on {holder}"), SOON, || {
        let addresses = lab.node(holder).must("ip -br addr show eth0").ok()?;
        let all = [DSR, TUNNEL, PROXY].iter().all(|mode| addresses.contains(&format!(" {}/", mode.v4)));
        (all && lab.holder() == Some(holder)).then_some(())
    });
    explained(&lab, moved)?;
    for mode in MODES {
        answered_by(&lab, mode, 3)?;
    }
    let proxied = lab.wait_for("HAProxy to answer at both VIPs", SOON, || {
        let mut tcp = PROXY.questions().filter(|question| question.transport == Transport::Tcp);
        tcp.all(|question| lab.ask(Asker::Client, &question, 1).is_ok_and(|report| report.answered() == 1))
            .then_some(())
    });
    explained(&lab, proxied)?;
    Ok((lab, holder))
}

#[test]
fn a_drained_holder_hands_connections_over() -> Result<()> {
    let (lab, holder) = all_modes(false)?;
    let rows = drain(&lab, holder, OPEN)?;
    check_kept(&lab, &rows, None)?;
    check_others(&lab, &rows)
}

/// What is done to kvip on all nodes is nothing to those who are connected, in whatever mode.
#[test]
fn a_restarts_of_kvip_keep_all_connections() -> Result<()> {
    let (lab, holder) = all_modes(false)?;
    let package = package()?;
    lab.nodes().try_for_each(|node| node.copy_in(&package, "/tmp/kvip.deb"))?;
    let held = hold(&lab, OPEN)?;
    for act in ["systemctl restart kvip", "systemctl kill --signal=KILL kvip", "dpkg -i /tmp/kvip.deb 2>&1"] {
        for node in lab.nodes() {
            node.must_within(SOON * 3, act)?;
        }
        let back = lab.wait_for(&format!("kvip on all nodes after {act}"), SOON, || {
            let turns = |node: Node<'_>| node.kvip_status().is_ok_and(|status| status["as_planned"] == true);
            lab.nodes().all(turns).then_some(())
        });
        explained(&lab, back)?;
    }
    let rows = stop(&lab, held)?;
    println!("open connections while kvip is restarted, killed and upgraded:\n{}", table(&rows, holder));
    ensure!(lab.holder() == Some(holder), "the VIPs have moved\n{}", diagnosis(&lab));
    for Row { mode, question, connections } in &rows {
        for view in connections.values() {
            let why = || format!("{} {}: {view}\n{}", mode.name, question.arguments(), diagnosis(&lab));
            ensure!(is_kept(view), "a connection was lost, {}", why());
        }
    }
    Ok(())
}

/// A table of mh goes by its history, and the next holder's is another: it has been made of today's pods, while the others' saw
/// pods come and go.
#[test]
fn a_node_with_another_history_takes_connections_over() -> Result<()> {
    let (lab, holder) = all_modes(false)?;
    let others: Vec<&str> = NODES.iter().map(|node| node.name).filter(|node| *node != holder).collect();
    for count in [5, 3] {
        lab.kubectl(&["scale", "deployment/echo", &format!("--replicas={count}")])?;
        answered_by(&lab, DSR, count)?;
    }
    let next = lab.node(others[0]);
    let marked = || Some(next.ipvs().ok()?.lines().filter(|line| line.starts_with("-a -f ")).count());
    let before = marked();
    next.must_within(SOON, "systemctl stop kvip; ipvsadm -C; systemctl start kvip")?;
    let again = lab.wait_for("the next holder's table", SOON, || (marked() == before).then_some(()));
    explained(&lab, again)?;
    lab.node(others[1]).must_within(SOON, "kvip drain --wait 40")?;
    let rows = drain(&lab, holder, OPEN)?;
    lab.node(others[1]).must_within(SOON, "kvip undrain")?;
    let taken = lab.wait_for_holder()?;
    ensure!(taken == others[0], "{taken} holds the VIPs, not {}\n{}", others[0], diagnosis(&lab));
    check_kept(&lab, &rows, None)
}

/// What becomes of connections while the holder is drained.
fn drain(lab: &Lab, holder: &str, answers: usize) -> Result<Vec<Row>> {
    let held = hold(lab, answers)?;
    let drained = lab.node(holder).run_within(SOON, "kvip drain --wait 40", b"")?;
    let taken = successor(lab, holder);
    let rows = stop(lab, held)?;
    println!("open connections while {holder} is drained:\n{}", table(&rows, holder));
    ensure!(drained.ok(), "{drained}");
    taken?;
    lab.node(holder).must_within(SOON, "kvip undrain")?;
    Ok(rows)
}

/// What becomes of connections when the holder dies.
fn kill(lab: &Lab, holder: &str, answers: usize) -> Result<Vec<Row>> {
    let held = hold(lab, answers)?;
    // What a boot is to find again must not be in the dead machine's memory alone.
    lab.node(holder).must("sync")?;
    lab.node(holder).kill()?;
    let taken = successor(lab, holder);
    let rows = stop(lab, held)?;
    println!("open connections while {holder} is killed:\n{}", table(&rows, holder));
    taken?;
    Ok(rows)
}

/// Waits until all nodes run the sync daemon, and mode dsr goes by the default scheduler.
fn wait_for_sync(lab: &Lab) -> Result<()> {
    let by_wlc = format!("-A -t {}:{ECHO} -s wlc", DSR.v4);
    let told = lab.wait_for("the sync daemon, and mode dsr by wlc", SOON, || {
        let ready = |node: Node<'_>| -> Result<bool> {
            Ok(node.ipvs()?.contains(&by_wlc) && !node.must("ipvsadm -L --daemon")?.is_empty())
        };
        lab.nodes().all(|node| ready(node).is_ok_and(|ready| ready)).then_some(())
    });
    explained(lab, told)
}

/// Nodes that are told of connections take them over wherever a scheduler sent them.
#[test]
fn b_with_the_sync_daemon_any_scheduler_will_do() -> Result<()> {
    let (lab, holder) = all_modes(true)?;
    wait_for_sync(&lab)?;
    let rows = drain(&lab, holder, SYNCED)?;
    check_kept(&lab, &rows, None)
}

#[test]
fn c_with_the_sync_daemon_a_dead_holder_takes_only_its_own_pods_connections_along() -> Result<()> {
    let (lab, holder) = all_modes(true)?;
    wait_for_sync(&lab)?;
    let rows = kill(&lab, holder, SYNCED)?;
    check_kept(&lab, &rows, Some(holder))?;
    check_dead_is_left_out(&lab, holder)?;
    lab.node(holder).boot()?;
    let back = lab.wait_for(&format!("{holder} to be back"), SOON * 3, || {
        (lab.node(holder).kvip_status().ok()?["as_planned"] == true).then_some(())
    });
    explained(&lab, back)
}

/// Last of all by its name: a node is dead afterwards.
#[test]
fn z_a_holder_that_dies_takes_only_its_own_pods_connections_along() -> Result<()> {
    let (lab, holder) = all_modes(false)?;
    let rows = kill(&lab, holder, OPEN)?;
    check_kept(&lab, &rows, Some(holder))?;
    check_dead_is_left_out(&lab, holder)?;
    check_others(&lab, &rows)
}

/// New connections of mode dsr come to the pods of nodes that live, long before the cluster calls the other one dead. Its pods
/// stay in the table that all nodes have alike, with weight 0.
fn check_dead_is_left_out(lab: &Lab, dead: &str) -> Result<()> {
    for question in DSR.questions() {
        let report = lab.ask(Asker::Client, &question.connections(24).every(Duration::from_secs(1)), 1)?;
        println!("{dead} is dead: {}: {report}", question.arguments());
        let good = report.answered() == 24 && !report.nodes().contains_key(dead);
        ensure!(good, "{}: {report}\n{}", question.arguments(), diagnosis(lab));
    }
    Ok(())
}

/// The connections of a mode over one transport to one VIP, and what became of them.
struct Row {
    mode: Mode,
    question: Question,
    connections: BTreeMap<u32, Report>,
}

/// Holds connections of all modes, once each was answered so often on the average.
fn hold(lab: &Lab, answers: usize) -> Result<Vec<(Mode, Question, Probe)>> {
    let mut held = Vec::new();
    for (mode, connections) in
        [(NAT, CONNECTIONS), (DSR, CONNECTIONS), (DR, FEWER), (TUNNEL, FEWER), (PROXY, FEWER)]
    {
        // HAProxy balances TCP.
        for question in
            mode.questions().filter(|question| mode != PROXY || question.transport == Transport::Tcp)
        {
            let question = question.connections(connections).every(EVERY);
            held.push((mode, question, lab.asking(Asker::Client, &question)?));
        }
    }
    let answered = lab.wait_for("answers on all connections", SOON, || {
        let all = |question: &Question, probe: &Probe| {
            let (report, count) = (Report::new(probe.so_far()), question.connections.map_or(1, usize::from));
            report.connections().len() == count && report.answered() >= answers * count
        };
        held.iter().all(|(_, question, probe)| all(question, probe)).then_some(())
    });
    answered.with_context(|| {
        let reports =
            held.iter().map(|(mode, _, probe)| format!("{}: {}", mode.name, Report::new(probe.so_far())));
        reports.collect::<Vec<_>>().join("\n")
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
    let head = format!("mode   via  to             {node}'s pods  other pods  longest gap  ends\n");
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
        format!("{name:6} {transport:4} {:14} {near:13} {far:11} {longest:11.3?}  {ends:?}\n", target.ip())
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

/// What docs/services.md says of the other modes: backends that carry the VIP are on no holder, and all their connections are
/// kept; HAProxy's end with it, and those of nat over TCP, which the new holder knows nothing of.
fn check_others(lab: &Lab, rows: &[Row]) -> Result<()> {
    for Row { mode, question, connections } in rows.iter().filter(|row| row.mode != DSR) {
        for view in connections.values() {
            let why = || format!("{} {}: {view}\n{}", mode.name, question.arguments(), diagnosis(lab));
            match (*mode, question.transport) {
                (DR | TUNNEL, _) => {
                    ensure!(is_kept(view), "a connection was lost, {}", why());
                    ensure!(gap(view) < DETECTION * 3, "no answer for {:?}, {}", gap(view), why());
                }
                (NAT, Transport::Udp) => ensure!(view.end().is_none(), "a flow ended, {}", why()),
                _ => ensure!(view.end().is_some(), "a connection outlived its holder, {}", why()),
            }
        }
    }
    Ok(())
}
