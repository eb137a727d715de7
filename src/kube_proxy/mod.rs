//! What the kube-proxy of this host says of itself: which virtual servers it leaves alone in its ipvs mode, in which it
//! deletes all others that are not its own.
//!
//! Owns one task, which asks while kube-proxy's device is there. What it said last counts while it is silent, as it is
//! when it starts anew. Changes nothing of kube-proxy.

mod ask;
mod configz;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::sleep;

use self::ask::ask;
use crate::net::{HostFacts, KUBE_PROXY_DEVICE};
use crate::report::beats;

/// Where kube-proxy tells its configuration, unless its metricsBindAddress is another.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// Between two questions: it reads its configuration only when it starts.
const EVERY: Duration = Duration::from_secs(10);

/// `network` with what kube-proxy says now, where its device is there.
pub async fn read(network: HostFacts) -> HostFacts {
    Known::first(&network, ADDRESS).await.facts(&network)
}

/// Follows `network`, with what kube-proxy says, until it ends or nobody listens.
///
/// The first value is there when kube-proxy has answered, or has had its time. Likewise a device that comes later is told
/// of when it has: VIPs are not to leave for want of a word that is under way.
pub async fn watch(network: watch::Receiver<HostFacts>) -> watch::Receiver<HostFacts> {
    watch_at(ADDRESS, EVERY, network).await
}

async fn watch_at(
    address: SocketAddr,
    every: Duration,
    mut network: watch::Receiver<HostFacts>,
) -> watch::Receiver<HostFacts> {
    let first = network.borrow().clone();
    let mut known = Known::first(&first, address).await;
    let (sender, receiver) = watch::channel(known.facts(&network.borrow_and_update()));
    tokio::spawn(async move { follow((address, every), network, known, &sender).await });
    receiver
}

async fn follow(
    (address, every): (SocketAddr, Duration),
    mut network: watch::Receiver<HostFacts>,
    mut known: Known,
    sender: &watch::Sender<HostFacts>,
) {
    let mut there = network.borrow().kube_proxy_has_ipvs_mode();
    let mut answer = pin!(ask_after(if known.asked { every } else { Duration::ZERO }, address));
    loop {
        beats::beat("kube-proxy", beats::PROMPT);
        tokio::select! {
            () = sender.closed() => return,
            changed = network.changed() => {
                if changed.is_err() {
                    return;
                }
                let was = there;
                there = network.borrow_and_update().kube_proxy_has_ipvs_mode();
                if there && !was {
                    answer.set(ask_after(Duration::ZERO, address));
                }
            }
            networks = &mut answer, if there => {
                known.note(networks);
                answer.set(ask_after(every, address));
            }
            () = sleep(beats::EVERY) => continue,
        }
        publish(sender, known.facts(&network.borrow()));
    }
}

async fn ask_after(wait: Duration, address: SocketAddr) -> Option<BTreeSet<IpNet>> {
    sleep(wait).await;
    ask(address).await
}

fn publish(sender: &watch::Sender<HostFacts>, facts: HostFacts) {
    sender.send_if_modified(|known| {
        let changed = *known != facts;
        *known = facts;
        changed
    });
}

/// What is known of kube-proxy while its device is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// It has answered, or was silent.
    asked: bool,
    /// What it said last that it leaves alone.
    excluded: Option<BTreeSet<IpNet>>,
}

impl Known {
    /// What it says now, where its device is there.
    async fn first(network: &HostFacts, address: SocketAddr) -> Self {
        let mut known = Self::default();
        if network.kube_proxy_has_ipvs_mode() {
            known.note(ask(address).await);
        }
        known
    }

    /// Takes note of an answer; `None` is silence.
    fn note(&mut self, answer: Option<BTreeSet<IpNet>>) {
        self.asked = true;
        self.excluded = answer.or(self.excluded.take());
    }

    /// The host with what is known. Without its device kube-proxy is forgotten; the device is not told of before it was
    /// asked.
    fn facts(&mut self, network: &HostFacts) -> HostFacts {
        let mut facts = network.clone();
        if !network.kube_proxy_has_ipvs_mode() {
            *self = Self::default();
        } else if self.asked {
            facts.kube_proxy_excludes.clone_from(&self.excluded);
        } else {
            facts.links.remove(KUBE_PROXY_DEVICE);
        }
        facts
    }
}

#[cfg(test)]
mod tests;
