//! Every transition of an endpoint, the times of its checks, and the rules as properties.

use proptest::prelude::*;

use super::*;
use crate::health::check::{Check, Kind};

const EVERY: Duration = Duration::from_secs(5);

fn target(last: u8, rise: u8, fall: u8) -> Target {
    let check = Check { kind: Kind::Tcp, every: EVERY, timeout: Duration::from_secs(3), rise, fall };
    Target { address: ([10, 2, 4, last], 80).into(), check: Arc::new(check) }
}

/// Asks `target`, the only one, when it is due, and takes in what is found.
fn round(machine: &mut Machine, target: &Target, found: Found) -> bool {
    let now = machine.next_due().unwrap();
    assert_eq!(machine.due(now, 9), std::slice::from_ref(target));
    machine.note(target, found, now)
}

/// Whether the target is down after each finding: `+` an answer, `-` a failure, `?` nothing.
#[track_caller]
fn check(rise: u8, fall: u8, findings: &str, down: &str) {
    let target = target(1, rise, fall);
    let mut machine = Machine::new("node-a");
    machine.add(target.clone(), Instant::now());
    let mut states = String::new();
    for finding in findings.chars() {
        let before = machine.down().contains_key(&target);
        let found = match finding {
            '+' => Found::Answer,
            '-' => Found::failure("status 503"),
            _ => Found::Unknown,
        };
        let changed = round(&mut machine, &target, found);
        let after = machine.down().contains_key(&target);
        assert_eq!(changed, before != after, "{findings}");
        states.push(if after { 'd' } else { '.' });
    }
    assert_eq!(states, down, "{findings}");
}

#[test]
fn failures_in_a_row_take_out_and_answers_in_a_row_bring_back() {
    check(1, 1, "+-+-", ".d.d");
    check(1, 2, "--", ".d");
    check(1, 2, "-+--+", "...d.");
    check(2, 3, "---++", "..dd.");
    check(2, 3, "---+-++", "..dddd.");
    check(2, 1, "-+-+-+", "dddddd");
    check(3, 1, "-+++-", "ddd.d");
}

#[test]
fn what_fails_on_this_host_counts_for_nothing_and_against_nothing() {
    check(1, 2, "????", "....");
    check(1, 2, "-?-", "..d");
    check(2, 1, "-+?+", "ddd.");
}

#[test]
fn what_took_it_out_is_kept_until_it_is_back() {
    let target = target(1, 1, 1);
    let mut machine = Machine::new("node-a");
    machine.add(target.clone(), Instant::now());
    assert!(round(&mut machine, &target, Found::failure("status 503")));
    assert!(!round(&mut machine, &target, Found::failure("connection refused")));
    assert_eq!(&*machine.down()[&target], "status 503");
    assert!(round(&mut machine, &target, Found::Answer));
    assert!(round(&mut machine, &target, Found::failure("connection refused")));
    assert_eq!(&*machine.down()[&target], "connection refused");
}

#[test]
fn what_is_checked_no_more_is_forgotten_and_late_findings_are_ignored() {
    let target = target(1, 1, 1);
    let mut machine = Machine::new("node-a");
    let start = Instant::now();
    machine.add(target.clone(), start);
    round(&mut machine, &target, Found::failure("status 503"));
    assert!(machine.remove(&target) && machine.down().is_empty() && machine.is_empty());
    assert!(!machine.remove(&target));
    assert_eq!(machine.next_due(), None);
    assert!(!machine.note(&target, Found::failure("late"), start), "unknown");

    machine.add(target.clone(), start);
    let first = machine.next_due();
    machine.add(target.clone(), start + EVERY);
    assert_eq!(machine.next_due(), first, "known already");
    assert!(!machine.note(&target, Found::failure("late"), start), "not asked");
    assert_eq!((machine.next_due(), machine.len()), (first, 1));
}

#[test]
fn a_check_never_overlaps_itself_and_a_late_one_comes_at_once() {
    let target = target(1, 1, 2);
    let mut machine = Machine::new("node-a");
    let start = Instant::now();
    machine.add(target.clone(), start);
    assert_eq!(machine.due(start + EVERY, 9).len(), 1);
    assert_eq!((machine.next_due(), machine.due(start + 10 * EVERY, 9)), (None, vec![]));
    machine.note(&target, Found::Answer, start + 10 * EVERY);
    assert_eq!(machine.next_due(), Some(start + 10 * EVERY));
}

#[test]
fn those_that_wait_longest_come_first_and_only_as_many_as_there_is_room_for() {
    let mut machine = Machine::new("node-a");
    let start = Instant::now();
    (0..100).for_each(|last| machine.add(target(last, 1, 2), start));
    let late = start + 10 * EVERY;
    let mut order = Vec::new();
    while let Some(due) = machine.next_due() {
        let asked = machine.due(late, 7);
        assert!((1..=7).contains(&asked.len()));
        order.push(due);
    }
    assert_eq!(order.len(), 100_usize.div_ceil(7));
    assert!(
        order.is_sorted() && order.iter().all(|due| *due < start + EVERY),
        "first checks are spread over a period"
    );
}

#[test]
fn checks_that_begin_together_drift_apart() {
    let times = |own: &str, last: u8| {
        let target = target(last, 1, 2);
        let mut machine = Machine::new(own);
        let start = Instant::now();
        machine.add(target.clone(), start);
        let mut times = Vec::new();
        for _ in 0..20 {
            times.push(machine.next_due().unwrap());
            round(&mut machine, &target, Found::Answer);
        }
        let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().all(|pause| (EVERY.mul_f64(0.9)..=EVERY.mul_f64(1.1)).contains(pause)));
        pauses
    };
    assert_eq!(times("node-a", 1), times("node-a", 1), "a function of target and round");
    assert_ne!(times("node-a", 1), times("node-b", 1));
    assert_ne!(times("node-a", 1), times("node-a", 2));
    let pauses = times("node-a", 1);
    assert!(pauses.iter().any(|pause| *pause != pauses[0]));
}

/// What may happen to a machine.
#[derive(Debug, Clone)]
enum Event {
    Add(u8),
    Remove(u8),
    Wait(u64),
    Answer(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..4_u8).prop_map(Event::Add),
        (0..4_u8).prop_map(Event::Remove),
        (0..8000_u64).prop_map(Event::Wait),
        any::<bool>().prop_map(Event::Answer),
        any::<bool>().prop_map(Event::Answer),
    ]
}

proptest! {
    /// Whatever happens: only what is checked is down, and only after its last `fall` findings failed; all that is checked
    /// is either scheduled or being asked; nothing is asked twice at once or sooner than 0.9 periods after the last time.
    #[test]
    fn the_rules_hold_whatever_happens(events in prop::collection::vec(event(), 0..200)) {
        let mut now = Instant::now();
        let mut machine = Machine::new("node-a");
        let mut asked: Vec<Target> = Vec::new();
        let mut known: BTreeMap<Target, (Vec<bool>, Option<Instant>)> = BTreeMap::new();
        for event in events {
            let before = machine.down().clone();
            let mut changed = None;
            match event {
                Event::Add(last) => {
                    machine.add(target(last, 2, 3), now);
                    known.entry(target(last, 2, 3)).or_default();
                }
                Event::Remove(last) => {
                    let target = target(last, 2, 3);
                    changed = Some(machine.remove(&target));
                    known.remove(&target);
                    asked.retain(|other| *other != target);
                }
                Event::Wait(millis) => {
                    now += Duration::from_millis(millis);
                    for target in machine.due(now, 2) {
                        let (_, last) = known.get_mut(&target).unwrap();
                        prop_assert!(!asked.contains(&target));
                        prop_assert!(last.is_none_or(|last| now >= last + EVERY.mul_f64(0.9)));
                        *last = Some(now);
                        asked.push(target);
                    }
                }
                Event::Answer(good) => {
                    let Some(target) = asked.pop() else { continue };
                    let found = if good { Found::Answer } else { Found::failure("x") };
                    changed = Some(machine.note(&target, found, now));
                    known.get_mut(&target).unwrap().0.push(good);
                }
            }
            prop_assert_eq!(changed.unwrap_or_default(), before != *machine.down());
            prop_assert_eq!(machine.len(), known.len());
            prop_assert_eq!(machine.schedule.len() + asked.len(), known.len());
            for (target, (findings, _)) in &known {
                prop_assert_eq!(machine.down().contains_key(target), is_down(findings));
            }
            prop_assert!(machine.down().keys().all(|target| known.contains_key(target)));
        }
    }
}

/// The same said otherwise: down since the last three failures in a row, unless two answers in a row came after.
fn is_down(findings: &[bool]) -> bool {
    let last = |run: &[bool]| findings.windows(run.len()).rposition(|part| part == run);
    match (last(&[false; 3]), last(&[true; 2])) {
        (Some(fell), Some(rose)) => fell > rose,
        (fell, _) => fell.is_some(),
    }
}
