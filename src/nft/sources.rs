//! Who may reach a frontend: the sets, maps and chains that hold `loadBalancerSourceRanges`.
//!
//! Pure. However many frontends there are, a connection costs one look into a hash of them, and one into the networks of
//! the frontend that it is for. Frontends with the same networks share a chain. (One set of frontend and network together
//! would do, but takes nft 0.9.4 and Linux 5.6.)

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::Ruleset;
use super::render::{Kind, Set, networks, tuple, tuple_type};
use crate::model::{Family, Frontend};

/// Up to here a rule for each network, from there on a set. The kernel names a set of a rule by looking at all others:
/// 10,000 of them take it ten seconds, as many rules a quarter of one.
const MOST_RULES: usize = 8;

/// The chains that look a packet up; they never change while kvip runs.
///
/// kube-proxy's nftables mode does the same: it drops in prerouting and output, before anything rewrites the
/// destination, whoever sends, its own node and pods included. Like it, this leaves open connections open when the
/// networks change. Unlike it, it looks at what conntrack takes for invalid too, since IPVS may balance that.
///
/// What this host sends is judged on its way out, and met again on loopback when the host holds the VIP.
pub(super) const CHAINS: &str = "
	chain prerouting {
		type filter hook prerouting priority dstnat - 20; policy accept;
		iifname != \"lo\" jump sources
	}

	chain output {
		type filter hook output priority -120; policy accept;
		ip daddr . meta l4proto . th dport . ip saddr @own4 return
		ip6 daddr . meta l4proto . th dport . ip6 saddr @own6 return
		jump sources
	}

	chain sources {
		ct state established,related return
		ip daddr . meta l4proto . th dport vmap @limited4
		ip6 daddr . meta l4proto . th dport vmap @limited6
	}
";

/// The frontends of a family that not everybody may reach.
pub(super) struct Limited {
    family: Family,
    /// The networks of each chain, by the chain's number less one.
    chains: Vec<Vec<String>>,
    /// The number of each frontend's chain.
    frontends: BTreeMap<Frontend, usize>,
    /// Frontends that this host may reach.
    own: BTreeSet<Frontend>,
}

impl Limited {
    pub(super) fn new(ruleset: &Ruleset, family: Family) -> Self {
        let mut limited =
            Self { family, chains: Vec::new(), frontends: BTreeMap::new(), own: BTreeSet::new() };
        let mut numbers = BTreeMap::new();
        for (frontend, sources) in ruleset.sources.iter().filter(|(f, _)| Family::of(f.vip) == family) {
            let matching = || sources.iter().filter(|network| Family::of(network.addr()) == family);
            if matching().any(|network| ruleset.host.iter().any(|address| network.contains(address))) {
                limited.own.insert(*frontend);
            }
            let chains = &mut limited.chains;
            let number = numbers.entry(networks(matching())).or_insert_with_key(|networks| {
                chains.push(networks.clone());
                chains.len()
            });
            limited.frontends.insert(*frontend, *number);
        }
        limited
    }

    /// `limited4`, from a frontend to its chain, and `own4`, frontends with their VIP as the source.
    pub(super) fn sets(&self) -> [Set; 2] {
        let number = self.family.number();
        let (key, address) = (tuple_type(self.family), format!("ipv{number}_addr"));
        let verdict = |(frontend, chain): (&Frontend, &usize)| {
            format!("{} : goto sources{number}_{chain}", tuple(frontend))
        };
        let verdicts: Vec<_> = self.frontends.iter().map(verdict).collect();
        let own: Vec<_> = self.own.iter().map(|f| format!("{} . {}", tuple(f), f.vip)).collect();
        [
            Set::new(Kind::Map, format!("limited{number}"), format!("{key} : verdict"), verdicts),
            Set::new(Kind::Set, format!("own{number}"), format!("{key} . {address}"), own),
        ]
    }

    /// `sources4_1` and so on: what does not come from these networks ends there.
    pub(super) fn chains(&self) -> String {
        let (number, saddr) = match self.family {
            Family::V4 => (4, "ip saddr"),
            Family::V6 => (6, "ip6 saddr"),
        };
        let mut text = String::new();
        for (chain, networks) in (1..).zip(&self.chains) {
            let rules = rules(saddr, networks).join("\n\t\t");
            write!(text, "\n\tchain sources{number}_{chain} {{\n\t\t{rules}\n\t}}\n")
                .expect("a String takes all text");
        }
        text
    }
}

/// The rules of a chain.
fn rules(saddr: &str, networks: &[String]) -> Vec<String> {
    if networks.len() > MOST_RULES {
        return vec![format!("{saddr} != {{ {} }} drop", networks.join(", "))];
    }
    let returns = networks.iter().map(|network| format!("{saddr} {network} return"));
    returns.chain(["drop".to_owned()]).collect()
}
