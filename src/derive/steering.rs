//! What mode dsr needs of nftables and routing on this node: which packets go to which of its virtual servers, and that
//! packets to a VIP come to IPVS although the VIP is on another node. Mode nat needs a little of it, for this node's own.

use std::collections::BTreeSet;

use super::assign::own_addresses;
use super::{Assignment, Desired, Inputs};
use crate::config::Settings;
use crate::model::{Family, Frontend};
use crate::net::{PolicyKind, PolicyRoute, Wraps};
use crate::nft::Steering;

/// What nftables must do for the frontends of mode dsr, and for those of mode nat that are to be steered `inward`.
pub fn of(
    assignment: &Assignment,
    inward: BTreeSet<Frontend>,
    desired: &Desired,
    inputs: &Inputs,
) -> Steering {
    let bits = inputs.settings.dsr.mark_bits;
    let frontends = assignment.marks();
    if frontends.is_empty() {
        return Steering { bits, inward, ..Steering::default() };
    }
    let peers = &desired.peers;
    Steering {
        bits,
        frontends,
        peers: peers.iter().filter_map(|address| inputs.reach.macs.get(address)).copied().collect(),
        nodes: BTreeSet::clone(peers),
        tunnels: tunnels(desired, inputs),
        host: own_addresses(inputs).into_iter().filter(|address| !address.is_loopback()).collect(),
        left: !assignment.yielded.is_empty(),
        inward,
    }
}

/// The links through which peers hand packets on: those of overlay networks over which this node reaches their pods. While
/// no way to them is known yet, all that wrap packets by the route.
///
/// Through any other tunnel, and the interface of a VRRP group whatever it is, come clients, who are to meet the pods of all
/// nodes. Where this node reaches no pod of a peer through a link it hands nothing back there either, so that no packet runs
/// in circles.
pub fn tunnels(desired: &Desired, inputs: &Inputs) -> BTreeSet<String> {
    let hops = &inputs.reach.hops;
    let unknown = hops.is_empty() && !desired.ways.is_empty();
    let over: BTreeSet<u32> = hops.values().filter_map(|way| Some(way.hop?.link)).collect();
    let of_group = |name: &str| desired.keepalived.instances.iter().any(|one| one.interface == name);
    let links = inputs.facts.links.iter().filter(|(name, link)| {
        link.wraps == Wraps::ByRoute && (unknown || over.contains(&link.index)) && !of_group(name)
    });
    links.map(|(name, _)| name.clone()).collect()
}

/// The rules and routes by which steered packets come into this host's own stack.
pub fn policy_routes(steering: &Steering, settings: &Settings) -> BTreeSet<PolicyRoute> {
    let frontends = steering.frontends.keys().chain(&steering.inward);
    let families: BTreeSet<Family> = frontends.map(|frontend| Family::of(frontend.vip)).collect();
    let table = settings.dsr.route_table;
    let rule =
        PolicyKind::Rule { mark: settings.dsr.mark_bits.steer(), priority: settings.dsr.rule_priority };
    let both = |family| [rule, PolicyKind::LocalRoute].map(|kind| PolicyRoute { family, table, kind });
    families.into_iter().flat_map(both).collect()
}
