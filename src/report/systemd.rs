//! What systemd is told: readiness, reloads, status and life (sd_notify(3)).
//!
//! Telling is best effort: without a notification socket it is nothing, and a failure is logged, never fatal.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::process::Command;

/// How long a full socket may hold the caller up; systemd normally reads at once.
const SEND_LIMIT: Duration = Duration::from_millis(500);

/// Variables that are between systemd and this process alone.
const PRIVATE_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Speaks to the service manager.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    socket: Option<PathBuf>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
        Self::new(socket, sd_notify::watchdog_enabled())
    }

    /// With this socket, if any, and the watchdog's limit, if there is one.
    pub fn new(socket: Option<PathBuf>, watchdog: Option<Duration>) -> Self {
        Self { socket, watchdog: watchdog.filter(|limit| !limit.is_zero()) }
    }

    /// Starting, or reloading, is done.
    pub fn ready(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// Reloading begins; [`Notifier::ready`] must follow, also when the reload fails.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            // systemd takes the two only when they come in one message (sd_notify(3)).
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!("reading the monotonic clock: {error}"),
        }
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        // A line feed would begin another assignment.
        self.send(&[NotifyState::Status(&text.replace('\n', " "))]);
    }

    /// Stopping begins.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// A sign of life; send one each [`Notifier::watchdog_interval`] while `beats::late` names no loop.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// How often to give a sign of life: half of what systemd waits for; none when it does not wait.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    fn send(&self, states: &[NotifyState]) {
        let Some(path) = &self.socket else { return };
        let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        if let Err(error) = send_to(path.as_os_str(), message.as_bytes()) {
            tracing::warn!("telling systemd {message:?}: {error}");
        }
    }
}

/// One datagram to a socket's path; a leading `@` stands for the abstract namespace (sd_notify(3)).
fn send_to(path: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_LIMIT))?;
    socket.connect_addr(&address)?;
    socket.send(message).map(|_| ())
}

/// A command for a child process: it cannot speak to systemd in kvip's name, and dies when its handle is dropped.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in PRIVATE_VARIABLES {
        command.env_remove(variable);
    }
    command.kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// What systemd would read.
    struct Manager {
        socket: UnixDatagram,
    }

    impl Manager {
        fn new(socket: UnixDatagram) -> Self {
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            Self { socket }
        }

        fn read(&self) -> String {
            let mut buffer = [0; 1024];
            let length = self.socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }
    }

    #[test]
    fn each_message_is_one_datagram() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
        let notifier = Notifier::new(Some(path), None);
        notifier.ready();
        assert_eq!(manager.read(), "READY=1");
        notifier.status("holds 2 of 3 VIPs;\nin sync");
        assert_eq!(manager.read(), "STATUS=holds 2 of 3 VIPs; in sync");
        notifier.alive();
        assert_eq!(manager.read(), "WATCHDOG=1");
        notifier.stopping();
        assert_eq!(manager.read(), "STOPPING=1");

        notifier.reloading();
        let message = manager.read();
        let usec = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(usec.is_some_and(|digits| digits.parse::<u64>().is_ok_and(|usec| usec > 0)), "{message:?}");
    }

    #[test]
    fn abstract_sockets_are_reached() {
        let name = format!("kvip-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = Manager::new(UnixDatagram::bind_addr(&address).unwrap());
        Notifier::new(Some(format!("@{name}").into()), None).ready();
        assert_eq!(manager.read(), "READY=1");
    }

    #[test]
    fn nobody_listening_is_no_failure() {
        let folder = TempDir::new().unwrap();
        Notifier::default().ready();
        Notifier::new(Some(folder.path().join("gone")), None).ready();
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up_for_long() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let _unread = UnixDatagram::bind(&path).unwrap();
        let filled = (0..10_000).find(|_| send_to(path.as_os_str(), b"READY=1").is_err());
        assert!(filled.is_some(), "sending ends in an error when the queue is full");
    }

    #[test]
    fn the_watchdog_is_fed_at_half_time() {
        let fed = |limit| Notifier::new(None, limit).watchdog_interval();
        assert_eq!(fed(Some(Duration::from_secs(30))), Some(Duration::from_secs(15)));
        assert_eq!(fed(Some(Duration::ZERO)), None);
        assert_eq!(fed(None), None);
    }

    #[test]
    fn children_do_not_inherit_the_socket() {
        let command = command("true");
        let removed: Vec<_> =
            command.as_std().get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert_eq!(removed, ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"]);
        assert!(command.get_kill_on_drop());
    }
}
