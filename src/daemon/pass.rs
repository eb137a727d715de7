//! One pass: from what is known to what is done. The only place that changes IPVS, nftables and stray addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::core::{Core, Decision};
use super::repairs::{Drift, Repairs, TableDrift};
use super::tuning::tune;
use crate::derive::{Changed, Desired};
use crate::host::{Failure, Host};
use crate::ipvs::Command;
use crate::model::{Family, Finding, Frontend};
use crate::net::PolicyRoute;
use crate::nft;
use crate::nft::watch::Touched;
use crate::owned::Owned;
use crate::plan::Plan;

/// What carries over from pass to pass beside the [`Core`].
#[derive(Debug, Default)]
pub struct Applied {
    /// The fingerprint of the table in the kernel, as it was last read or written.
    ruleset: Option<String>,
    /// More than endpoints may differ from what the last pass saw: the host, the settings, keepalived.
    pub look_at_all: bool,
    /// What the kernel tells of changes of the table `inet kvip` by other hands.
    pub touched: Touched,
    /// The table may be something else than what was last read or written.
    pub ruleset_doubtful: bool,
    /// The policy rules and routes that were there when the last pass ended.
    routes: Arc<BTreeSet<PolicyRoute>>,
    /// What other hands did that is not yet put right.
    drift: Drift,
    /// What was put right.
    pub repairs: Repairs,
    /// The list on disk is not that of what kvip owns.
    unlisted: bool,
    /// What is wrong with the host, and stands in no VIP's way.
    pub findings: Vec<Finding>,
    /// Passes after which a second plan was not empty.
    pub faults: u64,
    /// The second plan of the last pass, unless it was empty.
    fault: Option<Plan>,
}

/// How a pass ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What should be.
    pub desired: Desired,
    /// Everything that was wanted is prepared: VIPs may come to this host.
    pub prepared: bool,
    /// Nothing is left to do.
    pub as_planned: bool,
    /// What the host refused.
    pub problems: Vec<Finding>,
    /// What it refused of single Services, while the others are served.
    pub refusals: Vec<Finding>,
}

/// Where the list of what kvip owns is kept.
pub trait Ledger {
    /// Writes the list.
    ///
    /// # Errors
    /// Says what could not be written.
    fn save(&self, owned: &Owned) -> Result<(), Finding>;
}

/// Brings the host to what should be, stage by stage: prepare, then `switch` (hands keepalived its configuration),
/// then retire. A stage begins only when the one before succeeded.
///
/// `before` is how the last pass ended: where it left nothing to do, and only endpoints have changed since, only the
/// frontends of their Services are looked at.
pub async fn pass<H: Host, L: Ledger>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    ledger: &L,
    before: Option<Outcome>,
    switch: impl FnOnce(&Desired),
    now: Instant,
) -> Option<Outcome> {
    let (desired, changed) = core.desired(now)?;
    let settled = before.filter(|before| before.as_planned && core.table.is_some() && !core.unsettled());
    Some(match (changed, settled) {
        (Changed::Servers(touched), Some(before)) if !applied.look_at_all && !applied.unlisted => {
            // The same configuration, yet a holder that waited to be relieved may have waited long enough.
            switch(&desired);
            servers(core, applied, host, desired, touched, before, now).await
        }
        _ => everything(core, applied, host, ledger, desired, switch, now).await,
    })
}

/// Writes the list of what kvip owns, where it is another than that on disk.
fn save<L: Ledger>(core: &Core, applied: &mut Applied, ledger: &L) -> Option<Finding> {
    if !applied.unlisted {
        return None;
    }
    let failed = ledger.save(&core.owned).err();
    applied.unlisted = failed.is_some();
    failed
}

/// Looks at the real servers of `touched` and of those that drain.
async fn servers<H: Host>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    desired: Desired,
    mut touched: BTreeSet<Frontend>,
    before: Outcome,
    now: Instant,
) -> Outcome {
    let mut problems = Vec::new();
    touched.extend(core.draining_frontends());
    if let Err(finding) = read_draining(core, host).await {
        problems.push(finding);
        return Outcome { desired, problems, ..Outcome::default() };
    }
    let plan = core.decide_servers(&desired, &touched, now).plan;
    problems.extend(change(core, host, &desired, &plan.prepare).await);
    if problems.is_empty() {
        problems.extend(change(core, host, &desired, &plan.retire).await);
    }
    if !problems.is_empty() {
        return Outcome { desired, problems, ..Outcome::default() };
    }
    let again = core.decide_servers(&desired, &touched, now);
    let as_planned = check(&again, core, applied);
    Outcome { desired, as_planned, refusals: core.refused(), ..before }
}

async fn everything<H: Host, L: Ledger>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    ledger: &L,
    mut desired: Desired,
    switch: impl FnOnce(&Desired),
    now: Instant,
) -> Outcome {
    applied.look_at_all = false;
    let mut problems = Vec::new();
    if core.wants_marks(&desired) {
        match host.marks().await {
            Ok(marks) => core.know_marks(&marks),
            Err(finding) => return Outcome { desired, problems: vec![finding], ..Outcome::default() },
        }
        desired = core.desired(now).map_or(desired, |(anew, _)| anew);
    }
    if core.own(&desired) {
        applied.unlisted = true;
        core.doubt();
    }
    problems.extend(save(core, applied, ledger));
    if let Err(finding) = read(core, applied, host, &desired).await {
        problems.push(finding);
        return Outcome { desired, problems, ..Outcome::default() };
    }
    let decision = match decide(core, host, &desired, now).await {
        Ok(decision) => decision,
        Err(failed) => {
            problems.extend(failed);
            return Outcome { desired, problems, ..Outcome::default() };
        }
    };
    let failed = apply(core, applied, host, &desired, &decision, switch).await;
    let done = failed.is_empty();
    problems.extend(failed);
    problems.extend(remove_strays(host, &decision).await);
    if core.disown(&desired) {
        applied.unlisted = true;
        problems.extend(save(core, applied, ledger));
    }
    applied.findings = tune(core, host, ledger, &desired).await;
    if done {
        applied.routes = Arc::clone(&desired.policy_routes);
        note_repairs(applied, now);
    }
    let again = core.decide(&desired, now);
    let as_planned = done && check(&again, core, applied);
    let prepared = done && !core.serves_nothing(&desired) && desired.haproxy.is_covered_by(&core.proxied);
    Outcome { desired, prepared, as_planned, problems, refusals: core.refused() }
}

/// Decides, when it is known what the kernel will have: what it refused last time is tried again first, and virtual servers are
/// changed as such. A scheduler that it lacks, or an address that can be no real server, would else have others removed and
/// added again for nothing.
async fn decide<H: Host>(
    core: &mut Core,
    host: &mut H,
    desired: &Desired,
    now: Instant,
) -> Result<Decision, Vec<Finding>> {
    let refused = std::mem::take(&mut core.refusals);
    let decision = core.decide(desired, now);
    let first = decision.plan.prepare.iter();
    let first = first.filter(|one| matches!(one, Command::SetService(..)) || refused.names(one));
    let first: Vec<Command> = first.cloned().collect();
    if first.is_empty() {
        return Ok(decision);
    }
    let failed = change(core, host, desired, &first).await;
    if failed.is_empty() { Ok(core.decide(desired, now)) } else { Err(failed) }
}

/// Whether a second plan is empty, as it must be (invariant 9).
fn check(again: &Decision, core: &Core, applied: &mut Applied) -> bool {
    let left = left_to_do(again, core);
    if left == 0 {
        applied.fault = None;
        return true;
    }
    applied.faults += 1;
    // It is tried again at every turn, and told when it is another.
    if applied.fault.as_ref() != Some(&again.plan) {
        warn!(left, plan = ?again.plan, "planning again after a pass is not empty");
        applied.fault = Some(again.plan.clone());
    }
    false
}

/// Reads what the core does not know: after start, after an audit forgot it, and the connections of what drains.
async fn read<H: Host>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    desired: &Desired,
) -> Result<(), Finding> {
    if core.table.is_some() {
        return read_draining(core, host).await;
    }
    applied.drift.ipvs += core.know(host.table(&core.owned).await?, desired);
    applied.ruleset_doubtful = true;
    Ok(())
}

/// Reads what the table `inet kvip` is, and what another hand has done to it.
async fn read_ruleset<H: Host>(applied: &mut Applied, host: &mut H) -> Result<(), Finding> {
    let now = host.ruleset().await?;
    applied.ruleset_doubtful = false;
    if applied.ruleset.is_some() && applied.ruleset != now {
        let by = applied.touched.by.clone();
        applied.drift.nftables = Some(TableDrift { gone: now.is_none(), by });
    }
    applied.ruleset = now;
    Ok(())
}

/// Says what other hands did and is put right now.
fn note_repairs(applied: &mut Applied, now: Instant) {
    let drift = std::mem::take(&mut applied.drift);
    for text in applied.repairs.note(&drift, now) {
        warn!("{text}");
    }
}

/// Reads the connections of real servers that drain.
async fn read_draining<H: Host>(core: &mut Core, host: &mut H) -> Result<(), Finding> {
    let keys = core.draining_keys();
    if let Some(table) = core.table.as_ref().filter(|_| !keys.is_empty()) {
        let read = host.servers(&keys, table).await?;
        core.know_servers(read);
    }
    Ok(())
}

/// Applies the stages; returns what failed. Real servers that ended go whatever becomes of rules and routes.
async fn apply<H: Host>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    desired: &Desired,
    decision: &Decision,
    switch: impl FnOnce(&Desired),
) -> Vec<Finding> {
    let plan = &decision.plan;
    let mut failed = change(core, host, desired, &plan.prepare).await;
    if !failed.is_empty() {
        return failed;
    }
    let (servers, services): (Vec<_>, Vec<_>) =
        plan.retire.iter().cloned().partition(|command| command.backend().is_some());
    failed.extend(change(core, host, desired, &servers).await);
    failed.extend(add_routes(core, applied, host, &plan.routes).await);
    if failed.is_empty() {
        failed.extend(write_ruleset(core, applied, host, plan.ruleset.as_ref()).await);
    }
    if failed.is_empty() {
        if !core.serves_nothing(desired) {
            switch(desired);
        }
        failed = change(core, host, desired, &services).await;
    }
    if failed.is_empty() {
        failed.extend(remove_routes(core, host, &plan.old_routes).await);
    }
    failed
}

/// Adds policy rules and routes; returns what failed. Those of IPv6 may be refused where a host has no IPv6: then mode dsr is
/// not served over it, and all else is.
async fn add_routes<H: Host>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    routes: &[PolicyRoute],
) -> Option<Finding> {
    core.unrouted = None;
    for route in routes {
        if core.cannot_have(route) {
            continue;
        }
        match host.add_policy_route(route).await {
            Err(finding) if route.family == Family::V6 => {
                core.unrouted = Some(finding);
                continue;
            }
            Err(finding) => return Some(finding),
            // What was read of the host is older than the route.
            Ok(false) => {}
            Ok(true) => {
                info!("add {route}");
                applied.drift.routing += usize::from(applied.routes.contains(route));
            }
        }
        core.facts.policy_routes.insert(*route);
    }
    None
}

async fn remove_routes<H: Host>(core: &mut Core, host: &mut H, routes: &[PolicyRoute]) -> Option<Finding> {
    for route in routes {
        if let Err(finding) = host.remove_policy_route(route).await {
            return Some(finding);
        }
        info!("remove {route}");
        core.facts.policy_routes.remove(route);
    }
    None
}

/// Writes the table `inet kvip` where it is another one. It is read here, where it is needed: an nft that cannot even do that must
/// not keep virtual servers from following their pods.
async fn write_ruleset<H: Host>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    ruleset: Option<&Arc<nft::Ruleset>>,
) -> Option<Finding> {
    let mut ruleset = Arc::clone(ruleset?);
    if applied.ruleset_doubtful
        && let Err(finding) = read_ruleset(applied, host).await
    {
        return Some(finding);
    }
    if !core.refusals.is_empty() {
        core.refusals.close(Arc::make_mut(&mut ruleset), core.table.as_ref());
    }
    if core.unrouted.is_some() {
        Arc::make_mut(&mut ruleset).close_steered(Family::V6);
    }
    if applied.ruleset.as_ref() == Some(&nft::fingerprint(&ruleset)) {
        core.written = ruleset;
        return None;
    }
    match host.set_ruleset(&ruleset).await {
        Ok(fingerprint) => {
            info!("nftables table inet kvip written, {} frontends", ruleset.frontends.len());
            applied.ruleset = Some(fingerprint);
            core.written = ruleset;
            None
        }
        Err(finding) => {
            applied.ruleset = None;
            Some(finding)
        }
    }
}

/// Changes IPVS and the memory of it alike. What the kernel refuses of single Services is noted in the core and is no
/// failure.
async fn change<H: Host>(
    core: &mut Core,
    host: &mut H,
    desired: &Desired,
    commands: &[Command],
) -> Vec<Finding> {
    let failures = host.change_table(commands).await;
    let failures: BTreeMap<usize, Failure> =
        failures.into_iter().map(|failure| (failure.index, failure)).collect();
    let mut findings = Vec::new();
    for (index, command) in commands.iter().enumerate() {
        match failures.get(&index) {
            None => {
                info!(virtual_server = %command.key(), "{command}");
                core.changed(command);
            }
            Some(failure) if failure.refused && !command.removes() => {
                core.refusals.note(command, &failure.finding, desired);
            }
            // Follows from a refusal before it.
            Some(_) if core.refusals.covers(command, core.table.as_ref()) => {}
            Some(failure) => findings.push(failure.finding.clone()),
        }
    }
    if !findings.is_empty() {
        core.forget();
    }
    findings.dedup();
    findings
}

async fn remove_strays<H: Host>(host: &mut H, decision: &Decision) -> Vec<Finding> {
    let mut failed = Vec::new();
    for address in &decision.strays {
        match host.remove_address(address).await {
            Ok(()) => {
                let (ip, link) = (address.ip, &address.link);
                warn!(vip = %ip, "removed {ip} from {link}: keepalived had left it behind");
            }
            Err(finding) => failed.push(finding),
        }
    }
    failed
}

/// How many changes a second plan would make, drains excepted.
fn left_to_do(again: &Decision, core: &Core) -> usize {
    let plan = &again.plan;
    let drains = |command: &&Command| matches!(command, Command::DelDest(..) | Command::SetDest(..));
    let waiting = if core.draining() { plan.retire.iter().filter(drains).count() } else { 0 };
    let awaited = plan.routes.iter().filter(|route| !core.cannot_have(route)).count();
    let routes = awaited + plan.old_routes.len();
    let left = plan.prepare.len() + plan.retire.len() + routes - waiting;
    debug!(left, waiting, "planned again");
    left
}
