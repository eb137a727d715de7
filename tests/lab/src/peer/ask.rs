//! The asking end: a question a tick, from a port of its own each or all from one, and a sample for each.
//!
//! Owns the sockets of one run. Never judges: that is the report's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::serve::stream_socket;
use super::{LONGEST, Transport, understand};
use crate::prober::{self, ANSWER_LIMIT, Failure, Outcome, Sample, failure, now_us};

/// How often a socket that all questions share is looked at for what is overdue.
const LOOK: Duration = Duration::from_millis(50);

/// What is asked, from where and how often; on a command line as [`Question::arguments`] says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Question {
    /// tcp (an HTTP GET), udp or sctp.
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
    /// Ask from this port: over UDP all from one socket.
    #[arg(long)]
    pub source_port: Option<u16>,
}

impl Question {
    /// Ten times a second from any port, until told to stop.
    pub fn new(transport: Transport, target: SocketAddr) -> Self {
        Self { transport, target, every_ms: 100, count: None, source_address: None, source_port: None }
    }

    /// So often and no more.
    #[must_use]
    pub fn count(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// From that port.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        Self { source_port: Some(port), ..self }
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
        option("source-port", self.source_port.map(|port| port.to_string()));
        words
    }

    fn source(&self) -> SocketAddr {
        let any =
            if self.target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        SocketAddr::new(self.source_address.unwrap_or(any), self.source_port.unwrap_or(0))
    }
}

/// Asks until the count is reached or standard input ends, and waits for the last answers.
pub fn run(question: Question) -> io::Result<()> {
    let interval = Duration::from_millis(question.every_ms);
    if question.transport == Transport::Udp && question.source_port.is_some() {
        let flow = Flow::start(&question)?;
        prober::tick(interval, question.count, |number| flow.ask(number));
        prober::settle(|| flow.open.lock().unwrap_or_else(PoisonError::into_inner).is_empty());
    } else {
        prober::each(interval, question.count, move |number| ask(&question, number));
    }
    Ok(())
}

/// One request from a socket of its own.
pub fn ask(question: &Question, number: u64) -> Sample {
    let start_us = now_us();
    let outcome = converse(question, number).unwrap_or_else(|error| Outcome::Failed(failure(&error)));
    Sample { start_us, end_us: now_us(), outcome }
}

fn converse(question: &Question, number: u64) -> io::Result<Outcome> {
    if question.transport == Transport::Udp {
        return exchange(question, number);
    }
    let begin = Instant::now();
    let socket = stream_socket(question.transport, question.target)?;
    // A request that follows at once from the same port is not to fail for the one before.
    socket.set_reuse_address(true)?;
    socket.bind(&question.source().into())?;
    socket.connect_timeout(&question.target.into(), ANSWER_LIMIT)?;
    if question.transport == Transport::Tcp {
        return prober::get(socket.into(), question.target, begin).map(|text| prober::judge(&text));
    }
    associate(socket, number, begin)
}

/// A message each way in one association.
fn associate(mut socket: Socket, number: u64, begin: Instant) -> io::Result<Outcome> {
    socket.set_read_timeout(Some(prober::left(begin)?))?;
    socket.write_all(format!("{number}\n").as_bytes())?;
    let mut buffer = [0; LONGEST];
    let count = socket.read(&mut buffer)?;
    Ok(outcome(&buffer[..count]))
}

fn exchange(question: &Question, number: u64) -> io::Result<Outcome> {
    let socket = UdpSocket::bind(question.source())?;
    socket.connect(question.target)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    socket.send(format!("{number}\n").as_bytes())?;
    let mut buffer = [0; LONGEST];
    let count = socket.recv(&mut buffer)?;
    Ok(outcome(&buffer[..count]))
}

fn outcome(answer: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(answer);
    understand(&text).map_or(Outcome::Failed(Failure::BadAnswer), |(_, outcome)| outcome)
}

/// Questions by their number, with when they were asked, in microseconds since the epoch.
type Open = Arc<Mutex<BTreeMap<u64, u64>>>;

/// Datagrams that all have one source and one destination, as those of a resolver or a tunnel do.
struct Flow {
    socket: Arc<UdpSocket>,
    open: Open,
}

impl Flow {
    fn start(question: &Question) -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind(question.source())?);
        socket.connect(question.target)?;
        socket.set_read_timeout(Some(LOOK))?;
        let open = Open::default();
        let flow = Self { socket: Arc::clone(&socket), open: Arc::clone(&open) };
        thread::spawn(move || receive(&socket, &open));
        Ok(flow)
    }

    fn ask(&self, number: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, now_us());
        if let Err(error) = self.socket.send(format!("{number}\n").as_bytes()) {
            close(&self.open, number, Outcome::Failed(failure(&error)));
        }
    }
}

fn receive(socket: &UdpSocket, open: &Open) {
    let mut buffer = [0; LONGEST];
    loop {
        match socket.recv(&mut buffer) {
            Ok(count) => {
                let text = String::from_utf8_lossy(&buffer[..count]);
                let understood =
                    understand(&text).and_then(|(token, outcome)| Some((token.parse().ok()?, outcome)));
                if let Some((number, outcome)) = understood {
                    close(open, number, outcome);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // ICMP does not say which datagram it is about: the last one, as far as anybody can tell.
            Err(error) => {
                let last = open.lock().unwrap_or_else(PoisonError::into_inner).keys().next_back().copied();
                if let Some(number) = last {
                    close(open, number, Outcome::Failed(failure(&error)));
                }
            }
        }
        for number in overdue(open) {
            close(open, number, Outcome::Failed(Failure::Timeout));
        }
    }
}

fn overdue(open: &Open) -> Vec<u64> {
    let limit = u64::try_from(ANSWER_LIMIT.as_micros()).expect("less than a second");
    let now = now_us();
    let open = open.lock().unwrap_or_else(PoisonError::into_inner);
    open.iter().filter(|(_, start_us)| now >= *start_us + limit).map(|(number, _)| *number).collect()
}

/// Reports a question, unless that was done.
fn close(open: &Open, number: u64, outcome: Outcome) {
    let start = open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    if let Some(start_us) = start {
        prober::report(&Sample { start_us, end_us: now_us(), outcome });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::answer;

    fn loopback(transport: Transport) -> (UdpSocket, Question) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let question = Question::new(transport, server.local_addr().unwrap());
        (server, question)
    }

    /// Answers one datagram; says from which port it came.
    fn answer_one(server: &UdpSocket) -> u16 {
        let mut buffer = [0; LONGEST];
        let (count, peer) = server.recv_from(&mut buffer).unwrap();
        let question = String::from_utf8_lossy(&buffer[..count]);
        server.send_to(answer(question.trim(), "node-a", "echo-1", peer.ip()).as_bytes(), peer).unwrap();
        peer.port()
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
    fn all_questions_of_a_flow_come_from_one_port() {
        let (server, question) = loopback(Transport::Udp);
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let flow = Flow::start(&question.from_port(port)).unwrap();
        for number in 0..3 {
            flow.ask(number);
            assert_eq!(answer_one(&server), port);
        }
        prober::settle(|| flow.open.lock().unwrap().is_empty());
        assert!(flow.open.lock().unwrap().is_empty());
    }

    #[test]
    fn a_command_line_says_what_was_asked() {
        let target = "[fd00:87:2::50]:53".parse().unwrap();
        let question = Question::new(Transport::Udp, target).from_port(40_053).count(2);
        let expected = "ask udp [fd00:87:2::50]:53 --every-ms 100 --count 2 --source-port 40053";
        assert_eq!(question.arguments(), expected);
        let source = "fd00:87:2::201".parse().unwrap();
        let question = Question::new(Transport::Sctp, target).from_address(source);
        let expected = "ask sctp [fd00:87:2::50]:53 --every-ms 100 --source-address fd00:87:2::201";
        assert_eq!(question.arguments(), expected);
    }
}
