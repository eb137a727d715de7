//! The shield: the map and the chains that keep connections to frontends from kube-proxy.
//!
//! Pure. Where kube-proxy has rules of its own for a frontend it would send connections to pods before IPVS sees them. A
//! connection gets its destination from the first NAT chain that names one; these come just before kube-proxy's and name
//! the destination that it has already.

use std::collections::BTreeSet;

use super::render::{Kind, Set, tuple, tuple_type};
use crate::model::{Family, Frontend};

/// kube-proxy's own chains are at dstnat and, for what the host sends, at -100, in its nftables mode
/// (pkg/proxy/nftables) as by iptables.
const CHAINS: &str = "
	chain shield_prerouting {
		type nat hook prerouting priority dstnat - 10; policy accept;
		dnat ip to ip daddr . meta l4proto . th dport map @shielded4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @shielded6
	}

	chain shield_output {
		type nat hook output priority -110; policy accept;
		dnat ip to ip daddr . meta l4proto . th dport map @shielded4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @shielded6
	}
";

/// The chains; none where nothing is shielded.
pub(super) fn chains(shielded: &BTreeSet<Frontend>) -> &'static str {
    if shielded.is_empty() { "" } else { CHAINS }
}

/// `shielded4` or `shielded6`, from a frontend to its own VIP; none where nothing is shielded.
pub(super) fn set(shielded: &BTreeSet<Frontend>, family: Family) -> Option<Set> {
    let number = family.number();
    let of = format!("{} : ipv{number}_addr", tuple_type(family));
    let frontends = shielded.iter().filter(|frontend| Family::of(frontend.vip) == family);
    let elements = frontends.map(|frontend| format!("{} : {}", tuple(frontend), frontend.vip)).collect();
    (!shielded.is_empty()).then(|| Set::new(Kind::Values, format!("shielded{number}"), of, elements))
}
