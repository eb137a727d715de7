//! The marks of mode dsr on a node's own packets, with real ones: on for IPVS, off behind it. And the steering bit, on for NAT
//! and off for IPVS.

use std::net::UdpSocket;

use kvip::marks::Marks;
use kvip::net::MacAddress;
use kvip::nft::{Ruleset, Steering, client};

use super::sources::ip;
use super::{frontend, in_namespace, nft, ruleset};

const OWN: u32 = 0x0d29;
/// Counts what NAT would see (or what routes anew just before), what IPVS would, and what goes out of a device.
const COUNTERS: &str = "table inet seen {
    chain other { type filter hook output priority -151; ip daddr 10.87.2.51 meta mark set 0x7; }
    chain nat { type filter hook output priority -100; meta mark & 0x01000000 != 0 counter; }
    chain before { type filter hook output priority -98; ip daddr 10.87.2.50 meta mark 0x0d29 counter; }
    chain behind { type filter hook postrouting priority 0; ip daddr 10.87.2.50 meta mark != 0 counter; }
    chain kept { type filter hook postrouting priority 0; oifname lo ip daddr 10.87.2.51 meta mark 0x7 counter; }
}";

/// A frontend of mode dsr in each family, on a node with one peer and an overlay network.
pub(super) fn steered() -> Ruleset {
    let frontends = ["udp 10.87.2.50 53", "tcp fd00:87:2::50 80"];
    let marks = [Marks { peers: 0x0d28, own: OWN }, Marks { peers: 0x0e28, own: 0x0e29 }];
    let steering = Steering {
        frontends: frontends.map(frontend).into_iter().zip(marks).collect(),
        peers: [MacAddress([0x52, 0x54, 0, 0x87, 2, 6])].into(),
        nodes: ["10.87.2.6".parse().unwrap()].into(),
        tunnels: ["flannel.1".into()].into(),
        host: ["10.87.2.4".parse().unwrap()].into(),
        ..Steering::default()
    };
    Ruleset { steering, ..ruleset(&frontends, &["10.87.2.50"], &["10.2.4.0/24"]) }
}

/// Frontends of mode nat that are served at an address of this host too.
pub(super) fn inward() -> Ruleset {
    let frontends = ["udp 10.87.2.51 53", "tcp fd00:87:2::51 6443"];
    let steering = Steering { inward: frontends.map(frontend).into(), ..Steering::default() };
    Ruleset { steering, ..ruleset(&frontends, &["10.87.2.51"], &["10.2.4.0/24"]) }
}

#[test]
fn a_mark_is_on_for_ipvs_and_off_behind_it() {
    if !in_namespace("steering::a_mark_is_on_for_ipvs_and_off_behind_it") {
        return;
    }
    for address in ["10.87.2.4/24", "10.87.2.50/32"] {
        ip(&format!("address add {address} dev lo"));
    }
    client::apply(&steered()).unwrap();
    assert!(nft(&["-f", "-"], COUNTERS).0);
    let socket = UdpSocket::bind("10.87.2.4:0").unwrap();
    socket.send_to(b"x", "10.87.2.50:53").unwrap();
    let counted = |chain| nft(&["list", "chain", "inet", "seen", chain], "").1;
    for (chain, packets) in [("nat", 1), ("before", 1), ("behind", 0)] {
        assert!(counted(chain).contains(&format!("counter packets {packets} ")), "{}", counted(chain));
    }
}

/// The VIP is elsewhere, behind a card.
#[test]
fn what_the_host_may_answer_itself_stays_here_in_mode_nat() {
    if !in_namespace("steering::what_the_host_may_answer_itself_stays_here_in_mode_nat") {
        return;
    }
    for line in [
        "link add eth0 type bridge",
        "link set eth0 up",
        "address add 10.87.2.4/24 dev eth0",
        "rule add fwmark 0x1000000/0x1000000 lookup 5087 priority 50",
        "route add local default dev lo table 5087",
    ] {
        ip(line);
    }
    client::apply(&inward()).unwrap();
    assert!(nft(&["-f", "-"], COUNTERS).0);
    let socket = UdpSocket::bind("10.87.2.4:0").unwrap();
    for port in [53, 54] {
        socket.send_to(b"x", ("10.87.2.51", port)).unwrap();
    }
    for chain in ["nat", "kept"] {
        let counted = nft(&["list", "chain", "inet", "seen", chain], "").1;
        assert!(counted.contains("counter packets 1 "), "{counted}");
    }
}
