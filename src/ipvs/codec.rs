//! IPVS's generic netlink messages: kvip's model to bytes and back (`<linux/ip_vs.h>`, net/netfilter/ipvs/ip_vs_ctl.c).
//!
//! Pure. Virtual servers of protocols that no Service can name are skipped: they are not kvip's. Attributes that kvip
//! does not use (statistics, persistence engines) are skipped as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::model::{Command, Forward, Key, Persistence, RealServer, Service, Thresholds, Tunnel};
use crate::model::{Backend, Family, Frontend, Protocol};
use crate::netlink::wire::{ACK, Attributes, DUMP, DecodeError, Writer};

/// GENL_ID_CTRL, the family that names families.
const CONTROL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The version of the family IPVS.
pub(super) const VERSION: u8 = 1;
const CMD_NEW_SERVICE: u8 = 1;
const CMD_SET_SERVICE: u8 = 2;
const CMD_DEL_SERVICE: u8 = 3;
const CMD_GET_SERVICE: u8 = 4;
const CMD_NEW_DEST: u8 = 5;
const CMD_SET_DEST: u8 = 6;
const CMD_DEL_DEST: u8 = 7;
const CMD_GET_DEST: u8 = 8;
const CMD_GET_INFO: u8 = 15;

const ATTR_SERVICE: u16 = 1;
const ATTR_DEST: u16 = 2;

const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;
const SVC_FWMARK: u16 = 5;
const SVC_SCHED_NAME: u16 = 6;
const SVC_FLAGS: u16 = 7;
const SVC_TIMEOUT: u16 = 8;
const SVC_NETMASK: u16 = 9;

const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const DEST_FWD_METHOD: u16 = 3;
const DEST_WEIGHT: u16 = 4;
const DEST_U_THRESH: u16 = 5;
const DEST_L_THRESH: u16 = 6;
const DEST_ACTIVE_CONNS: u16 = 7;
const DEST_INACT_CONNS: u16 = 8;
const DEST_ADDR_FAMILY: u16 = 11;
const DEST_TUN_TYPE: u16 = 13;
const DEST_TUN_PORT: u16 = 14;
const DEST_TUN_FLAGS: u16 = 15;

/// IP_VS_CONN_F_TUNNEL_TYPE_IPIP and those after it.
const TUNNEL_IPIP: u8 = 0;
const TUNNEL_GUE: u8 = 1;
const TUNNEL_GRE: u8 = 2;

/// IP_VS_SVC_F_PERSISTENT.
const FLAG_PERSISTENT: u32 = 0x1;
/// IP_VS_SVC_F_HASHED: the kernel's own mark on a virtual server that is in its table.
const FLAG_HASHED: u32 = 0x2;
/// IP_VS_CONN_F_FWD_MASK.
const FORWARD_MASK: u32 = 0x7;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Asks for the number of the IPVS family; the kernel loads ip_vs for it where it can.
pub(super) fn get_family(sequence: u32) -> Vec<u8> {
    let mut writer = Writer::generic(CONTROL, ACK, sequence, CTRL_CMD_GETFAMILY, 2);
    writer.put_str(CTRL_ATTR_FAMILY_NAME, "IPVS");
    writer.finish()
}

/// The family's number in the answer to [`get_family`].
pub(super) fn family_id(payload: &[u8]) -> Result<u16, DecodeError> {
    Attributes::parse(payload)?.u16(CTRL_ATTR_FAMILY_ID, "family number")
}

/// Asks for IPVS's version: the cheapest question that needs CAP_NET_ADMIN.
pub(super) fn get_info(family: u16, sequence: u32) -> Vec<u8> {
    Writer::generic(family, ACK, sequence, CMD_GET_INFO, VERSION).finish()
}

/// Asks for all virtual servers.
pub(super) fn dump_services(family: u16, sequence: u32) -> Vec<u8> {
    Writer::generic(family, DUMP, sequence, CMD_GET_SERVICE, VERSION).finish()
}

/// Asks for one virtual server, which is the only answer, or ESRCH.
pub(super) fn get_service(family: u16, sequence: u32, key: &Key) -> Vec<u8> {
    let mut writer = Writer::generic(family, 0, sequence, CMD_GET_SERVICE, VERSION);
    writer.nest(ATTR_SERVICE, |writer| put_key(writer, key));
    writer.finish()
}

/// Asks for the real servers of the virtual server `key`. The kernel answers with none when there is no such virtual
/// server.
pub(super) fn dump_dests(family: u16, sequence: u32, key: &Key) -> Vec<u8> {
    let mut writer = Writer::generic(family, DUMP, sequence, CMD_GET_DEST, VERSION);
    writer.nest(ATTR_SERVICE, |writer| put_key(writer, key));
    writer.finish()
}

/// `command` as a message that asks for an acknowledgement.
pub(super) fn command(family: u16, sequence: u32, command: &Command) -> Vec<u8> {
    let number = match command {
        Command::NewService(..) => CMD_NEW_SERVICE,
        Command::SetService(..) => CMD_SET_SERVICE,
        Command::DelService(..) => CMD_DEL_SERVICE,
        Command::NewDest(..) => CMD_NEW_DEST,
        Command::SetDest(..) => CMD_SET_DEST,
        Command::DelDest(..) => CMD_DEL_DEST,
    };
    let mut writer = Writer::generic(family, ACK, sequence, number, VERSION);
    writer.nest(ATTR_SERVICE, |writer| {
        put_key(writer, command.key());
        if let Command::NewService(key, service) | Command::SetService(key, service) = command {
            put_service(writer, key.family(), service);
        }
    });
    match command {
        Command::NewService(..) | Command::SetService(..) | Command::DelService(..) => {}
        Command::NewDest(_, backend, real) | Command::SetDest(_, backend, real) => {
            writer.nest(ATTR_DEST, |writer| put_dest(writer, backend, Some(real)));
        }
        Command::DelDest(_, backend) => writer.nest(ATTR_DEST, |writer| put_dest(writer, backend, None)),
    }
    writer.finish()
}

fn put_key(writer: &mut Writer, key: &Key) {
    writer.put_u16(SVC_AF, family_number(key.family()));
    match key {
        Key::Frontend(Frontend { vip, protocol, port }) => {
            writer.put_u16(SVC_PROTOCOL, u16::from(protocol.number()));
            writer.put(SVC_ADDR, &address_bytes(*vip));
            writer.put(SVC_PORT, &port.to_be_bytes());
        }
        Key::Mark(_, mark) => writer.put_u32(SVC_FWMARK, *mark),
    }
}

/// What NEW_SERVICE and SET_SERVICE need beside the key (ip_vs_genl_parse_service, `need_full_svc`).
fn put_service(writer: &mut Writer, family: Family, service: &Service) {
    let persistent = if service.persistence.is_some() { FLAG_PERSISTENT } else { 0 };
    let persistence = service.persistence.unwrap_or(Persistence::of_address(Duration::ZERO, family));
    let mut flags = (service.flags | persistent).to_ne_bytes().to_vec();
    flags.extend(u32::MAX.to_ne_bytes()); // struct ip_vs_flags: the mask of flags that are set.
    writer.put_str(SVC_SCHED_NAME, &service.scheduler);
    writer.put(SVC_FLAGS, &flags);
    writer.put_u32(SVC_TIMEOUT, u32::try_from(persistence.timeout.as_secs()).unwrap_or(u32::MAX));
    writer.put(SVC_NETMASK, &netmask(family, persistence.prefix_len));
}

/// The clients that are one to persistence: an IPv4 mask in network order, or an IPv6 prefix length in host order.
fn netmask(family: Family, prefix_len: u8) -> [u8; 4] {
    match family {
        Family::V4 => u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0).to_be_bytes(),
        Family::V6 => u32::from(prefix_len).to_ne_bytes(),
    }
}

/// The prefix length of what [`netmask`] writes.
fn prefix_len(family: Family, netmask: [u8; 4]) -> u8 {
    let bits = match family {
        Family::V4 => u32::from_be_bytes(netmask).leading_ones(),
        Family::V6 => u32::from_ne_bytes(netmask).min(128),
    };
    u8::try_from(bits).unwrap_or(u8::MAX)
}

fn put_dest(writer: &mut Writer, backend: &Backend, real: Option<&RealServer>) {
    writer.put(DEST_ADDR, &address_bytes(backend.address));
    writer.put(DEST_PORT, &backend.port.to_be_bytes());
    if let Some(real) = real {
        writer.put_u32(DEST_FWD_METHOD, forward_number(real.forward));
        writer.put_u32(DEST_WEIGHT, real.weight);
        writer.put_u32(DEST_U_THRESH, real.thresholds.upper);
        writer.put_u32(DEST_L_THRESH, real.thresholds.lower);
    }
    writer.put_u16(DEST_ADDR_FAMILY, family_number(Family::of(backend.address)));
    if let Some(RealServer { forward: Forward::Tunnel(tunnel), .. }) = real {
        put_tunnel(writer, *tunnel);
    }
}

/// Kernels before 5.3 know IP in IP alone, and skip this.
fn put_tunnel(writer: &mut Writer, tunnel: Tunnel) {
    let (kind, port) = match tunnel {
        Tunnel::Ipip => (TUNNEL_IPIP, 0),
        Tunnel::Gue(port) => (TUNNEL_GUE, port),
        Tunnel::Gre => (TUNNEL_GRE, 0),
    };
    writer.put(DEST_TUN_TYPE, &[kind]);
    writer.put(DEST_TUN_PORT, &port.to_be_bytes());
    writer.put_u16(DEST_TUN_FLAGS, 0);
}

/// The virtual server in one message of a dump; `None` when it is one that kvip never owns.
pub(super) fn service(payload: &[u8]) -> Result<Option<(Key, Service)>, DecodeError> {
    let service = Attributes::parse(payload)?.nested(ATTR_SERVICE, "virtual server")?;
    let Some(key) = key(&service)? else { return Ok(None) };
    let flags = service.u32(SVC_FLAGS, "flags")?;
    let timeout = Duration::from_secs(service.u32(SVC_TIMEOUT, "persistence timeout")?.into());
    let netmask = service.get(SVC_NETMASK, "netmask")?.first_chunk::<4>().copied();
    let prefix_len = prefix_len(key.family(), netmask.ok_or(DecodeError::Truncated("netmask"))?);
    let persistence = (flags & FLAG_PERSISTENT != 0).then_some(Persistence { timeout, prefix_len });
    let scheduler = service.str(SVC_SCHED_NAME, "scheduler")?.to_owned();
    Ok(Some((key, Service { scheduler, persistence, flags: flags & !(FLAG_PERSISTENT | FLAG_HASHED) })))
}

fn key(service: &Attributes) -> Result<Option<Key>, DecodeError> {
    let number = service.u16(SVC_AF, "address family")?;
    if service.find(SVC_FWMARK).is_some() {
        return Ok(Some(Key::Mark(family_of(number)?, service.u32(SVC_FWMARK, "firewall mark")?)));
    }
    let Some(protocol) = Protocol::from_number(service.u16(SVC_PROTOCOL, "protocol")?) else {
        return Ok(None);
    };
    let vip = address(number, service.get(SVC_ADDR, "address")?)?;
    Ok(Some(Frontend { vip, protocol, port: service.be16(SVC_PORT, "port")? }.into()))
}

/// The real server in one message of a dump of a virtual server of `family`.
pub(super) fn dest(payload: &[u8], family: Family) -> Result<(Backend, RealServer), DecodeError> {
    let dest = Attributes::parse(payload)?.nested(ATTR_DEST, "real server")?;
    // Kernels before 3.18 do not say the family: it is the virtual server's.
    let number = match dest.find(DEST_ADDR_FAMILY) {
        Some(_) => dest.u16(DEST_ADDR_FAMILY, "address family")?,
        None => family_number(family),
    };
    let address = address(number, dest.get(DEST_ADDR, "address")?)?;
    let active = dest.u32(DEST_ACTIVE_CONNS, "active connections")?;
    let inactive = dest.u32(DEST_INACT_CONNS, "inactive connections")?;
    let real = RealServer {
        forward: forward(&dest)?,
        weight: dest.u32(DEST_WEIGHT, "weight")?,
        thresholds: Thresholds {
            upper: dest.u32(DEST_U_THRESH, "upper threshold")?,
            lower: dest.u32(DEST_L_THRESH, "lower threshold")?,
        },
        connections: active.saturating_add(inactive),
    };
    Ok((Backend { address, port: dest.be16(DEST_PORT, "port")? }, real))
}

fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn family_of(number: u16) -> Result<Family, DecodeError> {
    match number {
        AF_INET => Ok(Family::V4),
        AF_INET6 => Ok(Family::V6),
        _ => Err(DecodeError::Value("address family")),
    }
}

/// `address` as union nf_inet_addr: 16 bytes, an IPv4 address in the first four.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn address(family: u16, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    match family_of(family)? {
        Family::V4 => bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
        Family::V6 => bytes.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
    }
    .ok_or(DecodeError::Truncated("address"))
}

fn forward_number(forward: Forward) -> u32 {
    match forward {
        Forward::Masquerade => 0,
        Forward::Local => 1,
        Forward::Tunnel(_) => 2,
        Forward::DirectRoute => 3,
        Forward::Bypass => 4,
    }
}

fn forward(dest: &Attributes) -> Result<Forward, DecodeError> {
    Ok(match dest.u32(DEST_FWD_METHOD, "forwarding method")? & FORWARD_MASK {
        0 => Forward::Masquerade,
        1 => Forward::Local,
        2 => Forward::Tunnel(tunnel(dest)?),
        3 => Forward::DirectRoute,
        4 => Forward::Bypass,
        _ => return Err(DecodeError::Value("forwarding method")),
    })
}

/// Without a type it is IP in IP, as kernels before 5.3 have no other.
fn tunnel(dest: &Attributes) -> Result<Tunnel, DecodeError> {
    match dest.find(DEST_TUN_TYPE).and_then(|bytes| bytes.first().copied()) {
        None | Some(TUNNEL_IPIP) => Ok(Tunnel::Ipip),
        Some(TUNNEL_GUE) => Ok(Tunnel::Gue(dest.be16(DEST_TUN_PORT, "tunnel port")?)),
        Some(TUNNEL_GRE) => Ok(Tunnel::Gre),
        Some(_) => Err(DecodeError::Value("tunnel type")),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
