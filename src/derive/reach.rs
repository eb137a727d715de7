//! Whether this node can hand packets of mode dsr on as they came to the pods of another one.
//!
//! It can where the next hop to them is their own node, or a device that wraps packets for it: what is for a VIP would come
//! back from any other. And it must itself see one way of a connection without taking offence.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Inputs;
use crate::model::Family;
use crate::net::peers::Macs;
use crate::net::{Hops, HostFacts, Link, Way, Wraps};
use crate::nft::firewall::Firewall;
use crate::snapshot::Node;

/// What this host knows of the ways between it and its peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// The link-layer addresses of other nodes' addresses, as far as known.
    pub macs: Macs,
    /// How packets to the pods of other nodes leave, as far as known.
    pub hops: Hops,
    /// What other programs' rules let in.
    pub firewall: Firewall,
}

impl Reach {
    /// The names of the links over which peers hand on IPv4 packets of clients that are behind another link: those of overlay
    /// networks, and any where not all VIPs are; `vips` are the links of these.
    pub fn detours(&self, facts: &HostFacts, vips: &BTreeSet<String>) -> BTreeSet<String> {
        let ways = self.hops.iter().filter(|((_, family), _)| *family == Family::V4);
        let hops = ways.filter_map(|(_, way)| facts.link_at(way.hop?.link));
        let detour = |(name, link): &(&str, &Link)| {
            link.wraps == Wraps::ByRoute || vips.iter().any(|vip_link| vip_link != name)
        };
        hops.filter(detour).map(|(name, _)| name.to_owned()).collect()
    }
}

/// Why packets cannot be handed on as they came, by node and family; who is not named here is in nobody's way.
pub type Obstacles = BTreeMap<(String, Family), Arc<str>>;

/// The obstacles between this host and pods of other nodes.
pub fn obstacles(inputs: &Inputs) -> Obstacles {
    let obstacle = |((name, family), way): (&(String, Family), &Way)| {
        let node = inputs.snapshot.nodes.get(name)?;
        let why = obstacle(node, way, inputs.facts)?;
        Some(((name.clone(), *family), why.into()))
    };
    inputs.reach.hops.iter().filter_map(obstacle).collect()
}

/// The addresses of nodes, each with whether it is on a link of this host: where pods of the host's own network are.
pub fn hosts(inputs: &Inputs) -> BTreeMap<IpAddr, bool> {
    let addresses = inputs.snapshot.nodes.values().flat_map(|node| node.addresses.iter().copied());
    addresses.map(|address| (address, inputs.facts.has_neighbour(address))).collect()
}

/// The networks of this host's links that nodes are in too.
pub fn shared_networks(inputs: &Inputs) -> BTreeSet<IpNet> {
    let nodes = || inputs.snapshot.nodes.values().flat_map(|node| &node.addresses);
    let own = inputs.facts.addresses.iter().filter_map(|own| IpNet::new(own.ip, own.prefix_len).ok());
    own.filter(|network| nodes().any(|address| network.contains(address))).map(|own| own.trunc()).collect()
}

/// The addresses of the node `name` that tell its cards: each that may be the next hop to its pods.
pub fn addresses(name: &str, inputs: &Inputs) -> Vec<IpAddr> {
    let Some(node) = inputs.snapshot.nodes.get(name) else { return Vec::new() };
    // An ExternalIP may be anywhere; only one on a link has a card to learn.
    let near = node.other_addresses.iter().filter(|address| inputs.facts.has_neighbour(**address));
    let ways = [Family::V4, Family::V6].map(|family| inputs.reach.hops.get(&(name.to_owned(), family)));
    let next = ways.into_iter().flatten().filter_map(|way| next_hop(node, way, inputs.facts));
    node.addresses.iter().chain(near).copied().chain(next).collect()
}

/// The gateway of the way, where it is the node itself.
fn next_hop(node: &Node, way: &Way, facts: &HostFacts) -> Option<IpAddr> {
    let hop = way.hop?;
    let (_, link) = facts.link_at(hop.link)?;
    hop.via.filter(|_| link.wraps == Wraps::Nothing && obstacle(node, way, facts).is_none())
}

fn obstacle(node: &Node, way: &Way, facts: &HostFacts) -> Option<String> {
    let Some(hop) = way.hop else { return Some(format!("there is no route to {}", way.to)) };
    let (link, properties) = facts.link_at(hop.link)?;
    match hop.via {
        _ if properties.wraps == Wraps::ByDestination => Some(format!(
            "the route to {} leads over {link}, and WireGuard goes by a packet's destination",
            way.to
        )),
        _ if properties.wraps == Wraps::ByRoute => None,
        Some(via) if node.addresses.contains(&via) || node.other_addresses.contains(&via) => None,
        // A neighbour; routing daemons name each other so.
        Some(IpAddr::V6(via)) if via.is_unicast_link_local() && !facts.gateways.contains(&via.into()) => None,
        Some(via) => Some(format!("the route to {} leads through {via}, which is not its node", way.to)),
        None => Some(format!("{} is on the link {link} itself, where nobody translates for it", way.to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Address, Hop};

    #[track_caller]
    fn check(link: u32, via: Option<&str>, expected: Option<&str>) {
        let one = |index| Link { index, up: true, ..Link::default() };
        let links = [
            ("eth0", one(2)),
            ("flannel.1", Link { wraps: Wraps::ByRoute, ..one(3) }),
            ("wg0", Link { wraps: Wraps::ByDestination, ..one(4) }),
        ];
        let links = links.into_iter().map(|(name, link)| (name.to_owned(), link)).collect();
        let gateways = ["fe80::1".parse().unwrap()].into();
        let facts = HostFacts { links, gateways, ..HostFacts::default() };
        let node = Node { addresses: vec!["10.87.2.6".parse().unwrap()], ..Node::default() };
        let hop = Hop { link, via: via.map(|via| via.parse().unwrap()) };
        let way = Way { to: "10.2.6.9".parse().unwrap(), hop: Some(hop) };
        assert_eq!(obstacle(&node, &way, &facts).as_deref(), expected);
        let known = hop.via.filter(|_| link == 2 && expected.is_none());
        assert_eq!(next_hop(&node, &way, &facts), known, "only a card is known by its next hop");
    }

    #[test]
    fn the_next_hop_must_be_the_pods_own_node() {
        check(2, Some("10.87.2.6"), None);
        check(3, Some("10.2.6.0"), None);
        check(3, None, None);
        check(9, None, None);
        check(2, Some("fe80::6"), None);
        check(2, Some("fe80::1"), Some("the route to 10.2.6.9 leads through fe80::1, which is not its node"));
        check(
            2,
            Some("10.87.2.1"),
            Some("the route to 10.2.6.9 leads through 10.87.2.1, which is not its node"),
        );
        check(2, None, Some("10.2.6.9 is on the link eth0 itself, where nobody translates for it"));
        check(
            4,
            Some("10.87.2.6"),
            Some("the route to 10.2.6.9 leads over wg0, and WireGuard goes by a packet's destination"),
        );
    }

    #[test]
    fn clients_behind_another_link_are_handed_on_by_a_detour() {
        let one = |index, wraps| Link { index, up: true, wraps, ..Link::default() };
        let links = [
            ("eth0", one(2, Wraps::Nothing)),
            ("flannel.1", one(3, Wraps::ByRoute)),
            ("eth1", one(4, Wraps::Nothing)),
        ];
        let links = links.into_iter().map(|(name, link)| (name.to_owned(), link)).collect();
        let facts = HostFacts { links, ..HostFacts::default() };
        for (family, link, vips, expected) in [
            (Family::V4, 2, &["eth0"][..], None),
            (Family::V4, 4, &["eth0"], Some("eth1")),
            (Family::V4, 2, &["eth0", "eth0.100"], Some("eth0")),
            (Family::V4, 3, &["eth0"], Some("flannel.1")),
            (Family::V6, 4, &["eth0"], None),
            (Family::V4, 4, &[], None),
        ] {
            let hop = Hop { link, via: Some("10.87.2.6".parse().unwrap()) };
            let way = Way { to: "10.2.6.9".parse().unwrap(), hop: Some(hop) };
            let reach = Reach { hops: [(("node-b".to_owned(), family), way)].into(), ..Reach::default() };
            let vips = vips.iter().map(|link| (*link).to_owned()).collect();
            let found = reach.detours(&facts, &vips);
            assert_eq!(found.iter().next().map(String::as_str), expected, "{link} {vips:?}");
        }
    }

    #[test]
    fn neighbours_are_on_a_link_of_this_host() {
        let own = Address {
            ip: "10.87.2.4".parse().unwrap(),
            prefix_len: 24,
            link: "eth0".into(),
            noprefixroute: false,
        };
        let facts = HostFacts { addresses: [own].into(), ..HostFacts::default() };
        assert!(facts.has_neighbour("10.87.2.6".parse().unwrap()));
        assert!(!facts.has_neighbour("10.87.3.6".parse().unwrap()));
    }
}
