//! Which state of the cluster is served: the newest that invariant 4 lets through.
//!
//! Owns the accepted state and the one that waits for `kvip accept`; the rules are in [`crate::snapshot::admit`].

use std::sync::Arc;

use tracing::{info, warn};

use crate::derive;
use crate::snapshot::Snapshot;
use crate::snapshot::admit::{self, Admission, Held, Update};

/// The accepted state of the cluster, and what waits.
#[derive(Debug, Default)]
pub struct Admitted {
    accepted: Option<Update>,
    waiting: Option<(Update, Held)>,
    /// The accepted state was loaded from disk and no list has confirmed it yet.
    pub from_disk: bool,
}

impl Admitted {
    /// Begins with the state that an earlier run saved.
    pub fn saved(snapshot: Snapshot) -> Self {
        Self { accepted: Some(Update::saved(snapshot)), waiting: None, from_disk: true }
    }

    /// Considers a newer state, or the waiting one again when `accepted` names what an admin let through.
    pub fn consider(&mut self, update: Option<Update>, accepted: Option<&str>) {
        let Some(update) = update.or_else(|| self.waiting.take().map(|(update, _)| update)) else { return };
        match admit::admit(self.accepted.as_ref(), &update, &derive::vips_asked_for, accepted) {
            Admission::Take => {
                if self.waiting.take().is_some() || self.from_disk {
                    info!("the cluster's state is taken");
                }
                self.accepted = Some(update);
                self.from_disk = false;
            }
            Admission::Hold(held) => {
                if self.waiting.as_ref().map(|(_, before)| before) != Some(&held) {
                    warn!(id = held.id, "{held}; `kvip accept` lets the new state through");
                }
                self.waiting = Some((update, held));
            }
        }
    }

    /// The cluster is followed by a new task, which counts its lists from the beginning: its first is a fresh one.
    pub fn follow_anew(&mut self) {
        if let Some(accepted) = &mut self.accepted {
            accepted.lists = 0;
        }
    }

    /// The state to serve.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.accepted.as_ref().map(|update| Arc::clone(&update.snapshot))
    }

    /// Why a newer state waits.
    pub fn held(&self) -> Option<&Held> {
        self.waiting.as_ref().map(|(_, held)| held)
    }
}
