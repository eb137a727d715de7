//! Who else on the link answers for an address: the kernel's neighbour table (ARP, RFC 826; NDP, RFC 4861).
//!
//! `kvip status` names a VIP's remote holder by it: the Node whose own address has the same link-layer address.
//! [`resolve`] makes the kernel ask the link, as what it remembers may be of a holder that has died: of those whom it knows
//! by a probe (`nud probe` in ip-neighbour(8)), of others by an empty datagram to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout_at};

use super::netlink::{Error, dump, request};

/// The discard service (RFC 863): a port where nobody expects anything.
const DISCARD: u16 = 9;

/// How often the table is looked at while an answer is awaited.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

/// An entry with an Ethernet address that the kernel still believes in.
#[derive(Debug, Clone, Copy)]
struct Neighbour {
    mac: MacAddress,
    state: NeighbourState,
    flags: NeighbourFlags,
    /// The kernel itself asks it from time to time, as another program told it to (`managed` in ip-neighbour(8)).
    managed: bool,
}

impl Neighbour {
    /// Whether it answered a moment ago, or the admin says so.
    fn is_sure(self) -> bool {
        self.is_fixed() || self.state == NeighbourState::Reachable
    }

    /// Whether there is nothing to ask.
    fn is_fixed(self) -> bool {
        self.managed || self.state == NeighbourState::Permanent
    }
}

/// The neighbours on all links.
pub(super) async fn known() -> Result<BTreeMap<IpAddr, MacAddress>, Error> {
    Ok(table(None).await?.into_iter().map(|(ip, neighbour)| (ip, neighbour.mac)).collect())
}

/// The neighbours on that link, or on all.
async fn table(link: Option<u32>) -> Result<BTreeMap<IpAddr, Neighbour>, Error> {
    let mut table = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let answers = dump("list the neighbours", &RouteNetlinkMessage::GetNeighbour(request)).await?;
        table.extend(answers.iter().filter_map(|answer| entry(answer, link)));
    }
    Ok(table)
}

/// Who answers now for those of `wanted` on the link with that index, after the kernel was made to ask.
///
/// Returns when all have answered or after `limit`, without those that have not. Without CAP_NET_ADMIN the kernel asks for none
/// that it knows, and what it remembers counts as an answer. Addresses that are reached through a gateway, and the host's own,
/// have no entry.
pub async fn resolve(
    link: u32,
    wanted: &BTreeSet<IpAddr>,
    limit: Duration,
) -> Result<BTreeMap<IpAddr, MacAddress>, Error> {
    let deadline = Instant::now() + limit;
    let before = table(Some(link)).await?;
    let mut believing = false;
    for ip in wanted {
        match before.get(ip) {
            Some(neighbour) if neighbour.is_fixed() => {}
            Some(neighbour) => believing |= !probe(*ip, *neighbour, link).await?,
            // Unreachable, or no such family: then there is no entry, which the table says as well.
            None => _ = timeout_at(deadline, provoke(*ip, link)).await,
        }
    }
    loop {
        let now = table(Some(link)).await?;
        let answered = now.into_iter().filter(|(_, neighbour)| neighbour.is_sure() || believing);
        let answered: BTreeMap<_, _> = answered.map(|(ip, neighbour)| (ip, neighbour.mac)).collect();
        if wanted.iter().all(|ip| answered.contains_key(ip)) || Instant::now() >= deadline {
            return Ok(answered);
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Has the kernel ask a neighbour whether it is still there; `false` where this process may not. At which card, the kernel
/// knows: one that announced itself a moment ago is not to be forgotten.
async fn probe(ip: IpAddr, neighbour: Neighbour, link: u32) -> Result<bool, Error> {
    let mut message = NeighbourMessage::default();
    let (family, address) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Probe;
    message.header.flags = neighbour.flags;
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    let asked = request(&format!("probe {ip}"), RouteNetlinkMessage::NewNeighbour(message)).await;
    let refused = |errno: Errno| asked.as_ref().is_err_and(|e| e.errno() == Some(errno.raw_os_error()));
    if refused(Errno::PERM) {
        return Ok(false);
    }
    // Without an entry any more, or a card in it, there is nobody to ask.
    if refused(Errno::NOENT) || refused(Errno::INVAL) { Ok(true) } else { asked.map(|_| true) }
}

/// The Node that answers for `vip` as well as for an own address of it; `None` when none does, or more than one
/// (a proxy answers for several).
pub fn owner_of<'a>(
    vip: IpAddr,
    table: &BTreeMap<IpAddr, MacAddress>,
    nodes: &'a BTreeMap<String, Vec<IpAddr>>,
) -> Option<&'a str> {
    let mac = table.get(&vip)?;
    let mut owners =
        nodes.iter().filter(|(_, addresses)| addresses.iter().any(|ip| table.get(ip) == Some(mac)));
    let (name, _) = owners.next()?;
    owners.next().is_none().then_some(name.as_str())
}

/// Sends an empty datagram, before which the kernel must learn the link-layer address.
pub(super) async fn provoke(ip: IpAddr, link: u32) -> std::io::Result<()> {
    let (any, to): (IpAddr, SocketAddr) = match ip {
        IpAddr::V4(ip) => (Ipv4Addr::UNSPECIFIED.into(), (ip, DISCARD).into()),
        IpAddr::V6(ip) => {
            let scope = if ip.is_unicast_link_local() { link } else { 0 };
            (Ipv6Addr::UNSPECIFIED.into(), SocketAddrV6::new(ip, DISCARD, 0, scope).into())
        }
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.send_to(&[], to).await.map(|_| ())
}

fn entry(message: &RouteNetlinkMessage, link: Option<u32>) -> Option<(IpAddr, Neighbour)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    if link.is_some_and(|link| message.header.ifindex != link) {
        return None;
    }
    let (state, flags) = (message.header.state, message.header.flags);
    let unsure = matches!(state, NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe);
    let mut ip = None;
    let (mut mac, mut managed) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => managed = flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    let neighbour = Neighbour { mac: MacAddress(mac?), state, flags, managed };
    (unsure || neighbour.is_sure()).then_some((ip?, neighbour))
}
