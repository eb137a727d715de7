//! Marks for mode dsr: the sets, maps and chains that tell IPVS where a packet comes from. And the steering bit alone for what
//! this host sends to a frontend of mode nat that may be served at an address of its own.
//!
//! Pure. A packet to a frontend comes from a client elsewhere, from a peer that hands it on, or from a client on this node,
//! and each has a virtual server of its own. The mark says which; its highest bit also brings the packet into this host's
//! own stack when the VIP is elsewhere, by a policy rule, and is taken off before IPVS compares marks: with it a
//! translated packet would be routed to this host again.

use std::collections::BTreeSet;

use super::Steering;
use super::render::{Kind, Set, tuple, tuple_type};
use crate::model::{Family, Frontend};

/// One family's words of nft.
struct Words {
    number: u8,
    ip: &'static str,
    /// ICMP errors: without those on fragmentation and hop limits connections hang (RFC 1191, RFC 8201).
    errors: &'static str,
}

const V4: Words = Words {
    number: 4,
    ip: "ip",
    errors: "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
};
const V6: Words = Words {
    number: 6,
    ip: "ip6",
    errors: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
};

/// The sets that both families share.
pub(super) fn shared_sets(steering: &Steering) -> Vec<Set> {
    if steering.frontends.is_empty() {
        return Vec::new();
    }
    let peers = steering.peers.iter().map(ToString::to_string).collect();
    let marks = steering.frontends.values().flat_map(|marks| [marks.peers, marks.own]);
    let marks = marks.map(|mark| format!("{mark:#010x}")).collect();
    vec![
        Set::new(Kind::Set, "peers".into(), "ether_addr".into(), peers),
        Set::new(Kind::Set, "marks".into(), "mark".into(), marks),
    ]
}

/// The sets and maps of one family.
pub(super) fn sets(steering: &Steering, family: Family) -> Vec<Set> {
    let mut sets = if steering.frontends.is_empty() { Vec::new() } else { sets_of_dsr(steering, family) };
    if !steering.inward.is_empty() {
        let inward = steering.inward.iter().filter(|frontend| Family::of(frontend.vip) == family);
        let name = format!("inward{}", family.number());
        sets.push(Set::new(Kind::Set, name, tuple_type(family), inward.map(tuple).collect()));
    }
    sets
}

fn sets_of_dsr(steering: &Steering, family: Family) -> Vec<Set> {
    let number = family.number();
    let address = format!("ipv{number}_addr");
    let frontends: Vec<_> =
        steering.frontends.iter().filter(|(frontend, _)| Family::of(frontend.vip) == family).collect();
    let vips: BTreeSet<_> = frontends.iter().map(|(frontend, _)| frontend.vip).collect();
    let of_family = |addresses: &BTreeSet<std::net::IpAddr>| -> Vec<String> {
        addresses.iter().filter(|ip| Family::of(**ip) == family).map(ToString::to_string).collect()
    };
    let steer = steering.bits.steer();
    let marked = |mark: u32, frontend: &Frontend| format!("{} : {mark:#010x}", tuple(frontend));
    let marks = format!("{} : mark", tuple_type(family));
    vec![
        Set::new(
            Kind::Set,
            format!("dsr{number}"),
            tuple_type(family),
            frontends.iter().map(|(frontend, _)| tuple(frontend)).collect(),
        ),
        Set::new(
            Kind::Values,
            format!("frompeers{number}"),
            marks.clone(),
            frontends.iter().map(|(frontend, marks)| marked(steer | marks.peers, frontend)).collect(),
        ),
        Set::new(
            Kind::Values,
            format!("fromhere{number}"),
            marks,
            frontends.iter().map(|(frontend, marks)| marked(steer | marks.own, frontend)).collect(),
        ),
        Set::new(Kind::Set, format!("dsrvips{number}"), address.clone(), of_family(&vips)),
        Set::new(Kind::Set, format!("nodes{number}"), address.clone(), of_family(&steering.nodes)),
        // A process on the holder may speak from the VIP itself.
        Set::new(
            Kind::Set,
            format!("here{number}"),
            address,
            of_family(&steering.host.union(&vips).copied().collect()),
        ),
    ]
}

/// All chains; empty when nothing is steered.
pub(super) fn chains(steering: &Steering) -> String {
    match (steering.frontends.is_empty(), steering.inward.is_empty()) {
        (true, true) => String::new(),
        (true, false) => on_the_way_out(steering),
        (false, _) => on_the_way_out(steering) + &chains_of_dsr(steering),
    }
}

fn each(line: impl Fn(&Words) -> String) -> String {
    [V4, V6].iter().map(line).collect::<Vec<_>>().concat()
}

fn unsteer(steer: u32) -> String {
    format!("\t\tmeta mark & {steer:#010x} == {steer:#010x} meta mark set meta mark & {:#010x}\n", !steer)
}

/// What processes on this host send. What IPVS hands on by direct routing passes here too, and is told apart by its source.
///
/// Their packets are routed anew, into this host: where IPVS picks a server with an address of this host (a pod of its
/// network, its API server) it leaves the packet on the way that it was on (ip_vs_xmit.c), which else leads out of the card.
/// The bit goes last before IPVS schedules (LOCAL_OUT at -98, ip_vs_core.c): from a connection's second packet on NAT at -100
/// routes anew by the mark, as conntrack has another destination by then (nf_nat_ipv4_local_fn in nf_nat_proto.c).
fn on_the_way_out(steering: &Steering) -> String {
    let steer = steering.bits.steer();
    let inward = each(|Words { number, ip, .. }| {
        format!(
            "\t\t{ip} daddr . meta l4proto . th dport @inward{number} meta mark set meta mark | {steer:#010x}\n"
        )
    });
    let dsr = each(|Words { number, ip, .. }| {
        format!(
            "\t\t{ip} saddr @here{number} {ip} daddr . meta l4proto . th dport @dsr{number} goto here{number}\n"
        )
    });
    let inward = if steering.inward.is_empty() { String::new() } else { inward };
    let dsr = if steering.frontends.is_empty() { String::new() } else { dsr };
    let unsteer = unsteer(steer);
    format!(
        "
\tchain here {{
\t\ttype route hook output priority mangle; policy accept;
{inward}{dsr}\t}}

\tchain steeredhere {{
\t\ttype filter hook output priority -99; policy accept;
{unsteer}\t}}
"
    )
}

/// prerouting: of pods on this node, what is theirs; of what comes from a peer's card and is not that peer's own, or through
/// an overlay network, what was handed on; all else is for the holder's table wherever the VIP is, as packets that are under
/// way while it moves must not get lost; but on a host that leaves its VIPs to others, and has no such table, it goes on to
/// these. postrouting: a mark has done its work. Left on, it would be that of the datagram around the packet too, where an
/// overlay network (VXLAN, Geneve) makes one; IPVS would take that for the client's next packet, translate and send it
/// through the same device, and so on until the kernel's stack is full.
fn chains_of_dsr(steering: &Steering) -> String {
    let steer = steering.bits.steer();
    let prerouting = each(|Words { number, ip, .. }| {
        format!("\t\t{ip} daddr . meta l4proto . th dport @dsr{number} goto steer{number}\n")
    });
    let errors = each(|Words { number, ip, errors }| {
        format!("\t\t{ip} daddr @dsrvips{number} {errors} meta mark set {steer:#010x}\n")
    });
    let errors = if steering.left { String::new() } else { errors };
    let unsteer = unsteer(steer);
    let steers = each(|words| family_chains(words, steering));
    format!(
        "
\tchain steer {{
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tiifname \"lo\" return
{prerouting}{errors}\t}}

\tchain steered {{
\t\ttype filter hook input priority mangle; policy accept;
{unsteer}\t}}

\tchain translated {{
\t\ttype filter hook postrouting priority mangle; policy accept;
\t\tmeta mark @marks meta mark set 0
\t}}
{steers}"
    )
}

fn family_chains(Words { number, ip, .. }: &Words, steering: &Steering) -> String {
    let steer = steering.bits.steer();
    let key = format!("{ip} daddr . meta l4proto . th dport");
    let tunnel = |name: &String| format!("\t\tiifname \"{name}\" goto frompeers{number}\n");
    let tunnels = steering.tunnels.iter().map(tunnel).collect::<Vec<_>>().concat();
    let others = if steering.left { String::new() } else { format!("\t\tmeta mark set {steer:#010x}\n") };
    format!(
        "
\tchain steer{number} {{
\t\t{ip} saddr @localpods{number} meta mark set {key} map @fromhere{number} return
\t\tether saddr @peers {ip} saddr != @nodes{number} goto frompeers{number}
{tunnels}{others}\t}}

\tchain frompeers{number} {{
\t\tmeta mark set {key} map @frompeers{number}
\t}}

\tchain here{number} {{
\t\tmeta mark set {key} map @fromhere{number}
\t}}
"
    )
}
