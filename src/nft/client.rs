//! kvip's table in the kernel, by the `nft` program: what is there, put it there, take it away.
//!
//! Owns `table inet kvip` and never names another. The table carries a seal: a set without elements whose comment holds
//! the fingerprint of the ruleset and a digest of how nft listed the table right after. So a later kvip recognises its
//! table without a rewrite, and a change by another hand shows. (A comment of a set works on kernels that know none of
//! a table.)
//!
//! Blocking: tens of milliseconds a call, 10 s at most.

use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Ruleset;
use super::render::{DELETE, TABLE, digest, fingerprint, render};

/// nft needs 0.1 s for 10,000 frontends; a kernel that is busy with another transaction makes it try again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answer of [`installed`] when the table is not as kvip left it; equal to no fingerprint.
pub const ALTERED: &str = "altered";

/// Why nft did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no nft in PATH.
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
    #[error("cannot run nft to {0} table {TABLE}")]
    Run(&'static str, #[source] io::Error),
}

/// The fingerprint of the table in the kernel: `None` without a table, [`ALTERED`] when it is not as kvip left it.
pub fn installed() -> Result<Option<String>, Error> {
    let listing = match list() {
        Err(Error::Refused(_, text)) if text.contains("No such file or directory") => return Ok(None),
        listing => listing?,
    };
    let (rest, seal) = unseal(&listing);
    let intact = seal.filter(|seal| seal.listing == digest(&rest));
    Ok(Some(intact.map_or_else(|| ALTERED.to_owned(), |seal| seal.fingerprint)))
}

/// Puts the table in place of the one that is there; its fingerprint.
pub fn apply(ruleset: &Ruleset) -> Result<String, Error> {
    let fingerprint = fingerprint(ruleset);
    run("write", &["-f", "-"], &render(ruleset))?;
    let seal = Seal { fingerprint: fingerprint.clone(), listing: digest(&list()?) };
    run("seal", &["-f", "-"], &seal.render())?;
    Ok(fingerprint)
}

/// Removes the table; one that is not there was removed.
pub fn delete() -> Result<(), Error> {
    run("delete", &["-f", "-"], DELETE).map(drop)
}

fn list() -> Result<String, Error> {
    run("list", &["list", "table", "inet", "kvip"], "")
}

/// What the table says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Seal {
    fingerprint: String,
    listing: String,
}

const SEAL_OPENS: &str = "\tset seal {\n";
const SEAL_CLOSES: &str = "\t}\n\n";

impl Seal {
    fn render(&self) -> String {
        let Self { fingerprint, listing } = self;
        format!(
            "add set {TABLE} seal {{ type mark; comment \"ruleset {fingerprint} listing {listing}\"; }}\n"
        )
    }

    fn parse(block: &str) -> Option<Self> {
        let (_, comment) = block.split_once("comment \"ruleset ")?;
        let (fingerprint, rest) = comment.split_once(" listing ")?;
        let (listing, _) = rest.split_once('"')?;
        Some(Self { fingerprint: fingerprint.to_owned(), listing: listing.to_owned() })
    }
}

/// `listing` without the seal, and the seal.
fn unseal(listing: &str) -> (String, Option<Seal>) {
    let parts = listing.split_once(SEAL_OPENS).and_then(|(before, seal_and_after)| {
        let (block, after) = seal_and_after.split_once(SEAL_CLOSES)?;
        Some((format!("{before}{after}"), Seal::parse(block)))
    });
    parts.unwrap_or_else(|| (listing.to_owned(), None))
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
    Command::new("nft")
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

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "table inet kvip {\n\tset vips4 {\n\t\ttype ipv4_addr\n\t}\n\n\tset seal {\n\t\ttype mark\n\t\tcomment \"ruleset 12ab listing 34cd\"\n\t}\n\n\tchain input {\n\t}\n}\n";

    #[test]
    fn the_seal_comes_off_and_leaves_the_listing_before_it() {
        let (rest, seal) = unseal(LISTING);
        assert_eq!(
            rest,
            "table inet kvip {\n\tset vips4 {\n\t\ttype ipv4_addr\n\t}\n\n\tchain input {\n\t}\n}\n"
        );
        assert_eq!(seal, Some(Seal { fingerprint: "12ab".into(), listing: "34cd".into() }));
    }

    #[test]
    fn a_table_of_another_hand_has_no_seal() {
        for listing in
            ["", "table inet kvip {\n}\n", "table inet kvip {\n\tset seal {\n\t\ttype mark\n\t}\n\n}\n"]
        {
            assert_eq!(unseal(listing).1, None, "{listing}");
        }
    }
}
