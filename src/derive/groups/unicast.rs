//! Unicast VRRP: whom this node speaks to from which address, and what is said where it cannot be heard.
//!
//! keepalived drops adverts of anybody who is no peer, and each node that hears no other becomes a holder. So the members
//! must agree on each other's addresses, although none knows the others' settings: what they all know are the Nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::Inputs;
use super::super::membership::{self, DEFAULT_GROUP, Group};
use super::{Maker, networks};
use crate::config::Transport;
use crate::keepalived::{Instance, Unicast};
use crate::model::{Family, Finding};
use crate::snapshot::Node;

/// What is said of the setting `node.address`.
pub(super) fn node_address(inputs: &Inputs) -> Option<Finding> {
    nowhere(inputs).or_else(|| unused(inputs))
}

impl<'a> Maker<'a> {
    /// The source is an InternalIP of this Node, and the peers are all InternalIPs of the other members, whichever they speak
    /// from, and of those that left a moment ago. Adverts to the rest of them do no harm: keepalived listens on its source
    /// alone. A member without peers has nobody to speak to, so multicast, which keepalived would use anyway, does no harm
    /// and keeps its VIPs. `None` before the API server has answered.
    pub(super) fn unicast(
        &self,
        own: &str,
        node: Option<&Node>,
        family: Family,
        source: Option<IpAddr>,
    ) -> Result<Option<Unicast>, Finding> {
        let Some(node) = node else { return Ok(None) };
        let source = source.ok_or_else(|| self.no_source(own, family))?;
        if !node.addresses.contains(&source) {
            return Err(self.unheard_of(own, node, source));
        }
        let others = self.others(own).flat_map(|node| &node.addresses);
        let leaving = self.inputs.leaving.get(&self.group.vrrp.vrid).into_iter().flatten();
        let here = |peer: &IpAddr| node.addresses.contains(peer) || self.inputs.facts.has(*peer);
        let peers = others.chain(leaving).copied().filter(|peer| Family::of(*peer) == family && !here(peer));
        let peers: BTreeSet<IpAddr> = peers.collect();
        Ok((!peers.is_empty()).then_some(Unicast { source, peers }))
    }

    fn others(&self, own: &str) -> impl Iterator<Item = &'a Node> {
        self.members.iter().filter(move |(name, _)| **name != own).map(|(_, node)| *node)
    }

    /// What is said where the other members have no address to speak from, and so no instance either.
    pub(super) fn lonely(&self, instance: &Instance) -> Option<Finding> {
        let others = self.own.map_or(0, |(own, _)| self.others(own).count());
        let number = instance.family.number();
        let text = format!(
            "no other member has an IPv{number} InternalIP of its own to speak unicast VRRP from, so this host alone may \
             hold its IPv{number} VIPs"
        );
        let alone = self.group.vrrp.transport == Transport::Unicast && instance.unicast.is_none();
        (alone && others > 0).then(|| {
            Finding::new(format!("group {}", self.group.name), text)
                .mend(self.give_or_multicast(instance.family))
        })
    }

    fn no_source(&self, own: &str, family: Family) -> Finding {
        let number = family.number();
        let place = self.group.interface.map(|name| format!(" on {name}")).unwrap_or_default();
        let text = format!("it has no IPv{number} InternalIP{place} to speak unicast VRRP from");
        let mend =
            if self.group.interface.is_some() { self.multicast() } else { self.give_or_multicast(family) };
        Finding::new(format!("node {own}"), text).mend(mend)
    }

    /// Other members know this one by its Node alone, and would all become holders beside it.
    fn unheard_of(&self, own: &str, node: &Node, source: IpAddr) -> Finding {
        let own_addresses = node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let text = format!(
            "group {}: {source} is no InternalIP of the Node {own} ({own_addresses}), so other members would not listen \
             to it: this host holds no VIPs there",
            self.group.name
        );
        let mend = format!("set node.address to one of them, remove it, or {}", self.multicast());
        Finding::new("node.address", text).mend(mend)
    }

    fn give_or_multicast(&self, family: Family) -> String {
        let number = family.number();
        format!("give each Node an IPv{number} InternalIP (the kubelet's --node-ip), or {}", self.multicast())
    }

    fn multicast(&self) -> String {
        match self.group.name {
            DEFAULT_GROUP => "use vrrp.transport = \"multicast\"".into(),
            name => format!("use transport = \"multicast\" for the group {name}"),
        }
    }
}

/// What is said of a `node.address` that this host does not have.
fn nowhere(inputs: &Inputs) -> Option<Finding> {
    let address = inputs.settings.node.address.filter(|address| !inputs.facts.has(*address))?;
    let of_family = networks(inputs).filter(|(_, network)| network.addr().is_ipv4() == address.is_ipv4());
    let has: Vec<String> = of_family.map(|(link, network)| format!("{} on {link}", network.addr())).collect();
    let has = if has.is_empty() { "none of that family".to_owned() } else { has.join(", ") };
    let text = format!("{address} is on no interface of this host; it has {has}");
    let mend = "set node.address in the settings to one of them, or remove it";
    Some(Finding::new("node.address", text).mend(mend))
}

/// What is said of a `node.address` that does nothing: by multicast keepalived speaks from an address of the interface.
fn unused(inputs: &Inputs) -> Option<Finding> {
    let node = &inputs.settings.node;
    let (address, interface) = (node.address?, node.interface.as_deref()?);
    let link = inputs.facts.link_of(address).filter(|link| *link != interface)?;
    let multicast = |group: &Group| group.vrrp.transport == Transport::Multicast;
    let all_multicast = membership::groups(inputs.settings).iter().all(multicast);
    let text = format!(
        "{address} is not on {interface}, where node.interface has multicast VRRP speak: it counts for nothing"
    );
    let mend = format!("remove node.address, or set node.interface to {link}");
    all_multicast.then(|| Finding::new("node.address", text).mend(mend))
}
