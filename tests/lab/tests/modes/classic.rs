//! Modes dr and tunnel: for backends that carry the VIP themselves, so that all that the holder does is to pass packets on.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{Asking, ECHO};
use kvip_lab::lab::Lab;
use kvip_lab::layout::{BRIDGE, BRIDGE_V4, BRIDGE_V6, NODES};
use kvip_lab::namespace::beside;
use kvip_lab::peer::drive::Asker;
use kvip_lab::peer::install;
use kvip_lab::scenario::{SOON, diagnosis, explained};
use serde_json::json;

use super::{Mode, answered_by, kept_source, modes};

pub const DR: Mode = Mode { name: "dr", v4: "10.87.2.55", v6: "fd00:87:2::55" };
pub const TUNNEL: Mode = Mode { name: "tunnel", v4: "10.87.2.56", v6: "fd00:87:2::56" };
/// How the holder wraps packets, and what `ipvsadm -Sn` then says behind `-i -w 1`; for gue the port that pods listen on.
const WRAPPINGS: [(&str, &str); 3] =
    [("ipip", ""), ("gre", " --tun-type gre"), ("gue:6635", " --tun-type gue --tun-port 6635")];
/// So many connections, each asked once: enough to meet both backends.
const CONNECTIONS: u16 = 12;

/// Hosts on the nodes' network with the VIP on their loopback device, which they tell nobody of (ip-sysctl: arp_ignore).
#[test]
fn hosts_that_carry_the_vip_are_served_by_direct_routing() -> Result<()> {
    let lab = modes()?;
    direct_routing(&lab, service(DR))?;
    // They are no nodes, and no node passes an answer on.
    check(&lab, DR, 2, &[])
}

/// The hosts, and a Service in mode dr in front of them.
pub fn direct_routing(lab: &Lab, service: Asking) -> Result<()> {
    let program = beside("lab-peer")?;
    for number in [1, 2] {
        let script = host_script(number, &program.to_string_lossy());
        let output =
            lab.host(&["sh", "-c", &format!("ip netns list | grep -q backend-{number} || {{ {script}\n}}")])?;
        ensure!(output.ok(), "{output}");
    }
    serve(lab, DR, service, &[backend(1), backend(2)])
}

fn host_script(number: u8, program: &str) -> String {
    let (name, [v4, v6], listeners) = (format!("backend-{number}"), backend(number), listeners(DR));
    let [vip4, vip6] = DR.vips();
    format!(
        "set -e
ip netns add {name}
ip link add to-{name} type veth peer name eth0 netns {name}
ip link set to-{name} master {BRIDGE} up
ip -n {name} -batch - <<X
link set lo up
addr add {v4}/24 dev eth0
addr add {v6}/64 dev eth0 nodad
addr add {vip4}/32 dev lo
addr add {vip6}/128 dev lo nodad
link set eth0 up
route add default via {BRIDGE_V4}
route add default via {BRIDGE_V6}
X
ip netns exec {name} sh -c 'cd /proc/sys/net/ipv4/conf/all; echo 1 >arp_ignore; echo 2 >arp_announce'
ip netns exec {name} setsid {program} serve {name} {name} {listeners} &"
    )
}

/// Pods of nodes that do not hold the VIP: one that does takes packets from its own address for forged.
#[test]
fn pods_that_carry_the_vip_are_served_through_tunnels() -> Result<()> {
    let lab = modes()?;
    let holder = lab.wait_for_holder()?;
    let others: Vec<&str> = NODES.iter().map(|node| node.name).filter(|node| *node != holder).collect();
    tunnels(&lab, service(TUNNEL), &others)?;
    for (wrapping, options) in WRAPPINGS {
        service(TUNNEL).annotation("kvip.io/tunnel", wrapping).apply(&lab)?;
        let wraps = lab.wait_for(&format!("all nodes to wrap by {wrapping}"), SOON, || {
            let is_meant = |line: &&str| line.starts_with(&format!("-a -t {}:{ECHO} ", TUNNEL.v4));
            let wrapped = |line: &&str| line.contains(&format!(" -i -w 1{options}"));
            let all = |table: String| {
                let servers: Vec<&str> = table.lines().filter(is_meant).collect();
                servers.len() == others.len() && servers.iter().all(wrapped)
            };
            lab.nodes().all(|node| node.ipvs().is_ok_and(all)).then_some(())
        });
        explained(&lab, wraps)?;
        check(&lab, TUNNEL, 2, &others).with_context(|| wrapping.to_owned())?;
    }
    Ok(())
}

/// Lets the pod of each of these nodes carry the VIPs, behind a Service in mode tunnel.
pub fn tunnels(lab: &Lab, service: Asking, nodes: &[&str]) -> Result<()> {
    let backends = nodes.iter().map(|node| {
        let pod = lab.node(node).pod("echo-")?;
        let shown = lab.node(node).must_within(SOON, &pod_script(node, &pod))?;
        Ok(["inet", "inet6"].map(|family| address_of(family, &shown)))
    });
    serve(lab, TUNNEL, service, &backends.collect::<Result<Vec<_>>>()?)
}

/// Lets the pod take packets out of all wrappings at the VIPs, and shows its addresses last.
fn pod_script(node: &str, pod: &str) -> String {
    let ([vip4, vip6], program, listeners) = (TUNNEL.vips(), install::PROGRAM, listeners(TUNNEL));
    format!(
        "set -e
modprobe -a ipip ip6_tunnel ip_gre ip6_gre fou fou6
ip -n {pod} -batch - <<X
link set tunl0 up
link set ip6tnl0 up
link set gre0 up
link set ip6gre0 up
addr replace {vip4}/32 dev tunl0
addr replace {vip6}/128 dev ip6tnl0 nodad
X
for family in 4 6; do ip -$family -n {pod} fou add port 6635 gue 2>/dev/null || true; done
for device in all tunl0 gre0; do ip netns exec {pod} sysctl -qw net.ipv4.conf.$device.rp_filter=0; done
ip netns exec {pod} setsid {program} serve {node} {pod} {listeners} </dev/null >/dev/null 2>&1 &
ip -n {pod} -o addr show dev eth0 scope global"
    )
}

/// The address behind the word `family`, without its prefix length.
fn address_of(family: &str, shown: &str) -> String {
    let mut words = shown.split_whitespace().skip_while(|word| *word != family).skip(1);
    words.next().and_then(|word| word.split('/').next()).unwrap_or_default().to_owned()
}

fn backend(number: u8) -> [String; 2] {
    [format!("10.87.2.21{number}"), format!("fd00:87:2::21{number}")]
}

/// What `lab-peer` listens on: the VIPs themselves.
fn listeners(mode: Mode) -> String {
    let mut words = String::new();
    for question in mode.questions() {
        let _ = write!(words, " '{}:{}'", question.transport, question.target);
    }
    words
}

/// The Service of that mode, without pods of its own.
pub fn service(mode: Mode) -> Asking {
    mode.on(Asking::echo(&mode.service())).spec("selector", json!(null))
}

/// A Service in that mode whose endpoints are written by hand, each of both families.
fn serve(lab: &Lab, mode: Mode, service: Asking, backends: &[[String; 2]]) -> Result<()> {
    let name = mode.service();
    service.apply(lab)?;
    for (place, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoints: Vec<_> = backends.iter().map(|both| json!({"addresses": [both[place]]})).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "name": format!("{name}-{}", kind.to_lowercase()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "endpoints": endpoints,
            "ports": [{"name": "tcp", "port": ECHO, "protocol": "TCP"}, {"name": "udp", "port": ECHO, "protocol": "UDP"}],
        });
        lab.kubectl_with(&["apply", "-f", "-"], &slice.to_string())?;
    }
    answered_by(lab, mode, backends.len())
}

/// A pod on that node which carries no VIP.
fn asker_on(lab: &Lab, node: &str) -> Result<String> {
    let name = format!("asker-{node}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "asker"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}]},
    });
    lab.kubectl_with(&["apply", "-f", "-"], &pod.to_string())?;
    let runs = lab.wait_for(&format!("{name} to run"), SOON, || {
        lab.node(node).must("lab-pod list").ok()?.contains(&name).then_some(())
    });
    explained(lab, runs)?;
    Ok(name)
}

/// Clients, processes and pods are answered by all backends, which see who asks, and answer past the holder.
fn check(lab: &Lab, mode: Mode, backends: usize, answering: &[&str]) -> Result<()> {
    let holder = lab.wait_for_holder()?;
    let other = lab.other_than(holder);
    let (near, far) = (asker_on(lab, holder)?, asker_on(lab, other)?);
    // Who is on the holder is answered by chance: packets from an address of the host's own are taken for forged.
    let askers = [
        (Asker::Client, true),
        (Asker::Outside, true),
        (Asker::Node(other), true),
        (Asker::Pod(other, &far), true),
        (Asker::Node(holder), false),
        (Asker::Pod(holder, &near), false),
    ];
    for question in mode.questions() {
        for (asker, answered) in askers {
            // One is enough to wait for in vain.
            let question = question.connections(if answered { CONNECTIONS } else { 1 });
            let trace = lab.trace(&format!("host {} and port {ECHO}", question.target.ip()))?;
            let report = lab.ask(asker, &question, 1)?;
            let packets = trace.stop()?;
            let answers = packets.only(|packet| packet.leaving && packet.source.ip() == question.target.ip());
            let what = format!("{} {} from {asker:?}", mode.name, question.arguments());
            println!("{what}: {report}; saw {:?}, answers sent by {:?}", report.sources(), answers.sent());
            let all = report.failures().is_empty()
                && report.pods().len() == backends
                && kept_source(&report, asker, question.target.is_ipv4());
            ensure!(all || !answered, "{what}: {report}\n{}", diagnosis(lab));
            // What is not answered are questions from the VIP to itself.
            let past_holder = !answered || answers.sent().keys().all(|node| answering.contains(node));
            ensure!(past_holder, "{what}: not only {answering:?} sent answers: {packets}");
        }
    }
    Ok(())
}
