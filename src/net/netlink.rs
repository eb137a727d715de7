//! Requests to the kernel's rtnetlink (rtnetlink(7)): one short-lived connection for each question, with a limit.
//!
//! Owns the error type of [`crate::net`] and the rules that every answer obeys. It never interprets an answer.

use std::io;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;

/// The longest wait for an answer. The kernel answers in milliseconds; only a lost answer takes longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How often a dump is asked again when the kernel says that it changed meanwhile (NLM_F_DUMP_INTR).
const DUMP_ATTEMPTS: usize = 5;

/// Why the host's network could not be read, watched or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket to be had.
    #[error("open a netlink socket for {act}: {reason}")]
    Open {
        /// What the socket was for.
        act: String,
        /// The reason.
        reason: io::Error,
    },
    /// The kernel refused.
    #[error("{act}: the kernel refused: {reason}")]
    Refused {
        /// What was asked for.
        act: String,
        /// The errno of the answer.
        reason: io::Error,
    },
    /// The kernel did not answer in time, or answered something else.
    #[error("{act}: {problem}")]
    NoAnswer {
        /// What was asked for.
        act: String,
        /// What came instead.
        problem: &'static str,
    },
    /// The kernel dropped events, because they came faster than they were read.
    #[error("watch the host's network: events were lost")]
    Overrun,
    /// The event socket ended.
    #[error("watch the host's network: the netlink socket ended")]
    Ended,
    /// An address without a VIP's mark, which is not kvip's to remove.
    #[error(
        "remove {ip}/{prefix_len} from {link}: it does not carry a VIP's mark (/32 or /128, noprefixroute)"
    )]
    NotMarked {
        /// The address.
        ip: std::net::IpAddr,
        /// Its prefix length in bits.
        prefix_len: u8,
        /// The link's name.
        link: String,
    },
}

impl Error {
    /// The errno with which the kernel refused, if it did.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { reason, .. } => reason.raw_os_error(),
            _ => None,
        }
    }
}

/// All objects that the dump `request` finds, consistently; `act` says in errors what was asked for.
pub(super) async fn dump(
    act: &str,
    request: &RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    for _ in 0..DUMP_ATTEMPTS {
        let answers = ask(act, request.clone(), NLM_F_REQUEST | NLM_F_DUMP).await?;
        if !answers.iter().any(|answer| answer.header.flags & NLM_F_DUMP_INTR != 0) {
            return objects(act, answers);
        }
    }
    Err(Error::NoAnswer { act: act.to_owned(), problem: "it changed faster than it could be read" })
}

/// Asks for one act, or for one object, and returns what the kernel told about it.
pub(super) async fn request(
    act: &str,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    request_with(act, request, NLM_F_REQUEST | NLM_F_ACK).await
}

/// The same, with other flags.
pub(super) async fn request_with(
    act: &str,
    request: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    objects(act, ask(act, request, flags).await?)
}

/// Sends `payload` on a connection of its own and collects the answers up to the last.
///
/// The connection is polled here rather than in a task, so that it ends with the question.
async fn ask(
    act: &str,
    payload: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
    let no_answer = |problem| Error::NoAnswer { act: act.to_owned(), problem };
    let (mut connection, handle, _events) =
        rtnetlink::new_connection().map_err(|reason| Error::Open { act: act.to_owned(), reason })?;
    connection.set_forward_done(true);
    let mut message = NetlinkMessage::from(payload);
    message.header.flags = flags;
    tokio::select! {
        answers = collect(handle, message) => answers.map_err(|_| no_answer("the netlink socket ended")),
        () = connection => Err(no_answer("the netlink socket ended")),
        () = tokio::time::sleep(ANSWER_LIMIT) => Err(no_answer("no answer within 5 s")),
    }
}

/// Sends `message` and waits for all answers to it.
async fn collect(
    mut handle: Handle,
    message: NetlinkMessage<RouteNetlinkMessage>,
) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, rtnetlink::Error> {
    Ok(handle.request(message)?.collect().await)
}

/// The objects in `answers`, or the error that the kernel put among them.
fn objects(
    act: &str,
    answers: Vec<NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    let mut objects = Vec::with_capacity(answers.len());
    for answer in answers {
        match answer.payload {
            NetlinkPayload::InnerMessage(object) => objects.push(object),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(Error::Refused { act: act.to_owned(), reason: error.to_io() });
            }
            NetlinkPayload::Done(done) if done.code != 0 => {
                let reason = io::Error::from_raw_os_error(done.code.saturating_abs());
                return Err(Error::Refused { act: act.to_owned(), reason });
            }
            _ => {}
        }
    }
    Ok(objects)
}
