//! The task that writes: waits for news or for what is due, and makes one request after the other.
//!
//! Owns the schedule and the outbox. With nothing to say it makes no request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use imbl::ordmap::DiffItem;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, sleep_until};

use super::event::{Said, Word};
use super::outbox::Outbox;
use super::pause::Pause;
use super::turns::{Outcome, Turns};
use super::writer::{self, Attempt, Sent};
use super::{Held, State, Wanted};
use crate::model::{Finding, ObjectKey};
use crate::report::beats;
use crate::snapshot::Link;

/// Findings that are told at most: one each for permissions, and one a Service.
const FINDINGS: usize = 100;

/// What a task tells. Dropping it ends the task.
#[derive(Debug)]
pub struct Handles {
    /// What cannot be written, and why.
    pub findings: watch::Receiver<Vec<Finding>>,
    pub(super) _task: JoinSet<()>,
}

/// Starts to write what `state` says over the connection of `link`. It ends when either has no sender any more.
pub fn spawn(link: watch::Receiver<Option<Link>>, state: watch::Receiver<State>) -> Handles {
    let (out, findings) = watch::channel(Vec::new());
    let now = Clock::now().into_std();
    let task = Task {
        state: State::default(),
        link: None,
        turns: Turns::default(),
        outbox: Outbox::new(now),
        pause: Pause::default(),
        findings: BTreeMap::new(),
        out,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run(link, state));
    Handles { findings, _task: tasks }
}

struct Task {
    state: State,
    link: Option<Link>,
    turns: Turns,
    outbox: Outbox,
    /// No Event is sent before.
    pause: Pause,
    /// What ails: permissions by resource, and Services by key.
    findings: BTreeMap<String, Finding>,
    out: watch::Sender<Vec<Finding>>,
}

impl Task {
    async fn run(mut self, mut link: watch::Receiver<Option<Link>>, mut state: watch::Receiver<State>) {
        link.mark_changed();
        state.mark_changed();
        let promise = beats::Promise::new("objects", beats::PATIENT);
        loop {
            promise.beat();
            let now = Clock::now();
            let wake = self.deadline(now.into_std()).map_or(now + beats::EVERY, Clock::from_std);
            tokio::select! {
                // News first: what is due may no longer be wanted.
                biased;
                changed = state.changed() => {
                    let Ok(()) = changed else { return };
                    let new = state.borrow_and_update().clone();
                    self.take(new, Clock::now().into_std());
                }
                changed = link.changed() => {
                    let Ok(()) = changed else { return };
                    self.link.clone_from(&link.borrow_and_update());
                    self.turns.reconnected();
                    self.pause = Pause::default();
                }
                () = sleep_until(wake.min(now + beats::EVERY)) => self.work().await,
            }
            self.tell();
        }
    }

    /// When there is something to do; `None` while nothing can be done.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        self.link.as_ref().and(self.state.node.as_ref())?;
        let event = self.outbox.due(now).map(|due| self.pause.after(due));
        self.turns.deadline().into_iter().chain(event).min()
    }

    /// Takes what changed from the last state to `new`.
    fn take(&mut self, new: State, now: Instant) {
        let old = std::mem::replace(&mut self.state, new);
        for item in old.services.diff(&self.state.services) {
            let (key, before, wanted) = match item {
                DiffItem::Add(key, wanted) => (key, None, Some(wanted)),
                DiffItem::Update { old: (_, before), new: (key, wanted) } => {
                    (key, Some(before), Some(wanted))
                }
                DiffItem::Remove(key, before) => (key, Some(before), None),
            };
            let [before, wanted] = [before, wanted].map(|side| side.map(Arc::as_ref));
            self.turns.update(key, before, wanted, self.state.takeover_after, now);
            // It may have been about what was wanted before; if not, the next attempt finds it again.
            self.findings.remove(&key.to_string());
        }
        self.turns.prune(now);
        if self.turns.deadline().is_none() {
            // Nobody needs the permission now.
            self.findings.remove("services");
            self.findings.remove("services/status");
        }
        for said in new_holder(&old, &self.state) {
            self.outbox.push(said, now);
        }
    }

    /// The next request of each kind that is due.
    async fn work(&mut self) {
        let Some((link, node)) = self.link.clone().zip(self.state.node.clone()) else { return };
        let now = Clock::now().into_std();
        if let Some(key) = self.turns.next(now).cloned() {
            match self.state.services.get(&key).cloned() {
                Some(wanted) => {
                    let attempt = writer::settle(&link, &key, &wanted).await;
                    self.finish(&key, &wanted, attempt, Clock::now().into_std());
                }
                None => self.turns.update(&key, None, None, self.state.takeover_after, now),
            }
        }
        let now = Clock::now().into_std();
        if self.pause.after(now) > now {
            return;
        }
        if let Some((said, count)) = self.outbox.pop(now) {
            let counted = i32::try_from(count).unwrap_or(i32::MAX);
            let sent = writer::send(&link, &said.event(&node, Timestamp::now(), counted)).await;
            self.after_event(sent, said, count, Clock::now().into_std());
        }
    }

    fn finish(&mut self, key: &ObjectKey, wanted: &Wanted, attempt: Attempt, now: Instant) {
        self.turns.finish(key, attempt.outcome, now);
        for word in attempt.words {
            self.outbox.push(Said::of_service(key.clone(), wanted.uid.clone(), word), now);
        }
        if attempt.outcome == Outcome::Settled {
            self.findings.remove("services");
            self.findings.remove("services/status");
        }
        match attempt.finding {
            Some(finding) => self.find(finding),
            None => drop(self.findings.remove(&key.to_string())),
        }
    }

    fn after_event(&mut self, sent: Sent, said: Said, count: u32, now: Instant) {
        match sent {
            Sent::Done => {
                self.pause = Pause::default();
                self.findings.remove("events");
            }
            Sent::Nowhere => self.pause = Pause::default(),
            Sent::Denied(finding) => {
                self.pause.denied(now);
                self.find(finding);
            }
            Sent::Unreachable => {
                self.pause.unreachable(now);
                self.outbox.put_back(said, count);
            }
        }
    }

    fn find(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS || self.findings.contains_key(&finding.subject) {
            self.findings.insert(finding.subject.clone(), finding);
        }
    }

    fn tell(&self) {
        let now: Vec<Finding> = self.findings.values().cloned().collect();
        self.out.send_if_modified(|was| {
            let news = *was != now;
            *was = now;
            news
        });
    }
}

/// What a node that has become the holder of VIPs says of their Services. What it holds when it begins to know is no
/// change.
fn new_holder(old: &State, new: &State) -> Vec<Said> {
    let (Some(before), Some(now), Some(node)) = (&old.held, &new.held, &new.node) else { return Vec::new() };
    before
        .diff(now)
        .filter_map(|item| match item {
            DiffItem::Add(key, held) => taken(key, None, held, node),
            DiffItem::Update { old: (_, was), new: (key, held) } => taken(key, Some(was), held, node),
            DiffItem::Remove(..) => None,
        })
        .collect()
}

fn taken(key: &ObjectKey, was: Option<&Held>, held: &Held, node: &str) -> Option<Said> {
    let was = was.filter(|was| was.uid == held.uid);
    let new = held.vips.iter().filter(|vip| !was.is_some_and(|was| was.vips.contains(vip)));
    let list = new.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let word = || Word::normal("HolderChanged", format!("{node} now holds {list}"));
    (!list.is_empty()).then(|| Said::of_service(key.clone(), held.uid.clone(), word()))
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
