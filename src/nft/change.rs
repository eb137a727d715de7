//! What differs between the tables of two rulesets, as an nft transaction that touches nothing else.
//!
//! Pure. Pods and frontends come and go, and that is elements of sets; what needs other chains is written whole.

use std::collections::BTreeSet;

use super::Ruleset;
use super::render::{Kind, Parts, Set, TABLE};
use super::seal::digest_of_element;

/// From one table to another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The commands.
    pub(super) text: String,
    /// By how much the digest of the table's listing grows.
    pub(super) digest: u64,
}

/// What makes the table of `from` that of `to`; `None` when more than elements of sets must change.
pub(super) fn change(from: &Ruleset, to: &Ruleset) -> Option<Change> {
    let (from, to) = (Parts::new(from), Parts::new(to));
    if from.sets.len() != to.sets.len() {
        return None;
    }
    let mut change = Change { text: String::new(), digest: 0 };
    for (have, want) in from.sets.iter().zip(&to.sets).filter(|(have, want)| have != want) {
        // Chains are numbered by their place, so with one frontend the chain of another may change.
        if want.kind == Kind::Map {
            return None;
        }
        change.text += &commands(have, want);
        change.digest = change.digest.wrapping_add(sum(want)).wrapping_sub(sum(have));
    }
    (from.chains == to.chains).then_some(change)
}

/// The digest of a set's elements, which nft lists as they were written.
fn sum(set: &Set) -> u64 {
    set.elements.iter().map(|element| digest_of_element(&set.name, element)).fold(0, u64::wrapping_add)
}

fn commands(have: &Set, want: &Set) -> String {
    let name = &want.name;
    if want.kind == Kind::Networks {
        // Ranges may be cut and joined, and nft compares new ones with those that the same transaction removes.
        let elements: Vec<&String> = want.elements.iter().collect();
        return format!("flush set {TABLE} {name}\n") + &command("add", name, &elements);
    }
    let [old, new] = [have, want].map(|set| set.elements.iter().collect::<BTreeSet<_>>());
    let removed: Vec<&String> = old.difference(&new).copied().collect();
    let added: Vec<&String> = new.difference(&old).copied().collect();
    command("delete", name, &removed) + &command("add", name, &added)
}

fn command(verb: &str, set: &str, elements: &[&String]) -> String {
    if elements.is_empty() {
        return String::new();
    }
    let elements: Vec<&str> = elements.iter().map(|element| element.as_str()).collect();
    format!("{verb} element {TABLE} {set} {{ {} }}\n", elements.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Frontend, Protocol};

    fn ruleset(hosts: &[u8], pods: &[&str]) -> Ruleset {
        let vip = |host: &u8| std::net::IpAddr::from([10, 87, 2, *host]);
        Ruleset {
            frontends: hosts
                .iter()
                .map(|h| Frontend { vip: vip(h), protocol: Protocol::Udp, port: 53 })
                .collect(),
            local_pods: pods.iter().map(|pod| pod.parse().unwrap()).collect(),
            ..Ruleset::default()
        }
    }

    #[track_caller]
    fn check(from: &Ruleset, to: &Ruleset, text: &str) {
        assert_eq!(change(from, to).unwrap().text, text);
    }

    #[test]
    fn only_elements_that_differ_are_named() {
        let text = "delete element inet kvip frontends4 { 10.87.2.51 . udp . 53 }\n\
                    add element inet kvip frontends4 { 10.87.2.52 . udp . 53 }\n\
                    delete element inet kvip vips4 { 10.87.2.51 }\n\
                    add element inet kvip vips4 { 10.87.2.52 }\n";
        check(&ruleset(&[50, 51], &[]), &ruleset(&[50, 52], &[]), text);
        check(&ruleset(&[50], &[]), &ruleset(&[50], &[]), "");
    }

    #[test]
    fn the_shield_changes_by_elements_while_there_is_one() {
        let shielded =
            |hosts: &[u8]| Ruleset { shielded: ruleset(hosts, &[]).frontends, ..ruleset(&[50, 51], &[]) };
        let text = "add element inet kvip shielded4 { 10.87.2.51 . udp . 53 : 10.87.2.51 }\n";
        check(&shielded(&[50]), &shielded(&[50, 51]), text);
        assert_eq!(change(&shielded(&[]), &shielded(&[50])), None);
    }

    #[test]
    fn networks_are_written_anew() {
        let text = "flush set inet kvip localpods4\nadd element inet kvip localpods4 { 10.2.4.0/25 }\n";
        check(&ruleset(&[], &["10.2.4.0/24"]), &ruleset(&[], &["10.2.4.0/25"]), text);
        let text = "flush set inet kvip localpods6\n";
        check(&ruleset(&[], &["fd00:2:4::/64"]), &ruleset(&[], &[]), text);
    }

    #[test]
    fn other_chains_and_verdicts_take_a_new_table() {
        let open = ruleset(&[50], &[]);
        let limited = |network: &str| {
            let sources = open.frontends.iter().map(|f| (*f, [network.parse().unwrap()].into())).collect();
            Ruleset { sources, ..open.clone() }
        };
        assert_eq!(change(&open, &limited("192.0.2.0/24")), None);
        assert_eq!(change(&limited("192.0.2.0/24"), &limited("192.0.2.0/25")), None);
        assert_eq!(change(&limited("192.0.2.0/24"), &open), None);
    }
}
