//! The rules of death, as tables and as properties.

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
fn a_node_whose_object_is_deleted_is_as_dead_as_before() {
    let now = Instant::now();
    let mut health = with(2);
    note_all(&mut health, &["ammm", "a"]);
    let mut nodes = targets(2);
    nodes.insert(name(0), Vec::new());
    health.set_targets(&nodes, now);
    assert_eq!(health.dead().nodes, BTreeSet::from([name(0)]));
    let probed = health.due(now + PERIOD, 9).into_iter().find(|probe| probe.node == name(0));
    assert_eq!(probed.map(|probe| probe.addresses), Some(targets(2)[&name(0)].clone()), "at those it had");
    assert!(health.note(&name(0), Outcome::Alive), "it may live after all");
    assert_eq!(health.dead(), Dead::default());
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
