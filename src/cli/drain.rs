//! `kvip drain` and `kvip undrain`: another node holds the VIPs, and this one none until told otherwise.
//!
//! Both work on files and netlink alone, with or without the daemon; a drain outlives a reboot.

use std::time::Duration;

use super::Exit;
use crate::daemon::{Ledger, SOCKET};
use crate::ipvs::Client;
use crate::keepalived::handover::{self, Outcome, WhenAlone};
use crate::keepalived::{Paths, hold, weight};
use crate::net;
use crate::report::status;

/// Arguments of `kvip drain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait until the VIPs have left, at most so many seconds (four advert intervals are always given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_value = "30", default_missing_value = "30")]
    pub wait: u64,
    /// Go down even when no other node takes the VIPs
    #[arg(long)]
    pub force: bool,
}

/// Hands over and stays out.
///
/// # Errors
/// When weights or the mark cannot be written, or the host's addresses cannot be read.
pub async fn drain(args: &Args) -> anyhow::Result<Exit> {
    let alone = if args.force { WhenAlone::GoDown } else { WhenAlone::KeepServing };
    let limit = Duration::from_secs(args.wait);
    eprintln!("handing over, waiting at most {} s for another node", args.wait);
    let outcome = handover::drain(&Paths::default(), limit, alone, async || net::read().await).await?;
    println!("{outcome}");
    if matches!(outcome, Outcome::Alone { serving: true, .. }) {
        eprintln!(
            "not drained; `kvip status` on the other nodes says why they do not take over, --force goes down all the same"
        );
        return Ok(Exit::Mend);
    }
    println!("drained: this node holds no VIP until `kvip undrain`, also after a reboot");
    Ok(Exit::Fine)
}

/// Ends a drain.
///
/// # Errors
/// When the mark or a weight cannot be written.
pub async fn undrain() -> anyhow::Result<Exit> {
    let paths = Paths::default();
    if !hold::drained(&paths) {
        println!("this node is not drained");
        return Ok(Exit::Fine);
    }
    hold::clear_drained(&paths)?;
    if status::ask(&paths.run.join(SOCKET)).await.is_ok() {
        println!("undrained: this node may hold VIPs again");
        return Ok(Exit::Fine);
    }
    if !programmed(&paths) {
        println!(
            "undrained; kvip does not run and nothing is programmed, so this node holds no VIP until it does\n  systemctl start kvip"
        );
        return Ok(Exit::Mend);
    }
    for vrid in handover::vrids_here(&paths)? {
        weight::write(&paths, vrid, weight::FRESH_BACKUP)?;
    }
    println!("undrained: this node may hold VIPs again, with what kvip programmed before it ended");
    Ok(Exit::Fine)
}

/// Whether the kernel still has what kvip programmed: its end changes nothing, a reboot does.
fn programmed(paths: &Paths) -> bool {
    let owned = Ledger::new(&paths.state).load().unwrap_or_default();
    let table = Client::open().and_then(|mut client| client.table(&|frontend| owned.contains(&frontend.vip)));
    table.is_ok_and(|table| !table.is_empty())
}
