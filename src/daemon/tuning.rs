//! What is the whole host's: the kernel's settings, IPVS's timeouts and its sync daemon.
//!
//! Nothing of it stands in the way of a VIP: what is wrong is a finding, and looked at again with every full pass, at the
//! latest by the next audit.

use std::collections::BTreeSet;

use tracing::info;

use super::core::Core;
use super::pass::Ledger;
use crate::derive::Desired;
use crate::host::Host;
use crate::ipvs::sync::{self, Role, SyncCommand, SyncDaemon};
use crate::model::Finding;
use crate::sysctl;

/// Brings the host to what the settings say of it; what is wrong.
pub async fn tune<H: Host, L: Ledger>(
    core: &mut Core,
    host: &mut H,
    ledger: &L,
    desired: &Desired,
) -> Vec<Finding> {
    let wanted = sysctl::wanted(desired);
    let announcing = sysctl::announcing(desired, &core.facts);
    let (clients, dsr) = (sysctl::links_of_clients(desired), sysctl::links_of_dsr(desired));
    let detours =
        if clients.is_empty() { BTreeSet::new() } else { core.reach.detours(&core.facts, &clients) };
    let marked = if dsr.is_empty() { BTreeSet::new() } else { &dsr | &detours };
    let names = wanted.iter().map(|one| one.name.to_owned()).chain(sysctl::arp_ignores(&announcing));
    let names = names.chain(sysctl::rp_filters(&detours)).chain(sysctl::valid_marks(&marked));
    let have = host.sysctls(&names.collect::<Vec<_>>()).await;
    let mut findings = sysctl::findings(&wanted, &have);
    findings.extend(sysctl::strict(&detours, &have, &core.facts));
    findings.extend(sysctl::looked_up_by_mark(&marked, &have));
    findings.extend(sysctl::answers_everywhere(&announcing, &have));
    findings.extend(set_timeouts(core, host).await.err());
    findings.extend(follow_holder(core, host, ledger, desired).await.err());
    findings
}

/// Sets the timeouts that the settings name, and reads them back.
async fn set_timeouts<H: Host>(core: &Core, host: &mut H) -> Result<(), Finding> {
    let want = core.settings.balancing.timeouts;
    if want.is_empty() {
        return Ok(());
    }
    let change = want.against(host.timeouts().await?);
    if change.is_empty() {
        return Ok(());
    }
    host.set_timeouts(change).await?;
    info!("IPVS timeouts set: {change}");
    let left = want.against(host.timeouts().await?);
    if left.is_empty() {
        return Ok(());
    }
    Err(Finding::new("IPVS", format!("timeouts were set and the kernel has others: {left} is wanted"))
        .mend("find what sets them too: ipvsadm -L --timeout shows them"))
}

/// The sync daemon that this node should run: it tells where this node holds the VIPs, and hears where it does not.
fn wanted_daemon(core: &Core, desired: &Desired) -> Option<SyncDaemon> {
    let (sync, vrid) = (&core.settings.balancing.sync, core.settings.vrrp.vrid);
    let instance = desired.keepalived.instances.iter().find(|instance| instance.vrid == vrid)?;
    let role = if core.holds_anchor(vrid) { Role::Master } else { Role::Backup };
    let interface = sync.interface.clone().unwrap_or_else(|| instance.interface.clone());
    sync.on.then(|| SyncDaemon { role, interface, sync_id: sync.id.unwrap_or(vrid.get()) })
}

/// Makes the one sync daemon run that should; stops only what kvip started.
async fn follow_holder<H: Host, L: Ledger>(
    core: &mut Core,
    host: &mut H,
    ledger: &L,
    desired: &Desired,
) -> Result<(), Finding> {
    let want = wanted_daemon(core, desired);
    if want.is_none() && core.owned.sync_daemons.is_empty() {
        return Ok(());
    }
    let have = host.sync_daemons().await?;
    let (commands, foreign) = sync::plan(want.as_ref(), &have, &core.owned.sync_daemons);
    for command in commands {
        // On the list before it runs, so that none runs that is not on it.
        if let SyncCommand::Start(daemon) = &command {
            core.owned.sync_daemons.insert(daemon.clone());
            ledger.save(&core.owned)?;
        }
        host.change_sync(&command).await?;
        info!("{command}");
    }
    let before = core.owned.sync_daemons.len();
    core.owned.sync_daemons.retain(|daemon| Some(daemon) == want.as_ref());
    if core.owned.sync_daemons.len() != before {
        ledger.save(&core.owned)?;
    }
    foreign.map_or(Ok(()), |foreign| Err(in_the_way(&foreign)))
}

/// Of each role a host has one daemon at most.
fn in_the_way(foreign: &SyncDaemon) -> Finding {
    let text = format!(
        "balancing.sync: another program's sync daemon runs already ({foreign}), and kvip leaves it alone"
    );
    Finding::new("IPVS", text)
        .mend(format!("ipvsadm --stop-daemon {}, or set balancing.sync = false", foreign.role))
}
