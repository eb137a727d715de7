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
    /// Those of them whose port another program has on all addresses, as most likely it has on every node.
    pub taken: BTreeSet<Frontend>,
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
        let none = BTreeSet::new;
        Self { state, frontends: none(), tried: none(), taken: none(), reloads: 0, problems: Vec::new() }
    }
}

impl Status {
    /// The frontends that it does not serve and another node's may: a configuration that HAProxy refuses, or a port that is taken
    /// on all addresses, is most likely so on every node.
    pub fn lacking(&self) -> BTreeSet<Frontend> {
        if matches!(self.state, State::Refused(_)) {
            return BTreeSet::new();
        }
        let unserved = self.tried.difference(&self.frontends);
        unserved.filter(|frontend| !self.taken.contains(frontend)).copied().collect()
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
