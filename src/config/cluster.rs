//! The settings that are the cluster's: one ConfigMap, below what each host says.
//!
//! Pure, so that all nodes that see the same ConfigMap and have the same files decide the same. A mistake in the ConfigMap
//! reaches all nodes at once; so it never stops kvip: what is wrong is left out and told, and a text with a mistake in
//! `vips.allowed`, which would take VIPs away, is not used at all.

use std::path::Path;

use super::error::Problem;
use super::layer::Layer;
use super::load::ALLOWED_MEND;
use super::prune::prune;
use super::raw::Merged;
use super::{HostLayers, Loaded, Settings, sections, values};
use crate::model::{Finding, ObjectKey};

/// The key of the ConfigMap's data that holds the settings.
pub const CLUSTER_KEY: &str = "config.toml";

/// A text of the ConfigMap that cannot be used at all, and why. The caller goes on with the last one that could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// What is wrong, to be told as long as the ConfigMap says so.
    pub findings: Vec<Finding>,
}

/// All settings in force: defaults, over them `text`, which is what the ConfigMap says (`None` where there is none),
/// over that this host's files, environment and flags.
///
/// What is wrong in the ConfigMap is left out and is a finding: a value, for which then the default counts, or one table
/// of a list. So is a table of this host's that the ConfigMap makes wrong, as a pool that is not allowed any more.
///
/// # Errors
/// When `text` is no TOML, or anything is wrong in its `[vips]`, one network of several as well: without it all VIPs that lie
/// there would go. So too when it leaves nothing allowed and names what is no setting, as that may be a misspelt `[vips]`.
/// A host whose own files say what is allowed refuses it as well, so that all nodes go on with the same settings.
pub fn with_cluster(host: &HostLayers, text: Option<&str>) -> Result<Loaded, Unusable> {
    let Some(text) = text else { return Ok(host.alone()) };
    let place = place(&settings_map(host));
    let mut layer = Layer::cluster(&place, text).map_err(|problem| unusable(&[*problem]))?;
    let wrong = wrong_networks(host, &layer, Path::new(&place));
    if !wrong.is_empty() {
        return Err(unusable(&wrong));
    }
    let unknown = prune(&mut layer);
    let loaded = combined(host, Some(&layer), unknown.clone());
    if loaded.settings.allowed.is_empty() && !unknown.is_empty() {
        return Err(unusable(&unknown));
    }
    Ok(loaded)
}

/// That no VIP is allowed, where that is so: kvip runs, waits for the cluster's settings, and serves nothing.
///
/// A host's file without `vips.allowed` is no error, as the ConfigMap may set it; but most who leave it out forgot it. So
/// `kvip check`, which asks no cluster, says this as something to mend, `kvip` alone as the next step, and `kvip run` as a
/// warning at its start and a finding for as long as it is so.
pub fn nothing_allowed(settings: &Settings, file: &Path) -> Option<Finding> {
    settings.allowed.is_empty().then(|| {
        let text = format!(
            "not set, so no VIP is served until {} or ConfigMap {} sets it",
            file.display(),
            settings.cluster.settings_map
        );
        Finding::new("vips.allowed", text).mend(format!("in {}, {ALLOWED_MEND}", file.display()))
    })
}

/// The settings of all layers, with `cluster` below the host's.
pub(super) fn combined(host: &HostLayers, cluster: Option<&Layer>, mut problems: Vec<Problem>) -> Loaded {
    let defaults = Layer::defaults();
    let layers = std::iter::once(&defaults).chain(cluster).chain(&host.layers);
    let mut merged = Merged::new(layers.collect());
    let settings = sections::settings(&mut merged, true);
    problems.append(&mut merged.problems);
    let mut findings: Vec<Finding> = nothing_allowed(&settings, &host.file).into_iter().collect();
    problems.sort_by_key(|problem| (problem.file.clone(), problem.line));
    findings.extend(problems.iter().map(Problem::finding));
    findings.append(&mut merged.disagreements);
    Loaded { settings, origins: merged.origins, findings }
}

/// What is wrong in the section of `cluster` that says which VIPs are allowed, whether it counts on this host or not.
fn wrong_networks(host: &HostLayers, cluster: &Layer, place: &Path) -> Vec<Problem> {
    let mut networks = cluster.clone();
    networks.dict.retain(|name, _| name == "vips");
    let mut problems = prune(&mut networks);
    let defaults = Layer::defaults();
    // Above the host's layers, all of it is read.
    let layers = std::iter::once(&defaults).chain(&host.layers).chain([&networks]);
    let mut merged = Merged::new(layers.collect());
    sections::settings(&mut merged, true);
    problems.append(&mut merged.problems);
    problems.retain(|problem| problem.file.as_deref() == Some(place));
    problems
}

/// The ConfigMap that this host reads the cluster's settings from.
fn settings_map(host: &HostLayers) -> ObjectKey {
    let defaults = Layer::defaults();
    let mut merged = Merged::new(std::iter::once(&defaults).chain(&host.layers).collect());
    merged.read("cluster.settings_map", values::object_key)
}

/// What the ConfigMap's text is called where a file's path would stand.
fn place(settings_map: &ObjectKey) -> String {
    format!("ConfigMap {settings_map}, key {CLUSTER_KEY}")
}

fn unusable(problems: &[Problem]) -> Unusable {
    let kept = |problem: &Problem| {
        let mut finding = problem.finding();
        finding.text.push_str("; the last good settings of the cluster stay");
        finding
    };
    Unusable { findings: problems.iter().map(kept).collect() }
}
