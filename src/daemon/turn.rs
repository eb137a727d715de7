//! One turn of the loop: take in what is new, run a pass, set the weight, tell people.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::admission::Admitted;
use super::core::{Core, news};
use super::pass::{self, Applied, Outcome, pass};
use super::status::{self, Moves, Since};
use super::weights::{self, Weights};
use crate::config::Settings;
use crate::derive::Desired;
use crate::health::{Dead, Targets};
use crate::host::Host;
use crate::keepalived::{self, Paths, hold};
use crate::model::Finding;
use crate::net::HostFacts;
use crate::report::status::{Cluster, Status};
use crate::snapshot::Snapshot;
use crate::snapshot::admit::{self, Update};
use crate::snapshot::kube::Contact;
use crate::snapshot::saved;

/// Between two full readings of what the kernel has.
const AUDIT: Duration = Duration::from_secs(60);
/// Between two attempts when the host refused something.
const RETRY: Duration = Duration::from_secs(2);
/// The snapshot on disk is at most this much older than the accepted one.
const SAVE: Duration = Duration::from_secs(5);

/// What others tell the loop; only the newest value counts.
#[derive(Debug)]
pub struct Inputs {
    /// The cluster's state.
    pub updates: watch::Receiver<Option<Update>>,
    /// How the API server is reached.
    pub contact: watch::Receiver<Contact>,
    /// The host's network.
    pub facts: watch::Receiver<HostFacts>,
    /// Nodes that do not answer.
    pub dead: watch::Receiver<Dead>,
    /// What keepalived runs.
    pub keepalived: watch::Receiver<keepalived::Status>,
}

impl Inputs {
    /// Waits until one of them has news.
    ///
    /// # Errors
    /// When a task that feeds the loop has ended: the daemon is to be restarted.
    pub async fn changed(&mut self) -> anyhow::Result<()> {
        let ended = |name: &'static str| move |_| anyhow::anyhow!("the {name} task has ended");
        tokio::select! {
            changed = self.updates.changed() => changed.map_err(ended("cluster")),
            changed = self.contact.changed() => changed.map_err(ended("cluster")),
            changed = self.facts.changed() => changed.map_err(ended("network")),
            changed = self.dead.changed() => changed.map_err(ended("health")),
            changed = self.keepalived.changed() => changed.map_err(ended("keepalived")),
        }
    }
}

/// What the loop tells others.
#[derive(Debug)]
pub struct Outputs {
    /// The configuration that keepalived is to run.
    pub keepalived: watch::Sender<Option<keepalived::Config>>,
    /// The nodes to probe.
    pub targets: watch::Sender<Targets>,
    /// The status document.
    pub status: watch::Sender<Status>,
}

/// The one owner of state.
#[derive(Debug)]
pub struct Daemon<H, L> {
    /// What is known.
    pub core: Core,
    /// What comes in.
    pub inputs: Inputs,
    /// What goes out.
    pub outputs: Outputs,
    host: H,
    ledger: L,
    paths: Paths,
    admitted: Admitted,
    taken_in: Option<Arc<Snapshot>>,
    /// Something changed since the last pass.
    news: bool,
    applied: Applied,
    weights: Weights,
    since: Since,
    outcome: Option<Outcome>,
    findings: Vec<Finding>,
    saving: Saving,
    started: Option<Instant>,
    audited: Option<Instant>,
    tried: Option<Instant>,
}

impl<H: Host, L: pass::Ledger> Daemon<H, L> {
    /// A daemon that has not turned yet. `snapshot` is the file of the saved state.
    #[expect(clippy::too_many_arguments, reason = "the parts are put together once, here")]
    pub fn new(
        core: Core,
        host: H,
        ledger: L,
        paths: Paths,
        snapshot: PathBuf,
        admitted: Admitted,
        inputs: Inputs,
        outputs: Outputs,
    ) -> Self {
        Self {
            core,
            inputs,
            outputs,
            host,
            ledger,
            paths,
            admitted,
            taken_in: None,
            news: true,
            applied: Applied::default(),
            weights: Weights::default(),
            since: Since::default(),
            outcome: None,
            findings: Vec::new(),
            saving: Saving { path: snapshot, last: None, pending: false },
            started: None,
            audited: None,
            tried: None,
        }
    }

    /// Whether a pass has been made.
    pub fn has_passed(&self) -> bool {
        self.outcome.is_some()
    }

    /// One turn.
    pub async fn turn(&mut self, now: Instant) {
        self.started.get_or_insert(now);
        self.take_in(now);
        // Before keepalived may read a configuration that tracks it: a missing weight file counts as 0.
        if let Err(error) = keepalived::weight::prepare(&self.paths, [self.core.settings.vrrp.vrid]) {
            warn!("{error}");
        }
        if self.due() && !self.resting(now) {
            self.pass(now).await;
        }
        let drained = hold::drained(&self.paths);
        let weight = self.weigh(now);
        self.saving.save_when_due(self.admitted.snapshot().as_deref(), now);
        self.tell(drained, weight, now);
    }

    fn take_in(&mut self, now: Instant) {
        // Waiting for news has marked it as seen, so what was taken in before is told by the snapshot itself.
        let newest = self.inputs.updates.borrow_and_update().clone();
        let update = newest
            .filter(|update| !self.taken_in.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &update.snapshot)));
        if let Some(update) = &update {
            self.taken_in = Some(Arc::clone(&update.snapshot));
        }
        let accept = self.paths.state.join("accept");
        let accepted = self.admitted.held().and_then(|_| admit::accepted(&accept).ok().flatten());
        self.admitted.consider(update, accepted.as_deref());
        if accepted.is_some() && self.admitted.held().is_none() {
            // A mark that stays names a state that is served already, so it can do no harm.
            let _ = admit::clear(&accept);
        }
        let before = std::mem::replace(&mut self.core.snapshot, self.admitted.snapshot());
        self.saving.pending |=
            self.core.snapshot.as_ref().map(Arc::as_ptr) != before.as_ref().map(Arc::as_ptr);
        self.news |= self.saving.pending;
        self.news |= update_from(&mut self.core.facts, &self.inputs.facts.borrow_and_update());
        self.news |= update_from(&mut self.core.dead, &self.inputs.dead.borrow_and_update().nodes);
        self.news |=
            update_from(&mut self.core.keepalived_vips, &self.inputs.keepalived.borrow_and_update().vips);
        if self.audited.is_none_or(|last| now.duration_since(last) >= AUDIT) {
            self.audited = Some(now);
            self.core.table = None;
        }
    }

    /// Whether there is something to do: an idle turn costs no derivation.
    fn due(&self) -> bool {
        let settled =
            self.outcome.as_ref().is_some_and(|outcome| outcome.as_planned && outcome.problems.is_empty());
        self.news || !settled || self.core.table.is_none() || self.core.waiting()
    }

    /// Takes new settings, and with `new_feed` a new task that follows the cluster.
    pub fn take_settings(&mut self, settings: Settings, new_feed: bool) {
        self.core.settings = settings;
        self.news = true;
        if new_feed {
            self.admitted.follow_anew();
        }
    }

    /// After the host refused something, ticks and events do not hammer it.
    fn resting(&self, now: Instant) -> bool {
        let failed = self.outcome.as_ref().is_some_and(|outcome| !outcome.problems.is_empty());
        failed && self.tried.is_some_and(|tried| now.duration_since(tried) < RETRY)
    }

    async fn pass(&mut self, now: Instant) {
        self.tried = Some(now);
        self.news = false;
        let wants = &self.outputs.keepalived;
        // While the pass changes the core, the answer is that of before: keep what is held until another has it.
        let holding = self.weights.holding(&self.core, now);
        let switch = |desired: &Desired| {
            if !holding || weights::is_member(desired) {
                wants.send_if_modified(|last| replace(last, Some(desired.keepalived.clone())));
            }
        };
        let outcome =
            pass(&mut self.core, &mut self.applied, &mut self.host, &self.ledger, switch, now).await;
        let Some(outcome) = outcome else { return };
        self.outputs.targets.send_if_modified(|last| replace(last, outcome.desired.probed.clone()));
        self.outcome = Some(outcome);
    }

    /// Sets the weight file when it should say something else.
    fn weigh(&mut self, now: Instant) -> Option<i16> {
        let vrid = self.core.settings.vrrp.vrid;
        let contact = self.inputs.contact.borrow().last_ok.map(tokio::time::Instant::into_std);
        let contact = contact.or(self.started).unwrap_or(now);
        let outcome = self.outcome.as_ref()?;
        let wanted = self.weights.weight(&self.core, outcome, contact, now);
        let current = keepalived::weight::read(&self.paths, vrid).unwrap_or_else(|error| {
            warn!("{error}");
            None
        });
        if hold::held(&self.paths) {
            // Whoever made the mark lowers the weight, softly.
            return current;
        }
        let Some(wanted) = wanted.filter(|wanted| current != Some(*wanted)) else { return current };
        self.write_weight(current, wanted)
    }

    fn write_weight(&self, current: Option<i16>, wanted: i16) -> Option<i16> {
        let vrid = self.core.settings.vrrp.vrid;
        match keepalived::weight::write(&self.paths, vrid, wanted) {
            Ok(()) => {
                info!(vrid = %vrid, "weight of VRID {vrid} is now {wanted}");
                Some(wanted)
            }
            Err(error) => {
                warn!("{error}");
                current
            }
        }
    }

    fn tell(&mut self, drained: bool, weight: Option<i16>, now: Instant) {
        let here = self.core.vips_here();
        let vips = self.outcome.iter().flat_map(|outcome| outcome.desired.vips.keys().copied());
        let moves = self.since.note(vips, &here, now);
        log_moves(&moves);
        let keepalived = self.inputs.keepalived.borrow().clone();
        let findings = self.all_findings(&keepalived);
        let (came, went) = news(&self.findings, &findings);
        for finding in came {
            warn!(subject = finding.subject, mend = finding.mend, "{finding}");
        }
        for finding in went {
            info!(subject = finding.subject, "no longer so: {finding}");
        }
        self.findings.clone_from(&findings);
        let facts = status::Facts {
            outcome: self.outcome.as_ref(),
            findings,
            cluster: self.cluster(now),
            keepalived: keepalived.state.to_string(),
            keepalived_reloads: keepalived.reloads,
            drained,
            weight,
            faults: self.applied.faults,
            since: &self.since,
        };
        let status = status::status(&self.core, facts, now);
        self.outputs.status.send_replace(status);
    }

    fn all_findings(&self, keepalived: &keepalived::Status) -> Vec<Finding> {
        let mut all = Vec::new();
        if let Some(outcome) = &self.outcome {
            all.extend(outcome.problems.iter().cloned());
            all.extend(outcome.desired.findings.iter().cloned());
        }
        all.extend(
            self.core.snapshot.iter().flat_map(|snapshot| snapshot.skipped.values().flatten().cloned()),
        );
        all.extend(keepalived.problem.clone());
        if let Some(held) = self.admitted.held() {
            all.push(Finding::new("cluster", held.to_string()).mend("kvip accept"));
        }
        if let Some(problem) = &self.inputs.contact.borrow().problem {
            all.push(Finding { mend: problem.mend(), ..Finding::new("cluster", problem.to_string()) });
        }
        all
    }

    fn cluster(&self, now: Instant) -> Cluster {
        let contact = self.inputs.contact.borrow();
        Cluster {
            contact_seconds_ago: contact
                .last_ok
                .map(|last| now.saturating_duration_since(last.into_std()).as_secs()),
            problem: contact.problem.as_ref().map(ToString::to_string),
            held: self.admitted.held().map(ToString::to_string),
            held_id: self.admitted.held().map(|held| held.id.clone()),
            from_disk: self.admitted.from_disk,
        }
    }
}

/// Copies `new` over `last`; true when that is news.
fn update_from<T: Clone + PartialEq>(last: &mut T, new: &T) -> bool {
    let news = last != new;
    if news {
        last.clone_from(new);
    }
    news
}

/// Puts `new` in place of `last`; true when that is news.
fn replace<T: PartialEq>(last: &mut T, new: T) -> bool {
    let news = *last != new;
    *last = new;
    news
}

fn log_moves(moves: &Moves) {
    if !moves.came.is_empty() {
        info!(
            vips = moves.came.len(),
            "group vips: now holder (VRRP moved {} here)",
            status::list(&moves.came)
        );
    }
    if !moves.went.is_empty() {
        info!(
            vips = moves.went.len(),
            "group vips: no longer holder ({} left this host)",
            status::list(&moves.went)
        );
    }
}

/// When the accepted state is written to disk.
#[derive(Debug)]
struct Saving {
    path: PathBuf,
    last: Option<Instant>,
    pending: bool,
}

impl Saving {
    fn save_when_due(&mut self, snapshot: Option<&crate::snapshot::Snapshot>, now: Instant) {
        let Some(snapshot) = snapshot else { return };
        if !self.pending || self.last.is_some_and(|last| now.duration_since(last) < SAVE) {
            return;
        }
        self.last = Some(now);
        match saved::save(&self.path, snapshot) {
            Ok(()) => self.pending = false,
            Err(error) => warn!("cannot save the cluster's state to {}: {error}", self.path.display()),
        }
    }
}
