//! One watch: lists a kind of object, follows its changes, and starts again for ever.
//!
//! kube's own watcher hides bookmarks and restarts, and these are what confirms contact on an idle cluster; it also
//! resumes at a version that a rebuilt or restored cluster has not reached yet, and then sees nothing. So the loop
//! here is kvip's, over kube's list and watch calls. It tells events and keeps no state but the version it is at.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, ListParams, ObjectList, WatchEvent, WatchParams};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::convert::Change;
use super::kubeconfig::Link;
use super::problem::{Problem, Request};
use super::read::Read;
use super::store::Part;
use super::timing::{Backoff, Timing};
use super::watched::{self, Scope, Watched};
use crate::model::Finding;

/// Objects in one answer to a list, as client-go asks for.
const PAGE: u32 = 500;

/// The namespace whose UID tells one cluster from another.
const IDENTITY: &str = "kube-system";

/// What a watch, or the session around it, tells.
#[derive(Debug)]
pub(super) enum Event {
    /// The session's loop lives.
    Beat,
    /// A session with the cluster of this UID begins; every part will be listed anew.
    Started {
        /// The UID of its kube-system.
        uid: String,
        /// The addresses of the server that the kubeconfig names.
        servers: BTreeSet<IpAddr>,
    },
    /// The complete contents of a part.
    Listed(Part, Vec<Change>),
    /// A change in a part.
    Changed(Part, Change),
    /// The server was heard about a part, without news.
    Confirmed(Part),
    /// A part cannot be had and kvip can do without: the server does not serve it, or it does not let kvip read it, which
    /// the finding says.
    Refused(Part, Option<Finding>),
    /// The watch of a part, or the session (`None`), fails and will try again.
    Failed(Option<Part>, Problem),
}

/// Why a session ends, so that a new one begins with a new client and new lists.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The server no longer takes the credentials.
    Unauthorized,
    /// The server now speaks for another cluster.
    OtherCluster,
}

/// What went wrong with a request, and what it means for the next one.
struct Fault {
    problem: Problem,
    remedy: Remedy,
}

#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// Go on from the same version.
    Resume,
    /// The same, once it is certain that this is the same cluster still.
    Verify,
    /// What was seen is of no use any more.
    Relist,
    /// The same, and in order: versions are kept for some minutes only.
    Expired,
    /// The server does not have this (404): the same, where kvip cannot do without.
    Absent,
    /// The server does not allow this (403): go on from the same version, where kvip cannot do without.
    Forbidden,
    /// The session is over.
    End(End),
}

/// A session: one client, one cluster, and where to tell events.
pub(super) struct Session<'a> {
    pub(super) link: &'a Link,
    pub(super) timing: Timing,
    pub(super) events: &'a mpsc::Sender<Event>,
}

impl Session<'_> {
    /// Asks for the cluster's UID until there is an answer, and makes it known.
    pub(super) async fn identify(&self) -> Result<String, End> {
        let mut backoff = Backoff::new(self.timing);
        loop {
            match self.cluster().await {
                Ok(uid) => {
                    self.tell(Event::Started { uid: uid.clone(), servers: self.link.addresses().await })
                        .await;
                    return Ok(uid);
                }
                Err(fault) => {
                    self.tell(Event::Failed(None, fault.problem)).await;
                    if let Remedy::End(end) = fault.remedy {
                        return Err(end);
                    }
                }
            }
            sleep(backoff.next()).await;
        }
    }

    async fn cluster(&self) -> Result<String, Fault> {
        let request = self.request("get", "namespaces");
        let api = Api::<Namespace>::all(self.link.client.clone());
        let answer = self.answer(request, api.get(IDENTITY)).await;
        // Whatever part is watched, this is not the part's own answer.
        let namespace = answer.map_err(|fault| match fault.remedy {
            Remedy::Absent | Remedy::Forbidden => Fault { remedy: Remedy::Resume, ..fault },
            _ => fault,
        })?;
        // A namespace without a UID is not to be had from an API server; an empty one is still the same each time.
        Ok(namespace.uid().unwrap_or_default())
    }

    /// Follows `api`, reduced to `scope`, until the session ends.
    pub(super) async fn follow<W: Watched>(&self, api: Api<Read<W::Object>>, scope: Scope, uid: &str) -> End {
        let mut watch =
            Watch::<W> { session: self, api, scope: &scope, uid, version: None, doubt: false, outage: false };
        let mut backoff = Backoff::new(self.timing);
        loop {
            let began = Instant::now();
            let step = watch.step().await;
            if watch.is_outage_over(&step) {
                backoff.reset();
            }
            match step {
                Ok(Step::Listed | Step::Verified) => continue,
                Ok(Step::Ended) | Err(Fault { remedy: Remedy::Expired, .. }) => {}
                Err(fault) if W::WITHOUT.is_some() && fault.is_refusal() => {
                    self.tell(Event::Refused(W::PART, forbidden::<W>(&fault))).await;
                    watch.version = None;
                    sleep(self.timing.refused).await;
                    continue;
                }
                Err(Fault { problem, remedy }) => {
                    self.tell(Event::Failed(Some(W::PART), problem)).await;
                    if let Remedy::End(end) = remedy {
                        return end;
                    }
                }
            }
            // Also after a good end: a server that ends each watch at once must not be asked without pause.
            if began.elapsed() > self.timing.retry_longest {
                backoff.reset();
            }
            sleep(backoff.next()).await;
        }
    }

    fn request<'a>(&'a self, verb: &'static str, resource: &'a str) -> Request<'a> {
        Request { server: &self.link.server, path: &self.link.path, verb, resource, one: None }
    }

    async fn answer<T>(
        &self,
        request: Request<'_>,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Fault> {
        if let Ok(answer) = timeout(self.timing.answer, answer).await {
            return answer.map_err(|error| fault(request, &error));
        }
        let reason = format!("no answer within {} s", self.timing.answer.as_secs_f64());
        Err(Fault { problem: request.unreachable(reason), remedy: Remedy::Verify })
    }

    /// The receiver is there as long as the session is: the one ends the other.
    pub(super) async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

/// What `error` means for the next request.
fn fault(request: Request<'_>, error: &kube::Error) -> Fault {
    let problem = request.problem(error);
    let remedy = match error {
        kube::Error::Api(status) => remedy(status.code),
        kube::Error::SerdeError(_) => Remedy::Relist,
        _ => Remedy::Verify,
    };
    Fault { problem, remedy }
}

/// Overload and lost permission pass; whatever else the server answers says that it cannot go on from here.
fn remedy(code: u16) -> Remedy {
    match code {
        401 => Remedy::End(End::Unauthorized),
        403 => Remedy::Forbidden,
        404 => Remedy::Absent,
        429 | 502 | 503 => Remedy::Resume,
        410 => Remedy::Expired,
        _ => Remedy::Relist,
    }
}

impl Fault {
    /// Whether the server has no such kind or does not let kvip read it.
    fn is_refusal(&self) -> bool {
        matches!(self.remedy, Remedy::Absent | Remedy::Forbidden)
    }
}

/// The finding on a kind that kvip may not read, as with permissions that an older kvip came with. That an older
/// cluster does not have a kind is no one's to mend.
fn forbidden<W: Watched>(fault: &Fault) -> Option<Finding> {
    if fault.remedy != Remedy::Forbidden {
        return None;
    }
    let text = format!(
        "its API does not let kvip read {0} (403): the rule \"{0}: get, list, watch\" is missing; {1}",
        W::RESOURCE,
        W::WITHOUT?
    );
    Some(Finding { mend: fault.problem.mend(), ..Finding::new("cluster", text) })
}

/// How one step of a watch ended, when it went well.
enum Step {
    Listed,
    Ended,
    /// It is the same cluster.
    Verified,
}

struct Watch<'a, W: Watched> {
    session: &'a Session<'a>,
    api: Api<Read<W::Object>>,
    scope: &'a Scope,
    uid: &'a str,
    /// The version to go on from; `None` when it is to be listed.
    version: Option<String>,
    /// After silence or a lost connection it is not certain that this is the cluster that was listed.
    doubt: bool,
    /// The server could not be asked about that.
    outage: bool,
}

impl<'a, W: Watched> Watch<'a, W> {
    /// Verifies, lists or watches, whichever is next.
    async fn step(&mut self) -> Result<Step, Fault> {
        let verifying = self.doubt;
        let step = if verifying {
            self.verify().await
        } else if let Some(version) = self.version.clone() {
            self.watch(version).await
        } else {
            self.list().await
        };
        match step.as_ref().err().map(|fault| &fault.remedy) {
            Some(Remedy::Verify) => {
                self.outage |= verifying;
                self.doubt = true;
            }
            Some(Remedy::Relist | Remedy::Expired | Remedy::Absent) => self.version = None,
            Some(Remedy::Resume | Remedy::Forbidden | Remedy::End(_)) | None => {}
        }
        step
    }

    /// Makes sure that the server speaks for the cluster of this session. Forgets the version when the server has not
    /// reached it, as after a restore from a backup: from there it would tell nothing.
    async fn verify(&mut self) -> Result<Step, Fault> {
        if self.session.cluster().await? != self.uid {
            let problem = self.request("get").unreachable("it now speaks for another cluster".into());
            return Err(Fault { problem, remedy: Remedy::End(End::OtherCluster) });
        }
        if let Some(version) = &self.version {
            let now = self.page(1, None).await?.metadata.resource_version.unwrap_or_default();
            if is_before(&now, version) {
                self.version = None;
            }
        }
        self.doubt = false;
        Ok(Step::Verified)
    }

    /// Whether `step` is the first answer, be it an error, of a server that gave none: no reason to wait longer.
    fn is_outage_over(&mut self, step: &Result<Step, Fault>) -> bool {
        let answered = !matches!(step, Err(Fault { remedy: Remedy::Verify, .. }));
        answered && std::mem::take(&mut self.outage)
    }

    async fn list(&mut self) -> Result<Step, Fault> {
        let mut contents = Vec::new();
        let mut next = None;
        loop {
            let page = self.page(PAGE, next).await?;
            contents.extend(page.items.iter().map(watched::change::<W>));
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                // Without it there is nothing to watch from, and listing again at once would never end.
                let Some(version) = version else {
                    let problem = self.request("list").status(500, "the list has no resourceVersion", "");
                    return Err(Fault { problem, remedy: Remedy::Relist });
                };
                self.version = Some(version);
                self.session.tell(Event::Listed(W::PART, contents)).await;
                return Ok(Step::Listed);
            }
            self.session.tell(Event::Confirmed(W::PART)).await;
        }
    }

    async fn page(&self, limit: u32, next: Option<String>) -> Result<ObjectList<Read<W::Object>>, Fault> {
        // No resourceVersion: the newest state, never that of a cache behind what was already seen.
        let parameters = ListParams {
            field_selector: self.scope.fields(),
            label_selector: self.scope.labels(),
            limit: Some(limit),
            continue_token: next,
            ..ListParams::default()
        };
        self.session.answer(self.request("list"), self.api.list(&parameters)).await
    }

    /// Follows from `version`, and keeps the last one seen.
    async fn watch(&mut self, version: String) -> Result<Step, Fault> {
        let request = self.request("watch");
        let parameters = WatchParams {
            field_selector: self.scope.fields(),
            label_selector: self.scope.labels(),
            ..WatchParams::default()
        };
        let events = self.session.answer(request, self.api.watch(&parameters, &version)).await?;
        let mut events = std::pin::pin!(events);
        self.session.tell(Event::Confirmed(W::PART)).await;
        loop {
            let Ok(event) = timeout(self.session.timing.silence, events.try_next()).await else {
                debug!(resource = W::RESOURCE, "the watch has been silent for too long: it begins anew");
                self.doubt = true;
                return Ok(Step::Ended);
            };
            let (at, told) = match event.map_err(|error| fault(request, &error))? {
                None => return Ok(Step::Ended),
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    (object.resource_version(), Event::Changed(W::PART, watched::change::<W>(&object)))
                }
                Some(WatchEvent::Deleted(object)) => {
                    (object.resource_version(), Event::Changed(W::PART, watched::removal::<W>(&object)))
                }
                Some(WatchEvent::Bookmark(mark)) => {
                    (Some(mark.metadata.resource_version), Event::Confirmed(W::PART))
                }
                Some(WatchEvent::Error(status)) => {
                    let problem = request.status(status.code, &status.message, &status.reason);
                    return Err(Fault { problem, remedy: remedy(status.code) });
                }
            };
            self.session.tell(told).await;
            if at.is_some() {
                self.version = at;
            }
        }
    }

    fn request(&self, verb: &'static str) -> Request<'a> {
        Request { one: self.scope.one(), ..self.session.request(verb, W::RESOURCE) }
    }
}

/// Whether version `now` is older than `at`. Versions of one kind in one cluster are numbers that grow; where they are
/// no numbers there is no telling.
fn is_before(now: &str, at: &str) -> bool {
    matches!((now.parse::<u64>(), at.parse::<u64>()), (Ok(now), Ok(at)) if now < at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert!(is_before("9", "10"));
        assert!(!is_before("10", "10"));
        assert!(!is_before("11", "10"));
        assert!(!is_before("", "10"));
        assert!(!is_before("9", "opaque"));
    }
}
