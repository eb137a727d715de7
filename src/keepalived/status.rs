//! What the driver tells of keepalived: its state in one word, the VIPs it runs, and the last problem with its mend.
//!
//! Plain data; owns nothing.

use std::fmt;

use serde::Serialize;

use super::Carried;
use crate::model::Finding;

/// keepalived as seen by the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// How far keepalived is from what is wanted.
    pub state: State,
    /// The VIPs in the file that keepalived runs now; while it reads another file, those of both; none while it does not run.
    pub vips: Carried,
    /// Reloads since kvip started.
    pub reloads: u64,
    /// What is the matter, and what to type.
    pub problem: Option<Finding>,
}

/// How far keepalived is from what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It runs what is wanted.
    Active,
    /// Nothing is wanted of it on this node.
    Idle,
    /// Something is under way.
    Waiting(String),
    /// The wanted configuration was refused; keepalived runs the one before.
    Refused(String),
    /// There is no keepalived.
    NotInstalled,
    /// Its unit is masked.
    Masked,
    /// `keepalived.conf` is somebody else's and lacks this line.
    Foreign {
        /// The line to add.
        include_line: String,
    },
    /// Something failed; it is tried again.
    Failed(String),
}

impl Status {
    /// A driver that has done nothing yet.
    pub fn waiting(what: &str, vips: Carried) -> Self {
        Self { state: State::Waiting(what.to_owned()), vips, reloads: 0, problem: None }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Idle => f.write_str("idle"),
            Self::Waiting(what) => write!(f, "waiting {what}"),
            Self::Refused(text) => write!(f, "refused: {text}"),
            Self::NotInstalled => f.write_str("not installed"),
            Self::Masked => f.write_str("masked"),
            Self::Foreign { .. } => f.write_str("waiting for an include line"),
            Self::Failed(text) => write!(f, "failed: {text}"),
        }
    }
}
