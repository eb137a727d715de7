//! The cluster as its API server tells it, for as long as the daemon runs.
//!
//! ```text
//! session task                              keeper task
//!   kubeconfig ─► client ─► kube-system UID
//!     ├─ watch Services       ┐
//!     ├─ watch EndpointSlices ├─ events ─►  Store ─► snapshots (at most each 50 ms)
//!     ├─ watch Nodes          │             Voices ─► contact
//!     └─ watch the ConfigMap  ┘             beat   ─► alive
//! ```
//!
//! Owns both tasks. Nothing is published before every part is complete, and what was published stays through any
//! failure: the session begins anew, for ever, with growing waits, and at once when the kubeconfig changes. It writes
//! nothing to the API and does not decide whether a snapshot is taken (see `admit`).

use std::collections::BTreeMap;
use std::future::pending;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use ::kube::api::Api;
use futures::FutureExt;
use futures::future::select_all;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::admit::Update;
use super::kubeconfig::{self, Files, Link};
use super::problem::Problem;
use super::store::{Part, Store};
use super::timing::{Backoff, Timing};
use super::watch::{End, Event, Session};
use crate::config::Cluster;
use crate::model::ObjectKey;

/// Events between the two tasks; a full queue holds the watches back, which lose nothing by it.
const QUEUE: usize = 256;

/// What the tasks tell. Dropping it ends them.
#[derive(Debug)]
pub struct Handles {
    /// The newest complete snapshot; `None` until there was one. Its sender goes only when a task has died.
    pub snapshots: watch::Receiver<Option<Update>>,
    /// Whether the API server is heard. Wakes its receiver when the problem changes and at the first contact; the time
    /// of the last contact moves on in silence.
    pub contact: watch::Receiver<Contact>,
    /// When both tasks last went round, each 2 s or so, with or without contact: for the watchdog.
    pub alive: watch::Receiver<Instant>,
    _tasks: JoinSet<()>,
}

/// Contact with the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// When the part of the snapshot that was confirmed longest ago was: by a list, a change, a bookmark or the start
    /// of a watch. `None` while a part was never heard of.
    pub last_ok: Option<Instant>,
    /// What is wrong now, if anything.
    pub problem: Option<Problem>,
}

/// Starts to follow the cluster. Needs a tokio runtime with IO and time.
pub fn spawn(settings: Cluster) -> Handles {
    spawn_with(settings, Timing::default())
}

fn spawn_with(settings: Cluster, timing: Timing) -> Handles {
    let (events, inbox) = mpsc::channel(QUEUE);
    let (snapshots_out, snapshots) = watch::channel(None);
    let (contact_out, contact) = watch::channel(Contact::default());
    let (alive_out, alive) = watch::channel(Instant::now());
    let keeper = Keeper {
        store: Store::default(),
        voices: Voices::default(),
        snapshots: snapshots_out,
        contact: contact_out,
        alive: alive_out,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(keep(keeper, inbox));
    tasks.spawn(async move {
        tokio::select! {
            () = sessions(&settings, timing, &events) => {}
            () = beats(timing.beat, &events) => {}
        }
    });
    Handles { snapshots, contact, alive, _tasks: tasks }
}

/// Beats from within the sessions' task: when that is stuck, so is this.
async fn beats(every: Duration, events: &mpsc::Sender<Event>) {
    let mut ticks = interval(every);
    while events.send(Event::Beat).await.is_ok() {
        ticks.tick().await;
    }
}

/// One session after the other, for ever.
async fn sessions(settings: &Cluster, timing: Timing, events: &mpsc::Sender<Event>) {
    let mut backoff = Backoff::new(timing);
    let mut files = Files::default();
    loop {
        match load(&settings.kubeconfig, &mut files, timing.answer, events).await {
            Ok(link) => {
                let session = Session { link: &link, timing, events };
                tokio::select! {
                    end = run(&session, &settings.config_map, &mut backoff) => {
                        debug!(reason = ?end, "connecting to the API server anew");
                    }
                    () = changed(&files, timing.beat) => {
                        info!(path = %settings.kubeconfig.display(), "kubeconfig changed, connecting anew");
                        backoff.reset();
                        continue;
                    }
                }
            }
            Err(problem) => {
                let _ = events.send(Event::Failed(None, problem)).await;
            }
        }
        tokio::select! {
            () = sleep(backoff.next()) => {}
            () = changed(&files, timing.beat) => backoff.reset(),
        }
    }
}

/// Loads the kubeconfig, and tells when its credential plugin takes longer than `patience`. The plugin is waited for all
/// the same: it cannot be ended, and starting another beside it each time would pile them up.
async fn load(
    path: &Path,
    files: &mut Files,
    patience: Duration,
    events: &mpsc::Sender<Event>,
) -> Result<Link, Problem> {
    let mut loading = pin!(kubeconfig::load(path, files));
    loop {
        if let Ok(loaded) = timeout(patience, &mut loading).await {
            return loaded;
        }
        let problem =
            Problem::PluginFailed { path: path.into(), reason: "it does not come to an end".into() };
        let _ = events.send(Event::Failed(None, problem)).await;
    }
}

/// Runs a session to its end.
async fn run(session: &Session<'_>, config_map: &ObjectKey, backoff: &mut Backoff) -> End {
    let uid = match session.identify().await {
        Ok(uid) => uid,
        Err(end) => return end,
    };
    backoff.reset();
    let client = || session.link.client.clone();
    let one = Some(format!("metadata.name={}", config_map.name));
    let watches = [
        session.follow(Api::<Service>::all(client()), None, &uid).boxed(),
        session.follow(Api::<EndpointSlice>::all(client()), None, &uid).boxed(),
        session.follow(Api::<Node>::all(client()), None, &uid).boxed(),
        session.follow(Api::<ConfigMap>::namespaced(client(), &config_map.namespace), one, &uid).boxed(),
    ];
    select_all(watches).await.0
}

/// Returns when one of `files` is not as it was.
async fn changed(files: &Files, every: Duration) {
    while !files.differ() {
        sleep(every).await;
    }
}

/// What the keeper's task owns.
struct Keeper {
    store: Store,
    voices: Voices,
    snapshots: watch::Sender<Option<Update>>,
    contact: watch::Sender<Contact>,
    alive: watch::Sender<Instant>,
}

async fn keep(mut keeper: Keeper, mut inbox: mpsc::Receiver<Event>) {
    loop {
        let due = keeper.store.due(Instant::now());
        let publish = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            // A due publication goes before further events, which under load would never end.
            biased;
            () = publish => keeper.publish(Instant::now()),
            event = inbox.recv() => match event {
                Some(event) => keeper.take(event, Instant::now()),
                None => return,
            },
        }
    }
}

impl Keeper {
    fn publish(&mut self, now: Instant) {
        if let Some(update) = self.store.publish(now) {
            debug!(
                lists = update.lists,
                services = update.snapshot.services.len(),
                slices = update.snapshot.slices.len(),
                nodes = update.snapshot.nodes.len(),
                "new snapshot"
            );
            self.snapshots.send_replace(Some(update));
        }
    }

    fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Beat => {
                self.alive.send_replace(now);
                return;
            }
            Event::Started(uid) => {
                self.store.begin(uid);
                self.voices.problems.remove(&None);
            }
            Event::Listed(part, contents) => {
                self.store.list(part, contents);
                self.voices.heard(part, now);
            }
            Event::Changed(part, change) => {
                self.store.change(change);
                self.voices.heard(part, now);
            }
            Event::Confirmed(part) => self.voices.heard(part, now),
            Event::Failed(part, problem) => drop(self.voices.problems.insert(part, problem)),
        }
        self.tell_contact();
    }

    fn tell_contact(&self) {
        let now = self.voices.contact();
        self.contact.send_if_modified(|was| {
            let news = was.problem != now.problem || was.last_ok.is_some() != now.last_ok.is_some();
            if was.problem != now.problem {
                if let Some(problem) = &now.problem {
                    warn!("{problem}");
                } else {
                    info!("the API server is heard again");
                }
            }
            *was = now;
            news
        });
    }
}

/// When each part was last heard of, and what ails it; the problem of `None` is the session's.
#[derive(Debug, Default)]
struct Voices {
    heard: BTreeMap<Part, Instant>,
    problems: BTreeMap<Option<Part>, Problem>,
}

impl Voices {
    fn heard(&mut self, part: Part, now: Instant) {
        self.heard.insert(part, now);
        self.problems.remove(&Some(part));
    }

    fn contact(&self) -> Contact {
        let all = self.heard.len() == Part::ALL.len();
        Contact {
            last_ok: self.heard.values().min().copied().filter(|_| all),
            problem: self.problems.values().next().cloned(),
        }
    }
}

#[cfg(test)]
#[path = "kube_tests.rs"]
mod tests;
