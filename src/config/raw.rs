//! The merged settings before their values are read: figment decides which layer wins, this finds the winner again and
//! collects every problem on the way.

use std::collections::BTreeMap;

use figment::Figment;
use figment::value::Value;

use super::error::Problem;
use super::layer::Layer;

/// One value as a parser sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    /// The value.
    pub(super) value: &'a Value,
    /// Whether it is text that stands for a number or a list, as in a variable or a flag.
    pub(super) loose: bool,
}

/// Merged layers that remember which one each value came from.
#[derive(Debug)]
pub(super) struct Merged {
    figment: Figment,
    /// By the name in their metadata.
    layers: BTreeMap<String, Layer>,
    /// All problems found so far.
    pub(super) problems: Vec<Problem>,
    /// Where each value that is not a default came from.
    pub(super) origins: BTreeMap<&'static str, String>,
}

impl Merged {
    /// Merges `layers`, later ones over earlier ones; lists replace lists.
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        let mut figment = Figment::new();
        let mut problems = Vec::new();
        let mut named = BTreeMap::new();
        for mut layer in layers {
            problems.extend(layer.prune());
            figment = figment.merge(&layer);
            named.insert(figment::Provider::metadata(&layer).name.into_owned(), layer);
        }
        Self { figment, layers: named, problems, origins: BTreeMap::new() }
    }

    /// Reads a key that has a default; `None` means that a problem was noted.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> Option<T> {
        self.read_optional(key, parse).flatten()
    }

    /// Reads a key that may be missing; the outer `None` means that a problem was noted.
    #[expect(clippy::option_option, reason = "a refused value and a missing one are different things")]
    pub(super) fn read_optional<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let Some((value, layer)) = self.find(key) else { return Some(None) };
        match parse(Raw { value: &value, loose: layer.is_loose() }) {
            Ok(parsed) => {
                self.note_origin(key, &value);
                Some(Some(parsed))
            }
            Err(text) => {
                let problem = layer.problem(key, None, Some(layer.render(&value)), text);
                self.problems.push(problem);
                None
            }
        }
    }

    /// Reads a list element by element, so that each bad one is reported; a missing key is an empty list.
    pub(super) fn read_list<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Some((value, layer)) = self.find(key) else { return Some(Vec::new()) };
        let loose = layer.is_loose();
        let Some(elements) = elements(Raw { value: &value, loose }) else {
            let problem = layer.problem(key, None, Some(layer.render(&value)), wanted.to_owned());
            self.problems.push(problem);
            return None;
        };
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (index, element) in elements.iter().enumerate() {
            match parse(Raw { value: element, loose }) {
                Ok(parsed) => good.push(parsed),
                Err(text) => {
                    bad.push(layer.problem(key, Some(index), Some(layer.render(element)), text));
                }
            }
        }
        if !bad.is_empty() {
            self.problems.extend(bad);
            return None;
        }
        self.note_origin(key, &value);
        Some(good)
    }

    /// Whether any layer has the key.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.figment.contains(key)
    }

    /// Notes a problem with a value that was read, or with the element `index` of its list.
    pub(super) fn complain(&mut self, key: &str, index: Option<usize>, text: String) {
        let Some((value, layer)) = self.find(key) else { return };
        let loose = layer.is_loose();
        let element = index.and_then(|index| elements(Raw { value: &value, loose })?.into_iter().nth(index));
        let found = layer.render(element.as_ref().unwrap_or(&value));
        let problem = layer.problem(key, index, Some(found), text);
        self.problems.push(problem);
    }

    fn find(&self, key: &str) -> Option<(Value, &Layer)> {
        let value = self.figment.find_value(key).ok()?;
        let name = &self.figment.get_metadata(value.tag())?.name;
        Some((value, self.layers.get(name.as_ref())?))
    }

    fn note_origin(&mut self, key: &'static str, value: &Value) {
        let name = self.figment.get_metadata(value.tag()).map(|metadata| metadata.name.as_ref());
        let layer = name.and_then(|name| self.layers.get(name));
        if let Some(place) = layer.filter(|layer| !layer.is_default()).map(|layer| layer.place(key)) {
            self.origins.insert(key, place);
        }
    }
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
