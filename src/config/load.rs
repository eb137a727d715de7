//! Reads the settings: the file, its drop-ins, the environment and the flags, each over the one before.
//!
//! Every problem is reported at once. Reads files, decides nothing that `values` or `layer` can decide.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::error::Problem;
use super::layer::{Layer, PREFIX};
use super::raw::Merged;
use super::values::{self, NETWORKS_WANTED};
use super::{Balancing, Cluster, Node, Settings, Vrrp};

/// Where the settings are by default.
pub const CONFIG_FILE: &str = "/etc/kvip/config.toml";

/// What to write when `vips.allowed` is missing.
const ALLOWED_MEND: &str =
    "write the networks that VIPs may come from under [vips], as in allowed = [\"10.87.2.0/24\"]";

/// What is wrong with an empty `vips.allowed`.
const NONE_ALLOWED: &str = "no VIP could be served; name at least one network";

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

/// Settings and where they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// For each key that is not left to its default, its place: `file:line`, a variable's name, or `--set`.
    pub origins: BTreeMap<&'static str, String>,
}

/// Reads, merges and checks all settings; otherwise tells every problem found.
pub fn load(sources: &Sources) -> Result<Settings, Vec<Problem>> {
    load_with_origins(sources).map(|loaded| loaded.settings)
}

/// As [`load`], for those who cannot go on: all that is wrong as one error, a line each.
pub fn require(sources: &Sources) -> anyhow::Result<Settings> {
    load(sources).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\n"))
    })
}

/// As [`load`], and tells where each value came from.
pub fn load_with_origins(sources: &Sources) -> Result<Loaded, Vec<Problem>> {
    let mut problems = Vec::new();
    let files = files(sources, &mut problems);
    // A file that cannot be read may hold what is missing, so nothing is called missing then.
    let all_read = problems.is_empty();
    let (environment, mut unknown) = Layer::environment(&sources.env);
    problems.append(&mut unknown);

    let above = [environment, Layer::flags(&sources.flags)];
    let layers = [Layer::defaults()].into_iter().chain(files).chain(above);
    let mut merged = Merged::new(layers.collect());
    let settings = settings(&mut merged);
    problems.append(&mut merged.problems);
    if all_read && !merged.contains("vips.allowed") {
        problems.push(missing_allowed(&sources.file, !sources.file.exists()));
    }
    match settings {
        Some(settings) if problems.is_empty() => Ok(Loaded { settings, origins: merged.origins }),
        _ => Err(in_order(problems)),
    }
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

/// All settings, when every value could be read; each section is read whole, so that all problems are noted.
fn settings(merged: &mut Merged) -> Option<Settings> {
    let cluster = cluster(merged);
    let node = node(merged);
    let allowed = allowed(merged);
    let vrrp = vrrp(merged);
    let balancing = balancing(merged);
    let settings =
        Settings { cluster: cluster?, node: node?, allowed: allowed?, vrrp: vrrp?, balancing: balancing? };
    refuse_service_ranges(merged, &settings);
    Some(settings)
}

/// A network that lies in a Service range could never give a VIP; one that only overlaps is cut by the range.
fn refuse_service_ranges(merged: &mut Merged, settings: &Settings) {
    for (index, network) in settings.allowed.iter().enumerate() {
        if let Some(range) = settings.cluster.service_ranges.iter().find(|range| range.contains(network)) {
            let text = format!("no VIP can lie in the Service range {range} of cluster.service_ranges");
            merged.complain("vips.allowed", Some(index), text);
        }
    }
}

fn allowed(merged: &mut Merged) -> Option<Vec<IpNet>> {
    let allowed = merged.read_list("vips.allowed", NETWORKS_WANTED, values::vip_network)?;
    if allowed.is_empty() {
        merged.complain("vips.allowed", None, NONE_ALLOWED.to_owned());
        return None;
    }
    Some(allowed)
}

fn cluster(merged: &mut Merged) -> Option<Cluster> {
    let source = merged.read("cluster.source", values::source);
    let kubeconfig = merged.read("cluster.kubeconfig", values::path);
    let config_map = merged.read("cluster.config_map", values::object_key);
    let stale_after = merged.read("cluster.stale_after", values::stale_after);
    let service_ranges = merged.read_list("cluster.service_ranges", NETWORKS_WANTED, values::network);
    source?;
    Some(Cluster {
        kubeconfig: kubeconfig?,
        config_map: config_map?,
        stale_after: stale_after?,
        service_ranges: service_ranges?,
    })
}

fn node(merged: &mut Merged) -> Option<Node> {
    let name = merged.read_optional("node.name", values::node_name);
    let interface = merged.read_optional("node.interface", values::interface);
    let address = merged.read_optional("node.address", values::unicast_address);
    Some(Node { name: name?, interface: interface?, address: address? })
}

fn vrrp(merged: &mut Merged) -> Option<Vrrp> {
    let vrid = merged.read("vrrp.vrid", values::vrid);
    let advert = merged.read("vrrp.advert", values::advert);
    let transport = merged.read("vrrp.transport", values::transport);
    let members = merged.read("vrrp.members", values::selector);
    let gone_after = merged.read("vrrp.gone_after", values::gone_after);
    Some(Vrrp {
        vrid: vrid?,
        advert: advert?,
        transport: transport?,
        members: members?,
        gone_after: gone_after?,
    })
}

fn balancing(merged: &mut Merged) -> Option<Balancing> {
    let mode = merged.read("balancing.mode", values::mode);
    let scheduler = merged.read("balancing.scheduler", values::scheduler);
    let drain_limit = merged.read("balancing.drain_limit", values::drain_limit);
    let probe_port = merged.read("balancing.probe_port", values::port);
    Some(Balancing { mode: mode?, scheduler: scheduler?, drain_limit: drain_limit?, probe_port: probe_port? })
}

/// Reads one file; a file that is not there is `None`.
fn read(path: &Path) -> Result<Option<Layer>, Box<Problem>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Layer::file(path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Box::new(unreadable(path, &error))),
    }
}

/// The drop-ins in name order; hidden files are editors' and package managers' own.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, Box<Problem>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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
        io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        io::ErrorKind::PermissionDenied => "no permission to read it; run this as root".to_owned(),
        io::ErrorKind::IsADirectory => "a folder, where a file is wanted".to_owned(),
        io::ErrorKind::NotADirectory => "a file, where a folder is wanted".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Problem { file: Some(path.to_owned()), text, ..Problem::default() }
}

fn missing_allowed(file: &Path, missing_file: bool) -> Problem {
    let text = if missing_file { "not there" } else { "vips.allowed is not set" };
    Problem {
        file: Some(file.to_owned()),
        text: text.to_owned(),
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
