//! One source of settings: a file, the environment, the flags or the defaults.
//!
//! Pure: texts come in, a figment provider and the problems of its own come out. A layer knows how to say where in it a
//! value stands; which layer wins is figment's to decide, in `raw`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use toml_edit::Item;

use super::error::Problem;
use super::keys::{self, KEYS};
use super::locate::{Located, position};

/// Sections that are planned and so deserve more than "unknown key".
const LATER: [&str; 4] = ["groups", "pools", "static", "report"];

/// What environment variables of settings begin with.
pub(super) const PREFIX: &str = "KVIP_";

/// One source's values and where they stand.
#[derive(Debug)]
pub(super) struct Layer {
    origin: Origin,
    dict: Dict,
}

#[derive(Debug)]
enum Origin {
    Defaults,
    File {
        path: PathBuf,
        located: Box<Located>,
    },
    /// The variable's name for each key.
    Environment(BTreeMap<String, String>),
    Flags,
}

impl Layer {
    /// The defaults of all keys that have one.
    pub(super) fn defaults() -> Self {
        let pairs = KEYS.iter().filter_map(|key| Some((key.path, key.default?)));
        Self { origin: Origin::Defaults, dict: nest(pairs) }
    }

    /// The TOML `text` of the file at `path`.
    pub(super) fn file(path: &Path, text: &str) -> Result<Self, Box<Problem>> {
        let located = Located::parse(text.to_owned()).map_err(|error| {
            let place = error.span().map(|span| position(text, &span));
            Box::new(Problem {
                file: Some(path.to_owned()),
                line: place.map(|(line, _)| line),
                column: place.map(|(_, column)| column),
                text: format!("not TOML: {}", one_line(error.message())),
                ..Problem::default()
            })
        })?;
        let dict = match value(located.root()) {
            Value::Dict(_, dict) => dict,
            _ => Dict::new(),
        };
        Ok(Self { origin: Origin::File { path: path.to_owned(), located: Box::new(located) }, dict })
    }

    /// Environment variables; those without our prefix, and `KVIP_LOG`, are not ours to judge.
    pub(super) fn environment(variables: &[(String, String)]) -> (Self, Vec<Problem>) {
        let mut names = BTreeMap::new();
        let mut values = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if rest.contains("__") {
                let key = rest.to_lowercase().replace("__", ".");
                names.insert(key.clone(), name.clone());
                values.insert(key, value.as_str());
            } else if let Some(meant) = meant_variable(rest) {
                let text = format!("unknown variable; did you mean `{meant}`?");
                problems.push(Problem { subject: Some(name.clone()), text, ..Problem::default() });
            }
        }
        let pairs = values.iter().map(|(key, value)| (key.as_str(), *value));
        (Self { dict: nest(pairs), origin: Origin::Environment(names) }, problems)
    }

    /// `--set` flags; of two for one key the last wins.
    pub(super) fn flags(flags: &[(String, String)]) -> Self {
        let pairs = flags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        Self { origin: Origin::Flags, dict: nest(pairs) }
    }

    /// Takes out what is no key, so that it cannot hide another layer's values, and reports it.
    pub(super) fn prune(&mut self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (section, content) in std::mem::take(&mut self.dict) {
            match content {
                Value::Dict(tag, dict) if keys::is_section(&section) => {
                    let (known, unknown): (Dict, Dict) =
                        dict.into_iter().partition(|(name, _)| keys::is_key(&format!("{section}.{name}")));
                    problems.extend(unknown.keys().map(|name| self.unknown(&section, Some(name))));
                    self.dict.insert(section, Value::Dict(tag, known));
                }
                other if keys::is_section(&section) => {
                    let text = format!("a section is wanted, written [{section}]");
                    problems.push(self.problem(&section, None, Some(self.render(&other)), text));
                }
                _ => problems.push(self.unknown(&section, None)),
            }
        }
        problems
    }

    /// Whether values are text without TOML's quotes and brackets, as in a variable or a flag.
    pub(super) fn is_loose(&self) -> bool {
        !matches!(self.origin, Origin::File { .. })
    }

    /// Whether this is the layer of defaults.
    pub(super) fn is_default(&self) -> bool {
        matches!(self.origin, Origin::Defaults)
    }

    /// Where a key's value comes from, in short: `/etc/kvip/config.toml:14`, `KVIP_VRRP__VRID`, `--set`.
    pub(super) fn place(&self, key: &str) -> String {
        match &self.origin {
            Origin::Defaults => "default".to_owned(),
            Origin::File { path, .. } => match self.line(key, None) {
                Some(line) => format!("{}:{line}", path.display()),
                None => path.display().to_string(),
            },
            Origin::Environment(_) => self.subject(key),
            Origin::Flags => "--set".to_owned(),
        }
    }

    /// A problem with `key`, or with the element `index` of its list.
    pub(super) fn problem(
        &self,
        key: &str,
        index: Option<usize>,
        found: Option<String>,
        text: String,
    ) -> Problem {
        let subject = self.subject(key);
        let subject = match index {
            Some(index) if !self.is_loose() => format!("{subject}.{index}"),
            _ => subject,
        };
        let line = self.line(key, index);
        Problem { file: self.path(), line, subject: Some(subject), found, text, ..Problem::default() }
    }

    /// A value as it was written, on one line and not too long.
    pub(super) fn render(&self, value: &Value) -> String {
        let text = match value {
            Value::String(_, text) if self.is_loose() && !text.chars().any(char::is_control) => text.clone(),
            other => json(other).to_string(),
        };
        if text.chars().count() > 80 { text.chars().take(79).chain(['…']).collect() } else { text }
    }

    fn unknown(&self, section: &str, name: Option<&str>) -> Problem {
        let key = name.map_or_else(|| section.to_owned(), |name| format!("{section}.{name}"));
        let text = match keys::nearest(&key) {
            _ if LATER.contains(&section) => format!("`{section}` is not available in this version"),
            Some(hint) => format!("unknown key `{key}`; did you mean `{}`?", self.hint(hint, section)),
            None => format!("unknown key `{key}`"),
        };
        let subject = self.is_loose().then(|| self.subject(&key));
        Problem { file: self.path(), line: self.line(&key, None), subject, text, ..Problem::default() }
    }

    /// A known key as one would write it in this layer, beside others of `section`.
    fn hint(&self, known: &str, section: &str) -> String {
        match &self.origin {
            Origin::Environment(_) => variable(known),
            Origin::Flags | Origin::Defaults => known.to_owned(),
            Origin::File { .. } => match known.split_once('.') {
                Some((same, name)) if same == section => name.to_owned(),
                _ => known.to_owned(),
            },
        }
    }

    /// What a person would call the key in this layer.
    fn subject(&self, key: &str) -> String {
        match &self.origin {
            Origin::Environment(names) => names.get(key).cloned().unwrap_or_else(|| variable(key)),
            Origin::Flags => format!("--set {key}"),
            Origin::File { .. } | Origin::Defaults => key.to_owned(),
        }
    }

    fn path(&self) -> Option<PathBuf> {
        match &self.origin {
            Origin::File { path, .. } => Some(path.clone()),
            _ => None,
        }
    }

    fn line(&self, key: &str, index: Option<usize>) -> Option<usize> {
        match &self.origin {
            Origin::File { located, .. } => located.line(&key.splitn(2, '.').collect::<Vec<_>>(), index),
            _ => None,
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let name = match &self.origin {
            Origin::Defaults => "defaults".to_owned(),
            Origin::File { path, .. } => path.display().to_string(),
            Origin::Environment(_) => "environment".to_owned(),
            Origin::Flags => "flags".to_owned(),
        };
        Metadata::named(name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// The variable of a key: `KVIP_VRRP__ADVERT`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// The variable that one with a single underscore after its section was meant to be.
fn meant_variable(rest: &str) -> Option<String> {
    let known = KEYS.iter().map(|key| key.path);
    known
        .map(|path| (path, path.replace('.', "_")))
        .find(|(_, one)| *one == rest.to_lowercase())
        .map(|(path, _)| variable(path))
}

/// Sections of texts, from dotted keys.
fn nest<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Dict {
    let mut root = Dict::new();
    for (path, text) in pairs {
        let Some((section, name)) = path.split_once('.') else {
            root.insert(path.to_owned(), Value::from(text));
            continue;
        };
        let entry = root.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
        if let Value::Dict(_, dict) = entry {
            dict.insert(name.to_owned(), Value::from(text));
        }
    }
    root
}

/// A TOML item as figment's value; dates become text, which no setting takes.
fn value(item: &Item) -> Value {
    if let Some(table) = item.as_table_like() {
        let dict: Dict = table.iter().map(|(name, item)| (name.to_owned(), value(item))).collect();
        return Value::from(dict);
    }
    if let Some(tables) = item.as_array_of_tables() {
        let tables = tables.iter().map(|table| value(&Item::Table(table.clone())));
        return Value::from(tables.collect::<Vec<_>>());
    }
    item.as_value().map_or_else(|| Value::from(""), plain)
}

fn plain(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::from(text.value().as_str()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        toml_edit::Value::Float(number) => Value::from(*number.value()),
        toml_edit::Value::Boolean(truth) => Value::from(*truth.value()),
        toml_edit::Value::Datetime(date) => Value::from(date.value().to_string()),
        toml_edit::Value::Array(list) => Value::from(list.iter().map(plain).collect::<Vec<_>>()),
        toml_edit::Value::InlineTable(_) => self::value(&Item::Value(value.clone())),
    }
}

/// A value as JSON, whose texts, numbers and lists read as TOML's do.
fn json(value: &Value) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
