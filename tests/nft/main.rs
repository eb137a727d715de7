//! kvip's table, text by text and in a real kernel.
//!
//! Texts are compared with tests/golden/nft; `UPDATE_GOLDEN=1 cargo test --test nft` writes them anew. What needs a
//! kernel runs in a network namespace of its own: these tests run themselves again under `unshare`, and need nft, ip
//! and either root or unprivileged user namespaces.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod shield;
mod sources;
mod steering;
mod watch;

use std::env;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::in_namespace;
use kvip::model::{Frontend, Protocol};
use kvip::nft::{Ruleset, client, fingerprint, render};

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nft")
}

/// A frontend as in `tcp 10.87.2.50 80`.
fn frontend(text: &str) -> Frontend {
    let words: Vec<&str> = text.split(' ').collect();
    let protocol = match words[0] {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    Frontend { vip: words[1].parse().unwrap(), protocol, port: words[2].parse().unwrap() }
}

/// Frontends, closed VIPs and networks of local pods.
fn ruleset(frontends: &[&str], closed: &[&str], local_pods: &[&str]) -> Ruleset {
    Ruleset {
        frontends: frontends.iter().map(|text| frontend(text)).collect(),
        closed: closed.iter().map(|address| address.parse().unwrap()).collect(),
        local_pods: local_pods.iter().map(|network| network.parse().unwrap()).collect(),
        ..Ruleset::default()
    }
}

/// A node at 10.87.2.4 and fd00:87:2::4 with frontends that not everybody may reach.
fn limited() -> Ruleset {
    let many = (1..=9).map(|number| format!("192.0.2.{}/32", 2 * number)).collect::<Vec<_>>().join(" ");
    let sources = [
        ("tcp 10.87.2.50 80", "192.0.2.0/24 10.87.2.200/32"),
        ("udp 10.87.2.50 53", "10.87.2.0/25 10.87.2.128/25 2001:db8::/32"),
        ("sctp 10.87.2.51 3868", "10.87.2.200/32 192.0.2.7/24"),
        ("tcp 10.87.2.52 80", "2001:db8::/32"),
        ("tcp 10.87.2.53 80", "0.0.0.0/0"),
        ("tcp fd00:87:2::50 80", "fd00:87:2::/64 2001:db8::/32"),
        ("udp fd00:87:2::50 53", ""),
        ("udp fd00:87:2::51 53", "::/0"),
        ("tcp 10.87.2.54 80", &many),
    ];
    let networks = |text: &str| text.split_whitespace().map(|network| network.parse().unwrap()).collect();
    let names: Vec<&str> = sources.iter().map(|(name, _)| *name).collect();
    let mut ruleset = ruleset(&names, &[], &["10.2.4.0/24"]);
    ruleset.sources = sources.iter().map(|(name, text)| (frontend(name), networks(text))).collect();
    ruleset.host = ["10.87.2.4", "fd00:87:2::4"].map(|address| address.parse().unwrap()).into();
    ruleset
}

/// Frontends of which kube-proxy knows some.
fn shielded() -> Ruleset {
    let known = ["tcp 10.87.2.50 80", "udp 10.87.2.50 53", "sctp fd00:87:2::50 3868"];
    let frontends = [&known[..], &["tcp 10.87.2.51 80"]].concat();
    let shielded = known.map(frontend).into();
    Ruleset { shielded, ..ruleset(&frontends, &["10.87.2.50"], &["10.2.4.0/24"]) }
}

/// A frontend whose datagrams are balanced one by one, beside one whose are not.
fn one_by_one() -> Ruleset {
    let frontends = ["udp 10.87.2.50 514", "udp fd00:87:2::50 514", "udp 10.87.2.50 53"];
    let untracked = frontends[..2].iter().map(|name| frontend(name)).collect();
    Ruleset { untracked, ..ruleset(&frontends, &["10.87.2.50"], &["10.2.4.0/24"]) }
}

/// Every golden file's name, without its ending, with the ruleset that renders it.
fn cases() -> Vec<(&'static str, Ruleset)> {
    vec![
        ("nothing", Ruleset::default()),
        ("tutorial", ruleset(&["tcp 10.87.2.50 80"], &["10.87.2.50"], &["10.2.4.0/24"])),
        ("without-backends", ruleset(&[], &["10.87.2.52", "fd00::52"], &["10.2.4.0/24"])),
        (
            "both-families",
            ruleset(
                &[
                    "tcp 10.87.2.50 80",
                    "tcp 10.87.2.50 443",
                    "udp 10.87.2.5 53",
                    "sctp 10.87.2.51 3868",
                    "tcp 10.87.2.9 22",
                    "tcp fd00::50 80",
                    "udp fd00::5 53",
                ],
                &["10.87.2.5", "10.87.2.50", "10.87.2.51", "fd00::5", "fd00::50"],
                &["10.2.4.0/24", "10.2.4.9/32", "10.3.0.7/32", "fd00:2:4::/64", "fd00:3::7/128"],
            ),
        ),
        (
            "every-pod-is-local",
            ruleset(
                &["tcp 10.87.2.50 80", "tcp fd00::50 80"],
                &["10.87.2.50", "fd00::50"],
                &["0.0.0.0/0", "::/0"],
            ),
        ),
        // What is left of a range with a pod of another node in it: intervals that touch.
        (
            "pods-elsewhere",
            ruleset(
                &["tcp 10.87.2.50 80", "tcp fd00::50 80"],
                &["10.87.2.50", "fd00::50"],
                &[
                    "10.2.4.0/31",
                    "10.2.4.2/32",
                    "10.2.4.4/30",
                    "10.2.4.8/29",
                    "fd00:2:4::/127",
                    "fd00:2:4::2/128",
                ],
            ),
        ),
        ("source-ranges", limited()),
        ("shield", shielded()),
        ("one-by-one", one_by_one()),
        ("steering", steering::steered()),
        ("inward", steering::inward()),
    ]
}

#[test]
fn golden_texts() {
    for (name, ruleset) in cases() {
        let path = golden_dir().join(format!("{name}.nft"));
        let text = render(&ruleset);
        if env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{name} differs; UPDATE_GOLDEN=1 writes it anew");
    }
}

fn nft(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(client::PROGRAM)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn nft_accepts_every_golden() {
    if !in_namespace("nft_accepts_every_golden") {
        return;
    }
    for (name, _) in cases() {
        let text = std::fs::read_to_string(golden_dir().join(format!("{name}.nft"))).unwrap();
        assert_eq!(nft(&["--check", "-f", "-"], &text), (true, String::new()), "{name}");
    }
}

#[test]
fn the_table_is_recognised_and_changes_show() {
    if !in_namespace("the_table_is_recognised_and_changes_show") {
        return;
    }
    assert_eq!(client::installed().unwrap(), None);
    client::delete().expect("already gone is success");
    for (name, ruleset) in cases() {
        let applied = client::apply(&ruleset).unwrap();
        assert_eq!(applied, fingerprint(&ruleset), "{name}");
        assert_eq!(client::installed().unwrap(), Some(applied), "{name}");
    }
    for change in [
        "add element inet kvip vips4 { 192.0.2.1 }",
        "delete element inet kvip frontends4 { 10.87.2.50 . tcp . 80 }",
        "insert rule inet kvip input accept",
        "delete element inet kvip limited4 { 10.87.2.50 . tcp . 80 }",
        "flush chain inet kvip sources4_1",
        "flush chain inet kvip postrouting",
        "delete set inet kvip seal",
    ] {
        client::apply(&limited()).unwrap();
        assert_eq!(nft(&["-f", "-"], change), (true, String::new()), "{change}");
        assert_eq!(client::installed().unwrap().as_deref(), Some(client::ALTERED), "{change}");
    }
    client::delete().unwrap();
    assert_eq!(client::installed().unwrap(), None);
}

/// The table as nft lists it, without the seal.
fn listing() -> String {
    let (listed, text) = nft(&["list", "table", "inet", "kvip"], "");
    assert!(listed, "{text}");
    let (before, seal) = text.split_once("\tset seal {").unwrap();
    let (_, after) = seal.split_once("\t}\n\n").unwrap();
    [before, after].concat()
}

#[test]
fn a_change_ends_in_the_same_table_as_writing_it_whole() {
    if !in_namespace("a_change_ends_in_the_same_table_as_writing_it_whole") {
        return;
    }
    for (name, want) in cases() {
        client::apply(&want).unwrap();
        let whole = listing();
        for (before, have) in cases() {
            client::apply(&have).unwrap();
            let changed = client::change(&have, &want).unwrap();
            assert_eq!(changed, fingerprint(&want), "{before} to {name}");
            assert_eq!(client::installed().unwrap(), Some(changed), "{before} to {name}");
            assert_eq!(listing(), whole, "{before} to {name}");
        }
    }
}

#[test]
fn a_change_hides_nothing_and_takes_nothing_for_granted() {
    if !in_namespace("a_change_hides_nothing_and_takes_nothing_for_granted") {
        return;
    }
    let have = ruleset(&["tcp 10.87.2.50 80"], &["10.87.2.50"], &["10.2.4.0/24"]);
    let want = ruleset(&["tcp 10.87.2.51 80"], &["10.87.2.51"], &["10.2.5.0/24"]);
    let [both, everywhere] = [cases()[3].1.clone(), cases()[4].1.clone()];
    for (have, want) in [(&have, &want), (&want, &both), (&both, &everywhere), (&everywhere, &have)] {
        for foreign in [
            "add element inet kvip vips4 { 192.0.2.1 }",
            "add element inet kvip vips6 { 2001:db8::1 }",
            "insert rule inet kvip input accept",
        ] {
            client::apply(have).unwrap();
            assert_eq!(nft(&["-f", "-"], foreign), (true, String::new()), "{foreign}");
            client::change(have, want).unwrap();
            assert_eq!(client::installed().unwrap().as_deref(), Some(client::ALTERED), "{foreign}");
        }
    }
    // No table, the table of another ruleset, a table without what is to be removed from it: written whole.
    let whole = || assert_eq!(client::installed().unwrap(), Some(fingerprint(&want)));
    client::delete().unwrap();
    client::change(&have, &want).unwrap();
    whole();
    client::change(&have, &want).unwrap();
    whole();
    client::apply(&have).unwrap();
    nft(&["-f", "-"], "delete element inet kvip vips4 { 10.87.2.50 }");
    client::change(&have, &want).unwrap();
    whole();
}

#[test]
fn other_tables_stay() {
    if !in_namespace("other_tables_stay") {
        return;
    }
    let foreign = "table ip filter {\n\tchain mine {\n\t\taccept\n\t}\n}\n";
    nft(&["-f", "-"], foreign);
    client::apply(&cases()[1].1).unwrap();
    client::delete().unwrap();
    assert_eq!(nft(&["list", "ruleset"], ""), (true, foreign.to_owned()));
}

/// What a connection from this host to `address` meets: whether it is taken.
fn connects(address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
        Err(error) => panic!("{address} neither taken nor refused: {error}"),
    }
}

/// Whether a datagram to `address`, where nobody need listen, is refused.
fn refuses_datagrams(address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    let any: IpAddr = if address.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.connect(address).unwrap();
    // On loopback the refusal is there before send returns.
    let sent = socket.send(b"?");
    let received = sent.and_then(|_| socket.recv(&mut [0; 8]));
    received.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// In this namespace nothing balances: whoever listens on all addresses stands for what IPVS would take.
#[test]
fn only_other_ports_of_balanced_vips_are_refused() {
    if !in_namespace("only_other_ports_of_balanced_vips_are_refused") {
        return;
    }
    for address in ["10.87.2.50/32", "10.87.2.9/32", "10.87.2.4/32", "fd00::50/128", "fd00::4/128"] {
        let added = Command::new("ip").args(["addr", "add", address, "dev", "lo"]).status();
        assert!(added.is_ok_and(|status| status.success()), "{address}");
    }
    let tcp_listeners: Vec<TcpListener> =
        [80, 443, 8080].map(|port| TcpListener::bind(("::", port)).unwrap()).into();
    let _udp: Vec<UdpSocket> = [53, 8080].map(|port| UdpSocket::bind(("::", port)).unwrap()).into();
    let mut open_before = TcpStream::connect("10.87.2.50:8080").unwrap();
    let (mut served_before, _) = tcp_listeners[2].accept().unwrap();

    let frontends =
        ["tcp 10.87.2.50 80", "udp 10.87.2.50 53", "tcp 10.87.2.9 80", "tcp fd00::50 80", "udp fd00::50 53"];
    client::apply(&ruleset(&frontends, &["10.87.2.50", "fd00::50"], &["10.2.4.0/24"])).unwrap();

    let tcp = |address, expected| assert_eq!(connects(address), expected, "tcp {address}");
    tcp("10.87.2.50:80", true);
    tcp("10.87.2.50:443", false);
    tcp("10.87.2.50:8080", false);
    tcp("10.87.2.9:8080", true);
    tcp("10.87.2.4:8080", true);
    tcp("127.0.0.1:8080", true);
    tcp("[fd00::50]:80", true);
    tcp("[fd00::50]:8080", false);
    tcp("[fd00::4]:8080", true);

    let udp = |address, refused| assert_eq!(refuses_datagrams(address), refused, "udp {address}");
    udp("10.87.2.50:53", false);
    udp("10.87.2.50:8080", true);
    udp("10.87.2.4:8080", false);
    udp("[fd00::50]:53", false);
    udp("[fd00::50]:8080", true);

    served_before.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    open_before.write_all(b"still").unwrap();
    served_before.read_exact(&mut [0; 5]).expect("an open connection goes on");
}
