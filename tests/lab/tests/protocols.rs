//! UDP and SCTP through a VIP, in the default mode: who is answered by whom, who is seen, and what a fixed port does.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kvip_lab::asking::{Asking, in_url, items, object, pod_address};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::{self, CLIENT_V4, CLIENT_V6, NODES};
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::{Probe, Report};
use kvip_lab::scenario::{self, SOON, Turn, ask_for, bare, diagnosis, echo_pods, explained, set_up};
use serde_json::{Value, json};

const VIP: &str = "10.87.2.51";
const VIP6: &str = "fd00:87:2::51";
/// Those of a Service that is served in mode dsr.
const DIRECT: &str = "10.87.2.52";
const DIRECT6: &str = "fd00:87:2::52";
/// Those of a Service whose client knows the next holder's card before that is the holder.
const EARLY: &str = "10.87.2.54";
const EARLY6: &str = "fd00:87:2::54";
/// That of a Service each of whose datagrams is balanced by itself.
const ONE_BY_ONE: &str = "10.87.2.53";
const DNS: u16 = 53;
const DIAMETER: u16 = 3868;

const PORTS: &str = "{containerPort: 5353, protocol: UDP}, {containerPort: 3868, protocol: SCTP}";
const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  ipFamilyPolicy: RequireDualStack
  ports:
  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}
  - {name: diameter, port: 3868, protocol: SCTP}
  selector: {app: echo}
";

fn target(vip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(vip.parse().expect("a constant address"), port)
}

fn udp(vip: &str) -> Question {
    Question::new(Transport::Udp, target(vip, DNS))
}

fn sctp(vip: &str) -> Question {
    Question::new(Transport::Sctp, target(vip, DIAMETER))
}

/// A lab in which each node has a pod that answers, behind both VIPs.
fn echoing() -> Result<Turn> {
    let lab = bare()?;
    if lab.curl(scenario::VIP).is_none() {
        set_up(&lab, &Settings::default())?;
    }
    lab.kubectl_with(&["apply", "-f", "-"], &(echo_pods(PORTS) + SERVICE))?;
    ask_for(&lab, VIP, Some("default/echo"))?;
    ask_for(&lab, &VIP6.replace(':', "-"), Some("default/echo"))?;
    [VIP, VIP6].iter().try_for_each(|vip| three_pods_answer(&lab, vip))?;
    // What an earlier test deleted may take its time, and is no pod to ask from or to look into.
    let alone = lab.wait_for("three pods and no more", Duration::from_secs(120), || {
        (items(&lab, "pods -l app=echo").ok()?.len() == 3).then_some(())
    });
    explained(&lab, alone)?;
    Ok(lab)
}

/// That of the family of `vip`.
fn own_address(node: &str, vip: &str) -> Result<IpAddr> {
    let spec = layout::node(node).context("a node of the lab")?;
    Ok(if vip.contains(':') { spec.v6 } else { spec.v4 }.parse()?)
}

fn three_pods_answer(lab: &Lab, vip: &str) -> Result<()> {
    let all = lab.wait_for(&format!("three pods to answer at {vip}"), Duration::from_secs(120), || {
        (answering_pods(lab, vip).ok()?.len() == 3).then_some(())
    });
    explained(lab, all)
}

/// The port of [`SERVICE`] that is for UDP.
fn dns() -> Value {
    json!([{"name": "dns", "port": DNS, "targetPort": 5353, "protocol": "UDP"}])
}

fn answering_pods(lab: &Lab, vip: &str) -> Result<BTreeSet<String>> {
    let report = lab.ask(Asker::Client, &udp(vip).connections(12), 1)?;
    Ok(report.pods().into_keys().collect())
}

/// Asks a few times; all must be answered.
fn check_answered(lab: &Lab, asker: Asker, question: &Question) -> Result<Report> {
    let report = lab.ask(asker, question, 6)?;
    ensure!(report.answered() == 6, "{asker:?} {}: {report}\n{}", question.arguments(), diagnosis(lab));
    Ok(report)
}

#[test]
fn client_nodes_and_pods_are_answered_over_udp() -> Result<()> {
    let lab = echoing()?;
    for vip in [VIP, VIP6] {
        check_answered(&lab, Asker::Client, &udp(vip))?;
        for node in &NODES {
            check_answered(&lab, Asker::Node(node.name), &udp(vip))?;
            check_answered(&lab, Asker::Pod(node.name, &lab.node(node.name).pod("echo-")?), &udp(vip))?;
        }
    }
    Ok(())
}

/// Nodes and pods ask, since their kernel is the lab's and knows SCTP. What comes from a pod of another node comes to the
/// holder from outside.
#[test]
fn nodes_and_pods_are_answered_over_sctp() -> Result<()> {
    let lab = echoing()?;
    for vip in [VIP, VIP6] {
        for node in &NODES {
            check_answered(&lab, Asker::Node(node.name), &sctp(vip))?;
            check_answered(&lab, Asker::Pod(node.name, &lab.node(node.name).pod("echo-")?), &sctp(vip))?;
        }
    }
    Ok(())
}

/// The holder masquerades what it sends to another node, and nothing else.
#[test]
fn pods_on_the_holder_see_the_client_and_others_see_the_holder() -> Result<()> {
    let lab = echoing()?;
    let holder = lab.wait_for_holder()?;
    let spec = layout::node(holder).context("the holder is a node")?;
    for (vip, client, own) in [(VIP, CLIENT_V4, spec.v4), (VIP6, CLIENT_V6, spec.v6)] {
        let report = check_answered(&lab, Asker::Client, &udp(vip))?;
        ensure!(report.nodes().len() == 3, "not all nodes were asked: {report}");
        for node in report.nodes().keys() {
            let expected = if node == holder { client } else { own };
            let seen: Vec<String> = report.from_node(node).sources().into_keys().collect();
            ensure!(
                seen == [expected],
                "on {node} the pod sees {seen:?}, not {expected}, for a client of {holder}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_client_with_one_port_moves_on_when_its_pod_is_deleted() -> Result<()> {
    let lab = echoing()?;
    let direct = Asking::echo("direct").annotation("kvip.io/mode", "dsr").spec("ports", dns());
    direct.annotation("kvip.io/vips", &[DIRECT, DIRECT6].join(",")).apply(&lab)?;
    [DIRECT, DIRECT6].iter().try_for_each(|vip| three_pods_answer(&lab, vip))?;
    // A quarter of a second on a quiet machine, and 2.8 s where one datagram is lost. In mode dsr two nodes have to see it, the
    // holder and the pod's own.
    let (soon, later) = (Duration::from_secs(3), Duration::from_secs(10));
    for (vip, port, limit) in
        [(VIP, 40_053, soon), (VIP6, 40_054, soon), (DIRECT, 40_055, later), (DIRECT6, 40_056, later)]
    {
        three_pods_answer(&lab, vip)?;
        let probe = lab.asking(Asker::Client, &udp(vip).from_port(port))?;
        let first = lab.wait_for("answers from one pod", SOON, || {
            let pods = Report::new(probe.so_far()).pods();
            (pods.values().sum::<usize>() > 5).then(|| pods.into_keys().collect::<Vec<_>>())
        });
        let first = explained(&lab, first)?;
        ensure!(first.len() == 1, "one flow was answered by {first:?}");
        let pod = pod_address(&lab, &first[0], vip.contains(':'))?;
        let known = || flows(&lab, vip, &pod).filter(|flows| !flows.is_empty()).map(drop);
        explained(&lab, lab.wait_for("the flow to be known", SOON, known))?;
        lab.kubectl(&["delete", "pod", &first[0], "--wait=false"])?;
        let moved = lab.wait_for("30 answers from other pods", SOON, || {
            let mut pods = Report::new(probe.so_far()).pods();
            pods.remove(&first[0]);
            (pods.values().sum::<usize>() >= 30).then_some(())
        });
        let report = probe.stop()?;
        explained(&lab, moved).with_context(|| format!("{report}"))?;
        let what = format!("all nodes to know nothing of a flow from {vip} to {pod}");
        let forgotten = || flows(&lab, vip, &pod).filter(String::is_empty).map(drop);
        explained(&lab, lab.wait_for(&what, SOON, forgotten))?;
        eprintln!("udp {vip} from one port, its pod deleted: {report}");
        let gap = report.longest_gap().context("a report has a longest gap")?.length();
        ensure!(gap < limit, "no answer for {gap:?}: {report}\n{}", diagnosis(&lab));
    }
    Ok(())
}

/// Connection tracking outlives what it was made for. Who asks from one port all the time is answered by the next holder too,
/// whatever that node, or the last holder, made of the flow while another held the VIP.
#[test]
fn flows_go_on_when_the_vip_moves() -> Result<()> {
    let lab = echoing()?;
    let early = Asking::echo("early").annotation("kvip.io/vips", &[EARLY, EARLY6].join(","));
    early.spec("ports", dns()).apply(&lab)?;
    [EARLY, EARLY6].iter().try_for_each(|vip| three_pods_answer(&lab, vip))?;
    let holder = lab.wait_for_holder()?;
    let next = lab.other_than(holder);
    let last = NODES.iter().map(|node| node.name).find(|node| ![holder, next].contains(node));
    let last = last.context("the lab has three nodes")?;
    let moved = move_under_flows(&lab, holder, next, last);
    // Nothing of it is left to the next test.
    for vip in [EARLY, EARLY6] {
        lab.client(&["ip", "neigh", "del", vip, "dev", "eth0"])?;
    }
    for node in [holder, last] {
        lab.node(node).must_within(SOON, "kvip undrain")?;
    }
    lab.kubectl(&["delete", "service", "early"])?;
    moved
}

fn move_under_flows(lab: &Lab, holder: &str, next: &str, last: &str) -> Result<()> {
    lab.node(last).must_within(SOON, "kvip drain --wait 40")?;
    let card = layout::node(next).context("the next holder is a node")?.mac;
    for vip in [EARLY, EARLY6] {
        let words = ["ip", "neigh", "replace", vip, "lladdr", card, "dev", "eth0", "nud", "permanent"];
        let known = lab.client(&words)?;
        ensure!(known.ok(), "{known}");
    }
    let pods: Vec<String> =
        [holder, next].map(|node| lab.node(node).pod("echo-")).into_iter().collect::<Result<_>>()?;
    let mut flows = Vec::new();
    for (asker, vips) in [
        (Asker::Client, [VIP, VIP6]),
        (Asker::Client, [EARLY, EARLY6]),
        (Asker::Node(holder), [VIP, VIP6]),
        (Asker::Node(next), [VIP, VIP6]),
        (Asker::Pod(holder, &pods[0]), [VIP, VIP6]),
        (Asker::Pod(next, &pods[1]), [VIP, VIP6]),
    ] {
        for vip in vips {
            let port = 40_100 + u16::try_from(flows.len())?;
            let question = udp(vip).from_port(port).every(Duration::from_millis(300));
            // Else a process on the holder asks from the VIP itself, which leaves.
            let question = match asker {
                Asker::Node(node) => question.from_address(own_address(node, vip)?),
                _ => question,
            };
            flows.push((asker, question, lab.asking(asker, &question)?));
        }
    }
    let answered = |probe: &Probe| Report::new(probe.so_far()).answered();
    let before = lab.wait_for("answers on all flows", SOON, || {
        flows.iter().all(|(_, _, probe)| answered(probe) > 5).then_some(())
    });
    explained(lab, before)?;
    lab.node(holder).must_within(SOON, "kvip drain --wait 40")?;
    let moved = lab
        .wait_for(&format!("{next} to hold the VIPs"), SOON, || (lab.holder() == Some(next)).then_some(()));
    explained(lab, moved)?;
    let before: Vec<usize> = flows.iter().map(|(_, _, probe)| answered(probe)).collect();
    let silent = || {
        let silent =
            flows.iter().zip(&before).filter(|((_, _, probe), before)| answered(probe) < *before + 10);
        silent
            .map(|((asker, question, _), _)| format!("{asker:?} {}", question.arguments()))
            .collect::<Vec<_>>()
    };
    let again = lab.wait_for("answers on all flows again", SOON, || silent().is_empty().then_some(()));
    let again = explained(lab, again.with_context(|| format!("no answers: {:#?}", silent())));
    for (asker, question, probe) in flows {
        println!("{asker:?} {}: {}", question.arguments(), probe.stop()?);
    }
    again
}

/// Counts in an echo pod the datagrams that come, and of those the ones that come from the client's own address.
const COUNTERS: &str = "nft 'table inet counted { chain input { type filter hook input priority 0; udp dport 5353 counter; \
    ip saddr CLIENT udp dport 5353 counter; }; }'";

/// Nobody's answers are translated then, so the pods' own kernels say what came to them from one port of the client.
#[test]
fn datagrams_are_balanced_one_by_one_where_a_service_says_so() -> Result<()> {
    const SENT: u64 = 10;
    let lab = echoing()?;
    let pods: Vec<(Node<'_>, String)> =
        lab.nodes().map(|node| Ok((node, node.pod("echo-")?))).collect::<Result<_>>()?;
    let inside = |node: &Node<'_>, pod: &str, what: &str| node.must(&format!("ip netns exec {pod} {what}"));
    let service = Asking::echo("counted").annotation("kvip.io/vips", ONE_BY_ONE).spec("ports", dns());
    let service = service.annotation("kvip.io/scheduler", "rr");
    // A flow's first datagram may come to a pod on the holder or on another node: which decides what becomes of the others, where
    // they are one flow. So there are three.
    for (ports, one_by_one) in [(40_057..40_058, false), (40_058..40_061, true)] {
        service.clone().annotation("kvip.io/one-packet", &one_by_one.to_string()).apply(&lab)?;
        let line = format!("-A -u {ONE_BY_ONE}:{DNS} -s rr{}", if one_by_one { " -o" } else { "" });
        let set = lab.wait_for(&line, SOON, || {
            let is_there = |node: Node<'_>| node.ipvs().is_ok_and(|table| table.lines().any(|l| l == line));
            lab.nodes().all(is_there).then_some(())
        });
        explained(&lab, set)?;
        let counters = COUNTERS.replace("CLIENT", CLIENT_V4);
        pods.iter().try_for_each(|(node, pod)| inside(node, pod, &counters).map(drop))?;
        let in_all = SENT * u64::try_from(ports.len())?;
        for port in ports {
            lab.ask(Asker::Client, &udp(ONE_BY_ONE).from_port(port), SENT)?;
        }
        let (mut arrived, mut from_client) = (Vec::new(), Vec::new());
        for (node, pod) in &pods {
            let text = inside(node, pod, "nft list table inet counted")?;
            let counts =
                text.split("packets ").skip(1).map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            let [all, clients] = counts.collect::<Option<Vec<_>>>().context("counters")?[..] else {
                bail!("two counters in {text}");
            };
            arrived.push(all);
            from_client.push(clients);
            inside(node, pod, "nft delete table inet counted")?;
        }
        println!(
            "one by one {one_by_one}: of {in_all} came {arrived:?}, from the client's address {from_client:?}"
        );
        let as_said = if one_by_one {
            // An emulated machine may lose one of its own.
            arrived.iter().sum::<u64>() + 2 >= in_all
                && arrived.iter().all(|count| *count > 0)
                && arrived == from_client
        } else {
            arrived.iter().filter(|count| **count > 0).count() == 1
        };
        ensure!(as_said, "{arrived:?}, {from_client:?}\n{}", diagnosis(&lab));
    }
    lab.kubectl(&["delete", "service", "counted"]).map(drop)
}

/// An association cannot move, so the client's next one from the same port does, while the pod still ends.
#[test]
fn an_sctp_client_with_one_port_finds_another_pod_at_once() -> Result<()> {
    let lab = echoing()?;
    let holder = lab.wait_for_holder()?;
    let asker = Asker::Node(lab.other_than(holder));
    for (vip, port) in [(VIP, 43_868), (VIP6, 43_869)] {
        let from_one_port = sctp(vip).from_port(port);
        let probe = lab.asking(asker, &from_one_port)?;
        let first = lab.wait_for("answers from one pod", SOON, || {
            let pods = Report::new(probe.so_far()).pods();
            (pods.values().sum::<usize>() > 5).then(|| pods.into_keys().next())
        });
        let first = explained(&lab, first)?.context("a pod answered")?;
        let pod = pod_address(&lab, &first, vip.contains(':'))?;
        lab.kubectl(&["annotate", "pod", &first, "lab.kvip/pre-stop-seconds=60"])?;
        lab.kubectl(&["delete", "pod", &first, "--wait=false", "--grace-period=70"])?;
        let server = format!("{}:{DIAMETER}", in_url(&pod));
        let what = format!("all nodes to be without the server {server}");
        let gone = lab.wait_for(&what, SOON, || {
            lab.nodes().all(|node| node.ipvs().is_ok_and(|table| !table.contains(&server))).then_some(())
        });
        explained(&lab, gone)?;
        probe.stop()?;
        let again = explained(&lab, lab.ask(asker, &from_one_port, 3))?;
        ensure!(again.answered() == 3, "sctp {vip} from port {port} again: {again}\n{}", diagnosis(&lab));
        ensure!(!again.pods().contains_key(&first), "the pod that ends got a new association: {again}");
        ensure!(object(&lab, &format!("pod {first}")).is_ok(), "{first} ended before this was seen");
    }
    Ok(())
}

/// The flows to `vip` that were translated to `pod`, by the connection tracking of all nodes; none when one does not say.
fn flows(lab: &Lab, vip: &str, pod: &str) -> Option<String> {
    let family = if vip.contains(':') { "ipv6" } else { "ipv4" };
    let script = format!("conntrack -L -f {family} -p udp --orig-dst {vip} --reply-src {pod}");
    lab.nodes().map(|node| node.must(&script).ok()).collect()
}
