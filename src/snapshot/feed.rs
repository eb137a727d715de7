//! What follows the cluster and tells its state: the watches of an API server, or a folder of manifests.
//!
//! Owns what both tell, and the choice between them.

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Link;
use super::admit::Update;
use super::problem::Problem;
use super::{folder, kube};
use crate::config::Cluster;

/// Starts to follow what the settings name. Needs a tokio runtime with IO and time.
pub fn spawn(settings: Cluster) -> Handles {
    match settings.manifests.clone() {
        Some(folder) => folder::spawn(folder, settings),
        None => kube::spawn(settings),
    }
}

/// What the tasks tell. Dropping it ends them.
#[derive(Debug)]
pub struct Handles {
    /// The newest complete snapshot; `None` until there was one. Its sender goes only when a task has died.
    pub snapshots: watch::Receiver<Option<Update>>,
    /// Whether the cluster is heard. Wakes its receiver when the problem changes and at the first contact; the time
    /// of the last contact moves on in silence.
    pub contact: watch::Receiver<Contact>,
    /// When the tasks last went round, each 2 s or so, with or without contact: for the watchdog.
    pub alive: watch::Receiver<Instant>,
    /// The connection of the session, for whoever writes to the cluster; `None` while there is none, and for a folder. A new
    /// one comes with each kubeconfig and each session.
    pub link: watch::Receiver<Option<Link>>,
    pub(super) _tasks: JoinSet<()>,
}

/// Contact with the API server, or with the folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// When the part of the snapshot that was confirmed longest ago was: by a list, a change, a bookmark or the start
    /// of a watch. `None` while a part was never heard of.
    pub last_ok: Option<Instant>,
    /// What is wrong now, if anything.
    pub problem: Option<Problem>,
}

/// Tells `now`, in silence when the time of the last contact alone is new; `back` is said when a problem is over.
pub(super) fn tell_contact(contact: &watch::Sender<Contact>, now: Contact, back: &str) {
    contact.send_if_modified(|was| {
        let news = was.problem != now.problem || was.last_ok.is_some() != now.last_ok.is_some();
        if was.problem != now.problem {
            if let Some(problem) = &now.problem {
                warn!("{problem}");
            } else {
                info!("{back}");
            }
        }
        *was = now;
        news
    });
}
