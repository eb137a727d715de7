//! The text of kvip's table for `nft -f -`.
//!
//! Pure. One transaction makes the table anew, so that no packet meets half of it; other tables are not named. Written
//! for nft 0.9.3 and newer: no `destroy`, no table comment, one statement a line.

use std::collections::{BTreeSet, hash_map::DefaultHasher};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;

use super::sources::{self, Limited};
use super::{Ruleset, shield, steering, untracked};
use crate::model::{Family, Frontend};

/// The one table that is kvip's, with its family.
pub(super) const TABLE: &str = "inet kvip";

/// Removes the table, also when there is none.
pub(super) const DELETE: &str = "table inet kvip\ndelete table inet kvip\n";

/// The chains; they never change while kvip runs, only the sets do.
///
/// Replies from pods elsewhere would miss this node, and replies from a local pod to another local pod would miss IPVS:
/// both are masqueraded. IPVS has rewritten the destination by then, so that conntrack alone still knows the VIP. A local
/// pod gets another port: its CNI may have masqueraded it by this host's address and its own port towards the last holder,
/// whose IPVS still remembers that and would take the answer of a pod of its own for one of that flow's.
///
/// Input runs before IPVS takes a packet in (LOCAL_IN at 99, ip_vs_core.c), so frontends pass here. ICMP is never
/// refused, as path MTU discovery lives on it, and neither is what belongs to a connection: of TCP only the first
/// packet is, since conntrack does not know connections that are older than itself. The host answers the others.
const CHAINS: &str = "
	chain postrouting {
		type nat hook postrouting priority srcnat - 5; policy accept;
		ct original ip daddr @vips4 ip daddr != @vips4 jump masquerade4
		ct original ip6 daddr @vips6 ip6 daddr != @vips6 jump masquerade6
	}

	chain masquerade4 {
		ip saddr @localpods4 masquerade fully-random
		ip daddr != @localpods4 masquerade
	}

	chain masquerade6 {
		ip6 saddr @localpods6 masquerade fully-random
		ip6 daddr != @localpods6 masquerade
	}

	chain input {
		type filter hook input priority filter; policy accept;
		ip daddr @refused4 jump refuse4
		ip6 daddr @refused6 jump refuse6
	}

	chain refuse4 {
		ct state established,related return
		ip daddr . meta l4proto . th dport @frontends4 return
		tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset
		meta l4proto { udp, sctp } reject with icmpx type port-unreachable
	}

	chain refuse6 {
		ct state established,related return
		ip6 daddr . meta l4proto . th dport @frontends6 return
		tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset
		meta l4proto { udp, sctp } reject with icmpx type port-unreachable
	}
";

/// The ruleset as one nft transaction.
pub fn render(ruleset: &Ruleset) -> String {
    let Parts { sets, chains } = Parts::new(ruleset);
    let sets: Vec<_> = sets.iter().map(Set::render).collect();
    format!("{DELETE}table {TABLE} {{{sets}{chains}}}\n", sets = sets.concat())
}

/// What the table consists of.
pub(super) struct Parts {
    pub(super) sets: Vec<Set>,
    /// All chains, as they are rendered.
    pub(super) chains: String,
}

impl Parts {
    pub(super) fn new(ruleset: &Ruleset) -> Self {
        let [v4, v6] = [Family::V4, Family::V6].map(|family| Limited::new(ruleset, family));
        let Ruleset { steering, shielded, untracked, .. } = ruleset;
        let limits = [v4.chains(), v6.chains()].concat();
        let steers = steering::chains(steering);
        let (shield, notrack) = (shield::chains(shielded), untracked::chains(untracked));
        let chains = [CHAINS, sources::CHAINS, &limits, &steers, shield, notrack].concat();
        let of = |family, limited: &Limited| {
            let steered = steering::sets(steering, family);
            let more = shield::set(shielded, family).into_iter().chain(untracked::set(untracked, family));
            sets(ruleset, family).into_iter().chain(limited.sets()).chain(steered).chain(more)
        };
        let shared = steering::shared_sets(steering);
        Self { sets: of(Family::V4, &v4).chain(of(Family::V6, &v6)).chain(shared).collect(), chains }
    }
}

/// A short name of what [`render`] makes, the same for the same ruleset in one version of kvip.
pub fn fingerprint(ruleset: &Ruleset) -> String {
    format!("{:016x}", digest(&render(ruleset)))
}

/// A short name of `text`. Another algorithm in another Rust release costs one needless rewrite of the table.
pub(super) fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The sets of one family that say what is balanced and what is refused.
fn sets(ruleset: &Ruleset, family: Family) -> [Set; 4] {
    let number = family.number();
    let address = format!("ipv{number}_addr");

    let frontends = || ruleset.frontends.iter().filter(|frontend| Family::of(frontend.vip) == family);
    let tuples: Vec<_> = frontends().map(tuple).collect();
    let vips: BTreeSet<IpAddr> = frontends().map(|frontend| frontend.vip).collect();
    let addresses: Vec<_> = vips.iter().map(IpAddr::to_string).collect();
    let refused = ruleset
        .closed
        .iter()
        .filter(|vip| Family::of(**vip) == family)
        .map(IpAddr::to_string)
        .collect::<Vec<_>>();
    let pods = networks(ruleset.local_pods.iter().filter(|network| Family::of(network.addr()) == family));

    [
        Set::new(Kind::Set, format!("frontends{number}"), tuple_type(family), tuples),
        Set::new(Kind::Set, format!("vips{number}"), address.clone(), addresses),
        Set::new(Kind::Set, format!("refused{number}"), address.clone(), refused),
        Set::new(Kind::Networks, format!("localpods{number}"), address, pods),
    ]
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Single values.
    Set,
    /// Ranges of addresses.
    Networks,
    /// Values with a verdict each.
    Map,
    /// Values with a value each.
    Values,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) kind: Kind,
    pub(super) name: String,
    of: String,
    pub(super) elements: Vec<String>,
}

impl Set {
    pub(super) fn new(kind: Kind, name: String, of: String, elements: Vec<String>) -> Self {
        Self { kind, name, of, elements }
    }

    fn render(&self) -> String {
        let Self { kind, name, of, elements } = self;
        let word = if matches!(kind, Kind::Map | Kind::Values) { "map" } else { "set" };
        let flags = if *kind == Kind::Networks { "\t\tflags interval\n" } else { "" };
        let elements = match &elements[..] {
            [] => String::new(),
            _ => format!("\t\telements = {{\n\t\t\t{}\n\t\t}}\n", elements.join(",\n\t\t\t")),
        };
        format!("\n\t{word} {name} {{\n\t\ttype {of}\n{flags}{elements}\t}}\n")
    }
}

/// The fewest networks that cover the same addresses: nft refuses intervals that overlap, and a pod's address within
/// the node's pod network must not change the text.
pub(super) fn networks<'a>(networks: impl Iterator<Item = &'a IpNet>) -> Vec<String> {
    let networks: Vec<IpNet> = networks.map(IpNet::trunc).collect();
    let single = |network: &IpNet| network.prefix_len() == network.max_prefix_len();
    IpNet::aggregate(&networks)
        .iter()
        .map(|network| if single(network) { network.addr().to_string() } else { network.to_string() })
        .collect()
}

/// The key by which a frontend stands in a set.
pub(super) fn tuple(frontend: &Frontend) -> String {
    let Frontend { vip, protocol, port } = frontend;
    format!("{vip} . {protocol} . {port}")
}

/// The type of [`tuple`].
pub(super) fn tuple_type(family: Family) -> String {
    format!("ipv{}_addr . inet_proto . inet_service", family.number())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The elements of the set `name` as rendered for `local_pods` and `frontends` written in words.
    #[track_caller]
    fn check_local_pods(networks: &[&str], expected: &[&str]) {
        let parsed: Vec<IpNet> = networks.iter().map(|n| n.parse().unwrap()).collect();
        assert_eq!(super::networks(parsed.iter()), expected, "{networks:?}");
    }

    #[test]
    fn local_pods_never_overlap() {
        check_local_pods(&["10.2.4.0/24", "10.2.4.9/32", "10.2.9.1/32"], &["10.2.4.0/24", "10.2.9.1"]);
        check_local_pods(&["10.2.4.7/24"], &["10.2.4.0/24"]);
        check_local_pods(&["fd00::/64", "fd00::1/128", "fd01::1/128"], &["fd00::/64", "fd01::1"]);
        check_local_pods(&[], &[]);
    }

    proptest! {
        /// Pods that come and go inside the node's pod network leave the table as it is.
        #[test]
        fn a_pod_in_the_pod_network_changes_nothing(last: u8) {
            let network: IpNet = "10.2.4.0/24".parse().unwrap();
            let pod = IpNet::from(IpAddr::from([10, 2, 4, last]));
            let ruleset = |pods: &[IpNet]| Ruleset { local_pods: pods.iter().copied().collect(), ..Ruleset::default() };
            prop_assert_eq!(fingerprint(&ruleset(&[network])), fingerprint(&ruleset(&[network, pod])));
        }
    }
}
