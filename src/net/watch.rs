//! Keeps [`HostFacts`] current by rtnetlink's multicast groups, from event to reader within milliseconds.
//!
//! Owns one task and one socket. When events are lost or the socket ends, everything is read again; the facts
//! stay as they were until then.

use std::io;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::HostFacts;
use super::netlink::Error;
use super::read::{gateways, hostname, tables};
use super::tables::{Effect, Tables};
use crate::backoff::Backoff;
use crate::report::beats;

/// What is listened to: all that [`HostFacts`] consists of.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// The shortest wait before everything is read again: short for whoever waits to learn of a VIP, long enough that a
/// storm of events does not keep a CPU busy with reading.
const RETRY_MIN: Duration = Duration::from_millis(100);

/// The longest wait.
const RETRY_MAX: Duration = Duration::from_secs(5);

type Connection = rtnetlink::proto::Connection<RouteNetlinkMessage>;
type Event = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// A subscription. The kernel's socket buffer is the only queue that grows while nobody polls the connection, and
/// it tells when it was full.
struct Events {
    connection: Connection,
    messages: UnboundedReceiver<Event>,
    /// Closes the request side when dropped, which would end the connection.
    _handle: rtnetlink::Handle,
}

/// Follows the host's network until the last receiver is dropped.
///
/// The first value is there at once. Later ones are published only when something differs from the one before.
/// An IPv6 address that is being checked for duplicates (RFC 4862) is known when the check has ended; VIPs are not checked.
pub async fn watch() -> Result<watch::Receiver<HostFacts>, Error> {
    let (events, tables) = start().await?;
    let (sender, receiver) = watch::channel(tables.facts(&hostname()));
    tokio::spawn(keep(sender, events, tables));
    Ok(receiver)
}

/// Subscribes first and reads then, so that nothing falls between.
async fn start() -> Result<(Events, Tables), Error> {
    let events = subscribe().map_err(|reason| Error::Open { act: "watching the network".into(), reason })?;
    Ok((events, tables().await?))
}

fn subscribe() -> io::Result<Events> {
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    Ok(Events { connection, messages, _handle: handle })
}

/// Follows, and starts again after each failure, until nobody listens.
async fn keep(sender: watch::Sender<HostFacts>, mut events: Events, mut tables: Tables) {
    loop {
        tokio::select! {
            () = sender.closed() => return,
            Err(error) = follow(&sender, &mut events, &mut tables) => {
                warn!(error = &error as &dyn std::error::Error, "reading the host's network again");
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            fresh = restart() => (events, tables) = fresh,
        }
        publish(&sender, &tables);
    }
}

/// A new subscription, however long it takes, with waits that grow from [`RETRY_MIN`] to [`RETRY_MAX`].
async fn restart() -> (Events, Tables) {
    let mut retry = Backoff::new((RETRY_MIN, RETRY_MAX));
    loop {
        beats::beat("network", beats::PROMPT);
        tokio::time::sleep(retry.failed()).await;
        match start().await {
            Ok(fresh) => return fresh,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "host's network unknown, trying again");
            }
        }
    }
}

/// Applies events and publishes, until the subscription fails.
async fn follow(
    sender: &watch::Sender<HostFacts>,
    events: &mut Events,
    tables: &mut Tables,
) -> Result<std::convert::Infallible, Error> {
    loop {
        beats::beat("network", beats::PROMPT);
        let effect = next_batch(events, tables).await?;
        if effect.changed {
            publish(sender, tables);
        }
        if effect.routes_doubtful && tables.set_gateways(gateways().await?) {
            publish(sender, tables);
        }
    }
}

/// Waits for an event, then applies it and all others that are there already.
///
/// A batch is published as one: the events that follow a fresh read tell again of things that it has seen, in
/// order, so only their sum is true.
async fn next_batch(events: &mut Events, tables: &mut Tables) -> Result<Effect, Error> {
    let first = tokio::select! {
        biased;
        () = &mut events.connection => return Err(Error::Ended),
        event = events.messages.next() => event,
        () = tokio::time::sleep(beats::EVERY) => return Ok(Effect::default()),
    };
    let mut effect = Effect::default();
    let mut next = Some(first);
    while let Some(event) = next {
        let (message, _) = event.ok_or(Error::Ended)?;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => effect |= tables.apply(&message),
            NetlinkPayload::Overrun(_) => return Err(Error::Overrun),
            _ => {}
        }
        next = events.messages.next().now_or_never();
    }
    Ok(effect)
}

fn publish(sender: &watch::Sender<HostFacts>, tables: &Tables) {
    let facts = tables.facts(&hostname());
    let changed = sender.send_if_modified(|known| {
        let changed = *known != facts;
        *known = facts;
        changed
    });
    debug!(changed, "host's network read");
}
