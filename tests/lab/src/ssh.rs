//! The way into a node: one ssh configuration that anybody in the lab's namespaces can use.
//!
//! Owns the file `ssh_config` in the state folder and the options in it. Connections are kept open and
//! shared (a handshake is slow under emulation); never asks for anything on a terminal.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use crate::command::{self, command};
use crate::image::Image;
use crate::layout::{Layout, NODES};

/// Sockets of the running lab, on the supervisor's own tmpfs: they vanish with it.
pub const RUN_DIR: &str = "/run/kvip-lab";

/// Writes the configuration.
pub fn write_config(layout: &Layout, image: &Image) -> anyhow::Result<()> {
    let mut text = String::new();
    for node in &NODES {
        writeln!(text, "Host {}\n    HostName {}", node.name, node.v4)?;
    }
    writeln!(
        text,
        "Host *
    User root
    IdentityFile \"{}\"
    IdentitiesOnly yes
    BatchMode yes
    ConnectTimeout 4
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ControlMaster auto
    ControlPath {RUN_DIR}/ssh-%n
    ControlPersist 600
    ServerAliveInterval 5
    ServerAliveCountMax 4",
        image.ssh_key().display()
    )?;
    fs::write(layout.ssh_config(), text)?;
    Ok(())
}

/// The command line, valid in the lab's namespaces, that runs `script` in the shell of a node.
pub fn argv(layout: &Layout, node: &str, script: &str) -> Vec<String> {
    ["ssh", "-F", &layout.ssh_config().to_string_lossy(), node, "--", script].map(str::to_owned).to_vec()
}

/// Forgets the shared connection to a node that is no more; one to a new node would wait for the old.
pub fn forget(layout: &Layout, node: &str) {
    let mut exit = command(&["ssh", "-F"]);
    exit.arg(layout.ssh_config()).args(["-O", "exit", node]);
    // There may be none, which is what is wanted.
    let _ = command::run(exit, b"", Duration::from_secs(5));
}
