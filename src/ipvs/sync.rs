//! The kernel's IPVS sync daemons, which tell other nodes of connections (ipvsadm(8), `--start-daemon`).
//!
//! Pure: what a daemon is, which to start and stop, and their messages NEW_DAEMON, DEL_DAEMON and GET_DAEMON. A network
//! namespace has at most one of each role.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::codec::VERSION;
use crate::netlink::wire::{ACK, Attributes, DUMP, DecodeError, Writer};

const CMD_NEW_DAEMON: u8 = 9;
const CMD_DEL_DAEMON: u8 = 10;
const CMD_GET_DAEMON: u8 = 11;

const ATTR_DAEMON: u16 = 3;

const DAEMON_STATE: u16 = 1;
const DAEMON_MCAST_IFN: u16 = 2;
const DAEMON_SYNC_ID: u16 = 3;

/// IP_VS_STATE_MASTER.
const STATE_MASTER: u32 = 1;
/// IP_VS_STATE_BACKUP.
const STATE_BACKUP: u32 = 2;

/// What a daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Tells of this node's connections.
    Master,
    /// Hears of another's.
    Backup,
}

/// A sync daemon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SyncDaemon {
    /// What it does.
    pub role: Role,
    /// The interface that its multicast goes over.
    pub interface: String,
    /// Daemons hear only those with the same.
    pub sync_id: u8,
}

/// One change of the daemons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncCommand {
    /// Starts one.
    Start(SyncDaemon),
    /// Stops the one of this role.
    Stop(SyncDaemon),
}

/// What turns the daemons that run into the one that is wanted, where kvip may stop only those in `ours`; or the daemon of
/// another hand that has the wanted one's place.
///
/// # Errors
/// The daemon that is in the way; nothing is changed then but what is kvip's.
pub fn plan(
    want: Option<&SyncDaemon>,
    have: &BTreeSet<SyncDaemon>,
    ours: &BTreeSet<SyncDaemon>,
) -> (Vec<SyncCommand>, Option<SyncDaemon>) {
    let stop = have.intersection(ours).filter(|daemon| Some(*daemon) != want).cloned();
    let mut commands: Vec<SyncCommand> = stop.map(SyncCommand::Stop).collect();
    let Some(want) = want.filter(|want| !have.contains(want)) else { return (commands, None) };
    let foreign = have.difference(ours).find(|daemon| daemon.role == want.role);
    if foreign.is_none() {
        commands.push(SyncCommand::Start(want.clone()));
    }
    (commands, foreign.cloned())
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Backup => "backup",
        })
    }
}

/// `master on eth0, sync ID 50`.
impl fmt::Display for SyncDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}, sync ID {}", self.role, self.interface, self.sync_id)
    }
}

impl fmt::Display for SyncCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(daemon) => write!(f, "start sync daemon {daemon}"),
            Self::Stop(daemon) => write!(f, "stop sync daemon {daemon}"),
        }
    }
}

/// Asks for the daemons that run.
pub(super) fn dump(family: u16, sequence: u32) -> Vec<u8> {
    Writer::generic(family, DUMP, sequence, CMD_GET_DAEMON, VERSION).finish()
}

/// `command` as a message that asks for an acknowledgement.
pub(super) fn command(family: u16, sequence: u32, command: &SyncCommand) -> Vec<u8> {
    let (number, daemon) = match command {
        SyncCommand::Start(daemon) => (CMD_NEW_DAEMON, daemon),
        SyncCommand::Stop(daemon) => (CMD_DEL_DAEMON, daemon),
    };
    let mut writer = Writer::generic(family, ACK, sequence, number, VERSION);
    writer.nest(ATTR_DAEMON, |writer| {
        let state = if daemon.role == Role::Master { STATE_MASTER } else { STATE_BACKUP };
        writer.put_u32(DAEMON_STATE, state);
        if number == CMD_NEW_DAEMON {
            writer.put_str(DAEMON_MCAST_IFN, &daemon.interface);
            writer.put_u32(DAEMON_SYNC_ID, daemon.sync_id.into());
        }
    });
    writer.finish()
}

/// The daemon in one message of a dump.
pub(super) fn read(payload: &[u8]) -> Result<SyncDaemon, DecodeError> {
    let daemon = Attributes::parse(payload)?.nested(ATTR_DAEMON, "sync daemon")?;
    let role = match daemon.u32(DAEMON_STATE, "state of a sync daemon")? {
        STATE_MASTER => Role::Master,
        STATE_BACKUP => Role::Backup,
        _ => return Err(DecodeError::Value("state of a sync daemon")),
    };
    let sync_id = daemon.u32(DAEMON_SYNC_ID, "sync ID")?;
    Ok(SyncDaemon {
        role,
        interface: daemon.str(DAEMON_MCAST_IFN, "interface of a sync daemon")?.to_owned(),
        sync_id: u8::try_from(sync_id).map_err(|_| DecodeError::Value("sync ID"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::golden::check;
    use super::*;

    fn daemon(role: Role, sync_id: u8) -> SyncDaemon {
        SyncDaemon { role, interface: "eth0".into(), sync_id }
    }

    #[test]
    fn messages() {
        let start = command(0x1c, 3, &SyncCommand::Start(daemon(Role::Backup, 50)));
        check(
            &start,
            "34 00 00 00  1c 00  05 00  03 00 00 00  00 00 00 00   09 01 00 00    # NEW_DAEMON
             20 00 03 80                                                          # CMD_ATTR_DAEMON, nested
             08 00 01 00  02 00 00 00                                             # STATE: backup
             09 00 02 00  65 74 68 30 00 00 00 00                                 # MCAST_IFN: eth0
             08 00 03 00  32 00 00 00                                             # SYNC_ID",
        );
        assert_eq!(read(&start[20..]), Ok(daemon(Role::Backup, 50)));
        check(
            &command(0x1c, 4, &SyncCommand::Stop(daemon(Role::Master, 50))),
            "20 00 00 00  1c 00  05 00  04 00 00 00  00 00 00 00   0a 01 00 00    # DEL_DAEMON
             0c 00 03 80
             08 00 01 00  01 00 00 00                                             # STATE: master",
        );
        check(&dump(0x1c, 5), "14 00 00 00  1c 00  01 03  05 00 00 00  00 00 00 00   0b 01 00 00");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let start = command(0x1c, 3, &SyncCommand::Start(daemon(Role::Backup, 50)));
        let (mut state, mut id) = (start[20..].to_vec(), start[20..].to_vec());
        state[8] = 3;
        assert_eq!(read(&state), Err(DecodeError::Value("state of a sync daemon")));
        id[29] = 1;
        assert_eq!(read(&id), Err(DecodeError::Value("sync ID")));
        for length in 0..start.len() - 20 {
            assert!(read(&start[20..20 + length]).is_err(), "cut to {length} bytes");
        }
    }

    /// The commands, and whether a foreign daemon is in the way.
    #[track_caller]
    fn plans(
        want: Option<&SyncDaemon>,
        have: &[SyncDaemon],
        ours: &[SyncDaemon],
        commands: &[&str],
        blocked: bool,
    ) {
        let set = |list: &[SyncDaemon]| list.iter().cloned().collect();
        let (planned, foreign) = plan(want, &set(have), &set(ours));
        let texts: Vec<String> = planned.iter().map(ToString::to_string).collect();
        assert_eq!(
            (texts.iter().map(String::as_str).collect::<Vec<_>>(), foreign.is_some()),
            (commands.to_vec(), blocked)
        );
    }

    #[test]
    fn a_change_of_role_stops_one_and_starts_the_other() {
        let (master, backup) = (daemon(Role::Master, 50), daemon(Role::Backup, 50));
        plans(Some(&backup), &[], &[], &["start sync daemon backup on eth0, sync ID 50"], false);
        plans(Some(&backup), std::slice::from_ref(&backup), std::slice::from_ref(&backup), &[], false);
        let both =
            ["stop sync daemon backup on eth0, sync ID 50", "start sync daemon master on eth0, sync ID 50"];
        plans(Some(&master), std::slice::from_ref(&backup), std::slice::from_ref(&backup), &both, false);
        plans(None, std::slice::from_ref(&backup), std::slice::from_ref(&backup), &both[..1], false);
    }

    #[test]
    fn the_daemons_of_others_are_left_alone() {
        let (ours, theirs) = (daemon(Role::Master, 50), daemon(Role::Master, 7));
        plans(Some(&ours), std::slice::from_ref(&theirs), std::slice::from_ref(&ours), &[], true);
        plans(None, std::slice::from_ref(&theirs), std::slice::from_ref(&ours), &[], false);
        plans(Some(&ours), std::slice::from_ref(&ours), &[], &[], false);
        let backup = daemon(Role::Backup, 7);
        plans(Some(&ours), &[backup], &[], &["start sync daemon master on eth0, sync ID 50"], false);
    }

    #[test]
    fn another_id_takes_a_new_daemon() {
        let (old, new) = (daemon(Role::Backup, 50), daemon(Role::Backup, 51));
        let both =
            ["stop sync daemon backup on eth0, sync ID 50", "start sync daemon backup on eth0, sync ID 51"];
        plans(Some(&new), std::slice::from_ref(&old), std::slice::from_ref(&old), &both, false);
    }
}
