//! Notices when another hand changes `table inet kvip`: `systemctl reload nftables` begins with `flush ruleset`.
//!
//! The kernel tells of each transaction object by object, and at its end who made it (NFT_MSG_NEWGEN; `<linux/netfilter/
//! nf_tables.h>`). Listening needs CAP_NET_ADMIN. Owns one socket and one task; reads no table and changes none.

use std::io;
use std::time::Duration;

use futures::FutureExt;
use netlink_packet_core::{NetlinkBuffer, NlaBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::io::Errno;
use tokio::sync::watch;
use tracing::warn;

use crate::report::beats;

/// NFNLGRP_NFTABLES, as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// Room for the events of thousands of elements, as far as net.core.rmem_max lets; the kernel says when it is not enough.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// What happens within so long of the first change is one change; so others are told ten times a second at most.
const GATHER: Duration = Duration::from_millis(100);
/// Between two attempts to listen.
const RETRY: Duration = Duration::from_secs(5);

/// What another hand did to the table so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// How often it may have changed.
    pub times: u64,
    /// The program that did it last, when it is known.
    pub by: Option<String>,
}

/// Follows the ruleset until the last receiver is dropped. Whoever cannot listen learns by the next audit.
pub fn watch() -> watch::Receiver<Touched> {
    let (sender, receiver) = watch::channel(Touched::default());
    tokio::spawn(keep(sender));
    receiver
}

/// Listens, and again after each failure, until nobody wants to know.
async fn keep(sender: watch::Sender<Touched>) {
    let mut told = false;
    loop {
        beats::beat("nftables", beats::PROMPT);
        tokio::select! {
            () = sender.closed() => return,
            Err(error) = follow(&sender, &mut told) => if !told {
                warn!("watching nftables: {error}; kvip's table is looked at once a minute until that goes");
                told = true;
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn follow(sender: &watch::Sender<Touched>, told: &mut bool) -> io::Result<std::convert::Infallible> {
    let socket = open()?;
    *told = false;
    let mut transaction = Transaction::default();
    // What happened before somebody listened nobody has told.
    touch(sender, None);
    loop {
        beats::beat("nftables", beats::PROMPT);
        let datagram = tokio::select! {
            datagram = socket.recv_from_full() => datagram,
            () = tokio::time::sleep(beats::EVERY) => continue,
        };
        if let Some(mut by) = event(&mut transaction, datagram)? {
            tokio::time::sleep(GATHER).await;
            while let Some(datagram) = socket.recv_from_full().now_or_never() {
                by = event(&mut transaction, datagram)?.unwrap_or(by);
            }
            touch(sender, by);
        }
    }
}

fn touch(sender: &watch::Sender<Touched>, by: Option<String>) {
    sender.send_modify(|touched| *touched = Touched { times: touched.times + 1, by });
}

fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, GROUP))?;
    Ok(socket)
}

/// What one datagram says of the table: nothing, or that it was touched, and by whom.
type Event = Option<Option<String>>;

fn event(transaction: &mut Transaction, datagram: io::Result<(Vec<u8>, SocketAddr)>) -> io::Result<Event> {
    match datagram {
        Ok((datagram, _)) => Ok(transaction.take(&datagram)),
        // Events were lost, and what they said with them.
        Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
            *transaction = Transaction::default();
            Ok(Some(None))
        }
        Err(error) => Err(error),
    }
}

/// NFNL_SUBSYS_NFTABLES, as the upper byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
const DELTABLE: u16 = SUBSYSTEM + 2;
const NEWSET: u16 = SUBSYSTEM + 9;
const NEWGEN: u16 = SUBSYSTEM + 15;

/// NFPROTO_INET.
const INET: u8 = 1;
/// `struct nfgenmsg`: family, version and resource.
const HEADER: usize = 4;
/// The table's name, whatever the object: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE and so on.
const TABLE: u16 = 1;
/// NFTA_SET_NAME.
const SET_NAME: u16 = 2;
/// NFTA_GEN_PROC_NAME.
const PROC_NAME: u16 = 3;

/// What the messages of a transaction have said so far.
#[derive(Debug, Default)]
struct Transaction {
    /// Something in kvip's table changed.
    touched: bool,
    /// The table was deleted, if only to be made anew.
    deleted: bool,
    /// The seal was put in place, as kvip's own changes do.
    sealed: bool,
}

impl Transaction {
    /// Takes the messages of one datagram. What kvip itself writes is a touch too where it writes the whole table, which costs
    /// a look; its changes of a table that stays are known by the seal.
    fn take(&mut self, mut datagram: &[u8]) -> Event {
        let mut event = None;
        while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
            if let Some(by) = self.message(message.message_type(), message.payload()) {
                event = Some(by);
            }
            let length = (message.length() as usize).next_multiple_of(4);
            datagram = datagram.get(length..).unwrap_or_default();
        }
        event
    }

    fn message(&mut self, kind: u16, payload: &[u8]) -> Event {
        let (family, attributes) = (*payload.first()?, payload.get(HEADER..)?);
        if kind == NEWGEN {
            let Self { touched, deleted, sealed } = std::mem::take(self);
            return (touched && (deleted || !sealed)).then(|| text(attributes, PROC_NAME));
        }
        if family == INET && text(attributes, TABLE).as_deref() == Some("kvip") {
            self.touched = true;
            self.deleted |= kind == DELTABLE;
            self.sealed |= kind == NEWSET && text(attributes, SET_NAME).as_deref() == Some("seal");
        }
        None
    }
}

/// The text of an attribute, up to its NUL.
fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let named = |nla: &NlaBuffer<&[u8]>| nla.kind() == kind;
    let nla = NlasIterator::new(attributes).map_while(Result::ok).find(named)?;
    let bytes = nla.value().split(|byte| *byte == 0).next()?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWTABLE: u16 = SUBSYSTEM;
    const NEWELEM: u16 = SUBSYSTEM + 12;

    /// A message of an object in a table of a family, with a further text.
    fn message(kind: u16, family: u8, texts: &[(u16, &str)]) -> Vec<u8> {
        let mut attributes = Vec::new();
        for (kind, text) in texts {
            let length = u16::try_from(4 + text.len() + 1).unwrap();
            attributes.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            attributes.extend(text.bytes());
            attributes.resize((attributes.len() + 1).next_multiple_of(4), 0);
        }
        let length = u32::try_from(20 + attributes.len()).unwrap();
        let head = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &[family, 0, 0, 0]].concat();
        [head, attributes].concat()
    }

    fn of_kvip(kind: u16) -> Vec<u8> {
        message(kind, INET, &[(TABLE, "kvip")])
    }

    fn seal() -> Vec<u8> {
        message(NEWSET, INET, &[(TABLE, "kvip"), (SET_NAME, "seal")])
    }

    /// Whether a transaction of these messages is a touch; in one datagram, and each in its own.
    #[track_caller]
    fn check(messages: &[Vec<u8>], touched: bool) {
        let end = message(NEWGEN, 0, &[(PROC_NAME, "nft")]);
        let whole = [messages.concat(), end.clone()].concat();
        let expected = touched.then(|| Some("nft".to_owned()));
        assert_eq!(Transaction::default().take(&whole), expected);
        let mut transaction = Transaction::default();
        assert!(messages.iter().all(|message| transaction.take(message).is_none()), "before its end");
        assert_eq!(transaction.take(&end), expected);
        assert_eq!(transaction.take(&end), None, "the next one begins anew");
    }

    #[test]
    fn what_is_in_another_table_is_not_kvips() {
        check(&[], false);
        check(&[message(NEWTABLE, INET, &[(TABLE, "filter")])], false);
        check(&[message(DELTABLE, 2, &[(TABLE, "kvip")])], false);
    }

    #[test]
    fn another_hand_is_told_from_kvips_own() {
        check(&[of_kvip(DELTABLE)], true);
        check(&[of_kvip(NEWELEM)], true);
        check(&[of_kvip(NEWELEM), seal()], false);
        // A ruleset that was saved with kvip's table in it, and is restored.
        check(&[of_kvip(DELTABLE), of_kvip(NEWTABLE), seal()], true);
    }

    #[test]
    fn cut_messages_are_no_touch_and_no_panic() {
        let whole = [of_kvip(DELTABLE), message(NEWGEN, 0, &[(PROC_NAME, "nft")])].concat();
        for length in 0..whole.len() {
            assert_eq!(Transaction::default().take(&whole[..length]), None, "cut to {length} bytes");
        }
    }
}
