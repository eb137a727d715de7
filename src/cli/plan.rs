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
use ipnet::IpNet;
use serde::Serialize;

use super::{Exit, Global, SettingsArgs, plan_haproxy, style};
use crate::config::{self, Settings, Sources};
use crate::daemon::{Ledger, settings};
use crate::derive::{self, Desired, Inputs, Requests, Served, Source};
use crate::health::check::Down;
use crate::ipam::{Claim, Claims, Step, Wish};
use crate::ipvs::{Client, Command, Key, Table};
use crate::keepalived::{self, Carried, Paths};
use crate::model::{Backend, Family, Finding, Frontend, Vrid};
use crate::net::peers::{self, Macs};
use crate::net::{self, HostFacts, PolicyRoute};
use crate::nft;
use crate::plan::{self, Have, Plan};
use crate::snapshot::{self, Snapshot, feed};
use crate::{files, haproxy};

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
    /// The haproxy.cfg.
    Haproxy,
}

/// All that a plan is made of and shown from.
#[derive(Debug)]
pub struct View {
    /// Where the cluster's state comes from and where it goes to, for the heading.
    pub heading: String,
    /// What should be.
    pub desired: Desired,
    /// What is not planned, and why.
    pub findings: Vec<Finding>,
    /// The changes.
    pub plan: Plan,
    /// The table as it is.
    pub table: Table,
    /// VIPs in the configuration that keepalived has.
    pub keepalived: Carried,
    /// Whether keepalived's file would change.
    pub reload: bool,
    /// The file that would be written.
    pub keepalived_conf: String,
    /// The cluster's state.
    pub snapshot: Snapshot,
    /// The host's network.
    pub facts: HostFacts,
    /// Where VIPs may come from.
    pub allowed: Vec<IpNet>,
    /// The file that HAProxy would read; empty where it is not to run.
    pub haproxy_cfg: String,
    /// The file that it reads now.
    pub haproxy_now: String,
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
        Some(Show::Nft) => nft::render(view.plan.ruleset.as_deref().unwrap_or(&view.desired.ruleset)),
        Some(Show::Haproxy) => view.haproxy_cfg.clone(),
        None if global.json => serde_json::to_string_pretty(&document(&view))? + "\n",
        None => text(&view),
    })?;
    Ok(if view.findings.is_empty() { Exit::Fine } else { Exit::Mend })
}

/// Plans for a folder: an empty host unless the folder says otherwise, neither cluster nor root needed.
pub(super) async fn of_folder(folder: &Path, sources: &Sources) -> anyhow::Result<View> {
    let own = folder.join(FOLDER_SETTINGS);
    let sources = if own.exists() {
        Sources { flags: sources.flags.clone(), ..Sources::of_file(own) }
    } else {
        sources.clone()
    };
    let host = config::require(&sources)?;
    let (snapshot, unread) = snapshot::files::load(folder, &host.alone().settings.cluster)?;
    let facts_file = folder.join(FOLDER_HOST);
    let facts = if facts_file.exists() {
        read_facts(&facts_file)?
    } else {
        net::read().await.context("read this host's network")?
    };
    let heading =
        format!("from {} to host {}, as if nothing were there yet:", folder.display(), facts.hostname);
    let build = keepalived::Build { dbus: true };
    let loaded = settings::in_force(&host, snapshot.settings_text(), None).0;
    let mut view =
        view(heading, &loaded.settings, &snapshot, (&facts, &Macs::new()), Table::new(), None, build);
    view.findings.splice(..0, unread.into_iter().chain(loaded.findings));
    Ok(view)
}

fn read_facts(path: &Path) -> anyhow::Result<HostFacts> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let facts = Figment::from(Toml::string(&text)).extract();
    facts.with_context(|| format!("understand {} as host facts", path.display()))
}

/// Plans for this host and its cluster.
pub(super) async fn of_cluster(sources: &Sources) -> anyhow::Result<View> {
    let host = config::require(sources)?;
    let paths = Paths::default();
    let facts = net::read().await.context("read this host's network")?;
    let snapshot = fetch(&host.alone().settings).await?;
    let owned = Ledger::new(&paths.state).load()?;
    let wanted = derive::vips_asked_for(&snapshot);
    let table = Client::open()
        .and_then(|mut client| {
            client.table(&|key| {
                owned.has(key) || key.frontend().is_some_and(|frontend| wanted.contains(&frontend.vip))
            })
        })
        .context("read the kernel's IPVS table (as root)")?;
    let macs = peers::now().await.context("read this host's neighbours")?;
    let build = keepalived::binary::build().await.unwrap_or_default();
    let current = current_configuration(&paths)?;
    let heading = format!("from the cluster to this host ({}):", facts.hostname);
    let loaded =
        settings::in_force(&host, snapshot.settings_text(), settings::last_good(&paths.state).as_deref()).0;
    let mut view =
        view(heading, &loaded.settings, &snapshot, (&facts, &macs), table, current.as_deref(), build);
    view.findings.splice(..0, loaded.findings);
    view.haproxy_now = files::read(&haproxy::Paths::of(&paths.run).config)?.unwrap_or_default();
    Ok(view)
}

/// The file of kvip's that keepalived has.
fn current_configuration(paths: &Paths) -> anyhow::Result<Option<String>> {
    let disk = keepalived::place::Disk::read(paths)?;
    Ok(disk.place(paths).and_then(|place| disk.ours(place)).map(str::to_owned))
}

/// A complete snapshot of the cluster, or of the folder in its place.
async fn fetch(settings: &Settings) -> anyhow::Result<Snapshot> {
    let mut handles = feed::spawn(settings.cluster.clone());
    let complete = handles.snapshots.wait_for(Option::is_some);
    match tokio::time::timeout(CLUSTER_LIMIT, complete).await {
        Ok(Ok(update)) => Ok((*update.as_ref().expect("waited for").snapshot).clone()),
        _ => match &handles.contact.borrow().problem {
            Some(problem) => {
                bail!("{problem}{}", problem.mend().map_or(String::new(), |mend| format!("\n  {mend}")))
            }
            None => bail!("the cluster gave no complete answer within {} s", CLUSTER_LIMIT.as_secs()),
        },
    }
}

fn view(
    heading: String,
    settings: &Settings,
    snapshot: &Snapshot,
    (facts, macs): (&HostFacts, &Macs),
    table: Table,
    current: Option<&str>,
    build: keepalived::Build,
) -> View {
    let (dead, leaving, unhealthy) = (BTreeSet::new(), derive::Leaving::new(), Down::new());
    let inputs =
        Inputs { settings, snapshot, facts, dead: &dead, leaving: &leaving, unhealthy: &unhealthy, macs };
    let desired = derive::derive(&inputs);
    let keepalived = current.map(keepalived::carried_in).unwrap_or_default();
    let (drained, proxied) = (BTreeSet::new(), desired.haproxy.frontends.keys().copied().collect());
    let have = Have {
        table: &table,
        haproxy: &proxied,
        facts,
        keepalived: &keepalived,
        written: &nft::Ruleset::default(),
        drained: &drained,
    };
    let plan = plan::plan(&desired, &have);
    let keepalived_conf = keepalived::render(&desired.keepalived, &Paths::default(), build);
    // Where keepalived has no file of kvip's, none is written for nothing.
    let nothing = desired.keepalived.instances.is_empty();
    let reload = current.map_or(!nothing, |current| current != keepalived_conf);
    let awaited = awaited(&desired.assignment.requests, &snapshot.claims);
    let unread = snapshot.skipped.values().flatten().cloned();
    let findings = unread.chain(desired.findings.iter().cloned()).chain(awaited).collect();
    let (snapshot, facts, allowed) = (snapshot.clone(), facts.clone(), settings.allowed.clone());
    let socket = haproxy::Paths::of(&Paths::default().run).socket;
    let runs = !desired.haproxy.frontends.is_empty();
    let haproxy_cfg = if runs { haproxy::render(&desired.haproxy, &socket) } else { String::new() };
    View {
        heading,
        desired,
        findings,
        plan,
        table,
        keepalived,
        reload,
        keepalived_conf,
        snapshot,
        facts,
        allowed,
        haproxy_cfg,
        haproxy_now: String::new(),
    }
}

/// What Services have not got yet: a plan changes nothing, so it gives no addresses either.
fn awaited(requests: &Requests, claims: &Claims) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (service, step) in &requests.pending {
        let wish = requests.of.get(service).map(|request| &request.wish);
        findings.extend(next_claim(step, wish, claims).map(|text| Finding::new(service, text)));
    }
    findings
}

/// What an allocator does next, where that changes the addresses of the Service.
fn next_claim(step: &Step, wish: Option<&Wish>, claims: &Claims) -> Option<String> {
    match step {
        // The second object of a claim is made beside its first.
        Step::Create(claim) if claims.at(claim.address).is_some() => None,
        Step::Create(claim) => Some(new_claim(claim, wish)),
        Step::Change { before, after } if after.users.len() > before.users.len() => {
            let others: Vec<String> = before.users.iter().map(|user| user.service.to_string()).collect();
            let others = others.join(", ");
            Some(format!("it does not share {} with {others} yet: an allocator adds it", after.address))
        }
        Step::Change { before, after } => match (before.released, after.released) {
            (Some(_), None) => {
                Some(format!("it has not got {} back yet: an allocator claims it again", after.address))
            }
            (None, Some(_)) => {
                Some(format!("it is to give {} back: an allocator lets the address rest", after.address))
            }
            _ => None,
        },
        Step::Delete(_) | Step::Done(_) => None,
    }
}

fn new_claim(claim: &Claim, wish: Option<&Wish>) -> String {
    let Claim { address, pool, .. } = claim;
    match (wish, pool) {
        (Some(Wish::Addresses(named)), _) if named.contains(address) => {
            format!("it has not got {address} yet: an allocator claims it")
        }
        (_, Some(pool)) => {
            let family = Family::of(*address).number();
            format!("it has no IPv{family} address of pool {pool} yet: an allocator claims one")
        }
        (_, None) => "it has no address yet: an allocator claims one".into(),
    }
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
        why: "mode dsr".into(),
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

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
