//! What keepalived's own unit calls, so that its start and stop are soft and closed: `prepare-weights`, `hand-over`.

use std::time::Duration;

use super::Exit;
use crate::config::{self, Sources};
use crate::daemon::settings;
use crate::derive;
use crate::keepalived::Paths;
use crate::keepalived::handover::{self, Outcome};
use crate::net;

/// keepalived.service's stop waits no longer than this for another node, unless four adverts take longer.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Before keepalived starts: every weight file is there, so that nothing fails open.
///
/// # Errors
/// When a weight file cannot be written.
pub fn prepare_weights() -> anyhow::Result<Exit> {
    // Settings that are wrong or not there yet must not stand in keepalived's way: its file names what it tracks.
    let paths = Paths::default();
    let host = config::read_host(&Sources::system()).ok();
    let settings = host.map(|host| settings::known(&host, &paths.state).settings);
    let groups = settings.iter().flat_map(derive::groups_of);
    handover::before_start(&paths, groups.map(|group| group.vrrp.vrid))?;
    Ok(Exit::Fine)
}

/// Before keepalived stops: another node takes the VIPs over while this one still answers.
///
/// # Errors
/// When weights cannot be written, or the host's addresses cannot be read.
pub async fn hand_over() -> anyhow::Result<Exit> {
    let outcome = handover::before_stop(&Paths::default(), STOP_LIMIT, async || net::read().await).await?;
    println!("{outcome}");
    Ok(if matches!(outcome, Outcome::Alone { .. }) { Exit::Mend } else { Exit::Fine })
}
