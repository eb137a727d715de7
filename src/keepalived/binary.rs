//! The installed keepalived, asked as a child process: what it was built with, and whether it accepts a file.
//!
//! Owns nothing; never starts the daemon keepalived.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::Build;
use super::check::Refusal;
use crate::checker::{Unanswered, ask, refusal};

/// Where Debian and Red Hat install it; an admin's PATH need not lead there.
pub const PROGRAM: &str = "/usr/sbin/keepalived";

/// A check of 1,000 VIPs takes 0.03 s; the limit is for a host under load.
const LIMIT: Duration = Duration::from_secs(10);

/// What `keepalived -t` says of files that keepalived ends on (vrrp_daemon.c, vrrp.c and parser.c of 2.2.7 to 2.4.3), and of those
/// that its parser.h calls fatal. A reload that ends so leaves VIPs on their interfaces. All else is as bad an exit status, and
/// keepalived runs with it.
const DEADLY: [&str; 14] = [
    "Non-existent interface specified",
    "Unknown interface!",
    "cannot use VMAC if no interface",
    "the virtual router id must be set",
    "No VIP specified; at least one is required",
    "Unicast peers are not supported in strict mode",
    "Unicast instances must have unicast_src_ip or interface",
    "Non link-local address required",
    "duplicate VRID conflict",
    "both use VRID",
    "is missing a parameter",
    "requires either an interface",
    "specified for linkbeat interface",
    "specified for up/down delay",
];

/// Why keepalived could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// There is no such program.
    #[error("keepalived is not installed: apt install keepalived")]
    NotInstalled,
    /// It ran into the time limit.
    #[error("keepalived did not answer within {} s", LIMIT.as_secs())]
    TooLong,
    /// It could not be run.
    #[error("cannot run {PROGRAM}: {0}")]
    Run(io::Error),
    /// It refuses the file.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl BinaryError {
    /// Whether keepalived answered, and runs all the same with what it complains of.
    pub fn is_survived(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Keepalived(said)) if !is_deadly(said))
    }
}

/// What the installed keepalived was built with.
pub async fn build() -> Result<Build, BinaryError> {
    let output = ask(PROGRAM, &["--version".as_ref()], LIMIT).await?;
    Ok(read_version(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat())))
}

/// Whether keepalived accepts `file`: `keepalived -t`, of which any exit but 0 is a refusal with what it printed.
///
/// It looks at the interfaces of this process's network namespace, and says yes to a file that does not exist.
pub async fn keepalived_accepts(file: &Path) -> Result<(), BinaryError> {
    let output = ask(PROGRAM, &["-t".as_ref(), "-f".as_ref(), file.as_os_str()], LIMIT).await?;
    refusal(output, file, what_it_said).map_or(Ok(()), |reason| Err(Refusal::Keepalived(reason).into()))
}

impl From<Unanswered> for BinaryError {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::NotInstalled => Self::NotInstalled,
            Unanswered::TooLong => Self::TooLong,
            Unanswered::Run(error) => Self::Run(error),
        }
    }
}

/// `Config options:  LVS VRRP … DBUS …`.
fn read_version(text: &str) -> Build {
    let mut options = text.lines().filter_map(|line| line.strip_prefix("Config options:"));
    Build { dbus: options.any(|line| line.split_whitespace().any(|word| word == "DBUS")) }
}

/// Whether keepalived would end on files of which its check says this.
fn is_deadly(said: &str) -> bool {
    DEADLY.iter().any(|words| said.contains(words))
}

/// keepalived's lines as one, without the draft's name, which the reader never sees.
fn what_it_said(printed: &str, file: &Path) -> String {
    let name = format!("({}: ", file.display());
    let lines = printed.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.replace(&name, "(")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_bus_is_read_from_the_build_options() {
        let with = "Keepalived v2.2.7 (01/16,2022)\n\nConfig options:  NFTABLES LVS VRRP DBUS INIT=systemd\n";
        assert_eq!(read_version(with), Build { dbus: true });
        let without = "configure options: --enable-dbus\nConfig options:  NFTABLES LVS VRRP\n";
        assert_eq!(read_version(without), Build { dbus: false });
    }

    #[test]
    fn a_refusal_names_the_line_and_not_the_draft() {
        let said = what_it_said(
            "(/etc/keepalived/.x: Line 3) Unknown keyword 'a'\n\n",
            Path::new("/etc/keepalived/.x"),
        );
        assert_eq!(said, "(Line 3) Unknown keyword 'a'");
    }

    #[track_caller]
    fn check_survived(said: &str, survived: bool) {
        let error = BinaryError::from(Refusal::Keepalived(said.to_owned()));
        assert_eq!(error.is_survived(), survived, "{said}");
    }

    #[test]
    fn complaints_are_survived_and_errors_that_end_keepalived_are_not() {
        let no_interface = "(Line 2) WARNING - interface nope0 for vrrp_instance theirs doesn't exist; Non-existent interface \
                            specified in configuration";
        check_survived(no_interface, false);
        check_survived("(Line 7) Unknown keyword 'bogus'; (theirs) Unknown interface!", false);
        check_survived("theirs and kvip_50_v4 both use VRID 50 with IPv4 on interface eth0", false);
        let cut_short = "*** Configuration line starting `interface` is missing a parameter after keyword `interface` at word \
                         position 2";
        check_survived(cut_short, false);
        check_survived("(Line 7) Unknown keyword 'bogus'; There are 1 missing '}'s or extra '{'s", true);
        check_survived("(theirs) VRRP version 3 does not support authentication. Ignoring.", true);
        assert!(!BinaryError::TooLong.is_survived());
    }
}
