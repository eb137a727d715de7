//! The link-layer addresses of other nodes, followed: mode dsr knows by them what a peer hands on.
//!
//! [`spawn`] gives what is known; an address that was known stays so while nobody contradicts, as an entry of the kernel's
//! table comes and goes and the node behind it does not. A node with another network card says so by its next packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::neighbour::{MacAddress, known, provoke};
use super::netlink::Error;
use crate::report::beats;

/// Between two looks at the kernel's table. A card that was changed is known after it: sooner than its node boots.
const EVERY: Duration = Duration::from_secs(2);

/// The link-layer addresses of IP addresses.
pub type Macs = BTreeMap<IpAddr, MacAddress>;

/// All that the kernel's table says now.
///
/// # Errors
/// When it cannot be read.
pub async fn now() -> Result<Macs, Error> {
    known().await
}

/// Follows the link-layer addresses of `wanted` until nobody listens.
pub fn spawn(wanted: watch::Receiver<BTreeSet<IpAddr>>) -> watch::Receiver<Macs> {
    let (sender, receiver) = watch::channel(Macs::new());
    tokio::spawn(follow(wanted, sender));
    receiver
}

async fn follow(mut wanted: watch::Receiver<BTreeSet<IpAddr>>, sender: watch::Sender<Macs>) {
    loop {
        beats::beat("peers", beats::PROMPT);
        let addresses = wanted.borrow_and_update().clone();
        if !addresses.is_empty() {
            look(&addresses, &sender).await;
        } else if !sender.borrow().is_empty() {
            sender.send_replace(Macs::new());
        }
        tokio::select! {
            () = sender.closed() => return,
            () = sleep(EVERY) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Looks once, and has the kernel ask for those that it does not know.
async fn look(addresses: &BTreeSet<IpAddr>, sender: &watch::Sender<Macs>) {
    let table = match known().await {
        Ok(table) => table,
        Err(error) => return debug!(error = &error as &dyn std::error::Error, "neighbours unknown"),
    };
    for address in addresses.iter().filter(|address| !table.contains_key(address)) {
        // Unreachable, or no such family: then there is no entry, which the table says as well.
        let _ = provoke(*address, 0).await;
    }
    sender.send_if_modified(|macs| {
        let now = merged(macs, &table, addresses);
        let changed = *macs != now;
        *macs = now;
        changed
    });
}

/// Of `addresses` what the table says now, else what was known before.
fn merged(before: &Macs, table: &Macs, addresses: &BTreeSet<IpAddr>) -> Macs {
    let one =
        |address: &IpAddr| table.get(address).or_else(|| before.get(address)).map(|mac| (*address, *mac));
    addresses.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_stays_until_contradicted_or_not_wanted() {
        let [a, b, c]: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        let mac = |last| MacAddress([2, 0, 0, 0, 0, last]);
        let before = Macs::from([(a, mac(1)), (b, mac(2)), (c, mac(3))]);
        let table = Macs::from([(b, mac(9)), (c, mac(3))]);
        assert_eq!(merged(&before, &table, &[a, b].into()), Macs::from([(a, mac(1)), (b, mac(9))]));
    }
}
