//! What this host should do: a pure function of snapshot, settings, host facts and dead nodes.
//!
//! Owns every decision about what is served; never asks the kernel, the disk or the clock. What cannot be served becomes
//! a finding and stands in nobody's way.

mod endpoints;
mod grammar;
mod groups;
mod policy;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Mode, Settings};
use crate::keepalived;
use crate::model::{Backend, Finding, Frontend, ObjectKey, host_network};
use crate::net::HostFacts;
use crate::nft;
use crate::snapshot::Snapshot;

pub use groups::MOST_VIPS;
pub use sources::vips_asked_for;

/// Everything that a derivation looks at.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What the admin says.
    pub settings: &'a Settings,
    /// What the cluster says.
    pub snapshot: &'a Snapshot,
    /// What the host is.
    pub facts: &'a HostFacts,
    /// Nodes that do not answer.
    pub dead: &'a BTreeSet<String>,
    /// Addresses of nodes that ceased to be members a moment ago and are still spoken to.
    pub leaving: &'a BTreeSet<IpAddr>,
}

/// What this host should do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// This node's name, when it is known.
    pub node: Option<String>,
    /// The VRRP group's members with their base priorities.
    pub members: BTreeMap<String, u8>,
    /// VIPs to hold, with what they are for.
    pub vips: BTreeMap<IpAddr, Vip>,
    /// Frontends to balance.
    pub frontends: BTreeMap<Frontend, Served>,
    /// Addresses of pods on this node.
    pub local_pods: BTreeSet<IpNet>,
    /// What keepalived must run.
    pub keepalived: keepalived::Config,
    /// Nodes whose life decides over backends, with their addresses: all that run backends, but this one.
    pub probed: BTreeMap<String, Vec<IpAddr>>,
    /// What is not served, or not as asked, and why.
    pub findings: Vec<Finding>,
}

/// A VIP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vip {
    /// Nothing was asked to be balanced on it: it floats, and its ports are the host's.
    pub floats_only: bool,
}

/// A frontend with what serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The Service behind it.
    pub service: ObjectKey,
    /// The forwarding mode.
    pub mode: Mode,
    /// The virtual server's properties.
    pub virtual_server: crate::ipvs::model::Service,
    /// Real servers by where they listen.
    pub servers: BTreeMap<Backend, WantedServer>,
    /// Endpoints in whatever state.
    pub total: usize,
}

/// What is wanted of a real server. The order is that of precedence, where two slices list one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WantedServer {
    /// Keeps the connections that it has and gets no more.
    Draining,
    /// Gets connections.
    Active,
}

impl Served {
    /// How many real servers get connections.
    pub fn active(&self) -> usize {
        self.servers.values().filter(|wanted| **wanted == WantedServer::Active).count()
    }
}

impl Desired {
    /// What the nftables table must do.
    pub fn ruleset(&self) -> nft::Ruleset {
        nft::Ruleset {
            frontends: self.frontends.keys().copied().collect(),
            closed: self.vips.iter().filter(|(_, vip)| !vip.floats_only).map(|(vip, _)| *vip).collect(),
            local_pods: self.local_pods.clone(),
        }
    }
}

/// Derives what this host should do.
pub fn derive(inputs: &Inputs) -> Desired {
    let mut findings = Vec::new();
    let node = own_node(inputs, &mut findings);
    let asked = sources::asked(inputs, &mut findings);
    let group = groups::group(inputs, node.as_deref(), &asked.keys().copied().collect(), &mut findings);
    let served = sources::serve(inputs, &asked, &group.vips, &mut findings);
    let vips = asked
        .iter()
        .filter(|(vip, _)| group.vips.contains(vip))
        .map(|(vip, asked)| (*vip, Vip { floats_only: asked.floats_only }))
        .collect();
    findings.sort();
    findings.dedup();
    Desired {
        local_pods: local_pods(inputs, node.as_deref()),
        probed: probed(inputs, node.as_deref(), served.nodes),
        members: group.members,
        keepalived: group.keepalived,
        frontends: served.frontends,
        node,
        vips,
        findings,
    }
}

/// The Node that this host is: the configured one, or the one with an InternalIP that is local.
fn own_node(inputs: &Inputs, findings: &mut Vec<Finding>) -> Option<String> {
    let nodes = &inputs.snapshot.nodes;
    let mend = "set node.name in /etc/kvip/config.toml to this host's name in `kubectl get nodes -o wide`";
    if let Some(name) = &inputs.settings.node.name {
        if !nodes.contains_key(name) {
            findings.push(Finding::new("node.name", format!("the cluster has no Node {name}")).mend(mend));
        }
        return nodes.contains_key(name).then(|| name.clone());
    }
    let local = |ip: &IpAddr| inputs.facts.addresses.iter().any(|a| a.ip == *ip && !a.marked_as_vip());
    let found = nodes.iter().find(|(_, node)| node.addresses.iter().any(local));
    if found.is_none() {
        let text = format!(
            "it holds no VIPs: none of its addresses is an InternalIP of the cluster's {} Nodes",
            nodes.len()
        );
        findings.push(Finding::new(format!("host {}", inputs.facts.hostname), text).mend(mend));
    }
    found.map(|(name, _)| name.clone())
}

/// Where replies come back by themselves: this node's pod ranges, and endpoints on this node outside of them.
fn local_pods(inputs: &Inputs, own: Option<&str>) -> BTreeSet<IpNet> {
    let Some(node) = own.and_then(|name| inputs.snapshot.nodes.get(name)) else { return BTreeSet::new() };
    let mut pods: BTreeSet<IpNet> = node.pod_cidrs.iter().copied().collect();
    let endpoints = inputs.snapshot.slices.values().flat_map(|slice| &slice.endpoints);
    let here = endpoints.filter(|endpoint| endpoint.node.as_deref() == own).map(|endpoint| endpoint.address);
    let outside = here.filter(|address| !node.pod_cidrs.iter().any(|range| range.contains(address)));
    pods.extend(outside.map(host_network));
    pods
}

/// The nodes to watch for signs of life.
fn probed(
    inputs: &Inputs,
    own: Option<&str>,
    with_backends: BTreeSet<String>,
) -> BTreeMap<String, Vec<IpAddr>> {
    let others = with_backends.into_iter().filter(|name| Some(name.as_str()) != own);
    others
        .filter_map(|name| inputs.snapshot.nodes.get(&name).map(|node| (name, node.addresses.clone())))
        .collect()
}
