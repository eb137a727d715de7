//! `kvip plan`: what kvip would change now, or what it would make of a folder of manifests, and why not.
//!
//! Changes nothing. Everything that is printed is made by pure functions from a [`View`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use figment::Figment;
use figment::providers::{Format as _, Toml};
use serde::Serialize;

use super::{Exit, Global, SettingsArgs, style};
use crate::config::{self, Settings, Sources};
use crate::daemon::Ledger;
use crate::derive::{self, Desired, Inputs};
use crate::ipvs::{Client, Command, Table};
use crate::keepalived::{self, Paths};
use crate::model::{Backend, Finding, Frontend};
use crate::net::{self, HostFacts};
use crate::nft;
use crate::plan::{self, Have, Plan};
use crate::snapshot::{Snapshot, files, kube};

/// How long the API server may take for a complete answer.
const CLUSTER_LIMIT: Duration = Duration::from_secs(30);
/// Settings and host facts of a folder, beside its manifests.
const FOLDER_SETTINGS: &str = "config.toml";
const FOLDER_HOST: &str = "host.toml";

/// Arguments of `kvip plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of manifests to plan for instead of the cluster; its config.toml and host.toml, if there, stand for the
    /// settings and this host.
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
}

/// All that a plan is made of and shown from.
#[derive(Debug)]
pub struct View {
    /// Where the cluster's state comes from and where it goes to, for the heading.
    pub heading: String,
    /// What should be.
    pub desired: Desired,
    /// The changes.
    pub plan: Plan,
    /// The table as it is.
    pub table: Table,
    /// VIPs in the configuration that keepalived has.
    pub keepalived: BTreeSet<IpAddr>,
    /// Whether keepalived's file would change.
    pub reload: bool,
    /// The file that would be written.
    pub keepalived_conf: String,
}

/// Runs `kvip plan`.
///
/// # Errors
/// When the settings are wrong, or cluster, folder or host cannot be read.
pub async fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let sources = &args.settings.sources(global);
    let view = match &args.folder {
        Some(folder) => of_folder(folder, sources).await?,
        None => of_cluster(sources).await?,
    };
    style::print(&match args.show {
        Some(Show::Keepalived) => view.keepalived_conf.clone(),
        Some(Show::Nft) => nft::render(&view.plan.ruleset),
        None if global.json => serde_json::to_string_pretty(&document(&view))? + "\n",
        None => text(&view),
    })?;
    Ok(if view.desired.findings.is_empty() { Exit::Fine } else { Exit::Mend })
}

/// Plans for a folder: an empty host unless the folder says otherwise, neither cluster nor root needed.
async fn of_folder(folder: &Path, sources: &Sources) -> anyhow::Result<View> {
    let own = folder.join(FOLDER_SETTINGS);
    let sources = if own.exists() {
        Sources { flags: sources.flags.clone(), ..Sources::of_file(own) }
    } else {
        sources.clone()
    };
    let settings = config::require(&sources)?;
    let (snapshot, mut findings) = files::load(folder, &settings.cluster.config_map)?;
    let host = folder.join(FOLDER_HOST);
    let facts = if host.exists() {
        read_facts(&host)?
    } else {
        net::read().await.context("read this host's network")?
    };
    let heading =
        format!("from {} to host {}, as if nothing were there yet:", folder.display(), facts.hostname);
    let mut view =
        view(heading, &settings, &snapshot, &facts, Table::new(), None, keepalived::Build { dbus: true });
    findings.append(&mut view.desired.findings);
    view.desired.findings = findings;
    Ok(view)
}

fn read_facts(path: &Path) -> anyhow::Result<HostFacts> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let facts = Figment::from(Toml::string(&text)).extract();
    facts.with_context(|| format!("understand {} as host facts", path.display()))
}

/// Plans for this host and its cluster.
async fn of_cluster(sources: &Sources) -> anyhow::Result<View> {
    let settings = config::require(sources)?;
    let paths = Paths::default();
    let facts = net::read().await.context("read this host's network")?;
    let snapshot = fetch(&settings).await?;
    let owned = Ledger::new(&paths.state).load()?;
    let wanted = derive::vips_asked_for(&snapshot);
    let table = Client::open()
        .and_then(|mut client| {
            client.table(&|frontend| owned.contains(&frontend.vip) || wanted.contains(&frontend.vip))
        })
        .context("read the kernel's IPVS table (as root)")?;
    let build = keepalived::binary::build().await.unwrap_or_default();
    let current = current_configuration(&paths)?;
    let heading = format!("from the cluster to this host ({}):", facts.hostname);
    Ok(view(heading, &settings, &snapshot, &facts, table, current.as_deref(), build))
}

/// The file of kvip's that keepalived has.
fn current_configuration(paths: &Paths) -> anyhow::Result<Option<String>> {
    let disk = keepalived::place::Disk::read(paths)?;
    Ok(disk.place(paths).and_then(|place| disk.ours(place)).map(str::to_owned))
}

/// A complete snapshot from the API server.
async fn fetch(settings: &Settings) -> anyhow::Result<Snapshot> {
    let mut handles = kube::spawn(settings.cluster.clone());
    let complete = handles.snapshots.wait_for(Option::is_some);
    match tokio::time::timeout(CLUSTER_LIMIT, complete).await {
        Ok(Ok(update)) => Ok((*update.as_ref().expect("waited for").snapshot).clone()),
        _ => match &handles.contact.borrow().problem {
            Some(problem) => {
                bail!("{problem}{}", problem.mend().map_or(String::new(), |mend| format!("\n  {mend}")))
            }
            None => bail!("the API server gave no complete answer within {} s", CLUSTER_LIMIT.as_secs()),
        },
    }
}

fn view(
    heading: String,
    settings: &Settings,
    snapshot: &Snapshot,
    facts: &HostFacts,
    table: Table,
    current: Option<&str>,
    build: keepalived::Build,
) -> View {
    let (dead, leaving) = (BTreeSet::new(), BTreeSet::new());
    let desired = derive::derive(&Inputs { settings, snapshot, facts, dead: &dead, leaving: &leaving });
    let keepalived = current.map(keepalived::vips_in).unwrap_or_default();
    let drained = BTreeSet::new();
    let have = Have { table: &table, facts, keepalived: &keepalived, drained: &drained };
    let plan = plan::plan(&desired, &have);
    let keepalived_conf = keepalived::render(&desired.keepalived, &Paths::default(), build);
    let reload = current != Some(keepalived_conf.as_str());
    View { heading, desired, plan, table, keepalived, reload, keepalived_conf }
}

/// One line of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `+`, `~` or `-`.
    pub sign: char,
    /// `virtual server`, `real server` or `VIP`.
    pub kind: &'static str,
    /// What changes, and to what.
    pub what: String,
    /// On whose behalf, or why.
    pub why: String,
}

/// The plan for programs.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    schema: u32,
    changes: Vec<Change>,
    keepalived_reload: bool,
    unchanged_virtual_servers: usize,
    findings: &'a [Finding],
}

/// The plan as a document.
pub fn document(view: &View) -> Document<'_> {
    Document {
        schema: 1,
        changes: changes(view),
        keepalived_reload: view.reload,
        unchanged_virtual_servers: unchanged(view),
        findings: &view.desired.findings,
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
    text.push_str(&not_planned(&view.desired.findings));
    let ipvs = view.plan.prepare.len() + view.plan.retire.len();
    let reload = if view.reload { "a keepalived reload" } else { "no keepalived reload" };
    let ipvs = style::count(ipvs, "change");
    let _ = writeln!(
        text,
        "\n{ipvs} to IPVS, {reload}. `--show keepalived` prints the file, `--show nft` the rules."
    );
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
    let changed: BTreeSet<&Frontend> =
        view.plan.prepare.iter().chain(&view.plan.retire).map(Command::frontend).collect();
    view.table.keys().filter(|frontend| !changed.contains(frontend)).count()
}

/// The changes, each frontend's together, VIPs last.
fn changes(view: &View) -> Vec<Change> {
    let mut by_frontend: BTreeMap<&Frontend, Vec<Change>> = BTreeMap::new();
    for command in view.plan.prepare.iter().chain(&view.plan.retire) {
        by_frontend.entry(command.frontend()).or_default().push(change(view, command));
    }
    let mut all: Vec<Change> = by_frontend.into_values().flatten().collect();
    all.extend(vip_changes(view));
    all
}

fn change(view: &View, command: &Command) -> Change {
    let why = |frontend: &Frontend| {
        view.desired
            .frontends
            .get(frontend)
            .map_or_else(String::new, |served| format!("{} via ConfigMap", served.service))
    };
    let server = |sign, frontend: &Frontend, what: String| Change {
        sign,
        kind: "virtual server",
        what,
        why: why(frontend),
    };
    let real = |sign, what: String, why: &str| Change { sign, kind: "real server", what, why: why.into() };
    let weight = |frontend: &Frontend, backend: &Backend| {
        view.table
            .get(frontend)
            .and_then(|server| server.real_servers.get(backend))
            .map_or(0, |here| here.weight)
    };
    match command {
        Command::NewService(frontend, service) => server('+', frontend, format!("{frontend} {service} nat")),
        Command::SetService(frontend, service) => server('~', frontend, format!("{frontend} {service} nat")),
        Command::DelService(frontend) => server('-', frontend, frontend.to_string()),
        Command::NewDest(_, backend, wanted) => real('+', format!("{backend} {wanted}"), ""),
        Command::SetDest(frontend, backend, wanted) => {
            let why = if wanted.weight == 0 { "terminating: draining" } else { "" };
            real('~', format!("{backend} weight {} -> {}", weight(frontend, backend), wanted.weight), why)
        }
        Command::DelDest(_, backend) => real('-', backend.to_string(), "not an endpoint any more"),
    }
}

fn vip_changes(view: &View) -> impl Iterator<Item = Change> {
    let change = |sign, vip: &IpAddr| Change {
        sign,
        kind: "VIP",
        what: format!("{vip} in group vips"),
        why: "keepalived reload".into(),
    };
    // What this host's keepalived shall carry: nothing on a host that is no member or lacks the interface.
    let wanted: BTreeSet<IpAddr> =
        view.desired.keepalived.instances.iter().flat_map(|instance| &instance.vips).copied().collect();
    let came: Vec<_> = wanted.difference(&view.keepalived).map(|vip| change('+', vip)).collect();
    let went: Vec<_> = view.keepalived.difference(&wanted).map(|vip| change('-', vip)).collect();
    came.into_iter().chain(went)
}
