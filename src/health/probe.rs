//! Probes nodes over TCP and tells who is dead: a clock and sockets for [`Health`].
//!
//! Owns one task. It probes from its start to its end, whether this node holds a VIP or not.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use super::clock::{now, wait};
use super::{Dead, Health, Outcome, Probe, Targets};
use crate::report::beats;

/// How long a node may take to answer: less than a period, so that a node's probes never overlap, and
/// more than a busy node's kernel takes.
const ANSWER_LIMIT: Duration = Duration::from_millis(800);

/// Nodes probed at the same time, so that a large cluster that does not answer cannot use up this process's
/// descriptors. Nodes that answer take milliseconds, so this does not slow them.
const IN_FLIGHT_MAX: usize = 256;

/// Probes `targets` on the TCP port `port` once a second each, until `targets` has no sender or the result no receiver.
///
/// `own` is this node's name; it is left out of the targets. A new value is there only when something differs.
pub fn spawn(own: &str, targets: watch::Receiver<Targets>, port: u16) -> watch::Receiver<Dead> {
    spawn_with(own, targets, port, knock)
}

/// The same with another way to connect.
fn spawn_with<C, F>(
    own: &str,
    targets: watch::Receiver<Targets>,
    port: u16,
    connect: C,
) -> watch::Receiver<Dead>
where
    C: Fn(SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let (sender, receiver) = watch::channel(Dead::default());
    let health = Health::new(own);
    tokio::spawn(async move { run(health, targets, port, &connect, &sender).await });
    receiver
}

async fn run<C, F>(
    mut health: Health,
    mut targets: watch::Receiver<Targets>,
    port: u16,
    connect: &C,
    sender: &watch::Sender<Dead>,
) where
    C: Fn(SocketAddr) -> F,
    F: Future<Output = io::Result<()>>,
{
    health.set_targets(&targets.borrow_and_update(), now());
    let mut in_flight = FuturesUnordered::new();
    loop {
        beats::beat("health", beats::PROMPT);
        let room = IN_FLIGHT_MAX - in_flight.len();
        in_flight.extend(health.due(now(), room).into_iter().map(|probe| ask(connect, probe, port)));
        let changed = tokio::select! {
            () = sender.closed() => return,
            result = targets.changed() => {
                if result.is_err() {
                    return;
                }
                health.set_targets(&targets.borrow_and_update(), now());
                true
            }
            Some((node, outcome)) = in_flight.next() => health.note(&node, outcome),
            () = wait(health.next_due()), if in_flight.len() < IN_FLIGHT_MAX => false,
            () = tokio::time::sleep(beats::EVERY) => false,
        };
        if changed {
            publish(sender, health.dead());
        }
    }
}

fn publish(sender: &watch::Sender<Dead>, dead: Dead) {
    sender.send_if_modified(|known| {
        let changed = *known != dead;
        if changed {
            info!(nodes = ?dead.nodes, suspended = dead.suspended, "dead nodes changed");
            *known = dead;
        }
        changed
    });
}

/// Probes all addresses of a node at once; the best outcome is the node's.
async fn ask<C, F>(connect: &C, probe: Probe, port: u16) -> (String, Outcome)
where
    C: Fn(SocketAddr) -> F,
    F: Future<Output = io::Result<()>>,
{
    let attempt = |ip| async move {
        match timeout(ANSWER_LIMIT, connect(SocketAddr::new(ip, port))).await {
            Ok(result) => judge(&result),
            Err(_) => Outcome::Miss,
        }
    };
    let mut attempts: FuturesUnordered<_> = probe.addresses.into_iter().map(attempt).collect();
    let mut best = Outcome::Unknown;
    while best < Outcome::Alive
        && let Some(outcome) = attempts.next().await
    {
        best = best.max(outcome);
    }
    (probe.node, best)
}

/// What the result of connect(2) says about the other side.
fn judge(result: &io::Result<()>) -> Outcome {
    match result.as_ref().map_err(io::Error::kind) {
        Ok(()) | Err(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => Outcome::Alive,
        Err(
            ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown,
        ) => Outcome::Miss,
        Err(_) => Outcome::Unknown,
    }
}

/// Learns whether `to` would accept a connection, without making one.
///
/// With quick acknowledgements off, the kernel holds back the last packet of the handshake, and without lingering
/// closing sends a reset in its place (tcp(7), socket(7)). So the process that listens is never woken; kubelet
/// would log a failed TLS handshake each second otherwise. It leaves no TIME_WAIT behind either.
pub(super) async fn knock(to: SocketAddr) -> io::Result<()> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    rustix::net::sockopt::set_tcp_quickack(&socket, false)?;
    socket.connect(to).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::sync::{Arc, Mutex};

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Longer than anything here takes, on the tests' clock.
    const LIMIT: Duration = Duration::from_secs(60);

    /// A network in which the addresses of `silent` do not answer.
    #[derive(Clone, Default)]
    struct Network {
        silent: Arc<Mutex<BTreeSet<IpAddr>>>,
        probes: Arc<Mutex<Vec<IpAddr>>>,
    }

    impl Network {
        fn silence(&self, addresses: &[u8]) {
            *self.silent.lock().unwrap() = addresses.iter().map(|n| address(*n)).collect();
        }

        async fn connect(self, to: SocketAddr) -> io::Result<()> {
            self.probes.lock().unwrap().push(to.ip());
            let silent = self.silent.lock().unwrap().contains(&to.ip());
            if silent { std::future::pending().await } else { Err(ErrorKind::ConnectionRefused.into()) }
        }
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn nodes(numbers: impl IntoIterator<Item = u8>) -> Targets {
        numbers.into_iter().map(|n| (format!("node-{n}"), vec![address(n)])).collect()
    }

    fn dead(names: &[&str], suspended: bool) -> Dead {
        Dead { nodes: names.iter().map(ToString::to_string).collect(), suspended }
    }

    /// A prober of `targets` in `network`, which has had answers from all that answer.
    async fn prober(targets: Targets, network: &Network) -> (watch::Sender<Targets>, watch::Receiver<Dead>) {
        let (sender, receiver) = watch::channel(targets);
        let network = network.clone();
        let result = spawn_with("own", receiver, 10250, move |to| network.clone().connect(to));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        (sender, result)
    }

    /// Waits for a change, which must be `wanted`, and says how long it took.
    async fn expect(result: &mut watch::Receiver<Dead>, wanted: &Dead) -> Duration {
        let start = tokio::time::Instant::now();
        timeout(LIMIT, result.changed()).await.expect("a change in time").expect("a prober");
        assert_eq!(*result.borrow_and_update(), *wanted);
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_death_is_known_in_time_whenever_it_happens() {
        let network = Network::default();
        let (_targets, mut result) = prober(nodes(1..4), &network).await;
        for late in 0..20 {
            tokio::time::sleep(Duration::from_millis(50 * late)).await;
            network.silence(&[2]);
            let took = expect(&mut result, &dead(&["node-2"], false)).await;
            assert!((2..4).contains(&took.as_secs()) && took.as_millis() <= 3810, "{took:?}");
            network.silence(&[]);
            let took = expect(&mut result, &dead(&[], false)).await;
            assert!(took.as_millis() <= 1010, "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_all_around_is_nobodys_death_neither_first_nor_last() {
        let network = Network::default();
        let (_targets, mut result) = prober(nodes(1..8), &network).await;
        for late in 0..20 {
            tokio::time::sleep(Duration::from_millis(50 * late)).await;
            network.silence(&[1, 2, 3, 4, 5, 6, 7]);
            expect(&mut result, &dead(&[], true)).await;
            tokio::time::sleep(Duration::from_millis(5000 + 50 * late)).await;
            network.silence(&[]);
            expect(&mut result, &dead(&[], false)).await;
            tokio::time::sleep(Duration::from_millis(1100)).await;
            assert!(!result.has_changed().expect("a prober"), "{:?}", *result.borrow());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn targets_follow_the_cluster() {
        let network = Network::default();
        network.silence(&[9]);
        let (targets, mut result) = prober(nodes([1, 9]), &network).await;
        targets.send_replace(nodes([1, 2, 9]));
        tokio::time::sleep(Duration::from_secs(2)).await;
        network.silence(&[2, 9]);
        expect(&mut result, &dead(&["node-2"], false)).await;
        targets.send_replace(nodes([1, 9]));
        expect(&mut result, &dead(&[], false)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_probed_once_a_second() {
        let network = Network::default();
        network.silence(&[2]);
        let (_targets, _result) = prober(nodes(1..4), &network).await;
        network.probes.lock().unwrap().clear();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let probes = network.probes.lock().unwrap();
        for n in 1..4 {
            let count = probes.iter().filter(|ip| **ip == address(n)).count();
            assert!((59..=60).contains(&count), "{n}: {count}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_that_answers_is_enough() {
        let network = Network::default();
        let mut targets = nodes(1..4);
        targets.get_mut("node-2").unwrap().push(address(22));
        let (_targets, mut result) = prober(targets, &network).await;
        network.silence(&[2, 3]);
        expect(&mut result, &dead(&["node-3"], false)).await;
        network.silence(&[2, 3, 22]);
        expect(&mut result, &dead(&["node-2", "node-3"], false)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_nodes_are_probed_in_bounded_numbers() {
        let targets: Targets = (0..1000_u16)
            .map(|n| {
                (format!("node-{n}"), vec![IpAddr::from([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]])])
            })
            .collect();
        let (_sender, receiver) = watch::channel(targets);
        let open = Arc::new(());
        let (most, seen) = (Arc::new(Mutex::new(0)), Arc::clone(&open));
        let highest = Arc::clone(&most);
        let _result = spawn_with("own", receiver, 1, move |_| {
            let token = Arc::clone(&open);
            let mut most = most.lock().unwrap();
            *most = (*most).max(Arc::strong_count(&token));
            async move {
                std::future::pending::<()>().await;
                drop(token);
                Ok(())
            }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        let most = *highest.lock().unwrap();
        // Two more than there are probes: the connector's own token and the test's.
        assert!((IN_FLIGHT_MAX..=IN_FLIGHT_MAX + 2).contains(&most), "{most}");
        drop(seen);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_its_targets_or_its_readers() {
        let (targets, mut result) = prober(nodes(1..4), &Network::default()).await;
        drop(targets);
        assert!(timeout(LIMIT, result.changed()).await.expect("in time").is_err());

        let (targets, result) = prober(nodes(1..4), &Network::default()).await;
        drop(result);
        timeout(LIMIT, targets.closed()).await.expect("in time");
    }

    #[test]
    fn errors_are_judged_by_who_made_them() {
        for (kind, outcome) in [
            (ErrorKind::ConnectionRefused, Outcome::Alive),
            (ErrorKind::ConnectionReset, Outcome::Alive),
            (ErrorKind::TimedOut, Outcome::Miss),
            (ErrorKind::HostUnreachable, Outcome::Miss),
            (ErrorKind::NetworkUnreachable, Outcome::Miss),
            (ErrorKind::NetworkDown, Outcome::Miss),
            (ErrorKind::AddrNotAvailable, Outcome::Unknown),
            (ErrorKind::PermissionDenied, Outcome::Unknown),
        ] {
            assert_eq!(judge(&Err(kind.into())), outcome, "{kind}");
        }
        assert_eq!(judge(&Ok(())), Outcome::Alive);
    }

    #[tokio::test]
    async fn a_knock_is_answered_but_never_reaches_the_listener() {
        for ip in ["127.0.0.1", "127.0.0.9", "::1"] {
            let listener = TcpListener::bind((ip, 0)).await.expect("a listener");
            let to = listener.local_addr().expect("its address");
            for _ in 0..5 {
                assert!(knock(to).await.is_ok(), "{to}");
            }
            let caller = TcpStream::connect(to).await.expect("a connection");
            let (_, first) = listener.accept().await.expect("a connection");
            assert_eq!(first, caller.local_addr().expect("its address"), "a knock came through");
            drop((caller, listener));
            assert_eq!(judge(&knock(to).await), Outcome::Alive, "refused");
        }
    }
}
