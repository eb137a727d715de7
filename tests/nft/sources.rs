//! Source ranges with real packets: from another host, from this one, open before, TCP, UDP and SCTP.
//!
//! Two namespaces, joined by a cable: this host with its VIPs, on which plain listeners stand for what IPVS would take,
//! and a client with several addresses.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use kvip::model::Frontend;
use kvip::nft::{Ruleset, client};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, ipproto};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{frontend, in_namespace};

/// On one machine a packet takes microseconds; what has not come by then was dropped.
const PATIENCE: Duration = Duration::from_millis(250);
pub(super) const VIPS: [&str; 4] = ["10.87.2.50", "10.87.2.51", "fd00:87:2::50", "fd00:87:2::51"];
const TCP_PORTS: [u16; 2] = [80, 81];
const UDP_PORT: u16 = 53;

/// The client's namespace; it ends with this value.
pub(super) struct Client(Child);

impl Client {
    /// Lays the cable and gives both ends their addresses.
    pub(super) fn join() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut client = Self(child.unwrap());
        let made = client.0.stdout.as_mut().unwrap().read_exact(&mut [0; 5]);
        made.expect("the namespace is made before anything is said in it");
        let id = client.0.id();
        ip(&format!("link add eth0 type veth peer name eth0 netns {id}"));
        ip("link set eth0 up");
        for address in ["10.87.2.4/24", "fd00:87:2::4/64"].into_iter().map(str::to_owned).chain(vips()) {
            ip(&format!("address add {address} dev eth0 {}", nodad(&address)));
        }
        client.run(|| {
            ip("link set eth0 up");
            for host in ["200", "201"] {
                ip(&format!("address add 10.87.2.{host}/24 dev eth0"));
                ip(&format!("address add fd00:87:2::{host}/64 dev eth0 nodad"));
            }
        });
        client
    }

    /// Runs `act` on the client.
    pub(super) fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            entered.join().unwrap()
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vips() -> impl Iterator<Item = String> {
    VIPS.iter().map(|vip| format!("{vip}/{}", if vip.contains(':') { 128 } else { 32 }))
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "scope global" }
}

pub(super) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Answers on all addresses for as long as the test runs.
fn listen() {
    for port in TCP_PORTS {
        let listener = TcpListener::bind(("::", port)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || echo(stream));
            }
        });
    }
    // One for each VIP: an answer from any other address would not be taken for one.
    for vip in VIPS {
        let socket = UdpSocket::bind((vip, UDP_PORT)).unwrap();
        thread::spawn(move || {
            while let Ok((_, peer)) = socket.recv_from(&mut [0; 8]) {
                socket.send_to(b"!", peer).unwrap();
            }
        });
    }
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|count| count > 0) && stream.write_all(&byte).is_ok() {}
}

/// A TCP connection from that address.
fn connect(from: &str, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(from, to, SocketType::STREAM, ipproto::TCP)?;
    rustix::net::connect(&socket, &to)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(&mut stream)?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

fn socket(from: &str, to: SocketAddr, kind: SocketType, protocol: Protocol) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, kind, Some(protocol))?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    rustix::net::bind(&socket, &SocketAddr::new(from.parse().unwrap(), 0))?;
    Ok(socket)
}

/// A datagram and its answer.
fn exchange(from: &str, to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    socket.recv(&mut [0; 8]).map(drop)
}

/// Whether `frontend` is reached from the address `from`; what is not reached is to be dropped, not refused.
fn reaches(frontend: &Frontend, from: &str) -> bool {
    let to = SocketAddr::new(frontend.vip, frontend.port);
    let answer = match frontend.protocol {
        kvip::model::Protocol::Tcp => connect(from, to).map(drop),
        _ => exchange(from, to),
    };
    match answer {
        Ok(()) => true,
        Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
                // What the output hook drops, the sender is told of.
                || error.kind() == ErrorKind::PermissionDenied =>
        {
            false
        }
        Err(error) => panic!("{frontend} from {from} is neither answered nor dropped: {error}"),
    }
}

/// Frontends with their networks, as in `("tcp 10.87.2.50 80", "10.87.2.200/32 192.0.2.0/24")`.
fn apply(limited: &[(&str, &str)], host: &[&str]) {
    let networks = |text: &str| text.split_whitespace().map(|network| network.parse().unwrap()).collect();
    let ruleset = Ruleset {
        frontends: limited.iter().map(|(name, _)| frontend(name)).collect(),
        sources: limited.iter().map(|(name, text)| (frontend(name), networks(text))).collect(),
        host: host.iter().map(|address| address.parse().unwrap()).collect(),
        ..Ruleset::default()
    };
    client::apply(&ruleset).unwrap();
}

/// Names from which `name` is reached, of these.
#[track_caller]
fn check(name: &str, sources: &[&str], expected: &[&str]) {
    let found: Vec<&str> =
        sources.iter().copied().filter(|source| reaches(&frontend(name), source)).collect();
    assert_eq!(found, expected, "{name} is reached from these");
}

const CLIENT4: [&str; 2] = ["10.87.2.200", "10.87.2.201"];
const CLIENT6: [&str; 2] = ["fd00:87:2::200", "fd00:87:2::201"];

#[test]
fn another_host_reaches_only_what_it_may() {
    if !in_namespace("sources::another_host_reaches_only_what_it_may") {
        return;
    }
    let client = Client::join();
    listen();
    let many = (100..110).map(|number| format!("10.87.2.{}/32", 2 * number)).collect::<Vec<_>>().join(" ");
    apply(
        &[
            ("tcp 10.87.2.50 80", "192.0.2.0/24 10.87.2.200/32"),
            ("udp 10.87.2.50 53", "10.87.2.192/29 10.87.2.201/32"),
            ("tcp 10.87.2.51 80", "fd00:87:2::/64"),
            ("tcp fd00:87:2::50 80", "fd00:87:2::200/128 10.87.2.0/24"),
            ("udp fd00:87:2::50 53", "2001:db8::/32 fd00:87:2::200/121"),
            ("udp fd00:87:2::51 53", ""),
            ("tcp 10.87.2.51 81", &many),
        ],
        &[],
    );
    client.run(|| {
        check("tcp 10.87.2.50 80", &CLIENT4, &CLIENT4[..1]);
        check("udp 10.87.2.50 53", &CLIENT4, &CLIENT4[1..]);
        check("tcp 10.87.2.51 80", &CLIENT4, &[]);
        check("tcp 10.87.2.51 81", &CLIENT4, &CLIENT4[..1]);
        check("tcp fd00:87:2::50 80", &CLIENT6, &CLIENT6[..1]);
        check("udp fd00:87:2::50 53", &CLIENT6, &CLIENT6);
        check("udp fd00:87:2::51 53", &CLIENT6, &[]);
        // Another port, protocol or VIP is none of these frontends.
        for open in ["tcp 10.87.2.50 81", "udp 10.87.2.51 53", "tcp 10.87.2.4 80"] {
            check(open, &CLIENT4, &CLIENT4);
        }
        for open in ["tcp fd00:87:2::51 80", "tcp fd00:87:2::50 81", "tcp fd00:87:2::4 80"] {
            check(open, &CLIENT6, &CLIENT6);
        }
    });
}

#[test]
fn this_host_is_measured_by_the_same_ranges() {
    if !in_namespace("sources::this_host_is_measured_by_the_same_ranges") {
        return;
    }
    let _client = Client::join();
    listen();
    let own4 = ["10.87.2.50", "10.87.2.4", "127.0.0.1"];
    let own6 = ["fd00:87:2::50", "fd00:87:2::4"];
    let check_both = |expected4: &[&str], expected6: &[&str]| {
        for name in ["tcp 10.87.2.50 80", "udp 10.87.2.50 53"] {
            check(name, &own4, expected4);
        }
        for name in ["tcp fd00:87:2::50 80", "udp fd00:87:2::50 53"] {
            check(name, &own6, expected6);
        }
    };
    let limit = |sources4: &str, sources6: &str| {
        let [tcp4, udp4] = ["tcp 10.87.2.50 80", "udp 10.87.2.50 53"].map(|name| (name, sources4));
        let [tcp6, udp6] = ["tcp fd00:87:2::50 80", "udp fd00:87:2::50 53"].map(|name| (name, sources6));
        apply(&[tcp4, udp4, tcp6, udp6], &["10.87.2.4", "fd00:87:2::4"]);
    };
    limit("10.87.2.200/32", "fd00:87:2::200/128");
    check_both(&[], &[]);
    limit("10.87.2.4/32", "fd00:87:2::/64");
    check_both(&own4[..2], &own6);
    limit("127.0.0.0/8", "::1/128");
    check_both(&own4[2..], &[]);
    // A VIP may be reached from itself; another VIP may not.
    limit("10.87.2.4/32", "fd00:87:2::4/128");
    check("tcp 10.87.2.50 80", &["10.87.2.51"], &[]);
}

#[test]
fn open_connections_outlive_a_change_and_new_ones_do_not() {
    if !in_namespace("sources::open_connections_outlive_a_change_and_new_ones_do_not") {
        return;
    }
    let client = Client::join();
    listen();
    let name = "tcp 10.87.2.50 80";
    apply(&[(name, "10.87.2.0/24")], &[]);
    let mut open = client.run(|| connect(CLIENT4[0], "10.87.2.50:80".parse().unwrap()).unwrap());
    open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for networks in ["10.87.2.201/32", ""] {
        apply(&[(name, networks)], &[]);
        ask(&mut open).expect("an open connection goes on");
        client.run(|| check(name, &CLIENT4[..1], &[]));
    }
    client::delete().unwrap();
    client.run(|| check(name, &CLIENT4, &CLIENT4));
}

/// An INIT chunk (RFC 9260, section 3.3.2) from port 9999 with a checksum that nobody looks at.
fn sctp_packet(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let header = [0x27, 0x0f, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    let init = [1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0x20, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    [&header[..], &init].concat()
}

/// The kernel need know no SCTP: its packets are sent and received raw.
#[test]
fn sctp_is_measured_too() {
    if !in_namespace("sources::sctp_is_measured_too") {
        return;
    }
    let client = Client::join();
    apply(
        &[("sctp 10.87.2.50 3868", "10.87.2.200/32"), ("sctp fd00:87:2::50 3868", "fd00:87:2::200/128")],
        &[],
    );
    for (vip, [from, other]) in [("10.87.2.50", CLIENT4), ("fd00:87:2::50", CLIENT6)] {
        let vip: IpAddr = vip.parse().unwrap();
        let to = SocketAddr::new(vip, 0);
        let server = socket(&vip.to_string(), to, SocketType::RAW, ipproto::SCTP).unwrap();
        let arrives = |from: &str, port: u16| {
            client.run(|| {
                let sender = socket(from, to, SocketType::RAW, ipproto::SCTP).unwrap();
                rustix::net::sendto(&sender, &sctp_packet(port), SendFlags::empty(), &to).unwrap();
            });
            rustix::net::recv(&server, &mut [0; 128], RecvFlags::empty()).is_ok()
        };
        assert_eq!(
            [arrives(from, 3868), arrives(other, 3868), arrives(other, 3869)],
            [true, false, true],
            "{vip}"
        );
    }
}
