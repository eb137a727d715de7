//! The node's machine, as the kubelet stand-in uses it: its script `lab-pod`, over the shared ssh connection.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::layout::{Layout, NodeSpec};
use crate::ssh;

/// A look at the machine; one that takes longer counts as no answer.
const LOOK: Duration = Duration::from_secs(8);
/// Making a pod, while a slow guest makes others.
const WORK: Duration = Duration::from_secs(60);

/// The way into one machine.
#[derive(Debug, Clone)]
pub struct Guest {
    layout: Layout,
    node: &'static str,
}

impl Guest {
    /// The machine of that node.
    pub fn new(layout: &Layout, spec: &NodeSpec) -> Self {
        let node = crate::layout::node(spec.name).expect("a spec is one of the layout's").name;
        Self { layout: layout.clone(), node }
    }

    /// The names of the pods that run.
    pub async fn list(&self) -> anyhow::Result<BTreeSet<String>> {
        let text = self.run("lab-pod list", LOOK).await?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Makes a pod; one that is there stays.
    pub async fn add(&self, name: &str, v4: &str, v6: &str, ports: &[u16]) -> anyhow::Result<()> {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        self.run(&format!("lab-pod add {name} {v4} {v6} {}", ports.join(" ")), WORK).await.map(drop)
    }

    /// Ends a pod within its grace; one that is gone already is fine.
    pub async fn remove(&self, name: &str, grace: Duration) -> anyhow::Result<()> {
        self.run(&format!("lab-pod del {name} {}", grace.as_secs()), WORK + grace).await.map(drop)
    }

    async fn run(&self, script: &str, limit: Duration) -> anyhow::Result<String> {
        let argv = ssh::argv(&self.layout, self.node, script);
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(std::process::Stdio::null()).kill_on_drop(true);
        // The shared connection that the first ssh leaves behind must not keep our pipe open.
        command.stderr(std::process::Stdio::null());
        let output = tokio::time::timeout(limit, command.output())
            .await
            .with_context(|| format!("{script}: no answer within {limit:?}"))?
            .with_context(|| format!("{script}: cannot run ssh"))?;
        if !output.status.success() {
            bail!("{script}: {}", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
