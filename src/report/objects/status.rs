//! What the status of a Service should be, as a patch of what it is.
//!
//! Pure. **Which entries of status.loadBalancer.ingress are kvip's:** those whose address kvip wants now, and those
//! that kvip's own condition names. Both are written by one patch, which the API server takes as a whole or not at
//! all, so the condition names what kvip wrote and nothing else; an entry of another writer is in neither (an address
//! that kvip wants is claimed by it, and nobody else can rightly write it). An entry with a host name has no address
//! and is never kvip's. Whatever is not kvip's is copied as it was read, unknown fields included. Should somebody
//! delete the condition alone, entries stay that nobody asks for: better than deleting another's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::event::Word;
use super::{Address, IpMode, Kind, Shown, Verdict, Wanted};
use crate::snapshot::convert::{self, CONDITION};
use crate::snapshot::{Condition, Ingress, IngressPort, Service, read};

/// How the condition's message begins when it names the entries that kvip wrote.
const BALANCED_AT: &str = "load balancer at ";
/// And when it names addresses of which the status has no entries.
const SERVED_AT: &str = "served at ";
/// How it begins when there is no address at which kvip serves the Service.
const NOT_SERVED: &str = "not served";
/// The longest message that the API takes (meta/v1 `Condition`).
const MESSAGE_LIMIT: usize = 32_768;

/// What follows from a live Service.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The status says it all already.
    Nothing,
    /// The object is not the one that was decided about: another UID, or by now another type or class.
    Another,
    /// A JSON merge patch of the status, under the version that was read, and what to tell when it is taken.
    Patch {
        /// The patch.
        body: Value,
        /// The Events.
        words: Vec<Word>,
    },
}

/// Whether a Service's status as the snapshot shows it says what is wanted: then there is nothing to ask the API for.
pub fn is_shown(wanted: &Wanted) -> bool {
    shows(&wanted.shown, wanted)
}

/// Whether a status says that kvip serves the Service somewhere.
pub fn says_served(shown: &Shown) -> bool {
    shown.condition.as_ref().is_some_and(|condition| !condition.message.starts_with(NOT_SERVED))
}

/// Whether a status says that the Service lacks something.
pub fn says_refused(shown: &Shown) -> bool {
    shown.condition.as_ref().is_some_and(|condition| condition.status == "False")
}

/// What to do about the Service `live`, read from the API at `now`.
pub fn step(wanted: &Wanted, live: &DynamicObject, now: Timestamp) -> Step {
    let same = typed(live).filter(|s| s.uid == wanted.uid && Kind::of(s) == wanted.kind);
    let Some(service) = same else { return Step::Another };
    let shown = Shown::of(&service);
    if shows(&shown, wanted) {
        return Step::Nothing;
    }
    Step::Patch { body: body(wanted, live, &shown, now), words: words(wanted, &shown) }
}

/// Whether `live`, the API server's answer to a patch, has what was wanted: an old server drops fields in silence.
pub fn was_kept(wanted: &Wanted, live: &DynamicObject) -> bool {
    typed(live).is_none_or(|service| shows(&Shown::of(&service), wanted))
}

fn typed(live: &DynamicObject) -> Option<Arc<Service>> {
    let value = serde_json::to_value(live).ok()?;
    convert::service(&read::object::<core::Service>(value).ok()?).value
}

fn shows(shown: &Shown, wanted: &Wanted) -> bool {
    let said = match (&shown.condition, condition(wanted)) {
        (Some(have), Some(want)) => *have == Condition { observed: true, ..want },
        (have, want) => have.is_none() == want.is_none(),
    };
    let ours = ours(shown, wanted);
    let entries: Vec<&Ingress> = shown
        .ingress
        .iter()
        .filter(|entry| address(&entry.ip).is_some_and(|ip| ours.contains(&ip)))
        .collect();
    let wants = in_ingress(wanted);
    let is_there = |want: &Address| entries.iter().any(|have| is_as_wanted(have, want));
    said && entries.len() == wants.len() && wants.iter().all(is_there)
}

/// The addresses that belong in status.loadBalancer.ingress.
fn in_ingress(wanted: &Wanted) -> &[Address] {
    let balanced = wanted.ingress && wanted.verdict != Verdict::NotOurs;
    if balanced { &wanted.addresses } else { &[] }
}

/// The addresses whose entries are kvip's to change.
fn ours(shown: &Shown, wanted: &Wanted) -> BTreeSet<IpAddr> {
    let mut ours = named(shown);
    ours.extend(in_ingress(wanted).iter().map(|address| address.ip));
    ours
}

/// The addresses at which a status says that kvip serves the Service.
pub fn served_at(shown: &Shown) -> BTreeSet<IpAddr> {
    let served = after(shown, SERVED_AT);
    if served.is_empty() { named(shown) } else { served }
}

/// The addresses of the entries that kvip wrote, as its condition names them.
fn named(shown: &Shown) -> BTreeSet<IpAddr> {
    after(shown, BALANCED_AT)
}

/// The addresses after these words of the condition.
fn after(shown: &Shown, words: &str) -> BTreeSet<IpAddr> {
    let message = shown.condition.as_ref().and_then(|condition| condition.message.strip_prefix(words));
    let list = message.unwrap_or_default().split(';').next().unwrap_or_default();
    list.split(", ").filter_map(address).collect()
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

fn is_as_wanted(have: &Ingress, want: &Address) -> bool {
    let ports = want.ports.iter().map(|port| IngressPort {
        port: port.port.into(),
        protocol: port.protocol.to_string().to_uppercase(),
        error: port.error.clone(),
    });
    // Servers before 1.30 know no ipMode, and what they have means VIP.
    let mode = have.mode.as_deref().unwrap_or(IpMode::Vip.name());
    address(&have.ip) == Some(want.ip) && mode == want.mode.name() && have.ports.iter().cloned().eq(ports)
}

/// The condition that is wanted; `None` for a Service that is not kvip's.
fn condition(wanted: &Wanted) -> Option<Condition> {
    let list = wanted.addresses.iter().map(|address| address.ip.to_string()).collect::<Vec<_>>().join(", ");
    let served = match (wanted.ingress, list.is_empty()) {
        (_, true) => None,
        (true, false) => Some(format!("{BALANCED_AT}{list}")),
        (false, false) => Some(format!("{SERVED_AT}{list}")),
    };
    let (status, reason, message) = match &wanted.verdict {
        Verdict::NotOurs => return None,
        Verdict::Allocated => ("True", "Allocated", served.unwrap_or_else(|| "served".into())),
        Verdict::Refused { reason, text } => {
            ("False", reason.as_str(), format!("{}; {text}", served.as_deref().unwrap_or(NOT_SERVED)))
        }
    };
    let message = shortened(&message, MESSAGE_LIMIT).to_owned();
    Some(Condition { status: status.into(), reason: reason.into(), message, observed: true })
}

/// At most `limit` bytes of `text`, cut between characters.
pub(super) fn shortened(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// The patch. The lists are whole, as a merge patch replaces them; the version makes the API server refuse it when
/// anybody wrote in between, so that nothing of theirs is lost. Server-side apply is no way here: ingress is an atomic
/// list, which one writer owns as a whole.
fn body(wanted: &Wanted, live: &DynamicObject, shown: &Shown, now: Timestamp) -> Value {
    let mut status = json!({"conditions": or_null(conditions(wanted, live, now))});
    let have = list(live, "/status/loadBalancer/ingress");
    let want = ingress(wanted, have.clone(), &ours(shown, wanted));
    if want != have {
        status["loadBalancer"] = json!({"ingress": or_null(want)});
    }
    json!({"metadata": {"resourceVersion": live.metadata.resource_version, "uid": wanted.uid}, "status": status})
}

/// An empty list is left out of an object.
fn or_null(list: Vec<Value>) -> Value {
    if list.is_empty() { Value::Null } else { Value::Array(list) }
}

fn list(live: &DynamicObject, pointer: &str) -> Vec<Value> {
    live.data.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// `entries` with kvip's as wanted: each in its place, new ones at the end.
fn ingress(wanted: &Wanted, entries: Vec<Value>, ours: &BTreeSet<IpAddr>) -> Vec<Value> {
    let mut wants: Vec<&Address> = in_ingress(wanted).iter().collect();
    let mut result = Vec::new();
    for entry in entries {
        let ip = entry.get("ip").and_then(Value::as_str).and_then(address).filter(|ip| ours.contains(ip));
        let Some(ip) = ip else {
            result.push(entry);
            continue;
        };
        // The first entry of an address is its place; others of the same, and of addresses that are gone, go.
        if let Some(index) = wants.iter().position(|want| want.ip == ip) {
            result.push(ingress_entry(wants.remove(index)));
        }
    }
    result.extend(wants.into_iter().map(ingress_entry));
    result
}

fn ingress_entry(address: &Address) -> Value {
    let ports = address.ports.iter().map(|port| {
        let mut status = json!({"port": port.port, "protocol": port.protocol.to_string().to_uppercase()});
        if let Some(error) = &port.error {
            status["error"] = json!(error);
        }
        status
    });
    let mut entry = json!({"ip": address.ip, "ipMode": address.mode.name()});
    if !address.ports.is_empty() {
        entry["ports"] = ports.collect();
    }
    entry
}

/// The conditions with kvip's as wanted, in its place or at the end.
fn conditions(wanted: &Wanted, live: &DynamicObject, now: Timestamp) -> Vec<Value> {
    let mut all = list(live, "/status/conditions");
    let place = all.iter().position(|condition| condition["type"] == CONDITION);
    match (condition(wanted), place) {
        (None, Some(place)) => drop(all.remove(place)),
        (None, None) => {}
        (Some(want), Some(place)) => {
            let since = (all[place]["status"] == want.status.as_str())
                .then(|| all[place]["lastTransitionTime"].clone());
            all[place] = condition_entry(&want, live, since.unwrap_or_else(|| time(now)));
        }
        (Some(want), None) => all.push(condition_entry(&want, live, time(now))),
    }
    all
}

fn condition_entry(want: &Condition, live: &DynamicObject, since: Value) -> Value {
    let mut entry = json!({"type": CONDITION, "status": want.status, "reason": want.reason,
        "message": want.message, "lastTransitionTime": since});
    if let Some(generation) = live.metadata.generation {
        entry["observedGeneration"] = json!(generation);
    }
    entry
}

/// As meta/v1 Time is written: whole seconds, in UTC.
fn time(now: Timestamp) -> Value {
    json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now))
}

/// What to tell when the status becomes what is wanted.
fn words(wanted: &Wanted, shown: &Shown) -> Vec<Word> {
    let before = shown.condition.clone().unwrap_or_default();
    let mut words = released(wanted, shown).into_iter().collect::<Vec<_>>();
    let Some(want) = condition(wanted) else {
        if words.is_empty() && shown.is_ours() {
            words.push(Word::normal("Released", "no longer served by kvip"));
        }
        return words;
    };
    // A new generation, or an entry that somebody changed, is no news.
    if (&before.status, &before.reason, &before.message) != (&want.status, &want.reason, &want.message) {
        words.push(match &wanted.verdict {
            Verdict::Refused { reason, .. } => Word::warning(reason, &want.message),
            _ => Word::normal("Allocated", &want.message),
        });
    }
    words
}

fn released(wanted: &Wanted, shown: &Shown) -> Option<Word> {
    let mut gone = named(shown);
    gone.retain(|ip| !in_ingress(wanted).iter().any(|address| address.ip == *ip));
    let list = gone.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    (!gone.is_empty()).then(|| Word::normal("Released", format!("released {list}")))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
