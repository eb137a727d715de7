//! A node dies: the VIPs answer elsewhere if they were there, and soon nobody is sent to the dead node's pods.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::scenario::{SOON, VIP, VIP6, diagnosis, explained, package, serving, wait_until_settled};

/// Adverts are 1 s here: three of them and the skew are missed before a backup takes over; the rest is for a slow machine.
const TAKE_OVER: Duration = Duration::from_secs(15);
/// From the take-over on, so long may requests still be sent to the dead node's pods.
const DEAD_LIMIT: Duration = Duration::from_secs(5);
/// For a slow machine.
const ROOM: Duration = Duration::from_secs(10);

/// The holder goes on without a dead backup's pods long before the cluster calls that node dead (40 s).
#[test]
fn a_backup_dies() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let backup = lab.node(lab.other_than(holder));
    let spec = backup.spec();
    let real_servers = [
        format!("-t {VIP}:80 -r {}", spec.pod4.trim_end_matches("0/24")),
        format!("-t {VIP6}:80 -r [{}", spec.pod6.trim_end_matches("/64")),
    ];
    let living: Vec<Node<'_>> = lab.nodes().filter(|node| node.spec().name != spec.name).collect();
    // Whether all of the living, or none of them, send to the pods of both families.
    let all_list = |wanted: bool| {
        living.iter().all(|node| {
            node.ipvs().is_ok_and(|table| real_servers.iter().all(|line| table.contains(line) == wanted))
        })
    };
    ensure!(all_list(true), "a pod of {} is missing\n{}", spec.name, diagnosis(&lab));
    // What a boot is to find again must not be in the dead machine's memory alone.
    backup.must("sync")?;
    backup.kill()?;
    let killed = Instant::now();
    let becomes = |wanted: bool, limit: Duration| {
        let what = format!("{real_servers:?} on both living nodes: {wanted}");
        explained(&lab, lab.wait_for(&what, limit, || all_list(wanted).then_some(())))
    };
    becomes(false, DEAD_LIMIT + ROOM)?;
    println!("a backup killed: its pods were out of IPVS on both others within {:?}", killed.elapsed());
    ensure!(lab.wait_for_holder()? == holder, "a backup's death moved the VIPs\n{}", diagnosis(&lab));
    backup.boot()?;
    becomes(true, SOON * 3)?;
    wait_until_settled(&lab)?;
    ensure!(lab.wait_for_holder()? == holder, "the backup that returned took the VIPs\n{}", diagnosis(&lab));
    Ok(())
}

#[test]
fn the_holder_dies() -> Result<()> {
    let lab = serving()?;
    let holder = lab.wait_for_holder()?;
    let probe = lab.probe(VIP, 80, Duration::from_millis(50))?;
    lab.wait_for("the first answers", SOON, || (probe.so_far().len() > 10).then_some(()))?;
    let killed = SystemTime::now();
    lab.node(holder).kill()?;
    take_over(&lab, holder)?;
    let seen_until = Instant::now() + DEAD_LIMIT + ROOM;
    lab.wait_for("enough requests", SOON, || (Instant::now() > seen_until).then_some(()))?;
    let report = probe.stop()?;
    let gap = report.longest_gap().context("a gap")?;
    println!("holder killed: {report}; the longest gap was {:?}", gap.length());
    ensure!(gap.length() < TAKE_OVER, "the gap was {:?}: {report}\n{}", gap.length(), diagnosis(&lab));
    let taken_over = UNIX_EPOCH + Duration::from_micros(gap.to_us);
    ensure!(taken_over > killed, "the longest gap ended before the holder did: {report}");
    let later = report.after(taken_over + DEAD_LIMIT);
    ensure!(
        later.asked() > 50 && later.failures().is_empty(),
        "after 5 s requests still failed: {later}\n{}",
        diagnosis(&lab)
    );
    ensure!(
        report.before(killed).failures().is_empty(),
        "requests failed before anything happened: {report}"
    );
    node_returns(&lab, holder)
}

fn take_over(lab: &Lab, dead: &str) -> Result<()> {
    let living = lab.other_than(dead);
    let taken = lab.wait_for("another node to answer", TAKE_OVER * 2, || lab.curl(VIP));
    taken.map(drop).with_context(|| format!("{living}: {}", diagnosis(lab)))
}

/// A node that comes back fresh, kvip installed again, takes nothing back.
fn node_returns(lab: &Lab, returned: &str) -> Result<()> {
    let holder = lab.wait_for("a holder", SOON, || lab.holder().filter(|node| *node != returned))?;
    let node = lab.node(returned);
    node.restore()?;
    node.install_kvip(&package()?, &Settings::default(), &lab.enroll()?)?;
    wait_until_settled(lab)?;
    ensure!(lab.holder() == Some(holder), "the node that returned took the VIPs back\n{}", diagnosis(lab));
    Ok(())
}
