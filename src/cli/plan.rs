//! `kvip plan`: what kvip would change now, or what it would make of a folder of manifests, and why not.
//!
//! Changes nothing. Everything that is printed is made by pure functions from a [`View`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::view::{View, of_cluster, of_folder};
use super::{Exit, Global, SettingsArgs, plan_haproxy, style};
use crate::derive::{Served, Source};
use crate::ipvs::{Command, Key};
use crate::keepalived::Carried;
use crate::model::{Backend, Finding, Frontend, Vrid};
use crate::net::PolicyRoute;
use crate::nft;

/// The document's shape; its number rises when a field changes its meaning or goes.
const SCHEMA: &str = "kvip.plan.v1";
/// That of what `--show` prints.
const TEXT_SCHEMA: &str = "kvip.plan.text.v1";

/// Arguments of `kvip plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of manifests to plan for instead of the cluster; its config.toml and host.toml, if there, stand for the
    /// settings (unless --config names others) and this host.
    pub folder: Option<PathBuf>,
    /// Print the file or the rules that would be written instead of the changes.
    #[arg(long)]
    pub show: Option<Show>,
    /// A setting that wins over files and environment.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// What `--show` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Show {
    /// The keepalived.conf.
    Keepalived,
    /// The nftables table.
    Nft,
    /// The haproxy.cfg.
    Haproxy,
}

/// Runs `kvip plan`.
///
/// # Errors
/// When the settings are wrong, or cluster, folder or host cannot be read.
pub async fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let view = of(args, global).await?;
    let shown = args.show.map(|show| shown(&view, show));
    style::print(&match shown {
        Some(text) if global.json => {
            serde_json::to_string_pretty(&Text { schema: TEXT_SCHEMA, text })? + "\n"
        }
        Some(text) => text,
        None if global.json => serde_json::to_string_pretty(&document(&view))? + "\n",
        None => text(&view),
    })?;
    Ok(if view.findings.is_empty() { Exit::Fine } else { Exit::Mend })
}

async fn of(args: &Args, global: &Global) -> anyhow::Result<View> {
    match &args.folder {
        Some(folder) => of_folder(folder, &args.settings.sources_for(folder, global)).await,
        None => of_cluster(&args.settings.sources(global)).await,
    }
}

/// The file or the rules that would be written.
fn shown(view: &View, show: Show) -> String {
    match show {
        Show::Keepalived => view.keepalived_conf.clone(),
        Show::Nft => nft::render(view.plan.ruleset.as_deref().unwrap_or(&view.desired.ruleset)),
        Show::Haproxy => view.haproxy_cfg.clone(),
    }
}

/// What `--show` prints, for programs.
#[derive(Debug, Serialize)]
struct Text {
    schema: &'static str,
    text: String,
}

/// One line of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `+`, `~` or `-`.
    pub sign: char,
    /// `virtual server`, `real server`, `routing`, `proxy` or `VIP`.
    pub kind: &'static str,
    /// What changes, and to what.
    pub what: String,
    /// On whose behalf, or why.
    pub why: String,
}

/// The plan for programs.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    schema: &'static str,
    changes: Vec<Change>,
    keepalived_reload: bool,
    unchanged_virtual_servers: usize,
    findings: &'a [Finding],
}

/// The plan as a document.
pub fn document(view: &View) -> Document<'_> {
    Document {
        schema: SCHEMA,
        changes: changes(view),
        keepalived_reload: view.reload,
        unchanged_virtual_servers: unchanged(view),
        findings: &view.findings,
    }
}

/// The plan for people.
pub fn text(view: &View) -> String {
    let changes = changes(view);
    let row = |change: &Change| {
        let indent = if change.kind == "real server" { "  " } else { "" };
        vec![format!("{} {indent}{}", change.sign, change.kind), change.what.clone(), change.why.clone()]
    };
    let mut text =
        format!("{}\n\n{}", view.heading, style::table(&changes.iter().map(row).collect::<Vec<_>>()));
    if unchanged(view) > 0 {
        let _ = writeln!(text, "= {} unchanged", style::count(unchanged(view), "virtual server"));
    }
    text.push_str(&not_planned(&view.findings));
    let ipvs = view.plan.prepare.len() + view.plan.retire.len();
    let reload = if view.reload { "a keepalived reload" } else { "no keepalived reload" };
    let ipvs = style::count(ipvs, "change");
    let _ = writeln!(
        text,
        "\n{ipvs} to IPVS, {reload}. `--show keepalived` prints the file, `--show nft` the rules."
    );
    if !view.haproxy_cfg.is_empty() {
        text.push_str("`--show haproxy` prints what HAProxy reads.\n");
    }
    text
}

fn not_planned(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = findings.iter().flat_map(super::finding_rows).collect();
    format!("not planned\n{}", style::indent(&style::table(&rows), 2))
}

fn unchanged(view: &View) -> usize {
    let changed: BTreeSet<&Key> =
        view.plan.prepare.iter().chain(&view.plan.retire).map(Command::key).collect();
    view.table.keys().filter(|key| !changed.contains(key)).count()
}

/// The changes, each virtual server's together and those of one frontend in a row, then rules and routes, VIPs last.
fn changes(view: &View) -> Vec<Change> {
    let served_by = served_by(view);
    let place = |key: &Key| (served_by.get(key).map(|(frontend, _)| **frontend), *key);
    let mut by_server: BTreeMap<_, Vec<Change>> = BTreeMap::new();
    for command in view.plan.prepare.iter().chain(&view.plan.retire) {
        by_server.entry(place(command.key())).or_default().push(change(view, &served_by, command));
    }
    let mut all: Vec<Change> = by_server.into_values().flatten().collect();
    let route = |sign, route: &PolicyRoute| Change {
        sign,
        kind: "routing",
        what: route.to_string(),
        why: "packets steered into this host".into(),
    };
    all.extend(view.plan.routes.iter().map(|one| route('+', one)));
    all.extend(view.plan.old_routes.iter().map(|one| route('-', one)));
    all.extend(plan_haproxy::changes(view));
    all.extend(vip_changes(view));
    all
}

/// The frontend behind each virtual server.
fn served_by(view: &View) -> BTreeMap<Key, (&Frontend, &Served)> {
    let served = view.desired.frontends.iter();
    served
        .flat_map(|(frontend, served)| {
            served.virtual_servers.iter().map(move |balanced| (balanced.key, (frontend, &**served)))
        })
        .collect()
}

/// On whose behalf a frontend is served, and how that is asked for.
pub(super) fn asked(served: &Served) -> String {
    let check = served.check.as_ref().map_or_else(String::new, |check| format!(", {} check", check.kind));
    match served.source {
        Source::Static => format!("{}{check}", served.owner),
        source => format!("{} via {source}{check}", served.owner),
    }
}

fn change(view: &View, served_by: &BTreeMap<Key, (&Frontend, &Served)>, command: &Command) -> Change {
    let served = served_by.get(command.key());
    let virtual_server = |sign, what: String| Change {
        sign,
        kind: "virtual server",
        what,
        why: served.map_or_else(String::new, |(_, served)| asked(served)),
    };
    let mode = served.map_or("nat", |(_, served)| served.mode.name());
    let real = |sign, what: String, why: &str| Change { sign, kind: "real server", what, why: why.into() };
    let weight = |key: &Key, backend: &Backend| {
        let here = view.table.get(key).and_then(|server| server.real_servers.get(backend));
        here.map(|here| here.weight)
    };
    match command {
        Command::NewService(key, service) => virtual_server('+', format!("{key} {service} {mode}")),
        Command::SetService(key, service) => virtual_server('~', format!("{key} {service} {mode}")),
        Command::DelService(key) => virtual_server('-', key.to_string()),
        Command::NewDest(_, backend, wanted) => real('+', format!("{backend} {wanted}"), ""),
        Command::SetDest(key, backend, wanted) => {
            let why = if wanted.weight == 0 { "no new connections" } else { "" };
            let before = weight(key, backend).map_or(String::new(), |weight| format!("{weight} -> "));
            real('~', format!("{backend} weight {before}{}", wanted.weight), why)
        }
        Command::DelDest(_, backend) => real('-', backend.to_string(), "not an endpoint any more"),
    }
}

/// VIPs that come and go, each in its group; one that moves between groups does both.
fn vip_changes(view: &View) -> impl Iterator<Item = Change> {
    let groups = &view.desired.groups;
    let named =
        |vrid: Vrid| groups.iter().find(|(_, group)| group.vrid == vrid).map(|(name, _)| name.clone());
    let change = |sign, (vip, vrid): &(IpAddr, Vrid)| Change {
        sign,
        kind: "VIP",
        what: format!("{vip} in group {}", named(*vrid).unwrap_or_else(|| format!("of VRID {vrid}"))),
        why: "keepalived reload".into(),
    };
    // What this host's keepalived shall carry: nothing on a host that is no member or lacks the interface.
    let instances = view.desired.keepalived.instances.iter();
    let wanted =
        instances.map(|instance| (instance.vrid, instance.vips.clone())).collect::<Carried>().pairs();
    let current = view.keepalived.pairs();
    let came: Vec<_> = wanted.difference(&current).map(|pair| change('+', pair)).collect();
    let went: Vec<_> = current.difference(&wanted).map(|pair| change('-', pair)).collect();
    came.into_iter().chain(went)
}
