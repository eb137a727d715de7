//! VRRP groups as this node sees them: their members and VIPs, and the instances that keepalived must run here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Inputs;
use super::membership::{self, Group};
use crate::config::Transport;
use crate::keepalived::{Config, Instance};
use crate::model::{Family, Finding, Vrid};
use crate::snapshot::Node;

/// VIPs that one VRRP instance may carry: more in one make keepalived miss its own adverts.
pub const MOST_VIPS: usize = 300;

/// What to do when there are more.
pub const SPREAD: &str = "spread them over more groups: [[groups]] with a vrid and addresses in the settings";

/// A group as it is to be, the same on all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// Its virtual router identifier.
    pub vrid: Vrid,
    /// How its adverts travel.
    pub transport: Transport,
    /// Members with their base priorities.
    pub members: BTreeMap<String, u8>,
    /// The VIPs that it carries.
    pub vips: BTreeSet<IpAddr>,
}

impl GroupView {
    /// Whether `node` is a member.
    pub fn has_member(&self, node: Option<&str>) -> bool {
        node.is_some_and(|node| self.members.contains_key(node))
    }
}

/// All groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    /// By name.
    pub views: BTreeMap<String, GroupView>,
    /// What keepalived must run here.
    pub keepalived: Config,
}

/// The Node that this host is: the configured one, or the one with an InternalIP that is local.
pub fn own_node(inputs: &Inputs, findings: &mut Vec<Finding>) -> Option<String> {
    let nodes = &inputs.snapshot.nodes;
    let mend = "set node.name in the settings to this host's name in `kubectl get nodes -o wide`";
    if let Some(name) = &inputs.settings.node.name {
        if !nodes.contains_key(name) && !alone(inputs) {
            findings.push(Finding::new("node.name", format!("the cluster has no Node {name}")).mend(mend));
        }
        return (nodes.contains_key(name) || alone(inputs)).then(|| name.clone());
    }
    if alone(inputs) {
        return Some(inputs.facts.hostname.clone());
    }
    let local = |ip: &IpAddr| inputs.facts.addresses.iter().any(|a| a.ip == *ip && !a.marked_as_vip());
    let by_address = nodes.iter().find(|(_, node)| node.addresses.iter().any(local));
    // A kubelet may register its Node before it knows an address.
    let by_name =
        || nodes.get_key_value(&inputs.facts.hostname).filter(|(_, node)| node.addresses.is_empty());
    let found = by_address.or_else(by_name);
    if found.is_none() {
        let text = format!(
            "it holds no VIPs: none of its addresses is an InternalIP of the cluster's {} Nodes",
            nodes.len()
        );
        findings.push(Finding::new(format!("host {}", inputs.facts.hostname), text).mend(mend));
    }
    found.map(|(name, _)| name.clone())
}

/// Whether static VIPs are to be held although no Node is known: the API server may be behind one of them.
fn alone(inputs: &Inputs) -> bool {
    inputs.snapshot.nodes.is_empty() && !inputs.settings.statics.is_empty()
}

/// Makes the groups of `vips`, of which the first ones go before where a group cannot carry all; `own` is this node's name, if
/// it is known.
pub fn groups(inputs: &Inputs, own: Option<&str>, vips: Vec<IpAddr>, findings: &mut Vec<Finding>) -> Groups {
    let mut all = Groups::default();
    all.keepalived.gone_after = inputs.settings.vrrp.gone_after;
    // A node that is no member needs a name too: keepalived must be able to read the file that takes its instances away.
    own.unwrap_or(&inputs.facts.hostname).clone_into(&mut all.keepalived.router_id);
    findings.extend(unicast::node_address(inputs));
    let mut left = vips;
    for group in membership::groups(inputs.settings) {
        let own_vips: Vec<IpAddr>;
        (own_vips, left) = left.into_iter().partition(|vip| group.carries(*vip));
        let maker = Maker::new(inputs, group, own);
        let (view, instances) = maker.make(&own_vips, findings);
        all.views.insert(group.name.to_owned(), view);
        all.keepalived.instances.extend(instances);
    }
    all.keepalived.instances.sort_by_key(|instance| (instance.vrid, instance.family));
    all
}

/// What one group is made with.
struct Maker<'a> {
    inputs: &'a Inputs<'a>,
    group: Group<'a>,
    /// This node, when it is a member: its name, and the Node where one is known.
    own: Option<(&'a str, Option<&'a Node>)>,
    members: BTreeMap<&'a str, &'a Node>,
    priorities: BTreeMap<String, u8>,
}

impl<'a> Maker<'a> {
    fn new(inputs: &'a Inputs<'a>, group: Group<'a>, own: Option<&'a str>) -> Self {
        let vrid = group.vrrp.vrid;
        if alone(inputs) {
            let own = own.filter(|_| group.fixed.is_some());
            let priorities =
                own.map(|name| (name.to_owned(), membership::lone_priority(vrid, name))).into_iter();
            let own = own.map(|name| (name, None));
            return Self { inputs, group, own, members: BTreeMap::new(), priorities: priorities.collect() };
        }
        let members = group.members(inputs.snapshot);
        let priorities = membership::priorities(vrid, &members);
        let own = own.and_then(|name| Some((name, Some(*members.get(name)?))));
        Self { inputs, group, own, members, priorities }
    }

    fn make(self, vips: &[IpAddr], findings: &mut Vec<Finding>) -> (GroupView, Vec<Instance>) {
        let vrrp = self.group.vrrp;
        if self.priorities.is_empty() {
            findings.extend(self.group.nobody(self.inputs.snapshot, vips));
        }
        let is_static = |vip: &IpAddr| self.inputs.settings.statics.iter().any(|one| one.vip == *vip);
        findings.extend(self.group.mixed(self.inputs.snapshot, !vips.iter().all(is_static)));
        findings.extend(self.unheard(vips));
        let mut carried = BTreeSet::new();
        let mut instances = Vec::new();
        for family in [Family::V4, Family::V6] {
            let vips = self.carried(vips, family, findings);
            carried.extend(&vips);
            if let Some(own) = self.own.filter(|_| !vips.is_empty()) {
                match self.instance(own, family, vips) {
                    Ok(instance) => {
                        findings.extend(self.speechless(&instance));
                        findings.extend(self.lonely(&instance));
                        instances.push(instance);
                    }
                    Err(finding) => findings.push(finding),
                }
            }
        }
        let (vrid, transport) = (vrrp.vrid, vrrp.transport);
        (GroupView { vrid, transport, members: self.priorities, vips: carried }, instances)
    }

    /// What is said while this node speaks to peers that it does not know.
    fn unheard(&self, vips: &[IpAddr]) -> Option<Finding> {
        let unknown = alone(self.inputs) && self.own.is_some() && !vips.is_empty();
        let text =
            "its peers are not known before the API server has answered: adverts go by multicast until then";
        (unknown && self.group.vrrp.transport == Transport::Unicast)
            .then(|| Finding::new(format!("group {}", self.group.name), text))
    }

    /// The VIPs of one family, as many as an instance may carry; those beyond are a finding.
    fn carried(&self, vips: &[IpAddr], family: Family, findings: &mut Vec<Finding>) -> BTreeSet<IpAddr> {
        let all: Vec<IpAddr> = vips.iter().copied().filter(|vip| Family::of(*vip) == family).collect();
        if all.len() > MOST_VIPS {
            let text = format!(
                "{} IPv{} VIPs are asked for and a group carries at most {MOST_VIPS}: {} too many, and the oldest Services go first",
                all.len(),
                family.number(),
                all.len() - MOST_VIPS
            );
            findings.push(Finding::new(format!("group {}", self.group.name), text).mend(SPREAD));
        }
        all.into_iter().take(MOST_VIPS).collect()
    }

    fn instance(
        &self,
        (name, node): (&str, Option<&Node>),
        family: Family,
        vips: BTreeSet<IpAddr>,
    ) -> Result<Instance, Finding> {
        let vrrp = self.group.vrrp;
        let source = self.source(node, family);
        let unicast = match vrrp.transport {
            Transport::Multicast => None,
            Transport::Unicast => self.unicast(name, node, family, source)?,
        };
        let interface = self.interface(node, source, &vips)?;
        Ok(Instance {
            vrid: vrrp.vrid,
            family,
            interface,
            priority: self.priorities[name],
            advert: vrrp.advert,
            gone_after: vrrp.gone_after,
            unicast,
            vips,
        })
    }

    /// The address that this node speaks VRRP from in one family. keepalived binds to the interface, so that a group with
    /// one of its own speaks from an address there.
    fn source(&self, node: Option<&Node>, family: Family) -> Option<IpAddr> {
        let set = self.inputs.settings.node.address;
        let addresses = node.iter().flat_map(|node| node.addresses.iter().copied());
        let mut candidates = set.into_iter().chain(addresses).filter(|ip| Family::of(*ip) == family);
        let Some(interface) = self.group.interface else { return candidates.next() };
        candidates.find(|address| self.inputs.facts.link_of(*address) == Some(interface))
    }

    /// The interface that holds the VIPs: the configured one, the one with this node's address, or where the cluster knows
    /// none the one in the network of a VIP.
    fn interface(
        &self,
        node: Option<&Node>,
        source: Option<IpAddr>,
        vips: &BTreeSet<IpAddr>,
    ) -> Result<String, Finding> {
        let facts = self.inputs.facts;
        let named = self.group.interface.or(self.inputs.settings.node.interface.as_deref());
        if let Some(name) = named {
            return facts.links.get(name).map(|_| name.to_owned()).ok_or_else(|| self.no_interface(name));
        }
        let addresses = node.iter().flat_map(|node| node.addresses.iter().copied());
        let found = source.into_iter().chain(addresses).find_map(|address| facts.link_of(address));
        if let Some(name) = found {
            return Ok(name.to_owned());
        }
        let of_vip = || networks(self.inputs).find(|(_, net)| vips.iter().any(|vip| net.contains(vip)));
        let unknown = node.is_none_or(|node| node.addresses.is_empty());
        let found = unknown.then(of_vip).flatten();
        found.map(|(link, _)| link.to_owned()).ok_or_else(|| self.nowhere(unknown))
    }

    /// What is said where keepalived, whose own check says nothing, goes to FAULT until the interface has an address. Every
    /// link has one of IPv6.
    fn speechless(&self, instance: &Instance) -> Option<Finding> {
        let link = &instance.interface;
        let mut networks = networks(self.inputs).filter(|(name, _)| name == link);
        let has_one = networks.any(|(_, network)| Family::of(network.addr()) == instance.family);
        let text =
            format!("{link} has no IPv4 address to speak VRRP from, so this host holds none of its VIPs");
        let mend = format!("ip -4 address show dev {link}");
        (instance.family == Family::V4 && !has_one)
            .then(|| Finding::new(format!("group {}", self.group.name), text).mend(mend))
    }

    fn no_interface(&self, name: &str) -> Finding {
        let text =
            format!("no interface {name} on this host, so it holds no VIPs; it has {}", usable(self.inputs));
        if self.group.interface.is_some() {
            let mend = format!("set interface of the group {} to one of them", self.group.name);
            return Finding::new(format!("group {}", self.group.name), text).mend(mend);
        }
        Finding::new("node.interface", text).mend("set node.interface in the settings")
    }

    fn nowhere(&self, unknown: bool) -> Finding {
        let what = if unknown { "is in the network of a VIP" } else { "has the node's InternalIP" };
        let text =
            format!("no interface of this host {what}, so it holds no VIPs; it has {}", usable(self.inputs));
        Finding::new("node.interface", text).mend("set node.interface in the settings")
    }
}

/// The names of the interfaces that could hold VIPs.
fn usable(inputs: &Inputs) -> String {
    let links = inputs.facts.links.iter().filter(|(_, link)| !link.loopback);
    links.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// This host's addresses with their networks, by link; VIPs and the loopback link excepted.
fn networks<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = (&'a str, IpNet)> {
    let facts = inputs.facts;
    let real = facts.addresses.iter().filter(|address| {
        !address.marked_as_vip() && facts.links.get(&address.link).is_some_and(|link| !link.loopback)
    });
    real.filter_map(|address| Some((address.link.as_str(), IpNet::new(address.ip, address.prefix_len).ok()?)))
}

mod unicast;

#[cfg(test)]
mod tests;
