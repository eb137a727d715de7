//! kvip beside the real kube-proxy, in each of its modes: who is asked, and who answers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kvip_lab::asking::{
    Asking, ECHO, ECHO_PORTS, POOLS, check_answered_inside, condition, explain, in_url, ingress, must,
    object, settings, wait_for_addresses, wait_for_answer, wait_until_gone_but,
};
use kvip_lab::kube_proxy::Mode;
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::layout::{CLIENT_V4, CLIENT_V6, NODES};
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::{Probe, Report};
use kvip_lab::scenario::{SOON, Turn, VIP, VIP6, ask_for, bare, echo_pods, finding, set_up};
use serde_json::json;

/// kvip's minute's audit, and what comes of it on a slow machine.
const AUDIT: Duration = Duration::from_secs(120);
/// What is flushed is put back within a second; clients try again after one, and these machines are slow.
const REPAIRED: Duration = Duration::from_secs(10);
/// How many connections are held open, the time between two questions on each, and how long they are watched when another
/// node has taken over.
const CONNECTIONS: u16 = 4;
const EVERY: Duration = Duration::from_millis(300);
const WATCHED: Duration = Duration::from_secs(10);
/// The cluster takes 40 s to notice a node's death.
const NOTICED: Duration = Duration::from_secs(180);
/// A VIP that a Service asks for by annotation, one of spec.externalIPs, and one that somebody else announces.
const ANNOTATED: &str = "10.87.2.57";
const EXTERNAL: &str = "10.87.2.58";
const EXTERNAL6: &str = "fd00:87:2::58";
const FOREIGN: &str = "10.87.2.59";

/// The lab with kvip and kube-proxy, and a Service for each way of asking: the address that a pool gave.
fn beside(mode: &Mode) -> Result<(Turn, String)> {
    let lab = bare()?;
    if lab.curl(VIP).is_none() {
        set_up(&lab, &Settings::default())?;
    }
    settings(&lab, POOLS)?;
    Asking::new("noted").annotation("kvip.io/vips", ANNOTATED).apply(&lab)?;
    Asking::new("web").load_balancer().apply(&lab)?;
    let given = wait_for_addresses(&lab, "web", 1)?.remove(0);
    lab.start_kube_proxy(mode)?;
    Ok((lab, given))
}

/// What IPVS shows of its counters is up to 2 s old (estimation_timer, ip_vs_est.c): for so long they must stand still.
const COUNTED: Duration = Duration::from_millis(2500);

/// How many connections IPVS has seen to port 80 of `vip`, on all nodes, when it has counted all of them.
fn seen(lab: &Lab, vip: &str) -> Result<u64> {
    let mut last: Option<(u64, Instant)> = None;
    lab.wait_for(&format!("the counters of {vip} to stand still"), SOON, || {
        let now = shown(lab, vip).ok()?;
        let (count, since) =
            *last.insert(last.filter(|(count, _)| *count == now).unwrap_or((now, Instant::now())));
        (since.elapsed() >= COUNTED).then_some(count)
    })
}

fn shown(lab: &Lab, vip: &str) -> Result<u64> {
    let mut seen = 0;
    for node in lab.nodes() {
        let table = node.must("ipvsadm -Ln --stats --exact")?;
        let server = format!("{vip}:80");
        let line = table.lines().find(|line| line.split_whitespace().nth(1) == Some(&server));
        let count = line.and_then(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        seen += count.with_context(|| format!("{} has no {server}: {table}", node.spec().name))?;
    }
    Ok(seen)
}

/// Asks `vip` as the client, on each node and in a pod of each: how many were answered, and how many of all IPVS saw.
fn asked_and_seen(lab: &Lab, vip: &str) -> Result<(u64, u64)> {
    let before = seen(lab, vip)?;
    let mut answered = u64::from(lab.curl(vip).is_some());
    for node in lab.nodes() {
        let pod = "pod=$(lab-pod list | awk 'NR == 1 { print $1 }')";
        for who in ["", "ip netns exec $pod "] {
            let script = format!("{pod}; {who}curl -s -g --max-time 5 http://{vip}/");
            answered += u64::from(node.run(&script)?.ok());
        }
    }
    Ok((answered, seen(lab, vip)? - before))
}

/// All of the lab's askers are answered at `vip`, and through IPVS.
fn check_balanced(lab: &Lab, vip: &str) -> Result<()> {
    wait_for_answer(lab, vip)?;
    // kube-proxy has just been started, and a holder may have changed under the load of that.
    let balanced = lab.wait_for(&format!("IPVS to see all that ask {vip}"), SOON, || {
        let (answered, seen) = asked_and_seen(lab, vip).ok()?;
        eprintln!("{vip}: {answered} of 7 answered, IPVS saw {seen}");
        ((answered, seen) == (7, 7)).then_some(())
    });
    balanced.with_context(|| explain(lab, ""))
}

/// A ClusterIP answers: kube-proxy works at all.
fn check_cluster_ip(lab: &Lab) -> Result<()> {
    let service = object(lab, "service nginx")?;
    let address = service["spec"]["clusterIP"].as_str().context("a ClusterIP")?;
    check_answered_inside(lab, address)
}

/// What holds in every mode: kube-proxy and kvip each have their own.
fn check_both(lab: &Lab, given: &str) -> Result<()> {
    check_cluster_ip(lab)?;
    [VIP, VIP6, ANNOTATED, given].iter().try_for_each(|vip| check_balanced(lab, vip))
}

/// Every node balances the tutorial's VIP again, and it answers.
fn wait_until_whole(lab: &Lab) -> Result<()> {
    let whole = |table: String| table.contains(&format!("-a -t {VIP}:80 "));
    let back = lab.wait_for("IPVS to be whole on all nodes", AUDIT, || {
        lab.nodes().all(|node| node.ipvs().is_ok_and(whole)).then_some(())
    });
    back.with_context(|| explain(lab, ""))?;
    wait_for_answer(lab, VIP).map(drop)
}

/// Restarts kube-proxy everywhere while a client asks the VIP: the longest time without an answer.
fn gap_of_restart(lab: &Lab) -> Result<Duration> {
    let probe = lab.probe(VIP, 80, Duration::from_millis(100))?;
    lab.restart_kube_proxy()?;
    wait_until_whole(lab)?;
    let report = probe.stop()?;
    eprintln!("kube-proxy restarted: {report}");
    Ok(report.longest_gap().map_or(Duration::ZERO, |gap| gap.length()))
}

/// What kvip's settings are to say of the shield, and what then stands in its table for `vip`.
fn shield(lab: &Lab, setting: &str, vip: &str, shielded: bool) -> Result<()> {
    settings(lab, &format!("{POOLS}\n[balancing]\nshield = \"{setting}\"\n"))?;
    let element = format!("{vip} . tcp . 80 : {vip}");
    let set = lab.wait_for(&format!("the shield of {vip} to be {setting}"), SOON, || {
        let is_set = |table: String| table.contains(&element) == shielded;
        lab.nodes().all(|node| node.must("nft list table inet kvip").is_ok_and(is_set)).then_some(())
    });
    set.with_context(|| explain(lab, ""))
}

/// Without the shield kube-proxy has all connections to `vip`, with it IPVS has.
fn check_shield(lab: &Lab, vip: &str) -> Result<()> {
    shield(lab, "off", vip, false)?;
    let taken = lab.wait_for(&format!("kube-proxy to take connections to {vip}"), SOON, || {
        (asked_and_seen(lab, &in_url(vip)).ok()? == (7, 0)).then_some(())
    });
    taken.with_context(|| explain(lab, ""))?;
    shield(lab, "auto", vip, true)?;
    check_balanced(lab, &in_url(vip))
}

/// Policy Local where kube-proxy drops what comes for nodes without a pod: refused, with nothing in IPVS, until the Service is
/// as the mend says.
fn check_local_is_refused(lab: &Lab, service: &Asking, vip: &str, why: &str) -> Result<()> {
    let name = service.name();
    service.clone().spec("externalTrafficPolicy", "Local").apply(lab)?;
    let told = lab.wait_for(&format!("all nodes to say {why:?}"), SOON, || {
        NODES.iter().all(|node| finding(lab, node.name, why).is_some()).then_some(())
    });
    told.with_context(|| explain(lab, name))?;
    for node in &NODES {
        let found = finding(lab, node.name, why).context("the finding")?;
        let mend = format!("kubectl -n default patch service {name} ");
        must(lab, found.contains(&mend), &format!("no mend in {found}"))?;
    }
    let serves = |node: Node<'_>| node.ipvs().is_ok_and(|table| table.contains(&format!(" {vip}:")));
    let left = lab.wait_for(&format!("no virtual server at {vip}, which is refused"), SOON, || {
        (!lab.nodes().any(serves)).then_some(())
    });
    left.with_context(|| explain(lab, name))?;
    let cluster = json!({"spec": {"externalTrafficPolicy": "Cluster"}}).to_string();
    lab.kubectl(&["patch", "service", name, "-p", &cluster])?;
    check_balanced(lab, vip)
}

/// A Service that another load balancer announces, without `ipMode: Proxy`, and that kvip serves too.
fn check_foreign(lab: &Lab) -> Result<()> {
    let class = "example.com/other";
    let foreign = Asking::new("foreign").load_balancer().spec("loadBalancerClass", class);
    foreign.apply(lab)?;
    let status =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": FOREIGN, "ipMode": "VIP"}]}}}).to_string();
    lab.kubectl(&["patch", "service", "foreign", "--subresource=status", "--type=merge", "-p", &status])?;
    ask_for(lab, FOREIGN, Some("default/foreign"))?;
    check_shield(lab, FOREIGN)?;
    check_local_is_refused(lab, &foreign, FOREIGN, "its status lacks ipMode Proxy")?;
    ask_for(lab, FOREIGN, None)?;
    lab.kubectl(&["delete", "service", "foreign"])?;
    given_back(lab, FOREIGN)
}

/// spec.externalIPs, which kube-proxy always has rules for: in mode nat, and in mode dsr, where pods see the client only if
/// kube-proxy has not had its packets.
fn check_external(lab: &Lab) -> Result<()> {
    let gone = || {
        lab.kubectl(&["delete", "service", "external"])?;
        [EXTERNAL, EXTERNAL6].iter().try_for_each(|vip| given_back(lab, vip))
    };
    let external = Asking::new("external")
        .spec("ipFamilyPolicy", "RequireDualStack")
        .spec("externalIPs", json!([EXTERNAL, EXTERNAL6]));
    external.apply(lab)?;
    [EXTERNAL, EXTERNAL6].iter().try_for_each(|vip| check_shield(lab, vip))?;
    let drops = "kube-proxy drops packets to externalIPs of policy Local on nodes without a pod of it";
    check_local_is_refused(lab, &external, EXTERNAL, drops)?;
    gone()?;
    lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(ECHO_PORTS))?;
    let external = Asking::echo("external").spec("externalIPs", json!([EXTERNAL, EXTERNAL6]));
    external.annotation("kvip.io/mode", "dsr").apply(lab)?;
    [EXTERNAL, EXTERNAL6].iter().try_for_each(|vip| all_are_answered(lab, vip.parse()?, true))?;
    gone()
}

/// In mode announce kvip holds the VIP and kube-proxy balances: of virtual servers there are at most its own.
fn check_announced(lab: &Lab, by_ipvs: bool) -> Result<()> {
    let given = announced(lab)?;
    let said = ingress(lab, "announced")?;
    let by_others = said.iter().all(|entry| entry["ipMode"] == "VIP");
    must(lab, by_others, &format!("in mode announce the status says {said:?}"))?;
    for vip in &given {
        for node in lab.nodes() {
            let expected = node.ipvs()?.contains(vip) == by_ipvs;
            must(lab, expected, &format!("{vip} in the IPVS of {}: {}", node.spec().name, !by_ipvs))?;
        }
    }
    given.iter().try_for_each(|vip| check_way_of_announced(lab, vip.parse()?))?;
    check_open_connections(lab, given[0].parse()?)?;
    lab.kubectl(&["delete", "service", "announced"])?;
    given.iter().try_for_each(|vip| given_back(lab, vip))
}

/// kube-proxy on the holder hands on and hides the client, so answers leave through the holder alone.
fn check_way_of_announced(lab: &Lab, vip: IpAddr) -> Result<()> {
    let holder = lab.wait_for_holder()?;
    let trace = lab.trace(&format!("host {vip} and port {ECHO}"))?;
    let question = Question::new(Transport::Tcp, SocketAddr::new(vip, ECHO)).connections(12);
    let report = lab.ask(Asker::Client, &question, 1)?;
    let packets = trace.stop()?;
    let senders = packets.sent_from(vip).sent();
    println!("announced {vip}: {report}; pods saw {:?}, answers sent by {senders:?}", report.sources());
    let hidden = [CLIENT_V4, CLIENT_V6].iter().all(|client| !report.sources().contains_key(*client));
    must(lab, report.answered() == 12 && hidden, &format!("{vip}: {report} saw {:?}", report.sources()))?;
    must(lab, senders.keys().eq([&holder]), &format!("{vip}: answers are sent by {senders:?}, not {holder}"))
}

/// A Service of mode announce: the VIPs that it was given, at which all are answered.
fn announced(lab: &Lab) -> Result<Vec<String>> {
    lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(ECHO_PORTS))?;
    Asking::echo("announced").load_balancer().annotation("kvip.io/mode", "announce").apply(lab)?;
    let given = wait_for_addresses(lab, "announced", 2)?;
    given.iter().try_for_each(|vip| all_are_answered(lab, vip.parse()?, false))?;
    Ok(given)
}

/// What docs/services.md says of open connections in mode announce: when the holder is drained those over TCP end, as another
/// node's kube-proxy knows nothing of them, and those over UDP go on.
fn check_open_connections(lab: &Lab, vip: IpAddr) -> Result<()> {
    let holder = lab.wait_for_holder()?;
    let held = hold(lab, vip)?;
    let drained = lab.node(holder).run_within(SOON, "kvip drain --wait 40", b"")?;
    let taken = lab.wait_for("another holder", SOON, || lab.holder().filter(|node| *node != holder));
    let until = Instant::now() + WATCHED;
    lab.wait_for("what becomes of connections", WATCHED * 2, || (Instant::now() >= until).then_some(()))?;
    must(lab, drained.ok(), &drained.to_string())?;
    taken.with_context(|| explain(lab, "announced"))?;
    lab.node(holder).must_within(SOON, "kvip undrain")?;
    check_became(lab, held, &format!("while {holder} is drained"))
}

/// The same when the holder dies. What another node's kube-proxy hands on over UDP may come to a pod of the dead node until the
/// cluster has noticed.
fn check_open_connections_of_a_dead_holder(lab: &Lab, mode: &Mode) -> Result<()> {
    let given = announced(lab)?;
    let holder = lab.wait_for_holder()?;
    let held = hold(lab, given[0].parse()?)?;
    lab.node(holder).must("sync")?;
    lab.node(holder).kill()?;
    let taken = lab.wait_for("another holder", SOON, || lab.holder().filter(|node| *node != holder));
    taken.with_context(|| explain(lab, "announced"))?;
    let noticed = lab.wait_for("the cluster to notice, and an answer on each flow over UDP", NOTICED, || {
        let udp = held.iter().filter(|(transport, _)| *transport == Transport::Udp);
        let open = |probe: &Probe| {
            Report::new(probe.so_far())
                .connections()
                .values()
                .all(|view| view.end().is_none() && !view.nodes().is_empty())
        };
        let ready = object(lab, &format!("node {holder}")).ok()?["status"]["conditions"].to_string();
        (ready.contains("NodeStatusUnknown") && udp.into_iter().all(|(_, probe)| open(probe))).then_some(())
    });
    noticed.with_context(|| explain(lab, "announced"))?;
    check_became(lab, held, &format!("after the death of {holder}"))?;
    lab.node(holder).boot()?;
    lab.start_kube_proxy(mode)?;
    let back = lab.wait_for(&format!("{holder} to be back"), AUDIT, || {
        (lab.node(holder).kvip_status().ok()?["as_planned"] == true).then_some(())
    });
    back.with_context(|| explain(lab, "announced"))?;
    lab.kubectl(&["delete", "service", "announced"])?;
    given.iter().try_for_each(|vip| given_back(lab, vip))
}

/// All connections over TCP have ended, and those over UDP go on.
fn check_became(lab: &Lab, held: Vec<(Transport, Probe)>, when: &str) -> Result<()> {
    for (transport, probe) in held {
        for view in probe.stop()?.connections().values() {
            println!("{transport:?} {when}: {view}");
            let ends = transport == Transport::Tcp;
            must(lab, view.end().is_some() == ends, &format!("{transport:?} must end: {ends}, and {view}"))?;
        }
    }
    Ok(())
}

/// Holds connections of each transport to `vip`, once all of them were answered.
fn hold(lab: &Lab, vip: IpAddr) -> Result<Vec<(Transport, Probe)>> {
    let ask = |transport| {
        let question =
            Question::new(transport, SocketAddr::new(vip, ECHO)).connections(CONNECTIONS).every(EVERY);
        Ok((transport, lab.asking(Asker::Client, &question)?))
    };
    let held = [Transport::Tcp, Transport::Udp].into_iter().map(ask).collect::<Result<Vec<_>>>()?;
    let answered = lab.wait_for("answers on all connections", SOON, || {
        let open = |probe: &Probe| {
            let connections = Report::new(probe.so_far()).connections();
            connections.len() == usize::from(CONNECTIONS)
                && connections.values().all(|view| view.answered() > 0)
        };
        held.iter().all(|(_, probe)| open(probe)).then_some(())
    });
    answered.with_context(|| explain(lab, "announced"))?;
    Ok(held)
}

/// Mode dsr, by annotation and by policy Local: kube-proxy is in nobody's way, and pods see the client.
fn check_dsr(lab: &Lab) -> Result<()> {
    lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(ECHO_PORTS))?;
    for service in [
        Asking::echo("direct").load_balancer().annotation("kvip.io/mode", "dsr"),
        Asking::echo("direct").load_balancer().spec("externalTrafficPolicy", "Local"),
    ] {
        service.apply(lab)?;
        let given = wait_for_addresses(lab, "direct", 2)?;
        for vip in &given {
            all_are_answered(lab, vip.parse()?, true)?;
        }
        lab.kubectl(&["delete", "service", "direct"])?;
        given.iter().try_for_each(|vip| given_back(lab, vip))?;
    }
    Ok(())
}

/// Waits until no node has anything of a VIP, but for NodePorts: kube-proxy in ipvs mode has these at each address that a
/// node had when it looked, and never takes them from one that excludeCIDRs cover.
fn given_back(lab: &Lab, vip: &str) -> Result<()> {
    wait_until_gone_but(lab, vip, is_of_node_port)
}

/// Whether that line of `ipvsadm -S` is of a port out of the range of NodePorts.
fn is_of_node_port(line: &str) -> bool {
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["-A" | "-a", _, frontend, ..] => {
            let port = frontend.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            port.is_some_and(|port| (30_000..32_768).contains(&port))
        }
        _ => false,
    }
}

/// The client, a process on each node and a pod of each are answered over TCP and UDP; pods see the client where that is
/// promised.
fn all_are_answered(lab: &Lab, vip: IpAddr, client_is_seen: bool) -> Result<()> {
    let pods: Vec<String> = lab.nodes().map(|node| node.pod("")).collect::<Result<_>>()?;
    let insiders =
        NODES.iter().zip(&pods).flat_map(|(node, pod)| [Asker::Node(node.name), Asker::Pod(node.name, pod)]);
    for asker in [Asker::Client].into_iter().chain(insiders) {
        for transport in [Transport::Tcp, Transport::Udp] {
            let question = Question::new(transport, SocketAddr::new(vip, ECHO)).connections(6);
            let what = format!("{} from {asker:?}", question.arguments());
            let answered = lab.wait_for(&what, SOON, || {
                let report = lab.ask(asker, &question, 1).ok()?;
                println!("{what}: {report}; pods saw {:?}", report.sources());
                let client = if vip.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 };
                let seen = !client_is_seen || asker != Asker::Client || report.sources().keys().eq([client]);
                (report.failures().is_empty() && seen).then_some(())
            });
            answered.with_context(|| explain(lab, ""))?;
        }
    }
    Ok(())
}

#[test]
fn iptables() -> Result<()> {
    let (lab, given) = beside(&Mode::Iptables)?;
    check_both(&lab, &given)?;
    check_foreign(&lab)?;
    check_external(&lab)?;
    check_dsr(&lab)?;
    check_announced(&lab, false)?;
    check_open_connections_of_a_dead_holder(&lab, &Mode::Iptables)
}

/// At each of its starts kube-proxy flushes all of IPVS, and when it cleans up.
#[test]
fn nftables() -> Result<()> {
    let (lab, given) = beside(&Mode::Nftables)?;
    check_both(&lab, &given)?;
    check_foreign(&lab)?;
    check_external(&lab)?;
    check_dsr(&lab)?;
    check_announced(&lab, false)?;
    let gap = gap_of_restart(&lab)?;
    must(&lab, gap < REPAIRED, &format!("{gap:?} without an answer"))?;
    check_both(&lab, &given)?;
    lab.stop_kube_proxy()?;
    wait_until_whole(&lab)
}

/// kube-proxy deletes virtual servers that are not its own, so kvip leaves VIPs to others until kube-proxy says that it is kept
/// from that.
#[test]
fn ipvs() -> Result<()> {
    let (lab, given) = beside(&Mode::Ipvs { exclude_cidrs: Vec::new() })?;
    check_cluster_ip(&lab)?;
    for node in lab.nodes() {
        let name = node.spec().name;
        let said = lab.wait_for(&format!("{name} to yield"), AUDIT, || {
            let finding = finding(&lab, name, "in mode ipvs (kube-ipvs0 is there)")?;
            let held = node.must("ip -br addr show eth0").ok()?.contains(VIP);
            (finding.contains("its ipvs.excludeCIDRs are empty") && !held).then_some(())
        });
        said.with_context(|| explain(&lab, ""))?;
    }
    must(&lab, lab.curl(VIP).is_none(), "a VIP is held although kube-proxy would delete what serves it")?;
    // Before it is told to leave these addresses alone, which keeps it from cleaning up after itself too.
    check_announced(&lab, true)?;
    one_node_goes_over(&lab)?;

    let exclude_cidrs = ["10.87.2.0/24", "fd00:87:2::/64"].map(str::to_owned).into();
    lab.start_kube_proxy(&Mode::Ipvs { exclude_cidrs })?;
    wait_until_whole(&lab)?;
    check_both(&lab, &given)?;
    check_dsr(&lab)?;
    external_ips_are_kube_proxys(&lab)?;
    let gap = gap_of_restart(&lab)?;
    must(&lab, gap < REPAIRED, &format!("{gap:?} without an answer"))?;
    check_both(&lab, &given)?;
    lab.stop_kube_proxy()?;
    wait_until_whole(&lab)
}

/// The first node without kube-proxy's mode ipvs holds all VIPs, and hands on to the pods of those that yield.
fn one_node_goes_over(lab: &Lab) -> Result<()> {
    let first = NODES[0].name;
    lab.node(first).must_within(SOON, "systemctl stop kube-proxy && ip link delete kube-ipvs0")?;
    let held = lab.wait_for(&format!("{first} to hold the VIPs"), AUDIT, || {
        (lab.holder()? == first && lab.curl(VIP).is_some()).then_some(())
    });
    held.with_context(|| explain(lab, ""))?;
    check_dsr(lab)
}

/// In mode ipvs kube-proxy has virtual servers of its own for them, so kvip has none.
fn external_ips_are_kube_proxys(lab: &Lab) -> Result<()> {
    Asking::new("external").spec("externalIPs", json!([EXTERNAL])).apply(lab)?;
    let words = "spec.externalIPs not served: kube-proxy in ipvs mode";
    let told = lab.wait_for("all nodes to leave externalIPs to kube-proxy", SOON, || {
        lab.nodes().all(|node| finding(lab, node.spec().name, words).is_some()).then_some(())
    });
    told.with_context(|| explain(lab, "external"))?;
    let said = condition(lab, "external")?;
    must(lab, said.starts_with("False "), &format!("the condition of externalIPs says {said}"))?;
    lab.kubectl(&["delete", "service", "external"]).map(drop)
}
