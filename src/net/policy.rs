//! The policy rules and routes of kvip: a steered packet (mode dsr, and mode nat where a backend is on this host) is for this
//! host, whoever has its VIP.
//!
//! kvip's carry a routing protocol number of their own (`proto 87` in ip-rule(8) and ip-route(8)), by which they are known
//! again and no other is touched. What another program removes (systemd-networkd when it restarts) shows in
//! [`super::HostFacts`], and the next pass puts it back.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::change::unless;
use super::netlink::{Error, request, request_with};
use super::{PolicyKind, PolicyRoute};
use crate::model::Family;

/// kvip's number among routing protocols; rt_protos knows no other program by it.
const PROTOCOL: u8 = 87;

/// The loopback link's index, the first that a network namespace gives.
const LOOPBACK: u32 = 1;

/// Adds a rule or route; `false` when it was there.
///
/// # Errors
/// When the kernel refuses or does not answer.
pub async fn add_policy_route(wanted: &PolicyRoute) -> Result<bool, Error> {
    let message = match wanted.kind {
        PolicyKind::Rule { mark, priority } => RouteNetlinkMessage::NewRule(rule(wanted, mark, priority)),
        PolicyKind::LocalRoute => RouteNetlinkMessage::NewRoute(route(wanted)),
    };
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match request_with(&format!("add {wanted}"), message, flags).await {
        Err(error) if error.errno() == Some(Errno::EXIST.raw_os_error()) => Ok(false),
        answer => answer.map(|_| true),
    }
}

/// Removes a rule or route of kvip's; one that is gone is success.
///
/// # Errors
/// When the kernel refuses or does not answer.
pub async fn remove_policy_route(own: &PolicyRoute) -> Result<(), Error> {
    let message = match own.kind {
        PolicyKind::Rule { mark, priority } => RouteNetlinkMessage::DelRule(rule(own, mark, priority)),
        PolicyKind::LocalRoute => RouteNetlinkMessage::DelRoute(route(own)),
    };
    let answer = request(&format!("remove {own}"), message).await;
    unless(&[Errno::NOENT, Errno::SRCH], answer).map(drop)
}

fn rule(wanted: &PolicyRoute, mark: u32, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family_number(wanted.family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(mark),
        RuleAttribute::Table(wanted.table),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}

fn route(wanted: &PolicyRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_number(wanted.family);
    message.header.table = u8::try_from(wanted.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.scope = match wanted.family {
        Family::V4 => RouteScope::Host,
        Family::V6 => RouteScope::Universe,
    };
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Table(wanted.table), RouteAttribute::Oif(LOOPBACK)];
    message
}

/// `rule` as one of kvip's, when it is one.
pub(super) fn own_rule(rule: &RuleMessage) -> Option<PolicyRoute> {
    let family = family_of(rule.header.family)?;
    let (mut mark, mut bits, mut priority, mut ours) = (None, None, None, false);
    let mut table = u32::from(rule.header.table);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(number) => mark = Some(*number),
            RuleAttribute::FwMask(number) => bits = Some(*number),
            RuleAttribute::Priority(number) => priority = Some(*number),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    let kind = PolicyKind::Rule { mark: mark.filter(|_| mark == bits)?, priority: priority? };
    ours.then_some(PolicyRoute { family, table, kind })
}

/// `route` as one of kvip's, when it is one.
pub(super) fn own_route(route: &RouteMessage) -> Option<PolicyRoute> {
    let RouteHeader { address_family, protocol, kind, destination_prefix_length, .. } = route.header;
    let family = family_of(address_family)?;
    let mut table = u32::from(route.header.table);
    for attribute in &route.attributes {
        if let RouteAttribute::Table(number) = attribute {
            table = *number;
        }
    }
    let ours = u8::from(protocol) == PROTOCOL && kind == RouteType::Local && destination_prefix_length == 0;
    ours.then_some(PolicyRoute { family, table, kind: PolicyKind::LocalRoute })
}

fn family_number(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn family_of(number: AddressFamily) -> Option<Family> {
    match number {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}
