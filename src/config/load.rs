//! Reads the settings: the file, its drop-ins, the environment and the flags, each over the one before.
//!
//! Every problem is reported at once. Reads files, decides nothing that the pure modules can decide.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Problem;
use super::layer::{Layer, PREFIX};
use super::prune::prune;
use super::raw::Merged;
use super::{Settings, cluster, sections};
use crate::files::is_named_pipe;
use crate::model::Finding;

/// Where the settings are by default.
pub const CONFIG_FILE: &str = "/etc/kvip/config.toml";

/// What to write when `vips.allowed` is missing.
pub(super) const ALLOWED_MEND: &str =
    "write the networks that VIPs may come from under [vips], as in allowed = [\"10.87.2.0/24\"]";

/// Where settings come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The file, TOML.
    pub file: PathBuf,
    /// The folder of drop-ins, of which `*.toml` are read in name order.
    pub drop_ins: PathBuf,
    /// Environment variables; those that begin with `KVIP_` and have `__` after the section count.
    pub env: Vec<(String, String)>,
    /// Keys such as `vrrp.vrid` with their values, from the command line.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// The installed file, its drop-ins and this process' environment.
    pub fn system() -> Self {
        Self::of_file(CONFIG_FILE)
    }

    /// Another file, the folder `config.d` beside it, and this process' environment.
    pub fn of_file(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        let variables = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| name.starts_with(PREFIX));
        Self { drop_ins: file.with_file_name("config.d"), file, env: variables.collect(), flags: Vec::new() }
    }
}

/// Settings, where they came from, and what is the matter with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// For each key that is not left to its default, its place: `file:line`, a variable's name, or `--set`.
    pub origins: BTreeMap<String, String>,
    /// What is left out or missing.
    pub findings: Vec<Finding>,
}

/// What this host says, checked as far as it can be without the cluster's settings, which lie below it.
///
/// Kept as it was read, so that it can be combined with each version of the cluster's ConfigMap
/// ([`with_cluster`](super::with_cluster)).
#[derive(Debug, Clone)]
pub struct HostLayers {
    /// The file that a person would change.
    pub(super) file: PathBuf,
    /// The files, the environment and the flags, later ones over earlier ones.
    pub(super) layers: Vec<Layer>,
}

impl HostLayers {
    /// The settings without the cluster's ConfigMap.
    pub fn alone(&self) -> Loaded {
        cluster::combined(self, None, Vec::new())
    }
}

/// Reads, merges and checks all settings of this host; otherwise tells every problem found.
pub fn load(sources: &Sources) -> Result<Settings, Vec<Problem>> {
    load_with_origins(sources).map(|loaded| loaded.settings)
}

/// All that is wrong with a host's settings, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct WrongSettings(pub Vec<Problem>);

/// As [`read_host`], for those who cannot go on.
///
/// # Errors
/// When anything is wrong with the settings.
pub fn require(sources: &Sources) -> Result<HostLayers, WrongSettings> {
    read_host(sources).map_err(WrongSettings)
}

/// As [`load`], and tells where each value came from.
pub fn load_with_origins(sources: &Sources) -> Result<Loaded, Vec<Problem>> {
    read_host(sources).map(|host| host.alone())
}

/// Reads the files, the environment and the flags of this host, and checks them; otherwise tells every problem found.
pub fn read_host(sources: &Sources) -> Result<HostLayers, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut layers = files(sources, &mut problems);
    // A file that cannot be read may hold what is missing, so nothing is called missing then.
    let all_read = problems.is_empty();
    let (environment, mut unknown) = Layer::environment(&sources.env);
    problems.append(&mut unknown);
    layers.extend([environment, Layer::flags(&sources.flags)]);
    problems.extend(layers.iter_mut().flat_map(prune));

    let defaults = Layer::defaults();
    let mut merged = Merged::new(std::iter::once(&defaults).chain(&layers).collect());
    sections::settings(&mut merged, false);
    problems.append(&mut merged.problems);
    if all_read && !merged.contains("vips.allowed") && !sources.file.exists() {
        problems.push(missing_file(&sources.file));
    }
    if problems.is_empty() {
        return Ok(HostLayers { file: sources.file.clone(), layers });
    }
    Err(in_order(problems))
}

/// The file and its drop-ins, those that can be read.
fn files(sources: &Sources, problems: &mut Vec<Problem>) -> Vec<Layer> {
    let mut paths = vec![sources.file.clone()];
    match drop_ins(&sources.drop_ins) {
        Ok(found) => paths.extend(found),
        Err(problem) => problems.push(*problem),
    }
    let mut layers = Vec::new();
    for path in paths {
        match read(&path) {
            Ok(layer) => layers.extend(layer),
            Err(problem) => problems.push(*problem),
        }
    }
    layers
}

/// Reads one file; a file that is not there is `None`.
fn read(path: &Path) -> Result<Option<Layer>, Box<Problem>> {
    match text_of(path) {
        Ok(text) => Layer::file(path, &text).map(Some),
        Err(error) if is_missing(path, &error) => Ok(None),
        Err(error) => Err(Box::new(unreadable(path, &error))),
    }
}

fn text_of(path: &Path) -> io::Result<String> {
    if is_named_pipe(path) {
        return Err(io::Error::other("it is a named pipe"));
    }
    std::fs::read_to_string(path)
}

/// Whether nothing is at `path`, not even a link to nowhere.
fn is_missing(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && !path.is_symlink()
}

/// The drop-ins in name order; hidden files are editors' and package managers' own.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, Box<Problem>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_missing(folder, &error) => return Ok(Vec::new()),
        Err(error) => return Err(Box::new(unreadable(folder, &error))),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| Box::new(unreadable(folder, &error)))?.file_name();
        let visible = !name.to_string_lossy().starts_with('.');
        if visible && Path::new(&name).extension().is_some_and(|extension| extension == "toml") {
            paths.push(folder.join(name));
        }
    }
    paths.sort();
    Ok(paths)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let text = match error.kind() {
        io::ErrorKind::NotFound => "a link to what is not there".to_owned(),
        io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        io::ErrorKind::PermissionDenied => "no permission to read it; run this as root".to_owned(),
        io::ErrorKind::IsADirectory => "a folder, where a file is wanted".to_owned(),
        io::ErrorKind::NotADirectory => "a file, where a folder is wanted".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Problem { file: Some(path.to_owned()), text, ..Problem::default() }
}

/// Without the file nothing is set at all, and its name may be a wrong one.
fn missing_file(file: &Path) -> Problem {
    Problem {
        file: Some(file.to_owned()),
        text: "not there".to_owned(),
        mend: Some(ALLOWED_MEND.to_owned()),
        ..Problem::default()
    }
}

/// Files first, each by line, then variables and flags by name.
fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| {
        (problem.file.is_none(), problem.file.clone(), problem.line, problem.subject.clone())
    });
    problems
}
