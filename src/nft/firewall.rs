//! Another program's firewall, as far as it stands in the way of mode dsr: rules that drop what is invalid to conntrack.
//!
//! The holder sees one way of such a connection, as replies do not pass it. After the first packet conntrack finds the
//! client's out of place (nf_conntrack_proto_tcp.c), and `ct state invalid drop` on the way in drops them before IPVS
//! looks (LOCAL_IN at 99, ip_vs_core.c). FORWARD has no such trouble: what is handed on never passes there.
//!
//! Pure: [`super::client::firewall`] reads. A rule with a condition that is not understood is taken to mean other packets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::model::{Family, Frontend, Protocol};

/// So deep are chains followed; real firewalls have three or four levels.
const DEEPEST: usize = 8;

/// The tables whose chains need not be looked at: kvip's own, and kube-proxy's, which grow with the cluster and drop
/// nothing of the kind on the way in.
const SKIPPED: [&str; 3] = ["inet kvip", "ip kube-proxy", "ip6 kube-proxy"];

/// The chains that see packets on their way into this host, of all tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall(Vec<Chain>);

/// A base chain of the hook input, with the rules of the chains that it jumps to in their places.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    /// `inet filter`.
    table: String,
    name: String,
    rules: Vec<Rule>,
}

/// A rule that decides over a connection that is seen one way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    of: Selector,
    act: Act,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Accept,
    /// Drops or rejects, in the words of nft.
    Drop(String),
}

/// Which packets a rule means; all where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Selector {
    family: Option<Family>,
    to: Option<Vec<IpNet>>,
    protocols: Option<Vec<String>>,
    ports: Option<Vec<RangeInclusive<u16>>>,
}

/// A rule that drops packets of mode dsr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping<'a> {
    chain: &'a Chain,
    rule: &'a str,
}

impl Dropping<'_> {
    /// `ct state invalid drop (chain INPUT of table ip filter)`.
    pub fn words(&self) -> String {
        format!("{} (chain {} of table {})", self.rule, self.chain.name, self.chain.table)
    }

    /// The command that lets packets to `vip` pass before the rule.
    pub fn mend(&self, vip: IpAddr) -> String {
        let Chain { table, name, .. } = self.chain;
        match (table.as_str(), name.as_str()) {
            ("ip filter", "INPUT") => format!("iptables -I INPUT -d {vip} -j ACCEPT"),
            ("ip6 filter", "INPUT") => format!("ip6tables -I INPUT -d {vip} -j ACCEPT"),
            _ => {
                let ip = if vip.is_ipv4() { "ip" } else { "ip6" };
                format!("nft insert rule {table} {name} {ip} daddr {vip} accept")
            }
        }
    }
}

impl Firewall {
    /// The tables with a chain of the hook input, in the answer of `nft list chains`.
    pub(super) fn tables(chains: &str) -> Vec<String> {
        let chains = chains_of(chains);
        let mut tables: Vec<String> =
            chains.into_iter().filter(Listed::on_the_way_in).map(|chain| chain.table).collect();
        tables.dedup();
        tables.retain(|table| !SKIPPED.contains(&table.as_str()));
        tables
    }

    /// Adds what `nft list table` answers of one table.
    pub fn add(&mut self, listing: &str) {
        let chains = chains_of(listing);
        let by_name: BTreeMap<&str, &Listed> =
            chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
        for chain in chains.iter().filter(|chain| chain.on_the_way_in()) {
            let mut rules = Vec::new();
            flatten(chain, &by_name, Certainty::Sure, 0, &mut rules);
            self.0.push(Chain { table: chain.table.clone(), name: chain.name.clone(), rules });
        }
    }

    /// The rule that drops packets to `frontend` when this node sees one way of their connections. Without connections
    /// (UDP) none is invalid.
    pub fn dropping(&self, frontend: &Frontend) -> Option<Dropping<'_>> {
        if frontend.protocol == Protocol::Udp {
            return None;
        }
        self.0.iter().find_map(|chain| {
            let mut rules = chain.rules.iter();
            let decides = |rule: &&Rule| rule.of.means(frontend, &chain.table);
            match &rules.find(decides)?.act {
                Act::Accept => None,
                Act::Drop(rule) => Some(Dropping { chain, rule }),
            }
        })
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
    fn on_the_way_in(&self) -> bool {
        self.lines.iter().any(|line| line.starts_with("type filter hook input "))
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

/// Whether a packet of mode dsr is certain to come to a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    Sure,
    Perhaps,
}

fn flatten(
    chain: &Listed<'_>,
    by_name: &BTreeMap<&str, &Listed<'_>>,
    certainty: Certainty,
    depth: usize,
    rules: &mut Vec<Rule>,
) {
    for line in &chain.lines {
        let Some(Parsed { of, sure, verdict }) = parse(line) else { continue };
        let certainty = if sure { certainty } else { Certainty::Perhaps };
        match verdict {
            // Of what is accepted from some link only that counts which names the addresses.
            Verdict::Accept if certainty == Certainty::Sure || of.to.is_some() => {
                rules.push(Rule { of, act: Act::Accept });
            }
            Verdict::DropInvalid if certainty == Certainty::Sure => {
                rules.push(Rule { of, act: Act::Drop((*line).to_owned()) });
            }
            Verdict::Accept | Verdict::DropInvalid => {}
            Verdict::Jump(name) => {
                let target =
                    by_name.get(name.as_str()).filter(|_| depth < DEEPEST && of == Selector::default());
                if let Some(target) = target {
                    flatten(target, by_name, certainty, depth + 1, rules);
                }
            }
        }
    }
}

/// A rule, as far as it is understood.
struct Parsed {
    of: Selector,
    /// Nothing but the selector decides whether it applies.
    sure: bool,
    verdict: Verdict,
}

enum Verdict {
    Accept,
    DropInvalid,
    Jump(String),
}

/// `line`, when it says something on packets of mode dsr that are invalid to conntrack.
fn parse(line: &str) -> Option<Parsed> {
    let line = line.split(" comment \"").next().unwrap_or(line);
    let mut words = line.split_whitespace();
    let mut of = Selector::default();
    let (mut sure, mut invalid) = (true, false);
    let verdict = loop {
        match words.next()? {
            "counter" | "packets" | "bytes" => {}
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => {}
            "log" => sure &= skip_log(&mut words),
            "ct" => match state(&mut words)? {
                State::Invalid => invalid = true,
                State::Verdict(verdict) => {
                    invalid = true;
                    break verdict;
                }
            },
            "iif" | "iifname" => {
                // What comes over any link but loopback is what is meant.
                let value = words.next()?;
                sure &= value == "!=" && matches!(words.next()?, "\"lo\"" | "lo");
                skip_set(value, &mut words);
            }
            "meta" if words.clone().next() == Some("l4proto") => {
                words.next();
                of.protocols = Some(set(&mut words)?.iter().map(|word| (*word).to_owned()).collect());
            }
            "meta" if words.clone().next() == Some("nfproto") => {
                words.next();
                of.family = Some(if words.next()? == "ipv4" { Family::V4 } else { Family::V6 });
            }
            ip @ ("ip" | "ip6") => match words.next()? {
                "daddr" => {
                    of.family = Some(if ip == "ip" { Family::V4 } else { Family::V6 });
                    of.to = Some(set(&mut words)?.into_iter().map(network).collect::<Option<_>>()?);
                }
                "protocol" | "nexthdr" => {
                    of.protocols = Some(set(&mut words)?.iter().map(|word| (*word).to_owned()).collect());
                }
                _ => return None,
            },
            protocol @ ("tcp" | "udp" | "sctp" | "th") => {
                if words.next()? != "dport" {
                    return None;
                }
                of.ports = Some(set(&mut words)?.into_iter().map(ports).collect::<Option<_>>()?);
                if protocol != "th" {
                    of.protocols = Some(vec![protocol.to_owned()]);
                }
            }
            "accept" => break Verdict::Accept,
            "drop" | "reject" => break Verdict::DropInvalid,
            "jump" | "goto" => break Verdict::Jump(words.next()?.to_owned()),
            _ => return None,
        }
    };
    // What drops or jumps whatever the state closes this host to the frontend in all modes alike, or is for new ones too.
    let speaks = invalid || !matches!(verdict, Verdict::DropInvalid);
    speaks.then_some(Parsed { of, sure, verdict })
}

enum State {
    /// The rule is for what is invalid, among others.
    Invalid,
    /// What a map says of what is invalid.
    Verdict(Verdict),
}

/// What follows `ct`; `None` for a rule that says nothing of what is invalid.
fn state<'a>(words: &mut (impl Iterator<Item = &'a str> + Clone)) -> Option<State> {
    if words.next()? != "state" {
        return None;
    }
    match words.clone().next()? {
        "vmap" => {
            words.next();
            let map = set(words)?.join(" ");
            let verdict = map.split(" : ").zip(map.split(" : ").skip(1)).find_map(|(key, verdict)| {
                key.ends_with("invalid").then(|| verdict.split(' ').next().unwrap_or_default())
            })?;
            match verdict {
                "accept" => Some(State::Verdict(Verdict::Accept)),
                "drop" => Some(State::Verdict(Verdict::DropInvalid)),
                _ => None,
            }
        }
        "!=" => {
            words.next();
            (!set(words)?.contains(&"invalid")).then_some(State::Invalid)
        }
        _ => set(words)?.contains(&"invalid").then_some(State::Invalid),
    }
}

/// The values of one word with commas, or of braces.
fn set<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Vec<&'a str>> {
    let first = words.next()?;
    if first != "{" {
        let known = first != "!=" && !first.starts_with('@');
        return known.then(|| first.split(',').collect());
    }
    Some(words.take_while(|word| *word != "}").map(|word| word.trim_end_matches(',')).collect())
}

/// Passes over the rest of a set that begins with `first`.
fn skip_set<'a>(first: &str, words: &mut impl Iterator<Item = &'a str>) {
    if first == "{" {
        words.take_while(|word| *word != "}").for_each(drop);
    }
}

/// Passes over what `log` says, up to what the rule does then; false when it cannot be followed.
fn skip_log<'a>(words: &mut (impl Iterator<Item = &'a str> + Clone)) -> bool {
    while let Some(word) = words.clone().next() {
        if matches!(word, "accept" | "drop" | "reject" | "jump" | "goto") {
            return true;
        }
        words.next();
    }
    false
}

fn network(word: &str) -> Option<IpNet> {
    word.parse().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
}

fn ports(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRONTEND: &str = "10.87.2.52";

    fn frontend(protocol: Protocol, port: u16) -> Frontend {
        Frontend { vip: FRONTEND.parse().unwrap(), protocol, port }
    }

    /// A table whose chain of the hook input has these rules.
    fn listing(table: &str, rules: &[&str], others: &str) -> String {
        let rules = rules.iter().map(|rule| ["\t\t", rule, "\n"].concat()).collect::<Vec<_>>().concat();
        format!(
            "table {table} {{\n\tchain input {{\n\t\ttype filter hook input priority filter; policy accept;\n{rules}\t}}\n{others}}}\n"
        )
    }

    /// Whether the rules drop what mode dsr needs at port 80, and in which words.
    #[track_caller]
    fn check(rules: &[&str], others: &str, expected: Option<&str>) {
        let mut firewall = Firewall::default();
        firewall.add(&listing("inet filter", rules, others));
        let found = firewall.dropping(&frontend(Protocol::Tcp, 80)).map(|found| found.rule);
        assert_eq!(found, expected, "{rules:?}");
        assert_eq!(firewall.dropping(&frontend(Protocol::Udp, 80)), None);
    }

    #[test]
    fn rules_that_drop_what_is_invalid_are_found_however_they_are_written() {
        for rule in [
            "ct state invalid drop",
            "ct state invalid counter packets 12 bytes 720 drop",
            "ct state { invalid, untracked } drop",
            "ct state invalid,new drop",
            "ct state != { established, related, new } drop",
            "ct state vmap { invalid : drop, established : accept, related : accept }",
            "ct state invalid log prefix \"bad: \" level info drop comment \"strict\"",
            "ip daddr 10.87.2.0/24 meta l4proto tcp ct state invalid reject with icmp port-unreachable",
            "iifname != \"lo\" ct state invalid drop",
        ] {
            check(&["iifname \"lo\" accept", rule], "", Some(rule));
        }
    }

    #[test]
    fn rules_that_are_for_others_are_not() {
        for rule in [
            "ct state established,related accept",
            "ct state vmap { established : accept, related : accept }",
            "ip saddr 192.0.2.0/24 ct state invalid drop",
            "iifname \"wan0\" ct state invalid drop",
            "ip daddr 10.87.3.0/24 ct state invalid drop",
            "udp dport 53 ct state invalid drop",
            "tcp flags & (fin | syn) == fin | syn drop",
            "meta nfproto ipv6 ct state invalid drop",
            "drop",
        ] {
            check(&[rule], "", None);
        }
    }

    #[test]
    fn what_is_accepted_before_is_not_dropped() {
        let invalid = "ct state invalid drop";
        for rule in [
            "ip daddr 10.87.2.52 accept",
            "ip daddr { 10.87.2.0/24, 10.9.0.1 } tcp dport { 80, 8000-8080 } counter accept",
            "tcp dport 80 accept",
            "iifname { \"eth0\", \"eth1\" } ip daddr 10.87.2.52 accept",
        ] {
            check(&[rule, invalid], "", None);
            check(&[invalid, rule], "", Some(invalid));
        }
        check(&["tcp dport 443 accept", invalid], "", Some(invalid));
        check(&["ip daddr @trusted accept", invalid], "", Some(invalid));
    }

    #[test]
    fn chains_are_followed() {
        let others = "\n\tchain before {\n\t\tct state invalid drop\n\t}\n\n\tchain zone {\n\t\tip daddr 10.87.2.52 accept\n\t}\n";
        check(&["counter jump before"], others, Some("ct state invalid drop"));
        check(&["iifname \"eth0\" goto zone", "jump before"], others, None);
        check(&["tcp dport 22 jump before"], others, None);
        check(&["iifname \"wan0\" jump before"], others, None);
        let endless = "\n\tchain before {\n\t\tjump before\n\t\tct state invalid drop\n\t}\n";
        check(&["jump before"], endless, Some("ct state invalid drop"));
    }

    #[test]
    fn only_tables_that_see_what_comes_in_are_read() {
        let base = |table: &str| listing(table, &[], "");
        let forward = "table inet other {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n}\n";
        let all =
            [base("ip filter"), forward.to_owned(), base("inet kvip"), base("ip kube-proxy"), base("inet a")];
        assert_eq!(Firewall::tables(&all.concat()), ["ip filter", "inet a"]);
    }

    #[test]
    fn the_mend_is_in_the_tools_own_words() {
        let mend = |table: &str, chain: &str, vip: &str| {
            let chain = Chain { table: table.into(), name: chain.into(), rules: Vec::new() };
            Dropping { chain: &chain, rule: "" }.mend(vip.parse().unwrap())
        };
        assert_eq!(mend("ip filter", "INPUT", FRONTEND), "iptables -I INPUT -d 10.87.2.52 -j ACCEPT");
        assert_eq!(mend("ip6 filter", "INPUT", "fd00::1"), "ip6tables -I INPUT -d fd00::1 -j ACCEPT");
        assert_eq!(
            mend("inet filter", "input", "fd00::1"),
            "nft insert rule inet filter input ip6 daddr fd00::1 accept"
        );
    }
}
