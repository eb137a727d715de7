//! The kernel's IPVS table, read and changed.
//!
//! Blocking: a call takes microseconds a message, and seconds at most when the kernel does not answer. Changes only
//! what it is told to; it never flushes. The table is that of the network namespace in which the client was opened.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;
use rustix::net::netlink;

use super::codec;
use super::model::{Command, Key, Service, Table, VirtualServer};
use super::sync::{self, SyncCommand, SyncDaemon};
use super::timeouts::{self, Timeouts};
use crate::model::Family;
use crate::netlink::socket::{BATCH, Failure, PATIENCE, Socket};
use crate::netlink::wire::DecodeError;

/// A dump that others disturb is tried so often; each try takes milliseconds.
const DUMP_ATTEMPTS: usize = 5;

/// So many virtual servers are listed rather than asked for one by one.
const MANY: usize = 500;

/// Why the table was not read, or a command not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel has no IPVS.
    #[error("ip_vs is not loaded: modprobe ip_vs")]
    ModuleMissing,
    /// EPERM: without CAP_NET_ADMIN in the initial user namespace.
    #[error("IPVS refuses this process: it needs root or CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel has no such scheduler, or may not load it.
    #[error("{command}: scheduler {scheduler} is not known to this kernel: modprobe ip_vs_{scheduler}")]
    UnknownScheduler {
        /// What was to be done.
        command: String,
        /// The scheduler's kernel name.
        scheduler: String,
    },
    /// The kernel refused one command.
    #[error("{command}: {reason}")]
    Refused {
        /// What was to be done.
        command: String,
        /// The kernel's reason.
        reason: String,
    },
    /// What a command is about is not there.
    #[error("{command}: there is no such {what}")]
    Gone {
        /// What was to be done.
        command: String,
        /// `virtual server` or `real server`.
        what: &'static str,
    },
    /// The kernel refused to list virtual or real servers.
    #[error("cannot list the IPVS table: {0}")]
    List(Errno),
    /// The netlink socket failed.
    #[error("cannot {0} the netlink socket to IPVS: {1}")]
    Socket(&'static str, Errno),
    /// No answer within 5 s.
    #[error("no answer from IPVS within {} s", PATIENCE.as_secs())]
    Silent,
    /// An answer that kvip does not understand.
    #[error("an answer from IPVS came {0}")]
    Nonsense(DecodeError),
    /// Others change the table faster than it can be read.
    #[error("the IPVS table kept changing while it was read, {DUMP_ATTEMPTS} times over")]
    Unsteady,
}

impl Error {
    /// Whether what a command asks for is at fault: then other commands may go on.
    pub fn is_the_commands(&self) -> bool {
        matches!(self, Self::UnknownScheduler { .. } | Self::Refused { .. })
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::Nonsense(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(Errno::PERM) => Self::NotPermitted,
            Failure::Refused(errno) => Self::List(errno),
            Failure::Socket(act, errno) => Self::Socket(act, errno),
            Failure::Silent => Self::Silent,
            Failure::Nonsense(error) => Self::Nonsense(error),
            Failure::Overtaken => Self::Unsteady,
        }
    }
}

/// A connection to the kernel's IPVS.
pub struct Client {
    socket: Socket,
}

impl Client {
    /// Connects to IPVS, whose module the kernel loads where it can, and makes sure that kvip may use it.
    pub fn open() -> Result<Self, Error> {
        let mut client = Self { socket: Socket::open(netlink::GENERIC)? };
        let family = client.family()?;
        client.socket.ask(|sequence| codec::get_info(family, sequence))?;
        Ok(client)
    }

    /// All virtual servers whose key satisfies `only`, with their real servers.
    ///
    /// The kernel's dumps are no snapshots (a concurrent writer can make them skip or repeat), so the virtual
    /// servers are listed before and after the real servers, and everything again unless both lists are the same.
    pub fn table(&mut self, only: &dyn Fn(&Key) -> bool) -> Result<Table, Error> {
        let family = self.family()?;
        for _ in 0..DUMP_ATTEMPTS {
            match self.table_once(family, only) {
                Err(Error::Unsteady) => {}
                outcome => return outcome,
            }
        }
        Err(Error::Unsteady)
    }

    /// The firewall marks by which there are virtual servers, each with its family.
    pub fn marks(&mut self) -> Result<BTreeSet<(Family, u32)>, Error> {
        let family = self.family()?;
        let listed = self.socket.ask(|sequence| codec::dump_services(family, sequence))?;
        let mut marks = BTreeSet::new();
        for payload in listed {
            marks.extend(codec::service(&payload)?.and_then(|(key, _)| key.mark()));
        }
        Ok(marks)
    }

    /// The virtual servers of `keys`, with their real servers as they are now and the rest as in `known`.
    ///
    /// A virtual server that somebody removed reads as one without real servers (GET_DEST is an empty dump then); changes of
    /// it are refused, which shows.
    pub fn servers(&mut self, keys: &BTreeSet<Key>, known: &Table) -> Result<Table, Error> {
        let family = self.family()?;
        let mut table = Table::new();
        for key in keys {
            let Some(before) = known.get(key) else { continue };
            table.insert(*key, self.virtual_server(family, key, &before.service)?);
        }
        Ok(table)
    }

    /// Whether all of `expected` are there as they are expected. Real servers are not looked at.
    pub fn has(&mut self, expected: &[(Key, &Service)]) -> Result<bool, Error> {
        let family = self.family()?;
        if expected.len() < MANY {
            return self.has_each(family, expected);
        }
        // A dump may skip some while others change the table: what it lacks is asked for.
        let mut listed = BTreeMap::new();
        for payload in self.socket.ask(|sequence| codec::dump_services(family, sequence))? {
            listed.extend(codec::service(&payload)?);
        }
        let lacks = |(key, want): &&(Key, &Service)| listed.get(key) != Some(*want);
        let lacking: Vec<_> = expected.iter().filter(lacks).copied().collect();
        self.has_each(family, &lacking)
    }

    fn has_each(&mut self, family: u16, expected: &[(Key, &Service)]) -> Result<bool, Error> {
        for batch in expected.chunks(BATCH) {
            let question = |i: usize, sequence| codec::get_service(family, sequence, &batch[i].0);
            for ((key, want), answer) in batch.iter().zip(self.socket.batch(batch.len(), question)) {
                let payload = match answer {
                    Err(Failure::Refused(Errno::SRCH)) => return Ok(false),
                    answer => answer?,
                };
                if codec::service(&payload)?.is_none_or(|(at, have)| at != *key || have != **want) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether all of `expected` have the real servers that they are expected to have.
    pub fn has_real_servers(&mut self, expected: &[(Key, &VirtualServer)]) -> Result<bool, Error> {
        let family = self.family()?;
        for (key, server) in expected {
            if !self.virtual_server(family, key, &server.service)?.same_as(server) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How long connections in which nothing moves are remembered.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let family = self.family()?;
        let answer = self.socket.ask(|sequence| timeouts::get(family, sequence))?;
        Ok(timeouts::read(answer.first().ok_or(DecodeError::Missing("timeouts"))?)?)
    }

    /// Sets those that are given.
    pub fn set_timeouts(&mut self, change: Timeouts) -> Result<(), Error> {
        let family = self.family()?;
        let set = self.socket.ask(|sequence| timeouts::set(family, sequence, change));
        set.map(drop).map_err(|failure| refused(format!("set the timeouts {change}"), failure))
    }

    /// The sync daemons that run.
    pub fn sync_daemons(&mut self) -> Result<BTreeSet<SyncDaemon>, Error> {
        let family = self.family()?;
        let answer = self.socket.ask(|sequence| sync::dump(family, sequence))?;
        Ok(answer.iter().map(|payload| sync::read(payload)).collect::<Result<_, _>>()?)
    }

    /// Starts or stops a sync daemon; one that does not run was stopped.
    pub fn change_sync(&mut self, command: &SyncCommand) -> Result<(), Error> {
        let family = self.family()?;
        match (self.socket.ask(|sequence| sync::command(family, sequence, command)), command) {
            (Err(Failure::Refused(Errno::SRCH)), SyncCommand::Stop(_)) => Ok(()),
            (done, _) => done.map(drop).map_err(|failure| refused(command.to_string(), failure)),
        }
    }

    fn table_once(&mut self, family: u16, only: &dyn Fn(&Key) -> bool) -> Result<Table, Error> {
        let services = self.services(family, only)?;
        let mut table = Table::new();
        for (key, service) in &services {
            table.insert(*key, self.virtual_server(family, key, service)?);
        }
        let steady = self.services(family, only)? == services;
        if steady { Ok(table) } else { Err(Error::Unsteady) }
    }

    fn services(
        &mut self,
        family: u16,
        only: &dyn Fn(&Key) -> bool,
    ) -> Result<BTreeMap<Key, Service>, Error> {
        let mut services = BTreeMap::new();
        for payload in self.socket.ask(|sequence| codec::dump_services(family, sequence))? {
            let Some((key, service)) = codec::service(&payload)? else { continue };
            if only(&key) && services.insert(key, service).is_some() {
                return Err(Error::Unsteady);
            }
        }
        Ok(services)
    }

    /// The virtual server `key`, whose properties are known, with its real servers.
    fn virtual_server(&mut self, family: u16, key: &Key, service: &Service) -> Result<VirtualServer, Error> {
        let mut server = VirtualServer::new(service.clone());
        for payload in self.socket.ask(|sequence| codec::dump_dests(family, sequence, key))? {
            let (backend, real) = codec::dest(&payload, key.family())?;
            if server.real_servers.insert(backend, real).is_some() {
                return Err(Error::Unsteady);
            }
            server.added.push((backend, real.weight));
        }
        // The kernel puts each new one at the head of its list (__ip_vs_update_dest, ip_vs_ctl.c).
        server.added.reverse();
        if !service.goes_by_order() {
            server.added.clear();
        }
        Ok(server)
    }

    /// Carries out `commands` in their order; those that failed, by index, with the reason. An error does not stop
    /// the commands behind it.
    ///
    /// Already there and already gone are success: what is to be added and exists is set instead, what is to be
    /// removed and is not there was removed.
    pub fn apply(&mut self, commands: &[Command]) -> Vec<(usize, Error)> {
        let all: Vec<(usize, Command)> = commands.iter().cloned().enumerate().collect();
        let family = match self.family() {
            Ok(family) => family,
            Err(error) => return all.iter().map(|(index, _)| (*index, error.clone())).collect(),
        };
        let mut errors = Vec::new();
        let mut there = Vec::new();
        for (index, failure) in self.send_all(family, &all) {
            match verdict(&commands[index], failure) {
                Verdict::Done => {}
                Verdict::Instead(command) => there.push((index, command)),
                Verdict::Failed(error) => errors.push((index, error)),
            }
        }
        for (index, failure) in self.send_all(family, &there) {
            errors.push((index, refusal(&commands[index], failure)));
        }
        errors.sort_by_key(|(index, _)| *index);
        errors
    }

    /// Sends all commands and returns the failures.
    fn send_all(&mut self, family: u16, commands: &[(usize, Command)]) -> Vec<(usize, Failure)> {
        let mut failures = Vec::new();
        for batch in commands.chunks(BATCH) {
            let outcomes =
                self.socket.batch(batch.len(), |i, sequence| codec::command(family, sequence, &batch[i].1));
            let failed = batch.iter().zip(outcomes).filter_map(|((i, _), o)| Some((*i, o.err()?)));
            failures.extend(failed);
        }
        failures
    }

    /// The family's number, asked anew for each call: a module that was unloaded and loaded again has another one,
    /// and the kernel answers the old one with ENOENT, which would read as "already gone".
    fn family(&mut self) -> Result<u16, Error> {
        if self.socket.broken {
            self.socket = Socket::open(netlink::GENERIC)?;
        }
        let answer = match self.socket.ask(codec::get_family) {
            Err(Failure::Refused(Errno::NOENT)) => return Err(Error::ModuleMissing),
            answer => answer?,
        };
        let payload = answer.first().ok_or(DecodeError::Missing("the family"))?;
        Ok(codec::family_id(payload)?)
    }
}

/// What a failed command comes to.
enum Verdict {
    Done,
    Instead(Command),
    Failed(Error),
}

fn verdict(command: &Command, failure: Failure) -> Verdict {
    let Failure::Refused(errno) = failure else { return Verdict::Failed(failure.into()) };
    match (command, errno) {
        (Command::NewService(key, service), Errno::EXIST) => {
            Verdict::Instead(Command::SetService(*key, service.clone()))
        }
        (Command::NewDest(key, backend, real), Errno::EXIST) => {
            Verdict::Instead(Command::SetDest(*key, *backend, *real))
        }
        (Command::DelService(_), Errno::SRCH) | (Command::DelDest(..), Errno::SRCH | Errno::NOENT) => {
            Verdict::Done
        }
        _ => Verdict::Failed(refusal(command, Failure::Refused(errno))),
    }
}

/// `failure` as the error of what was to be done.
fn refused(command: String, failure: Failure) -> Error {
    match failure {
        Failure::Refused(errno) if errno != Errno::PERM => {
            Error::Refused { command, reason: errno.to_string() }
        }
        other => other.into(),
    }
}

/// `failure` as the error of `command`.
fn refusal(command: &Command, failure: Failure) -> Error {
    let errno = match failure {
        Failure::Refused(Errno::PERM) => return Error::NotPermitted,
        Failure::Refused(errno) => errno,
        other => return other.into(),
    };
    let text = command.to_string();
    match (command, errno) {
        // ENOENT is the kernel's word for a missing scheduler (ip_vs_add_service, ip_vs_edit_service).
        (Command::NewService(_, service) | Command::SetService(_, service), Errno::NOENT) => {
            Error::UnknownScheduler { command: text, scheduler: service.scheduler.clone() }
        }
        (_, Errno::SRCH) => Error::Gone { command: text, what: "virtual server" },
        (_, Errno::NOENT) => Error::Gone { command: text, what: "real server" },
        (_, errno) => Error::Refused { command: text, reason: errno.to_string() },
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
