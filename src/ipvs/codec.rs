//! IPVS's generic netlink messages: kvip's model to bytes and back (`<linux/ip_vs.h>`, net/netfilter/ipvs/ip_vs_ctl.c).
//!
//! Pure. Virtual servers by firewall mark, and those of protocols that no Service can name, are skipped: they are
//! not kvip's. Attributes that kvip does not use (statistics, thresholds, persistence engines) are skipped as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::model::{Command, Forward, RealServer, Service};
use super::wire::{ACK, Attributes, DUMP, DecodeError, Writer};
use crate::model::{Backend, Family, Frontend, Protocol};

/// GENL_ID_CTRL, the family that names families.
const CONTROL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const VERSION: u8 = 1;
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
    let mut writer = Writer::new(CONTROL, ACK, sequence, CTRL_CMD_GETFAMILY, 2);
    writer.put_str(CTRL_ATTR_FAMILY_NAME, "IPVS");
    writer.finish()
}

/// The family's number in the answer to [`get_family`].
pub(super) fn family_id(payload: &[u8]) -> Result<u16, DecodeError> {
    Attributes::parse(payload)?.u16(CTRL_ATTR_FAMILY_ID, "family number")
}

/// Asks for IPVS's version: the cheapest question that needs CAP_NET_ADMIN.
pub(super) fn get_info(family: u16, sequence: u32) -> Vec<u8> {
    Writer::new(family, ACK, sequence, CMD_GET_INFO, VERSION).finish()
}

/// Asks for all virtual servers.
pub(super) fn dump_services(family: u16, sequence: u32) -> Vec<u8> {
    Writer::new(family, DUMP, sequence, CMD_GET_SERVICE, VERSION).finish()
}

/// Asks for the real servers of `frontend`. The kernel answers with none when there is no such virtual server.
pub(super) fn dump_dests(family: u16, sequence: u32, frontend: &Frontend) -> Vec<u8> {
    let mut writer = Writer::new(family, DUMP, sequence, CMD_GET_DEST, VERSION);
    writer.nest(ATTR_SERVICE, |writer| put_frontend(writer, frontend));
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
    let mut writer = Writer::new(family, ACK, sequence, number, VERSION);
    writer.nest(ATTR_SERVICE, |writer| {
        put_frontend(writer, command.frontend());
        if let Command::NewService(frontend, service) | Command::SetService(frontend, service) = command {
            put_service(writer, frontend, service);
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

fn put_frontend(writer: &mut Writer, frontend: &Frontend) {
    writer.put_u16(SVC_AF, address_family(frontend.vip));
    writer.put_u16(SVC_PROTOCOL, u16::from(frontend.protocol.number()));
    writer.put(SVC_ADDR, &address_bytes(frontend.vip));
    writer.put(SVC_PORT, &frontend.port.to_be_bytes());
}

/// What NEW_SERVICE and SET_SERVICE need beside the frontend (ip_vs_genl_parse_service, `need_full_svc`).
fn put_service(writer: &mut Writer, frontend: &Frontend, service: &Service) {
    let persistent = if service.persistence.is_some() { FLAG_PERSISTENT } else { 0 };
    let timeout = service.persistence.unwrap_or_default().as_secs();
    // Persistence for each client address alone: a whole IPv4 mask, or an IPv6 prefix length in host order.
    let netmask = match Family::of(frontend.vip) {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    };
    let mut flags = (service.flags | persistent).to_ne_bytes().to_vec();
    flags.extend(u32::MAX.to_ne_bytes()); // struct ip_vs_flags: the mask of flags that are set.
    writer.put_str(SVC_SCHED_NAME, &service.scheduler);
    writer.put(SVC_FLAGS, &flags);
    writer.put_u32(SVC_TIMEOUT, u32::try_from(timeout).unwrap_or(u32::MAX));
    writer.put_u32(SVC_NETMASK, netmask);
}

fn put_dest(writer: &mut Writer, backend: &Backend, real: Option<&RealServer>) {
    writer.put(DEST_ADDR, &address_bytes(backend.address));
    writer.put(DEST_PORT, &backend.port.to_be_bytes());
    if let Some(real) = real {
        writer.put_u32(DEST_FWD_METHOD, forward_number(real.forward));
        writer.put_u32(DEST_WEIGHT, real.weight);
        writer.put_u32(DEST_U_THRESH, 0);
        writer.put_u32(DEST_L_THRESH, 0);
    }
    writer.put_u16(DEST_ADDR_FAMILY, address_family(backend.address));
}

/// The virtual server in one message of a dump; `None` when it is one that kvip never owns.
pub(super) fn service(payload: &[u8]) -> Result<Option<(Frontend, Service)>, DecodeError> {
    let service = Attributes::parse(payload)?.nested(ATTR_SERVICE, "virtual server")?;
    if service.find(SVC_FWMARK).is_some() {
        return Ok(None);
    }
    let Some(protocol) = Protocol::from_number(service.u16(SVC_PROTOCOL, "protocol")?) else {
        return Ok(None);
    };
    let vip = address(service.u16(SVC_AF, "address family")?, service.get(SVC_ADDR, "address")?)?;
    let frontend = Frontend { vip, protocol, port: service.be16(SVC_PORT, "port")? };
    let flags = service.u32(SVC_FLAGS, "flags")?;
    let timeout = service.u32(SVC_TIMEOUT, "persistence timeout")?;
    let persistence = (flags & FLAG_PERSISTENT != 0).then(|| Duration::from_secs(timeout.into()));
    let scheduler = service.str(SVC_SCHED_NAME, "scheduler")?.to_owned();
    Ok(Some((frontend, Service { scheduler, persistence, flags: flags & !(FLAG_PERSISTENT | FLAG_HASHED) })))
}

/// The real server in one message of a dump of a virtual server of `family`.
pub(super) fn dest(payload: &[u8], family: Family) -> Result<(Backend, RealServer), DecodeError> {
    let dest = Attributes::parse(payload)?.nested(ATTR_DEST, "real server")?;
    // Kernels before 3.18 do not say the family: it is the virtual server's.
    let number = match (dest.find(DEST_ADDR_FAMILY), family) {
        (Some(_), _) => dest.u16(DEST_ADDR_FAMILY, "address family")?,
        (None, Family::V4) => AF_INET,
        (None, Family::V6) => AF_INET6,
    };
    let address = address(number, dest.get(DEST_ADDR, "address")?)?;
    let active = dest.u32(DEST_ACTIVE_CONNS, "active connections")?;
    let inactive = dest.u32(DEST_INACT_CONNS, "inactive connections")?;
    let real = RealServer {
        forward: forward(dest.u32(DEST_FWD_METHOD, "forwarding method")?)?,
        weight: dest.u32(DEST_WEIGHT, "weight")?,
        connections: active.saturating_add(inactive),
    };
    Ok((Backend { address, port: dest.be16(DEST_PORT, "port")? }, real))
}

fn address_family(address: IpAddr) -> u16 {
    match Family::of(address) {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
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
    match family {
        AF_INET => bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
        AF_INET6 => bytes.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
        _ => return Err(DecodeError::Value("address family")),
    }
    .ok_or(DecodeError::Truncated("address"))
}

fn forward_number(forward: Forward) -> u32 {
    match forward {
        Forward::Masquerade => 0,
        Forward::Local => 1,
        Forward::Tunnel => 2,
        Forward::DirectRoute => 3,
        Forward::Bypass => 4,
    }
}

fn forward(number: u32) -> Result<Forward, DecodeError> {
    Ok(match number & FORWARD_MASK {
        0 => Forward::Masquerade,
        1 => Forward::Local,
        2 => Forward::Tunnel,
        3 => Forward::DirectRoute,
        4 => Forward::Bypass,
        _ => return Err(DecodeError::Value("forwarding method")),
    })
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
