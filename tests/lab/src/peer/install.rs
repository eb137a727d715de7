//! Puts `lab-peer` on guests: a stripped copy, sent through ssh to whoever has none.
//!
//! Owns the copy in the state folder. The program runs there as it is, so this host's glibc may not be newer than the
//! guests' by what Rust's library uses of it.

use std::fs;
use std::path::PathBuf;
use std::process;

use anyhow::{Context as _, ensure};

use crate::command::command;
use crate::layout::Layout;
use crate::namespace::beside;

/// Where guests have it.
pub const PROGRAM: &str = "/usr/sbin/lab-peer";
/// A script that succeeds where it is already.
pub const CHECK: &str = "test -x /usr/sbin/lab-peer";
/// A script that takes it from standard input. Two at a time do not get in each other's way.
pub const INSTALL: &str = "cat >/usr/sbin/lab-peer.$$ && chmod 755 /usr/sbin/lab-peer.$$ && mv /usr/sbin/lab-peer.$$ /usr/sbin/lab-peer";

/// The program for guests.
pub fn bytes(layout: &Layout) -> anyhow::Result<Vec<u8>> {
    let copy = layout.state.join("lab-peer");
    if !copy.exists() {
        make(&copy)?;
    }
    fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))
}

/// Debugging information is nine tenths of the program.
fn make(copy: &PathBuf) -> anyhow::Result<()> {
    let unfinished = copy.with_extension(process::id().to_string());
    let stripped = command(&["strip", "-o"]).arg(&unfinished).arg(beside("lab-peer")?).status();
    ensure!(stripped.context("cannot run strip: apt install binutils")?.success(), "strip refuses lab-peer");
    fs::rename(&unfinished, copy).with_context(|| format!("cannot make {}", copy.display()))
}
