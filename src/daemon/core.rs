//! What the daemon knows, and what follows from it: state without IO, with the time passed in.
//!
//! The loop in [`super`] feeds events in and carries decisions out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::members::Members;
use crate::config::Settings;
use crate::derive::{self, Desired, Inputs};
use crate::ipvs::Table;
use crate::keepalived;
use crate::model::{Backend, Family, Finding, Frontend};
use crate::net::{Address, HostFacts};
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
    pub keepalived_vips: BTreeSet<IpAddr>,
    /// The kernel's virtual servers of owned VIPs; `None` before they were read.
    pub table: Option<Table>,
    /// VIPs that kvip programmed once and that are not wholly gone; kept on disk.
    pub owned: BTreeSet<IpAddr>,
    members: Members,
    draining_since: BTreeMap<(Frontend, Backend), Instant>,
    stray_since: BTreeMap<Address, Instant>,
}

/// What follows from the state at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What should be.
    pub desired: Desired,
    /// What must change in IPVS and nftables.
    pub plan: Plan,
    /// Addresses to remove.
    pub strays: Vec<Address>,
}

impl Core {
    /// A daemon that knows its settings, its host and the VIPs that an earlier run owned.
    pub fn new(settings: Settings, facts: HostFacts, owned: BTreeSet<IpAddr>) -> Self {
        Self {
            settings,
            facts,
            owned,
            snapshot: None,
            dead: BTreeSet::new(),
            keepalived_vips: BTreeSet::new(),
            table: None,
            members: Members::default(),
            draining_since: BTreeMap::new(),
            stray_since: BTreeMap::new(),
        }
    }

    /// What should be; `None` while nothing is known of the cluster.
    pub fn desired(&mut self, now: Instant) -> Option<Desired> {
        let snapshot = Arc::clone(self.snapshot.as_ref()?);
        let leaving = self.members.leaving(&snapshot, &self.settings, now);
        let inputs = Inputs {
            settings: &self.settings,
            snapshot: &snapshot,
            facts: &self.facts,
            dead: &self.dead,
            leaving: &leaving,
        };
        Some(derive::derive(&inputs))
    }

    /// Takes the wanted VIPs into ownership; true when the list on disk must be written before anything is done.
    pub fn own(&mut self, desired: &Desired) -> bool {
        let before = self.owned.len();
        self.owned.extend(desired.vips.keys());
        self.owned.len() != before
    }

    /// Lets go of VIPs of which nothing is left; true when the list on disk must be written.
    pub fn disown(&mut self, desired: &Desired) -> bool {
        let before = self.owned.len();
        let facts = &self.facts;
        let keepalived = &self.keepalived_vips;
        let in_table: BTreeSet<IpAddr> =
            self.table.iter().flatten().map(|(frontend, _)| frontend.vip).collect();
        self.owned.retain(|vip| {
            desired.vips.contains_key(vip)
                || facts.has(*vip)
                || keepalived.contains(vip)
                || in_table.contains(vip)
        });
        self.owned.len() != before
    }

    /// Decides what to change, given what should be.
    pub fn decide(&mut self, desired: Desired, now: Instant) -> Decision {
        let nothing = Table::new();
        // Out of the state for as long as it is looked at, as the drains' times are written meanwhile.
        let read = self.table.take();
        let table = read.as_ref().unwrap_or(&nothing);
        let drained = self.drained(&desired, table, now);
        let have = Have { table, facts: &self.facts, keepalived: &self.keepalived_vips, drained: &drained };
        let plan = plan::plan(&desired, &have);
        let strays = plan::strays(&have, &self.owned, self.settings.vrrp.vrid);
        let strays = settled(&mut self.stray_since, strays, now);
        self.table = read;
        Decision { desired, plan, strays }
    }

    /// Real servers that have drained for as long as they may. The kernel's weight 0 is the memory of a drain; a restart
    /// of kvip starts its time anew.
    fn drained(&mut self, desired: &Desired, table: &Table, now: Instant) -> BTreeSet<(Frontend, Backend)> {
        let mut since = BTreeMap::new();
        for (frontend, served) in &desired.frontends {
            let Some(virtual_server) = table.get(frontend) else { continue };
            for (backend, here) in &virtual_server.real_servers {
                if here.weight == 0 && served.servers.get(backend) == Some(&derive::WantedServer::Draining) {
                    let key = (*frontend, *backend);
                    since.insert(key, self.draining_since.get(&key).copied().unwrap_or(now));
                }
            }
        }
        self.draining_since = since;
        let limit = self.settings.balancing.drain_limit;
        let expired = self.draining_since.iter().filter(|(_, since)| now.duration_since(**since) >= limit);
        expired.map(|(key, _)| *key).collect()
    }

    /// Whether something is to be done after a while although nothing changes.
    pub fn waiting(&self) -> bool {
        self.draining() || !self.stray_since.is_empty() || self.members.any_leaving()
    }

    /// Whether connections of real servers are being waited for, so that the table must be read again.
    pub fn draining(&self) -> bool {
        !self.draining_since.is_empty()
    }

    /// Whether this node holds the group's VIPs in either family.
    pub fn holds_anchor(&self) -> bool {
        let vrid = self.settings.vrrp.vrid;
        [Family::V4, Family::V6].into_iter().any(|family| self.facts.has(keepalived::anchor(vrid, family)))
    }

    /// The VIPs on this host that are kvip's.
    pub fn vips_here(&self) -> BTreeSet<IpAddr> {
        let ours = self.facts.addresses.iter().filter(|a| a.marked_as_vip() && self.owned.contains(&a.ip));
        ours.map(|address| address.ip).collect()
    }
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
    let came = after.iter().filter(|finding| !before.contains(finding)).collect();
    let went = before.iter().filter(|finding| !after.contains(finding)).collect();
    (came, went)
}
