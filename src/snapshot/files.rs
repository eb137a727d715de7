//! A folder of manifests in place of an API server: for trying kvip, for tests, and for hosts without a cluster.
//!
//! Reads `*.yaml`, `*.yml` and `*.json` in the folder itself, each file one or more documents, in name order. What it
//! cannot read is a finding with file and line, and the rest loads; kinds that kvip has no use for are passed over. What an
//! API server would refuse or mirror, and what comes to nothing here, is noted too, and costs itself alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::Resource;
use k8s_openapi::api::core::v1 as core;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Snapshot;
use super::claims;
use super::convert::{self, Change};
use super::store::apply;
use super::typed::{self, NO_TEXT};
use super::yaml;
use crate::config::Cluster;
use crate::model::{Finding, ObjectKey};

/// The kinds that are read.
const KINDS: [&str; 8] =
    ["Service", "EndpointSlice", "Node", "ServiceCIDR", "IPAddress", "Lease", "ConfigMap", "Namespace"];

/// Those of them that are of no namespace.
const CLUSTER_WIDE: [&str; 4] = ["Node", "ServiceCIDR", "IPAddress", "Namespace"];

/// Why there is no snapshot at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the folder of manifests {path}: {reason}")]
pub struct Error {
    path: PathBuf,
    reason: io::Error,
}

/// Reads the manifests in `dir`, where `settings` name the two ConfigMaps that are read.
///
/// The namespace kube-system gives the cluster's UID; without it the cluster is unknown, and never another one.
pub fn load(dir: &Path, settings: &Cluster) -> Result<(Snapshot, Vec<Finding>), Error> {
    let paths = manifests(dir).map_err(|reason| Error { path: dir.into(), reason })?;
    let files: Vec<Contents> = paths.iter().map(|path| read(path, settings)).collect();
    let snapshot = together(&files);
    Ok((snapshot, files.into_iter().flat_map(|contents| contents.findings).collect()))
}

/// What `files` say together. Of an object that more than one of them has the last one counts, as with kubectl; that is
/// noted.
pub(super) fn together<'a>(files: impl IntoIterator<Item = &'a Contents>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut places = BTreeMap::new();
    let mut has_map = false;
    for contents in files {
        contents.put_in(&mut snapshot);
        has_map |= contents.has_map;
        for (object, place) in &contents.places {
            if let Some(before) = places.insert(object, place) {
                note(&mut snapshot, &written_twice(object, before, place));
            }
        }
    }
    if has_map {
        // It is there, so nobody is to be told to make one.
        snapshot.vip_map.get_or_insert_default();
    }
    snapshot
}

/// Notes what is read and comes to nothing.
fn note(snapshot: &mut Snapshot, note: &Finding) {
    let of_place = snapshot.skipped.entry(format!("manifest {}", note.subject)).or_default();
    if !of_place.contains(note) {
        of_place.push(note.clone());
    }
}

fn written_twice(object: &str, before: &str, place: &str) -> Finding {
    let service = object.strip_prefix("Service ").and_then(ObjectKey::parse);
    let text = format!("{object} is written twice: what {before} says of it does not count");
    Finding::new(place, text).about(service)
}

/// The files in `dir` that are read, by name.
pub(super) fn manifests(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| is_manifest(path));
    paths.sort();
    Ok(paths)
}

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    /// Its objects, in its order.
    changes: Vec<Change>,
    /// The UID of kube-system.
    cluster: Option<String>,
    /// Where each of them is written, by kind and name; the last place that counts.
    places: BTreeMap<String, String>,
    /// The ConfigMap of VIPs is in it, whether it can be read or not.
    has_map: bool,
    /// What of it cannot be read, so that objects are missing.
    pub(super) findings: Vec<Finding>,
    /// What of it is read and comes to nothing, or is left out by itself.
    notes: Vec<Finding>,
    /// Endpoints that no cluster mirrors here.
    endpoints: Vec<(ObjectKey, Finding)>,
}

impl Contents {
    fn put_in(&self, snapshot: &mut Snapshot) {
        for change in &self.changes {
            apply(snapshot, change.clone());
        }
        if self.cluster.is_some() {
            snapshot.cluster.clone_from(&self.cluster);
        }
        self.notes.iter().for_each(|one| note(snapshot, one));
        let entry = |(key, note): &(ObjectKey, Finding)| (format!("Endpoints {key}"), vec![note.clone()]);
        snapshot.skipped.extend(self.endpoints.iter().map(entry));
        // What was taken from a cluster has the slices beside them.
        for slice in snapshot.slices.values() {
            snapshot.skipped.remove(&format!("Endpoints {}", slice.service));
        }
    }
}

/// Reads the file at `path`.
pub(super) fn read(path: &Path, settings: &Cluster) -> Contents {
    let mut reading = Reading { settings, contents: Contents::default() };
    match text_of(path) {
        Ok(text) => reading.file(path, &text),
        Err(e) => reading.finding(path.display(), format!("cannot be read: {e}")),
    }
    reading.contents
}

fn text_of(path: &Path) -> io::Result<String> {
    // Opening a named pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    fs::read_to_string(path)
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| ["yaml", "yml", "json"].contains(&e))
}

struct Reading<'a> {
    settings: &'a Cluster,
    contents: Contents,
}

impl Reading<'_> {
    fn finding(&mut self, at: impl std::fmt::Display, text: impl Into<String>) {
        self.contents.findings.push(Finding::new(at, text));
    }

    fn note(&mut self, at: &str, text: impl Into<String>) {
        self.contents.notes.push(Finding::new(at, text));
    }

    fn file(&mut self, path: &Path, text: &str) {
        for document in yaml::documents(text) {
            match document.value() {
                Ok(Value::Null) => {}
                Ok(value) => self.object(&place(path, document.line), value),
                Err(error) => {
                    self.finding(place_of(path, document.line, &error), yaml::unread(&error));
                    // As far as can be told of what cannot be read.
                    self.contents.has_map |= ["ConfigMap", &self.settings.config_map.name]
                        .iter()
                        .all(|word| document.text.contains(word));
                }
            }
        }
    }

    /// Takes the object `value`, or each of its items when it is a list; `at` is the place of its document.
    fn object(&mut self, at: &str, mut value: Value) {
        let kind = value["kind"].as_str().unwrap_or_default().to_owned();
        let items = value.get_mut("items").filter(|_| kind.ends_with("List")).map(Value::take);
        if kind.is_empty() {
            self.finding(at, "not a Kubernetes object: it has no kind");
        } else if let Some(Value::Array(items)) = items {
            let items_kind = kind.trim_end_matches("List");
            for mut item in items {
                // The items of a typed list, such as ServiceList, need not repeat their kind.
                if !items_kind.is_empty() && item["kind"].is_null() && item.is_object() {
                    item["kind"] = items_kind.into();
                    if let (Value::Null, Value::String(version)) = (&item["apiVersion"], &value["apiVersion"])
                    {
                        item["apiVersion"] = version.clone().into();
                    }
                }
                self.object(at, item);
            }
        } else if !is_of_others(&value) {
            self.plain(at, &kind, value);
        }
    }

    fn plain(&mut self, at: &str, kind: &str, value: Value) {
        match kind {
            "Service" => self.convert(at, kind, value, |o| vec![Change::Service(convert::service(o))]),
            "EndpointSlice" => {
                self.lone_slice(at, &value);
                self.convert(at, kind, value, |o| vec![Change::Slice(convert::slice(o))]);
            }
            "Node" => self.convert(at, kind, value, |o| vec![Change::Node(convert::node(o))]),
            "ServiceCIDR" => {
                self.convert(at, kind, value, |o| vec![Change::ServiceCidr(convert::service_cidr(o))]);
            }
            "IPAddress" => {
                self.convert(at, kind, value, |o| vec![Change::IpAddress(claims::ip_address(o))]);
            }
            "Lease" => self.convert(at, kind, value, |o| vec![Change::Lease(claims::lease(o))]),
            "ConfigMap" => {
                let settings = self.settings;
                self.convert(at, kind, value, |o| config_map(settings, o));
            }
            "Namespace" => {
                if value["metadata"]["name"] == "kube-system" {
                    self.contents.cluster = value["metadata"]["uid"].as_str().map(Into::into);
                }
                self.convert(at, kind, value, |o| vec![Change::Namespace(convert::namespace(o))]);
            }
            _ => self.passed_over(at, kind, &value),
        }
    }

    /// Notes of a kind that is not read what speaks for a slip; others are none of kvip's business.
    fn passed_over(&mut self, at: &str, kind: &str, value: &Value) {
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        if kind.eq_ignore_ascii_case("Endpoints") {
            let text =
                format!("Endpoints {name} does nothing: a folder mirrors none, so write an EndpointSlice");
            let key = key_in(value);
            self.contents.endpoints.push((key.clone(), Finding::new(at, text).about([key])));
        } else if let Some(meant) = kind_meant(kind) {
            let text = format!("{kind} {name} is of no known kind; did you mean {meant}?");
            let service = (meant == "Service").then(|| key_in(value));
            self.contents.notes.push(Finding::new(at, text).about(service));
        }
    }

    /// Notes that the `EndpointSlice` of `value` is nobody's. In a cluster such slices are other programs'.
    fn lone_slice(&mut self, at: &str, value: &Value) {
        let label = convert::SERVICE_LABEL;
        if value["metadata"]["labels"][label].as_str().is_none_or(str::is_empty) {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            self.note(at, format!("EndpointSlice {name} does nothing: no label {label} names its Service"));
        }
    }

    /// Reads an object. What is found of one matters to the Service that it is, or is a slice of; and what keeps the ConfigMap
    /// of VIPs from being read, to that.
    fn convert<K: DeserializeOwned + Resource>(
        &mut self,
        at: &str,
        kind: &str,
        value: Value,
        changes: impl FnOnce(&K) -> Vec<Change>,
    ) {
        let key = key_in(&value);
        let service = service_of(kind, &key, &value);
        let map = (kind == "ConfigMap" && key == self.settings.config_map).then(|| key.clone());
        let (findings, notes) = (self.contents.findings.len(), self.contents.notes.len());
        self.take(at, kind, &key, map.is_some(), value, changes);
        for finding in &mut self.contents.findings[findings..] {
            finding.about.extend(service.iter().chain(&map).cloned());
        }
        for note in &mut self.contents.notes[notes..] {
            note.about.extend(service.clone());
        }
    }

    fn take<K: DeserializeOwned + Resource>(
        &mut self,
        at: &str,
        kind: &str,
        key: &ObjectKey,
        is_map: bool,
        mut value: Value,
        changes: impl FnOnce(&K) -> Vec<Change>,
    ) {
        let name = match &value["metadata"]["name"] {
            Value::String(name) if !name.is_empty() => name.clone(),
            Value::Number(_) | Value::Bool(_) => {
                let text = format!("{kind}: metadata.name = {} {NO_TEXT}", value["metadata"]["name"]);
                return self.finding(at, text);
            }
            _ => return self.finding(at, format!("{kind} without metadata.name")),
        };
        self.contents.has_map |= is_map;
        if let Some(other) = value["apiVersion"].as_str().filter(|said| *said != K::API_VERSION) {
            let text = format!("{kind} {name}: apiVersion = \"{other}\": write {}", K::API_VERSION);
            return self.finding(at, text);
        }
        self.keep_texts(at, &format!("{kind} {name}"), &mut value, is_map);
        if is_map && !value["binaryData"].is_null() {
            self.note(at, format!("{kind} {name}: binaryData does nothing: VIPs are read under data"));
        }
        match typed::read(&value) {
            Ok((object, unknown)) => {
                self.written(at, kind, key);
                self.contents.changes.extend(changes(&object));
                for text in unknown {
                    self.note(at, format!("{kind} {name}: {text}"));
                }
            }
            Err(error) => self.finding(at, format!("{kind} {name}: {error}")),
        }
    }

    /// Takes entries that are no text out of those maps of `value` that hold nothing else, and says so of each: one slip
    /// costs one entry.
    fn keep_texts(&mut self, at: &str, object: &str, value: &mut Value, is_map: bool) {
        for (pointer, what) in
            [("/data", "key"), ("/metadata/annotations", "annotation"), ("/metadata/labels", "label")]
        {
            let Some(Value::Object(entries)) = value.pointer_mut(pointer) else { continue };
            entries.retain(|name, said| {
                let why = match said {
                    Value::String(_) => return true,
                    Value::Null if is_map && what == "key" => {
                        "is empty: write \"\" for a VIP that only floats".to_owned()
                    }
                    Value::Null => "is empty: write \"\" or leave it out".to_owned(),
                    Value::Bool(_) | Value::Number(_) => format!("= {said} {NO_TEXT}"),
                    Value::Array(_) | Value::Object(_) => {
                        "is left out: it is to be one line of text".to_owned()
                    }
                };
                let text = format!("{object}: {what} \"{name}\" {why}");
                self.contents.notes.push(Finding::new(at, text));
                false
            });
        }
    }

    /// Remembers where an object is written, and notes that it was before.
    fn written(&mut self, at: &str, kind: &str, key: &ObjectKey) {
        let object = if CLUSTER_WIDE.contains(&kind) {
            format!("{kind} {}", key.name)
        } else {
            format!("{kind} {key}")
        };
        if let Some(before) = self.contents.places.insert(object.clone(), at.to_owned()) {
            self.contents.notes.push(written_twice(&object, &before, at));
        }
    }
}

/// Whether an object is of somebody else's kind, which may be called as one of Kubernetes' is: its group has a domain that
/// is not Kubernetes' own.
fn is_of_others(value: &Value) -> bool {
    let group =
        value["apiVersion"].as_str().and_then(|version| version.split_once('/')).map(|(group, _)| group);
    group.is_some_and(|group| group.contains('.') && !group.ends_with(".k8s.io"))
}

/// The key of the object that `value` is, as far as it says one.
fn key_in(value: &Value) -> ObjectKey {
    let said = |field: &str| value["metadata"][field].as_str().filter(|text| !text.is_empty());
    ObjectKey::new(said("namespace").unwrap_or("default"), said("name").unwrap_or_default())
}

/// The Service that the object of this kind and key is, or is a slice of.
fn service_of(kind: &str, key: &ObjectKey, value: &Value) -> Option<ObjectKey> {
    match kind {
        "Service" => Some(key.clone()),
        "EndpointSlice" => {
            let name = value["metadata"]["labels"][convert::SERVICE_LABEL].as_str()?;
            Some(ObjectKey::new(key.namespace.clone(), name))
        }
        _ => None,
    }
}

/// The kind that is read and that `kind` looks like. Others' kinds may be no further away than a slip or two.
fn kind_meant(kind: &str) -> Option<&'static str> {
    let distance =
        |known: &str| strsim::damerau_levenshtein(&kind.to_ascii_lowercase(), &known.to_ascii_lowercase());
    KINDS.into_iter().find(|known| distance(known) <= (known.len() / 4).min(2))
}

/// What a ConfigMap changes: nothing, unless it is one of the two that kvip reads.
fn config_map(settings: &Cluster, object: &core::ConfigMap) -> Vec<Change> {
    let key = convert::key_of(&object.metadata);
    let vips = (key == settings.config_map).then(|| Change::VipMap(Some(convert::vip_map(object))));
    let own = (key == settings.settings_map).then(|| Change::Settings(convert::settings(object)));
    vips.into_iter().chain(own).collect()
}

fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// The line and column of `error`, of a document that begins at `first`.
fn place_of(path: &Path, first: usize, error: &serde_saphyr::Error) -> String {
    let Some(found) = error.location() else { return place(path, first) };
    let line = usize::try_from(found.line()).unwrap_or(1);
    format!("{}:{}", place(path, first + line.saturating_sub(1)), found.column())
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
