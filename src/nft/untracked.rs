//! Frontends whose packets connection tracking is not to know: those whose datagrams IPVS balances one by one.
//!
//! Pure. To conntrack all datagrams of one client's port are one flow. Once the first was masqueraded as it left, each that
//! leaves by another link, to a pod on this host, is dropped (`nf_nat_oif_changed` in `net/netfilter/nf_nat_core.c`).
//! Untracked none is masqueraded and all arrive; and nobody's answers were translated before.

use std::collections::BTreeSet;

use super::render::{Kind, Set, tuple, tuple_type};
use crate::model::{Family, Frontend};

/// Where the VIP is elsewhere it stays a flow like others: one that this host's pods or kube-proxy may have to do with. What
/// this host sends itself its own IPVS balances, wherever the VIP is.
const CHAINS: &str = "
	chain untracked_prerouting {
		type filter hook prerouting priority raw; policy accept;
		ip daddr . meta l4proto . th dport @untracked4 fib daddr type local notrack
		ip6 daddr . meta l4proto . th dport @untracked6 fib daddr type local notrack
	}

	chain untracked_output {
		type filter hook output priority raw; policy accept;
		ip daddr . meta l4proto . th dport @untracked4 notrack
		ip6 daddr . meta l4proto . th dport @untracked6 notrack
	}
";

/// The chains; none where all is tracked.
pub(super) fn chains(untracked: &BTreeSet<Frontend>) -> &'static str {
    if untracked.is_empty() { "" } else { CHAINS }
}

/// `untracked4` or `untracked6`; none where all is tracked.
pub(super) fn set(untracked: &BTreeSet<Frontend>, family: Family) -> Option<Set> {
    let elements =
        untracked.iter().filter(|frontend| Family::of(frontend.vip) == family).map(tuple).collect();
    let name = format!("untracked{}", family.number());
    (!untracked.is_empty()).then(|| Set::new(Kind::Set, name, tuple_type(family), elements))
}
