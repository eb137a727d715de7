//! The task that says this node's cluster-wide settings and hears the others': Events about the settings' ConfigMap.
//!
//! What is said and when is [`super::agreement`]'s to decide. The line itself is in an annotation of the Event, whole;
//! its note is for people.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, watcher};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, sleep_until};

use super::agreement::{Agreement, Heard, Own};
use super::event::{COMPONENT, Said, Subject, Word};
use super::pause::Pause;
use super::status::shortened;
use super::writer::{self, Sent};
use crate::model::{Finding, ObjectKey};
use crate::report::beats;
use crate::snapshot::Link;

/// The reason of these Events, by which they are watched.
pub const REASON: &str = "KvipSettings";
/// The annotation with the line.
const LINE: &str = "kvip.io/settings";

/// The longest line that is taken: twice what this version writes.
const LINE_LIMIT: usize = 2048;

/// A watch that was denied is tried again within a minute (the default backoff of kube's watcher), and says nothing when it then goes
/// on from where it was: when so long nothing was denied, it does. An API server that has just started may deny what it will allow.
const DENIED_FOR: Duration = Duration::from_secs(90);

type Watch = Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<Event>>> + Send>>;

/// Starts to say and hear settings, as Events about the ConfigMap `map` in its namespace. It ends when either channel
/// has no sender any more; nothing happens before `own` is known.
pub fn spawn(
    link: watch::Receiver<Option<Link>>,
    own: watch::Receiver<Option<Own>>,
    map: ObjectKey,
) -> Listener {
    let (out, heard) = watch::channel(Heard::default());
    let task = Task::new(map, out);
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run(link, own));
    Listener { heard, _task: tasks }
}

/// The running task. Dropping it ends it.
#[derive(Debug)]
pub struct Listener {
    /// What is known of the others.
    pub heard: watch::Receiver<Heard>,
    _task: JoinSet<()>,
}

struct Task {
    agreement: Agreement,
    link: Option<Link>,
    map: ObjectKey,
    watch: Option<Watch>,
    /// What had been said before was heard.
    listed: bool,
    /// Nothing is said before.
    pause: Pause,
    cannot_say: Option<Finding>,
    /// The lack of permission, and until when it counts.
    cannot_hear: Option<(Finding, Instant)>,
    out: watch::Sender<Heard>,
}

impl Task {
    fn new(map: ObjectKey, out: watch::Sender<Heard>) -> Self {
        Self {
            agreement: Agreement::default(),
            link: None,
            map,
            watch: None,
            listed: false,
            pause: Pause::default(),
            cannot_say: None,
            cannot_hear: None,
            out,
        }
    }

    async fn run(mut self, mut link: watch::Receiver<Option<Link>>, mut own: watch::Receiver<Option<Own>>) {
        link.mark_changed();
        own.mark_changed();
        let promise = beats::Promise::new("settings", beats::PATIENT);
        loop {
            promise.beat();
            let now = Clock::now();
            let wake = self.deadline(now.into_std()).map_or(now + beats::EVERY, Clock::from_std);
            tokio::select! {
                changed = own.changed() => {
                    let Ok(()) = changed else { return };
                    if let Some(own) = own.borrow_and_update().clone() {
                        self.agreement.know(own);
                    }
                }
                changed = link.changed() => {
                    let Ok(()) = changed else { return };
                    self.connect(link.borrow_and_update().clone());
                }
                Some(event) = next(&mut self.watch) => self.hear(event, Clock::now().into_std()),
                () = sleep_until(wake.min(now + beats::EVERY)) => self.say().await,
            }
            self.tell(Clock::now().into_std());
        }
    }

    fn connect(&mut self, link: Option<Link>) {
        self.pause = Pause::default();
        self.listed = false;
        self.watch = link.as_ref().map(|link| {
            let api = Api::<Event>::namespaced(link.client.clone(), &self.map.namespace);
            let config = Config::default().fields(&format!("reason={REASON}"));
            watcher(api, config).default_backoff().boxed()
        });
        self.link = link;
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        self.link.as_ref()?;
        self.agreement.to_say().map(|_| self.pause.after(now))
    }

    async fn say(&mut self) {
        let now = Clock::now().into_std();
        let (Some(link), Some(own)) = (&self.link, self.agreement.to_say()) else { return };
        if self.pause.after(now) > now {
            return;
        }
        let fingerprint = own.fingerprint.clone();
        let sent = writer::send(link, &event(own, &self.map, Timestamp::now())).await;
        let now = Clock::now().into_std();
        self.cannot_say = match sent {
            Sent::Done => {
                self.pause = Pause::default();
                self.agreement.said(&fingerprint, now);
                None
            }
            Sent::Unreachable => return self.pause.unreachable(now),
            Sent::Denied(finding) => {
                self.pause.denied(now);
                Some(finding)
            }
            Sent::Nowhere => {
                self.pause.denied(now);
                Some(no_namespace(&self.map.namespace))
            }
        };
    }

    fn hear(&mut self, event: watcher::Result<watcher::Event<Event>>, now: Instant) {
        match event {
            Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event)) => {
                if let Some((node, line)) = read(&event) {
                    self.agreement.hear(node, line, now);
                }
            }
            Ok(watcher::Event::Delete(event)) => {
                if let Some((node, _)) = read(&event) {
                    self.agreement.expire(node);
                }
            }
            // Each attempt begins with `Init`, be it allowed or not.
            Ok(watcher::Event::Init) => {}
            Ok(watcher::Event::InitDone) => (self.listed, self.cannot_hear) = (true, None),
            Err(error) => {
                let denied = self.link.as_ref().and_then(|link| denied(link, &error));
                self.cannot_hear = denied.map(|finding| (finding, now + DENIED_FOR));
            }
        }
    }

    fn tell(&self, now: Instant) {
        let mut findings = self.agreement.findings();
        let denied = self.cannot_hear.iter().filter(|(_, until)| now < *until).map(|(finding, _)| finding);
        findings.extend(self.cannot_say.iter().chain(denied).cloned());
        let heard = Heard { findings, all: self.listed && self.agreement.is_answered(now) };
        self.out.send_if_modified(|was| {
            let news = *was != heard;
            *was = heard;
            news
        });
    }
}

/// The next event of the watch; none, for ever, where there is no watch.
async fn next(watch: &mut Option<Watch>) -> Option<watcher::Result<watcher::Event<Event>>> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

fn event(own: &Own, map: &ObjectKey, now: Timestamp) -> Event {
    let subject = Subject { kind: "ConfigMap", key: map.clone(), uid: String::new() };
    let line = if own.fingerprint.is_empty() { "all at their defaults" } else { &own.fingerprint };
    let word = Word::normal(REASON, format!("cluster-wide settings of {}: {line}", own.node));
    let mut event = Said { subject, word }.event(&own.node, now, 1);
    event.metadata.name = Some(name(&own.node));
    event.metadata.annotations = Some([(LINE.to_owned(), own.fingerprint.clone())].into());
    event
}

/// One Event a node, whatever it says.
fn name(node: &str) -> String {
    format!("{}.kvip-settings", shortened(node, 230).trim_end_matches(['-', '.']))
}

/// Whose settings an Event tells, and the line.
fn read(event: &Event) -> Option<(&str, &str)> {
    let source = event.source.as_ref().filter(|source| source.component.as_deref() == Some(COMPONENT))?;
    let line = event.metadata.annotations.as_ref()?.get(LINE)?;
    // Whoever may make Events here can write anything, and the line is shown to people.
    let plain = line.len() <= LINE_LIMIT && line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !plain {
        return None;
    }
    Some((source.host.as_deref()?, line))
}

fn no_namespace(namespace: &str) -> Finding {
    let text = format!("other nodes cannot learn this node's settings: there is no namespace {namespace}");
    Finding::new("settings", text).mend(format!(
        "with an admin's kubeconfig: kubectl apply -f {}",
        crate::snapshot::problem::RBAC_MANIFEST
    ))
}

/// A lost connection is the snapshot's to tell; a lack of permission is this task's.
fn denied(link: &Link, error: &watcher::Error) -> Option<Finding> {
    let (verb, error) = match error {
        watcher::Error::InitialListFailed(error) => ("list", error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => ("watch", error),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => return None,
    };
    let kube::Error::Api(status) = error else { return None };
    (status.code == 403).then(|| {
        let problem = link.problem(verb, "events", error);
        let finding = Finding::new("settings", problem.to_string());
        problem.mend().into_iter().fold(finding, Finding::mend)
    })
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
