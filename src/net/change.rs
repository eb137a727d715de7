//! Removes addresses: the only change that kvip makes to links, and only for VIPs that a killed keepalived left behind.

use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::Address;
use super::netlink::{Error, request};

/// Removes `address` from its link. Already gone, with or without its link, is success.
///
/// Refuses an address without a VIP's mark (a /32 or /128 with noprefixroute): nodes' own addresses look otherwise.
pub async fn remove_address(address: &Address) -> Result<(), Error> {
    let Address { ip, prefix_len, link, noprefixroute } = address;
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    if *prefix_len != whole || !*noprefixroute {
        return Err(Error::NotMarked { ip: *ip, prefix_len: *prefix_len, link: link.clone() });
    }
    let Some(index) = index_of(link).await? else { return Ok(()) };
    let act = format!("remove {ip}/{prefix_len} from {link}");
    let gone = [Errno::ADDRNOTAVAIL, Errno::NODEV];
    unless(&gone, request(&act, deletion(index, *ip, *prefix_len)).await).map(|_| ())
}

/// The index of the link called `name`, `None` when there is none.
async fn index_of(name: &str) -> Result<Option<u32>, Error> {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let answer = request(&format!("find link {name}"), RouteNetlinkMessage::GetLink(question)).await;
    Ok(unless(&[Errno::NODEV], answer)?.iter().find_map(|object| match object {
        RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
        _ => None,
    }))
}

/// `result`, in which a refusal with one of `harmless` is an empty answer.
pub(super) fn unless(
    harmless: &[Errno],
    result: Result<Vec<RouteNetlinkMessage>, Error>,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    match result {
        Err(error) if harmless.iter().any(|errno| error.errno() == Some(errno.raw_os_error())) => {
            Ok(Vec::new())
        }
        result => result,
    }
}

/// RTM_DELADDR for exactly that address: without IFA_LOCAL the kernel would take the first that matches.
fn deletion(index: u32, ip: IpAddr, prefix_len: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    RouteNetlinkMessage::DelAddress(message)
}
