//! One pass: from what is known to what is done. The only place that changes IPVS, nftables and stray addresses.

use std::time::Instant;

use tracing::{debug, info, warn};

use super::core::{Core, Decision};
use crate::derive::Desired;
use crate::host::Host;
use crate::ipvs::Command;
use crate::model::Finding;
use crate::nft;

/// What carries over from pass to pass beside the [`Core`].
#[derive(Debug, Default)]
pub struct Applied {
    /// The fingerprint of the table in the kernel, as it was last read or written.
    ruleset: Option<String>,
    /// Passes after which a second plan was not empty.
    pub faults: u64,
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
}

/// Where the list of owned VIPs is kept.
pub trait Ledger {
    /// Writes the list.
    ///
    /// # Errors
    /// Says what could not be written.
    fn save(&self, owned: &std::collections::BTreeSet<std::net::IpAddr>) -> Result<(), Finding>;
}

/// Brings the host to what should be, stage by stage: prepare, then `switch` (hands keepalived its configuration),
/// then retire. A stage begins only when the one before succeeded.
pub async fn pass<H: Host, L: Ledger>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    ledger: &L,
    switch: impl FnOnce(&Desired),
    now: Instant,
) -> Option<Outcome> {
    let desired = core.desired(now)?;
    let mut problems = Vec::new();
    if core.own(&desired) {
        problems.extend(ledger.save(&core.owned).err());
        core.table = None;
    }
    if let Err(finding) = read(core, applied, host).await {
        problems.push(finding);
        return Some(Outcome { desired, problems, ..Outcome::default() });
    }
    let decision = core.decide(desired, now);
    let failed = apply(core, applied, host, &decision, switch).await;
    let prepared = failed.is_empty();
    problems.extend(failed);
    problems.extend(remove_strays(host, &decision).await);
    if core.disown(&decision.desired) {
        problems.extend(ledger.save(&core.owned).err());
    }
    let again = core.decide(decision.desired, now);
    let left = left_to_do(&again, core);
    if prepared && left > 0 {
        applied.faults += 1;
        warn!(left, plan = ?again.plan, "planning again after a pass is not empty");
    }
    Some(Outcome { as_planned: prepared && left == 0, desired: again.desired, prepared, problems })
}

/// Reads what the core does not know: after start, after an audit forgot it, and the connections of what drains.
async fn read<H: Host>(core: &mut Core, applied: &mut Applied, host: &mut H) -> Result<(), Finding> {
    let known = core.table.is_some();
    if known && !core.draining() {
        return Ok(());
    }
    core.table = Some(host.table(&core.owned).await?);
    if known {
        return Ok(());
    }
    applied.ruleset = host.ruleset().await?;
    Ok(())
}

/// Applies the stages; returns what failed.
async fn apply<H: Host>(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut H,
    decision: &Decision,
    switch: impl FnOnce(&Desired),
) -> Vec<Finding> {
    let plan = &decision.plan;
    let mut failed = change(core, host, &plan.prepare).await;
    if failed.is_empty() && applied.ruleset.as_ref() != Some(&nft::fingerprint(&plan.ruleset)) {
        match host.set_ruleset(&plan.ruleset).await {
            Ok(fingerprint) => {
                info!("nftables table inet kvip written, {} frontends", plan.ruleset.frontends.len());
                applied.ruleset = Some(fingerprint);
            }
            Err(finding) => failed.push(finding),
        }
    }
    if failed.is_empty() {
        switch(&decision.desired);
        failed = change(core, host, &plan.retire).await;
    }
    failed
}

/// Changes IPVS and the memory of it alike.
async fn change<H: Host>(core: &mut Core, host: &mut H, commands: &[Command]) -> Vec<Finding> {
    let failed = host.change_table(commands).await;
    let table = core.table.get_or_insert_default();
    for (index, command) in commands.iter().enumerate() {
        if failed.iter().any(|(bad, _)| *bad == index) {
            continue;
        }
        info!(frontend = %command.frontend(), "{command}");
        command.apply(table);
    }
    if !failed.is_empty() {
        core.table = None;
    }
    let mut findings: Vec<Finding> = failed.into_iter().map(|(_, finding)| finding).collect();
    findings.dedup();
    findings
}

async fn remove_strays<H: Host>(host: &mut H, decision: &Decision) -> Vec<Finding> {
    let mut failed = Vec::new();
    for address in &decision.strays {
        warn!(vip = %address.ip, "removing {} from {}: keepalived left it behind", address.ip, address.link);
        failed.extend(host.remove_address(address).await.err());
    }
    failed
}

/// How many changes a second plan would make, drains excepted.
fn left_to_do(again: &Decision, core: &Core) -> usize {
    let plan = &again.plan;
    let drains = |command: &&Command| matches!(command, Command::DelDest(..) | Command::SetDest(..));
    let waiting = if core.draining() { plan.retire.iter().filter(drains).count() } else { 0 };
    let left = plan.prepare.len() + plan.retire.len() - waiting;
    debug!(left, waiting, "planned again");
    left
}
