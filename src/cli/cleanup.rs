//! `kvip cleanup`: removes all that kvip owns on this host, and nothing else.
//!
//! Only while kvip.service is not active: the daemon would put everything back.

use anyhow::Context as _;

use super::done::Done;
use super::{Exit, Global, daemon, waiting};
use crate::daemon::Ledger;
use crate::haproxy;
use crate::ipvs::{Client, Command, sync};
use crate::keepalived::{self, Paths};
use crate::net;
use crate::nft;
use crate::owned::Owned;
use crate::report::systemd::command;

/// Runs `kvip cleanup`. Every step is tried, whatever became of the one before.
///
/// # Errors
/// Never; what fails is said and makes the exit code 1.
pub async fn run(global: &Global) -> anyhow::Result<Exit> {
    let mut done = Done::new("cleanup");
    let paths = Paths::default();
    if daemon::ask().await.is_ok() || service_is_active().await {
        done.fail("kvip is running and would put everything back\n  systemctl disable --now kvip");
        return done.print(global);
    }
    let owned = Ledger::new(&paths.state).load().unwrap_or_default();
    let mut report = |what: &str, result: anyhow::Result<usize>| match result {
        Ok(0) => done.say(format!("{what}: nothing of kvip's")),
        Ok(count) => done.say(format!("{what}: removed {count}")),
        Err(error) => done.fail(format!("{what}: {error:#}")),
    };
    report(
        "keepalived configuration",
        waiting::tell("handing over", keepalived::cleanup(&paths, &mut keepalived::unit()))
            .await
            .map(usize::from),
    );
    let haproxy = haproxy::Paths::of(&paths.run);
    let stopped = haproxy::cleanup(&haproxy, &mut haproxy::Haproxy::new(&haproxy)).await;
    report("HAProxy", stopped.map(usize::from));
    report("addresses", addresses(&owned).await);
    report("IPVS virtual servers", virtual_servers(&owned));
    report("IPVS sync daemons", sync_daemons(&owned));
    report("nftables table inet kvip", table());
    report("policy rules and routes", policy_routes().await);
    report("state files", files(&paths));
    done.print(global)
}

/// Whether systemd runs kvip.service, or is about to. Without systemd nobody does.
async fn service_is_active() -> bool {
    let output = command("systemctl").args(["is-active", "kvip.service"]).output().await;
    let state =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    matches!(state.as_str(), "active" | "activating" | "reloading")
}

/// Removes the VIPs that are on this host. keepalived has let go of them already, unless it was killed.
async fn addresses(owned: &Owned) -> anyhow::Result<usize> {
    let facts = net::read().await.context("read this host's addresses")?;
    let ours =
        facts.addresses.iter().filter(|address| address.marked_as_vip() && owned.vips.contains(&address.ip));
    let mut count = 0;
    for address in ours {
        net::remove_address(address).await.with_context(|| format!("remove {}", address.ip))?;
        count += 1;
    }
    Ok(count)
}

fn virtual_servers(owned: &Owned) -> anyhow::Result<usize> {
    if owned.is_empty() {
        return Ok(0);
    }
    let mut client = Client::open()?;
    let table = client.table(&|key| owned.has(key))?;
    let commands: Vec<Command> = table.keys().map(|key| Command::DelService(*key)).collect();
    match client.apply(&commands).into_iter().next() {
        Some((index, error)) => Err(error).with_context(|| commands[index].to_string()),
        None => Ok(commands.len()),
    }
}

fn sync_daemons(owned: &Owned) -> anyhow::Result<usize> {
    if owned.sync_daemons.is_empty() {
        return Ok(0);
    }
    let mut client = Client::open()?;
    let (commands, _) = sync::plan(None, &client.sync_daemons()?, &owned.sync_daemons);
    for command in &commands {
        client.change_sync(command)?;
    }
    Ok(commands.len())
}

async fn policy_routes() -> anyhow::Result<usize> {
    let facts = net::read().await.context("read this host's rules and routes")?;
    for route in &facts.policy_routes {
        net::remove_policy_route(route).await?;
    }
    Ok(facts.policy_routes.len())
}

fn table() -> anyhow::Result<usize> {
    let there = nft::client::installed()?.is_some();
    if there {
        nft::client::delete()?;
    }
    Ok(usize::from(there))
}

/// Removes what kvip remembers: without VIPs there is nothing left to remember.
fn files(paths: &Paths) -> anyhow::Result<usize> {
    let mut count = 0;
    for name in ["owned.json", "snapshot.json", "cluster-settings.toml", "accept", "drained"] {
        match std::fs::remove_file(paths.state.join(name)) {
            Ok(()) => count += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("remove {}", paths.state.join(name).display()));
            }
        }
    }
    Ok(count)
}
