//! The node's machine, as the kubelet stand-in uses it: its script `lab-pod`, over the shared ssh connection.
//!
//! Owns the scripts and how long each may take. Never decides what is to run.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;
use tokio::time::Instant;

use crate::layout::{Layout, NodeSpec};
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
    pub async fn add(&self, name: &str, (v4, v6): (&str, &str), ports: &[u16]) -> anyhow::Result<()> {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let ports = ports.join(" ");
        let script = format!(
            "lab-pod add {name} {v4} {v6} {ports} || {{ lab-pod del {name} 0; ip netns del {name} 2>/dev/null; exit 1; }}"
        );
        self.run(&script, WORK).await.map(drop)
    }

    /// Ends a pod within its grace; one that is gone already is fine.
    pub async fn remove(&self, name: &str, grace: Duration) -> anyhow::Result<()> {
        let seconds = grace.as_secs();
        self.run(&format!("lab-pod del {name} {seconds}"), WORK + grace).await.map(drop)
    }

    async fn run(&self, script: &str, limit: Duration) -> anyhow::Result<String> {
        // Errors come with the output: the connection that the first ssh leaves behind keeps our stderr open, so
        // that reading it from a pipe would not end.
        let argv = ssh::argv(&self.layout, self.node, &format!("exec 2>&1; {script}"));
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).kill_on_drop(true);
        command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let output = tokio::time::timeout(limit, command.output())
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
    fn a_list_is_names_and_addresses() {
        let found = parse("web-1 10.2.4.10\nkube-system_dns 10.2.4.11\nip: complaint about something\n");
        let names: Vec<_> = found.iter().map(|(name, address)| format!("{name}={address}")).collect();
        assert_eq!(names, ["kube-system_dns=10.2.4.11", "web-1=10.2.4.10"]);
    }
}
