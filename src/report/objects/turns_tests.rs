//! The schedule, without a clock.

use super::*;
use crate::report::objects::{Kind, Shown, Verdict};
use crate::snapshot::Condition;

const AFTER: Duration = Duration::from_secs(10);

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// A refusal that is not shown.
fn wanted(place: Option<u32>) -> Wanted {
    Wanted {
        uid: "u1".into(),
        kind: Kind::Other,
        addresses: Vec::new(),
        ingress: false,
        verdict: Verdict::Allocated,
        place,
        shown: Shown::default(),
    }
}

/// The same as the snapshot shows it once written.
fn shown() -> Wanted {
    let (status, reason, message) = ("True".into(), "Allocated".into(), "served".into());
    let condition = Condition { status, reason, message, observed: true };
    let shown = Shown { condition: Some(condition), ingress: Vec::new() };
    Wanted { shown, ..wanted(Some(0)) }
}

struct Fixture {
    turns: Turns,
    before: BTreeMap<ObjectKey, Wanted>,
    start: Instant,
}

impl Fixture {
    fn new() -> Self {
        Self { turns: Turns::default(), before: BTreeMap::new(), start: Instant::now() }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn update(&mut self, name: &str, wanted: &Wanted, seconds: u64) {
        let now = self.at(seconds);
        let before = self.before.insert(key(name), wanted.clone());
        self.turns.update(&key(name), before.as_ref(), Some(wanted), AFTER, now);
    }

    /// When the next attempt is due, in seconds.
    fn due(&self) -> Option<u64> {
        let due = self.turns.deadline()?;
        let seconds = (due - self.start).as_secs();
        assert!(self.turns.next(due).is_some());
        assert!(
            seconds == 0 || self.turns.next(due.checked_sub(Duration::from_millis(1)).unwrap()).is_none()
        );
        Some(seconds)
    }

    fn finish(&mut self, outcome: Outcome, seconds: u64) -> Option<u64> {
        let now = self.at(seconds);
        let key = self.turns.next(now).expect("one is due").clone();
        self.turns.finish(&key, outcome, now);
        self.due()
    }
}

#[test]
fn nothing_to_say_is_nothing_to_do() {
    let mut fixture = Fixture::new();
    fixture.update("web", &shown(), 0);
    fixture.update("web", &wanted(None), 0);
    assert_eq!(fixture.due(), None);
    assert!(fixture.turns.services.is_empty());
}

#[test]
fn the_first_acts_at_once_and_the_next_ones_later_if_it_is_still_needed() {
    for (place, due) in [(0, 0), (1, 10), (2, 20)] {
        let mut fixture = Fixture::new();
        fixture.update("web", &wanted(Some(place)), 0);
        assert_eq!(fixture.due(), Some(due));
        // Another change does not put it off.
        fixture.update("web", &wanted(Some(place)), 5);
        assert_eq!(fixture.due(), Some(due));
        fixture.update("web", &shown(), 6);
        assert_eq!(fixture.due(), None);
        assert!(fixture.turns.services.is_empty());
    }
}

#[test]
fn a_settled_one_waits_for_a_change_whatever_the_snapshot_lags_behind() {
    let mut fixture = Fixture::new();
    fixture.update("web", &wanted(Some(0)), 0);
    assert_eq!(fixture.finish(Outcome::Settled, 0), None);
    fixture.update("web", &shown(), 1);
    assert_eq!(fixture.due(), None);
    fixture.update("web", &wanted(Some(0)), 100);
    assert_eq!(fixture.due(), Some(100));
}

#[test]
fn writers_that_undo_each_other_slow_down() {
    let mut fixture = Fixture::new();
    let mut times = Vec::new();
    let mut now = 0;
    for _ in 0..14 {
        fixture.update("web", &wanted(Some(0)), now);
        now = fixture.due().unwrap();
        times.push(now);
        fixture.finish(Outcome::Settled, now);
        fixture.update("web", &shown(), now);
    }
    assert_eq!(times, [0, 0, 0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111]);
    // Peace for a while and it is as before.
    fixture.update("web", &wanted(Some(0)), now + 601);
    assert_eq!(fixture.due(), Some(now + 601));
    let end = fixture.at(now + 1202);
    fixture.turns.finish(&key("web"), Outcome::Settled, end);
    fixture.turns.prune(end + QUIET);
    assert_eq!(fixture.turns.services.len(), 1);
    fixture.turns.prune(end + QUIET + Duration::from_secs(1));
    assert!(fixture.turns.services.is_empty());
}

#[test]
fn a_person_who_changes_a_service_often_is_not_slowed_down() {
    let mut fixture = Fixture::new();
    let changed = |place, second: u64| {
        let verdict = Verdict::Refused { reason: "Taken".into(), text: second.to_string() };
        Wanted { verdict, ..wanted(Some(place)) }
    };
    for second in 0..20 {
        fixture.update("web", &changed(0, second), second);
        assert_eq!(fixture.due(), Some(second));
        fixture.finish(Outcome::Settled, second);
    }
    // The next allocator's wait is not put off by it, and ends when it becomes the first.
    for second in 20..25 {
        fixture.update("other", &changed(1, second), second);
        assert_eq!(fixture.due(), Some(30));
    }
    fixture.update("other", &changed(0, 25), 25);
    assert_eq!(fixture.due(), Some(25));
}

#[test]
fn a_conflict_is_tried_again_at_once_and_then_with_growing_waits() {
    let mut fixture = Fixture::new();
    fixture.update("web", &wanted(Some(0)), 0);
    let dues: Vec<_> = (0..5).map(|_| fixture.finish(Outcome::Conflict, fixture.due().unwrap())).collect();
    assert_eq!(dues, [Some(0), Some(0), Some(1), Some(3), Some(7)]);
}

#[test]
fn a_refused_status_is_tried_some_times_and_then_waits_for_a_change() {
    let mut fixture = Fixture::new();
    fixture.update("bad", &wanted(Some(0)), 0);
    let mut attempts = 0;
    while let Some(due) = fixture.due() {
        fixture.finish(Outcome::Refused, due);
        attempts += 1;
        // Another Service is not held up by it.
        fixture.update("good", &wanted(Some(0)), due);
        assert_eq!(fixture.turns.next(fixture.at(due)), Some(&key("good")));
        fixture.turns.update(&key("good"), None, None, AFTER, fixture.start);
    }
    assert_eq!(attempts, ATTEMPTS);
    fixture.update("bad", &wanted(Some(0)), 1000);
    assert!(fixture.due().is_some());
}

#[test]
fn without_an_answer_one_is_tried_for_all_with_growing_waits() {
    let mut fixture = Fixture::new();
    for name in ["a", "b", "c"] {
        fixture.update(name, &wanted(Some(0)), 0);
    }
    let mut times = vec![0];
    for _ in 0..8 {
        let now = *times.last().unwrap();
        times.push(fixture.finish(Outcome::Unreachable, now).unwrap());
    }
    assert_eq!(times, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
    assert_eq!(fixture.finish(Outcome::Settled, 183), Some(0), "the others at once");
    assert_eq!(fixture.finish(Outcome::Unreachable, 184), Some(185), "and the waits begin anew");
    fixture.turns.reconnected();
    assert_eq!(fixture.due(), Some(0));
}

#[test]
fn a_denied_write_stops_all_for_ten_minutes_or_until_there_are_other_credentials() {
    let mut fixture = Fixture::new();
    fixture.update("a", &wanted(Some(0)), 0);
    fixture.update("b", &wanted(Some(0)), 0);
    assert_eq!(fixture.finish(Outcome::Denied, 0), Some(600));
    fixture.update("c", &wanted(Some(0)), 5);
    assert_eq!(fixture.due(), Some(600));
    fixture.turns.reconnected();
    assert_eq!(fixture.due(), Some(0));
}
