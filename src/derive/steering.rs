//! What mode dsr needs of nftables and routing on this node: which packets go to which of its virtual servers, and that
//! packets to a VIP come to IPVS although the VIP is on another node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Assignment, Inputs};
use crate::config::Settings;
use crate::model::Family;
use crate::net::{PolicyKind, PolicyRoute};
use crate::nft::Steering;

/// What nftables must do for the frontends of mode dsr.
pub fn of(assignment: &Assignment, peers: &BTreeSet<IpAddr>, inputs: &Inputs) -> Steering {
    let own = inputs.facts.addresses.iter();
    let own = own.filter(|address| !address.marked_as_vip() && !address.ip.is_loopback());
    Steering {
        bits: inputs.settings.dsr.mark_bits,
        frontends: assignment.tasks.values().flat_map(|task| task.marks()).collect(),
        peers: peers.iter().filter_map(|address| inputs.reach.macs.get(address)).copied().collect(),
        nodes: peers.clone(),
        tunnels: inputs.facts.tunnels(),
        host: own.map(|address| address.ip).collect(),
    }
}

/// The rules and routes by which steered packets come into this host's own stack.
pub fn policy_routes(steering: &Steering, settings: &Settings) -> BTreeSet<PolicyRoute> {
    let families: BTreeSet<Family> =
        steering.frontends.keys().map(|frontend| Family::of(frontend.vip)).collect();
    let table = settings.dsr.route_table;
    let rule =
        PolicyKind::Rule { mark: settings.dsr.mark_bits.steer(), priority: settings.dsr.rule_priority };
    let both = |family| [rule, PolicyKind::LocalRoute].map(|kind| PolicyRoute { family, table, kind });
    families.into_iter().flat_map(both).collect()
}
