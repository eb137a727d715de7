//! Whoever writes to the cluster, kept with the connection and the node's name: the allocator of addresses, the status of
//! Services with their Events, and what nodes say of their settings.
//!
//! IO only: what is to be written is decided in [`super::objects`].

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::LoadBalancers;
use crate::ipam::{self, KubeStore, Outcomes};
use crate::model::{Finding, ObjectKey};
use crate::report::objects::agreement::Heard;
use crate::report::objects::{self, State};
use crate::snapshot::Link;

/// What the writers are told.
#[derive(Debug)]
pub struct Orders {
    /// What allocators go by, with this node's name and what asks; `None` until both are known.
    pub allocate: watch::Sender<Option<Allocation>>,
    /// What Services shall show.
    pub say: watch::Sender<State>,
    /// This node's settings, for the other nodes.
    pub own: watch::Sender<Option<objects::agreement::Own>>,
}

/// What one allocator is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// This node.
    pub node: String,
    /// Which Services ask.
    pub asking: LoadBalancers,
    /// What to go by.
    pub wanted: Arc<ipam::Wanted>,
}

/// What the writers tell.
#[derive(Debug, Clone)]
pub struct Answers {
    /// What became of what Services ask for.
    pub outcomes: watch::Receiver<Arc<Outcomes>>,
    /// What cannot be said to the cluster, and why.
    pub said: watch::Receiver<Vec<Finding>>,
    /// What is known of other nodes' settings.
    pub heard: watch::Receiver<Heard>,
}

/// The running tasks. Dropping it ends them.
#[derive(Debug)]
pub struct Writers {
    _allocator: JoinSet<()>,
    _status: objects::Handles,
    _settings: objects::settings::Listener,
}

/// Starts to write over the connections of `link`.
pub fn spawn(link: &watch::Receiver<Option<Link>>, settings_map: ObjectKey) -> (Orders, Answers, Writers) {
    let (allocate, allocations) = watch::channel(None);
    let (say, to_say) = watch::channel(State::default());
    let (own, owns) = watch::channel(None);
    let (out, outcomes) = watch::channel(Arc::default());
    let status = objects::spawn(link.clone(), to_say);
    let settings = objects::settings::spawn(link.clone(), owns, settings_map);
    let mut allocator = JoinSet::new();
    let (said, heard) = (status.findings.clone(), settings.heard.clone());
    let others = heard.clone();
    let agree: ipam::Agreed = Arc::new(move || others.borrow().agreed());
    allocator.spawn(keep_allocating(link.clone(), allocations, agree, out));
    let writers = Writers { _allocator: allocator, _status: status, _settings: settings };
    (Orders { allocate, say, own }, Answers { outcomes, said, heard }, writers)
}

/// Runs an allocator for as long as connection, name and what asks are the same, then another one.
async fn keep_allocating(
    mut link: watch::Receiver<Option<Link>>,
    mut orders: watch::Receiver<Option<Allocation>>,
    agree: ipam::Agreed,
    out: watch::Sender<Arc<Outcomes>>,
) {
    loop {
        let connection = link.borrow_and_update().clone();
        let order = orders.borrow_and_update().clone();
        let end = match (connection, order) {
            (Some(connection), Some(order)) => {
                allocate(&connection, order, &mut link, &mut orders, &agree, &out).await
            }
            _ => tokio::select! {
                changed = link.changed() => changed.is_err(),
                changed = orders.changed() => changed.is_err(),
            },
        };
        if end {
            return;
        }
    }
}

/// One allocator's life; true when nobody tells anything any more.
async fn allocate(
    connection: &Link,
    first: Allocation,
    link: &mut watch::Receiver<Option<Link>>,
    orders: &mut watch::Receiver<Option<Allocation>>,
    agree: &ipam::Agreed,
    out: &watch::Sender<Arc<Outcomes>>,
) -> bool {
    let store = Arc::new(KubeStore::new(connection.client.clone(), first.asking));
    let (tell, wanted) = watch::channel(Some(Arc::clone(&first.wanted)));
    let mut allocator = ipam::spawn(&first.node, store, wanted, Arc::clone(agree), Arc::new(seconds_now));
    loop {
        tokio::select! {
            changed = link.changed() => return changed.is_err(),
            changed = orders.changed() => {
                if changed.is_err() {
                    return true;
                }
                let order = orders.borrow_and_update().clone();
                match order {
                    Some(order) if order.node == first.node && order.asking == first.asking => {
                        tell.send_replace(Some(order.wanted));
                    }
                    _ => {
                        orders.mark_changed();
                        return false;
                    }
                }
            }
            Ok(()) = allocator.outcomes.changed() => {
                out.send_replace(allocator.outcomes.borrow_and_update().clone());
            }
        }
    }
}

/// Seconds since 1970, as claims count them.
fn seconds_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
