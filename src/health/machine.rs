//! The rules by which a node is dead, and when to probe it next. Pure: the time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Dead, Targets};

/// The time from one probe of a node to its next.
const PERIOD: Duration = Duration::from_secs(1);

/// So many probes in a row must fail. One may be lost, two by chance; three are a second and more of silence.
const MISSES: u32 = 3;

/// So many misses in a row put a node in doubt. When this node itself is cut off, every other node is in doubt by
/// the time the first has missed three: the probes of a period are spread over it.
const DOUBT: u32 = MISSES - 1;

/// Addresses probed of one node: one a family, and room for a second network.
const ADDRESSES_MAX: usize = 4;

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nothing: the probe failed on this node.
    Unknown,
    /// No answer, or a router's that there is no such host.
    Miss,
    /// The node accepted or refused a connection, so it is alive.
    Alive,
}

/// A probe to make now. One answer of any address is an answer of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The node's name.
    pub node: String,
    /// Its addresses, at least one.
    pub addresses: Vec<IpAddr>,
}

/// What is known of the probed nodes.
#[derive(Debug)]
pub struct Health {
    /// This node's name.
    own: String,
    nodes: BTreeMap<String, Record>,
    /// When each node is due; holds the same names as `nodes`.
    schedule: BTreeSet<(Instant, String)>,
}

/// What is known of one node.
#[derive(Debug)]
struct Record {
    addresses: Vec<IpAddr>,
    due: Instant,
    answered: bool,
    misses: u32,
    dead: bool,
}

impl Record {
    fn new(addresses: Vec<IpAddr>, due: Instant) -> Self {
        Self { addresses, due, answered: false, misses: 0, dead: false }
    }

    /// Answered once, and since then not to the last `misses` probes.
    fn has_missed(&self, misses: u32) -> bool {
        self.answered && self.misses >= misses
    }
}

impl Health {
    /// Knows no node yet; `own` is this node's name and never probed.
    pub fn new(own: impl Into<String>) -> Self {
        Self { own: own.into(), nodes: BTreeMap::new(), schedule: BTreeSet::new() }
    }

    /// Replaces the nodes to probe. What is known of a node stays while it keeps one of its addresses; a node
    /// without addresses cannot be probed, so it is never dead.
    pub fn set_targets(&mut self, targets: &Targets, now: Instant) {
        let mut before = std::mem::take(&mut self.nodes);
        for (node, addresses) in targets.iter().filter(|(node, _)| **node != self.own) {
            let wanted: BTreeSet<IpAddr> = addresses.iter().copied().collect();
            let addresses: Vec<IpAddr> = wanted.into_iter().take(ADDRESSES_MAX).collect();
            if addresses.is_empty() {
                continue;
            }
            let known = before.remove(node).filter(|r| r.addresses.iter().any(|ip| addresses.contains(ip)));
            let record = match known {
                Some(record) => Record { addresses, ..record },
                None => Record::new(addresses, now + phase(&self.own, node)),
            };
            self.nodes.insert(node.clone(), record);
        }
        self.schedule = self.nodes.iter().map(|(node, record)| (record.due, node.clone())).collect();
    }

    /// The probes to start at `now`, at most `room` of them, those first that wait longest.
    ///
    /// The next probe of each is a period after this one, not after the time it was due: after a stall there is
    /// no burst.
    pub fn due(&mut self, now: Instant, room: usize) -> Vec<Probe> {
        let mut probes = Vec::new();
        while probes.len() < room && self.next_due().is_some_and(|due| due <= now) {
            let Some((_, node)) = self.schedule.pop_first() else { break };
            let Some(record) = self.nodes.get_mut(&node) else { continue };
            record.due = now + PERIOD;
            self.schedule.insert((record.due, node.clone()));
            probes.push(Probe { node, addresses: record.addresses.clone() });
        }
        probes
    }

    /// When the next probe is due; `None` when there is no node to probe.
    pub fn next_due(&self) -> Option<Instant> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// Takes in what a probe of `node` found; whether [`Self::dead`] may be another now.
    ///
    /// A node is dead by a miss, its third in a row or a later one, while at most half of the known nodes are in
    /// doubt; and when more than half were, all but one of the misses from that time are forgotten. So neither the
    /// first nodes that fall silent nor the last that come back are called dead when it is this node that
    /// was cut off. (One is kept, as two more show it: the first may be of a probe that was sent before.)
    pub fn note(&mut self, node: &str, outcome: Outcome) -> bool {
        let Some(record) = self.nodes.get_mut(node) else { return false };
        match outcome {
            Outcome::Unknown => false,
            Outcome::Alive if record.answered && record.misses < DOUBT => {
                record.misses = 0;
                false
            }
            Outcome::Alive => {
                self.welcome(node);
                true
            }
            Outcome::Miss => {
                record.misses = record.misses.saturating_add(1);
                record.has_missed(MISSES) && self.judge(node)
            }
        }
    }

    /// The dead nodes, or none when more than half of the known nodes are silent (see the module's head).
    pub fn dead(&self) -> Dead {
        if self.is_majority(MISSES) {
            return Dead { nodes: BTreeSet::new(), suspended: true };
        }
        let dead = self.nodes.iter().filter(|(_, record)| record.dead);
        Dead { nodes: dead.map(|(node, _)| node.clone()).collect(), suspended: false }
    }

    /// Takes in an answer of `node` after doubts, or its first.
    fn welcome(&mut self, node: &str) {
        let in_doubt = self.is_majority(DOUBT);
        if let Some(record) = self.nodes.get_mut(node) {
            (record.answered, record.misses, record.dead) = (true, 0, false);
        }
        if in_doubt && !self.is_majority(DOUBT) {
            let doubted = self.nodes.values_mut().filter(|record| !record.dead);
            doubted.for_each(|record| record.misses = record.misses.min(1));
        }
    }

    /// Whether the silence of `node` changes anything. Suspending forgets all deaths, so that each
    /// must be seen again afterwards.
    fn judge(&mut self, node: &str) -> bool {
        if self.is_majority(MISSES) {
            self.nodes.values_mut().for_each(|record| record.dead = false);
            return true;
        }
        let in_doubt = self.is_majority(DOUBT);
        let Some(record) = self.nodes.get_mut(node) else { return false };
        let changed = !record.dead && !in_doubt;
        record.dead |= !in_doubt;
        changed
    }

    /// Whether more than half of the known nodes, this one included, have missed `misses` probes in a row.
    fn is_majority(&self, misses: u32) -> bool {
        let known = 1 + self.nodes.values().filter(|record| record.answered).count();
        self.nodes.values().filter(|record| record.has_missed(misses)).count() * 2 > known
    }
}

/// How long after `node` became known to `own` it is probed first: another part of the period for each pair, so
/// that neither one node sends all its probes at once nor one gets them all at once.
fn phase(own: &str, node: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    (own, node).hash(&mut hasher);
    let part = hasher.finish() % 1000;
    PERIOD * u32::try_from(part).expect("a remainder of 1000 is below 1000") / 1000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn targets(count: usize) -> Targets {
        (0..count).map(|n| (name(n), vec![IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()])])).collect()
    }

    fn name(n: usize) -> String {
        format!("node-{n}")
    }

    fn with(peers: usize) -> Health {
        let mut health = Health::new("own");
        health.set_targets(&targets(peers), Instant::now());
        health
    }

    /// Notes one outcome a letter, a word a node, round by round: `a` alive, `m` miss, else unknown.
    fn note_all(health: &mut Health, words: &[&str]) {
        for round in 0..words.iter().map(|word| word.len()).max().unwrap_or(0) {
            for (n, word) in words.iter().enumerate() {
                let outcome = match word.as_bytes().get(round) {
                    Some(b'a') => Outcome::Alive,
                    Some(b'm') => Outcome::Miss,
                    _ => Outcome::Unknown,
                };
                health.note(&name(n), outcome);
            }
        }
    }

    /// After the outcomes of `words`, the nodes with the numbers `dead` are dead.
    fn check(words: &[&str], dead: &[usize], suspended: bool) {
        let mut health = with(words.len());
        note_all(&mut health, words);
        let nodes = dead.iter().map(|n| name(*n)).collect();
        assert_eq!(health.dead(), Dead { nodes, suspended }, "{words:?}");
    }

    #[test]
    fn three_misses_in_a_row_are_death_and_one_answer_is_life() {
        check(&["", "a"], &[], false);
        check(&["a", "a"], &[], false);
        check(&["am", "a"], &[], false);
        check(&["amm", "a"], &[], false);
        check(&["ammm", "a"], &[0], false);
        check(&["ammmmmm", "a"], &[0], false);
        check(&["ammamm", "a"], &[], false);
        check(&["ammma", "a"], &[], false);
        check(&["ammmammm", "a"], &[0], false);
    }

    #[test]
    fn a_node_that_never_answered_is_never_dead_nor_counted() {
        check(&["mmmmm", "a"], &[], false);
        check(&["mmmmm", "mmmmm", "mmmmm", "ammm"], &[3], false);
        check(&["mmmmm", "mmmmm", "ammm", "ammm"], &[], true);
    }

    #[test]
    fn what_failed_here_says_nothing() {
        check(&["auuuuu", "a"], &[], false);
        check(&["ammuuu", "a"], &[], false);
        check(&["ammum", "a"], &[0], false);
        check(&["uuummm", "a"], &[], false);
    }

    #[test]
    fn more_than_half_at_once_is_nobody() {
        check(&["ammm"], &[0], false);
        check(&["ammm", "a"], &[0], false);
        check(&["ammm", "ammm"], &[], true);
        check(&["ammm", "ammm", "a"], &[0, 1], false);
        check(&["ammm", "ammm", "ammm"], &[], true);
        check(&["ammm", "ammm", "a", "a"], &[0, 1], false);
        check(&["ammm", "ammm", "ammm", "a"], &[], true);
    }

    #[test]
    fn the_second_death_of_three_brings_the_first_back_until_one_answers() {
        let mut health = with(2);
        note_all(&mut health, &["ammm", "a"]);
        assert_eq!(health.dead().nodes, BTreeSet::from([name(0)]));
        note_all(&mut health, &["mm", "mm"]);
        assert_eq!(health.dead().nodes, BTreeSet::from([name(0)]), "doubt brings nobody back");
        note_all(&mut health, &["m", "m"]);
        assert_eq!(health.dead(), Dead { nodes: BTreeSet::new(), suspended: true });
        assert!(health.note(&name(1), Outcome::Alive));
        assert_eq!(health.dead(), Dead::default(), "the silence may have been this node's");
        assert!(!health.note(&name(0), Outcome::Miss));
        assert!(health.note(&name(0), Outcome::Miss));
        assert_eq!(health.dead().nodes, BTreeSet::from([name(0)]));
    }

    #[test]
    fn a_node_that_was_cut_off_calls_nobody_dead() {
        let mut health = with(4);
        note_all(&mut health, &["amm", "amm", "amm", "amm"]);
        for n in 0..4 {
            health.note(&name(n), Outcome::Miss);
            assert_eq!(health.dead().nodes, BTreeSet::new(), "going, {n}");
        }
        assert!(health.dead().suspended);
        for n in 0..4 {
            health.note(&name(n), Outcome::Alive);
            assert_eq!(health.dead().nodes, BTreeSet::new(), "coming, {n}");
        }
        assert!(!health.dead().suspended);
    }

    #[test]
    fn own_node_and_nodes_without_addresses_are_not_probed() {
        let now = Instant::now();
        let mut health = Health::new("node-1");
        let mut nodes = targets(3);
        nodes.insert("blind".into(), Vec::new());
        health.set_targets(&nodes, now);
        let due: BTreeSet<_> = health.due(now + PERIOD, 9).into_iter().map(|probe| probe.node).collect();
        assert_eq!(due, BTreeSet::from([name(0), name(2)]));
        assert!(!health.note("node-1", Outcome::Miss));
        health.set_targets(&Targets::new(), now);
        assert_eq!(health.next_due(), None);
    }

    #[test]
    fn knowledge_stays_with_an_address() {
        let mut health = with(2);
        note_all(&mut health, &["ammm", "a"]);
        let mut nodes = targets(2);
        nodes.get_mut("node-0").unwrap().push("fd00::1".parse().unwrap());
        health.set_targets(&nodes, Instant::now());
        assert_eq!(health.dead().nodes, BTreeSet::from([name(0)]), "one more address");
        nodes.insert(name(0), vec!["10.9.9.9".parse().unwrap()]);
        health.set_targets(&nodes, Instant::now());
        assert_eq!(health.dead(), Dead::default(), "another machine under the same name");
        nodes.remove(&name(0));
        health.set_targets(&nodes, Instant::now());
        assert!(!health.note(&name(0), Outcome::Miss), "a late answer about a node that is gone");
    }

    #[test]
    fn each_node_is_probed_once_a_period_and_the_longest_waiting_first() {
        let start = Instant::now();
        let mut health = Health::new("own");
        health.set_targets(&targets(50), start);
        let now = start + PERIOD;
        let first = health.due(now, 20);
        assert!(first.len() == 20 && health.next_due().is_some_and(|due| due <= now), "thirty wait");
        let mut all: BTreeSet<_> = first.into_iter().map(|probe| probe.node).collect();
        all.extend(health.due(now, 100).into_iter().map(|probe| probe.node));
        assert_eq!(all.len(), 50);
        assert_eq!(health.due(now + PERIOD / 2, 100), []);
        assert_eq!(health.due(now + PERIOD * 9, 100).len(), 50, "no burst after a stall");
        assert_eq!(health.due(now + PERIOD * 9, 100), []);
    }

    #[test]
    fn phases_are_spread() {
        let parts: BTreeSet<_> = (0..50).map(|n| phase("own", &name(n)).as_millis() / 100).collect();
        assert!(parts.len() >= 8, "{parts:?}");
        assert_ne!(phase("node-1", "node-0"), phase("node-2", "node-0"));
        assert!((0..50).all(|n| phase("own", &name(n)) < PERIOD));
    }

    fn outcomes() -> impl Strategy<Value = Vec<(usize, Outcome)>> {
        let outcome = prop_oneof![
            4 => Just(Outcome::Miss),
            2 => Just(Outcome::Alive),
            1 => Just(Outcome::Unknown),
        ];
        prop::collection::vec((0..6_usize, outcome), 0..120)
    }

    proptest! {
        #[test]
        fn never_more_than_half_of_the_known_nodes_is_dead(outcomes in outcomes()) {
            let mut health = with(6);
            let mut answered = BTreeSet::new();
            for (n, outcome) in outcomes {
                let before = health.dead();
                let may_differ = health.note(&name(n), outcome);
                if outcome == Outcome::Alive {
                    answered.insert(name(n));
                }
                let dead = health.dead();
                prop_assert!(dead.nodes.len() * 2 <= answered.len() + 1);
                prop_assert!(dead.nodes.is_subset(&answered));
                prop_assert!(!dead.suspended || dead.nodes.is_empty());
                prop_assert!(outcome != Outcome::Alive || !dead.nodes.contains(&name(n)));
                prop_assert!(may_differ || dead == before);
            }
        }

        /// Whatever was before: four rounds of the same outcomes, in any order, and it is as the rule says.
        #[test]
        fn the_last_four_rounds_decide_in_any_order(
            outcomes in outcomes(),
            alive in prop::collection::vec(any::<bool>(), 6),
            orders in prop::collection::vec(Just((0..6).collect::<Vec<usize>>()).prop_shuffle(), 4),
        ) {
            let mut health = with(6);
            let mut answered: BTreeSet<usize> = (0..6).filter(|n| alive[*n]).collect();
            for (n, outcome) in outcomes {
                health.note(&name(n), outcome);
                answered.extend((outcome == Outcome::Alive).then_some(n));
            }
            for n in orders.into_iter().flatten() {
                health.note(&name(n), if alive[n] { Outcome::Alive } else { Outcome::Miss });
            }
            let silent: BTreeSet<String> = answered.iter().filter(|n| !alive[**n]).map(|n| name(*n)).collect();
            let suspended = silent.len() * 2 > answered.len() + 1;
            let nodes = if suspended { BTreeSet::new() } else { silent };
            prop_assert_eq!(health.dead(), Dead { nodes, suspended });
        }
    }
}
