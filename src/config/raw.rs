//! The merged settings before their values are read: finds the layer that counts for each key, and collects every
//! problem on the way.
//!
//! A value that is refused is left out, and the next layer below counts, down to the default. Whether problems are
//! errors, as in a host's files, or findings, as in the cluster's ConfigMap, is the caller's to decide.

use std::collections::BTreeMap;

use figment::value::Value;

use super::error::Problem;
use super::layer::Layer;
use super::path::KeyPath;
use crate::model::Finding;

/// One value as a parser sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    /// The value.
    pub(super) value: &'a Value,
    /// Whether it is text that stands for a number or a list, as in a variable or a flag.
    pub(super) loose: bool,
}

/// A list of tables before it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables<'l> {
    /// The layer that it stands in.
    pub(super) layer: &'l Layer,
    /// What should be tables.
    pub(super) list: &'l [Value],
    /// False when something else stood in its place, which is not the same as nothing.
    pub(super) is_list: bool,
}

/// Layers that are read as one.
#[derive(Debug)]
pub(super) struct Merged<'l> {
    /// Later ones count over earlier ones.
    layers: Vec<&'l Layer>,
    /// All problems found so far.
    pub(super) problems: Vec<Problem>,
    /// Where each value that is not a default came from.
    pub(super) origins: BTreeMap<String, String>,
    /// Keys that this host sets to another value than the cluster.
    pub(super) disagreements: Vec<Finding>,
}

impl<'l> Merged<'l> {
    /// Reads `layers`, which are pruned, as one: later ones over earlier ones, lists replacing lists.
    pub(super) fn new(layers: Vec<&'l Layer>) -> Self {
        Self { layers, problems: Vec::new(), origins: BTreeMap::new(), disagreements: Vec::new() }
    }

    /// Reads a key that has a default.
    pub(super) fn read<T: PartialEq>(
        &mut self,
        key: &'static str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> T {
        self.read_optional(key, parse).expect("a default is a good value")
    }

    /// Reads a key that may be missing.
    pub(super) fn read_optional<T: PartialEq>(
        &mut self,
        key: &'static str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> Option<T> {
        self.pick(key, |layer, path, value| {
            parse(Raw { value, loose: layer.is_loose() })
                .map_err(|text| vec![layer.problem(path, Some(layer.render(value)), text)])
                .map(|parsed| (parsed, Vec::new()))
        })
    }

    /// Reads a list element by element, so that each bad one is reported; a missing key is an empty list.
    pub(super) fn read_list<T: PartialEq>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> Vec<T> {
        let list = self.pick(key, |layer, path, value| match list(layer, path, value, wanted, &parse) {
            (good, bad) if good.is_empty() && !bad.is_empty() => Err(bad),
            read => Ok(read),
        });
        list.unwrap_or_default()
    }

    /// The value of the highest layer whose value is good; says where the cluster's ConfigMap says otherwise.
    fn pick<T: PartialEq>(
        &mut self,
        key: &'static str,
        read: impl Fn(&Layer, &KeyPath, &Value) -> Result<(T, Vec<Problem>), Vec<Problem>>,
    ) -> Option<T> {
        let path = KeyPath::from(key);
        let mut counts: Option<(&Layer, T)> = None;
        for layer in self.layers.clone().into_iter().rev() {
            let Some(value) = layer.get(&path) else { continue };
            if counts.is_some() && !layer.is_cluster() {
                continue;
            }
            match (read(layer, &path, value), &counts) {
                (Err(problems), _) => self.problems.extend(problems),
                (Ok((value, problems)), None) => {
                    self.problems.extend(problems);
                    counts = Some((layer, value));
                }
                (Ok((other, problems)), Some((above, value))) => {
                    self.problems.extend(problems);
                    if *value != other {
                        self.disagree(&path, above, layer);
                    }
                }
            }
        }
        let (layer, value) = counts?;
        if !layer.is_default() {
            self.origins.insert(key.to_owned(), layer.place(&path));
        }
        Some(value)
    }

    /// The list of tables that counts; says where the cluster's ConfigMap says otherwise.
    pub(super) fn tables(&mut self, name: &'static str) -> Option<Tables<'l>> {
        let path = KeyPath::of(name);
        let mut counts: Option<Tables<'l>> = None;
        for layer in self.layers.clone().into_iter().rev() {
            let Some(value) = layer.get(&path) else { continue };
            match (value.as_array(), &counts) {
                (Some(list), None) => counts = Some(Tables { layer, list, is_list: true }),
                (Some(list), Some(above)) if layer.is_cluster() && above.list != list => {
                    self.disagree(&path, above.layer, layer);
                }
                (None, above) if above.is_none() || layer.is_cluster() => {
                    let wanted = format!("a list of tables is wanted, each written under [[{name}]]");
                    self.problems.push(layer.problem(&path, Some(layer.render(value)), wanted));
                    counts = counts.or(Some(Tables { layer, list: &[], is_list: false }));
                }
                _ => {}
            }
        }
        counts
    }

    /// Whether any layer has the key.
    pub(super) fn contains(&self, key: &str) -> bool {
        let path = KeyPath::from(key);
        self.layers.iter().any(|layer| layer.get(&path).is_some())
    }

    /// The names that the tables of a list give themselves, whether the tables are right or not.
    pub(super) fn names(&self, table: &str) -> Vec<String> {
        let path = KeyPath::of(table);
        let list = self.layers.iter().rev().find_map(|layer| layer.get(&path)?.as_array());
        let name = |entry: &Value| Some(entry.as_dict()?.get("name")?.as_str()?.to_owned());
        list.into_iter().flatten().filter_map(name).collect()
    }

    /// Notes a problem with a key, when any layer has it.
    pub(super) fn complain_if_set(&mut self, key: &str, text: &str) {
        if self.contains(key) {
            self.complain(&key.into(), text.to_owned());
        }
    }

    /// Notes a problem with a value that was read, or that is missing from what was read.
    pub(super) fn complain(&mut self, path: &KeyPath, text: String) {
        let top = path.parts().next().map(KeyPath::of);
        let holds = |layer: &&&Layer| layer.get(path).is_some();
        let holds_top = |layer: &&&Layer| top.as_ref().is_some_and(|top| layer.get(top).is_some());
        let layers = || self.layers.iter().rev();
        let Some(layer) = layers().find(holds).or_else(|| layers().find(holds_top)) else { return };
        let found = layer.get(path).map(|value| layer.render(value));
        let problem = layer.problem(path, found, text);
        self.problems.push(problem);
    }

    fn disagree(&mut self, path: &KeyPath, counts: &Layer, cluster: &Layer) {
        let said = |layer: &Layer| match layer.get(path) {
            Some(Value::Array(_, list)) if list.iter().any(|entry| matches!(entry, Value::Dict(..))) => {
                format!("writes [[{path}]]")
            }
            value => format!("sets {}", value.map(|value| layer.render(value)).unwrap_or_default()),
        };
        let text = format!(
            "{} {}, which counts on this node; {} {}, which does not",
            counts.place(path),
            said(counts),
            cluster.place(path),
            said(cluster),
        );
        let mend = format!("take {path} out of one of them, so that all nodes do the same");
        self.disagreements.push(Finding::new(path, text).mend(mend));
    }
}

/// The good elements of a list, and the problems with the others.
pub(super) fn list<T>(
    layer: &Layer,
    path: &KeyPath,
    value: &Value,
    wanted: &str,
    parse: impl Fn(Raw) -> Result<T, String>,
) -> (Vec<T>, Vec<Problem>) {
    let loose = layer.is_loose();
    let Some(elements) = elements(Raw { value, loose }) else {
        return (Vec::new(), vec![layer.problem(path, Some(layer.render(value)), wanted.to_owned())]);
    };
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (index, element) in elements.iter().enumerate() {
        match parse(Raw { value: element, loose }) {
            Ok(parsed) => good.push(parsed),
            Err(text) => bad.push(layer.element_problem(path, index, element, text)),
        }
    }
    (good, bad)
}

/// The elements of a list; loose text is split at commas and may have brackets and quotes.
fn elements(raw: Raw) -> Option<Vec<Value>> {
    match raw.value {
        Value::Array(_, list) => Some(list.clone()),
        Value::String(_, text) if raw.loose => {
            let text = text.trim();
            let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
            let parts = inner.split(',').map(|part| part.trim().trim_matches(['"', '\'']));
            Some(parts.filter(|part| !part.is_empty()).map(Value::from).collect())
        }
        _ => None,
    }
}
