//! What the daemon says of itself: from its state to the document of the status socket and to systemd's line.
//!
//! Pure: ages come from the `now` that is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pass::Outcome;
use crate::derive::{DEFAULT_GROUP, Desired, GroupView};
use crate::health::check::Down;
use crate::model::{self, Finding, Vrid};
use crate::report::status::{Cluster, FailingCheck, Frontend, Group, Repairs, SCHEMA, Status, Vip};
use crate::report::words::{age, count};
use crate::snapshot::Snapshot;

/// When each VIP came to this host, or was found not to be here.
#[derive(Debug, Clone, Default)]
pub struct Since(BTreeMap<IpAddr, (bool, Instant)>);

impl Since {
    /// Takes note of which of the wanted VIPs are here; gives those that came and those that went.
    pub fn note(
        &mut self,
        vips: impl Iterator<Item = IpAddr>,
        here: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Moves {
        let mut moves = Moves::default();
        let mut after = BTreeMap::new();
        for vip in vips {
            let is_here = here.contains(&vip);
            let before = self.0.get(&vip).copied();
            if is_here && before.is_none_or(|(was_here, _)| !was_here) {
                moves.came.push(vip);
            } else if !is_here && before.is_some_and(|(was_here, _)| was_here) {
                moves.went.push(vip);
            }
            let entry = before.filter(|(was_here, _)| *was_here == is_here).unwrap_or((is_here, now));
            after.insert(vip, entry);
        }
        self.0 = after;
        moves
    }

    fn seconds(&self, vip: IpAddr, now: Instant) -> u64 {
        self.0.get(&vip).map_or(0, |(_, since)| now.duration_since(*since).as_secs())
    }
}

/// VIPs that moved.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// To this host.
    pub came: Vec<IpAddr>,
    /// From this host.
    pub went: Vec<IpAddr>,
}

/// Everything that the status tells, as cheap to take as nothing is copied; the document is made of it when it is asked for.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The host's name.
    pub hostname: String,
    /// How the last pass ended; `None` before the first.
    pub outcome: Option<Outcome>,
    /// The state that is served.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The VIPs on this host.
    pub here: Arc<BTreeSet<IpAddr>>,
    /// Since when VIPs are where they are.
    pub since: Arc<Since>,
    /// Virtual servers and real servers that are programmed.
    pub counts: (usize, usize),
    /// Nodes that do not answer.
    pub dead: BTreeSet<String>,
    /// Endpoints that do not answer their health checks.
    pub unhealthy: Down,
    /// All findings, the host's among them.
    pub findings: Arc<Vec<Finding>>,
    /// The cluster's side.
    pub cluster: Cluster,
    /// When the API server last confirmed that the state is current.
    pub contact: Option<Instant>,
    /// keepalived in a few words.
    pub keepalived: String,
    /// Reloads of keepalived.
    pub keepalived_reloads: u64,
    /// HAProxy in a few words.
    pub haproxy: String,
    /// The drain mark is there.
    pub drained: bool,
    /// What the weight files say, by group.
    pub weights: BTreeMap<Vrid, i16>,
    /// Passes after which planning again was not empty.
    pub faults: u64,
    /// How often what other hands did was put right.
    pub repairs: Repairs,
}

impl View {
    /// The document, with ages as of `now`.
    pub fn document(&self, now: Instant) -> Status {
        let nothing = Desired::default();
        let desired = self.outcome.as_ref().map_or(&nothing, |outcome| &outcome.desired);
        let nodes = self.snapshot.iter().flat_map(|snapshot| &snapshot.nodes);
        let (virtual_servers, real_servers) = self.counts;
        let default = desired.groups.get(DEFAULT_GROUP);
        Status {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            node: desired.node.clone().unwrap_or_else(|| self.hostname.clone()),
            summary: self.summary(now),
            keepalived: self.keepalived.clone(),
            haproxy: self.haproxy.clone(),
            drained: self.drained,
            weight: default.and_then(|group| self.weights.get(&group.vrid)).copied(),
            members: default.map(|group| group.members.clone()).unwrap_or_default(),
            groups: self.groups(desired),
            node_addresses: nodes
                .flat_map(|(name, node)| node.addresses.iter().map(|address| (*address, name.clone())))
                .collect(),
            vips: vips(desired, &self.here, &self.since, now),
            virtual_servers,
            hash_tables: hash_tables(desired),
            real_servers,
            as_planned: self.outcome.as_ref().is_some_and(|outcome| outcome.as_planned),
            faults: self.faults,
            repairs: self.repairs,
            keepalived_reloads: self.keepalived_reloads,
            dead_nodes: self.dead.iter().cloned().collect(),
            failing_checks: self
                .unhealthy
                .iter()
                .map(|(target, found)| FailingCheck {
                    address: target.address,
                    kind: target.check.kind.to_string(),
                    found: found.to_string(),
                })
                .collect(),
            findings: self.findings.to_vec(),
            cluster: Cluster { contact_seconds_ago: self.contact_seconds(now), ..self.cluster.clone() },
        }
    }

    fn groups(&self, desired: &Desired) -> Vec<Group> {
        let group = |(name, group): (&String, &GroupView)| Group {
            name: name.clone(),
            vrid: group.vrid.get(),
            weight: self.weights.get(&group.vrid).copied(),
            members: group.members.clone(),
            vips: group.vips.len(),
        };
        desired.groups.iter().map(group).collect()
    }

    fn contact_seconds(&self, now: Instant) -> Option<u64> {
        self.contact.map(|last| now.saturating_duration_since(last).as_secs())
    }

    /// One line in plain words, as `systemctl status kvip` shows it.
    pub fn summary(&self, now: Instant) -> String {
        let Some(outcome) = &self.outcome else {
            let waiting = "waiting for the API server's first complete answer";
            let why = self.cluster.problem.as_deref().unwrap_or(waiting);
            return format!("degraded: {why}; nothing is known of the cluster yet");
        };
        let desired = &outcome.desired;
        let held = self.here.iter().filter(|vip| desired.vips.contains_key(*vip)).count();
        let services = count(desired.owners, "Service");
        let mut text = format!("holds {held} of {}; {services}", count(desired.vips.len(), "VIP"));
        if let Some(problem) = outcome.problems.first() {
            return format!("degraded: {problem}; {text}");
        }
        if let Some(problem) = &self.cluster.problem {
            let since = self.contact_seconds(now);
            let since = since.map(|seconds| format!(" for {}", age(Duration::from_secs(seconds))));
            let since = since.unwrap_or_default();
            return format!("degraded: {problem}{since}, serving the last known state; {text}");
        }
        text.push_str(if self.cluster.held.is_some() {
            "; a new state waits for `kvip accept`"
        } else {
            "; in sync"
        });
        if self.drained {
            text.push_str("; drained");
        }
        match self.findings.len() {
            0 => text,
            findings => format!("{text}; {}", count(findings, "finding")),
        }
    }
}

fn hash_tables(desired: &Desired) -> usize {
    let balanced = desired.frontends.values().flat_map(|served| &served.virtual_servers);
    balanced.filter(|balanced| balanced.service.goes_by_order()).count()
}

fn vips(desired: &Desired, here: &BTreeSet<IpAddr>, since: &Since, now: Instant) -> Vec<Vip> {
    let frontends = |vip: IpAddr| {
        let from = model::Frontend::before(vip);
        let of_vip = desired.frontends.range(from..).take_while(move |(frontend, _)| frontend.vip == vip);
        of_vip.map(|(frontend, served)| Frontend {
            service: served.owner.to_string(),
            protocol: frontend.protocol,
            port: frontend.port,
            mode: served.mode.name().into(),
            ready: served.active(),
            total: served.total,
        })
    };
    let all = desired.vips.iter().map(|(vip, kind)| Vip {
        vip: *vip,
        floats_only: kind.floats_only,
        group: desired.group_of(*vip).map(|(name, _)| name.to_owned()).unwrap_or_default(),
        here: here.contains(vip),
        holder: None,
        seconds: since.seconds(*vip, now),
        frontends: frontends(*vip).collect(),
    });
    all.collect()
}

/// `10.87.2.50, 10.87.2.52 and 1 more`.
pub fn list(vips: &[IpAddr]) -> String {
    let shown: Vec<String> = vips.iter().take(2).map(ToString::to_string).collect();
    match vips.len() {
        0..=2 => shown.join(" and "),
        count => format!("{} and {} more", shown.join(", "), count - 2),
    }
}
