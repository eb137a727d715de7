//! The asking itself: one TCP connection and one GET a tick, at native speed, in the namespace it runs in.
//!
//! Owns the form of a sample, one line of JSON each. Requests start on time whatever became of the earlier
//! ones. Never judges: that is the report's.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A request without an answer by then has failed.
pub const ANSWER_LIMIT: Duration = Duration::from_millis(900);

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// No answer within [`ANSWER_LIMIT`].
    Timeout,
    /// No route, no such host.
    Unreachable,
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
    /// When it was started, in microseconds since the epoch.
    pub start_us: u64,
    /// When its outcome was known, in microseconds since the epoch.
    pub end_us: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// Asks until stdin ends, then waits for the last answers.
pub fn run(address: IpAddr, port: u16, interval: Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
        flag.store(true, Ordering::Relaxed);
    });
    let target = SocketAddr::new(address, port);
    let begin = Instant::now();
    let mut due = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        // The last answers are waited for below, by number.
        thread::spawn(move || report(&ask(target)));
        due += interval;
        thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    // Every request has a limit, so after that much all are through.
    thread::sleep(ANSWER_LIMIT + Duration::from_millis(200));
}

/// Makes one request.
pub fn ask(target: SocketAddr) -> Sample {
    let start_us = now_us();
    let outcome = match get(target) {
        Ok(text) => judge(&text),
        Err(error) => Outcome::Failed(failure(&error)),
    };
    Sample { start_us, end_us: now_us(), outcome }
}

fn get(target: SocketAddr) -> io::Result<String> {
    let begin = Instant::now();
    let left = || {
        let left = ANSWER_LIMIT.saturating_sub(begin.elapsed());
        if left.is_zero() { Err(io::Error::from(ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let mut stream = TcpStream::connect_timeout(&target, left()?)?;
    // HTTP/1.0: the server closes, so the end of the answer is the end of the stream.
    write!(stream, "GET / HTTP/1.0\r\nHost: {target}\r\nUser-Agent: lab-probe\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

fn judge(answer: &str) -> Outcome {
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

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Failure::Reset,
        // A read that runs into its limit is told as WouldBlock.
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::Timeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Failure::Unreachable,
        _ => Failure::Other,
    }
}

fn report(sample: &Sample) {
    let line = serde_json::to_string(sample).expect("a sample is plain data");
    // Whoever listens may be gone; then nobody misses the line.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn now_us() -> u64 {
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
