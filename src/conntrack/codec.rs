//! Connection tracking's netlink messages (`<linux/netfilter/nfnetlink_conntrack.h>`, net/netfilter/nf_conntrack_netlink.c).
//!
//! Pure. Entries that no VIP of a Service can have are skipped: of other protocols, and of zones other than the first, in
//! which IPVS looks for none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Flow;
use crate::model::{Family, Protocol};
use crate::netlink::wire::{ACK, Attributes, DUMP, DecodeError, Writer};

/// NFNL_SUBSYS_CTNETLINK, as the upper byte of a message's type.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM + 1;
const DELETE: u16 = SUBSYSTEM + 2;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;

const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const TUPLE_ZONE: u16 = 3;

const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;

const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// IPS_DST_NAT.
const DST_NAT: u32 = 1 << 5;

/// One entry, by which the kernel finds it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    family: Family,
    /// As the kernel wrote it.
    original: Vec<u8>,
    /// Another entry of the same addresses and ports has another.
    id: Vec<u8>,
}

/// Asks for all entries of a family.
pub(super) fn dump(family: Family, sequence: u32) -> Vec<u8> {
    Writer::netfilter(GET, DUMP, sequence, number(family)).finish()
}

/// Asks to forget an entry.
pub(super) fn delete(entry: &Entry, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::netfilter(DELETE, ACK, sequence, number(entry.family));
    writer.nest(TUPLE_ORIG, |writer| writer.put_raw(&entry.original));
    writer.put(ID, &entry.id);
    writer.finish()
}

/// One entry in the answer to [`dump`], with what it says of its flow.
pub(super) fn entry(family: Family, payload: &[u8]) -> Result<Option<(Flow, Entry)>, DecodeError> {
    let attributes = Attributes::parse(payload)?;
    let original = attributes.nested(TUPLE_ORIG, "original tuple")?;
    let reply = attributes.nested(TUPLE_REPLY, "reply tuple")?;
    let zoned = |tuple: &Attributes| tuple.find(TUPLE_ZONE).is_some();
    if attributes.find(ZONE).is_some() || zoned(&original) || zoned(&reply) {
        return Ok(None);
    }
    let Some((protocol, from, to)) = tuple(&original)? else { return Ok(None) };
    let Some((_, answered_from, _)) = tuple(&reply)? else { return Ok(None) };
    let by_nat = attributes.be32(STATUS, "status")? & DST_NAT != 0;
    let entry = Entry {
        family,
        original: attributes.get(TUPLE_ORIG, "original tuple")?.to_vec(),
        id: attributes.get(ID, "id")?.to_vec(),
    };
    Ok(Some((Flow { protocol, from, to, answered_from, by_nat }, entry)))
}

/// Protocol, source and destination.
fn tuple(tuple: &Attributes) -> Result<Option<(Protocol, SocketAddr, SocketAddr)>, DecodeError> {
    let (ip, proto) = (tuple.nested(TUPLE_IP, "addresses")?, tuple.nested(TUPLE_PROTO, "protocol")?);
    let number = proto.get(PROTO_NUM, "protocol number")?.first().copied();
    let number = number.ok_or(DecodeError::Value("protocol number"))?;
    let Some(protocol) = Protocol::from_number(number.into()) else { return Ok(None) };
    let end = |v4, v6, port| -> Result<SocketAddr, DecodeError> {
        Ok(SocketAddr::new(address(&ip, v4, v6)?, proto.be16(port, "port")?))
    };
    let from = end(IP_V4_SRC, IP_V6_SRC, PROTO_SRC_PORT)?;
    Ok(Some((protocol, from, end(IP_V4_DST, IP_V6_DST, PROTO_DST_PORT)?)))
}

fn address(ip: &Attributes, v4: u16, v6: u16) -> Result<IpAddr, DecodeError> {
    let wrong = |_| DecodeError::Value("address");
    if let Some(bytes) = ip.find(v4) {
        return <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into()).map_err(wrong);
    }
    let bytes = ip.get(v6, "address")?;
    <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into()).map_err(wrong)
}

/// AF_INET, AF_INET6.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::wire::{Body, replies};

    /// The payload of an entry as the kernel writes one.
    fn payload(
        original: (&str, &str),
        reply: (&str, &str),
        protocol: u8,
        status: u32,
        zone: bool,
    ) -> Vec<u8> {
        let mut writer = Writer::netfilter(SUBSYSTEM, 0, 0, 2);
        for (kind, (from, to)) in [(TUPLE_ORIG, original), (TUPLE_REPLY, reply)] {
            let [from, to]: [SocketAddr; 2] = [from, to].map(|text| text.parse().unwrap());
            writer.nest(kind, |writer| {
                writer.nest(TUPLE_IP, |writer| {
                    for (end, v4, v6) in [(from, IP_V4_SRC, IP_V6_SRC), (to, IP_V4_DST, IP_V6_DST)] {
                        match end.ip() {
                            IpAddr::V4(ip) => writer.put(v4, &ip.octets()),
                            IpAddr::V6(ip) => writer.put(v6, &ip.octets()),
                        }
                    }
                });
                writer.nest(TUPLE_PROTO, |writer| {
                    writer.put(PROTO_NUM, &[protocol]);
                    writer.put(PROTO_SRC_PORT, &from.port().to_be_bytes());
                    writer.put(PROTO_DST_PORT, &to.port().to_be_bytes());
                });
            });
        }
        writer.put(STATUS, &status.to_be_bytes());
        writer.put(ID, &[1, 2, 3, 4]);
        if zone {
            writer.put(ZONE, &[0, 1]);
        }
        let bytes = writer.finish();
        let replies = replies(&bytes).unwrap();
        let Body::Data(payload) = replies[0].body else { panic!("{replies:?}") };
        payload.to_vec()
    }

    #[test]
    fn an_entry_is_read_and_named_by_what_it_was_read_from() {
        for (original, reply, family) in [
            (("10.0.0.5:4000", "10.0.0.1:53"), ("10.2.0.7:5353", "10.0.0.9:4000"), Family::V4),
            (("[fd00::5]:4000", "[fd00::1]:53"), ("[fd00:2::7]:5353", "[fd00::9]:4000"), Family::V6),
        ] {
            let (flow, found) = entry(family, &payload(original, reply, 17, 0x18e, false)).unwrap().unwrap();
            let expected = Flow {
                protocol: Protocol::Udp,
                from: original.0.parse().unwrap(),
                to: original.1.parse().unwrap(),
                answered_from: reply.0.parse().unwrap(),
                by_nat: false,
            };
            assert_eq!(flow, expected);
            let question = delete(&found, 7);
            let sent = replies(&question).unwrap();
            let Body::Data(sent) = sent[0].body else { panic!("{sent:?}") };
            let sent = Attributes::parse(sent).unwrap();
            assert_eq!(
                tuple(&sent.nested(TUPLE_ORIG, "").unwrap()).unwrap(),
                Some((flow.protocol, flow.from, flow.to))
            );
            assert_eq!(sent.find(ID), Some(&[1, 2, 3, 4][..]));
        }
    }

    #[test]
    fn other_protocols_and_zones_are_skipped_and_nat_is_told() {
        let (ends, back) = (("10.0.0.5:4000", "10.0.0.1:53"), ("10.2.0.7:5353", "10.0.0.5:4000"));
        let read =
            |protocol, status, zone| entry(Family::V4, &payload(ends, back, protocol, status, zone)).unwrap();
        assert_eq!(read(47, 0, false), None);
        assert_eq!(read(17, 0, true), None);
        assert!(read(6, DST_NAT, false).unwrap().0.by_nat);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = entry(Family::V4, &bytes);
        }
    }
}
