//! What the daemon knows, and what follows from it: state without IO, with the time passed in.
//!
//! The loop in [`super`] feeds events in and carries decisions out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::members::Members;
use super::refusals::Refusals;
use super::repairs::IpvsDrift;
use crate::config::Settings;
use crate::derive::{Changed, Deriver, Desired, Inputs, Reach, WantedServer};
use crate::health::check::Down;
use crate::ipvs::{Command, Key, Table};
use crate::keepalived::{self, Carried};
use crate::model::{Backend, Family, Finding, Frontend, Vrid};
use crate::net::{Address, HostFacts, PolicyRoute};
use crate::nft::Ruleset;
use crate::owned::Owned;
use crate::plan::{self, Have, Plan};
use crate::snapshot::Snapshot;

/// How long an address must look left behind before it is removed: longer than an election at the slowest sensible advert
/// interval, so that VIPs under way between two nodes are never touched.
const STRAY_AFTER: Duration = Duration::from_secs(15);

/// The state of the daemon.
#[derive(Debug)]
pub struct Core {
    /// The admin's settings.
    pub settings: Settings,
    /// The cluster's state that is served.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The host's network.
    pub facts: HostFacts,
    /// Nodes that do not answer.
    pub dead: BTreeSet<String>,
    /// The VIPs in the configuration that keepalived runs.
    pub carried: Carried,
    /// The frontends that HAProxy serves, or was found not to be able to.
    pub proxied: BTreeSet<Frontend>,
    /// Those of them that it does not serve, and another node's may.
    pub unproxied: BTreeSet<Frontend>,
    /// The kernel's virtual servers that are kvip's; `None` before they were read.
    pub table: Option<Table>,
    /// The table `inet kvip` as it was written last.
    pub written: Arc<Ruleset>,
    /// What kvip programmed once and is not wholly gone; kept on disk.
    pub owned: Owned,
    /// Endpoints that do not answer their checks.
    pub unhealthy: Down,
    /// What is known of the ways to other nodes.
    pub reach: Reach,
    /// What the kernel refuses of single Services.
    pub refusals: Refusals,
    /// Why packets cannot be steered over IPv6 on this host.
    pub unrouted: Option<Finding>,
    /// Firewall marks by which other programs had virtual servers when marks were wanted last.
    foreign_marks: BTreeSet<u32>,
    deriver: Deriver,
    /// What the kernel had when that was doubted.
    doubted: Option<Table>,
    real_servers: usize,
    members: Members,
    draining: BTreeMap<(Key, Backend), Drain>,
    /// What an earlier run left has been looked at.
    begun: bool,
    stray_since: BTreeMap<Address, Instant>,
}

/// A real server that drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drain {
    /// The frontend whose it is.
    frontend: Frontend,
    /// What is wanted of it: one that drains has its own time, however long it lingered before.
    wanted: WantedServer,
    /// `None`: an earlier run has let go of it.
    since: Option<Instant>,
}

/// What follows from the state at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What must change in IPVS and nftables.
    pub plan: Plan,
    /// Addresses to remove.
    pub strays: Vec<Address>,
}

impl Core {
    /// A daemon that knows its settings, its host and what an earlier run owned.
    pub fn new(settings: Settings, facts: HostFacts, owned: Owned) -> Self {
        let deriver = Deriver::keeping(owned.marked.iter().copied().collect());
        Self {
            settings,
            facts,
            owned,
            snapshot: None,
            dead: BTreeSet::new(),
            carried: Carried::new(),
            proxied: BTreeSet::new(),
            unproxied: BTreeSet::new(),
            table: None,
            unhealthy: Down::new(),
            reach: Reach::default(),
            refusals: Refusals::default(),
            unrouted: None,
            foreign_marks: BTreeSet::new(),
            written: Arc::default(),
            deriver,
            doubted: None,
            real_servers: 0,
            members: Members::default(),
            draining: BTreeMap::new(),
            begun: false,
            stray_since: BTreeMap::new(),
        }
    }

    /// What should be, and what of it differs from the last time; `None` while nothing is known of the cluster.
    pub fn desired(&mut self, now: Instant) -> Option<(Desired, Changed)> {
        let snapshot = self.snapshot_or_statics()?;
        let leaving = self.members.leaving(&snapshot, &self.settings, now);
        let inputs = Inputs {
            settings: &self.settings,
            snapshot: &snapshot,
            facts: &self.facts,
            dead: &self.dead,
            leaving: &leaving,
            unhealthy: &self.unhealthy,
            reach: &self.reach,
            foreign_marks: &self.foreign_marks,
        };
        Some(self.deriver.derive(&inputs))
    }

    /// The cluster's state; without any, an empty one where static VIPs are all that kvip has ever had to do with on this
    /// host, so that nothing can be taken away by it (invariant 4).
    fn snapshot_or_statics(&self) -> Option<Arc<Snapshot>> {
        if let Some(snapshot) = &self.snapshot {
            return Some(Arc::clone(snapshot));
        }
        let statics: BTreeSet<IpAddr> = self.settings.statics.iter().map(|one| one.vip).collect();
        let alone = !statics.is_empty()
            && self.owned.vips.is_subset(&statics)
            && self.carried.vips().is_subset(&statics);
        alone.then(Arc::default)
    }

    /// Takes note of what the kernel has, read anew; what another hand has done to what was there before.
    pub fn know(&mut self, mut table: Table, desired: &Desired) -> IpvsDrift {
        let before = self.doubted.take();
        plan::leave_to_others(&mut table, desired, &self.written, before.as_ref());
        let before = before.unwrap_or_default();
        let drift = IpvsDrift::between(&before, &table);
        for (key, server) in &mut table {
            if let Some(before) = before.get(key) {
                server.remember(before);
            }
        }
        self.real_servers = table.values().map(|server| server.real_servers.len()).sum();
        self.table = Some(table);
        drift
    }

    /// What the kernel has may be something else than is known: it is to be read anew, and compared.
    pub fn doubt(&mut self) {
        self.doubted = self.table.take().or(self.doubted.take());
        self.real_servers = 0;
    }

    /// What the kernel has is not known any more, as a change of it failed.
    pub fn forget(&mut self) {
        (self.table, self.doubted) = (None, None);
        self.real_servers = 0;
    }

    /// Takes note of the real servers of some virtual servers, read again.
    pub fn know_servers(&mut self, read: Table) {
        let table = self.table.get_or_insert_default();
        for (key, mut server) in read {
            self.real_servers += server.real_servers.len();
            let before = table.remove(&key);
            if let Some(before) = before {
                server.remember(&before);
                self.real_servers -= before.real_servers.len();
            }
            table.insert(key, server);
        }
    }

    /// Takes note of a command that the kernel has carried out.
    pub fn changed(&mut self, command: &Command) {
        let table = self.table.get_or_insert_default();
        let key = *command.key();
        let count = |table: &Table| table.get(&key).map_or(0, |server| server.real_servers.len());
        let before = count(table);
        command.apply(table);
        self.real_servers = self.real_servers + count(table) - before;
    }

    /// How many virtual servers and real servers the kernel has, as far as known.
    pub fn counts(&self) -> (usize, usize) {
        (self.table.as_ref().map_or(0, Table::len), self.real_servers)
    }

    /// Whether marks are wanted that are not kvip's yet: other programs may have virtual servers by them.
    pub fn wants_marks(&self, desired: &Desired) -> bool {
        wanted_marks(desired).any(|mark| !self.owned.marks.contains(&mark))
    }

    /// Takes note of all marks by which the kernel has virtual servers.
    pub fn know_marks(&mut self, all: &BTreeSet<(Family, u32)>) {
        self.foreign_marks = self.owned.foreign_marks(all);
    }

    /// Takes what is wanted into ownership; true when the list on disk must be written before anything is done.
    pub fn own(&mut self, desired: &Desired) -> bool {
        let count = |owned: &Owned| owned.vips.len() + owned.marks.len() + owned.marked.len();
        let before = count(&self.owned);
        self.owned.vips.extend(desired.vips.keys());
        self.owned.marks.extend(wanted_marks(desired));
        self.owned.marked.extend(desired.assignment.marks());
        count(&self.owned) != before
    }

    /// Lets go of that of which nothing is left; true when the list on disk must be written.
    pub fn disown(&mut self, desired: &Desired) -> bool {
        let before = self.owned.clone();
        let facts = &self.facts;
        let keepalived = &self.carried;
        let keys = || self.table.iter().flat_map(Table::keys);
        let vips: BTreeSet<IpAddr> = keys().filter_map(|key| Some(key.frontend()?.vip)).collect();
        let mut marks: BTreeSet<(Family, u32)> = wanted_marks(desired).collect();
        marks.extend(keys().filter_map(Key::mark));
        self.owned.vips.retain(|vip| {
            desired.vips.contains_key(vip)
                || facts.has(*vip)
                || keepalived.contains(*vip)
                || vips.contains(vip)
        });
        self.owned.marks.retain(|mark| marks.contains(mark));
        self.owned.marked = desired.assignment.marks().into_iter().collect();
        self.owned != before
    }

    /// Decides what to change, given what should be.
    pub fn decide(&mut self, desired: &Desired, now: Instant) -> Decision {
        self.draining = self.note_drains(desired, desired.frontends.keys().copied(), now);
        self.begun = true;
        let (drained, refused, nothing) = (self.drained(now), self.refusals.subjects(), Table::new());
        let have = self.have(&drained, &refused, &nothing);
        let plan = self.without_refused(plan::plan(desired, &have));
        let strays = plan::strays(&have, &self.owned.vips);
        let strays = settled(&mut self.stray_since, strays, now);
        Decision { plan, strays }
    }

    /// Decides for the real servers of `frontends` alone.
    pub fn decide_servers(
        &mut self,
        desired: &Desired,
        frontends: &BTreeSet<Frontend>,
        now: Instant,
    ) -> Decision {
        let draining = self.note_drains(desired, frontends.iter().copied(), now);
        self.draining.retain(|_, drain| !frontends.contains(&drain.frontend));
        self.draining.extend(draining);
        let (drained, refused, nothing) = (self.drained(now), self.refusals.subjects(), Table::new());
        let have = self.have(&drained, &refused, &nothing);
        let plan = self.without_refused(plan::plan_servers(desired, &have, frontends));
        Decision { plan, strays: Vec::new() }
    }

    /// Whether `route` cannot be had on this host, so that nobody waits for it.
    pub fn cannot_have(&self, route: &PolicyRoute) -> bool {
        self.unrouted.is_some() && route.family == Family::V6
    }

    /// What this host refuses, while all else is served.
    pub fn refused(&self) -> Vec<Finding> {
        let unrouted = self.unrouted.iter().map(|finding| {
            let text = format!("{}, so mode dsr is not served over IPv6 here", finding.text);
            Finding { text, ..finding.clone() }
        });
        self.refusals.findings().into_iter().chain(unrouted).collect()
    }

    /// What is left of `plan` without that which the kernel would refuse again.
    fn without_refused(&self, mut plan: Plan) -> Plan {
        for commands in [&mut plan.prepare, &mut plan.retire] {
            commands.retain(|command| !self.refusals.covers(command, self.table.as_ref()));
        }
        plan
    }

    /// Whether the kernel has refused something of each VIP, and has none of their frontends: a host that can serve nothing must
    /// hold nothing. What it may have by mark leads clients nowhere.
    pub fn serves_nothing(&self, desired: &Desired) -> bool {
        let refused = self.refusals.vips();
        let mut here = self.table.iter().flat_map(Table::keys).filter_map(Key::frontend);
        !refused.is_empty()
            && desired.vips.keys().all(|vip| refused.contains(vip))
            && !here.any(|frontend| desired.vips.contains_key(&frontend.vip))
    }

    /// What the host has; `nothing` stands for a table that was not read.
    fn have<'a>(
        &'a self,
        drained: &'a BTreeSet<(Key, Backend)>,
        refused: &'a BTreeSet<(Key, Option<Backend>)>,
        nothing: &'a Table,
    ) -> Have<'a> {
        Have {
            table: self.table.as_ref().unwrap_or(nothing),
            haproxy: &self.proxied,
            facts: &self.facts,
            keepalived: &self.carried,
            written: &self.written,
            drained,
            refused,
        }
    }

    /// Which real servers of `frontends` drain, and since when. The kernel's weight 0 is the memory of a drain; a restart of
    /// kvip starts its time anew. Where all nodes must have the same table a drain goes by time alone and is remembered for
    /// as long as it is wanted; one that is missing from a virtual server that an earlier run left was over before.
    fn note_drains(
        &self,
        desired: &Desired,
        frontends: impl Iterator<Item = Frontend>,
        now: Instant,
    ) -> BTreeMap<(Key, Backend), Drain> {
        let mut draining = BTreeMap::new();
        let Some(table) = &self.table else { return draining };
        for frontend in frontends {
            let Some(served) = desired.frontends.get(&frontend) else { continue };
            for balanced in &served.virtual_servers {
                let here = |backend: Backend| table.get(&balanced.key)?.real_servers.get(&backend);
                let before = table.get(&balanced.key).filter(|_| !self.begun);
                let was_so = before.is_some_and(|before| balanced.goes_by_order(&before.service));
                let ends = |wanted| matches!(wanted, WantedServer::Draining | WantedServer::Lingering);
                let all = served.real_servers(balanced).filter(|(_, wanted, _)| ends(*wanted));
                for (backend, wanted, _) in all {
                    let by_time =
                        wanted == WantedServer::Draining && balanced.goes_by_order(&balanced.service);
                    if by_time || here(backend).is_some_and(|real| real.weight == 0) {
                        let key = (balanced.key, backend);
                        let let_go = was_so && here(backend).is_none();
                        let fresh = Drain { frontend, wanted, since: (!let_go).then_some(now) };
                        let known = self.draining.get(&key).filter(|drain| drain.wanted == wanted);
                        draining.insert(key, known.copied().unwrap_or(fresh));
                    }
                }
            }
        }
        draining
    }

    /// Real servers that have drained for as long as they may.
    fn drained(&self, now: Instant) -> BTreeSet<(Key, Backend)> {
        let limit = self.settings.balancing.drain_limit;
        let over = |drain: &Drain| drain.since.is_none_or(|since| now.duration_since(since) >= limit);
        self.draining.iter().filter(|(_, drain)| over(drain)).map(|(key, _)| *key).collect()
    }

    /// Whether addresses or members are waited for, so that everything is to be looked at again.
    pub fn unsettled(&self) -> bool {
        !self.stray_since.is_empty() || self.members.any_leaving()
    }

    /// Whether something is to be done after a while although nothing changes.
    pub fn waiting(&self) -> bool {
        self.draining() || self.unsettled()
    }

    /// Whether connections of real servers are being waited for, so that the table must be read again.
    pub fn draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// The virtual servers with real servers that drain.
    pub fn draining_keys(&self) -> BTreeSet<Key> {
        self.draining.keys().map(|(key, _)| *key).collect()
    }

    /// The frontends with real servers that drain.
    pub fn draining_frontends(&self) -> BTreeSet<Frontend> {
        self.draining.values().map(|drain| drain.frontend).collect()
    }

    /// Whether this node holds the VIPs of the group `vrid` in either family.
    pub fn holds_anchor(&self, vrid: Vrid) -> bool {
        [Family::V4, Family::V6].into_iter().any(|family| self.facts.has(keepalived::anchor(vrid, family)))
    }

    /// The VIPs on this host that are kvip's.
    pub fn vips_here(&self) -> BTreeSet<IpAddr> {
        let ours =
            self.facts.addresses.iter().filter(|a| a.marked_as_vip() && self.owned.vips.contains(&a.ip));
        ours.map(|address| address.ip).collect()
    }
}

/// The marks of all virtual servers that are wanted.
fn wanted_marks(desired: &Desired) -> impl Iterator<Item = (Family, u32)> {
    let steering = &desired.ruleset.steering;
    steering.frontends.iter().flat_map(|(frontend, marks)| {
        let family = Family::of(frontend.vip);
        [(family, marks.peers), (family, marks.own)]
    })
}

/// Those of `items` that were there long enough.
fn settled(since: &mut BTreeMap<Address, Instant>, items: Vec<Address>, now: Instant) -> Vec<Address> {
    since.retain(|item, _| items.contains(item));
    let old = |item: &Address, since: &mut BTreeMap<Address, Instant>| {
        now.duration_since(*since.entry(item.clone()).or_insert(now)) >= STRAY_AFTER
    };
    items.into_iter().filter(|item| old(item, since)).collect()
}

/// Findings that came and findings that went between two passes.
pub fn news<'a>(before: &'a [Finding], after: &'a [Finding]) -> (Vec<&'a Finding>, Vec<&'a Finding>) {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), after.iter().collect());
    (new.difference(&old).copied().collect(), old.difference(&new).copied().collect())
}
