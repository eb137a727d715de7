//! Another program's firewall, as far as it stands in the way of modes in which answers go past the holder, and of datagrams
//! that are balanced one by one: rules that drop what is invalid to conntrack, what it does not know, or what has kvip's mark for
//! mode dsr.
//!
//! The holder sees one way of such a connection, as replies do not pass it. After the first packet, which is new,
//! conntrack finds the client's out of place (nf_conntrack_proto_tcp.c), and `ct state invalid drop` on the way in drops
//! them before IPVS looks (LOCAL_IN at 99, ip_vs_core.c). So does what drops the rest, be it the chain's policy, where
//! only new and established ones are let in. On the way out it is the same once more: what IPVS hands on as it came passes
//! LOCAL_OUT (ip_vs_xmit.c), still for the VIP and as invalid; but what it wraps for mode tunnel, as a new packet. FORWARD
//! has no such trouble: it never passes there.
//!
//! A rule that looks for the way back to a packet's source by the packet's mark as well (`fib saddr . mark`) finds none once
//! kvip has marked it: by the mark every address is this host's own, and such a way counts as none (nft_fib_ipv4.c,
//! nft_fib_ipv6.c). So it drops all that is for the frontend, also without connections.
//!
//! Pure: [`super::client::firewall`] reads. A rule with a condition that is not understood is taken to mean other packets.

mod listing;
mod rule;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use self::listing::{Listed, Place, chains_of};
use self::rule::{Parsed, Verdict, parse};
use crate::config::Mode;
use crate::model::{Family, Frontend, Protocol};

/// So deep are chains followed; real firewalls have three or four levels.
const DEEPEST: usize = 8;

/// The tables whose chains need not be looked at: kvip's own, and kube-proxy's, which grow with the cluster and drop
/// nothing of the kind.
const SKIPPED: [&str; 3] = ["inet kvip", "ip kube-proxy", "ip6 kube-proxy"];

/// The table that is firewalld's alone: it writes it anew at each reload.
const FIREWALLD: &str = "inet firewalld";

/// The chains that see packets on their way into this host and out of it, of all tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall(Vec<Chain>);

/// A base chain of the hook prerouting, input or output, with the rules of the chains that it jumps to in their places.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    /// `inet filter`.
    table: String,
    name: String,
    place: Place,
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

/// Which packets a rule means, of a connection that is seen one way: the first is new, those after it are invalid. And
/// whether it means the first where kvip has marked it.
#[expect(clippy::struct_excessive_bools, reason = "a set of packets, of which there are four kinds")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct States {
    new: bool,
    invalid: bool,
    marked: bool,
    untracked: bool,
}

impl States {
    const NONE: Self = Self { new: false, invalid: false, marked: false, untracked: false };
    const ALL: Self = Self { new: true, invalid: true, marked: true, untracked: true };

    /// Those that `has` tells of by name.
    fn named(has: impl Fn(&str) -> bool) -> Self {
        Self { new: has("new"), invalid: has("invalid"), marked: has("new"), untracked: has("untracked") }
    }

    fn and(self, other: Self) -> Self {
        Self {
            new: self.new && other.new,
            invalid: self.invalid && other.invalid,
            marked: self.marked && other.marked,
            untracked: self.untracked && other.untracked,
        }
    }

    fn any(self) -> bool {
        self.new || self.invalid || self.marked || self.untracked
    }

    fn has(self, trouble: Trouble) -> bool {
        match trouble {
            Trouble::Invalid => self.invalid,
            Trouble::Marked => self.marked,
            Trouble::Untracked => self.untracked,
        }
    }
}

/// For what packets are dropped that are let through in mode nat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// They are not the first of a connection that is seen one way.
    Invalid,
    /// kvip has marked them.
    Marked,
    /// kvip has kept them from connection tracking.
    Untracked,
}

/// Which packets a rule means; all where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Selector {
    family: Option<Family>,
    to: Option<Vec<IpNet>>,
    protocols: Option<Vec<String>>,
    ports: Option<Vec<RangeInclusive<u16>>>,
}

/// The rules that drop packets to a frontend, one of each chain that does; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping<'a> {
    trouble: Trouble,
    rules: Vec<(&'a Chain, &'a str)>,
}

impl Dropping<'_> {
    /// `ct state invalid drop (chain INPUT of table ip filter)`.
    pub fn words(&self) -> String {
        let words = |(chain, rule): &(&Chain, &str)| {
            format!("{rule} (chain {} of table {})", chain.name, chain.table)
        };
        self.rules.iter().map(words).collect::<Vec<_>>().join(" and ")
    }

    /// What lets packets to `vip` pass: the commands that do before the rules, or firewalld's own setting.
    pub fn mend(&self, vip: IpAddr) -> String {
        let of_firewalld = self.rules.iter().all(|(chain, _)| chain.table == FIREWALLD);
        if self.trouble == Trouble::Marked && of_firewalld {
            return "IPv6_rpfilter=no in /etc/firewalld/firewalld.conf, then systemctl restart firewalld"
                .into();
        }
        let commands: Vec<String> = self.rules.iter().map(|(chain, _)| chain.open(vip)).collect();
        format!("{}, and make it stay there", commands.join("; "))
    }
}

impl Firewall {
    /// The tables with a chain that sees packets to a frontend, in the answer of `nft list chains`.
    pub(super) fn tables(chains: &str) -> Vec<String> {
        let chains = chains_of(chains);
        let mut tables: Vec<String> =
            chains.into_iter().filter(|chain| chain.place().is_some()).map(|chain| chain.table).collect();
        tables.dedup();
        tables.retain(|table| !SKIPPED.contains(&table.as_str()));
        tables
    }

    /// Adds what `nft list table` answers of one table.
    pub fn add(&mut self, listing: &str) {
        let chains = chains_of(listing);
        let by_name: BTreeMap<&str, &Listed> =
            chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
        for chain in &chains {
            let Some(place) = chain.place() else { continue };
            let mut rules = Vec::new();
            let when = When { sure: true, states: States::ALL, marks: place == Place::AfterMarking };
            flatten(chain, &by_name, when, 0, &mut rules);
            let closed = chain.lines.iter().any(|line| line.ends_with("policy drop;"));
            self.0.push(Chain { table: chain.table.clone(), name: chain.name.clone(), place, rules, closed });
        }
    }

    /// The rules that drop packets to `frontend` where this node sees one way of their connections, as the holder does in
    /// some modes. Without connections (UDP) none is invalid.
    pub fn dropping(&self, frontend: &Frontend, mode: Mode) -> Option<Dropping<'_>> {
        if frontend.protocol == Protocol::Udp || !mode.is_one_way() {
            return None;
        }
        self.dropping_for(Trouble::Invalid, frontend, mode)
    }

    /// The rules that drop packets to `frontend` once kvip has marked them, as it does in mode dsr.
    pub fn dropping_marked(&self, frontend: &Frontend, mode: Mode) -> Option<Dropping<'_>> {
        if mode != Mode::Dsr {
            return None;
        }
        self.dropping_for(Trouble::Marked, frontend, mode)
    }

    /// The rules that drop packets to `frontend` as connection tracking does not know them.
    pub fn dropping_untracked(&self, frontend: &Frontend) -> Option<Dropping<'_>> {
        self.dropping_for(Trouble::Untracked, frontend, Mode::Nat)
    }

    fn dropping_for(&self, trouble: Trouble, frontend: &Frontend, mode: Mode) -> Option<Dropping<'_>> {
        let passed = |chain: &&Chain| mode != Mode::Tunnel || chain.place != Place::Output;
        let rules = self.0.iter().filter(passed).filter_map(|chain| {
            let rule = chain.drops(trouble, frontend).or_else(|| chain.drops_rest(trouble, frontend))?;
            Some((chain, rule))
        });
        let rules: Vec<_> = rules.collect();
        (!rules.is_empty()).then_some(Dropping { trouble, rules })
    }
}

impl Chain {
    /// The command that lets packets to `vip` pass before all rules.
    fn open(&self, vip: IpAddr) -> String {
        let Self { table, name, .. } = self;
        match (table.as_str(), name.as_str()) {
            ("ip filter", "INPUT" | "OUTPUT") => format!("iptables -I {name} -d {vip} -j ACCEPT"),
            ("ip6 filter", "INPUT" | "OUTPUT") => format!("ip6tables -I {name} -d {vip} -j ACCEPT"),
            ("ip mangle", "PREROUTING" | "INPUT") => {
                format!("iptables -t mangle -I {name} -d {vip} -j ACCEPT")
            }
            ("ip6 mangle", "PREROUTING" | "INPUT") => {
                format!("ip6tables -t mangle -I {name} -d {vip} -j ACCEPT")
            }
            _ => {
                let ip = if vip.is_ipv4() { "ip" } else { "ip6" };
                format!("nft insert rule {table} {name} {ip} daddr {vip} accept")
            }
        }
    }

    /// The rule that drops packets to `frontend` for that. Of what is accepted from some link only that counts which
    /// names the addresses.
    fn drops(&self, trouble: Trouble, frontend: &Frontend) -> Option<&str> {
        let decides = |rule: &&Rule| {
            let counts = rule.sure || rule.of.to.is_some();
            counts && rule.states.has(trouble) && !matches!(rule.act, Act::DropRest(_))
        };
        let mut rules = self.rules.iter().filter(|rule| rule.of.means(frontend, &self.table));
        let Rule { states, act, .. } = rules.find(decides)?;
        match act {
            // It drops what is not so as well.
            Act::Drop(_) if trouble != Trouble::Invalid && states.new => None,
            Act::Drop(rule) => Some(rule),
            Act::Accept | Act::DropRest(_) => None,
        }
    }

    /// What drops packets to `frontend` as no rule has let them in, where one did so for the first of the connection. Where
    /// none did, this host is closed to it in all modes alike.
    fn drops_rest(&self, trouble: Trouble, frontend: &Frontend) -> Option<&str> {
        let counts = |rule: &&Rule| {
            let named = rule.of.to.is_some() || rule.of.ports.is_some();
            (rule.sure || named) && rule.of.means(frontend, &self.table)
        };
        let mut first = self.rules.iter().filter(counts).filter(|rule| rule.states.new);
        if first.next()?.act != Act::Accept {
            return None;
        }
        let mut later = self.rules.iter().filter(counts).filter(|rule| rule.states.has(trouble));
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

/// Which packets come to a chain.
#[derive(Debug, Clone, Copy)]
struct When {
    /// All of these states.
    sure: bool,
    states: States,
    /// kvip has marked those of mode dsr before. Where it has not, they are as all others.
    marks: bool,
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
            let states = if when.marks { states } else { States { marked: states.new, ..states } };
            let when = When { sure: when.sure && sure, states: when.states.and(states), ..when };
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
