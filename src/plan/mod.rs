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

use crate::derive::Desired;
use crate::ipvs::{Command, Table};
use crate::model::{Backend, Frontend};
use crate::net::HostFacts;
use crate::nft::Ruleset;

pub use strays::strays;

/// What the host has now, as far as it is kvip's.
#[derive(Debug, Clone, Copy)]
pub struct Have<'a> {
    /// Virtual servers of VIPs that kvip owns.
    pub table: &'a Table,
    /// The host's addresses.
    pub facts: &'a HostFacts,
    /// The VIPs in the configuration that keepalived runs.
    pub keepalived: &'a BTreeSet<IpAddr>,
    /// Real servers that have drained for as long as they may.
    pub drained: &'a BTreeSet<(Frontend, Backend)>,
}

/// The ordered changes of IPVS and the ruleset that goes with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Additions.
    pub prepare: Vec<Command>,
    /// The table `inet kvip`.
    pub ruleset: Ruleset,
    /// Removals.
    pub retire: Vec<Command>,
}

/// Plans the way from what the host has to what is desired.
pub fn plan(desired: &Desired, have: &Have) -> Plan {
    let mut plan = Plan { ruleset: desired.ruleset(), ..Plan::default() };
    for (frontend, served) in &desired.frontends {
        ipvs::serve(*frontend, served, have, &mut plan);
    }
    for (frontend, _) in have.table.iter().filter(|(frontend, _)| !desired.frontends.contains_key(frontend)) {
        if leaving(desired, have, frontend.vip) {
            plan.ruleset.frontends.insert(*frontend);
            plan.ruleset.closed.insert(frontend.vip);
        } else {
            plan.retire.push(Command::DelService(*frontend));
        }
    }
    plan
}

/// Whether `vip` is not wanted any more and still here.
fn leaving(desired: &Desired, have: &Have, vip: IpAddr) -> bool {
    !desired.vips.contains_key(&vip) && (have.keepalived.contains(&vip) || have.facts.has(vip))
}
