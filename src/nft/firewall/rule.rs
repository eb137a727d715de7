//! One rule of nft's listing, as far as it says something on packets to a frontend.
//!
//! Pure. A rule with a condition that is not understood says nothing.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{Selector, States};
use crate::model::Family;

/// A rule, as far as it is understood.
pub(super) struct Parsed<'a> {
    pub(super) of: Selector,
    /// Nothing but the selector and the states decides whether it applies.
    pub(super) sure: bool,
    pub(super) states: States,
    /// It names states, or asks for the way back by the mark.
    pub(super) by_state: bool,
    pub(super) verdict: Verdict<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Verdict<'a> {
    Accept,
    Drop,
    Jump(&'a str),
}

/// What `line` says on packets to a frontend; a map says several things.
pub(super) fn parse(line: &str) -> Vec<Parsed<'_>> {
    let line = line.split(" comment \"").next().unwrap_or(line);
    let mut words = line.split_whitespace();
    let Some(Conditions { of, sure, states, verdicts }) = conditions(&mut words) else { return Vec::new() };
    let by_state = states.is_some();
    let states = states.unwrap_or(States::ALL);
    let parsed = |(of_map, verdict)| {
        let states = states.and(of_map);
        Parsed { of: of.clone(), sure, states, by_state: by_state || of_map != States::ALL, verdict }
    };
    verdicts.into_iter().map(parsed).filter(|one| one.states.any()).collect()
}

/// What stands before the verdict, and the verdict, or those of a map of states.
struct Conditions<'a> {
    of: Selector,
    sure: bool,
    states: Option<States>,
    verdicts: Vec<(States, Verdict<'a>)>,
}

fn conditions<'a>(words: &mut (impl Iterator<Item = &'a str> + Clone)) -> Option<Conditions<'a>> {
    let mut of = Selector::default();
    let (mut sure, mut states) = (true, None::<States>);
    let both = |before: Option<States>, more: States| Some(before.map_or(more, |before| before.and(more)));
    let verdicts = loop {
        let word = words.next()?;
        if let Some(verdict) = verdict(word, words) {
            break vec![(States::ALL, verdict)];
        }
        match word {
            "counter" | "packets" | "bytes" => {}
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => {}
            "log" => sure &= skip_log(words),
            "ct" => match state(words)? {
                State::Named(named) => states = both(states, named),
                State::Map(verdicts) => break verdicts,
            },
            "fib" => states = both(states, way_back(words)?),
            "iif" | "iifname" | "oif" | "oifname" => sure &= is_all_but_loopback(words)?,
            _ => select(word, words, &mut of)?,
        }
    };
    Some(Conditions { of, sure, states, verdicts })
}

fn verdict<'a>(word: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Verdict<'a>> {
    match word {
        "accept" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "jump" | "goto" => words.next().map(Verdict::Jump),
        _ => None,
    }
}

/// Takes the condition that begins with `word` into the selector `of`; `None` when it is not understood.
fn select<'a>(
    word: &str,
    words: &mut (impl Iterator<Item = &'a str> + Clone),
    of: &mut Selector,
) -> Option<()> {
    match (word, words.next()?) {
        ("meta", "l4proto") | ("ip", "protocol") | ("ip6", "nexthdr") => of.protocols = Some(names(words)?),
        ("meta", "nfproto") => {
            of.family = Some(if words.next()? == "ipv4" { Family::V4 } else { Family::V6 });
        }
        ("ip" | "ip6", "daddr") => {
            of.family = Some(if word == "ip" { Family::V4 } else { Family::V6 });
            of.to = Some(set(words)?.into_iter().map(network).collect::<Option<_>>()?);
        }
        ("tcp" | "udp" | "sctp" | "th", "dport") => {
            of.ports = Some(set(words)?.into_iter().map(ports).collect::<Option<_>>()?);
            if word != "th" {
                of.protocols = Some(vec![word.to_owned()]);
            }
        }
        _ => return None,
    }
    Some(())
}

/// Whether a condition on the link is met by what comes over any link but loopback, which is what is meant; `None` where it
/// is for loopback alone.
fn is_all_but_loopback<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<bool> {
    let is_loopback = |link: &str| matches!(link, "\"lo\"" | "lo");
    match words.next()? {
        "!=" => words.next().map(is_loopback),
        link if is_loopback(link) => None,
        link => {
            skip_set(link, words);
            Some(false)
        }
    }
}

enum State<'a> {
    /// The rule is for these.
    Named(States),
    /// A map's verdicts.
    Map(Vec<(States, Verdict<'a>)>),
}

/// What follows `ct`; `None` for what is not understood.
fn state<'a>(words: &mut (impl Iterator<Item = &'a str> + Clone)) -> Option<State<'a>> {
    if words.next()? != "state" {
        return None;
    }
    match words.clone().next()? {
        "vmap" => {
            words.next();
            Some(State::Map(verdicts(&set(words)?)))
        }
        "!=" => {
            words.next();
            let others = set(words)?;
            Some(State::Named(States::named(|state| !others.contains(&state))))
        }
        _ => {
            let those = set(words)?;
            Some(State::Named(States::named(|state| those.contains(&state))))
        }
    }
}

/// Which packets a condition on the way back to their source means: those that kvip has marked have none, all others one.
/// `None` where it does not go by the mark.
fn way_back<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<States> {
    let mut keys = vec![words.next()?];
    let result = loop {
        match words.next()? {
            "." => keys.push(words.next()?),
            result => break result,
        }
    };
    if !["saddr", "mark"].iter().all(|key| keys.contains(key)) || !matches!(result, "oif" | "oifname") {
        return None;
    }
    // The numbers stand for iptables' match rpfilter.
    match words.next()? {
        "missing" | "0" => Some(States { marked: true, ..States::NONE }),
        "exists" => Some(States { marked: false, ..States::ALL }),
        "!=" if words.next()? == "0" => Some(States { marked: false, ..States::ALL }),
        _ => None,
    }
}

/// The verdicts of a map as of `{ established : accept, invalid : drop }`.
fn verdicts<'a>(words: &[&'a str]) -> Vec<(States, Verdict<'a>)> {
    let colons = words.iter().enumerate().filter(|(_, word)| **word == ":");
    let pairs = colons.filter_map(|(at, _)| {
        let key = words.get(at.checked_sub(1)?)?;
        let mut rest = words.get(at + 1..)?.iter().copied();
        Some((States::named(|state| state == *key), verdict(rest.next()?, &mut rest)?))
    });
    pairs.collect()
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

fn names<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
    Some(set(words)?.into_iter().map(str::to_owned).collect())
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
