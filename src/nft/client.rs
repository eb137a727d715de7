//! kvip's table in the kernel, by the `nft` program: what is there, put it there, take it away.
//!
//! Owns `table inet kvip` and never names another. The table carries a seal (see `seal`), so that a later kvip recognises
//! its table without a rewrite, and a change by another hand shows. (A comment of a set works on kernels that know none
//! of a table.)
//!
//! Blocking: tens of milliseconds a call, 10 s at most.

use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Ruleset;
use super::change::Change;
use super::firewall::Firewall;
use super::render::{DELETE, TABLE, fingerprint, render};
use super::seal::{Listing, Seal};

/// Where Debian and Red Hat install it, and what leads to it where /usr/sbin is a link to /usr/bin; an admin's PATH need
/// not lead there.
pub const PROGRAM: &str = "/usr/sbin/nft";

/// nft needs 0.1 s for 10,000 frontends; a kernel that is busy with another transaction makes it try again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answer of [`installed`] when the table is not as kvip left it; equal to no fingerprint.
pub const ALTERED: &str = "altered";

/// Why nft did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("nft is not installed: apt install nftables")]
    Missing,
    /// EPERM: without CAP_NET_ADMIN.
    #[error("nft is not permitted to {0} table {TABLE}: it needs root or CAP_NET_ADMIN")]
    NotPermitted(&'static str),
    /// nft refused; in its words.
    #[error("nft refused to {0} table {TABLE}: {1}")]
    Refused(&'static str, String),
    /// nft did not end within 10 s and was killed.
    #[error("nft did not {0} table {TABLE} within {patience} s", patience = PATIENCE.as_secs())]
    Slow(&'static str),
    /// nft could not be run.
    #[error("cannot run nft to {0} table {TABLE}: {1}")]
    Run(&'static str, io::Error),
}

/// The fingerprint of the table in the kernel: `None` without a table, [`ALTERED`] when it is not as kvip left it.
pub fn installed() -> Result<Option<String>, Error> {
    let listing = match list() {
        Err(Error::Refused(_, text)) if text.contains("No such file or directory") => return Ok(None),
        listing => listing?,
    };
    let Listing { digest, seal } = Listing::parse(&listing);
    let intact = seal.filter(|seal| seal.listing == digest);
    Ok(Some(intact.map_or_else(|| ALTERED.to_owned(), |seal| seal.fingerprint)))
}

/// Puts the table in place of the one that is there; its fingerprint.
pub fn apply(ruleset: &Ruleset) -> Result<String, Error> {
    let fingerprint = fingerprint(ruleset);
    run("write", &["-f", "-"], &render(ruleset))?;
    let seal = Seal { fingerprint: fingerprint.clone(), listing: Listing::parse(&list()?).digest };
    run("seal", &["-f", "-"], &seal.add())?;
    Ok(fingerprint)
}

/// Makes the table, if it is that of `from`, the table of `to`, by what differs; else as [`apply`]. Its fingerprint.
///
/// What another hand has changed in the table stays, and [`installed`] goes on to say so.
pub fn change(from: &Ruleset, to: &Ruleset) -> Result<String, Error> {
    match super::change::change(from, to) {
        Some(change) => match have_seal_of(from)? {
            Some(seal) => write_change(&seal, &change, fingerprint(to)).or_else(|_| apply(to)),
            None => apply(to),
        },
        None => apply(to),
    }
}

/// The table's seal, if that is the one of `ruleset`.
fn have_seal_of(ruleset: &Ruleset) -> Result<Option<Seal>, Error> {
    let listing = match run("list", &["list", "set", "inet", "kvip", "seal"], "") {
        Err(Error::Refused(..)) => return Ok(None),
        listing => listing?,
    };
    let seal = Listing::parse(&listing).seal;
    Ok(seal.filter(|seal| seal.fingerprint == fingerprint(ruleset)))
}

/// One transaction, so that the table is sealed at every moment.
fn write_change(seal: &Seal, change: &Change, fingerprint: String) -> Result<String, Error> {
    let listing = seal.listing.wrapping_add(change.digest);
    let seal = Seal { fingerprint: fingerprint.clone(), listing };
    run("change", &["-f", "-"], &(change.text.clone() + &seal.replace()))?;
    Ok(fingerprint)
}

/// Removes the table; one that is not there was removed.
pub fn delete() -> Result<(), Error> {
    run("delete", &["-f", "-"], DELETE).map(drop)
}

/// What other programs' tables let in.
pub fn firewall() -> Result<Firewall, Error> {
    let act = "list the chains beside";
    let mut firewall = Firewall::default();
    for table in Firewall::tables(&run(act, &["list", "chains"], "")?) {
        let words: Vec<&str> = ["--stateless", "list", "table"].into_iter().chain(table.split(' ')).collect();
        firewall.add(&run(act, &words, "")?);
    }
    Ok(firewall)
}

fn list() -> Result<String, Error> {
    run("list", &["list", "table", "inet", "kvip"], "")
}

/// Runs nft with `input`; what it printed.
fn run(act: &'static str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let output = finish(act, start(act, arguments)?, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.contains("Operation not permitted") {
        return Err(Error::NotPermitted(act));
    }
    Err(Error::Refused(act, text))
}

fn start(act: &'static str, arguments: &[&str]) -> Result<Child, Error> {
    Command::new(PROGRAM)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Missing,
            _ => Error::Run(act, error),
        })
}

/// Feeds and awaits nft in a thread of its own, so that the wait can end before nft does.
fn finish(act: &'static str, child: Child, input: &str) -> Result<Output, Error> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child has a positive id");
    let (sender, receiver) = mpsc::channel();
    let input = input.to_owned();
    thread::spawn(move || sender.send(feed(child, &input)));
    receiver
        .recv_timeout(PATIENCE)
        .map_err(|_| {
            // Not yet reaped by the thread, or gone already: either is fine.
            let _ = kill_process(pid, Signal::KILL);
            Error::Slow(act)
        })?
        .map_err(|error| Error::Run(act, error))
}

fn feed(mut child: Child, input: &str) -> io::Result<Output> {
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    match stdin.write_all(input.as_bytes()) {
        // nft has given up before it read all, and says why on stderr.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => drop(stdin),
    }
    child.wait_with_output()
}
