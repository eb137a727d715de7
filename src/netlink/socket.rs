//! A netlink socket: questions and their answers, requests and their acknowledgements.
//!
//! Owns the socket and its sequence numbers. Belongs to the network namespace in which it was opened.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect, netlink, recv, send,
    socket_with, sockopt,
};

use super::wire::{self, Body, DecodeError};

/// How long the kernel may take for one answer; it needs microseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// More requests than this in one send could fill the receive buffer with acknowledgements.
pub(crate) const BATCH: usize = 100;
/// Room for acknowledgements: each takes up to 2 KiB of the kernel's account.
const RECEIVE_BUFFER: usize = 4 << 20;
/// A datagram of a dump is 32 KiB at most (netlink_dump in net/netlink/af_netlink.c).
const DATAGRAM: usize = 64 << 10;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The kernel answered with this error.
    Refused(Errno),
    /// The socket call `act` failed.
    Socket(&'static str, Errno),
    /// The kernel did not answer in time.
    Silent,
    /// The answer makes no sense.
    Nonsense(DecodeError),
    /// A change overtook the dump.
    Overtaken,
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::Nonsense(error)
    }
}

/// An open netlink socket.
pub(crate) struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// An exchange broke off: what is still under way could disturb the next one.
    pub(crate) broken: bool,
}

impl Socket {
    /// A socket that speaks to that part of the kernel alone.
    pub(crate) fn open(part: Protocol) -> Result<Self, Failure> {
        let descriptor =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(part))
                .map_err(|errno| Failure::Socket("open", errno))?;
        connect(&descriptor, &netlink::SocketAddrNetlink::new(0, 0))
            .map_err(|errno| Failure::Socket("connect", errno))?;
        // Beyond net.core.rmem_max needs CAP_NET_ADMIN; without it the smaller buffer does for smaller tables.
        sockopt::set_socket_recv_buffer_size_force(&descriptor, RECEIVE_BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&descriptor, RECEIVE_BUFFER))
            .map_err(|errno| Failure::Socket("enlarge", errno))?;
        Self::over(descriptor)
    }

    /// A client's side of `descriptor`, a connected socket that keeps datagrams apart.
    pub(crate) fn over(descriptor: OwnedFd) -> Result<Self, Failure> {
        sockopt::set_socket_timeout(&descriptor, sockopt::Timeout::Recv, Some(PATIENCE))
            .map_err(|errno| Failure::Socket("set the time-out of", errno))?;
        Ok(Self { descriptor, sequence: 0, buffer: vec![0; DATAGRAM], broken: false })
    }

    /// Asks one question; the payloads of all objects in the answer.
    pub(crate) fn ask(&mut self, question: impl FnOnce(u32) -> Vec<u8>) -> Result<Vec<Vec<u8>>, Failure> {
        let mut objects = Vec::new();
        self.ask_each(question, |payload| {
            objects.push(payload.to_vec());
            Ok(())
        })?;
        Ok(objects)
    }

    /// Asks one question, and hands on the payload of each object in the answer as it comes.
    pub(crate) fn ask_each(
        &mut self,
        question: impl FnOnce(u32) -> Vec<u8>,
        take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let answer = self.send(&question(self.sequence)).and_then(|()| self.answer(take));
        self.broken |= !matches!(answer, Ok(()) | Err(Failure::Refused(_)));
        answer
    }

    fn answer(&mut self, mut take: impl FnMut(&[u8]) -> Result<(), DecodeError>) -> Result<(), Failure> {
        loop {
            let length = self.receive()?;
            for reply in wire::replies(&self.buffer[..length])? {
                match reply.body {
                    _ if reply.sequence != self.sequence => {}
                    Body::Data(payload) => take(payload)?,
                    Body::End(0) => return Ok(()),
                    Body::End(number) => return Err(Failure::Refused(Errno::from_raw_os_error(number))),
                    Body::Interrupted => return Err(Failure::Overtaken),
                }
            }
        }
    }

    /// Sends up to [`BATCH`] requests at once, each made by `request` from its index and sequence number; what
    /// became of each, in their order, with the object that a question is answered by. Once the socket fails, what is
    /// not answered failed as well.
    pub(crate) fn batch(
        &mut self,
        count: usize,
        request: impl Fn(usize, u32) -> Vec<u8>,
    ) -> Vec<Result<Vec<u8>, Failure>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for index in 0..count.min(BATCH) {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(request(index, self.sequence));
        }
        let mut outcomes = vec![None; count.min(BATCH)];
        let exchange = self.send(&bytes).and_then(|()| self.outcomes(first, &mut outcomes));
        let failure = exchange.err();
        self.broken |= failure.is_some();
        let unanswered = || Err(failure.clone().expect("without a failure every request was answered"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unanswered)).collect()
    }

    fn outcomes(
        &mut self,
        first: u32,
        outcomes: &mut [Option<Result<Vec<u8>, Failure>>],
    ) -> Result<(), Failure> {
        while outcomes.iter().any(Option::is_none) {
            let length = self.receive()?;
            for reply in wire::replies(&self.buffer[..length])? {
                let index = reply.sequence.wrapping_sub(first) as usize;
                let Some(outcome) = outcomes.get_mut(index) else { continue };
                // Behind an object may come an acknowledgement that says no more.
                outcome.get_or_insert(match reply.body {
                    Body::Data(payload) => Ok(payload.to_vec()),
                    Body::End(0) => Ok(Vec::new()),
                    Body::End(number) => Err(Failure::Refused(Errno::from_raw_os_error(number))),
                    Body::Interrupted => Err(Failure::Overtaken),
                });
            }
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = rustix::io::retry_on_intr(|| send(&self.descriptor, bytes, SendFlags::empty()));
        sent.map(drop).map_err(|errno| Failure::Socket("write to", errno))
    }

    /// Waits for one datagram; its length in the buffer.
    fn receive(&mut self) -> Result<usize, Failure> {
        loop {
            match recv(&self.descriptor, self.buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Ok((0, _)) => return Err(Failure::Socket("read from", Errno::CONNRESET)),
                Ok((kept, sent)) if kept < sent => {
                    return Err(DecodeError::Truncated("a datagram").into());
                }
                Ok((kept, _)) => return Ok(kept),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Failure::Silent),
                Err(errno) => return Err(Failure::Socket("read from", errno)),
            }
        }
    }
}
