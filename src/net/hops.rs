//! How packets to pods on other nodes leave this host: mode dsr hands packets on as they came, which works only where the
//! next hop is the pod's own node.
//!
//! [`spawn`] asks the kernel, as `ip route get` does (ip-route(8)): it alone knows what rules and tables come to. One pod
//! of each node and family stands for all, as a CNI's routes to a node are alike.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use imbl::OrdMap;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::watch;
use tokio::time::sleep;

use super::netlink::{Error, request};
use crate::model::Family;
use crate::report::beats;

/// Between two questions when nothing is new: routes change when nodes come and go, and when a CNI is set up anew.
const EVERY: Duration = Duration::from_secs(10);

/// Addresses of pods by their nodes, each with how often it is named.
pub type Ways = OrdMap<(String, IpAddr), usize>;

/// How packets to the pods of a node leave, by node and family.
pub type Hops = BTreeMap<(String, Family), Way>;

/// The way to one pod, which stands for all of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The pod's address.
    pub to: IpAddr,
    /// Where packets go next; `None` when there is no route.
    pub hop: Option<Hop>,
}

/// Where packets go next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The index of the link by which they leave.
    pub link: u32,
    /// The gateway; `None` when the address itself is on the link.
    pub via: Option<IpAddr>,
}

/// Follows the ways to `wanted` until nobody listens.
pub fn spawn(wanted: watch::Receiver<Ways>) -> watch::Receiver<Hops> {
    let (sender, receiver) = watch::channel(Hops::new());
    tokio::spawn(follow(wanted, sender));
    receiver
}

async fn follow(mut wanted: watch::Receiver<Ways>, sender: watch::Sender<Hops>) {
    loop {
        beats::beat("hops", beats::PATIENT);
        let ways = wanted.borrow_and_update().clone();
        let now = ask(&ways).await;
        sender.send_if_modified(|last| {
            let news = *last != now;
            *last = now;
            news
        });
        tokio::select! {
            () = sender.closed() => return,
            () = sleep(EVERY) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// The ways of now; one that the kernel does not tell is left out.
pub async fn ask(ways: &Ways) -> Hops {
    let mut hops = Hops::new();
    for (key, to) in picked(ways) {
        if let Ok(hop) = hop(to).await {
            hops.insert(key, Way { to, hop });
        }
    }
    hops
}

/// The lowest address of each node and family.
fn picked(ways: &Ways) -> BTreeMap<(String, Family), IpAddr> {
    let mut picked = BTreeMap::new();
    for (node, address) in ways.keys() {
        picked.entry((node.clone(), Family::of(*address))).or_insert(*address);
    }
    picked
}

/// Where packets to `address` go next; `None` when there is no route.
async fn hop(address: IpAddr) -> Result<Option<Hop>, Error> {
    let mut message = RouteMessage::default();
    let (family, length, to) = match address {
        IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(to));
    match request(&format!("find the route to {address}"), RouteNetlinkMessage::GetRoute(message)).await {
        Ok(answers) => Ok(answers.iter().find_map(parse)),
        // ENETUNREACH, EHOSTUNREACH, EACCES (prohibit), EINVAL (blackhole): there is no way.
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(answer: &RouteNetlinkMessage) -> Option<Hop> {
    let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
    let (mut link, mut via) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) | RouteAttribute::Via(RouteVia::Inet(ip)) => {
                via = Some(IpAddr::V4(*ip));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) | RouteAttribute::Via(RouteVia::Inet6(ip)) => {
                via = Some(IpAddr::V6(*ip));
            }
            _ => {}
        }
    }
    Some(Hop { link: link?, via })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_address_of_each_node_and_family_is_asked_for() {
        let ways = [("b", "10.2.6.9"), ("a", "10.2.4.9"), ("a", "10.2.4.10"), ("a", "fd00::1")];
        let ways: Ways =
            ways.into_iter().map(|(node, ip)| ((node.to_owned(), ip.parse().unwrap()), 1_usize)).collect();
        let picked: Vec<String> =
            picked(&ways).iter().map(|((node, _), address)| format!("{node} {address}")).collect();
        assert_eq!(picked, ["a 10.2.4.9", "a fd00::1", "b 10.2.6.9"]);
    }

    /// `127.0.0.1` is reached over the first link without a gateway, wherever tests run.
    #[tokio::test]
    async fn the_kernel_is_asked() {
        let way: Ways = [(("a".to_owned(), IpAddr::from([127, 0, 0, 1])), 1_usize)].into_iter().collect();
        let hops = ask(&way).await;
        let expected = Way { to: [127, 0, 0, 1].into(), hop: Some(Hop { link: 1, via: None }) };
        assert_eq!(hops, [(("a".to_owned(), Family::V4), expected)].into());
    }
}
