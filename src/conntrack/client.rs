//! The kernel's connection tracking, read and in part forgotten.
//!
//! Blocking: a million entries take a second or two. The table is that of this process's network namespace.

use std::collections::BTreeSet;

use rustix::io::Errno;
use rustix::net::netlink;

use super::Flow;
use super::codec::{self, Entry};
use crate::model::Family;
use crate::netlink::socket::{BATCH, Failure, PATIENCE, Socket};
use crate::netlink::wire::DecodeError;

/// Why entries were not read or not forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// No part of the kernel answers.
    #[error("nf_conntrack_netlink is not loaded")]
    ModuleMissing,
    /// The kernel refused.
    #[error("the kernel refused to {0} entries: {1}")]
    Refused(&'static str, Errno),
    /// The netlink socket failed.
    #[error("cannot {0} the netlink socket: {1}")]
    Socket(&'static str, Errno),
    /// No answer.
    #[error("no answer from the kernel within {} s", PATIENCE.as_secs())]
    Silent,
    /// An answer that kvip does not understand.
    #[error("an answer came {0}")]
    Nonsense(DecodeError),
    /// Others change the entries faster than they can be read.
    #[error("the entries kept changing while they were read")]
    Unsteady,
}

impl Error {
    /// What puts it right.
    pub(super) fn mend(&self) -> Option<&'static str> {
        matches!(self, Self::ModuleMissing).then_some("modprobe nf_conntrack_netlink")
    }

    fn of(act: &'static str, failure: Failure) -> Self {
        match failure {
            // nfnetlink_rcv_msg in net/netfilter/nfnetlink.c, of a subsystem that nobody registered.
            Failure::Refused(Errno::INVAL) if act == LIST => Self::ModuleMissing,
            Failure::Refused(errno) => Self::Refused(act, errno),
            Failure::Socket(act, errno) => Self::Socket(act, errno),
            Failure::Silent => Self::Silent,
            Failure::Nonsense(error) => Self::Nonsense(error),
            Failure::Overtaken => Self::Unsteady,
        }
    }
}

const LIST: &str = "list";
const FORGET: &str = "forget";

/// Forgets the entries of `families` that are `stale`; how many.
pub(super) fn forget(families: &BTreeSet<Family>, stale: &dyn Fn(&Flow) -> bool) -> Result<usize, Error> {
    let mut socket = Socket::open(netlink::NETFILTER).map_err(|failure| Error::of(LIST, failure))?;
    let mut forgotten = 0;
    for family in families {
        let entries = find(&mut socket, *family, stale).map_err(|failure| Error::of(LIST, failure))?;
        for batch in entries.chunks(BATCH) {
            for outcome in socket.batch(batch.len(), |index, sequence| codec::delete(&batch[index], sequence))
            {
                match outcome {
                    Ok(_) => forgotten += 1,
                    // It ended by itself.
                    Err(Failure::Refused(Errno::NOENT)) => {}
                    Err(failure) => return Err(Error::of(FORGET, failure)),
                }
            }
        }
    }
    Ok(forgotten)
}

fn find(socket: &mut Socket, family: Family, stale: &dyn Fn(&Flow) -> bool) -> Result<Vec<Entry>, Failure> {
    let mut found = Vec::new();
    socket.ask_each(
        |sequence| codec::dump(family, sequence),
        |payload| {
            let entry = codec::entry(family, payload)?;
            found.extend(entry.filter(|(flow, _)| stale(flow)).map(|(_, entry)| entry));
            Ok(())
        },
    )?;
    Ok(found)
}
