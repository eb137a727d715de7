//! The cluster as its API server tells it, for as long as the daemon runs.
//!
//! ```text
//! session task                              keeper task
//!   kubeconfig ─► client ─► kube-system UID
//!     ├─ watch Services       ┐
//!     ├─ watch EndpointSlices ├─ events ─►  Store ─► snapshots (at most each 50 ms)
//!     ├─ watch Nodes          │             Voices ─► contact
//!     └─ watch …              ┘             beat   ─► alive
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
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::admit::Update;
use super::feed::tell_contact;
pub use super::feed::{Contact, Handles};
use super::kubeconfig::{self, Files, Link};
use super::problem::Problem;
use super::store::{Part, Store};
use super::timing::{Backoff, Timing};
use super::watch::{End, Event, Session};
use super::watched::{
    EndpointSlices, IpAddresses, Leases, Namespaces, Nodes, Scope, ServiceCidrs, Services, Settings, VipMap,
};
use crate::config::Cluster;
use crate::ipam::object;
use crate::model::ObjectKey;

/// Events between the two tasks; a full queue holds the watches back, which lose nothing by it.
const QUEUE: usize = 256;

/// Starts to follow the cluster. Needs a tokio runtime with IO and time.
pub fn spawn(settings: Cluster) -> Handles {
    spawn_with(settings, Timing::default())
}

fn spawn_with(settings: Cluster, timing: Timing) -> Handles {
    let (events, inbox) = mpsc::channel(QUEUE);
    let (snapshots_out, snapshots) = watch::channel(None);
    let (contact_out, contact) = watch::channel(Contact::default());
    let (alive_out, alive) = watch::channel(Instant::now());
    let (link_out, link) = watch::channel(None);
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
            () = sessions(&settings, timing, &events, &link_out) => {}
            () = beats(timing.beat, &events) => {}
        }
    });
    Handles { snapshots, contact, alive, link, _tasks: tasks }
}

/// Beats from within the sessions' task: when that is stuck, so is this.
async fn beats(every: Duration, events: &mpsc::Sender<Event>) {
    let mut ticks = interval(every);
    while events.send(Event::Beat).await.is_ok() {
        ticks.tick().await;
    }
}

/// One session after the other, for ever.
async fn sessions(
    settings: &Cluster,
    timing: Timing,
    events: &mpsc::Sender<Event>,
    shared: &watch::Sender<Option<Link>>,
) {
    let mut backoff = Backoff::new(timing);
    let mut files = Files::default();
    loop {
        match load(&settings.kubeconfig, &mut files, timing, events).await {
            Ok(link) => {
                let session = Session { link: &link, timing, events };
                let end = tokio::select! {
                    end = run(&session, settings, &mut backoff, shared) => Some(end),
                    () = changed(&files, timing.beat) => None,
                };
                shared.send_replace(None);
                let Some(end) = end else {
                    info!(path = %settings.kubeconfig.display(), "kubeconfig changed, connecting anew");
                    backoff.reset();
                    continue;
                };
                debug!(reason = ?end, "connecting to the API server anew");
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

/// Loads the kubeconfig, and tells when its credential provider takes longer than an answer may. It is waited for all the
/// same: one that is no exec plugin cannot be ended, and starting another beside it each time would pile them up.
async fn load(
    path: &Path,
    files: &mut Files,
    timing: Timing,
    events: &mpsc::Sender<Event>,
) -> Result<Link, Problem> {
    let mut loading = pin!(kubeconfig::load(path, files, timing.plugin));
    loop {
        if let Ok(loaded) = timeout(timing.answer, &mut loading).await {
            return loaded;
        }
        let problem =
            Problem::PluginFailed { path: path.into(), reason: "it does not come to an end".into() };
        let _ = events.send(Event::Failed(None, problem)).await;
    }
}

/// Runs a session to its end.
async fn run(
    session: &Session<'_>,
    settings: &Cluster,
    backoff: &mut Backoff,
    shared: &watch::Sender<Option<Link>>,
) -> End {
    let uid = match session.identify().await {
        Ok(uid) => uid,
        Err(end) => return end,
    };
    backoff.reset();
    shared.send_replace(Some(session.link.clone()));
    let client = || session.link.client.clone();
    let api = |map: &ObjectKey| Api::namespaced(client(), &map.namespace);
    let claims = || Scope::Labelled(object::selector());
    let (vips, own) = (&settings.config_map, &settings.settings_map);
    let watches = [
        session.follow::<Services>(Api::all(client()), Scope::All, &uid).boxed(),
        session.follow::<EndpointSlices>(Api::all(client()), Scope::All, &uid).boxed(),
        session.follow::<Nodes>(Api::all(client()), Scope::All, &uid).boxed(),
        session.follow::<VipMap>(api(vips), Scope::Named(vips.clone()), &uid).boxed(),
        session.follow::<Namespaces>(Api::all(client()), Scope::All, &uid).boxed(),
        session.follow::<Settings>(api(own), Scope::Named(own.clone()), &uid).boxed(),
        session.follow::<ServiceCidrs>(Api::all(client()), Scope::All, &uid).boxed(),
        session.follow::<IpAddresses>(Api::all(client()), claims(), &uid).boxed(),
        session.follow::<Leases>(Api::namespaced(client(), object::NAMESPACE), claims(), &uid).boxed(),
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
            Event::Started { uid, servers } => {
                self.store.begin(uid, servers);
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
            Event::Refused(part, finding) => {
                self.store.refuse(part, finding);
                // An answer all the same.
                self.voices.heard(part, now);
            }
            Event::Failed(part, problem) => drop(self.voices.problems.insert(part, problem)),
        }
        tell_contact(&self.contact, self.voices.contact(), "the API server is heard again");
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
