//! What must change about the servers of a running HAProxy, and where it listens, as commands for its socket.
//!
//! Pure. Connections to servers that go, or get no new ones, live on, also where it does not listen any more, unless the
//! server does not answer. HAProxy before 2.6 knows no servers that come and go; whoever gives the commands looks at what
//! became of them.

use std::collections::{BTreeMap, BTreeSet};

use super::render::{name, server_name, servers};
use super::{Config, Proxy};

/// The command whose answer [`read`] reads: all proxies, as frontends (1), with their servers (4).
pub const SHOW: &str = "show stat -1 5 -1";

/// How many servers one command is for at most: HAProxy reads no line that is longer than its buffer (tune.bufsize, 16 KiB), and
/// one over IPv6 takes 250 bytes of it.
const MOST_ENDED: usize = 50;

/// The proxies by their names.
pub type Proxies = BTreeMap<String, Seen>;

/// A proxy as HAProxy has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// It listens.
    pub open: bool,
    /// Its servers, by their names.
    pub servers: BTreeMap<String, State>,
}

/// What a server gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Connections by its weight.
    Weight(u16),
    /// None, whatever its weight; so many are still open.
    Maintenance(u32),
}

/// Reads HAProxy's answer, comma-separated values below their names; `None` where it is something else.
pub fn read(answer: &str) -> Option<Proxies> {
    let mut lines = answer.lines().filter(|line| !line.is_empty());
    let names: Vec<_> = lines.next()?.strip_prefix("# ")?.split(',').collect();
    let column = |name| names.iter().position(|other| *other == name);
    let [proxy, server, status, weight, open] = ["pxname", "svname", "status", "weight", "scur"].map(column);
    let mut all = Proxies::new();
    for line in lines {
        let values: Vec<_> = line.split(',').collect();
        let value = |column: Option<usize>| values.get(column?).copied();
        let (status, server) = (value(status)?, value(server)?);
        let seen = all.entry(value(proxy)?.to_owned()).or_default();
        if server == "FRONTEND" {
            seen.open = !["PAUSED", "STOP"].contains(&status);
            continue;
        }
        let state = match status {
            status if status.starts_with("MAINT") => State::Maintenance(value(open)?.parse().ok()?),
            _ => State::Weight(value(weight)?.parse().ok()?),
        };
        seen.servers.insert(server.to_owned(), state);
    }
    Some(all)
}

/// Whether exactly the wanted servers get connections, or are there to end theirs. Frontends that rest may be there, closed.
pub fn as_wanted(want: &Config, have: &Proxies) -> bool {
    let wanted: BTreeMap<_, _> = want
        .frontends
        .iter()
        .map(|(frontend, proxy)| (name(frontend), (!proxy.rests(), weights(proxy))))
        .collect();
    let as_it_is =
        |(proxy, seen): (&String, &Seen)| wanted.get(proxy) == Some(&(seen.open, there(&seen.servers)));
    has_all(want, have) && have.iter().all(as_it_is)
}

/// Whether all frontends are there that do not rest: no command makes one.
pub fn has_all(want: &Config, have: &Proxies) -> bool {
    want.frontends.iter().all(|(frontend, proxy)| proxy.rests() || have.contains_key(&name(frontend)))
}

fn weights(proxy: &Proxy) -> BTreeMap<String, u16> {
    proxy.servers.iter().map(|(backend, weight)| (server_name(backend), *weight)).collect()
}

/// The servers that are not in maintenance.
fn there(servers: &BTreeMap<String, State>) -> BTreeMap<String, u16> {
    let weight = |(name, state): (&String, &State)| match state {
        State::Weight(weight) => Some((name.clone(), *weight)),
        State::Maintenance(_) => None,
    };
    servers.iter().filter_map(weight).collect()
}

/// The commands that bring the proxies there are to what is wanted: what comes before what goes, and a frontend is open only
/// while it has a server. Each is to be given by itself, and one that fails shows in what [`read`] reads afterwards.
pub fn commands(want: &Config, have: &Proxies) -> Vec<String> {
    let mut come = Vec::new();
    let mut turn = Vec::new();
    let mut go = Vec::new();
    for (frontend, proxy) in &want.frontends {
        let name = name(frontend);
        let Some(Seen { open, servers: here }) = have.get(&name) else { continue };
        let weights = weights(proxy);
        if *open == proxy.rests() {
            turn.push(format!("{} frontend {name}", if *open { "disable" } else { "enable" }));
        }
        for (server, words) in servers(proxy) {
            let weight = weights[&server];
            let command = bring(&format!("{name}/{server}"), &words, weight, here.get(&server).copied());
            // One that ends is what there is until the others are there.
            if weight == 0 { &mut go } else { &mut come }.extend(command);
        }
        let gone = there(here).into_keys().filter(|server| !weights.contains_key(server));
        go.extend(gone.map(|server| remove(&format!("{name}/{server}"))));
    }
    come.into_iter().chain(turn).chain(go).collect()
}

/// A server that is not there is added, in maintenance as HAProxy has it; one that is there is given its weight.
fn bring(server: &str, words: &str, weight: u16, have: Option<State>) -> Option<String> {
    match have {
        None => Some(format!("add server {server} {words}; enable server {server}")),
        Some(State::Maintenance(_)) => {
            Some(format!("set server {server} weight {weight}; set server {server} state ready"))
        }
        Some(State::Weight(have)) if have != weight => Some(format!("set server {server} weight {weight}")),
        Some(_) => None,
    }
}

/// The commands for servers that are no servers now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tidying {
    /// Those that do not answer lose their connections: [`MOST_ENDED`] of them by each command.
    pub end: Vec<String>,
    /// Those without any are deleted.
    pub delete: Vec<String>,
}

/// What is to be done about servers that are no servers now.
pub fn tidy(want: &Config, have: &Proxies) -> Tidying {
    let (mut end, mut delete) = (Vec::new(), Vec::new());
    for (frontend, proxy) in &want.frontends {
        let name = name(frontend);
        let Some(seen) = have.get(&name) else { continue };
        let wanted = weights(proxy);
        let ended: BTreeSet<_> = proxy.ended.iter().map(server_name).collect();
        for (server, state) in seen.servers.iter().filter(|(server, _)| !wanted.contains_key(*server)) {
            match state {
                State::Maintenance(0) => delete.push(format!("del server {name}/{server}")),
                _ if ended.contains(server) => end.push(end_one(&format!("{name}/{server}"))),
                _ => {}
            }
        }
    }
    Tidying { end: end.chunks(MOST_ENDED).map(|some| some.join("; ")).collect(), delete }
}

/// Ends the connections that a server has, and lets none come.
fn end_one(server: &str) -> String {
    format!("set server {server} state maint; shutdown sessions server {server}")
}

/// Whether HAProxy has done what it answers so: of these commands it says nothing then, or that a server is deleted.
pub fn is_done(answer: &str) -> bool {
    let answer = answer.trim();
    answer.is_empty() || answer.ends_with("deleted.")
}

/// One that still has connections cannot be deleted, and stays in maintenance until these have ended ([`tidy`]).
fn remove(server: &str) -> String {
    format!("set server {server} state maint; del server {server}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyProtocol;
    use crate::haproxy::Balance;
    use crate::model::{Backend, Frontend, Protocol};

    const SAID: &str = "# pxname,svname,qcur,scur,status,weight,
10.87.2.50:80,FRONTEND,,6,OPEN,,
10.87.2.50:80,10.2.4.1:8080,0,3,no check,1,
10.87.2.50:80,10.2.4.2:8080,0,2,DRAIN,0,
10.87.2.50:80,10.2.4.3:8080,0,1,MAINT,1,
";

    /// What is to be done so that the servers of the last part and weight serve, where HAProxy said [`SAID`].
    #[track_caller]
    fn check(servers: &[(u8, u16)], wanted: &[&str]) {
        check_after(SAID, servers, wanted);
    }

    #[track_caller]
    fn check_after(said: &str, servers: &[(u8, u16)], wanted: &[&str]) {
        let (want, have) = (config(servers, &[]), read(said).unwrap());
        assert_eq!(short(commands(&want, &have)), wanted);
        assert_eq!(as_wanted(&want, &have), wanted.is_empty());
    }

    fn config(servers: &[(u8, u16)], ended: &[u8]) -> Config {
        let backend = |last: u8| Backend { address: [10, 2, 4, last].into(), port: 8080 };
        let proxy = Proxy {
            owner: "default/nginx".into(),
            protocol: ProxyProtocol::V2,
            balance: Balance::RoundRobin,
            servers: servers.iter().map(|(last, weight)| (backend(*last), *weight)).collect(),
            ended: ended.iter().map(|last| backend(*last)).collect(),
        };
        let frontend = Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        Config { frontends: [(frontend, proxy)].into() }
    }

    fn short(commands: Vec<String>) -> Vec<String> {
        let short = |command: String| {
            command.replace("10.87.2.50:80/", "").replace("10.2.4.", "").replace(":8080", "")
        };
        commands.into_iter().map(short).collect()
    }

    #[test]
    fn servers_come_before_others_go() {
        check(&[(1, 1), (2, 0)], &[]);
        check(&[(1, 0), (2, 3)], &["set server 2 weight 3", "set server 1 weight 0"]);
        check(
            &[(3, 2), (2, 0)],
            &["set server 3 weight 2; set server 3 state ready", "set server 1 state maint; del server 1"],
        );
        check(
            &[(1, 1), (2, 0), (4, 1)],
            &["add server 4 4 id 413947107 weight 1 send-proxy-v2; enable server 4"],
        );
    }

    #[test]
    fn a_frontend_is_closed_before_its_last_server_goes_and_open_after_one_has_come() {
        let closing = ["disable frontend 10.87.2.50:80", "set server 1 weight 0"];
        check(&[(1, 0), (2, 0)], &closing);
        let closed = SAID.replace("OPEN", "PAUSED");
        check_after(&closed, &[(1, 1), (2, 0)], &["enable frontend 10.87.2.50:80"]);
        let opening = ["set server 2 weight 1", "enable frontend 10.87.2.50:80", "set server 1 weight 0"];
        check_after(&closed, &[(1, 0), (2, 1)], &opening);
    }

    #[test]
    fn servers_that_are_none_any_more_go_with_their_last_connection_or_lose_them() {
        let ends = |server: u8| format!("set server {server} state maint; shutdown sessions server {server}");
        let check = |said: &str, want: &Config, wanted: &[String]| {
            let Tidying { end, delete } = tidy(want, &read(said).unwrap());
            assert_eq!(short([end, delete].concat()), wanted);
        };
        check(SAID, &config(&[(1, 1), (2, 0)], &[]), &[]);
        check(SAID, &config(&[(1, 1), (2, 0)], &[2, 3]), &[ends(3)]);
        check(SAID, &config(&[(1, 1)], &[2, 3]), &[format!("{}; {}", ends(2), ends(3))]);
        let over = SAID.replace("0,1,MAINT", "0,0,MAINT");
        check(&over, &config(&[(1, 1), (2, 0)], &[3]), &["del server 3".into()]);
        check(&over, &config(&[(1, 1), (2, 0), (3, 1)], &[]), &[]);
    }

    #[test]
    fn what_is_no_statistics_is_not_read() {
        assert_eq!(read("Unknown command\n"), None);
        assert_eq!(read("# pxname,svname,status,weight,\na,b,no check,many,\n"), None);
        assert_eq!(read("# pxname,svname,status,weight,\n"), Some(Proxies::new()));
    }
}
