//! The asking itself: one TCP connection and one GET a tick, at native speed, in the namespace it runs in.
//!
//! Owns the form of a sample, one line of JSON each. Requests start on time whatever became of the earlier
//! ones. Never judges: that is the report's.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A request without an answer by then has failed. TCP sends a lost packet again after a second (RFC 6298), which a program that
/// asks waits for: an emulated machine that stands still for a moment loses packets of its own.
pub const ANSWER_LIMIT: Duration = Duration::from_millis(2500);

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The connection was refused.
    Refused,
    /// The connection was reset or closed.
    Reset,
    /// No answer within [`ANSWER_LIMIT`].
    Timeout,
    /// No route, no such host.
    Unreachable,
    /// This host's own firewall dropped it.
    Denied,
    /// An answer that is no HTTP 200.
    BadAnswer,
    /// Anything else.
    Other,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// HTTP 200.
    Answered {
        /// Node that answered, from the X-Node header, empty without one.
        node: String,
        /// Pod that answered, from the X-Pod header, empty without one.
        pod: String,
        /// The first line of the body.
        body: String,
    },
    /// No answer that counts.
    Failed(Failure),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The number of the connection that it was made on, from 1; 0 for one that had a connection of its own.
    pub connection: u32,
    /// When it was started, in microseconds since the epoch.
    pub start_us: u64,
    /// When its outcome was known, in microseconds since the epoch.
    pub end_us: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// Asks until stdin ends, then waits for the last answers.
pub fn run(address: IpAddr, port: u16, interval: Duration) {
    let target = SocketAddr::new(address, port);
    each(interval, None, move |_| ask(target));
}

/// Makes a request every `interval`, each in a thread of its own, and waits for the last answers.
pub fn each(interval: Duration, count: Option<u64>, ask: impl Fn(u64) -> Sample + Send + Sync + 'static) {
    let (ask, open) = (Arc::new(ask), Arc::new(AtomicUsize::new(0)));
    tick(interval, count, |number| {
        let (ask, open) = (Arc::clone(&ask), Arc::clone(&open));
        open.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            report(&ask(number));
            open.fetch_sub(1, Ordering::SeqCst);
        });
    });
    settle(|| open.load(Ordering::SeqCst) == 0);
}

/// Waits until all is answered, or has had the time to be.
pub fn settle(is_settled: impl Fn() -> bool) {
    // Every request has a limit, so after that much all are through.
    let limit = Instant::now() + ANSWER_LIMIT + Duration::from_millis(200);
    while !is_settled() && Instant::now() < limit {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Calls `act` with 0, 1, 2 and so on, once every `interval`, `count` times or until stdin ends.
pub fn tick(interval: Duration, count: Option<u64>, act: impl Fn(u64)) {
    let stop = Arc::new(AtomicBool::new(false));
    if count.is_none() {
        let flag = Arc::clone(&stop);
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
            flag.store(true, Ordering::Relaxed);
        });
    }
    let begin = Instant::now();
    let mut due = Duration::ZERO;
    for number in 0..count.unwrap_or(u64::MAX) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        act(number);
        due += interval;
        thread::sleep(due.saturating_sub(begin.elapsed()));
    }
}

/// Makes one request.
pub fn ask(target: SocketAddr) -> Sample {
    let start_us = now_us();
    let begin = Instant::now();
    let answer =
        TcpStream::connect_timeout(&target, ANSWER_LIMIT).and_then(|stream| get(stream, target, begin));
    let outcome = match answer {
        Ok(text) => judge(&text),
        Err(error) => Outcome::Failed(failure(&error)),
    };
    Sample { connection: 0, start_us, end_us: now_us(), outcome }
}

/// What is left of the time for an answer to a request that began then.
pub(crate) fn left(begin: Instant) -> io::Result<Duration> {
    let left = ANSWER_LIMIT.saturating_sub(begin.elapsed());
    if left.is_zero() { Err(io::Error::from(ErrorKind::TimedOut)) } else { Ok(left) }
}

/// The whole answer to a GET on a connection that was begun then.
pub(crate) fn get(mut stream: TcpStream, target: SocketAddr, begin: Instant) -> io::Result<String> {
    // HTTP/1.0: the server closes, so the end of the answer is the end of the stream.
    write!(stream, "GET / HTTP/1.0\r\nHost: {target}\r\nUser-Agent: lab-probe\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(begin)?))?;
        match stream.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

pub(crate) fn judge(answer: &str) -> Outcome {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines = head.lines();
    if lines.next().and_then(|line| line.split(' ').nth(1)) != Some("200") {
        return Outcome::Failed(Failure::BadAnswer);
    }
    let mut headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Outcome::Answered {
        node: headers.remove("x-node").unwrap_or_default(),
        pod: headers.remove("x-pod").unwrap_or_default(),
        body: body.lines().next().unwrap_or_default().to_owned(),
    }
}

pub(crate) fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Failure::Reset,
        // A read that runs into its limit is told as WouldBlock.
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::Timeout,
        ErrorKind::PermissionDenied => Failure::Denied,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Failure::Unreachable,
        _ => Failure::Other,
    }
}

pub(crate) fn report(sample: &Sample) {
    let line = serde_json::to_string(sample).expect("a sample is plain data");
    // Whoever listens may be gone; then nobody misses the line.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

pub(crate) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).expect("microseconds fit for 500,000 years")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_names_its_node_and_pod() {
        let text = "HTTP/1.1 200 OK\r\nX-Node: node-a\r\nx-pod: web-1\r\n\r\nnode-a web-1 saw 10.0.0.1\n";
        let Outcome::Answered { node, pod, body } = judge(text) else { panic!("not answered") };
        assert_eq!((&*node, &*pod, &*body), ("node-a", "web-1", "node-a web-1 saw 10.0.0.1"));
    }

    #[test]
    fn what_is_no_200_is_no_answer() {
        for text in ["", "HTTP/1.1 502 Bad Gateway\r\n\r\n", "SSH-2.0-dropbear\r\n"] {
            assert_eq!(judge(text), Outcome::Failed(Failure::BadAnswer), "{text:?}");
        }
    }

    #[test]
    fn a_silent_server_is_a_timeout_and_a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        assert_eq!(ask(address).outcome, Outcome::Failed(Failure::Timeout));
        drop(listener);
        assert_eq!(ask(address).outcome, Outcome::Failed(Failure::Refused));
    }
}
