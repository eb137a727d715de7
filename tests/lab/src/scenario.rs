//! What the lab's tests of kvip share: one lab a test file, with kvip installed and the tutorial applied.
//!
//! Owns the order of a test's beginning; what is tested is in the test files.

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::kvip::{Settings, deb};
use crate::lab::{Lab, Node, Options};
use crate::layout::Layout;
use crate::prober::{Failure, Outcome};
use crate::stall::Pulses;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The tutorial's VIP and its twin of the other family.
pub const VIP: &str = "10.87.2.50";
/// The VIP of the other family.
pub const VIP6: &str = "[fd00:87:2::50]";
/// For what takes a moment on a quiet machine, with room for a slow one.
pub const SOON: Duration = Duration::from_secs(60);

/// The tutorial's objects, dual stack, with pods that go on serving for a moment when they are told to end, as
/// production pods do.
const TUTORIAL: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx-deployment}
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: nginx}}}
      containers:
      - name: nginx
        image: nginx
        ports: [{containerPort: 80}]
        lifecycle: {preStop: {sleep: {seconds: 5}}}
---
apiVersion: v1
kind: Service
metadata: {name: nginx, labels: {app: nginx}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ports: [{port: 80, nodePort: 30302, targetPort: 80, protocol: TCP, name: http}]
  selector: {app: nginx}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: vip-configmap}
data:
  10.87.2.50: default/nginx
  fd00-87-2--50: default/nginx
";

/// A pod a node that answers what it is asked; they end at once when they are told to.
const ECHO_PODS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 3
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: echo}}}
      containers:
      - name: echo
        image: echo
        ports: [PORTS]
";

/// The Deployment `echo` of three pods, one on each node, with these containerPorts.
pub fn echo_pods(ports: &str) -> String {
    ECHO_PODS.replace("PORTS", ports)
}

static LAB: LazyLock<Mutex<Option<Lab>>> = LazyLock::new(|| Mutex::new(None));

/// The lab of this test file; tests take turns.
#[derive(Debug)]
pub struct Turn(MutexGuard<'static, Option<Lab>>);

impl std::ops::Deref for Turn {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.0.as_ref().expect("set before a turn is given")
    }
}

impl Drop for Turn {
    /// What a test leaves behind that panics is no fault of the next: that one starts from a new lab. One that returns an error
    /// leaves what it made, so look at the first failure of a file first.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.take();
        }
    }
}

/// A lab whose nodes are up, without kvip.
pub fn bare() -> Result<Turn> {
    let mut slot = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() {
        *slot = Some(Lab::start(Options::default())?);
    }
    Ok(Turn(slot))
}

/// The lab with kvip on all nodes and the tutorial's VIPs answering.
pub fn serving() -> Result<Turn> {
    let turn = bare()?;
    if turn.curl(VIP).is_none() {
        set_up(&turn, &Settings::default())?;
    }
    wait_until_settled(&turn)?;
    Ok(turn)
}

/// Installs kvip, applies the tutorial, and waits until its VIPs answer.
pub fn set_up(lab: &Lab, settings: &Settings) -> Result<()> {
    lab.install_kvip(&package()?, settings)?;
    tutorial(lab)?;
    wait_until_settled(lab)
}

/// The package that the tests install.
pub fn package() -> Result<PathBuf> {
    deb(&Layout::from_environment())
}

/// Applies the tutorial.
pub fn tutorial(lab: &Lab) -> Result<()> {
    lab.kubectl_with(&["apply", "-f", "-"], TUTORIAL).map(drop)
}

/// Asks for a VIP in the tutorial's ConfigMap, `""` for one that only floats; `None` asks for it no more.
pub fn ask_for(lab: &Lab, vip: &str, value: Option<&str>) -> Result<()> {
    let patch = serde_json::json!({"data": {vip: value}}).to_string();
    lab.kubectl(&["patch", "configmap", "vip-configmap", "--type=merge", "-p", &patch]).map(drop)
}

/// Waits until both VIPs answer, every node knows three ready pods and agrees with itself, one of them holds all VIPs, and
/// nothing is under way.
pub fn wait_until_settled(lab: &Lab) -> Result<()> {
    let answered = lab.wait_for("both VIPs to answer", Duration::from_secs(120), || {
        (lab.curl(VIP).is_some() && lab.curl(VIP6).is_some()).then_some(())
    });
    let settled = answered
        .and_then(|()| lab.wait_for("all nodes to be as planned", SOON, || all_settled(lab).then_some(())));
    settled.with_context(|| diagnosis(lab))
}

/// An election may go on for a moment after the VIPs answer: the weights tell that it is over.
fn all_settled(lab: &Lab) -> bool {
    let statuses = lab.on_all_nodes(|node| node.kvip_status().ok());
    let mut weights: Vec<i64> = statuses.iter().flatten().filter_map(settled_weight).collect();
    weights.sort_unstable();
    weights == [0, 0, 64]
}

/// The weight of a node that has nothing left to do: a holder's with all VIPs, a backup's with none.
fn settled_weight(status: &Value) -> Option<i64> {
    let weight = status["weight"].as_i64()?;
    let here = status["vips"].as_array()?.iter().all(|vip| vip["here"] == (weight == 64));
    let settled = status["as_planned"] == true
        && status["keepalived"] == "active"
        && status["findings"].as_array().is_some_and(Vec::is_empty)
        && status["real_servers"] == 6;
    (here && settled).then_some(weight)
}

/// What a person would look at first.
pub fn diagnosis(lab: &Lab) -> String {
    let mut text =
        lab.kubectl(&["get", "nodes,pods,endpointslices,configmaps", "-o", "wide"]).unwrap_or_default();
    for node in lab.nodes() {
        let status = node.run("kvip status; ipvsadm -Ln; ip -br addr show eth0; cat /run/kvip/weight-50");
        let status = status.map_or_else(|error| error.to_string(), |output| output.to_string());
        text += &["\n--- ", node.spec().name, "\n", &status, "\n", &node.journal()].concat();
    }
    text
}

/// Reloads of keepalived on all nodes since they booted, as keepalived itself tells of them, and its starts.
pub fn reloads(lab: &Lab) -> Result<u64> {
    let script = "journalctl -b -u keepalived -o cat --no-pager | grep -c -e '^Reloading' -e '^Starting Keepalived' || true";
    lab.nodes().map(|node| Ok(node.must(script)?.trim().parse::<u64>()?)).sum()
}

/// Fails with everything that helps to see why.
pub fn explained<T>(lab: &Lab, result: Result<T>) -> Result<T> {
    result.with_context(|| diagnosis(lab))
}

/// Runs `act` while a client asks the VIP ten times a second; every request must be answered, unless a node's machine stood
/// still at the time, which is the host's doing.
pub fn without_a_lost_request(lab: &Lab, act: impl FnOnce() -> Result<()>) -> Result<()> {
    without_a_lost_request_at(lab, VIP, act)
}

/// As [`without_a_lost_request`], at another VIP.
pub fn without_a_lost_request_at(lab: &Lab, vip: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let probe = lab.probe(vip, 80, Duration::from_millis(100))?;
    lab.wait_for("the first answers", SOON, || (probe.so_far().len() > 5).then_some(()))?;
    let pulses = Pulses::start(lab);
    let acted = act();
    let report = probe.stop()?;
    let stalls = pulses.stop();
    explained(lab, acted)?;
    println!("asked all the while: {report}");
    for stall in &stalls {
        println!("meanwhile {stall}");
    }
    // A machine that stands still answers late or not at all; it refuses nothing.
    let hung = report.samples().iter().filter(|sample| sample.outcome == Outcome::Failed(Failure::Timeout));
    let excused = hung.filter(|sample| stalls.iter().any(|stall| stall.excuses(sample))).count();
    let lost = report.asked() - report.answered() - excused;
    ensure!(lost == 0, "{lost} requests were lost: {report}\n{}\n{}", unfinished(lab, vip), diagnosis(lab));
    if excused > 0 {
        println!("{excused} requests were lost to machines that stood still");
    }
    let most = report.asked() / 10;
    ensure!(excused <= most, "machines stood still for too long to say anything: {report}\n{stalls:?}");
    ensure!(report.answered() > 5, "too few requests to say anything: {report}");
    Ok(())
}

/// The connections to a VIP that are neither closed nor closing, as each node's kernel has them: those that hang.
fn unfinished(lab: &Lab, vip: &str) -> String {
    let vip = vip.trim_matches(['[', ']']);
    let script = format!(
        "(conntrack -L -d {vip}; ipvsadm -Lnc | grep -F {vip}) 2>/dev/null | grep -v -e _WAIT -e CLOSE -e LAST_ACK"
    );
    let of = |node: Node<'_>| {
        let lines = node.run(&script).map_or_else(|error| error.to_string(), |output| output.stdout);
        format!("unfinished on {}:\n{lines}", node.spec().name)
    };
    lab.nodes().map(of).collect()
}

/// What a hand-over that is asked for may take here; on real machines it is well below a second.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Runs `act`, by which the VIPs move, while a client asks the VIP ten times a second; it is never long without an answer.
pub fn with_a_soft_hand_over<T>(lab: &Lab, act: impl FnOnce() -> Result<T>) -> Result<T> {
    with_a_soft_hand_over_at(lab, VIP, act)
}

/// As [`with_a_soft_hand_over`], at another VIP.
pub fn with_a_soft_hand_over_at<T>(lab: &Lab, vip: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let probe = lab.probe(vip, 80, Duration::from_millis(100))?;
    lab.wait_for("the first answers", SOON, || (probe.so_far().len() > 5).then_some(()))?;
    let acted = act();
    let served = lab.wait_for("the VIP to answer", SOON, || lab.curl(vip));
    let report = probe.stop()?;
    let done = explained(lab, acted)?;
    explained(lab, served)?;
    let gap = report.longest_gap().context("a report has a longest gap")?.length();
    println!("handed over: {report}");
    ensure!(gap < HAND_OVER, "a soft hand-over took {gap:?}: {report}\n{}", diagnosis(lab));
    Ok(done)
}

/// The `findings` of a node that mention `text`.
pub fn finding(lab: &Lab, node: &str, text: &str) -> Option<String> {
    let status = lab.node(node).kvip_status().ok()?;
    let findings = status["findings"].as_array()?.clone();
    findings.iter().map(ToString::to_string).find(|finding| finding.contains(text))
}
