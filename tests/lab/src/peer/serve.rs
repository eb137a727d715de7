//! The answering end: one thread a listener, for as long as the process lives.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};

use super::{LONGEST, Transport, answer};

/// Said on standard output when all listeners are there.
pub const READY: &str = "lab-peer: ready";
/// A peer that says nothing for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where to listen: `udp:10.2.4.10:53` or `sctp:[fd00:2:4::10]:3868`; over TCP too lines are answered, not HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    transport: Transport,
    address: SocketAddr,
}

impl FromStr for Listener {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (transport, address) = text.split_once(':').context("a listener is transport:address:port")?;
        let address = address.parse().with_context(|| format!("{address} is no address and port"))?;
        Ok(Self { transport: transport.parse()?, address })
    }
}

/// Answers as `pod` on `node` until killed.
pub fn run(node: &str, pod: &str, listeners: &[Listener]) -> anyhow::Result<()> {
    let name = Name { node: node.to_owned(), pod: pod.to_owned() };
    for listener in listeners {
        start(&name, *listener)
            .with_context(|| format!("cannot listen on {} {}", listener.transport, listener.address))?;
    }
    println!("{READY}");
    loop {
        thread::park();
    }
}

#[derive(Debug, Clone)]
struct Name {
    node: String,
    pod: String,
}

impl Name {
    fn answer(&self, question: &[u8], peer: IpAddr) -> String {
        answer(&String::from_utf8_lossy(question), &self.node, &self.pod, peer)
    }
}

fn start(name: &Name, listener: Listener) -> anyhow::Result<()> {
    let name = name.clone();
    if listener.transport == Transport::Udp {
        let socket = UdpSocket::bind(listener.address)?;
        thread::spawn(move || datagrams(&name, &socket));
        return Ok(());
    }
    let socket = stream_socket(listener.transport, listener.address)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listener.address.into())?;
    socket.listen(128)?;
    thread::spawn(move || streams(&name, &socket));
    Ok(())
}

/// A socket for TCP, or for SCTP in its one-to-one style.
pub(super) fn stream_socket(transport: Transport, address: SocketAddr) -> std::io::Result<Socket> {
    // Its number in the registry of IP protocols; socket2 names it for some systems only.
    let protocol = if transport == Transport::Sctp { Protocol::from(132) } else { Protocol::TCP };
    Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))
}

fn datagrams(name: &Name, socket: &UdpSocket) {
    let mut buffer = [0; LONGEST];
    loop {
        // An ICMP error on an earlier answer arrives as an error here, and is nothing to us.
        if let Ok((count, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.answer(&buffer[..count], peer.ip()).as_bytes(), peer);
        }
    }
}

fn streams(name: &Name, socket: &Socket) {
    loop {
        let Ok((stream, peer)) = socket.accept() else { continue };
        let Some(peer) = peer.as_socket() else { continue };
        let name = name.clone();
        thread::spawn(move || converse(&name, &stream, peer.ip()));
    }
}

/// Answers each question, also those that come several at a time; a peer that breaks off needs no answer.
fn converse(name: &Name, stream: &Socket, peer: IpAddr) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_tcp_nodelay(true);
    let mut questions = BufReader::new(stream);
    let mut question = Vec::new();
    while let Ok(1..) = questions.read_until(b'\n', &mut question) {
        let mut stream = stream;
        if stream.write_all(name.answer(&question, peer).as_bytes()).is_err() {
            return;
        }
        question.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_transport_address_and_port() {
        let v6: Listener = "sctp:[fd00:2:4::10]:3868".parse().unwrap();
        assert_eq!((v6.transport, v6.address.to_string()), (Transport::Sctp, "[fd00:2:4::10]:3868".into()));
        for wrong in ["10.2.4.10:53", "udp:10.2.4.10", "icmp:10.2.4.10:1"] {
            assert!(wrong.parse::<Listener>().is_err(), "{wrong}");
        }
    }
}
