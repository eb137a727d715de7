//! Asking from anywhere in the lab: the client, a node, a pod.

use std::time::Duration;

use anyhow::ensure;

use super::ask::Question;
use super::install;
use crate::lab::{Lab, Node, namespace_argv};
use crate::layout::{CLIENT, OUTSIDE};
use crate::namespace::beside;
use crate::probe::{Probe, Report};
use crate::ssh;

/// Sending the program to a guest that has other things to do.
const INSTALL_LIMIT: Duration = Duration::from_secs(60);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker<'a> {
    /// The client, which is no node. It has the kernel of the lab's host, so perhaps no SCTP.
    Client,
    /// A client behind a router with a narrow link, otherwise as [`Self::Client`].
    Outside,
    /// A process on that node.
    Node(&'a str),
    /// A process in the pod, by its node and its name there.
    Pod(&'a str, &'a str),
}

impl Lab {
    /// Starts to ask; `stop` ends it. Times are those of the asker's clock, which on nodes is not the host's.
    pub fn asking(&self, asker: Asker, question: &Question) -> anyhow::Result<Probe> {
        let words = question.arguments();
        let on = |node: &str, before: &str| {
            self.node(node).install_peer()?;
            Ok::<_, anyhow::Error>(ssh::argv(
                self.layout(),
                node,
                &format!("{before}{} {words}", install::PROGRAM),
            ))
        };
        let here = |namespace: &str| {
            let program = beside("lab-peer")?.to_string_lossy().into_owned();
            let words = [&[&*program], &words.split(' ').collect::<Vec<_>>()[..]].concat();
            Ok::<_, anyhow::Error>(namespace_argv(namespace, &words))
        };
        let argv = match asker {
            Asker::Client => here(CLIENT)?,
            Asker::Outside => here(OUTSIDE)?,
            Asker::Node(node) => on(node, "")?,
            Asker::Pod(node, pod) => on(node, &format!("ip netns exec {pod} "))?,
        };
        Probe::start(self.enter(&argv))
    }

    /// Asks `count` times, on each connection that is held, and reports.
    pub fn ask(&self, asker: Asker, question: &Question, count: u64) -> anyhow::Result<Report> {
        let ask = || self.asking(asker, &question.count(count))?.stop();
        let mut report = ask()?;
        // ssh lost its connection: the next one is a new one.
        if report.asked() == 0 {
            report = ask()?;
        }
        let wanted = count * u64::from(question.connections.unwrap_or(1));
        let found = u64::try_from(report.asked())?;
        ensure!(
            found == wanted,
            "{asker:?} asked {found} times, not {wanted}: {}\n{report}",
            question.arguments()
        );
        Ok(report)
    }
}

impl Node<'_> {
    /// Puts `lab-peer` on the node, unless it is there.
    pub fn install_peer(&self) -> anyhow::Result<()> {
        if self.run(install::CHECK)?.ok() {
            return Ok(());
        }
        let bytes = install::bytes(self.lab().layout())?;
        let output = self.run_within(INSTALL_LIMIT, install::INSTALL, &bytes)?;
        ensure!(output.ok(), "{}: {output}", self.spec().name);
        Ok(())
    }
}
