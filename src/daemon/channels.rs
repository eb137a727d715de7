//! What the loop hears and what it tells: the ends of its channels, of which only the newest value counts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use tokio::sync::watch;

use super::status::View;
use super::writers::{Answers, Orders};
use crate::conntrack;
use crate::haproxy;
use crate::health::check;
use crate::health::node_ports::Local;
use crate::health::{Dead, Targets};
use crate::keepalived;
use crate::model::Finding;
use crate::net::HostFacts;
use crate::net::hops::{Hops, Ways};
use crate::net::peers::Macs;
use crate::nft::watch::Touched;
use crate::snapshot::admit::Update;
use crate::snapshot::kube::Contact;

/// What others tell the loop; only the newest value counts.
#[derive(Debug)]
pub struct Inputs {
    /// The cluster's state.
    pub updates: watch::Receiver<Option<Update>>,
    /// How the API server is reached.
    pub contact: watch::Receiver<Contact>,
    /// The host's network.
    pub facts: watch::Receiver<HostFacts>,
    /// Nodes that do not answer.
    pub dead: watch::Receiver<Dead>,
    /// Endpoints that do not answer their checks.
    pub unhealthy: watch::Receiver<check::Down>,
    /// The link-layer addresses of peers.
    pub macs: watch::Receiver<Macs>,
    /// How packets to pods of other nodes leave.
    pub hops: watch::Receiver<Hops>,
    /// What other hands do to the table `inet kvip`.
    pub ruleset: watch::Receiver<Touched>,
    /// What keepalived runs.
    pub keepalived: watch::Receiver<keepalived::Status>,
    /// What HAProxy serves.
    pub haproxy: watch::Receiver<haproxy::Status>,
    /// Why connection tracking may not follow the VIPs.
    pub conntrack: watch::Receiver<Option<Finding>>,
    /// What those tell who write to the cluster.
    pub answers: Answers,
}

impl Inputs {
    /// Waits until one of them has news.
    ///
    /// # Errors
    /// When a task that feeds the loop has ended: the daemon is to be restarted.
    pub async fn changed(&mut self) -> anyhow::Result<()> {
        let ended = |name: &'static str| move |_| anyhow::anyhow!("the {name} task has ended");
        tokio::select! {
            changed = self.updates.changed() => changed.map_err(ended("cluster")),
            changed = self.contact.changed() => changed.map_err(ended("cluster")),
            changed = self.facts.changed() => changed.map_err(ended("network")),
            changed = self.dead.changed() => changed.map_err(ended("health")),
            changed = self.unhealthy.changed() => changed.map_err(ended("checks")),
            changed = self.macs.changed() => changed.map_err(ended("peers")),
            changed = self.hops.changed() => changed.map_err(ended("hops")),
            changed = self.ruleset.changed() => changed.map_err(ended("nftables")),
            changed = self.keepalived.changed() => changed.map_err(ended("keepalived")),
            changed = self.haproxy.changed() => changed.map_err(ended("haproxy")),
            changed = self.conntrack.changed() => changed.map_err(ended("conntrack")),
            // Without a connection to write over they end, and there is nothing to hear.
            Ok(()) = self.answers.outcomes.changed() => Ok(()),
            Ok(()) = self.answers.said.changed() => Ok(()),
            Ok(()) = self.answers.heard.changed() => Ok(()),
        }
    }
}

/// What the loop tells others.
#[derive(Debug)]
pub struct Outputs {
    /// The configuration that keepalived is to run.
    pub keepalived: watch::Sender<Option<keepalived::Config>>,
    /// What HAProxy is to serve.
    pub haproxy: watch::Sender<Option<Arc<haproxy::Config>>>,
    /// The nodes to probe.
    pub targets: watch::Sender<Targets>,
    /// The addresses whose link-layer addresses matter.
    pub peers: watch::Sender<BTreeSet<IpAddr>>,
    /// The endpoints to check.
    pub checked: watch::Sender<check::Targets>,
    /// The pods of other nodes to look for the way to.
    pub ways: watch::Sender<Ways>,
    /// What connection tracking is to agree with, when a VIP has moved.
    pub moves: watch::Sender<Option<conntrack::Moves>>,
    /// What is to be told on healthCheckNodePorts, where kvip is to answer there.
    pub local: watch::Sender<Option<Local>>,
    /// What is to be written to the cluster.
    pub orders: Orders,
    /// The status document.
    pub status: watch::Sender<Arc<View>>,
}

/// Makes `last` a copy of `new`; true when it was none.
pub(super) fn follow<T: Ord + Clone>(last: &mut OrdMap<T, usize>, new: &OrdMap<T, usize>) -> bool {
    let others = !last.ptr_eq(new);
    if others {
        *last = new.clone();
    }
    others
}

/// Copies `new` over `last`; true when that is news.
pub(super) fn update_from<T: Clone + PartialEq>(last: &mut T, new: &T) -> bool {
    let news = last != new;
    if news {
        last.clone_from(new);
    }
    news
}

/// Puts `new` in place of `last`; true when that is news.
pub(super) fn replace<T: PartialEq>(last: &mut T, new: T) -> bool {
    let news = *last != new;
    *last = new;
    news
}
