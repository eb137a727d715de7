//! The lab itself, without a control plane: what every other test relies on.
//!
//! Machines come up clean, carry pods and IPVS, and can be killed, frozen, cut off, rebooted and restored;
//! the client measures; nothing is left behind. One lab for all, as its parts build on each other.

use std::fs;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvip_lab::lab::{Lab, Options};
use kvip_lab::layout::Layout;
use kvip_lab::namespace::Running;

const TICK: Duration = Duration::from_millis(50);
const SOON: Duration = Duration::from_secs(20);
/// One address of each family on node-c, balanced over pods of the other two nodes.
const BALANCER: &str = "set -e
    ip addr add 10.87.2.50/32 dev eth0
    ip addr add fd00:87:2::50/128 dev eth0 nodad preferred_lft 0
    modprobe ip_vs; sysctl -qw net.ipv4.vs.conntrack=1
    ipvsadm -A -t 10.87.2.50:80 -s wlc
    ipvsadm -a -t 10.87.2.50:80 -r 10.2.4.11:80 -m
    ipvsadm -a -t 10.87.2.50:80 -r 10.2.6.11:80 -m
    ipvsadm -A -t [fd00:87:2::50]:80 -s rr
    ipvsadm -a -t [fd00:87:2::50]:80 -r [fd00:2:4::11]:80 -m
    ipvsadm -a -t [fd00:87:2::50]:80 -r [fd00:2:6::11]:80 -m
    nft -f - <<X
table inet test {
    chain post {
        type nat hook postrouting priority srcnat - 5;
        ct original ip daddr 10.87.2.50 ip daddr != 10.87.2.50 masquerade
        ct original ip6 daddr fd00:87:2::50 ip6 daddr != fd00:87:2::50 masquerade
    }
}
X";

#[test]
fn the_lab_works() -> Result<()> {
    let lab = Lab::start(Options { control_plane: false })?;
    machines_come_up_clean(&lab)?;
    pods_and_ipvs_answer_the_client(&lab)?;
    a_cut_link_is_silent_and_heals(&lab)?;
    a_frozen_node_answers_nothing(&lab)?;
    files_outlive_boots_and_not_restores(&lab)?;
    pods_end(&lab)?;
    let (layout, supervisor) = (lab.layout().clone(), process_of(&lab)?);
    drop(lab);
    nothing_is_left(&layout)?;

    let lab = one_of_two_that_start_at_once()?;
    ensure!(process_of(&lab)? != supervisor, "the second lab is a new one");
    // Its supervisor dies without a chance to clean up.
    let kill = ["-KILL".to_owned(), process_of(&lab)?.to_string()];
    ensure!(std::process::Command::new("kill").args(kill).status()?.success());
    lab_wait("the lab's end", || Running::find(&layout).is_none())?;
    nothing_is_left(&layout)
}

/// The other is refused, and takes nothing away from the one.
fn one_of_two_that_start_at_once() -> Result<Lab> {
    let (mut up, refused): (Vec<_>, Vec<_>) = thread::scope(|scope| {
        let starts = [(); 2].map(|()| scope.spawn(|| Lab::start(Options { control_plane: false })));
        starts
            .map(|start| start.join().expect("starting does not panic"))
            .into_iter()
            .partition(Result::is_ok)
    });
    ensure!(refused.len() == 1, "{} of two labs came up", up.len());
    let lab = up.remove(0)?;
    machines_come_up_clean(&lab)?;
    Ok(lab)
}

fn machines_come_up_clean(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let spec = node.spec();
        let said =
            node.must("hostname; systemctl is-system-running; systemctl is-active keepalived nginx; true")?;
        ensure!(said == format!("{}\nrunning\ninactive\ninactive\n", spec.name), "{said}");
        let said =
            node.must("ip -o addr show dev eth0; ip route; ip -6 route; cat /proc/sys/net/ipv4/ip_forward")?;
        for needed in [spec.v4, spec.v6, spec.pod4, spec.pod6] {
            ensure!(said.contains(needed), "{} has no {needed}: {said}", spec.name);
        }
        // keepalived's track_process needs process events.
        node.must("grep -x CONFIG_PROC_EVENTS=y /boot/config-$(uname -r)")?;
    }
    Ok(())
}

fn pods_and_ipvs_answer_the_client(lab: &Lab) -> Result<()> {
    lab.node("node-a").must("lab-pod add web-1 10.2.4.11 fd00:2:4::11 80 8080")?;
    lab.node("node-b").must("echo add web-2 10.2.6.11 fd00:2:6::11 80 | lab-pod batch")?;
    lab.node("node-c").must(BALANCER)?;
    let answer = lab.client(&["curl", "-s", "-m", "5", "http://10.2.4.11:8080/"])?;
    ensure!(!answer.ok(), "the client, which is no node, has no way to a pod: {answer}");
    let answer = lab.node("node-b").must("curl -s -m 5 http://10.2.4.11:8080/")?;
    ensure!(answer == "node-a web-1 saw 10.87.2.6\n", "{answer}");
    for vip in ["10.87.2.50", "fd00:87:2::50"] {
        let probe = lab.probe(vip, 80, TICK)?;
        lab.wait_for("40 samples", SOON, || (probe.so_far().len() >= 40).then_some(()))?;
        let report = probe.stop()?;
        ensure!(report.answered() == report.asked(), "{vip}: {report}");
        ensure!(report.nodes().keys().eq(["node-a", "node-b"]), "{vip}: {report}");
        println!("{vip}: {report}");
    }
    Ok(())
}

fn a_cut_link_is_silent_and_heals(lab: &Lab) -> Result<()> {
    let node = lab.node("node-c");
    let probe = lab.probe("10.87.2.50", 80, TICK)?;
    lab.wait_for("an answer", SOON, || probe.so_far().pop())?;
    node.cut_link()?;
    sleep(Duration::from_secs(1));
    node.heal_link()?;
    let healed = std::time::SystemTime::now();
    sleep(Duration::from_secs(2));
    let report = probe.stop()?;
    let gap = report.longest_gap().context("requests were made")?.length();
    ensure!(gap >= Duration::from_secs(1), "{report}");
    let after = report.after(healed + Duration::from_secs(1));
    ensure!(after.asked() > 0 && after.answered() == after.asked(), "after the healing: {after}");
    Ok(())
}

fn a_frozen_node_answers_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node("node-c");
    let ask = || lab.client(&["curl", "-s", "-m", "2", "http://10.87.2.50/"]);
    node.freeze()?;
    ensure!(!ask()?.ok(), "a frozen node answers");
    node.thaw()?;
    lab.wait_for("the thawed node to answer", SOON, || ask().ok().filter(kvip_lab::command::Output::ok))?;
    Ok(())
}

fn files_outlive_boots_and_not_restores(lab: &Lab) -> Result<()> {
    let node = lab.node("node-c");
    node.write("/etc/marker", b"kept\n")?;
    node.reboot()?;
    ensure!(node.must("cat /etc/marker; hostname")? == "kept\nnode-c\n");
    node.must("sync")?;
    node.kill()?;
    ensure!(node.run("true")?.status == 255, "a dead node runs a command");
    node.boot()?;
    ensure!(node.must("cat /etc/marker; systemctl is-system-running")? == "kept\nrunning\n");
    node.restore()?;
    ensure!(node.must("ls /etc/marker 2>/dev/null; ipvsadm -Sn; hostname")? == "node-c\n");
    Ok(())
}

fn pods_end(lab: &Lab) -> Result<()> {
    let node = lab.node("node-a");
    node.must("lab-pod del web-1 5; lab-pod del web-1")?;
    ensure!(node.must("lab-pod list; ip netns; pgrep nginx || true")?.is_empty(), "a pod left something");
    lab.restore()?;
    ensure!(lab.node("node-b").must("lab-pod list")?.is_empty(), "a fresh node has pods");
    Ok(())
}

fn process_of(lab: &Lab) -> Result<u32> {
    Ok(Running::require(lab.layout())?.supervisor())
}

/// No machine and no connection is left: they name the state folder. (The rest is the supervisor's namespace,
/// in which no process outlives its first.)
fn nothing_is_left(layout: &Layout) -> Result<()> {
    let state = layout.state.to_string_lossy().into_owned();
    lab_wait("the lab's last process to end", || processes_naming(&state) == Some(0))
}

fn processes_naming(text: &str) -> Option<usize> {
    let entries = fs::read_dir("/proc").ok()?.filter_map(std::result::Result::ok);
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    Some(lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count())
}

fn lab_wait(what: &str, done: impl Fn() -> bool) -> Result<()> {
    kvip_lab::command::wait_for(what, SOON, || done().then_some(()))
}
