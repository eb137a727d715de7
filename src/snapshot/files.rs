//! A folder of manifests in place of an API server: for trying kvip, for tests, and for hosts without a cluster.
//!
//! Reads `*.yaml`, `*.yml` and `*.json` in the folder itself, each file one or more documents, in name order. What it
//! cannot read is a finding with file and line, and the rest loads; kinds that kvip has no use for are passed over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Snapshot;
use super::claims;
use super::convert::{self, Change};
use super::store::apply;
use crate::config::Cluster;
use crate::model::Finding;

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
    let mut snapshot = Snapshot::default();
    let mut findings = Vec::new();
    for path in paths {
        let contents = read(&path, settings);
        contents.put_in(&mut snapshot);
        findings.extend(contents.findings);
    }
    Ok((snapshot, findings))
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
    /// What of it cannot be read.
    pub(super) findings: Vec<Finding>,
}

impl Contents {
    pub(super) fn put_in(&self, snapshot: &mut Snapshot) {
        for change in &self.changes {
            apply(snapshot, change.clone());
        }
        if self.cluster.is_some() {
            snapshot.cluster.clone_from(&self.cluster);
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

/// A document of a file and the line, from 1, at which it starts.
struct Document<'a> {
    line: usize,
    text: &'a str,
}

/// Cuts `text` at its `---` lines, so that a document that cannot be read does not take the next ones with it.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push(Document { line: first, text: &text[start..offset] });
            (start, first) = (offset + line.len(), number + 2);
        }
        offset += line.len();
    }
    documents.push(Document { line: first, text: &text[start..] });
    documents
}

struct Reading<'a> {
    settings: &'a Cluster,
    contents: Contents,
}

impl Reading<'_> {
    fn finding(&mut self, at: impl std::fmt::Display, text: impl Into<String>) {
        self.contents.findings.push(Finding::new(at, text));
    }

    fn file(&mut self, path: &Path, text: &str) {
        for document in documents(text) {
            match serde_saphyr::from_str::<Value>(document.text) {
                Ok(Value::Null) => {}
                Ok(value) => self.object(&place(path, document.line), value),
                Err(error) => {
                    let line = error.location().and_then(|l| usize::try_from(l.line()).ok()).unwrap_or(1);
                    let text = format!("not YAML or JSON: {}", error.without_snippet());
                    let at = place(path, document.line + line.saturating_sub(1));
                    self.finding(at, text);
                }
            }
        }
    }

    /// Takes the object `value`, or each of its items when it is a list; `at` is the place of its document.
    fn object(&mut self, at: &str, mut value: Value) {
        let kind = value["kind"].as_str().unwrap_or_default().to_owned();
        if kind.is_empty() {
            self.finding(at, "not a Kubernetes object: it has no kind");
        } else if let (true, Value::Array(items)) = (kind.ends_with("List"), value["items"].take()) {
            let items_kind = kind.trim_end_matches("List");
            for mut item in items {
                // The items of a typed list, such as ServiceList, need not repeat their kind.
                if !items_kind.is_empty() && item["kind"].is_null() && item.is_object() {
                    item["kind"] = items_kind.into();
                }
                self.object(at, item);
            }
        } else {
            self.plain(at, &kind, value);
        }
    }

    fn plain(&mut self, at: &str, kind: &str, value: Value) {
        match kind {
            "Service" => self.convert(at, kind, value, |o| vec![Change::Service(convert::service(o))]),
            "EndpointSlice" => self.convert(at, kind, value, |o| vec![Change::Slice(convert::slice(o))]),
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
            _ => {}
        }
    }

    fn convert<K: DeserializeOwned>(
        &mut self,
        at: &str,
        kind: &str,
        value: Value,
        changes: impl FnOnce(&K) -> Vec<Change>,
    ) {
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return self.finding(at, format!("{kind} without metadata.name"));
        }
        match serde_json::from_value(value) {
            Ok(object) => self.contents.changes.extend(changes(&object)),
            Err(error) => self.finding(at, format!("{kind} {name}: {error}")),
        }
    }
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

#[cfg(test)]
mod tests {

    use super::*;
    use crate::config::Settings;
    use crate::model::ObjectKey;

    fn settings() -> Cluster {
        Settings::standard(Vec::new()).cluster
    }

    fn loaded(files: &[(&str, &str)]) -> (Snapshot, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let (snapshot, findings) = load(dir.path(), &settings()).unwrap();
        let prefix = format!("{}/", dir.path().display());
        (snapshot, findings.iter().map(|f| f.to_string().replace(&prefix, "")).collect())
    }

    #[test]
    fn documents_lists_and_json_make_one_snapshot() {
        let yaml = "\
# the tutorial
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  ports: [{port: 80}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: node-a}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: vip-configmap}, data: {10.87.2.50: default/nginx}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: other}, data: {10.87.2.51: default/nginx}}
---
";
        let json = r#"{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","items":[{"metadata":
            {"name":"nginx-1","labels":{"kubernetes.io/service-name":"nginx"}},"addressType":"IPv4",
            "endpoints":[{"addresses":["10.2.0.5"]}],"ports":[{"port":80}]}]}"#;
        let space = r#"{"kind":"Namespace","metadata":{"name":"kube-system","uid":"u-1"}}"#;
        let (snapshot, findings) =
            loaded(&[("a.yaml", yaml), ("b.json", json), ("c.yml", space), ("notes.txt", ": not read")]);
        assert_eq!(findings, [""; 0]);
        assert_eq!(snapshot.cluster.as_deref(), Some("u-1"));
        assert_eq!(snapshot.services[&ObjectKey::new("default", "nginx")].ports[0].port, 80);
        assert_eq!(snapshot.slices[&ObjectKey::new("default", "nginx-1")].endpoints.len(), 1);
        assert!(snapshot.nodes.contains_key("node-a"));
        assert_eq!(
            snapshot.vip_map.unwrap(),
            [("10.87.2.50".to_owned(), "default/nginx".to_owned())].into_iter().collect()
        );
    }

    #[test]
    fn the_parts_that_pools_and_tenants_need_are_read_too() {
        let users = r#"[{"service":"default/web","uid":"u-1","ports":[["tcp",80]]}]"#;
        let meta = |name: &str| {
            format!(
                "name: '{name}', labels: {{ipaddress.kubernetes.io/managed-by: kvip}}, annotations: {{kvip.io/services: '{users}'}}"
            )
        };
        let yaml = format!(
            "\
kind: Namespace
metadata: {{name: shop, labels: {{team: shop}}}}
---
kind: ServiceCIDR
metadata: {{name: kubernetes}}
spec: {{cidrs: [10.96.0.0/16, 'fd00:96::/108']}}
---
kind: ConfigMap
metadata: {{name: kvip, namespace: kvip-system}}
data: {{config.toml: '[asking]'}}
---
kind: IPAddress
metadata: {{{}}}
spec: {{parentRef: {{resource: services, namespace: default, name: web}}}}
---
kind: Lease
metadata: {{namespace: kvip-system, {}}}
",
            meta("10.87.2.50"),
            meta("kvip-0a570233"),
        );
        let (snapshot, findings) = loaded(&[("x.yaml", &yaml)]);
        assert_eq!(findings, [""; 0]);
        assert_eq!((snapshot.cluster, snapshot.vip_map), (None, None));
        assert_eq!(snapshot.namespaces["shop"]["team"], "shop");
        assert_eq!(snapshot.service_cidrs["kubernetes"].len(), 2);
        assert_eq!(snapshot.cluster_settings.as_deref(), Some("[asking]"));
        let claims: Vec<_> = snapshot.claims.objects().map(|claim| claim.address.to_string()).collect();
        assert_eq!(claims, ["10.87.2.50", "10.87.2.51"]);
    }

    #[test]
    fn what_cannot_be_read_is_a_finding_with_file_and_line_and_the_rest_loads() {
        let yaml = "\
kind: Service
metadata: {name: good}
---
kind: Service
metadata:
  name: [broken
---
a: b
---
kind: Service
metadata: {name: typed}
spec: {ports: [{port: eighty}]}
---
kind: Node
---
just text
---
kind: Node
metadata: {name: last}
";
        let (snapshot, findings) = loaded(&[("x.yaml", yaml)]);
        assert_eq!(snapshot.services.len(), 1);
        assert!(snapshot.nodes.contains_key("last"));
        let want = [
            ("x.yaml:", "not YAML or JSON"),
            ("x.yaml:8:", "no kind"),
            ("x.yaml:10:", "Service typed: invalid type"),
            ("x.yaml:14:", "Node without metadata.name"),
            ("x.yaml:16:", "no kind"),
        ];
        assert_eq!(findings.len(), want.len(), "{findings:#?}");
        for (found, (place, text)) in findings.iter().zip(want) {
            assert!(found.starts_with(place) && found.contains(text), "{found}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let error = load(Path::new("/nowhere/at-all"), &settings()).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot read the folder of manifests /nowhere/at-all: No such")
        );
    }
}
