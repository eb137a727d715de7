//! One turn of the loop: take in what is new, run a pass, set the weight, tell people.

mod findings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::debug;

use super::admission::Admitted;
use super::channels::{Inputs, Outputs, follow, replace, update_from};
use super::core::Core;
use super::orders::Ordered;
use super::pass::{self, Applied, Outcome, pass};
use super::probe::Rounds;
use super::saving::Saving;
use super::settings::Joined;
use super::status::{Since, View};
use super::weights::{self, Weights};
use super::writers::Orders;
use super::{alive, moves, weight_files};
use crate::config::{HostLayers, Settings};
use crate::conntrack::Moves;
use crate::derive::{self, Desired, Vip};
use crate::health::node_ports::Local;
use crate::host::Host;
use crate::keepalived::{Paths, hold, weight};
use crate::model::{Finding, Vrid};
use crate::nft::firewall::Firewall;
use crate::report::status::Cluster;
use crate::snapshot::Snapshot;
use crate::snapshot::admit;
use crate::snapshot::kube::Contact;

/// Between two full readings of what the kernel has.
const AUDIT: Duration = Duration::from_secs(60);
/// Between two attempts when the host refused something.
const RETRY: Duration = Duration::from_secs(2);

/// The one owner of state.
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
    rounds: Rounds,
    weights: Weights,
    ordered: Ordered,
    joined: Option<Joined>,
    since: Arc<Since>,
    here: Arc<BTreeSet<IpAddr>>,
    /// The VIPs that `since` was noted for.
    noted: Arc<BTreeMap<IpAddr, Vip>>,
    outcome: Option<Outcome>,
    findings: Arc<Vec<Finding>>,
    /// Why weight files are not as they should be.
    unwritten: BTreeSet<Finding>,
    /// A configuration waits for weight files that cannot be written: keepalived would take a missing one for 0.
    held_back: bool,
    saving: Saving,
    /// When the cluster was last heard, by whichever feed; when kvip started, before that.
    contact: Option<Instant>,
    /// When the last sign of life was given.
    alive: Option<Instant>,
    audited: Option<Instant>,
    /// Since the last audit.
    firewall_read: bool,
    firewall: Option<BoxFuture<'static, Result<Firewall, Finding>>>,
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
        let weights = Weights::new(weight_files::open(&paths));
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
            rounds: Rounds::default(),
            weights,
            ordered: Ordered::default(),
            joined: None,
            since: Arc::default(),
            here: Arc::default(),
            noted: Arc::default(),
            outcome: None,
            findings: Arc::default(),
            unwritten: BTreeSet::new(),
            held_back: false,
            saving: Saving::to(snapshot),
            contact: None,
            alive: None,
            audited: None,
            firewall_read: false,
            firewall: None,
            tried: None,
        }
    }

    /// Whether a pass has been made.
    pub fn has_passed(&self) -> bool {
        self.outcome.is_some()
    }

    /// One turn.
    pub async fn turn(&mut self, now: Instant) {
        self.contact.get_or_insert(now);
        self.take_in(now);
        let prepared = weight_files::prepare(&self.paths, self.vrids());
        let closed = prepared.is_ok();
        self.unwritten = prepared.err().into_iter().collect();
        self.news |= closed && self.held_back;
        if !self.weights.programmed() {
            self.step_back();
        }
        if self.due() && !self.resting(now) {
            self.held_back = !closed;
            self.pass(now).await;
        }
        self.read_firewall();
        let drained = hold::drained(&self.paths);
        let weights = self.weigh(now);
        self.live(now);
        self.saving.save_when_due(self.admitted.snapshot(), now).await;
        self.note_moves(now);
        self.order();
        self.tell_local();
        self.tell(drained, weights, now);
    }

    /// Lowers what is above a backup's: a holder's weight that an earlier run left on a node that holds nothing any more. With
    /// it the node would take the VIPs back as soon as keepalived sees that kvip runs again.
    fn step_back(&mut self) {
        let elsewhere = self.vrids().into_iter().filter(|vrid| !self.core.holds_anchor(*vrid));
        let failed =
            elsewhere.filter_map(|vrid| weight_files::lower(&self.paths, vrid, weight::FRESH_BACKUP).err());
        self.unwritten.extend(failed);
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
        self.join_settings();
        let others = self.core.snapshot.as_ref().map(Arc::as_ptr) != before.as_ref().map(Arc::as_ptr);
        self.saving.pending |= others;
        self.news |= self.saving.pending;
        self.take_in_host(now);
    }

    /// Joins the host's settings with the cluster's, where these changed.
    fn join_settings(&mut self) {
        let Some(snapshot) = self.core.snapshot.clone() else { return };
        let joined = self.joined.as_mut().and_then(|joined| joined.take(snapshot.settings_text()));
        if let Some(settings) = joined.filter(|settings| *settings != self.core.settings) {
            self.take_settings(settings, false);
        }
    }

    /// Follows the cluster's settings beside the host's from now on.
    pub fn join(&mut self, joined: Joined) {
        self.joined = Some(joined);
    }

    /// Takes what the host says anew, and gives the settings that follow.
    pub fn reload(&mut self, host: HostLayers) -> Option<Settings> {
        let joined = self.joined.as_mut()?;
        joined.reload(host);
        match &self.core.snapshot {
            Some(snapshot) => joined.take(snapshot.settings_text()),
            None => Some(joined.first()),
        }
    }

    /// Other writers than before are told what to write.
    pub fn write_by(&mut self, orders: Orders) {
        self.outputs.orders = orders;
        self.ordered.forget();
    }

    /// What comes from this host: any news of it may matter to everything.
    fn take_in_host(&mut self, now: Instant) {
        let core = &mut self.core;
        let mut news = false;
        news |= update_from(&mut core.facts, &self.inputs.facts.borrow_and_update());
        news |= update_from(&mut core.carried, &self.inputs.keepalived.borrow_and_update().vips);
        let touched = update_from(&mut self.applied.touched, &self.inputs.ruleset.borrow_and_update());
        self.applied.ruleset_doubtful |= touched;
        news |= touched;
        let haproxy = self.inputs.haproxy.borrow_and_update();
        news |= update_from(&mut core.proxied, &haproxy.tried);
        core.unproxied = haproxy.lacking();
        drop(haproxy);
        self.applied.look_at_all |= news;
        self.news |= news;
        self.news |= update_from(&mut core.unhealthy, &self.inputs.unhealthy.borrow_and_update());
        self.news |= update_from(&mut core.reach.macs, &self.inputs.macs.borrow_and_update());
        self.news |= update_from(&mut core.reach.hops, &self.inputs.hops.borrow_and_update());
        self.news |= update_from(&mut core.dead, &self.inputs.dead.borrow_and_update().nodes);
        if self.audited.is_none_or(|last| now.duration_since(last) >= AUDIT) {
            self.audited = Some(now);
            self.core.doubt();
            self.firewall_read = false;
        }
    }

    /// Asks the kernel for some of what it should have; true when it has not, which the next turn puts right. What cannot be
    /// asked shows when the table is read.
    pub async fn probe(&mut self) -> bool {
        let Some(table) = &self.core.table else { return false };
        let (expected, inside) = (self.rounds.next(table), self.rounds.look_into(table));
        let intact = table.is_empty()
            || self.host.has(&expected).await.unwrap_or(false)
                && self.host.has_real_servers(&inside).await.unwrap_or(false);
        if !intact {
            self.core.doubt();
        }
        !intact
    }

    /// Whether there is something to do: an idle turn costs no derivation.
    fn due(&self) -> bool {
        let settled =
            self.outcome.as_ref().is_some_and(|outcome| outcome.as_planned && outcome.problems.is_empty());
        self.news || !settled || self.core.table.is_none() || self.core.waiting()
    }

    /// Waits until what is being saved is on the disk.
    pub async fn saved(&mut self) {
        self.saving.finish().await;
    }

    /// Ends: the accepted state is on the disk, for the next run to begin with.
    pub async fn stop(&mut self) {
        self.saving.save_rest(self.admitted.snapshot()).await;
    }

    /// Takes new settings, and with `new_feed` a new task that follows the cluster.
    pub fn take_settings(&mut self, settings: Settings, new_feed: bool) {
        self.core.settings = settings;
        // The next run is to go by the new `gone_after`, should this one end right now.
        self.alive = None;
        // Not all that the writers go by shows in what is served.
        self.ordered.forget();
        self.news = true;
        self.applied.look_at_all = true;
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
        let (wants, held_back) = (&self.outputs.keepalived, self.held_back);
        // While the pass changes the core, the answer is that of before: keep what is held until another has it.
        let holding = self.weights.holding(&self.core, now);
        let (haproxy, served) = (&self.outputs.haproxy, self.core.proxied.clone());
        let switch = |desired: &Desired| {
            haproxy.send_if_modified(|last| replace(last, Some(Arc::clone(&desired.haproxy))));
            // Before a VIP comes HAProxy listens at it, or cannot.
            if held_back || !desired.haproxy.is_covered_by(&served) {
                return;
            }
            let config = weights::switch(desired, &holding, wants.borrow().as_ref());
            if let Some(config) = config {
                wants.send_if_modified(|last| replace(last, Some(config)));
            }
        };
        let before = self.outcome.clone();
        let outcome =
            pass(&mut self.core, &mut self.applied, &mut self.host, &self.ledger, before, switch, now).await;
        let Some(outcome) = outcome else { return };
        self.outputs.targets.send_if_modified(|last| replace(last, (*outcome.desired.probed).clone()));
        self.outputs.peers.send_if_modified(|last| replace(last, (*outcome.desired.peers).clone()));
        self.outputs.checked.send_if_modified(|last| follow(last, outcome.desired.checked.counts()));
        self.outputs.ways.send_if_modified(|last| follow(last, outcome.desired.ways.counts()));
        self.outcome = Some(outcome);
    }

    /// Reads once after each audit what other programs let in, where answers go past the holder. No turn waits for that, as
    /// their rules may be many; what is new counts from the next turn on.
    fn read_firewall(&mut self) {
        let one_way = self.outcome.as_ref().is_some_and(|outcome| outcome.desired.assignment.one_way);
        if one_way && !self.firewall_read {
            self.firewall_read = true;
            self.firewall = Some(self.host.firewall());
        }
        let Some(read) = self.firewall.as_mut().and_then(FutureExt::now_or_never) else { return };
        self.firewall = None;
        match read {
            Ok(firewall) => self.news |= update_from(&mut self.core.reach.firewall, &firewall),
            // The table of kvip's own is read and written by the same means, which says what is wrong with them.
            Err(finding) => debug!("other programs' rules are not known: {finding}"),
        }
    }

    /// The groups that this node has, or that its keepalived runs still.
    fn vrids(&self) -> BTreeSet<Vrid> {
        let wanted = derive::groups_of(&self.core.settings).into_iter().map(|group| group.vrrp.vrid);
        wanted.chain(self.core.carried.vrids()).collect()
    }

    /// Sets the weight files that should say something else, and tells what they say.
    fn weigh(&mut self, now: Instant) -> BTreeMap<Vrid, i16> {
        // A feed that has just begun has heard nothing yet. What waits for an admin is heard and not served.
        let heard = self.inputs.contact.borrow().last_ok.map(tokio::time::Instant::into_std);
        self.contact = self.contact.max(heard.filter(|_| self.admitted.held().is_none()));
        let contact_age = now.saturating_duration_since(self.contact.unwrap_or(now));
        let keepalived = self.inputs.keepalived.borrow().state.clone();
        let wanted = match &self.outcome {
            Some(outcome) => self.weights.weights(&self.core, outcome, &keepalived, contact_age, now),
            None => self.weights.of_unknown(&self.core, self.vrids(), contact_age, now),
        };
        // Whoever made the mark lowers the weights, softly.
        let held = hold::held(&self.paths);
        let mut weights = BTreeMap::new();
        for (vrid, wanted) in wanted {
            let written = if self.weights.programmed() || held {
                weight_files::bring(&self.paths, vrid, (!held).then_some(wanted))
            } else {
                weight_files::lower(&self.paths, vrid, wanted)
            };
            match written {
                Ok(weight) => weights.extend(weight.map(|weight| (vrid, weight))),
                Err(finding) => _ = self.unwritten.insert(finding),
            }
        }
        weights
    }

    /// Gives a sign of life from time to time.
    fn live(&mut self, now: Instant) {
        if self.alive.is_some_and(|last| now.duration_since(last) < alive::EVERY) {
            return;
        }
        match alive::beat(&self.paths, &self.core.settings) {
            Ok(()) => self.alive = Some(now),
            Err(error) => _ = self.unwritten.insert(weight_files::finding(&error)),
        }
    }

    fn tell(&mut self, drained: bool, weights: BTreeMap<Vrid, i16>, now: Instant) {
        let keepalived = self.inputs.keepalived.borrow().clone();
        self.tell_findings(&keepalived, now);
        let contact = self.inputs.contact.borrow();
        let view = View {
            hostname: self.core.facts.hostname.clone(),
            outcome: self.outcome.clone(),
            snapshot: self.core.snapshot.clone(),
            here: Arc::clone(&self.here),
            since: Arc::clone(&self.since),
            counts: self.core.counts(),
            dead: self.core.dead.clone(),
            unhealthy: self.core.unhealthy.clone(),
            findings: Arc::clone(&self.findings),
            cluster: self.cluster(&contact),
            contact: contact.last_ok.map(tokio::time::Instant::into_std),
            keepalived: keepalived.state.to_string(),
            keepalived_reloads: keepalived.reloads,
            haproxy: self.inputs.haproxy.borrow().state.to_string(),
            drained,
            weights,
            faults: self.applied.faults,
            repairs: self.applied.repairs.counts(),
        };
        drop(contact);
        self.outputs.status.send_replace(Arc::new(view));
    }

    /// Notes which VIPs are here since when, where the host or the wanted VIPs changed.
    fn note_moves(&mut self, now: Instant) {
        let vips = self.outcome.as_ref().map(|outcome| Arc::clone(&outcome.desired.vips)).unwrap_or_default();
        let here = self.core.vips_here();
        if here == *self.here && Arc::ptr_eq(&vips, &self.noted) {
            return;
        }
        let moved = Arc::make_mut(&mut self.since).note(vips.keys().copied(), &here, now);
        moves::log(&moved, self.outcome.as_ref().map(|outcome| &outcome.desired));
        self.here = Arc::new(here);
        self.noted = vips;
        self.tell_moves();
    }

    /// Says which VIPs are here now, to whom it matters for packets that this node handed on or took in before.
    fn tell_moves(&self) {
        let Some(outcome) = &self.outcome else { return };
        let facts = &self.core.facts;
        let mut frontends = outcome.desired.assignment.of_mode_nat();
        if let Some(snapshot) = self.core.snapshot.as_ref().filter(|_| facts.kube_proxy_has_ipvs_mode()) {
            // What kube-proxy has on its device is this host's own at all times, wherever keepalived has it.
            let known = derive::known_to_kube_proxy(snapshot);
            frontends.retain(|frontend| !known.contains(&frontend.vip));
        }
        let here = frontends.iter().map(|frontend| frontend.vip).filter(|vip| self.here.contains(vip));
        let moves = Moves {
            here: here.collect(),
            own: facts.addresses.iter().map(|address| address.ip).collect(),
            frontends,
        };
        self.outputs.moves.send_if_modified(|last| {
            let news = last.as_ref().is_none_or(|last| last.here != moves.here);
            *last = Some(moves);
            news
        });
    }

    /// Hands on what healthCheckNodePorts are answered from, where that is wanted.
    fn tell_local(&self) {
        let on = self.core.settings.balancing.health_check_node_port;
        let node = self.outcome.as_ref().and_then(|outcome| outcome.desired.node.clone());
        let local = node.zip(self.core.snapshot.clone()).filter(|_| on);
        let local = local.map(|(node, snapshot)| Local { node, snapshot });
        self.outputs.local.send_if_modified(|last| {
            let news = last.as_ref().map(|local| Arc::as_ptr(&local.snapshot))
                != local.as_ref().map(|local| Arc::as_ptr(&local.snapshot));
            *last = local;
            news
        });
    }

    /// Tells those who write to the cluster what to write.
    fn order(&mut self) {
        let outcomes = self.inputs.answers.outcomes.borrow_and_update().clone();
        if self.admitted.held().is_some() {
            self.ordered.stop(&self.outputs.orders);
        } else if let Some(outcome) = &self.outcome {
            let assignment = &outcome.desired.assignment;
            let agreed = self.inputs.answers.heard.borrow().agreed();
            self.ordered.give(&self.core, assignment, &outcomes, &self.here, agreed, &self.outputs.orders);
        }
    }

    fn cluster(&self, contact: &Contact) -> Cluster {
        Cluster {
            contact_seconds_ago: None,
            problem: contact.problem.as_ref().map(ToString::to_string),
            held: self.admitted.held().map(ToString::to_string),
            held_id: self.admitted.held().map(|held| held.id.clone()),
            from_disk: self.admitted.from_disk,
        }
    }
}
