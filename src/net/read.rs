//! Reads the host's network once.

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::HostFacts;
use super::change::unless;
use super::netlink::{Error, dump};
use super::tables::{Gateways, Tables};

/// What the host is now: its name, links, addresses and default gateways.
pub async fn read() -> Result<HostFacts, Error> {
    Ok(tables().await?.facts(&hostname()))
}

/// The host's name, as uname(2) tells it.
pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// All tables.
pub(super) async fn tables() -> Result<Tables, Error> {
    let mut tables = Tables::default();
    for message in dump("list the links", &links_request()).await? {
        tables.apply(&message);
    }
    let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for message in dump("list the addresses", &addresses).await? {
        tables.apply(&message);
    }
    let routes = routes().await?;
    tables.set_gateways(Gateways::of(&routes));
    for message in routes.iter().chain(&rules().await?) {
        tables.apply(message);
    }
    Ok(tables)
}

/// The default routes of both families.
pub(super) async fn gateways() -> Result<Gateways, Error> {
    Ok(Gateways::of(&routes().await?))
}

async fn routes() -> Result<Vec<RouteNetlinkMessage>, Error> {
    let mut routes = dump("list the IPv4 routes", &routes_request(AddressFamily::Inet)).await?;
    routes.extend(dump("list the IPv6 routes", &routes_request(AddressFamily::Inet6)).await?);
    Ok(routes)
}

async fn rules() -> Result<Vec<RouteNetlinkMessage>, Error> {
    let mut rules = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let found = dump("list the policy rules", &RouteNetlinkMessage::GetRule(request)).await;
        // A kernel that was started without IPv6 has no rules of that family, and says it so.
        rules.extend(unless(&[Errno::AFNOSUPPORT], found)?);
    }
    Ok(rules)
}

/// All links, without their statistics.
fn links_request() -> RouteNetlinkMessage {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(request)
}

/// The routes of a family. The kernel filters by table only for strict requests, and otherwise sends all.
fn routes_request(family: AddressFamily) -> RouteNetlinkMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    RouteNetlinkMessage::GetRoute(request)
}
