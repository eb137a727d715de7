//! What commands ask of the running daemon, over its socket.

use super::failure::Stuck;
use super::waiting;
use crate::daemon::SOCKET;
use crate::keepalived::Paths;
use crate::report::status::{self, Status};

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
