//! keepalived as the driver needs it: its unit and its program.
//!
//! Never stops or restarts the unit: that would drop its VIPs.

use std::future::Future;
use std::path::Path;

use super::Build;
use super::binary::{self, BinaryError};
use crate::unit::{Unit, UnitError, UnitState};

/// The unit's name.
pub const UNIT: &str = "keepalived.service";

/// The real keepalived.service.
pub fn unit() -> Unit {
    Unit::new(UNIT)
}

/// keepalived as the driver needs it: the real one over D-Bus, or a test's.
pub trait Service: Send {
    /// What systemd knows of the unit.
    fn state(&mut self) -> impl Future<Output = Result<UnitState, UnitError>> + Send;

    /// Starts the unit and waits for the job's end.
    fn start(&mut self) -> impl Future<Output = Result<(), UnitError>> + Send;

    /// Has the running unit read its configuration again and waits for the job's end, which proves no more than that
    /// SIGHUP was sent.
    fn reload(&mut self) -> impl Future<Output = Result<(), UnitError>> + Send;

    /// What the installed keepalived was built with.
    fn build(&mut self) -> impl Future<Output = Result<Build, BinaryError>> + Send;

    /// Whether keepalived accepts `file`.
    fn accepts(&mut self, file: &Path) -> impl Future<Output = Result<(), BinaryError>> + Send;
}

impl Service for Unit {
    async fn state(&mut self) -> Result<UnitState, UnitError> {
        Unit::state(self).await
    }

    async fn start(&mut self) -> Result<(), UnitError> {
        Unit::start(self).await
    }

    async fn reload(&mut self) -> Result<(), UnitError> {
        Unit::reload(self).await
    }

    async fn build(&mut self) -> Result<Build, BinaryError> {
        binary::build().await
    }

    async fn accepts(&mut self, file: &Path) -> Result<(), BinaryError> {
        binary::keepalived_accepts(file).await
    }
}
