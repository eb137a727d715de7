//! One sighting of a packet, read from a capture. Pure: bytes in, packets out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::layout::NodeSpec;

/// So much of each packet is captured, in octets: all headers of TCP over IPv6 within IPv6.
pub const LONGEST: usize = 192;
/// Of a record's own header (pcap-savefile(5)): two words of time, the length that is here, the length that was.
const RECORD: usize = 16;
/// Two addresses and a type.
const ETHERNET: usize = 14;

/// A packet at the card of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The node's name.
    pub node: &'static str,
    /// The node sent it; else it came from elsewhere.
    pub leaving: bool,
    /// From whom; port 0 for what has no ports.
    pub source: SocketAddr,
    /// To whom, as above.
    pub destination: SocketAddr,
    /// The protocol's number: 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// Time to live, hop limit in IPv6.
    pub hops: u8,
    /// What routers leave as it is: equal for two sightings of one packet.
    pub identity: Vec<u8>,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, leaving, source, destination, protocol, hops, .. } = self;
        let sign = if *leaving { "sends" } else { "gets" };
        write!(f, "{node} {sign} {source} > {destination}, protocol {protocol}, {hops} hops left")
    }
}

/// The packets of a capture behind its head, as a machine writes it whose words begin with their lowest octet.
pub fn read(mut bytes: &[u8], spec: &'static NodeSpec) -> Vec<Packet> {
    let mut packets = Vec::new();
    while let Some((frame, rest)) = record(bytes) {
        packets.extend(packet(frame, spec));
        bytes = rest;
    }
    packets
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    bytes.get(RECORD..)?.split_at_checked(usize::try_from(length).ok()?)
}

fn packet(frame: &[u8], spec: &'static NodeSpec) -> Option<Packet> {
    let sender: Vec<String> = frame.get(6..12)?.iter().map(|octet| format!("{octet:02x}")).collect();
    let (header, payload) = split(frame.get(ETHERNET..)?)?;
    let (protocol, hops, source, destination) = read_header(header)?;
    let has_ports = matches!(protocol, 6 | 17 | 132);
    let port = |at: usize| match payload.get(at..at + 2) {
        Some(octets) if has_ports => u16::from_be_bytes([octets[0], octets[1]]),
        _ => 0,
    };
    Some(Packet {
        node: spec.name,
        leaving: sender.join(":") == spec.mac,
        source: SocketAddr::new(source, port(0)),
        destination: SocketAddr::new(destination, port(2)),
        protocol,
        hops,
        identity: identity(header, payload),
    })
}

/// The header of an IP packet, and what is behind it.
fn split(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    match packet.first()? >> 4 {
        4 => packet.split_at_checked(usize::from(packet[0] & 15) * 4),
        6 => packet.split_at_checked(40),
        _ => None,
    }
}

fn read_header(header: &[u8]) -> Option<(u8, u8, IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?).into());
    let v6 = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?).into());
    if header.len() == 40 && header[0] >> 4 == 6 {
        return Some((header[6], header[7], v6(8)?, v6(24)?));
    }
    Some((*header.get(9)?, header[8], v4(12)?, v4(16)?))
}

/// Everything but the count of hops and, in IPv4, the checksum over it.
fn identity(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut identity = header.to_vec();
    if header[0] >> 4 == 6 {
        identity[7] = 0;
    } else {
        identity[8] = 0;
        identity[10..12].fill(0);
    }
    identity.extend_from_slice(payload);
    identity
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::NODES;

    /// A record of a TCP packet from port 7 to 9, sent by a card with that last octet.
    fn record_of(card: u8, header: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 6];
        frame.extend([0x52, 0x54, 0x00, 0xaa, 0x00, card, 0, 0]);
        frame.extend(header);
        frame.extend([0, 7, 0, 9, 1, 2, 3, 4]);
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        [&[0; 8][..], &length, &length, &frame].concat()
    }

    fn v4(hops: u8) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 28, 0x12, 0x34, 0x40, 0, hops, 6, hops, hops, 10, 87, 2, 200];
        header.extend([10, 87, 2, 50]);
        header
    }

    fn v6() -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0, 8, 6, 64];
        header.extend("fd00:87:2::200".parse::<Ipv6Addr>().unwrap().octets());
        header.extend("fd00:87:2::50".parse::<Ipv6Addr>().unwrap().octets());
        header
    }

    #[test]
    fn a_packet_is_read_from_either_family() {
        let packets = read(&[record_of(4, &v4(64)), record_of(6, &v6())].concat(), &NODES[0]);
        let said: Vec<_> = packets.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "node-a sends 10.87.2.200:7 > 10.87.2.50:9, protocol 6, 64 hops left",
                "node-a gets [fd00:87:2::200]:7 > [fd00:87:2::50]:9, protocol 6, 64 hops left",
            ]
        );
    }

    #[test]
    fn a_packet_is_the_same_one_hop_later() {
        let packets = read(&[record_of(4, &v4(64)), record_of(6, &v4(63))].concat(), &NODES[0]);
        assert_eq!(packets[0].identity, packets[1].identity);
        assert_ne!(packets[0].hops, packets[1].hops);
    }

    #[test]
    fn what_is_cut_short_or_no_ip_is_left_out() {
        let whole = record_of(4, &v4(64));
        let arp = record_of(4, &[0x00, 0x01]);
        assert_eq!(read(&[&arp[..], &whole, &whole[..whole.len() - 1]].concat(), &NODES[0]).len(), 1);
    }
}
