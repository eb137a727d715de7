//! What must change on this host: a pure diff of what is wanted and what is there, in a safe order.
//!
//! A plan has three stages, and each may begin only after the one before has had its effect:
//!
//! 1. **prepare**: real servers and rules of every VIP exist before keepalived may hold it;
//! 2. **switch**: keepalived's configuration (driven by [`crate::keepalived`]);
//! 3. **retire**: what is not wanted any more goes, a VIP's frontends only after the VIP has left this host.
//!
//! The stages need no memory: a VIP that is still here keeps its frontends, so the plan after its departure retires them.

mod ipvs;
mod strays;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::derive::{Desired, WantedServer};
use crate::ipvs::{Command, Key, Table};
use crate::keepalived::Carried;
use crate::model::{Backend, Frontend};
use crate::net::{HostFacts, PolicyRoute};
use crate::nft::Ruleset;

pub use strays::strays;

/// What the host has now, as far as it is kvip's.
#[derive(Debug, Clone, Copy)]
pub struct Have<'a> {
    /// Virtual servers of VIPs that kvip owns.
    pub table: &'a Table,
    /// The frontends that HAProxy serves, or was found not to be able to.
    pub haproxy: &'a BTreeSet<Frontend>,
    /// The host's addresses.
    pub facts: &'a HostFacts,
    /// The VIPs in the configuration that keepalived runs.
    pub keepalived: &'a Carried,
    /// The table `inet kvip` as it was written last, as far as known.
    pub written: &'a Ruleset,
    /// Real servers that have drained for as long as they may.
    pub drained: &'a BTreeSet<(Key, Backend)>,
    /// Virtual servers, or real servers of one, that the kernel would not have as they are wanted.
    pub refused: &'a BTreeSet<(Key, Option<Backend>)>,
}

/// The ordered changes of IPVS and routing, and the ruleset that goes with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Additions.
    pub prepare: Vec<Command>,
    /// Policy rules and routes to add, before the ruleset marks packets for them.
    pub routes: Vec<PolicyRoute>,
    /// The table `inet kvip`; `None` where only real servers were looked at.
    pub ruleset: Option<Arc<Ruleset>>,
    /// Removals.
    pub retire: Vec<Command>,
    /// Policy rules and routes to remove, when no packet is marked for them any more.
    pub old_routes: Vec<PolicyRoute>,
}

/// Plans the way from what the host has to what is desired.
pub fn plan(desired: &Desired, have: &Have) -> Plan {
    let mut plan = Plan::default();
    let mut ruleset = Arc::clone(&desired.ruleset);
    let mut wanted = BTreeSet::new();
    for (frontend, served) in &desired.frontends {
        ipvs::serve(frontend.protocol, served, have, &mut plan);
        wanted.extend(served.virtual_servers.iter().map(|balanced| balanced.key));
    }
    for key in have.table.keys().filter(|key| !wanted.contains(key)) {
        match key {
            Key::Frontend(frontend) if leaving(desired, have, frontend.vip) => {
                keep_open(*frontend, have, Arc::make_mut(&mut ruleset));
            }
            Key::Frontend(frontend) if taking_over(desired, have, frontend) => {}
            _ => plan.retire.push(Command::DelService(*key)),
        }
    }
    plan.ruleset = Some(ruleset);
    plan.routes = desired.policy_routes.difference(&have.facts.policy_routes).copied().collect();
    plan.old_routes = have.facts.policy_routes.difference(&desired.policy_routes).copied().collect();
    plan
}

/// Leaves out of `table`, as it was read, what others have on VIPs that kvip only holds, announced or floating: kube-proxy in ipvs
/// mode, kube-router, ldirectord. There kvip's own are those that it is to have, those of the ruleset that was `written` last, and
/// those that it knew `before`; the same goes for a VIP that is not wanted any more, unless an earlier run may have had it.
pub fn leave_to_others(table: &mut Table, desired: &Desired, written: &Ruleset, before: Option<&Table>) {
    let only_held =
        |vip: &IpAddr| desired.vips.get(vip).map_or(before.is_some(), |vip| vip.announced || vip.floats_only);
    let is_ours = |key: &Key, frontend: &Frontend| {
        let wanted = desired.frontends.get(frontend);
        wanted.is_some_and(|served| !served.virtual_servers.is_empty())
            || written.frontends.contains(frontend)
            || before.is_some_and(|before| before.contains_key(key))
    };
    table.retain(|key, _| key.frontend().is_none_or(|it| !only_held(&it.vip) || is_ours(key, it)));
}

/// Takes `table`, as it was read, for one that a daemon has seen to: real servers without weight have had the one that is wanted,
/// which the kernel does not tell. Those that have drained are returned: where they go by time alone, all that are gone.
pub fn take_for_seen_to(table: &mut Table, desired: &Desired) -> BTreeSet<(Key, Backend)> {
    let mut drained = BTreeSet::new();
    for served in desired.frontends.values() {
        for balanced in &served.virtual_servers {
            let Some(now) = table.get_mut(&balanced.key) else { continue };
            for (backend, wanted, real) in served.real_servers(balanced) {
                let last = now.added.iter_mut().find(|(at, _)| *at == backend).map(|(_, last)| last);
                if let Some(last) = last.filter(|last| **last == 0) {
                    *last = real.weight;
                }
                if wanted == WantedServer::Draining && !now.real_servers.contains_key(&backend) {
                    drained.insert((balanced.key, backend));
                }
            }
        }
    }
    drained
}

/// Keeps the rules of a frontend that goes when its VIP has gone. Whom it was closed to it stays closed to: to all, where it is
/// not known to whom (an earlier run wrote the rules).
fn keep_open(frontend: Frontend, have: &Have, ruleset: &mut Ruleset) {
    ruleset.closed.insert(frontend.vip);
    if !have.written.frontends.contains(&frontend) {
        return;
    }
    ruleset.frontends.insert(frontend);
    if let Some(sources) = have.written.sources.get(&frontend) {
        ruleset.sources.insert(frontend, sources.clone());
        ruleset.host.extend(&have.written.host);
    }
}

/// Plans for the real servers of `frontends` alone, where nothing else differs from what was planned before.
pub fn plan_servers(desired: &Desired, have: &Have, frontends: &BTreeSet<Frontend>) -> Plan {
    let mut plan = Plan::default();
    for frontend in frontends {
        if let Some(served) = desired.frontends.get(frontend) {
            ipvs::serve(frontend.protocol, served, have, &mut plan);
        }
    }
    plan
}

/// Whether HAProxy is to serve `frontend` instead and does not yet.
fn taking_over(desired: &Desired, have: &Have, frontend: &Frontend) -> bool {
    desired.haproxy.frontends.contains_key(frontend) && !have.haproxy.contains(frontend)
}

/// Whether `vip` is not wanted any more and still here.
fn leaving(desired: &Desired, have: &Have, vip: IpAddr) -> bool {
    !desired.vips.contains_key(&vip) && (have.keepalived.contains(vip) || have.facts.has(vip))
}
