//! Another program's firewall, as far as it stands in the way of mode dsr: rules that drop what is invalid to conntrack.
//!
//! The holder sees one way of such a connection, as replies do not pass it. After the first packet, which is new,
//! conntrack finds the client's out of place (nf_conntrack_proto_tcp.c), and `ct state invalid drop` on the way in drops
//! them before IPVS looks (LOCAL_IN at 99, ip_vs_core.c). So does what drops the rest, be it the chain's policy, where
//! only new and established ones are let in. On the way out it is the same once more: what IPVS hands on as it came passes
//! LOCAL_OUT (ip_vs_xmit.c), still for the VIP and as invalid. FORWARD has no such trouble: it never passes there.
//!
//! Pure: [`super::client::firewall`] reads. A rule with a condition that is not understood is taken to mean other packets.

mod rule;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use self::rule::{Parsed, Verdict, parse};
use crate::model::{Family, Frontend, Protocol};

/// So deep are chains followed; real firewalls have three or four levels.
const DEEPEST: usize = 8;

/// The tables whose chains need not be looked at: kvip's own, and kube-proxy's, which grow with the cluster and drop
/// nothing of the kind.
const SKIPPED: [&str; 3] = ["inet kvip", "ip kube-proxy", "ip6 kube-proxy"];

/// The chains that see packets on their way into this host and out of it, of all tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall(Vec<Chain>);

/// A base chain of the hook input or output, with the rules of the chains that it jumps to in their places.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    /// `inet filter`.
    table: String,
    name: String,
    rules: Vec<Rule>,
    /// Whether it drops what no rule decides over.
    closed: bool,
}

/// A rule that decides over a connection that is seen one way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    of: Selector,
    states: States,
    /// Nothing else decides whether it applies, such as the link.
    sure: bool,
    act: Act,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Accept,
    /// Drops or rejects what is in some states, in the words of nft.
    Drop(String),
    /// Drops or rejects whatever comes so far.
    DropRest(String),
}

/// Which packets of a connection that is seen one way a rule means: the first is new, those after it are invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct States {
    new: bool,
    invalid: bool,
}

impl States {
    const ALL: Self = Self { new: true, invalid: true };

    /// Those that `has` tells of by name.
    fn named(has: impl Fn(&str) -> bool) -> Self {
        Self { new: has("new"), invalid: has("invalid") }
    }

    fn and(self, other: Self) -> Self {
        Self { new: self.new && other.new, invalid: self.invalid && other.invalid }
    }
}

/// Which packets a rule means; all where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Selector {
    family: Option<Family>,
    to: Option<Vec<IpNet>>,
    protocols: Option<Vec<String>>,
    ports: Option<Vec<RangeInclusive<u16>>>,
}

/// The rules that drop packets of mode dsr, one of each chain that does; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping<'a>(Vec<(&'a Chain, &'a str)>);

impl Dropping<'_> {
    /// `ct state invalid drop (chain INPUT of table ip filter)`.
    pub fn words(&self) -> String {
        let words = |(chain, rule): &(&Chain, &str)| {
            format!("{rule} (chain {} of table {})", chain.name, chain.table)
        };
        self.0.iter().map(words).collect::<Vec<_>>().join(" and ")
    }

    /// The commands that let packets to `vip` pass before the rules.
    pub fn mend(&self, vip: IpAddr) -> String {
        self.0.iter().map(|(chain, _)| chain.open(vip)).collect::<Vec<_>>().join("; ")
    }
}

impl Firewall {
    /// The tables with a chain of the hooks input or output, in the answer of `nft list chains`.
    pub(super) fn tables(chains: &str) -> Vec<String> {
        let chains = chains_of(chains);
        let mut tables: Vec<String> =
            chains.into_iter().filter(Listed::counts).map(|chain| chain.table).collect();
        tables.dedup();
        tables.retain(|table| !SKIPPED.contains(&table.as_str()));
        tables
    }

    /// Adds what `nft list table` answers of one table.
    pub fn add(&mut self, listing: &str) {
        let chains = chains_of(listing);
        let by_name: BTreeMap<&str, &Listed> =
            chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
        for chain in chains.iter().filter(|chain| chain.counts()) {
            let mut rules = Vec::new();
            flatten(chain, &by_name, When { sure: true, states: States::ALL }, 0, &mut rules);
            let closed = chain.lines.iter().any(|line| line.ends_with("policy drop;"));
            self.0.push(Chain { table: chain.table.clone(), name: chain.name.clone(), rules, closed });
        }
    }

    /// The rules that drop packets to `frontend` when this node sees one way of their connections. Without connections
    /// (UDP) none is invalid.
    pub fn dropping(&self, frontend: &Frontend) -> Option<Dropping<'_>> {
        if frontend.protocol == Protocol::Udp {
            return None;
        }
        let rules = self.0.iter().filter_map(|chain| {
            let rule = chain.drops_invalid(frontend).or_else(|| chain.drops_rest(frontend))?;
            Some((chain, rule))
        });
        let rules: Vec<_> = rules.collect();
        (!rules.is_empty()).then_some(Dropping(rules))
    }
}

impl Chain {
    /// The command that lets packets to `vip` pass before all rules.
    fn open(&self, vip: IpAddr) -> String {
        let Self { table, name, .. } = self;
        match (table.as_str(), name.as_str()) {
            ("ip filter", "INPUT" | "OUTPUT") => format!("iptables -I {name} -d {vip} -j ACCEPT"),
            ("ip6 filter", "INPUT" | "OUTPUT") => format!("ip6tables -I {name} -d {vip} -j ACCEPT"),
            _ => {
                let ip = if vip.is_ipv4() { "ip" } else { "ip6" };
                format!("nft insert rule {table} {name} {ip} daddr {vip} accept")
            }
        }
    }

    /// The rule that drops packets to `frontend` by their state. Of what is accepted from some link only that counts which
    /// names the addresses.
    fn drops_invalid(&self, frontend: &Frontend) -> Option<&str> {
        let decides = |rule: &&Rule| {
            let counts = rule.sure || rule.of.to.is_some();
            counts && rule.states.invalid && !matches!(rule.act, Act::DropRest(_))
        };
        let mut rules = self.rules.iter().filter(|rule| rule.of.means(frontend, &self.table));
        match &rules.find(decides)?.act {
            Act::Drop(rule) => Some(rule),
            Act::Accept | Act::DropRest(_) => None,
        }
    }

    /// What drops packets to `frontend` as no rule has let them in, where one did so for the first of the connection. Where
    /// none did, this host is closed to it in all modes alike.
    fn drops_rest(&self, frontend: &Frontend) -> Option<&str> {
        let counts = |rule: &&Rule| {
            let named = rule.of.to.is_some() || rule.of.ports.is_some();
            (rule.sure || named) && rule.of.means(frontend, &self.table)
        };
        let mut first = self.rules.iter().filter(counts).filter(|rule| rule.states.new);
        if first.next()?.act != Act::Accept {
            return None;
        }
        let mut later = self.rules.iter().filter(counts).filter(|rule| rule.states.invalid);
        match later.next().map(|rule| &rule.act) {
            Some(Act::Accept) => None,
            Some(Act::Drop(rule) | Act::DropRest(rule)) => Some(rule),
            None => self.closed.then_some("policy drop"),
        }
    }
}

impl Selector {
    fn means(&self, frontend: &Frontend, table: &str) -> bool {
        let family = Family::of(frontend.vip);
        let of_table = match table.split(' ').next() {
            Some("ip") => family == Family::V4,
            Some("ip6") => family == Family::V6,
            _ => true,
        };
        let protocol = frontend.protocol.to_string();
        of_table
            && self.family.is_none_or(|only| only == family)
            && self.to.as_ref().is_none_or(|to| to.iter().any(|network| network.contains(&frontend.vip)))
            && self
                .protocols
                .as_ref()
                .is_none_or(|all| all.iter().any(|one| one.eq_ignore_ascii_case(&protocol)))
            && self
                .ports
                .as_ref()
                .is_none_or(|ports| ports.iter().any(|range| range.contains(&frontend.port)))
    }
}

/// A chain as nft lists it.
struct Listed<'a> {
    table: String,
    name: String,
    lines: Vec<&'a str>,
}

impl Listed<'_> {
    /// Whether it is a base chain that sees what mode dsr needs.
    fn counts(&self) -> bool {
        let hooks = ["type filter hook input ", "type filter hook output "];
        self.lines.iter().any(|line| hooks.iter().any(|hook| line.starts_with(hook)))
    }
}

/// The chains in a listing of nft.
fn chains_of(listing: &str) -> Vec<Listed<'_>> {
    let mut chains: Vec<Listed> = Vec::new();
    let (mut table, mut within) = ("", false);
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ").and_then(|rest| rest.strip_suffix(" {")) {
            (table, within) = (name, false);
        } else if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chains.push(Listed { table: table.to_owned(), name: name.to_owned(), lines: Vec::new() });
            within = true;
        } else if line == "}" {
            within = false;
        } else if within && let Some(chain) = chains.last_mut() {
            chain.lines.push(line);
        }
    }
    chains
}

/// Which packets of mode dsr come to a chain.
#[derive(Debug, Clone, Copy)]
struct When {
    /// All of these states.
    sure: bool,
    states: States,
}

fn flatten(
    chain: &Listed<'_>,
    by_name: &BTreeMap<&str, &Listed<'_>>,
    when: When,
    depth: usize,
    rules: &mut Vec<Rule>,
) {
    // Some have gone back before the rest of the chain.
    let mut all_stay = true;
    for line in &chain.lines {
        all_stay &= !line.ends_with("return");
        for Parsed { of, sure, states, by_state, verdict } in parse(line) {
            let when = When { sure: when.sure && sure, states: when.states.and(states) };
            let act = match verdict {
                Verdict::Accept => Act::Accept,
                Verdict::Drop if !when.sure => continue,
                Verdict::Drop if by_state || !when.states.new && all_stay => Act::Drop((*line).to_owned()),
                Verdict::Drop if all_stay => Act::DropRest((*line).to_owned()),
                Verdict::Drop => continue,
                Verdict::Jump(name) => {
                    let target = by_name.get(name).filter(|_| depth < DEEPEST && of == Selector::default());
                    if let Some(target) = target {
                        flatten(target, by_name, when, depth + 1, rules);
                    }
                    continue;
                }
            };
            rules.push(Rule { of, states: when.states, sure: when.sure, act });
        }
    }
}

#[cfg(test)]
mod tests;
