//! One source of settings: a file, the environment, the flags or the defaults.
//!
//! Pure: texts come in, values and the problems of their own come out. A layer knows how to say where in it a value
//! stands; which layer wins is decided in `raw`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};

use super::error::Problem;
use super::keys::{self, KEYS, Table};
use super::locate::{Located, position};
use super::not_toml;
use super::path::KeyPath;
use super::toml::{json, value};
use crate::report::words::short;

/// Sections that are planned and so deserve more than "unknown key".
const LATER: [&str; 1] = ["report"];

/// What environment variables of settings begin with.
pub(super) const PREFIX: &str = "KVIP_";

/// One source's values and where they stand.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    origin: Origin,
    /// What it sets; pruned of what is no key before it is read.
    pub(super) dict: Dict,
}

#[derive(Debug, Clone)]
enum Origin {
    Defaults,
    File {
        path: PathBuf,
        located: Box<Located>,
        /// Whether it is the cluster's ConfigMap, in which `path` is what people call it.
        cluster: bool,
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
        Self::toml(path, text, false)
    }

    /// The TOML `text` of the cluster's settings, called `place`.
    pub(super) fn cluster(place: &str, text: &str) -> Result<Self, Box<Problem>> {
        Self::toml(Path::new(place), text, true)
    }

    fn toml(path: &Path, text: &str, cluster: bool) -> Result<Self, Box<Problem>> {
        let located = Located::parse(text.to_owned()).map_err(|error| {
            let place = error.span().map(|span| position(text, &span));
            Box::new(Problem {
                file: Some(path.to_owned()),
                line: place.map(|(line, _)| line),
                column: place.map(|(_, column)| column),
                text: format!("not TOML: {}", not_toml::why(text, &error)),
                ..Problem::default()
            })
        })?;
        let dict = match value(located.root()) {
            Value::Dict(_, dict) => dict,
            _ => Dict::new(),
        };
        Ok(Self { origin: Origin::File { path: path.to_owned(), located: Box::new(located), cluster }, dict })
    }

    /// Environment variables; those without our prefix, and those that are no settings though they have it, are not ours to
    /// judge.
    pub(super) fn environment(variables: &[(String, String)]) -> (Self, Vec<Problem>) {
        let mut names = BTreeMap::new();
        let mut values = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(PREFIX).map(str::to_lowercase) else { continue };
            if rest.contains("__") {
                let key = rest.replace("__", ".");
                names.insert(key.clone(), name.clone());
                values.insert(key, value.as_str());
            } else if keys::table(&rest).is_some() {
                problems.push(table_in_text(name.clone(), &rest));
            } else if names_a_key(&rest) || !is_no_setting(&rest) {
                problems.push(unknown_variable(name, &rest));
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

    /// Whether values are text without TOML's quotes and brackets, as in a variable or a flag.
    pub(super) fn is_loose(&self) -> bool {
        !matches!(self.origin, Origin::File { .. })
    }

    /// Whether this is the layer of defaults.
    pub(super) fn is_default(&self) -> bool {
        matches!(self.origin, Origin::Defaults)
    }

    /// Whether this is the cluster's ConfigMap.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.origin, Origin::File { cluster: true, .. })
    }

    /// The value at `path`.
    pub(super) fn get(&self, path: &KeyPath) -> Option<&Value> {
        let mut parts = path.parts();
        let mut value = self.dict.get(parts.next()?)?;
        for part in parts {
            value = match value {
                Value::Dict(_, dict) => dict.get(part)?,
                Value::Array(_, list) => list.get(part.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(value)
    }

    /// Where a value comes from, in short: `/etc/kvip/config.toml:14`, `KVIP_VRRP__VRID`, `--set`.
    pub(super) fn place(&self, path: &KeyPath) -> String {
        match &self.origin {
            Origin::Defaults => "default".to_owned(),
            Origin::File { path: file, located, .. } => match located.line(path) {
                Some(line) => format!("{}:{line}", file.display()),
                None => file.display().to_string(),
            },
            Origin::Environment(_) => self.subject(path),
            Origin::Flags => "--set".to_owned(),
        }
    }

    /// A problem with what stands, or should stand, at `path`.
    pub(super) fn problem(&self, path: &KeyPath, found: Option<String>, text: String) -> Problem {
        let (file, line) = self.file_and_line(path);
        Problem { file, line, subject: Some(self.subject(path)), found, text, ..Problem::default() }
    }

    /// A problem with the element `index` of the list at `path`; text in a variable has no elements to name.
    pub(super) fn element_problem(
        &self,
        path: &KeyPath,
        index: usize,
        element: &Value,
        text: String,
    ) -> Problem {
        let path = if self.is_loose() { path.clone() } else { path.with(index) };
        self.problem(&path, Some(self.render(element)), text)
    }

    /// A problem with a key that is none, of which `hint` is the nearest that is one.
    pub(super) fn unknown(&self, path: &KeyPath, hint: Option<&str>) -> Problem {
        let text = match hint {
            Some(hint) => format!("unknown key `{path}`; did you mean `{}`?", self.hint(hint, path)),
            None if path.parts().next().is_some_and(|section| LATER.contains(&section)) => {
                format!("`{path}` is not available in this version")
            }
            None => format!("unknown key `{path}`"),
        };
        let (file, line) = self.file_and_line(path);
        let subject = self.is_loose().then(|| self.subject(path));
        Problem { file, line, subject, text, ..Problem::default() }
    }

    /// Something else in the place of the section `name`, and how one of its keys is set here.
    pub(super) fn no_section(&self, name: &str, found: &Value) -> Problem {
        let text = match self.origin {
            Origin::Flags => format!("a section; say --set {name}.KEY=VALUE"),
            _ => format!("a section is wanted, written [{name}]"),
        };
        self.problem(&KeyPath::of(name), Some(self.render(found)), text)
    }

    /// A list of tables where there can be none: in a variable or a flag.
    pub(super) fn misplaced_table(&self, path: &KeyPath, table: &Table) -> Problem {
        table_in_text(self.subject(path), table.name)
    }

    /// A value as it was written, on one line and not too long.
    pub(super) fn render(&self, value: &Value) -> String {
        let text = match value {
            Value::String(_, text) if self.is_loose() && !text.chars().any(char::is_control) => text.clone(),
            other => json(other).to_string(),
        };
        short(text)
    }

    /// A known key as one would write it in this layer, in place of `wrong`.
    fn hint(&self, known: &str, wrong: &KeyPath) -> String {
        match &self.origin {
            Origin::Environment(_) => variable(known),
            Origin::Flags | Origin::Defaults => known.to_owned(),
            Origin::File { .. } => match known.split_once('.') {
                Some((same, name)) if wrong.parts().count() > 1 && wrong.parts().next() == Some(same) => {
                    name.to_owned()
                }
                _ => known.to_owned(),
            },
        }
    }

    /// What a person would call the key in this layer.
    fn subject(&self, path: &KeyPath) -> String {
        let key = path.to_string();
        match &self.origin {
            Origin::Environment(names) => names.get(&key).cloned().unwrap_or_else(|| variable(&key)),
            Origin::Flags => format!("--set {key}"),
            Origin::File { .. } | Origin::Defaults => key,
        }
    }

    fn file_and_line(&self, path: &KeyPath) -> (Option<PathBuf>, Option<usize>) {
        match &self.origin {
            Origin::File { path: file, located, .. } => (Some(file.clone()), located.line(path)),
            _ => (None, None),
        }
    }
}

/// Says where the list `name` can be written, as `subject` cannot hold it.
fn table_in_text(subject: String, name: &str) -> Problem {
    let text = format!(
        "`{name}` is a list of tables, which only a file can set: write [[{name}]] in config.toml or a file of config.d"
    );
    Problem { subject: Some(subject), text, ..Problem::default() }
}

/// The variable of a key: `KVIP_VRRP__ADVERT`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// Whether `rest` is a key, with one underscore after its section or without a section.
fn names_a_key(rest: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path.replace('.', "_") == rest || key.path.split_once('.').is_some_and(|(_, name)| name == rest)
    })
}

/// What else begins as variables of settings do: what is logged, what the lab's own are, and what a pod finds of a Service
/// called kvip or kvip-… (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
fn is_no_setting(rest: &str) -> bool {
    let link = format!("_{rest}");
    rest == "log"
        || rest.starts_with("lab_")
        || ["_service_host", "_port"].iter().any(|end| link.ends_with(end))
        || link.contains("_port_")
}

/// The problem with a variable that has no two underscores after its section, and which key was probably meant.
fn unknown_variable(name: &str, rest: &str) -> Problem {
    let dotted = rest.replacen('_', ".", 1);
    let hint = [dotted.as_str(), rest].into_iter().filter_map(keys::nearest).find(|hint| keys::is_key(hint));
    let text = match hint {
        Some(hint) => format!("unknown variable; did you mean `{}`?", variable(hint)),
        None => format!("unknown variable; those of settings are called {PREFIX}SECTION__KEY"),
    };
    Problem { subject: Some(name.to_owned()), text, ..Problem::default() }
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
