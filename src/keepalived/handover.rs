//! The soft hand-over: this node asks to be relieved and goes on serving until another node holds the VIPs.
//!
//! Works on files and the host's addresses alone, so that `kvip drain` and keepalived's ExecStop need no daemon. Owns no
//! state: the marks are [`super::hold`]'s, the weights [`super::weight`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::parse::{advert_in, vips_in, vrids_in};
use super::{Paths, anchor, hold, weight};
use crate::files::{self, FileError};
use crate::model::{Family, Vrid};
use crate::net::HostFacts;

/// How often the host's addresses are asked for the anchors.
const POLL: Duration = Duration::from_millis(50);

/// The advertisement interval that is assumed when the file does not say one: VRRP's own default.
const DEFAULT_ADVERT: Duration = Duration::from_secs(1);

/// What to do when no other node takes the VIPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAlone {
    /// keepalived is being stopped, or the admin insists: go to [`weight::OUT`] all the same.
    GoDown,
    /// Put the weights back and go on serving.
    KeepServing,
}

/// How a hand-over ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This node held nothing, and can take nothing now.
    NotHolder,
    /// Another node took over.
    Left {
        /// How long that took.
        after: Duration,
    },
    /// No other node took over in time.
    Alone {
        /// How long this node waited.
        waited: Duration,
        /// The anchors that are still here.
        anchors: BTreeSet<IpAddr>,
        /// Whether this node goes on serving.
        serving: bool,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHolder => f.write_str("this node held no VIP"),
            Self::Left { after } => write!(f, "another node took over after {:.1} s", after.as_secs_f32()),
            Self::Alone { waited, serving, anchors } => {
                let end = if *serving { "this node goes on serving" } else { "this node let go of the VIPs" };
                let vrids: BTreeSet<u8> = anchors.iter().filter_map(|anchor| vrid_of(*anchor)).collect();
                let vrids: Vec<String> = vrids.iter().map(u8::to_string).collect();
                let seconds = waited.as_secs_f32();
                write!(f, "no other node took over VRID {} within {seconds:.1} s; {end}", vrids.join(", "))
            }
        }
    }
}

/// Why a hand-over could not be done.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// A weight or a mark could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The host's addresses could not be read, so that nobody knows whether the VIPs have left.
    #[error("cannot read this host's addresses: {0}")]
    Facts(String),
}

/// The VRIDs that concern this node: those of kvip's file and those that have a weight file.
pub fn vrids_here(paths: &Paths) -> Result<BTreeSet<Vrid>, FileError> {
    let mut vrids = vrids_in(&our_text(paths)?);
    let entries = std::fs::read_dir(&paths.run).into_iter().flatten().flatten();
    vrids.extend(entries.filter_map(|entry| {
        let name = entry.file_name();
        Vrid::new(name.to_str()?.strip_prefix("weight-")?.parse().ok()?)
    }));
    Ok(vrids)
}

/// The VIPs in kvip's file for keepalived.
pub fn vips_here(paths: &Paths) -> Result<BTreeSet<IpAddr>, FileError> {
    Ok(vips_in(&our_text(paths)?))
}

/// keepalived's ExecStartPre: nothing fails open, and the daemon may set the weights again. `wanted` are the groups of the
/// settings, whose instances may be in no file yet. keepalived starts even when this fails, so the mark goes first.
pub fn before_start(paths: &Paths, wanted: impl IntoIterator<Item = Vrid>) -> Result<(), FileError> {
    let cleared = hold::clear_stopping(paths);
    weight::prepare(paths, vrids_here(paths)?.into_iter().chain(wanted))?;
    cleared
}

/// keepalived's ExecStop: a soft hand-over that goes down in any case. Without instances of kvip's nothing of kvip's is being
/// stopped, and a mark might stay for good: systemd skips ExecStartPre too when it skips the start of a keepalived without a
/// file (ConditionFileNotEmpty= in Debian's unit).
pub async fn before_stop<F, E>(paths: &Paths, limit: Duration, read: F) -> Result<Outcome, HandOverError>
where
    F: AsyncFnMut() -> Result<HostFacts, E>,
    E: fmt::Display,
{
    if runs_instances(paths) {
        hold::set_stopping(paths)?;
    }
    hand_over(paths, &vrids_here(paths)?, limit, WhenAlone::GoDown, read).await
}

/// `kvip drain`: a soft hand-over that stays. When no other node takes over, nothing is changed unless `alone` insists.
pub async fn drain<F, E>(
    paths: &Paths,
    limit: Duration,
    alone: WhenAlone,
    read: F,
) -> Result<Outcome, HandOverError>
where
    F: AsyncFnMut() -> Result<HostFacts, E>,
    E: fmt::Display,
{
    let before = hold::drained(paths);
    hold::set_drained(paths)?;
    let outcome = hand_over(paths, &vrids_here(paths)?, limit, alone, read).await;
    let stays = match &outcome {
        Ok(Outcome::Alone { serving, .. }) => !serving,
        Ok(Outcome::NotHolder | Outcome::Left { .. }) => true,
        Err(_) => alone == WhenAlone::GoDown,
    };
    if !stays && !before {
        hold::clear_drained(paths)?;
    }
    outcome
}

/// Lowers the weight of `vrids`, waits until their anchors have left this host, then goes to [`weight::OUT`].
///
/// `read` tells the host's addresses. The wait ends after `limit`, but not before four advertisement intervals: a
/// take-over lasts three and the skew. While the wait lasts the weights are kept low, should a daemon that has not
/// noticed the mark raise them.
pub async fn hand_over<F, E>(
    paths: &Paths,
    vrids: &BTreeSet<Vrid>,
    limit: Duration,
    alone: WhenAlone,
    mut read: F,
) -> Result<Outcome, HandOverError>
where
    F: AsyncFnMut() -> Result<HostFacts, E>,
    E: fmt::Display,
{
    let before = weights(paths, vrids)?;
    let mut held = anchors_here(vrids, &mut read).await;
    let at_first = held.as_ref().cloned().unwrap_or_default();
    if matches!(&held, Ok(anchors) if anchors.is_empty()) {
        write_all(paths, vrids, weight::OUT)?;
        return Ok(Outcome::NotHolder);
    }
    let (start, patience) = (Instant::now(), patience(advert(paths)?, limit));
    while start.elapsed() < patience {
        write_all(paths, vrids, weight::LEAVING)?;
        tokio::time::sleep(POLL).await;
        held = anchors_here(vrids, &mut read).await;
        if matches!(&held, Ok(anchors) if anchors.is_empty()) {
            let after = start.elapsed();
            write_all(paths, vrids, weight::OUT)?;
            return Ok(Outcome::Left { after });
        }
    }
    match alone {
        WhenAlone::GoDown => write_all(paths, vrids, weight::OUT)?,
        WhenAlone::KeepServing => restore(paths, &before, &at_first, held.as_ref().ok())?,
    }
    let serving = alone == WhenAlone::KeepServing;
    held.map(|anchors| Outcome::Alone { waited: start.elapsed(), anchors, serving })
}

/// The VRID whose anchor this is.
fn vrid_of(address: IpAddr) -> Option<u8> {
    let is_anchor = |vrid: Vrid| anchor(vrid, Family::of(address)) == address;
    (1..=255).filter_map(Vrid::new).find(|vrid| is_anchor(*vrid)).map(Vrid::get)
}

fn patience(advert: Duration, limit: Duration) -> Duration {
    limit.max(advert * 4)
}

/// The anchors of `vrids` that are on this host.
async fn anchors_here<F, E>(vrids: &BTreeSet<Vrid>, read: &mut F) -> Result<BTreeSet<IpAddr>, HandOverError>
where
    F: AsyncFnMut() -> Result<HostFacts, E>,
    E: fmt::Display,
{
    let facts = read().await.map_err(|error| HandOverError::Facts(error.to_string()))?;
    let anchors = vrids.iter().flat_map(|vrid| [Family::V4, Family::V6].map(|family| anchor(*vrid, family)));
    Ok(anchors.filter(|anchor| facts.has(*anchor)).collect())
}

fn weights(paths: &Paths, vrids: &BTreeSet<Vrid>) -> Result<BTreeMap<Vrid, i16>, FileError> {
    let read = |vrid: &Vrid| Ok((*vrid, weight::read(paths, *vrid)?.unwrap_or(weight::OUT)));
    vrids.iter().map(read).collect()
}

/// Never raises a weight: a node that is out stays out.
fn write_all(paths: &Paths, vrids: &BTreeSet<Vrid>, lowered: i16) -> Result<(), FileError> {
    for (vrid, here) in weights(paths, vrids)? {
        weight::write(paths, vrid, here.min(lowered))?;
    }
    Ok(())
}

/// Puts the weights back. A group that another node has taken over meanwhile is a backup's here: with a holder's weight
/// this node would take it back.
fn restore(
    paths: &Paths,
    before: &BTreeMap<Vrid, i16>,
    at_first: &BTreeSet<IpAddr>,
    held: Option<&BTreeSet<IpAddr>>,
) -> Result<(), FileError> {
    for (vrid, weight) in before {
        let anchors = [Family::V4, Family::V6].map(|family| anchor(*vrid, family));
        let in_any = |set: &BTreeSet<IpAddr>| anchors.iter().any(|anchor| set.contains(anchor));
        let has_left = in_any(at_first) && held.is_some_and(|held| !in_any(held));
        weight::write(paths, *vrid, if has_left { weight::as_backup(*weight) } else { *weight })?;
    }
    Ok(())
}

/// The text of kvip's file, wherever it is; empty when there is none.
fn our_text(paths: &Paths) -> Result<String, FileError> {
    let here = [files::read(&paths.keepalived_conf)?, files::read(&paths.fragment())?];
    Ok(here.into_iter().flatten().find(|text| super::is_ours(text)).unwrap_or_default())
}

/// Whether kvip's file has instances; one that cannot be read counts as such, as low is the safe side.
fn runs_instances(paths: &Paths) -> bool {
    our_text(paths).map_or(true, |text| !vrids_in(&text).is_empty())
}

fn advert(paths: &Paths) -> Result<Duration, FileError> {
    Ok(advert_in(&our_text(paths)?).unwrap_or(DEFAULT_ADVERT))
}

#[cfg(test)]
mod tests;
