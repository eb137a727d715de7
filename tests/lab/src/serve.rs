//! The supervisor: process 1 of the lab's namespaces, and the process that raises the lab in them.
//!
//! Owns the lab's life: when process 1 ends, by whatever cause, the kernel ends everything in its namespace.
//! Never reaches out of the namespaces it was started in.

use std::fs;
use std::io::Read;
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{WaitOptions, wait};

use crate::command::{command, must};
use crate::layout::Layout;
use crate::progress::{say, step};
use crate::vm::Machines;
use crate::{control, network, ssh};

/// The line in the log that says that the lab is up.
pub const UP: &str = "lab: the lab is up";

/// What the supervisor is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct ServeOptions {
    /// End when standard input does: whoever started this is gone then.
    #[arg(long)]
    pub watch_stdin: bool,
    /// Raise no control plane.
    #[arg(long)]
    pub no_control_plane: bool,
}

/// Process 1: starts `lab serve` with the same options, buries whatever dies, and ends when that ends.
pub fn init(options: ServeOptions) -> anyhow::Result<()> {
    if process::id() != 1 {
        bail!("this is for process 1 of the lab's own namespace: use `lab up`");
    }
    let mut serve = Command::new(std::env::current_exe()?);
    serve.arg("serve");
    serve.args(options.watch_stdin.then_some("--watch-stdin"));
    serve.args(options.no_control_plane.then_some("--no-control-plane"));
    let child = serve.spawn().context("cannot start lab serve")?;
    loop {
        if let Some((pid, status)) = wait(WaitOptions::empty())?
            && u32::try_from(pid.as_raw_nonzero().get()) == Ok(child.id())
        {
            let failed = status.exit_status() != Some(0);
            process::exit(i32::from(failed));
        }
    }
}

/// Raises the lab and keeps it until told otherwise.
pub fn serve(layout: &Layout, options: ServeOptions) -> anyhow::Result<()> {
    if options.watch_stdin {
        thread::spawn(end_with_stdin);
    }
    // /run of our own: sockets and named namespaces vanish with us and are nobody else's.
    must(command(&["mount", "-t", "tmpfs", "tmpfs", "/run"]), b"", Duration::from_secs(10))?;
    fs::create_dir_all(ssh::RUN_DIR)?;
    network::raise().context("cannot make the network")?;
    let machines = Machines::load(layout)?.held()?;
    ssh::write_config(layout, machines.image())?;
    step("restoring three nodes", || machines.restore_all())?;
    if !options.no_control_plane {
        control::start_all(layout)?;
    }
    say(UP.trim_start_matches("lab: "));
    loop {
        thread::park();
    }
}

fn end_with_stdin() {
    let mut buffer = [0; 64];
    while std::io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
    process::exit(0);
}
