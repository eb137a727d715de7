//! What a health check asks, of servers in pods: real nginx behind TLS and HTTP/2, and datagrams.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{
    Asking, ECHO, ECHO_PORTS, explain, must, wait_for_addresses, wait_for_answer, wait_until_gone,
};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::Report;
use kvip_lab::scenario::{SOON, echo_pods, finding};

use super::{asking, delete};

const HTTP: u16 = 8081;
const TLS: u16 = 8443;
const GRPC: u16 = 9090;

/// A second nginx in a pod. A health check of gRPC is a POST to what is no file, so that its answer is a page of errors made good; the
/// message says SERVING (1), or not (2).
const NGINX: &str = "pid RUN.pid; error_log RUN.log; worker_processes 1;
events { worker_connections 64; }
http {
    log_format asked '$remote_addr $status'; access_log off;
    client_body_temp_path RUN.tmp; proxy_temp_path RUN.tmp; fastcgi_temp_path RUN.tmp; uwsgi_temp_path RUN.tmp; scgi_temp_path RUN.tmp;
    server { listen HTTP; access_log RUN.asked asked; location / { return 200; } }
    server {
        listen TLS ssl; ssl_certificate /root/checks.pem; ssl_certificate_key /root/checks.pem;
        location = /health { return 200; }
    }
    server {
        listen GRPC http2; root RUN.grpc; default_type application/grpc; add_trailer grpc-status 0;
        location = /grpc.health.v1.Health/Check { error_page 404 =200 /health; }
    }
}
";
const SERVING: &str = r"\000\000\000\000\002\010\001";
const NOT_SERVING: &str = r"\000\000\000\000\002\010\002";

/// A pod of the tutorial, and its node.
struct Pod<'a> {
    node: Node<'a>,
    name: String,
}

impl Pod<'_> {
    fn run(&self) -> String {
        format!("/run/lab-pod/checks-{}", self.name)
    }

    /// What gRPC is answered.
    fn say(&self, message: &str) -> Result<()> {
        let run = self.run();
        let script = format!(
            "mkdir -p {run}.grpc; printf '{message}' >{run}.grpc/new; mv {run}.grpc/new {run}.grpc/health"
        );
        self.node.must(&script).map(drop)
    }

    fn start(&self, pem: &[u8]) -> Result<()> {
        let run = self.run();
        let mut conf = NGINX.replace("RUN", &run);
        for (word, port) in [("HTTP", HTTP), ("TLS", TLS), ("GRPC", GRPC)] {
            conf = conf.replace(&format!("listen {word}"), &format!("listen {port}"));
        }
        self.node.write("/root/checks.pem", pem)?;
        self.node.write(&format!("{run}.conf"), conf.as_bytes())?;
        self.say(SERVING)?;
        self.node.must(&format!("ip netns exec {} nginx -c {run}.conf", self.name)).map(drop)
    }

    /// Changes its configuration by a script of sed.
    fn change(&self, sed: &str) -> Result<()> {
        let run = self.run();
        let script =
            format!("sed -i '{sed}' {run}.conf && ip netns exec {} nginx -c {run}.conf -s reload", self.name);
        self.node.must(&script).map(drop)
    }

    fn stop(&self) -> Result<()> {
        let run = self.run();
        self.node.must(&format!("kill $(cat {run}.pid); rm -rf {run}.*")).map(drop)
    }
}

/// A certificate that nobody trusts, and its key.
fn certificate() -> Result<Vec<u8>> {
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=checks -days 2 -keyout - -out -";
    let output = Command::new("openssl").args(words.split(' ')).output().context("openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Waits until every node gives connections to so many servers of that virtual server.
fn wait_for_servers(lab: &Lab, server: &str, count: usize) -> Result<()> {
    let found = lab.wait_for(&format!("{count} servers of {server} on all nodes"), SOON, || {
        lab.nodes().all(|node| serving(&node, server).is_some_and(|found| found == count)).then_some(())
    });
    found.with_context(|| explain(lab, "kinds"))
}

fn serving(node: &Node<'_>, server: &str) -> Option<usize> {
    let table = node.ipvs().ok()?;
    let meant = format!("-a {server} ");
    Some(table.lines().filter(|line| line.starts_with(&meant) && !line.ends_with("-w 0")).count())
}

#[test]
fn servers_are_asked_over_tls_over_grpc_and_by_datagrams() -> Result<()> {
    let lab = asking()?;
    let pods = lab
        .nodes()
        .map(|node| Ok(Pod { name: node.pod("nginx-")?, node }))
        .collect::<Result<Vec<Pod<'_>>>>()?;
    let pem = certificate()?;
    pods.iter().try_for_each(|pod| pod.start(&pem))?;
    let service = |kind: &str, port: u16| {
        let service = Asking::new("kinds").load_balancer().annotation("kvip.io/check", kind);
        service.annotation("kvip.io/check-every", "1s").annotation("kvip.io/check-port", &port.to_string())
    };

    let https = service("https", TLS).annotation("kvip.io/check-path", "/health");
    https.annotation("kvip.io/check-status", "200").apply(&lab)?;
    let vip = wait_for_addresses(&lab, "kinds", 1)?.remove(0);
    wait_for_answer(&lab, &vip)?;
    let server = format!("-t {vip}:80");
    wait_for_servers(&lab, &server, 3)?;
    pods[0].change("s|location = /health { return 200|location = /health { return 503|")?;
    wait_for_servers(&lab, &server, 2)?;
    let told = finding(&lab, "node-a", "does not answer its https check");
    must(&lab, told.is_some_and(|text| text.contains("503")), "the page's status is in the finding")?;
    pods[0].change("s|location = /health { return 503|location = /health { return 200|")?;
    wait_for_servers(&lab, &server, 3)?;

    service("grpc", GRPC).apply(&lab)?;
    pods[1].say(NOT_SERVING)?;
    wait_for_servers(&lab, &server, 2)?;
    let told = finding(&lab, "node-a", "does not answer its grpc check");
    must(&lab, told.is_some_and(|text| text.contains("NOT_SERVING")), "what gRPC says is in the finding")?;
    pods[1].say(SERVING)?;
    wait_for_servers(&lab, &server, 3)?;

    falls_and_rises(&lab, &service("http", HTTP), &server, &pods[2])?;
    pods.iter().try_for_each(Pod::stop)?;
    delete(&lab, "kinds")?;
    wait_until_gone(&lab, &vip)?;
    datagrams(&lab)
}

/// The pod's own node counts what it asked: before so many failures in a row its pod stays in, and before so many answers out.
fn falls_and_rises(lab: &Lab, service: &Asking, server: &str, pod: &Pod<'_>) -> Result<()> {
    const FALL: u64 = 5;
    const RISE: u64 = 4;
    let service = service.clone().annotation("kvip.io/check-every", "4s");
    let service = service.annotation("kvip.io/check-fall", &FALL.to_string());
    service.annotation("kvip.io/check-rise", &RISE.to_string()).apply(lab)?;
    wait_for_servers(lab, server, 3)?;
    let node = &pod.node;
    let bridge = node.must("ip -4 -o addr show cni0 | awk '{ sub(\"/.*\", \"\", $4); print $4 }'")?;
    let count = |status: u32| -> Option<u64> {
        let script = format!("grep -c '^{} {status}$' {}.asked", bridge.trim(), pod.run());
        node.run(&script).ok()?.stdout.trim().parse().ok()
    };
    lab.wait_for("a check to be answered", SOON, || (count(200)? > 0).then_some(()))?;
    for (from, to, limit, servers) in [(200, 503, FALL, 2), (503, 200, RISE, 3)] {
        let before = count(to).context("the pod's log")?;
        pod.change(&format!("s|location / {{ return {from}|location / {{ return {to}|"))?;
        let mut kept_with = 0;
        let turned = lab.wait_for(&format!("{servers} servers of {server}"), SOON * 2, || {
            // In this order: what was counted had been asked when the table was looked at.
            let asked = count(to)? - before;
            if serving(node, server)? == servers {
                return Some(());
            }
            kept_with = asked;
            None
        });
        turned.with_context(|| explain(lab, "kinds"))?;
        let asked = count(to).context("the pod's log")? - before;
        println!("{to}: not yet after {kept_with}, but after {asked}; {limit} in a row are meant");
        must(lab, asked >= limit, &format!("{to}: {asked} were enough, and {limit} are meant"))?;
        must(lab, kept_with < limit + 1, &format!("{to}: {kept_with} were not enough"))?;
    }
    Ok(())
}

/// Nobody listens: ICMP says so. Or somebody does, and says another thing than what is expected.
fn datagrams(lab: &Lab) -> Result<()> {
    lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(ECHO_PORTS))?;
    let service = Asking::echo("datagrams").load_balancer().annotation("kvip.io/check", "udp");
    let service = service.annotation("kvip.io/check-every", "1s");
    service.apply(lab)?;
    let vip = wait_for_addresses(lab, "datagrams", 2)?.into_iter().find(|vip| !vip.contains(':'));
    let vip = vip.context("an IPv4 address")?;
    let [udp, tcp] = ["-u", "-t"].map(|transport| format!("{transport} {vip}:{ECHO}"));
    for server in [&udp, &tcp] {
        wait_for_servers(lab, server, 3)?;
    }
    let node = lab.node("node-b");
    let pod = node.pod("echo-")?;
    node.must(&format!(
        "ip netns exec {pod} nft 'table ip closed {{ chain input {{ type filter hook input priority 0; udp dport {ECHO} reject; }}; }}'"
    ))?;
    wait_for_servers(lab, &udp, 2)?;
    wait_for_servers(lab, &tcp, 3)?;
    node.must(&format!("ip netns exec {pod} nft delete table ip closed"))?;
    wait_for_servers(lab, &udp, 3)?;
    let asks =
        service.annotation("kvip.io/check-send", "7").annotation("kvip.io/check-all-unhealthy", "refuse");
    asks.clone().annotation("kvip.io/check-expect", "no such words").apply(lab)?;
    wait_for_servers(lab, &udp, 0)?;
    asks.annotation("kvip.io/check-expect", "saw").apply(lab)?;
    wait_for_servers(lab, &udp, 3)?;
    delete(lab, "datagrams")?;
    wait_until_gone(lab, &vip)?;
    what_is_open(lab, &node, &pod)?;
    lab.kubectl(&["delete", "deployment", "echo", "--wait=false"]).map(drop)
}

/// A pod that takes no new connections keeps those that it has, unless the Service says that they are to end.
fn what_is_open(lab: &Lab, node: &Node<'_>, pod: &str) -> Result<()> {
    const CLOSED: &str = "nft 'table ip closed { chain input { type filter hook input priority 0; tcp flags & (syn | ack) == syn drop; }; }'";
    for (unhealthy, kept) in [("drain", true), ("remove", false)] {
        let service = Asking::echo("open").load_balancer().annotation("kvip.io/check", "tcp");
        let service =
            service.annotation("kvip.io/check-every", "1s").annotation("kvip.io/check-timeout", "1s");
        service.annotation("kvip.io/check-unhealthy", unhealthy).apply(lab)?;
        let vip = wait_for_addresses(lab, "open", 2)?.into_iter().find(|vip| !vip.contains(':'));
        let vip = vip.context("an IPv4 address")?;
        let server = format!("-t {vip}:{ECHO}");
        wait_for_servers(lab, &server, 3)?;
        let question = Question::new(Transport::Tcp, SocketAddr::new(vip.parse()?, ECHO));
        let probe = lab.asking(Asker::Client, &question.connections(9).every(Duration::from_millis(300)))?;
        let open = lab.wait_for("connections to all pods", SOON, || {
            let report = Report::new(probe.so_far());
            (report.connections().len() == 9 && report.pods().len() == 3).then_some(())
        });
        open.with_context(|| explain(lab, "open"))?;
        node.must(&format!("ip netns exec {pod} {CLOSED}"))?;
        wait_for_servers(lab, &server, 2)?;
        let listed = node.ipvs()?.lines().filter(|line| line.starts_with(&format!("-a {server} "))).count();
        must(lab, listed == if kept { 3 } else { 2 }, &format!("{unhealthy}: {listed} servers are listed"))?;
        let told = finding(lab, "node-a", "does not answer its tcp check");
        must(lab, told.is_some(), "a time-out is a finding")?;
        let settled = Report::new(probe.so_far()).asked() + 9 * 10;
        lab.wait_for("ten questions more on each", SOON, || (probe.so_far().len() > settled).then_some(()))?;
        let report = probe.stop()?;
        println!("{unhealthy}: {report}");
        for view in report.connections().values() {
            let ends = view.pods().contains_key(pod) && !kept;
            must(lab, view.end().is_some() == ends, &format!("{unhealthy}: to end: {ends}, and {view}"))?;
        }
        node.must(&format!("ip netns exec {pod} nft delete table ip closed"))?;
        delete(lab, "open")?;
        wait_until_gone(lab, &vip)?;
    }
    Ok(())
}
