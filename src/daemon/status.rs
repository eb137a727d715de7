//! What the daemon says of itself: from its state to the document of the status socket and to systemd's line.
//!
//! Pure: ages come from the `now` that is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use super::core::Core;
use super::pass::Outcome;
use crate::config::Mode;
use crate::derive::Desired;
use crate::model::Finding;
use crate::report::status::{Cluster, Frontend, SCHEMA, Status, Vip};
use crate::report::words::{age, count};

/// When each VIP came to this host, or was found not to be here.
#[derive(Debug, Default)]
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

/// Everything beside the core that the status tells.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The last pass; `None` before the first.
    pub outcome: Option<&'a Outcome>,
    /// All findings, the host's among them.
    pub findings: Vec<Finding>,
    /// The cluster's side.
    pub cluster: Cluster,
    /// keepalived in a few words.
    pub keepalived: String,
    /// Reloads of keepalived.
    pub keepalived_reloads: u64,
    /// The drain mark is there.
    pub drained: bool,
    /// The weight file's value.
    pub weight: Option<i16>,
    /// Passes after which planning again was not empty.
    pub faults: u64,
    /// Since when VIPs are where they are.
    pub since: &'a Since,
}

/// Makes the document.
pub fn status(core: &Core, facts: Facts, now: Instant) -> Status {
    let nothing = Desired::default();
    let desired = facts.outcome.map_or(&nothing, |outcome| &outcome.desired);
    let here = core.vips_here();
    let node = desired.node.clone().unwrap_or_else(|| core.facts.hostname.clone());
    let snapshot = core.snapshot.as_deref();
    let nodes = snapshot.iter().flat_map(|snapshot| &snapshot.nodes);
    let table = core.table.iter().flatten();
    Status {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        node,
        summary: summary(&facts, desired, &here),
        keepalived: facts.keepalived,
        drained: facts.drained,
        weight: facts.weight,
        members: desired.members.clone(),
        node_addresses: nodes
            .flat_map(|(name, node)| node.addresses.iter().map(|address| (*address, name.clone())))
            .collect(),
        vips: vips(desired, &here, facts.since, now),
        virtual_servers: table.clone().count(),
        real_servers: table.map(|(_, server)| server.real_servers.len()).sum(),
        as_planned: facts.outcome.is_some_and(|outcome| outcome.as_planned),
        faults: facts.faults,
        keepalived_reloads: facts.keepalived_reloads,
        dead_nodes: core.dead.iter().cloned().collect(),
        findings: facts.findings,
        cluster: facts.cluster,
    }
}

/// One line in plain words, as `systemctl status kvip` shows it.
fn summary(facts: &Facts, desired: &Desired, here: &BTreeSet<IpAddr>) -> String {
    let Some(outcome) = facts.outcome else {
        let why =
            facts.cluster.problem.as_deref().unwrap_or("waiting for the API server's first complete answer");
        return format!("degraded: {why}; nothing is known of the cluster yet");
    };
    let held = desired.vips.keys().filter(|vip| here.contains(vip)).count();
    let services: BTreeSet<_> = desired.frontends.values().map(|served| &served.service).collect();
    let services = count(services.len(), "Service");
    let mut text = format!("holds {held} of {}; {services}", count(desired.vips.len(), "VIP"));
    if let Some(problem) = outcome.problems.first() {
        return format!("degraded: {problem}; {text}");
    }
    if let Some(problem) = &facts.cluster.problem {
        let since = facts
            .cluster
            .contact_seconds_ago
            .map_or(String::new(), |s| format!(" for {}", age(std::time::Duration::from_secs(s))));
        return format!("degraded: {problem}{since}, serving the last known state; {text}");
    }
    text.push_str(if facts.cluster.held.is_some() {
        "; a new state waits for `kvip accept`"
    } else {
        "; in sync"
    });
    if facts.drained {
        text.push_str("; drained");
    }
    match facts.findings.len() {
        0 => text,
        findings => format!("{text}; {}", count(findings, "finding")),
    }
}

fn vips(desired: &Desired, here: &BTreeSet<IpAddr>, since: &Since, now: Instant) -> Vec<Vip> {
    let frontends = |vip: IpAddr| {
        let of_vip = desired.frontends.iter().filter(move |(frontend, _)| frontend.vip == vip);
        of_vip.map(|(frontend, served)| Frontend {
            service: served.service.to_string(),
            protocol: frontend.protocol,
            port: frontend.port,
            mode: match served.mode {
                Mode::Nat => "nat".into(),
            },
            ready: served.active(),
            total: served.total,
        })
    };
    let all = desired.vips.keys().map(|vip| Vip {
        vip: *vip,
        here: here.contains(vip),
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
