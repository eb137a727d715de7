//! A folder of manifests that is followed like a cluster, for as long as the daemon runs.
//!
//! Looks at the files' metadata each second, and reads what changed once it has stopped changing, so that an editor at
//! work is not read half way. A file with what cannot be read keeps what it said before, with a finding; what is left out
//! by itself, as an entry that is no text, does not count as that. Owns its task; it writes nothing. Nothing tells a cluster
//! from another here but a Namespace kube-system with a UID.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::debug;

use super::admit::Update;
use super::feed::{Contact, Handles, tell_contact};
use super::files::{self, Contents};
use super::problem::Problem;
use super::store::Store;
use super::{Link, Snapshot};
use crate::config::Cluster;
use crate::model::Finding;

/// How often the folder is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// How long one look may take before it is told; the folder may lie on a server that is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file that changes at each look is read all the same after so many.
const RESTLESS: u32 = 10;

/// Starts to follow `folder`. Needs a tokio runtime with time.
pub(super) fn spawn(folder: PathBuf, settings: Cluster) -> Handles {
    let (snapshots_out, snapshots) = watch::channel(None);
    let (contact_out, contact) = watch::channel(Contact::default());
    let (alive_out, alive) = watch::channel(Instant::now());
    let (link_out, link) = watch::channel(None);
    let teller = Teller {
        folder: folder.clone(),
        store: Store::default(),
        snapshots: snapshots_out,
        contact: contact_out,
        alive: alive_out,
        _link: link_out,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(follow(Folder { path: folder, settings, files: None }, teller));
    Handles { snapshots, contact, alive, link, _tasks: tasks }
}

async fn follow(mut folder: Folder, mut teller: Teller) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut looking = spawn_blocking(move || {
            let looked = folder.look();
            (folder, looked)
        });
        let looked = loop {
            teller.alive.send_replace(Instant::now());
            match timeout(PATIENCE, &mut looking).await {
                // A panic is a bug: the task ends, which the daemon sees.
                Ok(Err(_)) => return,
                Ok(Ok((back, looked))) => {
                    folder = back;
                    break looked;
                }
                Err(_) => teller.fail(format!("no answer within {} s", PATIENCE.as_secs())),
            }
        };
        match looked {
            Ok(snapshot) => teller.take(snapshot, Instant::now()),
            Err(error) => teller.fail(error.to_string()),
        }
    }
}

/// What the task tells.
struct Teller {
    folder: PathBuf,
    store: Store,
    snapshots: watch::Sender<Option<Update>>,
    contact: watch::Sender<Contact>,
    alive: watch::Sender<Instant>,
    /// Nothing writes to a folder; kept, as its receivers take its end for that of the task.
    _link: watch::Sender<Option<Link>>,
}

impl Teller {
    /// Takes what a look gave: a snapshot when there is news.
    fn take(&mut self, snapshot: Option<Snapshot>, now: Instant) {
        if let Some(snapshot) = snapshot {
            self.store.take(&snapshot);
        }
        if let Some(update) = self.store.due(now).and_then(|_| self.store.publish(now)) {
            debug!(services = update.snapshot.services.len(), "new snapshot from {}", self.folder.display());
            self.snapshots.send_replace(Some(update));
        }
        self.tell(Contact { last_ok: Some(now), problem: None });
    }

    fn fail(&self, reason: String) {
        let problem = Some(Problem::Folder { path: self.folder.clone(), reason });
        let last_ok = self.contact.borrow().last_ok;
        self.tell(Contact { last_ok, problem });
    }

    fn tell(&self, contact: Contact) {
        tell_contact(&self.contact, contact, "the folder of manifests can be read again");
    }
}

/// The folder as it was last seen.
struct Folder {
    path: PathBuf,
    settings: Cluster,
    /// `None` before the first look.
    files: Option<BTreeMap<PathBuf, File>>,
}

impl Folder {
    /// Looks at each file, and reads what is to be read; a snapshot when there is news.
    fn look(&mut self) -> io::Result<Option<Snapshot>> {
        let paths = files::manifests(&self.path)?;
        let first = self.files.is_none();
        let files = self.files.get_or_insert_default();
        let mut news = first;
        for path in &paths {
            let file = files.entry(path.clone()).or_insert_with(File::new);
            news |= file.look(path, &self.settings, first);
        }
        files.retain(|path, file| {
            // Editors rename files while they save: what is missing once may be back at the next look.
            let is_missing = paths.binary_search(path).is_err();
            let was_missing = std::mem::replace(&mut file.missing, is_missing);
            news |= is_missing && was_missing;
            !(is_missing && was_missing)
        });
        Ok(news.then(|| snapshot(files)))
    }
}

fn snapshot(files: &BTreeMap<PathBuf, File>) -> Snapshot {
    let mut snapshot = files::together(files.values().map(|file| &file.contents));
    for (path, file) in files {
        if !file.findings.is_empty() {
            snapshot.skipped.insert(format!("file {}", path.display()), file.findings.clone());
        }
    }
    snapshot
}

/// A file as it was last seen, and what it says.
#[derive(Debug)]
struct File {
    /// Its metadata at the last look; `None` when it had none, as a link to nowhere.
    seen: Option<Stamp>,
    /// It is to be read once it stands still.
    changed: bool,
    /// The looks since it last stood still.
    restless: u32,
    /// It was not there at the last look.
    missing: bool,
    /// What it says.
    contents: Contents,
    /// Whether that is all of a version of it.
    whole: bool,
    /// What cannot be read of the newest version.
    findings: Vec<Finding>,
}

impl File {
    fn new() -> Self {
        Self {
            seen: None,
            changed: true,
            restless: 0,
            missing: false,
            contents: Contents::default(),
            whole: false,
            findings: Vec::new(),
        }
    }

    /// Looks at the file, which is at `path`, and reads it when it changed and stands still now, or `at_once`; whether
    /// it was read.
    fn look(&mut self, path: &Path, settings: &Cluster, at_once: bool) -> bool {
        let stamp = Stamp::of(path);
        let before = std::mem::replace(&mut self.seen, stamp);
        if stamp != before {
            self.changed = true;
            self.restless += 1;
            if !at_once && self.restless < RESTLESS {
                return false;
            }
        }
        self.restless = 0;
        if !std::mem::take(&mut self.changed) {
            return false;
        }
        self.take(files::read(path, settings));
        true
    }

    /// Takes what the newest version says, unless objects of it cannot be read and those of an earlier one could.
    fn take(&mut self, newest: Contents) {
        let whole = newest.findings.is_empty();
        self.findings.clone_from(&newest.findings);
        if whole || !self.whole {
            self.contents = newest;
            self.whole = whole;
            return;
        }
        for finding in &mut self.findings {
            finding.text += "; what the file said before stays";
        }
    }
}

/// Tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// Of the inode: a write that sets the time of modification back is seen by it.
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let data = fs::metadata(path).ok()?;
        Some(Self {
            inode: data.ino(),
            length: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
