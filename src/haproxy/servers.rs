//! What must change about the servers of a running HAProxy, as commands for its socket.
//!
//! Pure. Connections to servers that go, or get no new ones, live on. HAProxy before 2.6 knows no servers that come and
//! go; whoever gives the commands looks at what became of them.

use std::collections::BTreeMap;

use super::render::{name, server_name, servers};
use super::{Config, Proxy};

/// The command whose answer [`read`] reads: all servers of all proxies.
pub const SHOW: &str = "show stat -1 4 -1";

/// The servers of each proxy that may get connections, with their weights; those in maintenance, which get none
/// whatever their weight, with none.
pub type Servers = BTreeMap<String, BTreeMap<String, Option<u16>>>;

/// Reads HAProxy's answer, comma-separated values below their names; `None` where it is something else.
pub fn read(answer: &str) -> Option<Servers> {
    let mut lines = answer.lines().filter(|line| !line.is_empty());
    let names: Vec<_> = lines.next()?.strip_prefix("# ")?.split(',').collect();
    let column = |name| names.iter().position(|other| *other == name);
    let [proxy, server, status, weight] = ["pxname", "svname", "status", "weight"].map(column);
    let mut all = Servers::new();
    for line in lines {
        let values: Vec<_> = line.split(',').collect();
        let value = |column: Option<usize>| values.get(column?).copied();
        let weight = match value(status)? {
            maintenance if maintenance.starts_with("MAINT") => None,
            _ => Some(value(weight)?.parse().ok()?),
        };
        all.entry(value(proxy)?.to_owned()).or_default().insert(value(server)?.to_owned(), weight);
    }
    Some(all)
}

/// Whether exactly the wanted servers get connections.
pub fn as_wanted(want: &Config, have: &Servers) -> bool {
    let wanted: Servers =
        want.frontends.iter().map(|(frontend, proxy)| (name(frontend), weights(proxy))).collect();
    let serving = |servers: &BTreeMap<String, Option<u16>>| {
        servers
            .iter()
            .filter(|(_, weight)| weight.is_some())
            .map(|(name, weight)| (name.clone(), *weight))
            .collect()
    };
    let having: Servers = have.iter().map(|(proxy, servers)| (proxy.clone(), serving(servers))).collect();
    wanted == having
}

fn weights(proxy: &Proxy) -> BTreeMap<String, Option<u16>> {
    proxy.servers.iter().map(|(backend, weight)| (server_name(backend), Some(*weight))).collect()
}

/// The commands that bring the servers of the proxies there are to what is wanted: what comes before what goes. Each is to
/// be given by itself, and one that fails shows in what [`read`] reads afterwards.
pub fn commands(want: &Config, have: &Servers) -> Vec<String> {
    let mut come = Vec::new();
    let mut go = Vec::new();
    for (frontend, proxy) in &want.frontends {
        let name = name(frontend);
        let none = BTreeMap::new();
        let here = have.get(&name).unwrap_or(&none);
        let weights = weights(proxy);
        for (server, words) in servers(proxy) {
            come.extend(bring(
                &format!("{name}/{server}"),
                &words,
                weights[&server],
                here.get(&server).copied(),
            ));
        }
        let gone = here.iter().filter(|(server, weight)| weight.is_some() && !weights.contains_key(*server));
        go.extend(gone.map(|(server, _)| remove(&format!("{name}/{server}"))));
    }
    come.into_iter().chain(go).collect()
}

/// A server that is not there is added, in maintenance as HAProxy has it; one that is there is given its weight.
fn bring(server: &str, words: &str, want: Option<u16>, have: Option<Option<u16>>) -> Option<String> {
    let weight = want.unwrap_or_default();
    match have {
        None => Some(format!("add server {server} {words}; enable server {server}")),
        Some(None) => Some(format!("set server {server} weight {weight}; set server {server} state ready")),
        Some(have) if have != want => Some(format!("set server {server} weight {weight}")),
        Some(_) => None,
    }
}

/// One that still has connections cannot be deleted, and stays in maintenance until a reload forgets it.
fn remove(server: &str) -> String {
    format!("set server {server} state maint; del server {server}")
}
