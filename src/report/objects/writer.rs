//! The requests: the status of one Service, and one Event.
//!
//! Each is made once and within a limit of time; whether it is made again is decided by its caller.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Service};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::json;
use tokio::time::timeout;

use super::Wanted;
use super::event::Word;
use super::status::{self, Step};
use super::turns::Outcome;
use crate::model::{Finding, ObjectKey};
use crate::snapshot::Link;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// How an attempt at a Service's status went.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) outcome: Outcome,
    /// What is to be told.
    pub(super) words: Vec<Word>,
    /// What keeps it from being written, or written as wanted.
    pub(super) finding: Option<Finding>,
}

/// How an Event went.
#[derive(Debug)]
pub(super) enum Sent {
    Done,
    /// The object's namespace is gone or going: there is nobody to tell.
    Nowhere,
    /// The API server takes no Events from kvip.
    Denied(Finding),
    Unreachable,
}

/// What an error means.
enum Fault {
    Gone,
    Conflict,
    Denied(Finding),
    Refused(Finding),
    Unreachable,
}

/// Makes the status of the Service `key` say what is wanted.
pub(super) async fn settle(link: &Link, key: &ObjectKey, wanted: &Wanted) -> Attempt {
    match write_status(link, key, wanted).await {
        Ok((words, finding)) => Attempt { outcome: Outcome::Settled, words, finding },
        Err(fault) => {
            let (outcome, finding) = match fault {
                Fault::Gone => (Outcome::Settled, None),
                Fault::Conflict => (Outcome::Conflict, None),
                Fault::Denied(finding) => (Outcome::Denied, Some(finding)),
                Fault::Refused(finding) => (Outcome::Refused, Some(finding)),
                Fault::Unreachable => (Outcome::Unreachable, None),
            };
            Attempt { outcome, words: Vec::new(), finding }
        }
    }
}

async fn write_status(
    link: &Link,
    key: &ObjectKey,
    wanted: &Wanted,
) -> Result<(Vec<Word>, Option<Finding>), Fault> {
    let resource = ApiResource::erase::<Service>(&());
    let api = Api::<DynamicObject>::namespaced_with(link.client.clone(), &key.namespace, &resource);
    let request = Request { link, subject: key.to_string(), verb: "get", resource: "services" };
    // From the API and not from a cache of it: what the snapshot shows may be behind.
    let live = request.answer(api.get(&key.name)).await?;
    let Step::Patch { body, words } = status::step(wanted, &live, Timestamp::now()) else {
        return Ok((Vec::new(), None));
    };
    let request = Request { verb: "patch", resource: "services/status", ..request };
    let (parameters, body) = (PatchParams::default(), Patch::Merge(body));
    let patched = request.answer(api.patch_status(&key.name, &parameters, &body)).await?;
    let dropped = (!status::was_kept(wanted, &patched)).then(|| dropped(key));
    Ok((words, dropped))
}

fn dropped(key: &ObjectKey) -> Finding {
    let text = "the API server did not keep the status that kvip wrote: it is older than 1.30 and knows no \
        ipMode, or an admission webhook changes it; only balancing.shield keeps kube-proxy from these connections";
    Finding::new(key, text).mend(format!(
        "kubectl -n {} get service {} -o jsonpath='{{.status}}'; kubectl version",
        key.namespace, key.name
    ))
}

/// Sends `event`; where there is one of its name, that one counts on and says the same as `event`.
pub(super) async fn send(link: &Link, event: &Event) -> Sent {
    let outcome = match create(link, event).await {
        Err(Fault::Conflict) => count_on(link, event).await,
        other => other,
    };
    match outcome {
        // A conflict again means that another request of the same kind went before: it has been told.
        Ok(()) | Err(Fault::Conflict) => Sent::Done,
        Err(Fault::Gone | Fault::Refused(_)) => Sent::Nowhere,
        Err(Fault::Denied(finding)) => Sent::Denied(finding),
        Err(Fault::Unreachable) => Sent::Unreachable,
    }
}

async fn create(link: &Link, event: &Event) -> Result<(), Fault> {
    let (api, request) = events(link, event, "create");
    request.answer(api.create(&PostParams::default(), event)).await.map(drop)
}

async fn count_on(link: &Link, event: &Event) -> Result<(), Fault> {
    let (api, request) = events(link, event, "get");
    let name = event.metadata.name.as_deref().unwrap_or_default();
    let before = request.answer(api.get(name)).await?;
    let count = before.count.unwrap_or(1).saturating_add(event.count.unwrap_or(1));
    let body = json!({"count": count, "lastTimestamp": event.last_timestamp, "message": event.message,
        "metadata": {"annotations": event.metadata.annotations}});
    let (api, request) = events(link, event, "patch");
    request.answer(api.patch(name, &PatchParams::default(), &Patch::Merge(body))).await.map(drop)
}

fn events<'a>(link: &'a Link, event: &Event, verb: &'static str) -> (Api<Event>, Request<'a>) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api = Api::namespaced(link.client.clone(), namespace);
    (api, Request { link, subject: format!("events in {namespace}"), verb, resource: "events" })
}

/// A request, for its limit of time and for the words about what ails it.
struct Request<'a> {
    link: &'a Link,
    subject: String,
    verb: &'static str,
    resource: &'static str,
}

impl Request<'_> {
    async fn answer<T>(&self, answer: impl Future<Output = kube::Result<T>>) -> Result<T, Fault> {
        match timeout(ANSWER, answer).await {
            Ok(answer) => answer.map_err(|error| self.fault(&error)),
            Err(_) => Err(Fault::Unreachable),
        }
    }

    fn fault(&self, error: &kube::Error) -> Fault {
        let kube::Error::Api(status) = error else { return Fault::Unreachable };
        let finding = |subject: &str| {
            let problem = self.link.problem(self.verb, self.resource, error);
            let finding = Finding::new(subject, problem.to_string());
            problem.mend().into_iter().fold(finding, Finding::mend)
        };
        match status.code {
            404 => Fault::Gone,
            409 => Fault::Conflict,
            // The authorizer's words; an admission webhook that refuses this one object has others.
            403 if status.message.contains(&format!("cannot {} resource", self.verb)) => {
                Fault::Denied(finding(self.resource))
            }
            401 | 429 | 500.. => Fault::Unreachable,
            _ => Fault::Refused(finding(&self.subject)),
        }
    }
}
