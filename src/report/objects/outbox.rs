//! Events waiting to be sent: at most so many of one object and reason, and at most so many in all.
//!
//! Pure: the time is passed in. What is said again while it waits, or too often, is counted on the Event that goes
//! next and not sent by itself: a VRRP group that flaps costs a bounded number of requests, however long it lasts.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::event::{Said, Subject};

/// So many Events of one object and reason at once; then one each [`OBJECT_REFILL`]. client-go allows 25 and one in 5
/// minutes.
const OBJECT_BURST: u32 = 5;
/// The time in which it may have one Event more of that reason.
const OBJECT_REFILL: Duration = Duration::from_secs(300);
/// So many Events at once; then one each [`REFILL`]. A failover of 300 VIPs is told within a minute and a half.
const BURST: u32 = 50;
/// The time in which one Event more may be sent.
const REFILL: Duration = Duration::from_millis(300);
/// Events that wait at most; what comes on top is dropped, and counted.
const QUEUE: usize = 1000;
/// Words whose repetitions are counted at most.
const REPEATED: usize = 4000;

/// Tokens that come back with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    burst: u32,
    refill: Duration,
    /// When it will be full again.
    full: Instant,
}

impl Bucket {
    fn new(burst: u32, refill: Duration, now: Instant) -> Self {
        Self { burst, refill, full: now }
    }

    /// When a token can be taken next.
    fn ready(&self, now: Instant) -> Instant {
        let room = self.refill * (self.burst - 1);
        self.full.checked_sub(room).unwrap_or(now).max(now)
    }

    fn take(&mut self, now: Instant) -> bool {
        let good = self.ready(now) <= now;
        if good {
            self.full = self.full.max(now) + self.refill;
        }
        good
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full <= now
    }
}

/// The Events that wait.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<Said>,
    /// How often words were said that wait or were held back.
    counts: BTreeMap<Said, u32>,
    /// By object and reason, so that a holder who comes and goes hides no refusal.
    objects: BTreeMap<(Subject, String), Bucket>,
    overall: Bucket,
    dropped: u64,
}

impl Outbox {
    /// Nothing waits.
    pub fn new(now: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            counts: BTreeMap::new(),
            objects: BTreeMap::new(),
            overall: Bucket::new(BURST, REFILL, now),
            dropped: 0,
        }
    }

    /// Says something at `now`.
    pub fn push(&mut self, said: Said, now: Instant) {
        let waits = self.queue.contains(&said);
        if !waits && self.counts.len() >= REPEATED {
            // Words that were held back long ago: their numbers are the least of what matters.
            let queue = &self.queue;
            self.counts.retain(|said, _| queue.contains(said));
        }
        *self.counts.entry(said.clone()).or_default() += 1;
        if waits {
            return;
        }
        let fresh = || Bucket::new(OBJECT_BURST, OBJECT_REFILL, now);
        let allowed = self
            .objects
            .entry((said.subject.clone(), said.word.reason.clone()))
            .or_insert_with(fresh)
            .take(now);
        if allowed && self.queue.len() < QUEUE {
            self.queue.push_back(said);
        } else {
            self.dropped += 1;
        }
    }

    /// The Event to send at `now`, if one may be, with how often it was said since it was sent last.
    pub fn pop(&mut self, now: Instant) -> Option<(Said, u32)> {
        if self.queue.is_empty() || !self.overall.take(now) {
            return None;
        }
        self.objects.retain(|_, bucket| !bucket.is_full(now));
        let said = self.queue.pop_front()?;
        let count = self.counts.remove(&said).unwrap_or(1);
        Some((said, count))
    }

    /// It could not be sent: it waits on, before the others.
    pub fn put_back(&mut self, said: Said, count: u32) {
        *self.counts.entry(said.clone()).or_default() += count;
        if !self.queue.contains(&said) {
            self.queue.push_front(said);
        }
    }

    /// When [`Outbox::pop`] will have something.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        (!self.queue.is_empty()).then(|| self.overall.ready(now))
    }

    /// Events that were held back, or dropped as too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectKey;
    use crate::report::objects::event::Word;

    fn said(name: &str, note: &str) -> Said {
        Said::of_service(ObjectKey::new("default", name), name, Word::normal("Holder", note))
    }

    fn drain(outbox: &mut Outbox, now: Instant) -> Vec<(String, u32)> {
        std::iter::from_fn(|| outbox.pop(now)).map(|(said, count)| (said.word.note, count)).collect()
    }

    #[test]
    fn what_is_said_again_while_it_waits_is_one_event() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        assert_eq!(outbox.due(now), None);
        for note in ["a", "b", "a", "a"] {
            outbox.push(said("web", note), now);
        }
        assert_eq!(outbox.due(now), Some(now));
        assert_eq!(drain(&mut outbox, now), [("a".to_owned(), 3), ("b".to_owned(), 1)]);
        assert_eq!(outbox.due(now), None);
    }

    #[test]
    fn what_could_not_be_sent_goes_first_and_keeps_its_count() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        for note in ["a", "a", "b"] {
            outbox.push(said("web", note), now);
        }
        let (first, count) = outbox.pop(now).unwrap();
        outbox.push(said("web", "a"), now);
        outbox.put_back(first, count);
        assert_eq!(
            drain(&mut outbox, now),
            [("b".to_owned(), 1), ("a".to_owned(), 3)],
            "it had been said again"
        );
        let (first, count) = (said("web", "c"), 2);
        outbox.push(said("web", "d"), now);
        outbox.put_back(first, count);
        assert_eq!(drain(&mut outbox, now), [("c".to_owned(), 2), ("d".to_owned(), 1)]);
    }

    #[test]
    fn a_flapping_holder_costs_one_event_in_five_minutes_and_the_next_one_counts() {
        let start = Instant::now();
        let mut outbox = Outbox::new(start);
        let mut sent = Vec::new();
        // Once a second for an hour.
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            outbox.push(said("web", "now holds"), now);
            sent.extend(drain(&mut outbox, now));
        }
        let total: u32 = sent.iter().map(|(_, count)| count).sum();
        assert!((16..=17).contains(&sent.len()), "{sent:?}");
        assert!(total > 3200, "{total}");
        assert!(outbox.dropped() > 3500);
        let later = start + Duration::from_secs(3600 + 2000);
        outbox.push(said("other", "x"), later);
        drain(&mut outbox, later);
        assert_eq!(outbox.objects.len(), 1, "objects that may speak freely again are forgotten");
    }

    #[test]
    fn many_objects_share_the_overall_rate_and_nothing_is_lost() {
        let start = Instant::now();
        let mut outbox = Outbox::new(start);
        for n in 0..300 {
            outbox.push(said(&n.to_string(), &n.to_string()), start);
        }
        let mut now = start;
        let mut sent = drain(&mut outbox, now);
        assert_eq!(sent.len(), 50);
        while let Some(due) = outbox.due(now) {
            assert!(due > now);
            now = due;
            sent.extend(drain(&mut outbox, now));
        }
        assert_eq!((sent.len(), outbox.dropped()), (300, 0));
        assert_eq!((now - start).as_secs(), 75);
    }

    #[test]
    fn the_queue_and_the_counts_are_bounded() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        for n in 0..10_000 {
            outbox.push(said(&n.to_string(), "x"), now);
        }
        assert_eq!(outbox.queue.len(), QUEUE);
        assert!(outbox.counts.len() <= REPEATED);
        assert_eq!(outbox.dropped(), 9_000);
    }
}
