//! `kvip drain` and `kvip undrain`: another node holds the VIPs, and this one none until told otherwise.
//!
//! Both work on files and netlink alone, with or without the daemon; a drain outlives a reboot.

use std::time::Duration;

use super::done::Done;
use super::{Exit, Global, daemon, waiting};
use crate::daemon::Ledger;
use crate::ipvs::Client;
use crate::keepalived::handover::{self, Outcome, WhenAlone};
use crate::keepalived::{Paths, hold, weight};
use crate::net;

/// Arguments of `kvip drain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait until the VIPs have left, at most so many seconds (four advert intervals are always given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_value = "30", default_missing_value = "30", value_parser = seconds)]
    pub wait: u64,
    /// Go down even when no other node takes the VIPs
    #[arg(long)]
    pub force: bool,
}

fn seconds(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "a number of seconds, as in --wait 60")
}

/// Hands over and stays out.
///
/// # Errors
/// When weights or the mark cannot be written, or the host's addresses cannot be read.
pub async fn drain(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let alone = if args.force { WhenAlone::GoDown } else { WhenAlone::KeepServing };
    let limit = Duration::from_secs(args.wait);
    eprintln!("handing over, waiting at most {} s for another node", args.wait);
    let paths = Paths::default();
    let handing = handover::drain(&paths, limit, alone, async || net::read().await);
    let outcome = waiting::tell(|| "waiting for another node".to_owned(), handing).await?;
    let mut done = Done::new("drain");
    done.say(outcome.to_string());
    if matches!(outcome, Outcome::Alone { serving: true, .. }) {
        done.fail(
            "not drained; `kvip status` on the other nodes says why they do not take over, --force goes down all the same",
        );
    } else {
        done.say("drained: this node holds no VIP until `kvip undrain`, also after a reboot");
    }
    done.print(global)
}

/// Ends a drain.
///
/// # Errors
/// When the mark or a weight cannot be written.
pub async fn undrain(global: &Global) -> anyhow::Result<Exit> {
    let mut done = Done::new("undrain");
    end_drain(&mut done).await?;
    done.print(global)
}

async fn end_drain(done: &mut Done) -> anyhow::Result<()> {
    let paths = Paths::default();
    if !hold::drained(&paths) {
        done.say("this node is not drained");
        return Ok(());
    }
    hold::clear_drained(&paths)?;
    if daemon::ask().await.is_ok() {
        done.say("undrained: this node may hold VIPs again");
        return Ok(());
    }
    if !programmed(&paths) {
        done.fail(
            "undrained; kvip does not run and nothing is programmed, so this node holds no VIP until it does\n  systemctl start kvip",
        );
        return Ok(());
    }
    for vrid in handover::vrids_here(&paths)? {
        weight::write(&paths, vrid, weight::FRESH_BACKUP)?;
    }
    done.say("undrained: this node may hold VIPs again, with what kvip programmed before it ended");
    Ok(())
}

/// Whether the kernel still has what kvip programmed: its end changes nothing, a reboot does.
fn programmed(paths: &Paths) -> bool {
    let owned = Ledger::new(&paths.state).load().unwrap_or_default();
    let table = Client::open().and_then(|mut client| client.table(&|key| owned.has(key)));
    table.is_ok_and(|table| !table.is_empty())
}
