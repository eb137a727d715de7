//! The lab's namespaces from outside: started, entered, found again and ended.
//!
//! Owns `lab.pid` in the state folder. A lab is one `unshare` process and, below it, process 1 of the lab;
//! the death of either ends everything. Never makes anything outside of the state folder.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, bail};

use crate::command::{command, wait_for};
use crate::control;
use crate::layout::Layout;
use crate::progress::patiently;
use crate::serve::{ServeOptions, UP};
use crate::vm::Machines;

/// Building an image, a control plane and booting, from nothing, on a slow line.
const RAISE_LIMIT: Duration = Duration::from_secs(1800);

/// A running lab's two processes. Each is named with its start time, as ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    supervisor: u32,
    supervisor_start: u64,
    init: u32,
}

impl Running {
    /// The lab that runs in this layout's state folder, if any.
    pub fn find(layout: &Layout) -> Option<Self> {
        let text = fs::read_to_string(layout.pid_file()).ok()?;
        let mut numbers = text.split_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (supervisor, start, init) = (next()?, next()?, next()?);
        let found = Self {
            supervisor: u32::try_from(supervisor).ok()?,
            supervisor_start: start,
            init: u32::try_from(init).ok()?,
        };
        found.alive().then_some(found)
    }

    /// As [`Self::find`], and says what to do when there is none.
    pub fn require(layout: &Layout) -> anyhow::Result<Self> {
        Self::find(layout).context("no lab is up here: lab up")
    }

    /// Process id of the supervisor, in the namespace of whoever started it.
    pub fn supervisor(&self) -> u32 {
        self.supervisor
    }

    /// Starts a lab and waits until it is up; its log is copied to stderr meanwhile. With `watch_stdin` it
    /// ends when the returned child's stdin is closed, so with this process.
    pub fn start(layout: &Layout, options: ServeOptions) -> anyhow::Result<(Self, Child)> {
        let starting = lock(layout)?;
        if let Some(other) = Self::find(layout) {
            bail!("a lab is up here already (process {}): lab down", other.supervisor);
        }
        let kube = (!options.no_control_plane).then(|| control::build(layout)).transpose()?;
        // Image and snapshot are held until the supervisor, which is up then, holds them itself.
        let machines = Machines::prepare(layout)?;
        clear(layout)?;
        machines.save()?;
        kube.map_or(Ok(()), |kube| control::install(layout, &kube))?;
        let log = layout.log_dir().join("lab.log");
        let mut child = spawn(layout, options, &log)?;
        let started = Self::record(layout, &mut child).and_then(|lab| {
            drop(starting);
            follow(&log, &mut child)?;
            Ok(lab)
        });
        match started {
            Ok(lab) => Ok((lab, child)),
            Err(error) => {
                // It may be gone already.
                let _ = child.kill();
                child.wait()?;
                Err(error)
            }
        }
    }

    /// A command that runs `argv` in the lab's namespaces.
    pub fn enter<S: AsRef<str>>(&self, argv: &[S]) -> Command {
        let mut words = vec!["nsenter".to_owned(), "--target".to_owned(), self.init.to_string()];
        if !rustix::process::geteuid().is_root() {
            words.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        words.extend(["--net", "--mount", "--pid", "--"].map(str::to_owned));
        words.extend(argv.iter().map(|word| word.as_ref().to_owned()));
        command(&words)
    }

    /// Ends the lab and waits until nothing of it is left.
    pub fn end(&self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.init)?).context("process 0")?;
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("cannot end the lab"),
        }
        wait_for("the lab to end", Duration::from_secs(20), || (!self.alive()).then_some(()))
    }

    fn record(layout: &Layout, child: &mut Child) -> anyhow::Result<Self> {
        let supervisor = child.id();
        let children = format!("/proc/{supervisor}/task/{supervisor}/children");
        let init = wait_for("the lab's namespaces", Duration::from_secs(10), || {
            fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
        })?;
        let start = start_time(supervisor).context("the lab ended at once")?;
        fs::write(layout.pid_file(), format!("{supervisor} {start} {init}\n"))?;
        Ok(Self { supervisor, supervisor_start: start, init })
    }

    fn alive(&self) -> bool {
        start_time(self.supervisor) == Some(self.supervisor_start)
    }
}

/// The `lab` program: `$KVIP_LAB_BIN`, else this program or one beside it (tests lie one folder deeper).
pub fn lab_binary() -> anyhow::Result<PathBuf> {
    match env::var_os("KVIP_LAB_BIN") {
        Some(path) => Ok(path.into()),
        None => beside("lab").context("or set KVIP_LAB_BIN"),
    }
}

/// This program or one beside it, by its name (tests lie one folder deeper).
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let this = env::current_exe()?;
    let found = this.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no `{name}` program here: cargo build -p kvip-lab"))
}

fn spawn(layout: &Layout, options: ServeOptions, log: &PathBuf) -> anyhow::Result<Child> {
    let mut unshare = command(&["unshare"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(lab_binary()?)
        .arg("init")
        .args(options.watch_stdin.then_some("--watch-stdin"))
        .args(options.no_control_plane.then_some("--no-control-plane"));
    layout.export(&mut unshare);
    let file = File::create(log)?;
    unshare.stdin(if options.watch_stdin { Stdio::piped() } else { Stdio::null() });
    unshare.stdout(file.try_clone()?).stderr(file);
    // A terminal's interrupt is for whoever started the lab, who then ends it in order.
    unshare.process_group(0);
    unshare.spawn().context("cannot start unshare")
}

/// Makes whoever starts a lab in this state folder wait for another who does, until that lab can be found.
fn lock(layout: &Layout) -> anyhow::Result<File> {
    let mut path = layout.state.clone().into_os_string();
    path.push(".lock");
    let path = PathBuf::from(path);
    let folder = path.parent().context("the state folder has one above it")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    patiently("another lab that is starting here", || file.lock())?;
    Ok(file)
}

/// Removes what a dead lab left, and makes the folders of a new one.
fn clear(layout: &Layout) -> anyhow::Result<()> {
    if layout.state.exists() {
        fs::remove_dir_all(&layout.state)
            .with_context(|| format!("cannot remove {}", layout.state.display()))?;
    }
    fs::create_dir_all(layout.log_dir())
        .with_context(|| format!("cannot make {}", layout.log_dir().display()))
}

/// Copies the log to stderr until it says that the lab is up.
fn follow(log: &PathBuf, child: &mut Child) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut shown = 0;
    loop {
        let ended = child.try_wait()?;
        let text = fs::read_to_string(log)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[shown..whole].lines() {
            eprintln!("{line}");
            if line == UP {
                return Ok(());
            }
        }
        shown = whole;
        if let Some(status) = ended {
            bail!("the lab did not come up ({status}); its log is {}", log.display());
        }
        if start.elapsed() > RAISE_LIMIT {
            bail!("the lab is not up after {RAISE_LIMIT:?}; its log is {}", log.display());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// When that process started, in clock ticks since boot (proc(5), field 22 of stat). Nothing for a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok())?
}
