//! An Event: what is said of which object, under which name.
//!
//! Pure. Events are written as core/v1 and not as events.k8s.io/v1: both are views of the same objects, but the latter
//! lets nothing of an Event change except its series, so that the Event of a node's settings could not be said anew,
//! and one API group needs one rule in RBAC. Repetitions count up on one Event (`count`, `lastTimestamp`), as
//! client-go's recorder does.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::status::shortened;
use crate::model::ObjectKey;
use crate::rank;

/// Who says it, as `kubectl describe` shows it.
pub const COMPONENT: &str = "kvip";
/// The longest note that events.k8s.io/v1 takes, which shows the same object.
const NOTE_LIMIT: usize = 1024;
/// The longest start of the object's name in the Event's name: a DNS subdomain has 253 characters at most.
const NAME_LIMIT: usize = 230;

/// What is said: `Normal` or `Warning`, a reason for programs and a note for people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word {
    /// Whether somebody should look at it.
    pub warning: bool,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub note: String,
}

impl Word {
    /// Nothing to worry about.
    pub fn normal(reason: impl Into<String>, note: impl Into<String>) -> Self {
        Self { warning: false, reason: reason.into(), note: note.into() }
    }

    /// Something to look at.
    pub fn warning(reason: impl Into<String>, note: impl Into<String>) -> Self {
        Self { warning: true, reason: reason.into(), note: note.into() }
    }
}

/// The object that something is said of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// `Service` or `ConfigMap`, of v1.
    pub kind: &'static str,
    /// Its key.
    pub key: ObjectKey,
    /// Its UID; empty when it is not known.
    pub uid: String,
}

/// Something said of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// The object.
    pub subject: Subject,
    /// What is said of it.
    pub word: Word,
}

impl Said {
    /// What is said of a Service.
    pub fn of_service(key: ObjectKey, uid: impl Into<String>, word: Word) -> Self {
        Self { subject: Subject { kind: "Service", key, uid: uid.into() }, word }
    }

    /// The Event's name: the same words of the same object by the same node are one Event, which counts.
    pub fn name(&self, node: &str) -> String {
        let Self { subject, word } = self;
        let whole = [subject.kind, &subject.uid, &word.reason, &word.note].join("\n");
        let start = shortened(&subject.key.name, NAME_LIMIT).trim_end_matches(['-', '.']);
        format!("{start}.{:016x}", rank::weight(whole.as_bytes(), node))
    }

    /// The Event as `node` says it at `now`, for the `count`th time.
    pub fn event(&self, node: &str, now: Timestamp, count: i32) -> Event {
        let Self { subject, word } = self;
        Event {
            metadata: ObjectMeta {
                name: Some(self.name(node)),
                namespace: Some(subject.key.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some(subject.kind.into()),
                namespace: Some(subject.key.namespace.clone()),
                name: Some(subject.key.name.clone()),
                uid: Some(subject.uid.clone()).filter(|uid| !uid.is_empty()),
                ..ObjectReference::default()
            },
            type_: Some(if word.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(word.reason.clone()),
            message: Some(shortened(&word.note, NOTE_LIMIT).to_owned()),
            source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(node.to_owned()) }),
            reporting_component: Some("kvip.io/kvip".into()),
            reporting_instance: Some(shortened(node, 128).to_owned()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(count),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(note: &str) -> Said {
        Said::of_service(ObjectKey::new("default", "web"), "u1", Word::normal("Allocated", note))
    }

    #[test]
    fn the_name_tells_words_objects_and_nodes_apart() {
        let name = said("a").name("node-a");
        assert_eq!(name, said("a").name("node-a"), "and is the same each time");
        let mut other = said("a");
        other.subject.uid = "u2".into();
        let mut names = vec![name, said("b").name("node-a"), said("a").name("node-b"), other.name("node-a")];
        assert!(names.iter().all(|name| name.starts_with("web.") && name.len() == 20));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4);
        other.subject.key.name = "x".repeat(253);
        assert!(other.name("node-a").len() <= 253);
    }

    #[test]
    fn an_event_fits_the_limits_of_the_api() {
        let event = said(&"ä".repeat(2000)).event(&"n".repeat(253), Timestamp::UNIX_EPOCH, 3);
        assert_eq!(event.message.unwrap().len(), 1024);
        assert_eq!(event.reporting_instance.unwrap().len(), 128);
        assert_eq!((event.count, event.type_.as_deref()), (Some(3), Some("Normal")));
        assert_eq!(event.metadata.namespace, event.involved_object.namespace);
        assert_eq!(event.involved_object.uid.as_deref(), Some("u1"));
    }
}
