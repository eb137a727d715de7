//! Connections that are held: a question a tick on each, and a sample for each question, however late its answer.
//!
//! A connection over UDP is a socket of its own, so all that it sends has one source and one destination. Owns the sockets of
//! one run. Never judges: that is the report's.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::ask::Question;
use super::serve::stream_socket;
use super::{Transport, understand};
use crate::prober::{self, Failure, Outcome, Sample, failure, now_us};

/// What a connection may take to open: a lost first packet is sent again after a second.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// Opens so many connections, asks until the count is reached or standard input ends, and waits for the last answers.
pub fn run(question: &Question, connections: u16) {
    let held: Vec<_> = (0..connections).filter_map(|place| Held::open(question, place)).collect();
    prober::tick(Duration::from_millis(question.every_ms), question.count, |number| {
        for held in &held {
            held.ask(&question.line(number), number);
        }
    });
    prober::settle(|| held.iter().all(|held| held.state().open.is_empty()));
    for held in &held {
        held.end(Failure::Timeout);
    }
}

/// One connection.
#[derive(Debug)]
struct Held {
    connection: u32,
    is_stream: bool,
    socket: Socket,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Questions by their number, with when they were asked, in microseconds since the epoch.
    open: BTreeMap<u64, u64>,
    has_ended: bool,
}

impl Held {
    /// Connects, and starts to listen for answers; a failure is a sample.
    fn open(question: &Question, place: u16) -> Option<Arc<Self>> {
        let (connection, start_us) = (u32::from(place) + 1, now_us());
        match connect(question, place) {
            Ok(socket) => {
                let is_stream = question.transport != Transport::Udp;
                let held = Arc::new(Self { connection, is_stream, socket, state: Mutex::default() });
                let listening = Arc::clone(&held);
                thread::spawn(move || listening.listen());
                Some(held)
            }
            Err(error) => {
                let outcome = Outcome::Failed(failure(&error));
                prober::report(&Sample { connection, start_us, end_us: now_us(), outcome });
                None
            }
        }
    }

    fn ask(&self, line: &str, number: u64) {
        {
            let mut state = self.state();
            if state.has_ended {
                return;
            }
            state.open.insert(number, now_us());
        }
        if let Err(error) = (&self.socket).write_all(line.as_bytes()) {
            self.fail(&error);
        }
    }

    /// Takes answers until the connection ends. A datagram is a line, so it is read like a stream.
    fn listen(&self) {
        let mut lines = BufReader::new(&self.socket);
        let mut line = String::new();
        while !self.state().has_ended {
            line.clear();
            match lines.read_line(&mut line) {
                Ok(0) => self.end(Failure::Reset),
                Ok(_) => self.answered(&line),
                Err(error) => self.fail(&error),
            }
        }
    }

    fn answered(&self, line: &str) {
        let Some((token, outcome)) = understand(line) else { return };
        let Ok(number) = token.parse() else { return };
        let mut state = self.state();
        if let Some(start_us) = state.open.remove(&number) {
            self.report(start_us, outcome);
        }
    }

    /// A stream has ended. ICMP does not say which datagram it is about: the last one, as far as anybody can tell.
    fn fail(&self, error: &io::Error) {
        if self.is_stream {
            return self.end(failure(error));
        }
        let mut state = self.state();
        if let Some((_, start_us)) = state.open.pop_last() {
            self.report(start_us, Outcome::Failed(failure(error)));
        }
    }

    /// Nothing more is asked or answered. What is open has failed; where nothing is, the end itself is the failure, unless
    /// it is ours.
    fn end(&self, how: Failure) {
        let mut state = self.state();
        if state.has_ended {
            return;
        }
        state.has_ended = true;
        if state.open.is_empty() && how != Failure::Timeout {
            self.report(now_us(), Outcome::Failed(how));
        }
        for start_us in std::mem::take(&mut state.open).into_values() {
            self.report(start_us, Outcome::Failed(how));
        }
    }

    /// Called with the state locked: whoever ends the program finds all reported that is no longer open.
    fn report(&self, start_us: u64, outcome: Outcome) {
        prober::report(&Sample { connection: self.connection, start_us, end_us: now_us(), outcome });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(question: &Question, place: u16) -> io::Result<Socket> {
    let socket = match question.transport {
        Transport::Udp => {
            Socket::new(Domain::for_address(question.target), Type::DGRAM, Some(Protocol::UDP))?
        }
        stream => stream_socket(stream, question.target)?,
    };
    socket.bind(&question.source(place).into())?;
    socket.connect_timeout(&question.target.into(), OPEN_LIMIT)?;
    if question.transport == Transport::Tcp {
        // A question is not to wait for the answer to the one before.
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn held(transport: Transport, target: std::net::SocketAddr) -> Arc<Held> {
        Held::open(&Question::new(transport, target), 0).unwrap()
    }

    /// Asks 0, 1, ..., and answers what was read after all of them.
    fn check(held: &Held, read: impl Fn() -> String, write: impl Fn(&str)) {
        for number in 0..3 {
            held.ask(&format!("{number}\n"), number);
        }
        let mut asked = String::new();
        while asked.lines().count() < 3 {
            asked += &read();
        }
        assert_eq!(asked, "0\n1\n2\n");
        for token in asked.lines() {
            write(&format!("{token} node-a echo-1 saw 127.0.0.1\n"));
        }
        prober::settle(|| held.state().open.is_empty());
        assert!(held.state().open.is_empty());
    }

    fn text(buffer: &[u8]) -> String {
        String::from_utf8_lossy(buffer).into_owned()
    }

    fn read(mut stream: &TcpStream) -> String {
        let mut buffer = [0; 64];
        let count = io::Read::read(&mut stream, &mut buffer).unwrap();
        text(&buffer[..count])
    }

    #[test]
    fn a_stream_is_asked_and_answered_until_it_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = held(Transport::Tcp, listener.local_addr().unwrap());
        let (stream, _) = listener.accept().unwrap();
        check(&held, || read(&stream), |answer| (&stream).write_all(answer.as_bytes()).unwrap());
        drop(stream);
        prober::settle(|| held.state().has_ended);
        held.ask("4\n", 4);
        let state = held.state();
        assert!(state.has_ended && state.open.is_empty());
    }

    #[test]
    fn a_flow_has_one_port_and_outlives_a_refusal() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let held = held(Transport::Udp, server.local_addr().unwrap());
        let client = held.socket.local_addr().unwrap().as_socket().unwrap();
        let receive = || {
            let mut buffer = [0; 64];
            let (count, peer) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(peer, client);
            text(&buffer[..count])
        };
        check(&held, receive, |answer| {
            server.send_to(answer.as_bytes(), client).unwrap();
        });
        drop(server);
        held.ask("4\n", 4);
        prober::settle(|| held.state().open.is_empty());
        let state = held.state();
        assert!(state.open.is_empty() && !state.has_ended, "{state:?}");
    }
}
