//! The end of kvip's part in keepalived: VIPs handed over, instances gone, kvip's files removed.
//!
//! Touches no file without kvip's marker; never stops keepalived, which may run somebody else's instances too.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep};

use super::handover::{WhenAlone, hand_over, vrids_here};
use super::place::Disk;
use super::{Config, Paths, Service, hold, vips_in};
use crate::files::{self, FileError};
use crate::model::Vrid;
use crate::net;

/// How long another node may take to take over.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(10);
/// How long keepalived may take to let go of the VIPs.
const LET_GO_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// Removes what is kvip's; `false` when there was nothing.
///
/// # Errors
/// When files cannot be read or written, or keepalived cannot be reloaded.
pub async fn cleanup<S: Service>(paths: &Paths, service: &mut S) -> anyhow::Result<bool> {
    let disk = Disk::read(paths)?;
    let place = disk.place(paths);
    let vrids = vrids_here(paths)?;
    let Some((place, text)) = place.and_then(|place| Some((place, disk.ours(place)?))) else {
        // kvip writes these before keepalived reads a file of kvip's.
        remove_weights(paths, &vrids)?;
        hold::clear_stopping(paths)?;
        return Ok(!vrids.is_empty());
    };
    hand_over(paths, &vrids, HAND_OVER_LIMIT, WhenAlone::GoDown, async || net::read().await).await?;
    if service.state().await?.runs() {
        let build = service.build().await?;
        files::replace(&place.path(paths), place.render(&Config::default(), paths, build), files::PUBLIC)?;
        service.reload().await?;
        wait_for_vips_to_leave(text).await?;
    }
    files::remove(&place.path(paths))?;
    files::remove(&paths.loaded())?;
    remove_weights(paths, &vrids)?;
    hold::clear_stopping(paths)?;
    Ok(true)
}

fn remove_weights(paths: &Paths, vrids: &BTreeSet<Vrid>) -> Result<(), FileError> {
    vrids.iter().try_for_each(|vrid| files::remove(&paths.weight(*vrid)))
}

/// Waits until none of the VIPs in `text` is on this host; what stays is removed as a stray by the caller.
async fn wait_for_vips_to_leave(text: &str) -> anyhow::Result<()> {
    let (vips, start) = (vips_in(text), Instant::now());
    while start.elapsed() < LET_GO_LIMIT {
        let facts = net::read().await.context("read this host's addresses")?;
        if !vips.iter().any(|vip| facts.has(*vip)) {
            break;
        }
        sleep(POLL).await;
    }
    Ok(())
}
