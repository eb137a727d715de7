//! Why the driver cannot get on, as the state and the finding that people read.
//!
//! Owns the words and the mends; decides nothing about retries.

use super::program::ProgramError;
use super::service::UNIT;
use super::status::State;
use crate::files::FileError;
use crate::model::Finding;
use crate::unit::UnitError;

/// Why the driver cannot get on now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The state to show.
    pub state: State,
    /// What to tell.
    pub finding: Finding,
}

const SUBJECT: &str = "haproxy";
const JOURNAL: &str = "journalctl -u kvip-haproxy -n 50";

fn told(state: State, text: impl Into<String>, mend: impl Into<String>) -> Trouble {
    Trouble { state, finding: Finding::new(SUBJECT, text).mend(mend) }
}

impl Trouble {
    /// An act that failed.
    pub(super) fn failed(text: impl Into<String>) -> Self {
        let text = text.into();
        told(State::Failed(text.clone()), text, JOURNAL)
    }
}

impl From<UnitError> for Trouble {
    fn from(error: UnitError) -> Self {
        let text = error.to_string();
        match error {
            UnitError::Absent => {
                told(State::NotInstalled, format!("{UNIT} is missing"), "apt install --reinstall kvip")
            }
            UnitError::Masked => {
                told(State::Masked, format!("{UNIT} is masked"), format!("systemctl unmask {UNIT}"))
            }
            UnitError::Bus(_) => told(State::Failed(text.clone()), text, "systemctl status dbus.socket"),
            UnitError::Job { .. } | UnitError::TooLong { .. } => Self::failed(text),
        }
    }
}

impl From<ProgramError> for Trouble {
    fn from(error: ProgramError) -> Self {
        let text = error.to_string();
        match error {
            ProgramError::NotInstalled => told(
                State::NotInstalled,
                "not installed, so that nothing is served in mode proxy",
                "apt install haproxy",
            ),
            ProgramError::Refused(_) => {
                told(State::Refused(text.clone()), text, "kvip plan --show haproxy, which prints the file")
            }
            ProgramError::TooLong | ProgramError::Run(_) => Self::failed(text),
        }
    }
}

impl From<FileError> for Trouble {
    fn from(error: FileError) -> Self {
        let text = error.to_string();
        told(State::Failed(text.clone()), text, "systemctl cat kvip")
    }
}
