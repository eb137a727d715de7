//! Who else on the link answers for an address: the kernel's neighbour table (ARP, RFC 826; NDP, RFC 4861).
//!
//! `kvip status` names a VIP's remote holder by it: the Node whose own address has the same link-layer address.
//! Only reads; [`resolve`] makes the kernel ask the link by sending an empty datagram.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout_at};

use super::netlink::{Error, dump};

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

/// The neighbours on the link with that index: entries with an Ethernet address that the kernel still believes in.
pub async fn neighbours(link: u32) -> Result<BTreeMap<IpAddr, MacAddress>, Error> {
    table(Some(link)).await
}

/// The neighbours on all links.
pub(super) async fn known() -> Result<BTreeMap<IpAddr, MacAddress>, Error> {
    table(None).await
}

async fn table(link: Option<u32>) -> Result<BTreeMap<IpAddr, MacAddress>, Error> {
    let mut table = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let answers = dump("list the neighbours", &RouteNetlinkMessage::GetNeighbour(request)).await?;
        table.extend(answers.iter().filter_map(|answer| entry(answer, link)));
    }
    Ok(table)
}

/// The same, after the kernel was made to ask the link for those of `wanted` that it does not know.
///
/// Returns when all are known or after `limit`, with what is known then: nobody need answer. Addresses that are
/// reached through a gateway, and the host's own, have no entry.
pub async fn resolve(
    link: u32,
    wanted: &BTreeSet<IpAddr>,
    limit: Duration,
) -> Result<BTreeMap<IpAddr, MacAddress>, Error> {
    let deadline = Instant::now() + limit;
    let mut table = neighbours(link).await?;
    for ip in wanted.iter().filter(|ip| !table.contains_key(ip)) {
        // Unreachable, or no such family: then there is no entry, which the table says as well.
        let _ = timeout_at(deadline, provoke(*ip, link)).await;
    }
    while !wanted.iter().all(|ip| table.contains_key(ip)) && Instant::now() < deadline {
        sleep(LOOK_INTERVAL).await;
        table = neighbours(link).await?;
    }
    Ok(table)
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

fn entry(message: &RouteNetlinkMessage, link: Option<u32>) -> Option<(IpAddr, MacAddress)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let believed = [
        NeighbourState::Reachable,
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Permanent,
    ];
    if link.is_some_and(|link| message.header.ifindex != link) || !believed.contains(&message.header.state) {
        return None;
    }
    let mut ip = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((ip?, MacAddress(mac?)))
}
