//! Which state of the cluster is served: the newest that invariant 4 lets through.
//!
//! Owns the accepted state and the one that waits for `kvip accept`; the rules are in [`crate::snapshot::admit`].

use std::sync::Arc;

use tracing::{info, warn};

use crate::derive;
use crate::snapshot::Snapshot;
use crate::snapshot::admit::{self, Admission, Held, Update};

/// What an admin is told of a state.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// What was told before, or goes without saying.
    Nothing,
    /// It is served now.
    Taken,
    /// It waits.
    Held(Held),
}

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

    /// Considers a newer state, or the waiting one again when `accepted` names what an admin let through, and says what is
    /// new about it.
    pub fn consider(&mut self, update: Option<Update>, accepted: Option<&str>) {
        match self.judge(update, accepted) {
            News::Nothing => {}
            News::Taken => info!("the cluster's state is taken"),
            News::Held(held) => warn!(id = held.id, "{held}; `kvip accept` lets the new state through"),
        }
    }

    fn judge(&mut self, update: Option<Update>, accepted: Option<&str>) -> News {
        let (waiting, held) = self.waiting.take().unzip();
        let update = update.map(|update| update.with_unread_of(self.accepted.as_ref()));
        let Some(update) = update.or(waiting) else { return News::Nothing };
        match admit::admit(self.accepted.as_ref(), &update, &derive::vips_asked_for, accepted) {
            Admission::Take => {
                let is_news = held.is_some() || self.from_disk;
                self.accepted = Some(update);
                self.from_disk = false;
                if is_news { News::Taken } else { News::Nothing }
            }
            Admission::Hold(now) => {
                self.waiting = Some((update, now.clone()));
                if held.as_ref() == Some(&now) { News::Nothing } else { News::Held(now) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Node;

    fn nodes(names: &[&str]) -> Update {
        let nodes = names.iter().map(|name| ((*name).to_owned(), Arc::new(Node::default()))).collect();
        Update { snapshot: Arc::new(Snapshot { nodes, ..Snapshot::default() }), lists: 1 }
    }

    #[test]
    fn what_may_not_be_read_after_a_restart_stays_with_every_update() {
        let shop = |snapshot: &Snapshot| snapshot.namespaces.contains_key("shop");
        let of_cluster =
            |update: Update| Snapshot { cluster: Some("a".into()), ..(*update.snapshot).clone() };
        let mut saved = of_cluster(nodes(&["a"]));
        saved.namespaces.insert("shop".into(), Arc::default());
        let mut admitted = Admitted::saved(saved);
        for names in [&["a"][..], &["a", "b"]] {
            let mut fresh = of_cluster(nodes(names));
            fresh.skipped.insert("Namespace".into(), Vec::new());
            admitted.consider(Some(Update { snapshot: Arc::new(fresh), lists: 1 }), None);
            let accepted = admitted.snapshot().unwrap();
            assert_eq!((accepted.nodes.len(), shop(&accepted)), (names.len(), true));
        }
        let fresh = Arc::new(of_cluster(nodes(&["a"])));
        admitted.consider(Some(Update { snapshot: fresh, lists: 2 }), None);
        assert!(!shop(&admitted.snapshot().unwrap()), "what is read counts");
    }

    #[test]
    fn what_waits_is_said_once() {
        let mut admitted = Admitted::saved(Snapshot::clone(&nodes(&["a", "b"]).snapshot));
        let News::Held(held) = admitted.judge(Some(nodes(&[])), None) else { panic!("all nodes are gone") };
        for _ in 0..2 {
            assert_eq!(admitted.judge(None, None), News::Nothing, "it waits still");
            assert_eq!(admitted.judge(Some(nodes(&[])), None), News::Nothing, "heard again");
        }
        assert_eq!(admitted.held(), Some(&held));
        assert_eq!(admitted.judge(None, Some(&held.id)), News::Taken);
        assert_eq!((admitted.judge(None, None), admitted.held()), (News::Nothing, None));
    }
}
