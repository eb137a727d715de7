//! `kvip explain`: why a Service or a VIP is, or is not, served on this node, link by link.
//!
//! Changes nothing. The chain goes from the object over address, VRRP group and host to the balancer's real servers; what
//! is broken stands below it, with what to type. Everything that is printed is made by pure functions from a [`View`]
//! and what the running daemon says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use super::view::{self, View};
use super::{Exit, Global, SettingsArgs, finding_rows, status, style};
use crate::daemon::SOCKET;
use crate::derive::{Owner, Served, WantedServer};
use crate::ipvs::Key;
use crate::keepalived::Paths;
use crate::model::{Backend, Family, Finding, Frontend, ObjectKey};
use crate::report::status::{Status, ask};

/// The name of the JSON form.
const SCHEMA: &str = "kvip.explain.v1";

/// Arguments of `kvip explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A Service as namespace/name, or a VIP
    #[arg(value_parser = subject)]
    subject: Subject,
    /// A folder of manifests to explain from instead of the cluster, as for `kvip plan`
    folder: Option<PathBuf>,
    /// A setting that wins over files and environment.
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What is to be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Service(ObjectKey),
    Vip(IpAddr),
}

/// Reads a subject as people copy it: a Service also with the port and the method of an entry of the ConfigMap, a VIP also as
/// the ConfigMap's key, with a port or as a network of one address.
fn subject(text: &str) -> Result<Subject, String> {
    let text = text.trim();
    let (first, rest) = text.split_once('/').unwrap_or((text, ""));
    if let Some(vip) = vip(first) {
        let whole = if vip.is_ipv4() { "32" } else { "128" };
        let is_one = first == text || rest == whole;
        return is_one.then_some(Subject::Vip(vip)).ok_or_else(|| format!("a VIP is one address, as {vip}"));
    }
    if first.contains('.') && first.chars().all(|c| c.is_ascii_digit() || c == '.') {
        let number = "an IPv4 address is four numbers from 0 to 255, without zeros before them, and an IPv6 one fd00::50";
        return Err(format!("{first} is no address: {number}"));
    }
    let service = text.split_once(':').map_or(text, |(service, _)| service);
    ObjectKey::parse(service).map(Subject::Service).ok_or_else(|| {
        "a Service is written namespace/name, as in default/nginx, and a VIP 10.87.2.50 or fd00::50"
            .to_owned()
    })
}

/// An address, also with `-` for `:`, which no key of a ConfigMap may hold, or with a port behind it.
fn vip(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|frontend| frontend.ip());
    let as_key = || text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    text.parse().ok().or_else(as_key).or_else(with_port)
}

/// An explanation; its JSON form is this.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Explanation {
    schema: &'static str,
    /// Whether some frontend has a real server that gets connections.
    served: bool,
    /// The answer in one line.
    answer: String,
    /// The links of the chain that are there, in their order.
    links: Vec<Link>,
    /// What is broken, or not as asked.
    findings: Vec<Finding>,
}

/// One link of the chain.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Link {
    /// `object`, `address`, `group`, `host` or `balancer`.
    name: &'static str,
    /// What it is.
    text: String,
    /// The real servers of a balancer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    servers: Vec<Server>,
}

/// A real server.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Server {
    address: String,
    /// `serves` or `drains`.
    state: &'static str,
    /// Its share of the connections.
    weight: u32,
    /// As the kernel counts them; `None` where it does not have this real server.
    connections: Option<u32>,
    /// The node of its pod.
    node: Option<String>,
}

/// Runs `kvip explain`: 0 when all about the subject is as it should be, 1 when there is something to mend.
///
/// # Errors
/// When the settings are wrong, or cluster, folder or host cannot be read.
pub async fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let (view, here) = of(args, global).await?;
    let explanation = explain(&view, here.as_ref(), &args.subject);
    style::print(&if global.json {
        serde_json::to_string_pretty(&explanation)? + "\n"
    } else {
        text(&explanation)
    })?;
    Ok(if explanation.findings.is_empty() { Exit::Fine } else { Exit::Mend })
}

async fn of(args: &Args, global: &Global) -> anyhow::Result<(View, Option<Here>)> {
    Ok(match &args.folder {
        Some(folder) => (view::of_folder(folder, &args.settings.sources_for(folder, global)).await?, None),
        None => (view::of_cluster(&args.settings.sources(global)).await?, Some(Here::ask().await)),
    })
}

/// This host, as far as the running daemon tells it.
#[derive(Debug, Default)]
struct Here {
    status: Option<Status>,
    /// The nodes that hold the VIPs that are not here.
    holders: BTreeMap<IpAddr, String>,
}

impl Here {
    async fn ask() -> Self {
        let Ok(status) = ask(&Paths::default().run.join(SOCKET)).await else { return Self::default() };
        Self { holders: status::holders(&status).await, status: Some(status) }
    }
}

/// The frontends that the subject is about, with what serves them.
type Frontends<'a> = BTreeMap<Frontend, &'a Served>;

fn explain(view: &View, here: Option<&Here>, subject: &Subject) -> Explanation {
    let all = view.desired.frontends.iter().map(|(frontend, served)| (*frontend, &**served));
    let frontends: Frontends = match subject {
        Subject::Service(key) => {
            all.filter(|(_, served)| served.owner == Owner::Service(key.clone())).collect()
        }
        Subject::Vip(vip) => all.filter(|(frontend, _)| frontend.vip == *vip).collect(),
    };
    let mut vips: BTreeSet<IpAddr> = frontends.keys().map(|frontend| frontend.vip).collect();
    if let Subject::Vip(vip) = subject {
        vips.extend(view.desired.vips.contains_key(vip).then_some(*vip));
    }
    let mut links: Vec<Link> =
        services(subject, &frontends).iter().filter_map(|key| object(view, key)).collect();
    for vip in &vips {
        links.extend(address(view, *vip, &frontends));
        links.extend(group(view, *vip));
        links.extend(here.map(|here| host(view, here, *vip)));
        let of_vip = frontends.iter().filter(|(frontend, _)| frontend.vip == *vip);
        links.extend(of_vip.map(|(frontend, served)| balancer(view, *frontend, served)));
    }
    Explanation {
        schema: SCHEMA,
        served: frontends.values().any(|served| served.active() > 0),
        answer: answer(subject, &frontends, &vips),
        links,
        findings: findings(view, here, subject, &frontends, &vips),
    }
}

/// The Services that the subject is about.
fn services(subject: &Subject, frontends: &Frontends) -> BTreeSet<ObjectKey> {
    let owners = frontends.values().filter_map(|served| match &served.owner {
        Owner::Service(key) => Some(key.clone()),
        Owner::Static(_) => None,
    });
    let named = match subject {
        Subject::Service(key) => Some(key.clone()),
        Subject::Vip(_) => None,
    };
    owners.chain(named).collect()
}

fn answer(subject: &Subject, frontends: &Frontends, vips: &BTreeSet<IpAddr>) -> String {
    let whose: BTreeSet<String> = frontends.values().map(|served| served.owner.to_string()).collect();
    let sources: BTreeSet<_> = frontends.values().map(|served| served.source).collect();
    let serves = frontends.values().any(|served| served.active() > 0);
    match subject {
        Subject::Service(key) if frontends.is_empty() => format!("{key} is not served"),
        Subject::Service(key) => {
            let verb = if serves { "is served at" } else { "refuses connections at" };
            format!("{key} {verb} {}, asked for by {}", list(vips), list(sources))
        }
        Subject::Vip(vip) if vips.is_empty() => format!("{vip} is no VIP"),
        Subject::Vip(vip) if frontends.is_empty() => format!("{vip} is a VIP, and nothing is balanced on it"),
        Subject::Vip(vip) => {
            let verb = if serves { "serves" } else { "refuses connections to" };
            format!("{vip} {verb} {}, asked for by {}", list(whose), list(sources))
        }
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn link(name: &'static str, text: String) -> Link {
    Link { name, text, servers: Vec::new() }
}

fn object(view: &View, key: &ObjectKey) -> Option<Link> {
    let service = view.snapshot.services.get(key)?;
    let ports = service.ports.iter().map(|port| {
        let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
        format!("{name}{} {}", port.protocol, port.port)
    });
    let slices: Vec<_> = view.snapshot.slices.values().filter(|slice| slice.service == *key).collect();
    let endpoints = || slices.iter().flat_map(|slice| &slice.endpoints);
    let text = format!(
        "Service {key}, port {}, {}, {}, {} ready",
        list(ports),
        style::count(slices.len(), "EndpointSlice"),
        style::count(endpoints().count(), "endpoint"),
        endpoints().filter(|endpoint| endpoint.ready).count()
    );
    Some(link("object", text))
}

/// The address with its range, and its pool where it is one's.
fn address(view: &View, vip: IpAddr, frontends: &Frontends) -> Option<Link> {
    let range = view.allowed.iter().find(|range| range.contains(&vip))?;
    let claim = view.snapshot.claims.at(vip).filter(|claim| claim.released.is_none());
    let pool = claim.and_then(|claim| claim.pool.as_ref()).map(|pool| format!(", of pool {pool}"));
    let floats = match view.desired.vips.get(&vip) {
        Some(kind) if kind.floats_only => ", its ports are the host's",
        Some(_) if frontends.is_empty() => ", which refuses connections",
        _ => "",
    };
    Some(link("address", format!("{vip} in allowed range {range}{}{floats}", pool.unwrap_or_default())))
}

fn group(view: &View, vip: IpAddr) -> Option<Link> {
    let (name, group) = view.desired.group_of(vip)?;
    let mut members: Vec<_> = group.members.iter().collect();
    members.sort_by_key(|(name, priority)| (std::cmp::Reverse(**priority), *name));
    let mut instances = view.desired.keepalived.instances.iter();
    let instance = instances.find(|one| one.vrid == group.vrid && one.family == Family::of(vip));
    let interface = instance.map_or_else(String::new, |instance| format!(" on {}", instance.interface));
    let text = format!(
        "{name}: VRID {}{interface}, {}: {}",
        group.vrid,
        style::count(members.len(), "member"),
        list(members.iter().map(|(name, priority)| format!("{name} {priority}")))
    );
    Some(link("group", text))
}

fn host(view: &View, here: &Here, vip: IpAddr) -> Link {
    let holder =
        || here.holders.get(&vip).map_or("elsewhere, or nowhere".to_owned(), |node| format!("on {node}"));
    let drained = here.status.as_ref().is_some_and(|status| status.drained);
    let drained = if drained { "; this node is drained (kvip undrain ends it)" } else { "" };
    let place = view.facts.link_of(vip).map_or_else(holder, |link| format!("here, on {link}"));
    link("host", format!("{vip} is {place}{drained}"))
}

fn balancer(view: &View, frontend: Frontend, served: &Served) -> Link {
    let slices = view.snapshot.slices.values();
    let own = slices.filter(|slice| Owner::Service(slice.service.clone()) == served.owner);
    let nodes: BTreeMap<IpAddr, &String> = own
        .flat_map(|slice| &slice.endpoints)
        .filter_map(|endpoint| Some((endpoint.address, endpoint.node.as_ref()?)))
        .collect();
    let servers = served.servers.iter().filter_map(|(backend, server)| {
        let active = server.wanted == WantedServer::Active;
        let connections = connections(view, served, backend);
        let is_there = server.wanted != WantedServer::Lingering || connections.is_some();
        is_there.then(|| Server {
            address: backend.to_string(),
            state: if active { "serves" } else { "drains" },
            weight: if active { server.weight } else { 0 },
            connections,
            node: nodes.get(&backend.address).map(|node| (*node).clone()),
        })
    });
    let mode = served.mode.name();
    let text = match served.virtual_servers.first() {
        Some(first) => format!("{frontend} {} {mode}", first.service),
        None => format!("{frontend} {mode}, not by IPVS"),
    };
    Link { name: "balancer", text, servers: servers.collect() }
}

/// What the kernel counts for a real server in all virtual servers of a frontend.
fn connections(view: &View, served: &Served, backend: &Backend) -> Option<u32> {
    let tables = served.virtual_servers.iter().filter_map(|balanced| view.table.get(&balanced.key));
    let here = tables.filter_map(|table| table.real_servers.get(backend));
    here.map(|real| real.connections).reduce(u32::saturating_add)
}

/// What is said of the subject, and of this host, which is to serve it.
fn findings(
    view: &View,
    here: Option<&Here>,
    subject: &Subject,
    frontends: &Frontends,
    vips: &BTreeSet<IpAddr>,
) -> Vec<Finding> {
    let concerns = |finding: &&Finding| match subject {
        Subject::Service(key) => finding.subject == key.to_string() || finding.about.contains(key),
        Subject::Vip(vip) => names(&finding.to_string(), *vip),
    };
    let told = here.and_then(|here| here.status.as_ref()).map(|status| &status.findings[..]);
    let all = view.findings.iter().chain(told.unwrap_or_default());
    let mut all: BTreeSet<Finding> = all.filter(concerns).map(as_told).collect();
    if all.is_empty() && vips.is_empty() {
        all.extend(not_asked(view, subject));
    }
    // Those that are of no object are about the host; where the daemon tells of it, it knows best.
    let of_host = told.unwrap_or(&view.findings).iter().filter(|finding| !finding.subject.contains('/'));
    all.extend(of_host.map(as_told));
    all.extend(here.into_iter().flat_map(|here| undone(view, here, frontends)));
    all.into_iter().collect()
}

/// As the daemon tells it, so that what both say is said once.
fn as_told(finding: &Finding) -> Finding {
    Finding { refuses: false, ..finding.clone() }
}

/// Whether `text` has `vip` as a word of its own, or as a key of the ConfigMap writes it.
fn names(text: &str, vip: IpAddr) -> bool {
    let words =
        |signs: &'static [char]| text.split(move |c: char| !c.is_ascii_hexdigit() && !signs.contains(&c));
    let is_vip = |word: &str| {
        let with_port = word.parse().map(|socket: SocketAddr| socket.ip());
        with_port.or_else(|_| word.trim_end_matches([':', '.']).parse()) == Ok(vip)
    };
    let is_key = |word: &str| word.replace('-', ":").parse::<Ipv6Addr>().is_ok_and(|key| key == vip);
    words(&['.', ':']).any(is_vip) || words(&['-']).any(is_key)
}

/// That nothing asks for the subject, and how one does; or that the ConfigMap of VIPs, which might, is not read.
fn not_asked(view: &View, subject: &Subject) -> Vec<Finding> {
    let of_map = view.findings.iter().filter(|finding| finding.about.contains(&view.config_map));
    let of_map: Vec<Finding> = of_map.map(as_told).collect();
    if !of_map.is_empty() {
        return of_map;
    }
    vec![match subject {
        Subject::Service(key) if !view.snapshot.services.contains_key(key) => {
            let mend = format!("kubectl -n {} get services", key.namespace);
            Finding::new(key, "there is no such Service").mend(mend)
        }
        Subject::Service(key) => {
            Finding::new(key, "nothing asks for a VIP for it").mend(how_to_ask(view, key))
        }
        Subject::Vip(vip) => Finding::new(vip, "nothing asks for it").mend(match &view.folder {
            Some(folder) => format!("kvip plan {} lists the VIPs", folder.display()),
            None => "kvip status lists the VIPs".to_owned(),
        }),
    }]
}

/// By the annotation, or else by the ConfigMap, which always counts.
fn how_to_ask(view: &View, key: &ObjectKey) -> String {
    let ObjectKey { namespace, name } = &view.config_map;
    if view.annotations {
        format!("kubectl -n {} annotate service {} kvip.io/vips=ADDRESS", key.namespace, key.name)
    } else if view.snapshot.vip_map.is_some() {
        format!("kubectl -n {namespace} edit configmap {name}, and write ADDRESS: {key}")
    } else {
        format!("kubectl -n {namespace} create configmap {name} --from-literal=ADDRESS={key}")
    }
}

/// What this host has not done yet, or nobody does.
fn undone(view: &View, here: &Here, frontends: &Frontends) -> Vec<Finding> {
    let mut all = Vec::new();
    if here.status.is_none() {
        let text = "the daemon does not answer, so nothing here follows the cluster";
        all.push(Finding::new("kvip", text).mend("systemctl status kvip; journalctl -u kvip -n 50"));
    }
    let own = frontends.values().flat_map(|served| &served.virtual_servers);
    let own: BTreeSet<&Key> = own.map(|balanced| &balanced.key).collect();
    let left = view.plan.prepare.iter().filter(|command| own.contains(command.key())).count();
    if left > 0 {
        let text = format!("{} of IPVS not made yet on this node", style::count(left, "change"));
        all.push(Finding::new("kvip", text).mend("kvip plan; journalctl -u kvip -n 50"));
    }
    all
}

/// The explanation for people.
fn text(explanation: &Explanation) -> String {
    let mut rows = Vec::new();
    for link in &explanation.links {
        rows.push(vec![link.name.to_owned(), link.text.clone()]);
        let lines = style::table(&server_rows(&link.servers));
        rows.extend(lines.lines().map(|line| vec![String::new(), format!("  {line}")]));
    }
    let mut text = format!("{}\n\n{}", explanation.answer, style::indent(&style::table(&rows), 2));
    if explanation.findings.is_empty() {
        return text + "\nall of it is as it should be\n";
    }
    let rows: Vec<_> = explanation.findings.iter().flat_map(finding_rows).collect();
    if !explanation.links.is_empty() {
        text.push('\n');
    }
    text + "to mend\n" + &style::indent(&style::table(&rows), 2)
}

/// Connections are a column where the kernel was asked.
fn server_rows(servers: &[Server]) -> Vec<Vec<String>> {
    let asked = servers.iter().any(|server| server.connections.is_some());
    let row = |server: &Server| {
        let count = server.connections.map(|count| style::count(count as usize, "connection"));
        let count = asked.then(|| count.unwrap_or_default());
        let state =
            if server.weight > 0 { format!("weight {}", server.weight) } else { server.state.to_owned() };
        let first = [server.address.clone(), state];
        first.into_iter().chain(count).chain(server.node.clone()).collect()
    };
    servers.iter().map(row).collect()
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
