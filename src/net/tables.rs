//! The kernel's tables as far as [`HostFacts`] needs them, changed message by message.
//!
//! Pure: no IO. Dumps and events are the same messages, so one function reads both.
//!
//! All links and all their addresses are kept, veths of pods too: a VIP must never equal any local address, and
//! inside a container the node's own interface is a veth. Only kube-proxy's addresses are left out of the facts. What
//! changes nothing here is not published.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Address, HostFacts, Link, PolicyRoute, Wraps, policy};

/// Links, addresses and default routes, keyed as the kernel keys them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables {
    links: BTreeMap<u32, NamedLink>,
    /// Whether each address carries IFA_F_NOPREFIXROUTE.
    addresses: BTreeMap<AddressKey, bool>,
    gateways: Gateways,
    policy_routes: BTreeSet<PolicyRoute>,
}

/// A link and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NamedLink {
    name: String,
    up: bool,
    loopback: bool,
    wraps: Wraps,
}

/// What tells one address from another: the kernel allows one IP with several prefix lengths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct AddressKey {
    link: u32,
    ip: IpAddr,
    prefix_len: u8,
}

/// The default routes of the main table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gateways {
    hops: BTreeSet<IpAddr>,
    links: BTreeSet<u32>,
}

/// What a message did to the tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// The tables are not what they were.
    pub(super) changed: bool,
    /// The default routes may be others now and must be read again.
    ///
    /// The kernel removes IPv4 routes without a word when their link goes down or their address goes, and a
    /// default route may be replaced, so that single route messages do not add up to the table.
    pub(super) routes_doubtful: bool,
}

impl std::ops::BitOrAssign for Effect {
    fn bitor_assign(&mut self, other: Self) {
        self.changed |= other.changed;
        self.routes_doubtful |= other.routes_doubtful;
    }
}

impl Tables {
    /// Takes in one message of a dump or of a multicast group.
    pub(super) fn apply(&mut self, message: &RouteNetlinkMessage) -> Effect {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.set_link(link),
            RouteNetlinkMessage::DelLink(link) => self.remove_link(link),
            RouteNetlinkMessage::NewAddress(address) => self.set_address(address),
            RouteNetlinkMessage::DelAddress(address) => self.remove_address(address),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                let here = matches!(message, RouteNetlinkMessage::NewRoute(_));
                let changed = policy::own_route(route).is_some_and(|own| self.set_policy_route(own, here));
                Effect { changed, routes_doubtful: is_default(&route.header) }
            }
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => {
                let here = matches!(message, RouteNetlinkMessage::NewRule(_));
                let changed = policy::own_rule(rule).is_some_and(|own| self.set_policy_route(own, here));
                Effect { changed, routes_doubtful: false }
            }
            _ => Effect::default(),
        }
    }

    /// Replaces the default routes; whether that changed anything.
    pub(super) fn set_gateways(&mut self, gateways: Gateways) -> bool {
        let changed = self.gateways != gateways;
        self.gateways = gateways;
        changed
    }

    fn set_policy_route(&mut self, own: PolicyRoute, here: bool) -> bool {
        if here { self.policy_routes.insert(own) } else { self.policy_routes.remove(&own) }
    }

    /// The tables in the words of the rest of kvip. Addresses whose link is not known yet are left out, and those that
    /// kube-proxy balances.
    pub(super) fn facts(&self, hostname: &str) -> HostFacts {
        let link = |(index, link): (&u32, &NamedLink)| {
            let NamedLink { name, up, loopback, wraps } = link.clone();
            (name, Link { index: *index, up, loopback, wraps })
        };
        let address = |(key, noprefixroute): (&AddressKey, &bool)| {
            let link = self.links.get(&key.link)?.name.clone();
            let noprefixroute = *noprefixroute;
            Some(Address { ip: key.ip, prefix_len: key.prefix_len, link, noprefixroute })
        };
        HostFacts {
            hostname: hostname.to_owned(),
            links: self.links.iter().map(link).collect(),
            addresses: self.addresses.iter().filter_map(address).collect(),
            gateways: self.gateways.hops.clone(),
            policy_routes: self.policy_routes.clone(),
            kube_proxy_excludes: None,
        }
        .without_kube_proxys()
    }

    fn set_link(&mut self, message: &LinkMessage) -> Effect {
        let index = message.header.index;
        let Some(link) = named_link(message) else { return Effect::default() };
        let before = self.links.insert(index, link);
        let changed = before.as_ref() != self.links.get(&index);
        Effect { changed, routes_doubtful: changed && self.gateways.links.contains(&index) }
    }

    fn remove_link(&mut self, message: &LinkMessage) -> Effect {
        if !is_plain(message) {
            return Effect::default();
        }
        let index = message.header.index;
        let changed = self.links.remove(&index).is_some();
        self.addresses.retain(|key, _| key.link != index);
        Effect { changed, routes_doubtful: self.gateways.links.contains(&index) }
    }

    fn set_address(&mut self, message: &AddressMessage) -> Effect {
        let Some(key) = address_key(message) else { return Effect::default() };
        let noprefixroute = has_noprefixroute(message);
        let changed = self.addresses.insert(key, noprefixroute) != Some(noprefixroute);
        Effect { changed, routes_doubtful: false }
    }

    fn remove_address(&mut self, message: &AddressMessage) -> Effect {
        let Some(key) = address_key(message) else { return Effect::default() };
        let changed = self.addresses.remove(&key).is_some();
        Effect { changed, routes_doubtful: changed && self.gateways.links.contains(&key.link) }
    }
}

impl Gateways {
    /// The gateways among the routes of a dump.
    pub(super) fn of(messages: &[RouteNetlinkMessage]) -> Self {
        let mut gateways = Self::default();
        for message in messages {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && is_default(&route.header)
            {
                gateways.add(route);
            }
        }
        gateways
    }

    fn add(&mut self, route: &RouteMessage) {
        self.add_hop(&route.attributes);
        for attribute in &route.attributes {
            if let RouteAttribute::MultiPath(hops) = attribute {
                for hop in hops {
                    self.links.insert(hop.interface_index);
                    self.add_hop(&hop.attributes);
                }
            }
        }
    }

    fn add_hop(&mut self, attributes: &[RouteAttribute]) {
        for attribute in attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) | RouteAttribute::Via(RouteVia::Inet(ip)) => {
                    self.hops.insert(IpAddr::V4(*ip));
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(ip))
                | RouteAttribute::Via(RouteVia::Inet6(ip)) => {
                    self.hops.insert(IpAddr::V6(*ip));
                }
                RouteAttribute::Oif(index) => {
                    self.links.insert(*index);
                }
                _ => {}
            }
        }
    }
}

/// A default route of the main table, to somewhere.
fn is_default(header: &RouteHeader) -> bool {
    header.destination_prefix_length == 0
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && matches!(header.address_family, AddressFamily::Inet | AddressFamily::Inet6)
}

/// A message on the link itself. Bridges report their ports in the same group: there, deleted means only "no port any more".
fn is_plain(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

fn named_link(message: &LinkMessage) -> Option<NamedLink> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let flags = message.header.flags;
    let up = flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let loopback = flags.contains(LinkFlags::Loopback);
    let wraps = wraps(message);
    is_plain(message).then_some(NamedLink { name, up, loopback, wraps })
}

/// Whether the link wraps packets to other hosts.
fn wraps(message: &LinkMessage) -> Wraps {
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let kind = infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(
            InfoKind::Vxlan
            | InfoKind::Geneve
            | InfoKind::IpIp
            | InfoKind::Ip6Tnl
            | InfoKind::SitTun
            | InfoKind::GreTun
            | InfoKind::GreTap
            | InfoKind::GreTun6
            | InfoKind::GreTap6,
        ) => Wraps::ByRoute,
        Some(InfoKind::Wireguard) => Wraps::ByDestination,
        _ => Wraps::Nothing,
    }
}

/// The address of the host itself: IFA_LOCAL, which is absent for IPv6, as IFA_ADDRESS is the peer on IPv4
/// point-to-point links (if_addr.h).
fn address_key(message: &AddressMessage) -> Option<AddressKey> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => {
                address = Some(*ip);
                break;
            }
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let link = message.header.index;
    address.map(|ip| AddressKey { link, ip, prefix_len: message.header.prefix_len })
}

/// IFA_F_NOPREFIXROUTE, 0x200: too large for the header's byte of flags, so only in the attribute IFA_FLAGS.
fn has_noprefixroute(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Noprefixroute))
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::super::KUBE_PROXY_DEVICE;
    use super::*;

    const CHANGED: Effect = Effect { changed: true, routes_doubtful: false };
    const DOUBTFUL: Effect = Effect { changed: false, routes_doubtful: true };
    const BOTH: Effect = Effect { changed: true, routes_doubtful: true };
    const NOTHING: Effect = Effect { changed: false, routes_doubtful: false };

    fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message
    }

    fn up(index: u32, name: &str) -> RouteNetlinkMessage {
        RouteNetlinkMessage::NewLink(link(index, name, LinkFlags::Up | LinkFlags::LowerUp))
    }

    fn address(index: u32, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = 32;
        message.attributes = attributes;
        message
    }

    fn vip() -> AddressMessage {
        let ip = IpAddr::from([10, 9, 0, 50]);
        let flags = AddressFlags::Noprefixroute | AddressFlags::Permanent;
        address(2, vec![AddressAttribute::Local(ip), AddressAttribute::Flags(flags)])
    }

    fn default_route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        message
    }

    /// Tables with the link 2, over which the default route leads.
    fn tables() -> Tables {
        let mut tables = Tables::default();
        tables.apply(&up(2, "eth0"));
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet([10, 9, 0, 1].into()));
        let route = default_route(vec![gateway, RouteAttribute::Oif(2)]);
        assert!(tables.set_gateways(Gateways::of(&[RouteNetlinkMessage::NewRoute(route)])));
        tables
    }

    /// Applies `message` to `tables`, with that effect, and none when it is told again.
    fn check(tables: &mut Tables, message: &RouteNetlinkMessage, effect: Effect) {
        assert_eq!(tables.apply(message), effect, "{message:?}");
        let again = tables.apply(message);
        assert!(!again.changed, "told again: {message:?}");
    }

    #[test]
    fn a_message_changes_the_tables_once() {
        let mut tables = tables();
        check(&mut tables, &up(3, "veth1"), CHANGED);
        check(&mut tables, &RouteNetlinkMessage::NewAddress(vip()), CHANGED);
        check(&mut tables, &RouteNetlinkMessage::DelAddress(vip()), BOTH);
        check(&mut tables, &up(2, "eth0"), NOTHING);
        check(&mut tables, &RouteNetlinkMessage::NewLink(link(2, "eth0", LinkFlags::Up)), BOTH);
        check(&mut tables, &RouteNetlinkMessage::DelLink(link(3, "veth1", LinkFlags::Up)), CHANGED);
        check(&mut tables, &RouteNetlinkMessage::DelLink(link(2, "eth0", LinkFlags::Up)), BOTH);
        assert_eq!(tables.facts("").links, BTreeMap::new());
    }

    #[test]
    fn up_needs_a_carrier() {
        for (flags, wanted) in [
            (LinkFlags::empty(), false),
            (LinkFlags::Up, false),
            (LinkFlags::LowerUp, false),
            (LinkFlags::Up | LinkFlags::LowerUp, true),
        ] {
            let mut tables = Tables::default();
            tables.apply(&RouteNetlinkMessage::NewLink(link(2, "eth0", flags)));
            assert_eq!(tables.facts("").links["eth0"].up, wanted, "{flags:?}");
        }
    }

    #[test]
    fn a_port_that_leaves_its_bridge_stays_a_link() {
        let mut tables = tables();
        let mut left = link(2, "eth0", LinkFlags::Up);
        left.header.interface_family = AddressFamily::Bridge;
        check(&mut tables, &RouteNetlinkMessage::DelLink(left.clone()), NOTHING);
        check(&mut tables, &RouteNetlinkMessage::NewLink(left), NOTHING);
    }

    #[test]
    fn the_own_address_is_told_from_the_peers() {
        let (own, peer) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for attributes in [
            vec![AddressAttribute::Address(peer), AddressAttribute::Local(own)],
            vec![AddressAttribute::Local(own), AddressAttribute::Address(peer)],
            vec![AddressAttribute::Address(own)],
        ] {
            let mut tables = tables();
            tables.apply(&RouteNetlinkMessage::NewAddress(address(2, attributes)));
            assert!(tables.facts("").has(own) && !tables.facts("").has(peer));
        }
    }

    #[test]
    fn addresses_wait_for_their_link_and_follow_its_name() {
        let mut tables = Tables::default();
        tables.apply(&RouteNetlinkMessage::NewAddress(vip()));
        assert_eq!(tables.facts("").addresses, BTreeSet::new());
        for name in ["eth0", "lan"] {
            tables.apply(&up(2, name));
            assert_eq!(tables.facts("").link_of(IpAddr::from([10, 9, 0, 50])), Some(name));
            assert_eq!(tables.facts("").links.len(), 1);
        }
    }

    #[test]
    fn what_kube_proxy_balances_is_no_address_of_the_host() {
        let mut tables = tables();
        tables.apply(&up(3, KUBE_PROXY_DEVICE));
        let ip = IpAddr::from([10, 9, 0, 50]);
        let balanced = address(3, vec![AddressAttribute::Local(ip)]);
        tables.apply(&RouteNetlinkMessage::NewAddress(balanced));
        assert!(tables.facts("").kube_proxy_has_ipvs_mode());
        assert_eq!(tables.facts("").addresses, BTreeSet::new());
        tables.apply(&RouteNetlinkMessage::NewAddress(vip()));
        assert_eq!(tables.facts("").link_of(ip), Some("eth0"));
    }

    #[test]
    fn only_default_routes_of_the_main_table_are_doubted() {
        let route = default_route(Vec::new());
        check(&mut tables(), &RouteNetlinkMessage::NewRoute(route.clone()), DOUBTFUL);
        check(&mut tables(), &RouteNetlinkMessage::DelRoute(route.clone()), DOUBTFUL);
        let others: [fn(&mut RouteHeader); 4] = [
            |header| header.destination_prefix_length = 16,
            |header| header.table = 77,
            |header| header.kind = RouteType::BlackHole,
            |header| header.address_family = AddressFamily::Mpls,
        ];
        for change in others {
            let mut other = route.clone();
            change(&mut other.header);
            check(&mut tables(), &RouteNetlinkMessage::NewRoute(other), NOTHING);
        }
    }

    #[test]
    fn all_next_hops_count() {
        let hop = |index, attribute| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes.push(attribute);
            hop
        };
        let v4 = RouteAttribute::Gateway(RouteAddress::Inet([10, 9, 0, 1].into()));
        let v6 = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
        let route = default_route(vec![RouteAttribute::MultiPath(vec![hop(2, v4), hop(3, v6)])]);
        let gateways = Gateways::of(&[RouteNetlinkMessage::NewRoute(route)]);
        assert_eq!(gateways.links, BTreeSet::from([2, 3]));
        assert_eq!(gateways.hops, BTreeSet::from([[10, 9, 0, 1].into(), "fe80::1".parse().unwrap()]));
    }
}
