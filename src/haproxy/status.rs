//! What the driver tells of HAProxy: its state in one word, the frontends it serves, and problems with their mends.
//!
//! Plain data; owns nothing.

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{Finding, Frontend};

/// HAProxy as seen by the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How far HAProxy is from what is wanted.
    pub state: State,
    /// The frontends that it serves, or would if they had a server.
    pub frontends: BTreeSet<Frontend>,
    /// The frontends that it was last told to serve, whether it does or cannot.
    pub tried: BTreeSet<Frontend>,
    /// Reloads since kvip started.
    pub reloads: u64,
    /// What is the matter, and what to type.
    pub problems: Vec<Finding>,
}

/// How far HAProxy is from what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It runs what is wanted.
    Active,
    /// Nothing is wanted of it on this node.
    Idle,
    /// Something is under way.
    Waiting(String),
    /// The wanted configuration was refused; HAProxy runs the one before.
    Refused(String),
    /// There is no HAProxy.
    NotInstalled,
    /// Its unit is masked.
    Masked,
    /// Something failed; it is tried again.
    Failed(String),
}

impl Default for Status {
    /// A driver that has done nothing yet.
    fn default() -> Self {
        let state = State::Waiting("for what the cluster wants".into());
        Self { state, frontends: BTreeSet::new(), tried: BTreeSet::new(), reloads: 0, problems: Vec::new() }
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
            Self::Failed(text) => write!(f, "failed: {text}"),
        }
    }
}
