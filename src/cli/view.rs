//! What `kvip plan` and `kvip explain` tell of: one derivation and its plan, of a folder or of this host's cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use figment::Figment;
use figment::providers::{Format as _, Toml};
use ipnet::IpNet;
use tokio::sync::watch;

use super::failure::Stuck;
use super::{daemon, waiting};
use crate::config::{self, Settings, Sources};
use crate::daemon::{Ledger, SNAPSHOT, settings};
use crate::derive::{self, Deriver, Desired, Inputs, Reach, Requests};
use crate::health::check::{Down, Target};
use crate::ipam::{Claim, Claims, Step, Wish};
use crate::ipvs::{Client, Table};
use crate::keepalived::place::{Disk, Place};
use crate::keepalived::{self, Carried, Paths};
use crate::marks::Marks;
use crate::model::{Family, Finding, Frontend, ObjectKey};
use crate::net::{self, HostFacts, hops, peers};
use crate::nft;
use crate::plan::{self, Have, Plan};
use crate::report::status::Status;
use crate::snapshot::admit::Update;
use crate::snapshot::feed::Contact;
use crate::snapshot::problem::Problem;
use crate::snapshot::{self, Snapshot, feed, saved};
use crate::{files, haproxy, kube_proxy};

/// How long the API server may take for a complete answer.
const CLUSTER_LIMIT: Duration = Duration::from_secs(30);
/// Host facts of a folder, beside its manifests.
const FOLDER_HOST: &str = "host.toml";

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
    /// The ConfigMap of VIPs.
    pub config_map: ObjectKey,
    /// Whether Services may ask by annotation.
    pub annotations: bool,
    /// The file that HAProxy would read; empty where it is not to run.
    pub haproxy_cfg: String,
    /// The file that it reads now.
    pub haproxy_now: String,
    /// The folder of manifests that all of it is of, where it is not this host's cluster.
    pub folder: Option<PathBuf>,
}

/// Plans for a folder by the settings of `sources`: an empty host unless the folder says otherwise, neither cluster nor root
/// needed.
pub(super) async fn of_folder(folder: &Path, sources: &Sources) -> anyhow::Result<View> {
    std::fs::read_dir(folder).with_context(|| format!("read the folder {}", folder.display()))?;
    let host = config::require(sources)?;
    let (snapshot, unread) = snapshot::files::load(folder, &host.alone().settings.cluster)?;
    let facts_file = folder.join(FOLDER_HOST);
    let facts = if facts_file.exists() { read_facts(&facts_file)? } else { this_host().await? };
    let heading =
        format!("from {} to host {}, as if nothing were there yet:", folder.display(), facts.hostname);
    let build = keepalived::Build { dbus: true };
    let loaded = settings::in_force(&host, snapshot.settings_text(), None).0;
    let (reach, down, dead) = (Reach::default(), Down::new(), BTreeSet::new());
    let (marks, foreign_marks) = (BTreeMap::new(), BTreeSet::new());
    let host = Known {
        facts: &facts,
        reach: &reach,
        dead: &dead,
        down: &down,
        marks: &marks,
        foreign_marks: &foreign_marks,
    };
    let mut view = view(heading, &loaded.settings, &snapshot, host, Table::new(), (Place::Main, None), build);
    view.findings.splice(..0, unread.into_iter().chain(loaded.findings));
    view.folder = Some(folder.to_owned());
    Ok(view)
}

fn read_facts(path: &Path) -> anyhow::Result<HostFacts> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let facts = Figment::from(Toml::string(&text)).extract().map(HostFacts::without_kube_proxys);
    facts.with_context(|| format!("understand {} as host facts", path.display()))
}

async fn this_host() -> anyhow::Result<HostFacts> {
    Ok(kube_proxy::read(net::read().await.context("read this host's network")?).await)
}

/// Plans for this host and its cluster.
pub(super) async fn of_cluster(sources: &Sources) -> anyhow::Result<View> {
    let host = config::require(sources)?;
    let paths = Paths::default();
    let facts = this_host().await?;
    let accepted = saved::load(&paths.state.join(SNAPSHOT)).ok().flatten().map(Update::saved);
    let (update, problem) = fetch(&host.alone().settings).await?;
    let snapshot = update.with_unread_of(accepted.as_ref()).snapshot;
    let owned = Ledger::new(&paths.state).load()?;
    let wanted = derive::vips_asked_for(&snapshot);
    let (table, all_marks) = Client::open()
        .and_then(|mut client| {
            let table = client.table(&|key| {
                owned.has(key) || key.frontend().is_some_and(|frontend| wanted.contains(&frontend.vip))
            })?;
            Ok((table, client.marks()?))
        })
        .context("read the kernel's IPVS table (as root)")?;
    let build = keepalived::binary::build().await.unwrap_or_default();
    let disk = Disk::read(&paths)?;
    let written = keepalived_file(&disk, &paths);
    let heading = format!("from the cluster to this host ({}):", facts.hostname);
    let loaded =
        settings::in_force(&host, snapshot.settings_text(), settings::last_good(&paths.state).as_deref()).0;
    let reach = reach(&loaded.settings, &snapshot, &facts).await?;
    // What only the daemon knows; without one nothing of it is.
    let status = daemon::ask().await.unwrap_or_default();
    let dead = status.dead_nodes.iter().cloned().collect();
    let marks = owned.marked.iter().copied().collect();
    let host = Known {
        facts: &facts,
        reach: &reach,
        dead: &dead,
        down: &Down::new(),
        marks: &marks,
        foreign_marks: &owned.foreign_marks(&all_marks),
    };
    let down = down(&status, || desired(&loaded.settings, &snapshot, host));
    let host = Known { down: &down, ..host };
    let mut view = view(heading, &loaded.settings, &snapshot, host, table, written, build);
    let held = status.cluster.held.map(|held| {
        Finding::new("cluster", format!("{held}; the daemon does nothing of this plan yet"))
            .mend("kvip accept")
    });
    view.findings.splice(..0, held.into_iter().chain(problem).chain(loaded.findings));
    view.haproxy_now = files::read(&haproxy::Paths::of(&paths.run).config)?.unwrap_or_default();
    Ok(view)
}

/// Which file for keepalived is kvip's to write, and what it says where kvip wrote it.
fn keepalived_file<'a>(disk: &'a Disk, paths: &Paths) -> (Place, Option<&'a str>) {
    let place = disk.place(paths);
    (place.unwrap_or(Place::Main), place.and_then(|place| disk.ours(place)))
}

/// A complete snapshot of the cluster, or of the folder in its place, and what of it cannot be read.
async fn fetch(settings: &Settings) -> anyhow::Result<(Update, Option<Finding>)> {
    let mut handles = feed::spawn(settings.cluster.clone());
    let contact = handles.contact.clone();
    let what = || match &contact.borrow().problem {
        Some(problem) => format!("reading the cluster: {problem}"),
        None => "reading the cluster".to_owned(),
    };
    let complete = complete(&mut handles.snapshots, &mut handles.contact);
    let complete = tokio::time::timeout(CLUSTER_LIMIT, complete);
    let update = waiting::tell(what, complete).await.ok().flatten();
    let problem = contact.borrow().problem.clone();
    match (update, problem) {
        (Some(update), problem) => Ok((update, problem.as_ref().map(Problem::finding))),
        (None, Some(problem)) => Err(Stuck { mend: problem.mend(), text: problem.to_string() }.into()),
        (None, None) => bail!("the cluster gave no complete answer within {} s", CLUSTER_LIMIT.as_secs()),
    }
}

/// The first complete snapshot; none where a problem is in the way for which it is of no use to wait.
async fn complete(
    snapshots: &mut watch::Receiver<Option<Update>>,
    contact: &mut watch::Receiver<Contact>,
) -> Option<Update> {
    let is_final = |contact: &Contact| contact.problem.as_ref().is_some_and(|problem| !problem.may_pass());
    tokio::select! {
        biased;
        update = snapshots.wait_for(Option::is_some) => update.ok().and_then(|update| update.clone()),
        _ = contact.wait_for(is_final) => None,
    }
}

/// What is known of the host and of other nodes.
#[derive(Clone, Copy)]
struct Known<'a> {
    facts: &'a HostFacts,
    reach: &'a Reach,
    /// Nodes that do not answer.
    dead: &'a BTreeSet<String>,
    /// Endpoints that do not answer their health checks.
    down: &'a Down,
    /// The marks that frontends have.
    marks: &'a BTreeMap<Frontend, Marks>,
    /// Marks by which others have virtual servers.
    foreign_marks: &'a BTreeSet<u32>,
}

/// What the daemon says of health checks, for those that are wanted.
fn down(status: &Status, wanted: impl FnOnce() -> Desired) -> Down {
    if status.failing_checks.is_empty() {
        return Down::new();
    }
    let failing: BTreeMap<_, _> =
        status.failing_checks.iter().map(|one| ((one.address, &*one.kind), &*one.found)).collect();
    let found = |target: &Target| failing.get(&(target.address, &*target.check.kind.to_string())).copied();
    let wanted = wanted();
    let targets = wanted.checked.counts().keys();
    targets.filter_map(|target| Some((target.clone(), Arc::from(found(target)?)))).collect()
}

fn view(
    heading: String,
    settings: &Settings,
    snapshot: &Snapshot,
    host: Known,
    mut table: Table,
    (place, current): (Place, Option<&str>),
    build: keepalived::Build,
) -> View {
    let (desired, facts) = (desired(settings, snapshot, host), host.facts);
    let keepalived = current.map(keepalived::carried_in).unwrap_or_default();
    let proxied = desired.haproxy.frontends.keys().copied().collect();
    let written = nft::Ruleset::default();
    plan::leave_to_others(&mut table, &desired, &written, None);
    let drained = plan::take_for_seen_to(&mut table, &desired);
    let have = Have {
        table: &table,
        haproxy: &proxied,
        facts,
        keepalived: &keepalived,
        written: &written,
        drained: &drained,
        refused: &BTreeSet::new(),
    };
    let plan = plan::plan(&desired, &have);
    let keepalived_conf = place.render(&desired.keepalived, &Paths::default(), build);
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
        config_map: settings.cluster.config_map.clone(),
        annotations: settings.asking.annotations,
        haproxy_cfg,
        haproxy_now: String::new(),
        folder: None,
    }
}

fn desired(settings: &Settings, snapshot: &Snapshot, host: Known) -> Desired {
    let Known { facts, reach, dead, down, marks, foreign_marks } = host;
    let leaving = derive::Leaving::new();
    let inputs =
        Inputs { settings, snapshot, facts, dead, leaving: &leaving, unhealthy: down, reach, foreign_marks };
    Deriver::keeping(marks.clone()).derive(&inputs).0
}

/// What modes in which answers go past the holder would find, where one is served.
async fn reach(settings: &Settings, snapshot: &Snapshot, facts: &HostFacts) -> anyhow::Result<Reach> {
    let (nowhere, nobody, none) = (Reach::default(), BTreeSet::new(), Down::new());
    let (marks, foreign_marks) = (BTreeMap::new(), BTreeSet::new());
    let host = Known {
        facts,
        reach: &nowhere,
        dead: &nobody,
        down: &none,
        marks: &marks,
        foreign_marks: &foreign_marks,
    };
    let first = desired(settings, snapshot, host);
    if !first.assignment.one_way {
        return Ok(Reach::default());
    }
    Ok(Reach {
        macs: peers::now().await.context("read this host's neighbours")?,
        hops: hops::ask(first.ways.counts()).await,
        firewall: nft::client::firewall().context("read other programs' rules")?,
    })
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

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
