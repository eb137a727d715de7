//! Flows that the kernel's connection tracking remembers otherwise than they must go since their VIP moved.
//!
//! How a flow is translated is decided once, by its first packet: IPVS alters an entry only before it is confirmed
//! (`ip_vs_update_conntrack` in `net/netfilter/ipvs/ip_vs_nfct.c`), and so does NAT (`nf_nat_inet_fn` in
//! `net/netfilter/nf_nat_core.c`). So an entry that a node made while it handed a client's packets on to the holder stands in
//! the way once it is the holder itself: what IPVS then sends to pods is not masqueraded, and the answers never come back. The
//! other way round, the last holder goes on to masquerade what it now hands on. TCP ends by itself; a UDP flow keeps its entry
//! as long as its client asks, and is never answered again. [`is_stale`] tells such entries, and they are forgotten whenever
//! a VIP has come or gone: the flow's next packet makes a right one.
//!
//! [`is_stale`] and `codec` are pure; `client` does the IO, and [`spawn`] decides when.

mod client;
mod codec;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::info;

use crate::model::{Family, Finding, Frontend, Protocol};
use crate::report::beats;

/// It is looked again after a move. Packets were under way; and IPv6 takes packets in a moment later than the address is said
/// to be there, and hands them on until then (`addrconf_dad_work` in `net/ipv6/addrconf.c`).
const AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(7)];

/// And after a failure.
const RETRY: Duration = Duration::from_secs(30);

/// What connection tracking is to agree with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moves {
    /// The frontends of mode nat: in that mode alone the holder and the others treat a packet in different ways, and hand it
    /// on to each other.
    pub frontends: BTreeSet<Frontend>,
    /// Which of their VIPs are on this host.
    pub here: BTreeSet<IpAddr>,
    /// All addresses of this host. IPVS balances what its own processes send wherever the VIP is.
    pub own: BTreeSet<IpAddr>,
}

/// An entry of connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    protocol: Protocol,
    /// Who sent the first packet.
    from: SocketAddr,
    /// To where it was sent.
    to: SocketAddr,
    /// From where it is answered.
    answered_from: SocketAddr,
    /// NAT, and not IPVS, has translated its destination (`IPS_DST_NAT`).
    by_nat: bool,
}

/// Whether the entry was made for a packet that another node was to have, or when another node was not to have it yet.
fn is_stale(flow: &Flow, moves: &Moves) -> bool {
    let Flow { protocol, from, to, answered_from, by_nat } = *flow;
    let frontend = Frontend { vip: to.ip(), protocol, port: to.port() };
    let translated = answered_from != to;
    let wanted = moves.here.contains(&frontend.vip);
    translated != wanted && !by_nat && !moves.own.contains(&from.ip()) && moves.frontends.contains(&frontend)
}

/// Forgets stale entries after each move until `moves` has no sender; what stands in the way of that is told.
pub fn spawn(moves: watch::Receiver<Option<Moves>>) -> watch::Receiver<Option<Finding>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(follow(moves, sender, forget));
    receiver
}

async fn follow<F: Future<Output = Result<(), Finding>>>(
    mut moves: watch::Receiver<Option<Moves>>,
    sender: watch::Sender<Option<Finding>>,
    forget: impl Fn(Moves) -> F,
) {
    let mut again = [].iter();
    loop {
        beats::beat("conntrack", beats::PATIENT);
        let failed = sender.borrow().is_some();
        let pause = again.next().or(failed.then_some(&RETRY));
        tokio::select! {
            changed = moves.changed() => match changed {
                Ok(()) => again = AGAIN.iter(),
                Err(_) => return,
            },
            () = sleep(pause.copied().unwrap_or(beats::EVERY)) => if pause.is_none() { continue },
        }
        let Some(now) = moves.borrow_and_update().clone() else { continue };
        let trouble = forget(now).await.err();
        sender.send_if_modified(|last| {
            let news = *last != trouble;
            *last = trouble;
            news
        });
    }
}

/// Forgets all entries that are stale by `moves`.
async fn forget(moves: Moves) -> Result<(), Finding> {
    let families: BTreeSet<Family> =
        moves.frontends.iter().map(|frontend| Family::of(frontend.vip)).collect();
    let work = move || client::forget(&families, &|flow| is_stale(flow, &moves));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(flows)) => {
            info!(flows, "connection tracking: {flows} flows forgotten, as their VIP has moved");
            Ok(())
        }
        Ok(Err(error)) => Err(trouble(&error)),
        Err(error) => Err(Finding::new("conntrack", format!("the task that reads it died: {error}"))),
    }
}

fn trouble(error: &client::Error) -> Finding {
    let text = format!(
        "{error}: of UDP clients that go on asking from one port while a VIP moves some may get no answer"
    );
    let finding = Finding::new("conntrack", text);
    match error.mend() {
        Some(mend) => finding.mend(mend),
        None => finding,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;

    use super::*;

    /// Whether a flow from `from` to the frontend 10.0.0.1:53, which is answered from `answered_from`, is stale where the VIP is
    /// here and where it is not.
    #[track_caller]
    fn check(from: &str, answered_from: &str, by_nat: bool, here: bool, elsewhere: bool) {
        let frontend = Frontend { vip: [10, 0, 0, 1].into(), protocol: Protocol::Udp, port: 53 };
        let moves = |here: &[IpAddr]| Moves {
            frontends: [frontend].into(),
            here: here.iter().copied().collect(),
            own: ["10.0.0.9".parse().unwrap()].into(),
        };
        let flow = Flow {
            protocol: Protocol::Udp,
            from: from.parse().unwrap(),
            to: "10.0.0.1:53".parse().unwrap(),
            answered_from: answered_from.parse().unwrap(),
            by_nat,
        };
        let found = [is_stale(&flow, &moves(&[frontend.vip])), is_stale(&flow, &moves(&[]))];
        assert_eq!(found, [here, elsewhere], "{flow:?}");
        let others = [
            Flow { protocol: Protocol::Tcp, ..flow },
            Flow { to: "10.0.0.1:54".parse().unwrap(), ..flow },
            Flow { to: "10.0.0.2:53".parse().unwrap(), ..flow },
        ];
        for other in others {
            assert!(
                !is_stale(&other, &moves(&[frontend.vip])) && !is_stale(&other, &moves(&[])),
                "{other:?}"
            );
        }
    }

    type Seconds = Arc<Mutex<Vec<u64>>>;

    /// Follows moves by a kernel that answers with `outcomes`, one after the other, and with success from then on; with the
    /// seconds after the start at which it was asked.
    fn followed(
        outcomes: Vec<Result<(), Finding>>,
    ) -> (watch::Sender<Option<Moves>>, watch::Receiver<Option<Finding>>, Seconds) {
        let (moves, wanted) = watch::channel(None);
        let (sender, trouble) = watch::channel(None);
        let (asked, start) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
        let times = Arc::clone(&asked);
        let outcomes = Mutex::new(outcomes.into_iter());
        let forget = move |_| {
            times.lock().unwrap().push(start.elapsed().as_secs());
            std::future::ready(outcomes.lock().unwrap().next().unwrap_or(Ok(())))
        };
        tokio::spawn(follow(wanted, sender, forget));
        (moves, trouble, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_looked_at_each_move_and_again_and_no_more() {
        let (moves, trouble, asked) = followed(Vec::new());
        sleep(Duration::from_secs(60)).await;
        moves.send_replace(Some(Moves::default()));
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(*asked.lock().unwrap(), [60, 61, 63, 70]);
        assert_eq!(*trouble.borrow(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_it_is_tried_until_it_works() {
        let failure = || Err(Finding::new("conntrack", "nf_conntrack_netlink is not loaded"));
        let (moves, mut trouble, asked) = followed((0..6).map(|_| failure()).collect());
        moves.send_replace(Some(Moves::default()));
        trouble.changed().await.unwrap();
        assert!(trouble.borrow_and_update().is_some());
        trouble.changed().await.unwrap();
        assert_eq!(*trouble.borrow(), None);
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(*asked.lock().unwrap(), [0, 1, 3, 10, 40, 70, 100]);
    }

    #[test]
    fn what_was_handed_on_is_stale_here_and_what_was_balanced_elsewhere() {
        check("10.0.0.5:4000", "10.0.0.1:53", false, true, false);
        check("10.0.0.5:4000", "10.2.0.7:5353", false, false, true);
    }

    #[test]
    fn what_kube_proxy_translates_is_left_alone() {
        check("10.0.0.5:4000", "10.2.0.7:5353", true, false, false);
    }

    #[test]
    fn flows_of_this_hosts_own_are_left_alone() {
        check("10.0.0.9:4000", "10.0.0.1:53", false, false, false);
        check("10.0.0.9:4000", "10.2.0.7:5353", false, false, false);
    }
}
