//! `kvip cleanup`: removes all that kvip owns on this host, and nothing else.
//!
//! Only while kvip.service is not active: the daemon would put everything back.

use anyhow::Context as _;

use super::done::Done;
use super::{Exit, Global, daemon, waiting};
use crate::daemon::ledger::{self, Ledger};
use crate::haproxy;
use crate::ipvs::{Client, Command, sync};
use crate::keepalived::{self, Paths};
use crate::net;
use crate::nft;
use crate::owned::Owned;

/// Runs `kvip cleanup`. Every step is tried, whatever became of the one before.
///
/// # Errors
/// Never; what fails is said and makes the exit code 1.
pub async fn run(global: &Global) -> anyhow::Result<Exit> {
    let mut done = Done::new("cleanup");
    let paths = Paths::default();
    if daemon::ask().await.is_ok() || daemon::Unit::now().await.is_up() {
        done.fail("kvip is running and would put everything back\n  systemctl disable --now kvip");
        return done.print(global);
    }
    let Remembered { owned, all } = remembered(&paths, &mut done);
    let nothing = if all { "nothing of kvip's" } else { "nothing that is known to be kvip's" };
    let mut report = |what: &str, result: anyhow::Result<usize>| match result {
        Ok(0) => done.say(format!("{what}: {nothing}")),
        Ok(count) => done.say(format!("{what}: removed {count}")),
        Err(error) => done.fail(format!("{what}: {error:#}")),
    };
    report(
        "keepalived configuration",
        waiting::tell(|| "handing over".to_owned(), keepalived::cleanup(&paths, &mut keepalived::unit()))
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
    report("state files", files(&paths, all));
    done.print(global)
}

/// What kvip made on this host.
struct Remembered {
    owned: Owned,
    /// Whether that is all: the list could be read.
    all: bool,
}

/// Reads the list of what kvip made; where it cannot be read that is a failure, and the VIPs in keepalived's file stand in.
fn remembered(paths: &Paths, done: &mut Done) -> Remembered {
    let error = match Ledger::new(&paths.state).load() {
        Ok(owned) => return Remembered { owned, all: true },
        Err(error) => error,
    };
    done.fail(format!(
        "{error:#}: virtual servers, addresses and sync daemons of kvip's may be left, and the file is kept\n  look with \
         ipvsadm -Ln, ipvsadm -L --daemon and ip address, remove what is kvip's and the file, and run kvip cleanup again"
    ));
    // What else is wrong with that file is said when it is removed.
    Remembered { owned: Ledger::stand_in(paths), all: false }
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

/// Removes what kvip remembers: without VIPs there is nothing left to remember. A list that could not be read stays, for
/// who looks for what it names.
fn files(paths: &Paths, with_list: bool) -> anyhow::Result<usize> {
    let mut count = 0;
    let lists = if with_list { &[ledger::NAME, ledger::DAMAGED][..] } else { &[] };
    for name in ["snapshot.json", "cluster-settings.toml", "accept", "drained"].iter().chain(lists) {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::daemon::ledger::tests::damaged;

    #[test]
    fn a_damaged_list_is_a_failure_and_stays() {
        let root = tempfile::tempdir().unwrap();
        let (paths, vip) = damaged(root.path());
        let list = paths.state.join("owned.json");
        fs::write(paths.state.join("snapshot.json"), "").unwrap();

        let mut done = Done::new("cleanup");
        let Remembered { owned, all } = remembered(&paths, &mut done);
        assert_eq!((owned.vips, all), ([vip].into(), false), "those of keepalived's file");
        let said = serde_json::to_value(&done).unwrap();
        assert_eq!(said["complete"], false);
        let problem = said["problems"][0].as_str().unwrap();
        assert!(problem.contains(list.to_str().unwrap()) && problem.contains("ipvsadm -Ln"), "{problem}");
        assert_eq!(files(&paths, all).unwrap(), 1);
        assert!(list.exists());
        assert_eq!(files(&paths, true).unwrap(), 1);
        assert!(!list.exists());
    }
}
