//! Checks endpoints for as long as somebody wants to know: a clock and a limit for [`Machine`].
//!
//! Owns one task.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use imbl::ordmap::DiffItem;
use tokio::sync::watch;

use super::super::clock::{now, wait};
use super::{Down, Found, Machine, Target, Targets};
use crate::report::beats;

/// Checks that wait for an answer at the same time, each with a descriptor; kvip.service allows 4,096. Endpoints that answer
/// take milliseconds, so only silent ones fill it: with 3 s for an answer, 340 of them are asked a second.
const IN_FLIGHT_MAX: usize = 1024;
/// Checks are begun in batches of at most so many, so that 10,000 endpoints asked every 5 s have twice what they need, and
/// more than can be checked do not take the processor from everything else.
const BATCH_MAX: usize = 40;
/// The time from one batch to the next.
const BATCHES: Duration = Duration::from_millis(10);

/// Checks `targets` until they have no sender or the result no receiver. `own` is this node's name.
pub fn spawn(own: &str, targets: watch::Receiver<Targets>) -> watch::Receiver<Down> {
    spawn_with(own, targets, |target| async move { super::ask(&target).await })
}

/// The same with another way to ask.
pub fn spawn_with<A, F>(own: &str, targets: watch::Receiver<Targets>, ask: A) -> watch::Receiver<Down>
where
    A: Fn(Target) -> F + Send + Sync + 'static,
    F: Future<Output = Found> + Send + 'static,
{
    let (out, down) = watch::channel(Down::new());
    let machine = Machine::new(own);
    tokio::spawn(async move { run(machine, targets, &ask, &out).await });
    down
}

async fn run<A, F>(
    mut machine: Machine,
    mut targets: watch::Receiver<Targets>,
    ask: &A,
    out: &watch::Sender<Down>,
) where
    A: Fn(Target) -> F,
    F: Future<Output = Found>,
{
    let mut known = Targets::new();
    follow(&mut machine, &mut known, &targets.borrow_and_update());
    let mut in_flight = FuturesUnordered::new();
    let mut batch = now();
    loop {
        beats::beat("checks", beats::PROMPT);
        let room = BATCH_MAX.min(IN_FLIGHT_MAX - in_flight.len());
        let next = machine.next_due().map(|due| due.max(batch));
        let changed = tokio::select! {
            () = out.closed() => return,
            result = targets.changed() => {
                if result.is_err() {
                    return;
                }
                follow(&mut machine, &mut known, &targets.borrow_and_update())
            }
            Some((target, found)) = in_flight.next() => machine.note(&target, found, now()),
            () = wait(next), if room > 0 => {
                batch = now() + BATCHES;
                let asked = machine.due(now(), room).into_iter();
                in_flight.extend(asked.map(|target| async move { (target.clone(), ask(target).await) }));
                false
            }
            () = tokio::time::sleep(beats::EVERY) => false,
        };
        if changed {
            out.send_replace(machine.down().clone());
        }
    }
}

/// Takes in which endpoints are to be checked; whether those that are down are others by that.
fn follow(machine: &mut Machine, known: &mut Targets, wanted: &Targets) -> bool {
    let mut changed = false;
    for item in known.diff(wanted) {
        match item {
            DiffItem::Add(target, _) => machine.add(target.clone(), now()),
            DiffItem::Remove(target, _) => changed |= machine.remove(target),
            DiffItem::Update { .. } => {}
        }
    }
    *known = wanted.clone();
    changed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};

    use tokio::time::timeout;

    use super::*;
    use crate::health::check::{Check, Kind};

    /// Longer than anything here takes, on the tests' clock.
    const LIMIT: Duration = Duration::from_secs(60);

    /// What the endpoints of a network answer, and how often each was asked.
    #[derive(Clone, Default)]
    struct Network {
        failing: Arc<Mutex<Vec<SocketAddr>>>,
        asked: Arc<Mutex<BTreeMap<SocketAddr, usize>>>,
        waiting: Arc<Mutex<(usize, usize)>>,
    }

    impl Network {
        fn fail(&self, addresses: &[SocketAddr]) {
            *self.failing.lock().unwrap() = addresses.to_vec();
        }

        async fn ask(self, target: Target) -> Found {
            *self.asked.lock().unwrap().entry(target.address).or_default() += 1;
            if !self.failing.lock().unwrap().contains(&target.address) {
                return Found::Answer;
            }
            {
                let mut waiting = self.waiting.lock().unwrap();
                waiting.0 += 1;
                waiting.1 = waiting.1.max(waiting.0);
            }
            tokio::time::sleep(target.check.timeout).await;
            self.waiting.lock().unwrap().0 -= 1;
            Found::failure("no answer")
        }
    }

    fn target(number: u16) -> Target {
        let [high, low] = number.to_be_bytes();
        let (every, timeout) = (Duration::from_secs(5), Duration::from_secs(3));
        let check = Check { kind: Kind::Tcp, every, timeout, rise: 1, fall: 2 };
        Target { address: ([10, 2, high, low], 80).into(), check: Arc::new(check) }
    }

    fn targets(numbers: std::ops::Range<u16>) -> Targets {
        numbers.map(|number| (target(number), 1_usize)).collect()
    }

    fn checks(wanted: Targets, network: &Network) -> (watch::Sender<Targets>, watch::Receiver<Down>) {
        let (sender, receiver) = watch::channel(wanted);
        let network = network.clone();
        (sender, spawn_with("node-a", receiver, move |target| network.clone().ask(target)))
    }

    /// Waits until exactly these are down, and says how long it took.
    async fn expect(down: &mut watch::Receiver<Down>, wanted: &[u16]) -> Duration {
        let start = tokio::time::Instant::now();
        let wanted: Vec<Target> = wanted.iter().map(|number| target(*number)).collect();
        let those = down.wait_for(|down| down.keys().eq(&wanted));
        timeout(LIMIT, those).await.expect("in time").expect("a checker");
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_falls_silent_is_known_in_time() {
        let network = Network::default();
        let (_targets, mut down) = checks(targets(0..4), &network);
        tokio::time::sleep(Duration::from_secs(6)).await;
        network.fail(&[target(2).address]);
        let took = expect(&mut down, &[2]).await;
        // A period until it is asked, another until it is asked again, and the time for an answer.
        assert!(took > Duration::from_secs(7) && took < Duration::from_millis(14_100), "{took:?}");
        network.fail(&[]);
        assert!(expect(&mut down, &[]).await < Duration::from_millis(5600));
    }

    #[tokio::test(start_paused = true)]
    async fn targets_come_and_go() {
        let network = Network::default();
        network.fail(&[target(1).address, target(9).address]);
        let (targets, mut down) = checks(targets(0..2), &network);
        expect(&mut down, &[1]).await;
        targets.send_replace([(target(1), 1_usize), (target(9), 2)].into_iter().collect());
        expect(&mut down, &[1, 9]).await;
        targets.send_replace(Targets::new());
        expect(&mut down, &[]).await;
        let asked = network.asked.lock().unwrap().clone();
        tokio::time::sleep(LIMIT).await;
        assert_eq!(*network.asked.lock().unwrap(), asked);
        drop(targets);
        assert!(timeout(LIMIT, down.changed()).await.expect("in time").is_err(), "it ends with its targets");
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_are_asked_every_five_seconds() {
        let network = Network::default();
        let (_targets, _down) = checks(targets(0..10_000), &network);
        tokio::time::sleep(Duration::from_secs(50)).await;
        let asked = network.asked.lock().unwrap();
        assert_eq!(asked.len(), 10_000);
        assert!(asked.values().all(|times| (8..=12).contains(times)), "{:?}", asked.values().min());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_waits_in_bounded_numbers() {
        let network = Network::default();
        let all = targets(0..10_000);
        network.fail(&all.keys().map(|target| target.address).collect::<Vec<_>>());
        let (_targets, _down) = checks(all, &network);
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(network.waiting.lock().unwrap().1, IN_FLIGHT_MAX);
        assert_eq!(network.asked.lock().unwrap().len(), 10_000, "and none is forgotten");
    }
}
