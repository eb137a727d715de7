//! HAProxy as the driver needs it: its unit, its program and its socket.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tokio::net::TcpSocket;

use super::program::{ProgramError, haproxy_accepts};
use super::{Paths, control, taken};
use crate::files;
use crate::unit::{Unit, UnitError, UnitState};

/// The unit's name.
pub const UNIT: &str = "kvip-haproxy.service";

/// HAProxy as the driver needs it: the real one, or a test's.
pub trait Service: Send {
    /// What systemd knows of the unit.
    fn state(&mut self) -> impl Future<Output = Result<UnitState, UnitError>> + Send;

    /// Starts the unit and waits for the job's end.
    fn start(&mut self) -> impl Future<Output = Result<(), UnitError>> + Send;

    /// Has a new process take the listening sockets over, with the new configuration. The job's end proves no more than that
    /// it was asked to.
    fn reload(&mut self) -> impl Future<Output = Result<(), UnitError>> + Send;

    /// Stops the unit and waits for the job's end.
    fn stop(&mut self) -> impl Future<Output = Result<(), UnitError>> + Send;

    /// Whether HAProxy accepts `file`.
    fn accepts(&mut self, file: &Path) -> impl Future<Output = Result<(), ProgramError>> + Send;

    /// What the running HAProxy answers to `command`.
    fn ask(&mut self, command: &str) -> impl Future<Output = io::Result<String>> + Send;

    /// Whether this host has IPv6 at all.
    fn has_ipv6(&mut self) -> bool;

    /// Where programs of this host listen for TCP, HAProxy among them.
    fn listeners(&mut self) -> BTreeSet<SocketAddr>;
}

/// The real HAProxy.
#[derive(Debug)]
pub struct Haproxy {
    unit: Unit,
    socket: PathBuf,
}

impl Haproxy {
    /// The unit, and the socket that its configuration names.
    pub fn new(paths: &Paths) -> Self {
        Self { unit: Unit::new(UNIT), socket: paths.socket.clone() }
    }
}

impl Service for Haproxy {
    async fn state(&mut self) -> Result<UnitState, UnitError> {
        self.unit.state().await
    }

    async fn start(&mut self) -> Result<(), UnitError> {
        self.unit.start().await
    }

    async fn reload(&mut self) -> Result<(), UnitError> {
        self.unit.reload().await
    }

    async fn stop(&mut self) -> Result<(), UnitError> {
        self.unit.stop().await
    }

    async fn accepts(&mut self, file: &Path) -> Result<(), ProgramError> {
        haproxy_accepts(file).await
    }

    async fn ask(&mut self, command: &str) -> io::Result<String> {
        control::ask(&self.socket, command).await
    }

    fn has_ipv6(&mut self) -> bool {
        let refused = TcpSocket::new_v6().err().as_ref().and_then(Errno::from_io_error);
        refused != Some(Errno::AFNOSUPPORT)
    }

    fn listeners(&mut self) -> BTreeSet<SocketAddr> {
        taken::listeners()
    }
}

/// Stops HAProxy and removes its files; `false` when there was nothing of it.
///
/// # Errors
/// When systemd does not stop it, or files cannot be removed.
pub async fn cleanup<S: Service>(paths: &Paths, service: &mut S) -> anyhow::Result<bool> {
    if files::read(&paths.config)?.is_none() {
        return Ok(false);
    }
    match service.stop().await {
        Ok(()) | Err(UnitError::Absent) => {}
        Err(error) => return Err(error.into()),
    }
    files::remove(&paths.config)?;
    files::remove(&paths.loaded)?;
    Ok(true)
}
