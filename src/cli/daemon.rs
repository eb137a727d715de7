//! What commands ask of the running daemon, over its socket, and of systemd, which runs it.

use super::failure::Stuck;
use super::waiting;
use crate::daemon::SOCKET;
use crate::keepalived::Paths;
use crate::report::status::{self, Status};
use crate::report::systemd::command;

/// The daemon's status; an error when it does not answer.
pub(super) async fn ask() -> anyhow::Result<Status> {
    let socket = Paths::default().run.join(SOCKET);
    waiting::tell(|| "asking the daemon".to_owned(), status::ask(&socket)).await
}

/// That the daemon does not answer, and where to look.
pub(super) fn no_answer(error: &anyhow::Error) -> Stuck {
    Stuck {
        text: format!("the daemon does not answer: {error:#}"),
        mend: Some("systemctl status kvip; journalctl -u kvip -n 50".to_owned()),
    }
}

/// What systemd says of kvip.service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// `ActiveState` of systemd(1), such as `active`; empty without systemd.
    pub(super) active: String,
    /// It is to be started with the host.
    pub(super) enabled: bool,
}

impl Unit {
    /// As systemd says now. Without systemd nobody runs it.
    pub(super) async fn now() -> Self {
        let properties = ["show", "kvip.service", "--property=ActiveState", "--property=UnitFileState"];
        let output = command("systemctl").args(properties).output().await;
        output.map(|output| Self::read(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default()
    }

    fn read(text: &str) -> Self {
        let value = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).next().unwrap_or_default()
        };
        let enabled = ["enabled", "enabled-runtime"].contains(&value("UnitFileState"));
        Self { active: value("ActiveState").to_owned(), enabled }
    }

    /// Whether systemd runs it, or is about to.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.active.as_str(), "active" | "activating" | "reloading")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_as_systemctl_shows_it() {
        let unit = |text: &str| Unit::read(text);
        let looping = unit("ActiveState=activating\nUnitFileState=enabled\n");
        assert_eq!(looping, Unit { active: "activating".into(), enabled: true });
        assert!(looping.is_up());
        let off = unit("UnitFileState=disabled\nActiveState=inactive\n");
        assert_eq!(off, Unit { active: "inactive".into(), enabled: false });
        assert!(!off.is_up());
        assert_eq!(unit(""), Unit::default());
    }
}
