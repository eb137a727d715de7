//! The task that allocates: does what the agenda says when its time has come, and tells what became of it.
//!
//! Owns the waits: an allocator's turn, pauses after failures, and how many things are done at once. Without something
//! to do it makes no call at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::agenda::{Agenda, Job, Outcome, Todo, Wanted, agenda, seconds};
use super::candidates::Known;
use super::settle::{self, Terms, expire, release, settle};
use super::step::Step;
use super::store::{ClaimStore, StoreError};
use crate::model::ObjectKey;
use crate::report::beats;

/// Things done at once: a cluster with a thousand new Services is not to be asked a thousand things at a time.
const AT_ONCE: usize = 8;
/// How long one thing may take; each call has a limit of its own.
const JOB_LIMIT: Duration = Duration::from_secs(60);
/// The first pause before the same thing is done again. After a success it is for the watches to tell of it.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest before a Service that has an address and does not ask here is looked at again: where nodes have other
/// settings that may go on for long, and for all their Services.
const LONGEST_LOOK: Duration = Duration::from_secs(300);

/// For how long an object of others is believed to be there still, which the watches do not tell of. Then it is looked
/// for, if some Service gets no address as long.
const FOREIGN_FOR: Duration = Duration::from_secs(3600);

/// Tells the time in seconds since 1970, as claims have it.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Tells whether no node is known to go by other settings than this one, and all would be heard.
pub type Agreed = Arc<dyn Fn() -> bool + Send + Sync>;

/// What Services came to, by key; only those that ask.
pub type Outcomes = BTreeMap<ObjectKey, Outcome>;

/// A running allocator. Dropping it ends it, between any two calls.
#[derive(Debug)]
pub struct Allocator {
    /// What each Service that asks has, by the claims as the watches told them. Changes only when something did.
    pub outcomes: watch::Receiver<Arc<Outcomes>>,
    _task: JoinSet<()>,
}

/// Starts to allocate as `node`. `wanted` is `None` until the cluster is known.
pub fn spawn<S: ClaimStore + 'static>(
    node: impl Into<String>,
    store: Arc<S>,
    wanted: watch::Receiver<Option<Arc<Wanted>>>,
    agreed: Agreed,
    clock: Clock,
) -> Allocator {
    let (out, outcomes) = watch::channel(Arc::default());
    let turns = Turns {
        node: node.into(),
        store,
        agreed,
        clock,
        out,
        entries: BTreeMap::new(),
        asked: BTreeSet::new(),
        foreign: BTreeMap::new(),
        running: JoinSet::new(),
    };
    let mut task = JoinSet::new();
    task.spawn(turns.run(wanted));
    Allocator { outcomes, _task: task }
}

struct Turns<S> {
    node: String,
    store: Arc<S>,
    agreed: Agreed,
    clock: Clock,
    out: watch::Sender<Arc<Outcomes>>,
    entries: BTreeMap<Job, Entry>,
    /// The UIDs of Services that ask, or did and are not looked after yet. The settings are the same all the while: one
    /// that asks no more has changed itself.
    asked: BTreeSet<String>,
    /// Addresses that objects of others have, and when to look whether they still do.
    foreign: BTreeMap<IpAddr, Instant>,
    running: JoinSet<Ended>,
}

/// A thing on the agenda.
#[derive(Debug, Clone)]
struct Entry {
    /// Since when it has been on the agenda without a break.
    since: Instant,
    next: Instant,
    tries: u32,
    running: bool,
    trouble: Option<String>,
    first: Option<Step>,
}

/// A thing whose time has come.
struct Task {
    job: Job,
    /// Addresses that objects of others have.
    foreign: BTreeSet<IpAddr>,
    /// What nothing but this node's settings keeps from asking is given back.
    by_settings: bool,
}

/// How a thing ended.
struct Ended {
    job: Job,
    foreign: BTreeSet<IpAddr>,
    trouble: Option<String>,
}

impl<S: ClaimStore + 'static> Turns<S> {
    async fn run(mut self, mut wanted: watch::Receiver<Option<Arc<Wanted>>>) {
        let promise = beats::Promise::new("allocator", beats::PROMPT);
        let (mut news, mut next) = (true, None);
        loop {
            promise.beat();
            if news {
                let now = wanted.borrow_and_update().clone();
                next = now.and_then(|wanted| self.go_on(&wanted, Instant::now()));
            }
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            news = true;
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                Some(ended) = self.running.join_next() => match ended {
                    Ok(ended) => self.take(ended, Instant::now()),
                    Err(error) => warn!(%error, "an allocation ended in a panic"),
                },
                () = due => {}
                () = sleep(beats::EVERY) => news = false,
            }
        }
    }

    /// Starts what is due, tells the outcomes, and says when to come back.
    fn go_on(&mut self, wanted: &Arc<Wanted>, now: Instant) -> Option<Instant> {
        let foreign: BTreeSet<IpAddr> = self.foreign.keys().copied().collect();
        let mut agenda = agenda(wanted, &foreign, &self.node, (self.clock)());
        if agenda.outcomes.values().any(|outcome| outcome.rank.is_some() && !outcome.refusals.is_empty()) {
            let todo = |until: &Instant| Todo { wait: until.saturating_duration_since(now), first: None };
            agenda
                .jobs
                .extend(self.foreign.iter().map(|(address, until)| (Job::Probe(*address), todo(until))));
        }
        self.remember(wanted, &agenda);
        self.enter(&agenda, now);
        self.start(wanted, &foreign, now);
        self.tell(agenda.outcomes);
        let entries = self.entries.values().filter(|entry| !entry.running).map(|entry| entry.next);
        entries.min().filter(|_| self.running.len() < AT_ONCE)
    }

    fn remember(&mut self, wanted: &Wanted, agenda: &Agenda) {
        let released: BTreeSet<&str> = agenda.jobs.keys().filter_map(Job::released).collect();
        self.asked.retain(|uid| released.contains(uid.as_str()));
        self.asked.extend(wanted.requests.values().map(|request| request.uid.clone()));
    }

    fn enter(&mut self, agenda: &Agenda, now: Instant) {
        self.entries.retain(|job, entry| entry.running || agenda.jobs.contains_key(job));
        for (job, todo) in &agenda.jobs {
            let new = || Entry {
                since: now,
                next: now + todo.wait,
                tries: 0,
                running: false,
                trouble: None,
                first: todo.first.clone(),
            };
            let entry = self.entries.entry(job.clone()).or_insert_with(new);
            // Another step is left than the one that was done. A turn that is waited for, or a pause after a failure,
            // does not begin anew.
            if !entry.running && entry.first != todo.first {
                let done = entry.tries > 0 && entry.trouble.is_none();
                *entry = if done { new() } else { Entry { first: todo.first.clone(), ..entry.clone() } };
            }
        }
    }

    fn start(&mut self, wanted: &Arc<Wanted>, foreign: &BTreeSet<IpAddr>, now: Instant) {
        // A Service that never asked here may have been given its address by a node that is of another mind. Within the
        // rest that has been heard; even if it was not, an address does not come and go faster.
        let agreed = (self.agreed)();
        let by_settings = |job: &Job, entry: &Entry| {
            let changed = job.released().is_some_and(|uid| self.asked.contains(uid));
            agreed && (changed || now >= entry.since + wanted.rest)
        };
        for (job, entry) in self.entries.iter_mut().filter(|(_, entry)| !entry.running && entry.next <= now) {
            if self.running.len() >= AT_ONCE {
                break;
            }
            entry.running = true;
            let task =
                Task { job: job.clone(), foreign: foreign.clone(), by_settings: by_settings(job, entry) };
            let (store, wanted, clock) = (self.store.clone(), wanted.clone(), self.clock.clone());
            self.running.spawn(async move { carry_out(&*store, &wanted, task, &*clock).await });
        }
    }

    fn take(&mut self, ended: Ended, now: Instant) {
        if let Some(trouble) = &ended.trouble {
            warn!(job = %ended.job, "{trouble}");
        }
        if let Job::Probe(address) = ended.job {
            self.entries.remove(&ended.job);
            self.foreign.remove(&address);
        }
        for address in ended.foreign {
            self.foreign.entry(address).or_insert(now + FOREIGN_FOR);
        }
        if let Some(entry) = self.entries.get_mut(&ended.job) {
            let looked = matches!(ended.job, Job::Release { .. }) && ended.trouble.is_none();
            let longest = if looked { LONGEST_LOOK } else { LONGEST_PAUSE };
            let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(entry.tries)).min(longest);
            entry.next = now + pause;
            entry.tries += 1;
            entry.running = false;
            entry.trouble = ended.trouble;
        }
    }

    fn tell(&self, mut outcomes: Outcomes) {
        for (key, outcome) in outcomes.iter_mut().filter(|(_, outcome)| outcome.pending) {
            let entry = self.entries.get(&Job::Settle { service: key.clone(), uid: outcome.uid.clone() });
            outcome.trouble = entry.and_then(|entry| entry.trouble.clone());
        }
        self.out.send_if_modified(|said| {
            let news = **said != outcomes;
            if news {
                *said = Arc::new(outcomes);
            }
            news
        });
    }
}

async fn carry_out<S: ClaimStore>(store: &S, wanted: &Wanted, task: Task, clock: settle::Now<'_>) -> Ended {
    let Task { job, foreign, by_settings } = task;
    let mut known = Known { claims: wanted.claims.clone(), foreign };
    let done = timeout(JOB_LIMIT, act(store, wanted, &job, by_settings, &mut known, clock)).await;
    let trouble = match done {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("not done in {} s", JOB_LIMIT.as_secs())),
    };
    Ended { job, foreign: known.foreign, trouble }
}

async fn act<S: ClaimStore>(
    store: &S,
    wanted: &Wanted,
    job: &Job,
    by_settings: bool,
    known: &mut Known,
    clock: settle::Now<'_>,
) -> Result<(), StoreError> {
    let rest = seconds(wanted.rest);
    match job {
        Job::Settle { service, .. } => {
            let Some(request) = wanted.requests.get(service) else { return Ok(()) };
            let terms = Terms { reserved: &wanted.reserved, rest, clock };
            let settled = settle(store, request, known, terms).await?;
            for grant in &settled.granted.addresses {
                info!(%service, address = %grant.address, pool = grant.pool, "{service} has {}", grant.address);
            }
            Ok(())
        }
        Job::Release { address, service, uid } => {
            let released = release(store, *address, service, uid, by_settings, clock).await?;
            debug!(%service, %address, released, "looked whether the Service still asks");
            Ok(())
        }
        Job::Expire(address) => expire(store, *address, rest, clock).await,
        // One that cannot be asked for is believed on.
        Job::Probe(address) => {
            if !settle::is_foreign(store, *address).await? {
                known.foreign.remove(address);
            }
            Ok(())
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settle { service, .. } => write!(f, "allocate for {service}"),
            Self::Release { address, service, .. } => write!(f, "release {address} of {service}"),
            Self::Expire(address) => write!(f, "free {address}"),
            Self::Probe(address) => write!(f, "look whose {address} is"),
        }
    }
}
