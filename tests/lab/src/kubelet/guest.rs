//! The node's machine, as the kubelet stand-in uses it: its script `lab-pod`, over the shared ssh connection.
//!
//! Owns the scripts and how long each may take. Never decides what is to run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::Instant;

use super::decide::Ports;
use crate::layout::{Layout, NodeSpec};
use crate::peer::{install, serve};
use crate::ssh;

/// A look at the machine; one that takes longer counts as no answer.
const LOOK: Duration = Duration::from_secs(8);
/// Making a pod, while a slow guest makes others.
const WORK: Duration = Duration::from_secs(60);

/// What the last look at the machine found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// When the machine was asked; what was done to it later is not in here. None before the first look.
    pub asked: Option<Instant>,
    /// Whether it answered.
    pub answers: bool,
    /// The pods in it by their names there, as of its last answer.
    pub pods: BTreeMap<String, Ipv4Addr>,
}

/// The way into one machine.
#[derive(Debug, Clone)]
pub struct Guest {
    layout: Layout,
    node: &'static str,
}

impl Guest {
    /// The machine of that node.
    pub fn new(layout: &Layout, spec: &'static NodeSpec) -> Self {
        Self { layout: layout.clone(), node: spec.name }
    }

    /// The pods that run, and their IPv4 addresses.
    pub async fn list(&self) -> anyhow::Result<BTreeMap<String, Ipv4Addr>> {
        Ok(parse(&self.run("lab-pod list", LOOK).await?))
    }

    /// Makes a pod; one that is there stays. What a failure leaves behind is removed, or the next try would
    /// stumble over it.
    pub async fn add(&self, name: &str, addresses: (&str, &str), ports: &Ports) -> anyhow::Result<()> {
        let (v4, v6) = addresses;
        let tcp: Vec<String> = ports.tcp.iter().map(u16::to_string).collect();
        let listeners = listeners(addresses, ports);
        let mut peer = "true".to_owned();
        if !listeners.is_empty() {
            self.install_peer().await?;
            peer = start_peer(self.node, name, &listeners);
        }
        let script = format!(
            "{{ lab-pod add {name} {v4} {v6} {} && {peer}; }} || \
             {{ lab-pod del {name} 0; ip netns del {name} 2>/dev/null; exit 1; }}",
            tcp.join(" ")
        );
        self.run(&script, WORK).await.map(drop)
    }

    async fn install_peer(&self) -> anyhow::Result<()> {
        if self.run(install::CHECK, LOOK).await.is_ok() {
            return Ok(());
        }
        let bytes = install::bytes(&self.layout)?;
        self.run_with(install::INSTALL, WORK, &bytes).await.context("cannot install lab-peer").map(drop)
    }

    /// Ends a pod within its grace; one that is gone already is fine.
    pub async fn remove(&self, name: &str, grace: Duration) -> anyhow::Result<()> {
        let seconds = grace.as_secs();
        self.run(&format!("lab-pod del {name} {seconds}"), WORK + grace).await.map(drop)
    }

    async fn run(&self, script: &str, limit: Duration) -> anyhow::Result<String> {
        self.run_with(script, limit, b"").await
    }

    async fn run_with(&self, script: &str, limit: Duration, input: &[u8]) -> anyhow::Result<String> {
        // Errors come with the output: the connection that the first ssh leaves behind keeps our stderr open, so
        // that reading it from a pipe would not end.
        let argv = ssh::argv(&self.layout, self.node, &format!("exec 2>&1; {script}"));
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let output = tokio::time::timeout(limit, feed(command, input))
            .await
            .with_context(|| format!("no answer within {limit:?} to: {script}"))?
            .context("cannot run ssh")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{}: {script}: {}", output.status, said.trim());
        }
        Ok(said)
    }
}

/// Runs it to its end with that input; one that ends before it has read all is judged by its status.
async fn feed(mut command: Command, input: &[u8]) -> std::io::Result<Output> {
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    match stdin.write_all(input).await {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
        _ => drop(stdin),
    }
    child.wait_with_output().await
}

/// What `lab-peer` listens on in a pod with these addresses and ports.
fn listeners((v4, v6): (&str, &str), ports: &Ports) -> Vec<String> {
    let of = |transport: &'static str, ports: &BTreeSet<u16>| {
        let both = |port: &u16| [format!("{transport}:{v4}:{port}"), format!("{transport}:[{v6}]:{port}")];
        ports.iter().flat_map(both).collect::<Vec<_>>()
    };
    [of("tcp", &ports.echo), of("udp", &ports.udp), of("sctp", &ports.sctp)].concat()
}

/// A script that starts `lab-peer` in a pod and succeeds when it listens. It ends with the pod: `lab-pod del` kills what
/// is in the namespace, and removes the log.
fn start_peer(node: &str, name: &str, listeners: &[String]) -> String {
    let log = format!("/run/lab-pod/{name}.log");
    let (program, ready, listeners) = (install::PROGRAM, serve::READY, listeners.join(" "));
    format!(
        "{{ ip netns exec {name} {program} serve {node} {name} {listeners} </dev/null >>{log} 2>&1 & }} && \
         {{ for _ in $(seq 50); do grep -q '{ready}' {log} && exit 0; sleep 0.2; done; cat {log}; false; }}"
    )
}

/// Lines of a name and an address, as `lab-pod list` writes them.
fn parse(text: &str) -> BTreeMap<String, Ipv4Addr> {
    let pod = |line: &str| {
        let (name, address) = line.split_once(' ')?;
        Some((name.to_owned(), address.trim().parse().ok()?))
    };
    text.lines().filter_map(pod).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_listen_on_the_ports_that_are_not_nginx_s() {
        let ports = Ports { tcp: [80].into(), echo: [7].into(), udp: [53].into(), sctp: [3868].into() };
        let found = listeners(("10.2.4.10", "fd00:2:4::10"), &ports);
        let both = |transport: &str, port: &str| {
            ["10.2.4.10", "[fd00:2:4::10]"].map(|address| format!("{transport}:{address}:{port}"))
        };
        assert_eq!(found, [both("tcp", "7"), both("udp", "53"), both("sctp", "3868")].concat());
    }

    #[test]
    fn a_list_is_names_and_addresses() {
        let found = parse("web-1 10.2.4.10\nkube-system_dns 10.2.4.11\nip: complaint about something\n");
        let names: Vec<_> = found.iter().map(|(name, address)| format!("{name}={address}")).collect();
        assert_eq!(names, ["kube-system_dns=10.2.4.11", "web-1=10.2.4.10"]);
    }
}
