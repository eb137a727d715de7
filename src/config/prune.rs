//! Takes out of a layer what is no setting, so that it cannot hide another layer's values, and reports it.
//!
//! Pure. Whether a value is good is for `values` to say, and what is in a table for `entries`.

use figment::value::{Dict, Value};

use super::error::Problem;
use super::keys::{self, Table};
use super::layer::Layer;
use super::path::KeyPath;

/// Leaves only known keys, lists of tables as they are, and, in the cluster's layer, what may be the cluster's.
pub(super) fn prune(layer: &mut Layer) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, mut content) in std::mem::take(&mut layer.dict) {
        let path = KeyPath::of(&name);
        let found = match keys::table(&name) {
            _ if layer.is_cluster() && keys::is_known(&name) && !keys::is_cluster_wide(&name) => {
                Err(vec![host_only(layer, &path)])
            }
            Some(table) if layer.is_loose() => Err(misplaced(layer, table, &content)),
            Some(_) => Ok(Vec::new()),
            None => prune_section(layer, &name, &mut content),
        };
        match found {
            Ok(found) => {
                problems.extend(found);
                layer.dict.insert(name, content);
            }
            Err(found) => problems.extend(found),
        }
    }
    problems
}

/// The problems inside of a section; as an error those of something that is none.
fn prune_section(layer: &Layer, name: &str, content: &mut Value) -> Result<Vec<Problem>, Vec<Problem>> {
    let path = KeyPath::of(name);
    if !keys::is_section(name) {
        // No line shows where a variable or a flag stands, so each is named in full.
        let names = match content {
            Value::Dict(_, dict) if layer.is_loose() => dict.keys().map(|key| path.with(key)).collect(),
            _ => vec![path],
        };
        let unknown = |path: &KeyPath| layer.unknown(path, keys::nearest(&path.to_string()));
        return Err(names.iter().map(unknown).collect());
    }
    let Value::Dict(_, dict) = content else {
        return Err(vec![layer.no_section(name, content)]);
    };
    let is_key = |key: &str| keys::is_key(&format!("{name}.{key}"));
    let unknown = |key: &str| unknown(layer, name, key);
    Ok(keep(dict, is_key, unknown))
}

/// A key that `section` does not know. One that tables have was probably meant for one whose header is missing, as when
/// only the lines below a commented header were changed.
fn unknown(layer: &Layer, section: &str, key: &str) -> Problem {
    let path = KeyPath::of(section).with(key);
    let hint = keys::nearest(&path.to_string());
    let mut problem = layer.unknown(&path, hint);
    let is_near = hint.is_some_and(|hint| hint.starts_with(&format!("{section}.")));
    if let (false, false, Some(headers)) = (is_near, layer.is_loose(), keys::headers(key)) {
        let joint = if hint.is_some() { " Or is" } else { "; is" };
        problem.text = format!("{}{joint} {headers} missing above it?", problem.text);
    }
    problem
}

/// The problems with a list of tables in a variable or a flag, one for each key that it was given as.
fn misplaced(layer: &Layer, table: &Table, content: &Value) -> Vec<Problem> {
    let path = KeyPath::of(table.name);
    let paths = match content {
        Value::Dict(_, dict) => dict.keys().map(|key| path.with(key)).collect(),
        _ => vec![path],
    };
    paths.iter().map(|path| layer.misplaced_table(path, table)).collect()
}

/// Keeps the keys that are some; tells the others' problems.
fn keep(dict: &mut Dict, is_key: impl Fn(&str) -> bool, unknown: impl Fn(&str) -> Problem) -> Vec<Problem> {
    let problems = dict.keys().filter(|key| !is_key(key)).map(|key| unknown(key)).collect();
    dict.retain(|key, _| is_key(key));
    problems
}

fn host_only(layer: &Layer, path: &KeyPath) -> Problem {
    let text = "each host's own, so it does not count here; set it in config.toml on the hosts".to_owned();
    layer.problem(path, None, text)
}
