//! The text of HAProxy's configuration, for HAProxy 2.2 and newer.
//!
//! Pure: sorted, so that the same configuration is the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::{Balance, Config, Proxy};
use crate::config::ProxyProtocol;
use crate::model::{Backend, Frontend};

/// The first line: the file is kvip's.
const MARKER: &str = "# written by kvip: changes are lost; see kvip(8)";

/// `expose-fd listeners` hands listening sockets over at a reload, so that none is closed. Processes that a reload relieves
/// live until their connections end, however many reloads there are; the time limit is for clients that never end.
///
/// Without a `log` it says what matters on standard error, which is the journal. Idle connections end after an hour, dead
/// ones when TCP has noticed, half-closed ones after as long as IPVS gives them. A connection that a server does not accept
/// is tried at another.
const GLOBAL: &str = "
    hard-stop-after 24h
    mworker-max-reloads 1000000

defaults
    mode tcp
    option tcpka
    option redispatch 1
    retries 3
    timeout connect 3s
    timeout client 1m
    timeout server 1m
    timeout tunnel 1h
    timeout client-fin 2m
    timeout server-fin 2m
";

/// The whole file, which says nothing of frontends that rest; commands and statistics are had at `socket`.
pub fn render(config: &Config, socket: &Path) -> String {
    let mut text = format!(
        "{MARKER}\n\nglobal\n    stats socket {} mode 660 level admin expose-fd listeners{GLOBAL}",
        socket.display()
    );
    for (frontend, proxy) in config.frontends.iter().filter(|(_, proxy)| !proxy.rests()) {
        listen(&mut text, frontend, proxy);
    }
    text
}

/// What a rendered text says of each proxy, by its name.
pub fn sections(text: &str) -> BTreeMap<&str, &str> {
    let sections = text.split("\nlisten ").skip(1);
    // The comment before the next one belongs to that.
    let alone = sections.map(|text| text.rsplit_once("\n\n#").map_or(text, |(section, _)| section));
    alone.filter_map(|text| text.split_once('\n')).map(|(name, rest)| (name, rest.trim_end())).collect()
}

/// `transparent`: the address is bound although this host does not have it, until it holds the VIP.
fn listen(text: &mut String, frontend: &Frontend, proxy: &Proxy) {
    let name = name(frontend);
    let _ = write!(text, "\n# {}\nlisten {name}\n    bind {name} transparent\n", proxy.owner);
    let _ = writeln!(text, "    balance {}", proxy.balance);
    if proxy.balance == Balance::Source {
        // Only then is the choice the same wherever the servers are the same, and changes little when they change.
        text.push_str("    hash-type consistent\n");
    }
    for (server, words) in servers(proxy) {
        let _ = writeln!(text, "    server {server} {words}");
    }
}

/// The name of a frontend's proxy, which is where it listens too: HAProxy takes what follows the last colon for the port.
pub fn name(frontend: &Frontend) -> String {
    format!("{}:{}", frontend.vip, frontend.port)
}

/// By its name, what each server is: address, number, weight and what it is told of clients.
pub fn servers(proxy: &Proxy) -> BTreeMap<String, String> {
    let told = match proxy.protocol {
        ProxyProtocol::Off => "",
        ProxyProtocol::V1 => " send-proxy",
        ProxyProtocol::V2 => " send-proxy-v2",
    };
    let numbers = numbers(proxy.servers.keys());
    let server = |(backend, weight): (&Backend, &u16)| {
        let (name, number) = (server_name(backend), numbers[backend]);
        (name.clone(), format!("{name} id {number} weight {weight}{told}"))
    };
    proxy.servers.iter().map(server).collect()
}

/// A server's name, which is where it listens too.
pub fn server_name(backend: &Backend) -> String {
    format!("{}:{}", backend.address, backend.port)
}

/// A number for each server that follows from its address, 1 to 2^31 - 1: by it the choice by the client's address goes,
/// so that another server's coming moves few clients.
fn numbers<'a>(backends: impl Iterator<Item = &'a Backend>) -> BTreeMap<&'a Backend, u32> {
    let mut taken = BTreeSet::new();
    let number = |backend: &'a Backend| {
        let mut number = digest(&server_name(backend));
        while !taken.insert(number) {
            number = number % MOST_NUMBER + 1;
        }
        (backend, number)
    };
    backends.map(number).collect()
}

const MOST_NUMBER: u32 = i32::MAX as u32;

/// FNV-1a, which is the same in every version of kvip.
fn digest(text: &str) -> u32 {
    let hash =
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % MOST_NUMBER + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_numbers_of_their_own_that_others_do_not_move() {
        let backend = |last: u16| Backend { address: [10, 2, 4, 9].into(), port: last };
        let many: Vec<_> = (1..=60_000).map(backend).collect();
        let all = numbers(many.iter());
        assert_eq!(all.values().collect::<BTreeSet<_>>().len(), many.len());
        assert!(all.values().all(|number| (1..=MOST_NUMBER).contains(number)));
        let few = numbers(many[..10].iter());
        assert!(few.iter().all(|(backend, number)| all[backend] == *number));
    }
}
