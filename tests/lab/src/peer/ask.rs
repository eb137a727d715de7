//! The asking end: a question a tick, each from a socket of its own or over connections that are held, and a sample for each.
//!
//! Owns the words of a question and the sockets of one. Never judges: that is the report's.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::serve::stream_socket;
use super::{LONGEST, Transport, hold, understand};
use crate::prober::{self, ANSWER_LIMIT, Failure, Outcome, Sample, failure, now_us};

/// A datagram without an answer by then is lost: nobody sends it again.
const DATAGRAM_LIMIT: Duration = Duration::from_millis(900);

/// What is asked, from where and how often; on a command line as [`Question::arguments`] says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Question {
    /// tcp (an HTTP GET, or lines where connections are held), udp or sctp.
    pub transport: Transport,
    /// Address and port, such as 10.87.2.50:53 or [fd00:87:2::50]:53.
    pub target: SocketAddr,
    /// Milliseconds between the starts of two requests.
    #[arg(long, default_value_t = 100)]
    pub every_ms: u64,
    /// End after so many requests; without it, when standard input ends.
    #[arg(long)]
    pub count: Option<u64>,
    /// Ask from this address of the host.
    #[arg(long)]
    pub source_address: Option<IpAddr>,
    /// Hold so many connections and ask each at every tick; over UDP that is a port each.
    #[arg(long)]
    pub connections: Option<u16>,
    /// Hold connections from this port on.
    #[arg(long, requires = "connections")]
    pub source_port: Option<u16>,
    /// Have each answer padded to so many octets, on connections that are held.
    #[arg(long, requires = "connections")]
    pub octets: Option<usize>,
}

impl Question {
    /// Ten times a second from any port, until told to stop.
    pub fn new(transport: Transport, target: SocketAddr) -> Self {
        Self {
            transport,
            target,
            every_ms: 100,
            count: None,
            source_address: None,
            connections: None,
            source_port: None,
            octets: None,
        }
    }

    /// So often.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { every_ms: u64::try_from(interval.as_millis()).expect("a tick is short"), ..self }
    }

    /// So often and no more.
    #[must_use]
    pub fn count(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// On so many connections that are held.
    #[must_use]
    pub fn connections(self, connections: u16) -> Self {
        Self { connections: Some(connections), ..self }
    }

    /// On connections that are held, from that port and those that follow.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        Self { source_port: Some(port), connections: self.connections.or(Some(1)), ..self }
    }

    /// On connections that are held, for answers of that length.
    #[must_use]
    pub fn octets(self, octets: usize) -> Self {
        Self { octets: Some(octets), connections: self.connections.or(Some(1)), ..self }
    }

    /// From that address, which the asking host has.
    #[must_use]
    pub fn from_address(self, address: IpAddr) -> Self {
        Self { source_address: Some(address), ..self }
    }

    /// The words of a shell that ask this, behind `lab-peer`.
    pub fn arguments(&self) -> String {
        let Self { transport, target, every_ms, .. } = self;
        let mut words = format!("ask {transport} {target} --every-ms {every_ms}");
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                write!(words, " --{name} {value}").expect("a String takes all text");
            }
        };
        option("count", self.count.map(|count| count.to_string()));
        option("source-address", self.source_address.map(|address| address.to_string()));
        option("connections", self.connections.map(|connections| connections.to_string()));
        option("source-port", self.source_port.map(|port| port.to_string()));
        option("octets", self.octets.map(|octets| octets.to_string()));
        words
    }

    /// The words of the question of that number.
    pub(super) fn line(&self, number: u64) -> String {
        self.octets.map_or_else(|| format!("{number}\n"), |octets| format!("{number} {octets}\n"))
    }

    /// Where from, with `offset` added to a port that was named.
    pub(super) fn source(&self, offset: u16) -> SocketAddr {
        let any =
            if self.target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        SocketAddr::new(self.source_address.unwrap_or(any), self.source_port.map_or(0, |port| port + offset))
    }
}

/// Asks until the count is reached or standard input ends, and waits for the last answers.
pub fn run(question: Question) {
    if let Some(connections) = question.connections {
        return hold::run(&question, connections);
    }
    prober::each(Duration::from_millis(question.every_ms), question.count, move |number| {
        ask(&question, number)
    });
}

/// One request from a socket of its own.
pub fn ask(question: &Question, number: u64) -> Sample {
    let start_us = now_us();
    let outcome = converse(question, number).unwrap_or_else(|error| Outcome::Failed(failure(&error)));
    Sample { connection: 0, start_us, end_us: now_us(), outcome }
}

fn converse(question: &Question, number: u64) -> io::Result<Outcome> {
    if question.transport == Transport::Udp {
        return exchange(question, number);
    }
    let begin = Instant::now();
    let socket = stream_socket(question.transport, question.target)?;
    // A request that follows at once from the same port is not to fail for the one before.
    socket.set_reuse_address(true)?;
    socket.bind(&question.source(0).into())?;
    socket.connect_timeout(&question.target.into(), ANSWER_LIMIT)?;
    if question.transport == Transport::Tcp {
        return prober::get(socket.into(), question.target, begin).map(|text| prober::judge(&text));
    }
    associate(socket, question, number, begin)
}

/// A message each way in one association.
fn associate(mut socket: Socket, question: &Question, number: u64, begin: Instant) -> io::Result<Outcome> {
    socket.set_read_timeout(Some(prober::left(begin)?))?;
    socket.write_all(question.line(number).as_bytes())?;
    let mut buffer = [0; LONGEST];
    let count = socket.read(&mut buffer)?;
    Ok(outcome(&buffer[..count]))
}

fn exchange(question: &Question, number: u64) -> io::Result<Outcome> {
    let socket = UdpSocket::bind(question.source(0))?;
    socket.connect(question.target)?;
    socket.set_read_timeout(Some(DATAGRAM_LIMIT))?;
    socket.send(question.line(number).as_bytes())?;
    let mut buffer = [0; LONGEST];
    let count = socket.recv(&mut buffer)?;
    Ok(outcome(&buffer[..count]))
}

fn outcome(answer: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(answer);
    understand(&text).map_or(Outcome::Failed(Failure::BadAnswer), |(_, outcome)| outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    use crate::peer::answer;

    fn loopback(transport: Transport) -> (UdpSocket, Question) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let question = Question::new(transport, server.local_addr().unwrap());
        (server, question)
    }

    /// Answers one datagram.
    fn answer_one(server: &UdpSocket) {
        let mut buffer = [0; LONGEST];
        let (count, peer) = server.recv_from(&mut buffer).unwrap();
        let question = String::from_utf8_lossy(&buffer[..count]);
        server.send_to(answer(&question, "node-a", "echo-1", peer.ip()).as_bytes(), peer).unwrap();
    }

    #[test]
    fn a_datagram_is_answered_and_says_who_was_seen() {
        let (server, question) = loopback(Transport::Udp);
        let answering = thread::spawn(move || answer_one(&server));
        let Outcome::Answered { node, pod, body } = ask(&question, 7).outcome else { panic!("not answered") };
        assert_eq!((&*node, &*pod, &*body), ("node-a", "echo-1", "node-a echo-1 saw 127.0.0.1"));
        answering.join().unwrap();
    }

    #[test]
    fn silence_is_a_timeout_and_a_closed_port_is_refused() {
        let (server, question) = loopback(Transport::Udp);
        assert_eq!(ask(&question, 0).outcome, Outcome::Failed(Failure::Timeout));
        drop(server);
        assert_eq!(ask(&question, 0).outcome, Outcome::Failed(Failure::Refused));
        let tcp = Question { transport: Transport::Tcp, ..question };
        assert_eq!(ask(&tcp, 0).outcome, Outcome::Failed(Failure::Refused));
    }

    #[test]
    fn a_command_line_says_what_was_asked() {
        let target = "[fd00:87:2::50]:53".parse().unwrap();
        let question = Question::new(Transport::Udp, target).from_port(40_053).count(2);
        let expected =
            "ask udp [fd00:87:2::50]:53 --every-ms 100 --count 2 --connections 1 --source-port 40053";
        assert_eq!(question.arguments(), expected);
        let source = "fd00:87:2::201".parse().unwrap();
        let question = Question::new(Transport::Sctp, target).from_address(source);
        let expected = "ask sctp [fd00:87:2::50]:53 --every-ms 100 --source-address fd00:87:2::201";
        assert_eq!(question.arguments(), expected);
    }
}
