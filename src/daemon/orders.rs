//! Tells the writers what to write, where anything that they go by has changed.
//!
//! A change of endpoints alone is none of it, and costs a few comparisons of pointers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::core::Core;
use super::objects::{self, Inputs};
use super::writers::{Allocation, Orders};
use crate::derive::Assignment;
use crate::ipam::Outcomes;
use crate::report::objects::State;
use crate::report::objects::agreement::Own;
use crate::report::objects::fingerprint::fingerprint;
use crate::snapshot::Snapshot;

/// What the writers were told last, by what it was made of.
#[derive(Debug, Default)]
pub struct Ordered {
    last: Option<Basis>,
}

#[derive(Debug, Clone)]
struct Basis {
    assignment: Arc<Assignment>,
    snapshot: Arc<Snapshot>,
    outcomes: Arc<Outcomes>,
    here: Arc<BTreeSet<IpAddr>>,
    agreed: bool,
}

impl Basis {
    fn same(&self, other: &Self) -> bool {
        let (mine, theirs) = (&self.snapshot, &other.snapshot);
        Arc::ptr_eq(&self.assignment, &other.assignment)
            && Arc::ptr_eq(&self.outcomes, &other.outcomes)
            && Arc::ptr_eq(&self.here, &other.here)
            && self.agreed == other.agreed
            && mine.services.ptr_eq(&theirs.services)
            && mine.nodes.ptr_eq(&theirs.nodes)
            && mine.claims.is_copy_of(&theirs.claims)
    }
}

impl Ordered {
    /// Gives `orders` by what `core` knows and what is assigned, and by whether no node is known to go by other settings.
    /// Nothing is ordered before the cluster is known, and nothing any more while this node is none of its Nodes.
    pub fn give(
        &mut self,
        core: &Core,
        assignment: &Arc<Assignment>,
        outcomes: &Arc<Outcomes>,
        here: &Arc<BTreeSet<IpAddr>>,
        agreed: bool,
        orders: &Orders,
    ) {
        let Some(snapshot) = &core.snapshot else { return };
        let basis = Basis {
            assignment: Arc::clone(assignment),
            snapshot: Arc::clone(snapshot),
            outcomes: Arc::clone(outcomes),
            here: Arc::clone(here),
            agreed,
        };
        if self.last.as_ref().is_some_and(|last| last.same(&basis)) {
            return;
        }
        self.last = Some(basis);
        let Some(node) = assignment.node.clone() else { return withdraw(orders) };
        let inputs = Inputs { settings: &core.settings, snapshot, assignment, outcomes, here, agreed };
        orders.say.send_if_modified(|last| {
            let state = objects::to_say(&inputs, last);
            replace(last, state)
        });
        orders.own.send_if_modified(|last| replace(last, Some(own(core, snapshot, &node))));
        let wanted = Arc::new(objects::to_allocate(&inputs));
        orders.allocate.send_if_modified(|last| {
            let order = Allocation { node, asking: core.settings.asking.load_balancers, wanted };
            replace(last, Some(order))
        });
    }

    /// Takes back what was ordered: what is known is not what is.
    pub fn stop(&mut self, orders: &Orders) {
        self.last = None;
        withdraw(orders);
    }

    /// Other writers are there, who were told nothing yet.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

fn withdraw(orders: &Orders) {
    orders.say.send_if_modified(|last| replace(last, State::default()));
    orders.allocate.send_if_modified(|last| replace(last, None));
}

fn own(core: &Core, snapshot: &Snapshot, node: &str) -> Own {
    Own {
        cluster: snapshot.cluster.clone(),
        node: node.to_owned(),
        fingerprint: fingerprint(&core.settings),
        nodes: snapshot.nodes.keys().cloned().collect(),
    }
}

fn replace<T: PartialEq>(last: &mut T, new: T) -> bool {
    let news = *last != new;
    *last = new;
    news
}
