//! Why the driver cannot get on, as the state and the finding that people read.
//!
//! Owns the words and the mends; decides nothing about retries.

use super::Paths;
use super::binary::BinaryError;
use super::check::Refusal;
use super::service::UNIT;
use super::status::State;
use super::step::Obstacle;
use crate::files::FileError;
use crate::model::Finding;
use crate::unit::UnitError;

/// Why the driver cannot get on now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The state to show.
    pub state: State,
    /// What to tell, unless it mends itself soon.
    pub finding: Option<Box<Finding>>,
}

const SUBJECT: &str = "keepalived";
const JOURNAL: &str = "journalctl -u keepalived -n 50";

fn told(state: State, text: impl Into<String>, mend: &str) -> Trouble {
    Trouble { state, finding: Some(Box::new(Finding::new(SUBJECT, text).mend(mend))) }
}

impl Trouble {
    /// An act that failed.
    pub(super) fn failed(text: impl Into<String>) -> Self {
        let text = text.into();
        told(State::Failed(text.clone()), text, JOURNAL)
    }

    /// Whoever stands in the way.
    pub(super) fn from_obstacle(obstacle: Obstacle, paths: &Paths) -> Self {
        let conf = paths.keepalived_conf.display();
        match obstacle {
            Obstacle::NotIncluded => {
                let include_line = paths.include_line();
                let mend = format!("echo '{include_line}' >> {conf} && systemctl reload-or-restart {UNIT}");
                let text = format!("{conf} was not written by kvip and lacks the line `{include_line}`");
                told(State::Foreign { include_line }, text, &mend)
            }
            Obstacle::NotOurs => {
                let fragment = paths.fragment();
                let text = format!("neither {conf} nor {} was written by kvip", fragment.display());
                told(State::Refused(text.clone()), text, &format!("mv {0} {0}.saved", fragment.display()))
            }
            Obstacle::Stopped => told(
                State::Waiting("for keepalived to be started".into()),
                "stopped by hand",
                "systemctl start keepalived",
            ),
            Obstacle::Stopping => {
                Self { state: State::Waiting("for keepalived to stop".into()), finding: None }
            }
            Obstacle::Unit(error) => error.into(),
        }
    }
}

impl From<UnitError> for Trouble {
    fn from(error: UnitError) -> Self {
        match error {
            UnitError::Absent => told(State::NotInstalled, "not installed", "apt install keepalived"),
            UnitError::Masked => {
                told(State::Masked, format!("{UNIT} is masked"), &format!("systemctl unmask {UNIT}"))
            }
            UnitError::Bus(_) => {
                let text = error.to_string();
                told(State::Failed(text.clone()), text, "systemctl status dbus.socket")
            }
            UnitError::Job { .. } | UnitError::TooLong { .. } => Self::failed(error.to_string()),
        }
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        told(State::Refused(text.clone()), text, "kvip check")
    }
}

impl From<BinaryError> for Trouble {
    fn from(error: BinaryError) -> Self {
        match error {
            BinaryError::NotInstalled => told(State::NotInstalled, "not installed", "apt install keepalived"),
            BinaryError::Refused(refusal) => refusal.into(),
            BinaryError::TooLong | BinaryError::Run(_) => Self::failed(error.to_string()),
        }
    }
}

impl From<FileError> for Trouble {
    fn from(error: FileError) -> Self {
        let text = error.to_string();
        told(State::Failed(text.clone()), text, "systemctl cat kvip")
    }
}
