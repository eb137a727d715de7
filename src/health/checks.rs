//! Checks of static backends, which no cluster vouches for: a TCP connection every 2 s.
//!
//! The rules are pure, in [`Checks`]; [`spawn`] gives them sockets. An accepted connection is closed at once; a refused one,
//! or none within 1.5 s, is a miss. Two misses in a row take a backend out, one answer brings it back. Every node checks for
//! itself. Where all are out derive serves all: the checks may be what is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::report::beats;

/// Between two rounds of checks.
const EVERY: Duration = Duration::from_secs(2);
/// How long a backend may take to accept.
const LIMIT: Duration = Duration::from_millis(1500);
/// So many misses in a row take a backend out.
const FALL: u8 = 2;

/// What the checks have found so far. Backends nobody has looked at yet count as answering.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checks {
    misses: BTreeMap<SocketAddr, u8>,
}

impl Checks {
    /// Takes note of one check's outcome.
    pub fn note(&mut self, backend: SocketAddr, accepted: bool) {
        let misses = self.misses.entry(backend).or_insert(0);
        *misses = if accepted { 0 } else { misses.saturating_add(1) };
    }

    /// Forgets backends that are not checked any more.
    pub fn keep(&mut self, backends: &BTreeSet<SocketAddr>) {
        self.misses.retain(|backend, _| backends.contains(backend));
    }

    /// The backends that do not answer.
    pub fn out(&self) -> BTreeSet<SocketAddr> {
        self.misses.iter().filter(|(_, misses)| **misses >= FALL).map(|(backend, _)| *backend).collect()
    }
}

/// Checks `backends` for as long as somebody listens; the receiver has those that do not answer.
pub fn spawn(backends: watch::Receiver<BTreeSet<SocketAddr>>) -> watch::Receiver<BTreeSet<SocketAddr>> {
    let (sender, receiver) = watch::channel(BTreeSet::new());
    tokio::spawn(run(backends, sender));
    receiver
}

async fn run(mut backends: watch::Receiver<BTreeSet<SocketAddr>>, out: watch::Sender<BTreeSet<SocketAddr>>) {
    let mut checks = Checks::default();
    loop {
        beats::beat("checks", beats::PROMPT);
        let next = Instant::now() + EVERY;
        let now = backends.borrow_and_update().clone();
        checks.keep(&now);
        let mut round: FuturesUnordered<_> = now.into_iter().map(check).collect();
        while let Some((backend, accepted)) = round.next().await {
            checks.note(backend, accepted);
        }
        publish(&out, checks.out());
        tokio::select! {
            () = out.closed() => return,
            () = sleep_until(next) => {}
            changed = backends.changed() => if changed.is_err() { return },
        }
    }
}

async fn check(backend: SocketAddr) -> (SocketAddr, bool) {
    let accepted = matches!(timeout(LIMIT, TcpStream::connect(backend)).await, Ok(Ok(_)));
    (backend, accepted)
}

fn publish(sender: &watch::Sender<BTreeSet<SocketAddr>>, out: BTreeSet<SocketAddr>) {
    sender.send_if_modified(|known| {
        for backend in out.difference(known) {
            warn!(%backend, "static backend {backend} does not answer");
        }
        for backend in known.difference(&out) {
            info!(%backend, "static backend {backend} answers again, or is not checked any more");
        }
        let changed = *known != out;
        *known = out;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_misses_take_out_and_one_answer_brings_back() {
        let backend: SocketAddr = "10.87.2.4:6443".parse().unwrap();
        let mut checks = Checks::default();
        for (accepted, out) in [(false, false), (true, false), (false, false), (false, true), (true, false)] {
            checks.note(backend, accepted);
            assert_eq!(checks.out().contains(&backend), out);
        }
        checks.note(backend, false);
        checks.note(backend, false);
        checks.keep(&BTreeSet::new());
        assert!(checks.out().is_empty());
    }

    #[tokio::test]
    async fn a_listener_that_goes_is_found_out_and_found_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = listener.local_addr().unwrap();
        let (_targets, backends) = watch::channel(BTreeSet::from([backend]));
        let mut out = spawn(backends);
        drop(listener);
        let limit = Duration::from_secs(60);
        let gone = timeout(limit, out.wait_for(|out| out.contains(&backend))).await;
        assert!(gone.is_ok());
        drop(gone);
        let _listener = tokio::net::TcpListener::bind(backend).await.unwrap();
        assert!(timeout(limit, out.wait_for(BTreeSet::is_empty)).await.is_ok());
    }
}
