//! VRRP groups: which node takes part, with what priority, on which interface, with which VIPs.
//!
//! Priorities are a pure function of the group and the node names, so that all nodes agree without talking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Inputs;
use crate::config::Transport;
use crate::keepalived::{Config, Instance, Unicast};
use crate::model::{Family, Finding, Vrid};
use crate::snapshot::Node;

/// VIPs that one VRRP instance may carry: more in one make keepalived miss its own adverts.
pub const MOST_VIPS: usize = 300;

/// Base priorities of the first three ranks; steps of 20 keep elections free of ties.
const FIRST_PRIORITIES: [u8; 3] = [190, 170, 150];
/// The priorities of all further ranks; ties fall to the higher address (RFC 9568, section 6.4.3).
const LAST_PRIORITIES: std::ops::RangeInclusive<u8> = 141..=149;

/// The group as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Members with their base priorities.
    pub members: BTreeMap<String, u8>,
    /// What keepalived must run here.
    pub keepalived: Config,
    /// VIPs that this group carries.
    pub vips: BTreeSet<IpAddr>,
}

/// Makes the group of `vips`; `own` is this node's name, if it is known.
pub fn group(
    inputs: &Inputs,
    own: Option<&str>,
    vips: &BTreeSet<IpAddr>,
    findings: &mut Vec<Finding>,
) -> Group {
    let members = members(inputs);
    let mut group = Group { members: priorities(inputs.settings.vrrp.vrid, &members), ..Group::default() };
    group.keepalived.gone_after = inputs.settings.vrrp.gone_after;
    // A node that is no member needs a name too: keepalived must be able to read the file that takes its instances away.
    own.unwrap_or(&inputs.facts.hostname).clone_into(&mut group.keepalived.router_id);
    for family in [Family::V4, Family::V6] {
        let carried = carried(vips, family, findings);
        group.vips.extend(&carried);
        let Some(own) = own.filter(|own| group.members.contains_key(*own)) else { continue };
        if carried.is_empty() {
            continue;
        }
        match instance(inputs, own, &members, family, carried) {
            Ok(mut instance) => {
                instance.priority = group.members[own];
                group.keepalived.instances.push(instance);
            }
            Err(finding) => findings.push(finding),
        }
    }
    group
}

/// The Nodes that the member selector names.
fn members<'a>(inputs: &Inputs<'a>) -> BTreeMap<&'a str, &'a Node> {
    let selector = &inputs.settings.vrrp.members;
    let chosen = |node: &Node| selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    inputs.snapshot.nodes.iter().filter(|(_, n)| chosen(n)).map(|(name, n)| (name.as_str(), n)).collect()
}

/// The VIPs of one family, as many as an instance may carry; those beyond are a finding.
fn carried(vips: &BTreeSet<IpAddr>, family: Family, findings: &mut Vec<Finding>) -> BTreeSet<IpAddr> {
    let all: Vec<IpAddr> = vips.iter().copied().filter(|vip| Family::of(*vip) == family).collect();
    if let Some(first) = all.get(MOST_VIPS) {
        let text = format!(
            "{} IPv{} VIPs are asked for and a group carries at most {MOST_VIPS}: {first} and those after it are not held",
            all.len(),
            family.number()
        );
        findings.push(Finding::new("group vips", text).mend("remove VIPs from the ConfigMap"));
    }
    all.into_iter().take(MOST_VIPS).collect()
}

/// Base priorities by rendezvous rank: each group has an order of nodes of its own.
fn priorities(vrid: Vrid, members: &BTreeMap<&str, &Node>) -> BTreeMap<String, u8> {
    let mut ranked: Vec<(u64, &str)> = members.keys().map(|name| (rendezvous(vrid, name), *name)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    let rest = LAST_PRIORITIES.rev().chain(std::iter::repeat(*LAST_PRIORITIES.start()));
    let priorities = FIRST_PRIORITIES.into_iter().chain(rest);
    ranked.into_iter().zip(priorities).map(|((_, name), priority)| (name.to_owned(), priority)).collect()
}

/// FNV-1a over the VRID and the name, finished by the mixer of splitmix64: the same on every node and in every version.
fn rendezvous(vrid: Vrid, node: &str) -> u64 {
    let bytes = std::iter::once(vrid.get()).chain(node.bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn instance(
    inputs: &Inputs,
    own: &str,
    members: &BTreeMap<&str, &Node>,
    family: Family,
    vips: BTreeSet<IpAddr>,
) -> Result<Instance, Finding> {
    let vrrp = &inputs.settings.vrrp;
    let source = source(inputs, members[own], family);
    let unicast = match vrrp.transport {
        Transport::Multicast => None,
        Transport::Unicast => unicast(inputs, own, members, family, source)?,
    };
    let interface = interface(inputs, members[own], source)?;
    Ok(Instance { vrid: vrrp.vrid, family, interface, priority: 0, advert: vrrp.advert, unicast, vips })
}

/// The address that this node speaks VRRP from in one family.
fn source(inputs: &Inputs, node: &Node, family: Family) -> Option<IpAddr> {
    let set = inputs.settings.node.address.filter(|address| Family::of(*address) == family);
    set.or_else(|| node.addresses.iter().copied().find(|address| Family::of(*address) == family))
}

/// The peers of a unicast instance: the other members, and those that left a moment ago. A member without peers has nobody
/// to speak to, so multicast, which keepalived would use anyway, does no harm and keeps its VIPs.
fn unicast(
    inputs: &Inputs,
    own: &str,
    members: &BTreeMap<&str, &Node>,
    family: Family,
    source: Option<IpAddr>,
) -> Result<Option<Unicast>, Finding> {
    let number = family.number();
    let source = source.ok_or_else(|| {
        Finding::new(
            format!("node {own}"),
            format!("it has no IPv{number} InternalIP to speak unicast VRRP from"),
        )
        .mend("set node.address in /etc/kvip/config.toml, or use vrrp.transport = \"multicast\"")
    })?;
    let others = members.iter().filter(|(name, _)| **name != own).map(|(_, node)| *node);
    let addresses =
        others.filter_map(|node| node.addresses.iter().copied().find(|a| Family::of(*a) == family));
    let leaving = inputs.leaving.iter().copied().filter(|address| Family::of(*address) == family);
    let peers: BTreeSet<IpAddr> = addresses.chain(leaving).filter(|peer| *peer != source).collect();
    Ok((!peers.is_empty()).then_some(Unicast { source, peers }))
}

/// The interface that holds the VIPs: the configured one, or the one with this node's address.
fn interface(inputs: &Inputs, node: &Node, source: Option<IpAddr>) -> Result<String, Finding> {
    let facts = inputs.facts;
    let usable = || facts.links.iter().filter(|(_, link)| !link.loopback).map(|(name, _)| name.as_str());
    let names = || usable().collect::<Vec<_>>().join(", ");
    if let Some(name) = &inputs.settings.node.interface {
        let unknown = || {
            let text = format!("no interface {name} on this host, so it holds no VIPs; it has {}", names());
            Finding::new("node.interface", text).mend("set node.interface in /etc/kvip/config.toml")
        };
        return facts.links.get(name).map(|_| name.clone()).ok_or_else(unknown);
    }
    let found =
        source.into_iter().chain(node.addresses.iter().copied()).find_map(|address| facts.link_of(address));
    found.map(str::to_owned).ok_or_else(|| {
        Finding::new(
            "node.interface",
            format!(
                "no interface of this host has the node's InternalIP, so it holds no VIPs; it has {}",
                names()
            ),
        )
        .mend("set node.interface in /etc/kvip/config.toml")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_give_wide_steps_first_and_stay_in_range() {
        let node = Node::default();
        let names: Vec<String> = (0..40).map(|n| format!("node-{n}")).collect();
        let members: BTreeMap<&str, &Node> = names.iter().map(|name| (name.as_str(), &node)).collect();
        let mut got: Vec<u8> = priorities(Vrid::new(50).unwrap(), &members).into_values().collect();
        got.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(got[..5], [190, 170, 150, 149, 148]);
        assert_eq!(got[11..], [141; 29]);
    }

    #[test]
    fn groups_have_orders_of_their_own() {
        let node = Node::default();
        let members: BTreeMap<&str, &Node> = ["node-a", "node-b", "node-c"].map(|name| (name, &node)).into();
        let first = |vrid| {
            let all = priorities(Vrid::new(vrid).unwrap(), &members);
            all.into_iter().find(|(_, priority)| *priority == 190).unwrap().0
        };
        let firsts: BTreeSet<String> = (1..=20).map(first).collect();
        assert_eq!(firsts.len(), 3, "twenty groups spread over three nodes");
    }
}
