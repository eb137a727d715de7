//! A node's machine, from inside the lab's namespaces: restored, booted, frozen, cut off and killed.
//!
//! Owns the QEMU process of each node, its disk and its sockets. The disk is a thin layer of the node's own
//! over the image's, so that a reboot keeps the node's files and a restore forgets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::command::{self, command, wait_for};
use crate::image::{Image, Snapshot};
use crate::layout::{self, Layout, NODES, NodeSpec};
use crate::machine::{self, Accelerator};
use crate::network;
use crate::qmp::Qmp;
use crate::ssh;

/// A restore takes seconds; a cold boot of three at once took 21 s on two idle cores under emulation.
const UP_LIMIT: Duration = Duration::from_secs(240);
/// How long a machine may take to stop its services.
const DOWN_LIMIT: Duration = Duration::from_secs(120);

/// What may be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Ends the machine at once, as a power failure does.
    Kill,
    /// Stops its processor.
    Freeze,
    /// Lets its processor go on.
    Thaw,
    /// Drops every packet from and to it; it is not told.
    Cut,
    /// Lets packets through again.
    Heal,
    /// Ends it if need be and starts a fresh one from the snapshot.
    Restore,
    /// Boots a killed one from its own disk.
    Boot,
    /// As boot, with a kernel that is told to do without IPv6.
    #[value(name = "bootv4")]
    BootV4,
    /// Shuts it down in order and boots it again.
    Reboot,
}

/// What the machines of one lab share; kept in the state folder, as the cache may move on meanwhile.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machines {
    #[serde(skip, default = "Layout::from_environment")]
    layout: Layout,
    image: Image,
    snapshot: Snapshot,
    accelerator: Accelerator,
}

impl Machines {
    /// Finds image and snapshot, making them if need be. Needs the host's network.
    pub fn prepare(layout: &Layout) -> anyhow::Result<Self> {
        let image = Image::ensure(layout)?;
        let accelerator = Accelerator::find(layout, &image);
        let snapshot = image.snapshot(layout, accelerator)?;
        Ok(Self { layout: layout.clone(), image, snapshot, accelerator })
    }

    /// Remembers them for the lab that is about to start.
    pub fn save(&self) -> anyhow::Result<()> {
        Ok(fs::write(file(&self.layout), serde_json::to_vec(self)?)?)
    }

    /// Those of the running lab.
    pub fn load(layout: &Layout) -> anyhow::Result<Self> {
        let path = file(layout);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { layout: layout.clone(), ..serde_json::from_slice(&text)? })
    }

    /// The same, whose image and snapshot are kept in the cache for as long as this value lives.
    pub fn held(self) -> anyhow::Result<Self> {
        Ok(Self { image: self.image.held()?, snapshot: self.snapshot.held()?, ..self })
    }

    /// The image that they start from.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Restores all nodes, side by side.
    pub fn restore_all(&self) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let work: Vec<_> =
                NODES.iter().map(|node| scope.spawn(move || self.apply(node, Action::Restore))).collect();
            work.into_iter().try_for_each(|thread| thread.join().expect("restoring does not panic"))
        })
    }

    /// Does `action` to `node`; what starts it returns when its system runs.
    pub fn apply(&self, node: &NodeSpec, action: Action) -> anyhow::Result<()> {
        let vm = Vm { machines: self, node, dir: self.layout.node_dir(node.name) };
        match action {
            Action::Kill => vm.kill(),
            Action::Freeze => vm.qmp()?.execute("stop", &json!({})).map(drop),
            Action::Thaw => vm.qmp()?.execute("cont", &json!({})).map(drop),
            Action::Cut => network::set_link(node, false),
            Action::Heal => network::set_link(node, true),
            Action::Restore => vm.restore(),
            Action::Boot => vm.boot(""),
            Action::BootV4 => vm.boot("ipv6.disable=1"),
            Action::Reboot => vm.reboot(),
        }
        .with_context(|| format!("{}: cannot {action:?}", node.name).to_lowercase())
    }
}

fn file(layout: &Layout) -> PathBuf {
    layout.state.join("machines.json")
}

struct Vm<'a> {
    machines: &'a Machines,
    node: &'a NodeSpec,
    dir: PathBuf,
}

impl Vm<'_> {
    fn restore(&self) -> anyhow::Result<()> {
        self.kill()?;
        network::set_link(self.node, true)?;
        fs::create_dir_all(&self.dir)?;
        fs::copy(&self.machines.snapshot.disk, self.disk())?;
        let state = format!("exec:cat '{}'", self.machines.snapshot.state.display());
        // The snapshot's command line, to the letter: the machine was booted with it.
        self.start("lab.snapshot", &["-incoming", &state])?;
        let mut qmp = self.qmp()?;
        wait_for("the snapshot to load", UP_LIMIT, || (qmp.status().ok()? == "paused").then_some(()))?;
        qmp.execute("cont", &json!({}))?;
        let card = json!({ "driver": "virtio-net-pci", "id": "card", "netdev": "net", "mac": self.node.mac });
        qmp.execute("device_add", &card)?;
        drop(qmp);
        self.wait_until_up(true)
    }

    fn boot(&self, kernel_argument: &str) -> anyhow::Result<()> {
        if self.running() {
            bail!("it runs already");
        }
        if !self.disk().exists() {
            bail!("it has no disk yet: restore it");
        }
        let card = format!("virtio-net-pci,id=card,netdev=net,mac={}", self.node.mac);
        self.start(kernel_argument, &["-device", &card])?;
        self.wait_until_up(false)
    }

    fn reboot(&self) -> anyhow::Result<()> {
        self.ssh("systemctl reboot", Duration::from_secs(20))?;
        wait_for("the machine to shut down", DOWN_LIMIT, || (!self.running()).then_some(()))?;
        ssh::forget(&self.machines.layout, self.node.name);
        self.boot("")
    }

    fn kill(&self) -> anyhow::Result<()> {
        if self.running() {
            // Quitting instead of a signal keeps the disk's own format whole; the guest notices no difference.
            self.qmp()?.execute("quit", &json!({}))?;
            wait_for("QEMU to quit", Duration::from_secs(20), || (!self.running()).then_some(()))?;
        }
        ssh::forget(&self.machines.layout, self.node.name);
        Ok(())
    }

    fn start(&self, kernel_argument: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let machines = self.machines;
        let mut qemu = machine::qemu(&machines.image, machines.accelerator, &self.disk(), kernel_argument);
        qemu.args(["-name", self.node.name])
            .args([
                "-netdev",
                &format!("tap,id=net,ifname={},script=no,downscript=no", network::tap(self.node)),
            ])
            .args(["-serial", &format!("file:{}", self.dir.join("console").display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", self.socket().display())])
            .args(["-pidfile", &self.pid_file().to_string_lossy()])
            .arg("-daemonize")
            .args(arguments);
        command::must(qemu, b"", Duration::from_secs(60)).map(drop)
    }

    /// Waits until ssh answers and the system has settled. A fresh machine must be without failed units; one
    /// that boots its own disk may have some, which are its tester's affair.
    fn wait_until_up(&self, fresh: bool) -> anyhow::Result<()> {
        let script = "i=0
            until systemctl -q is-active lab-net@eth0 || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done
            systemctl is-system-running || systemctl list-units --failed --no-legend --plain";
        let clock = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            format!("date -s @{}.{:03} >/dev/null\n", now.as_secs(), now.subsec_millis())
        };
        let said = wait_for("ssh and a settled system", UP_LIMIT, || {
            let script = if fresh { clock() + script } else { script.to_owned() };
            let output = self.ssh(&script, Duration::from_secs(15)).ok().filter(command::Output::ok)?;
            let state = output.stdout.lines().next().unwrap_or_default().to_owned();
            ["running", "degraded"].contains(&&*state).then_some(output.stdout)
        })?;
        if fresh && !said.starts_with("running") {
            bail!("its system is {said}");
        }
        Ok(())
    }

    fn ssh(&self, script: &str, limit: Duration) -> anyhow::Result<command::Output> {
        command::run(command(&ssh::argv(&self.machines.layout, self.node.name, script)), b"", limit)
    }

    fn running(&self) -> bool {
        fs::read_to_string(self.pid_file()).is_ok_and(|pid| alive(pid.trim(), self.node))
    }

    fn qmp(&self) -> anyhow::Result<Qmp> {
        Qmp::connect(&self.socket())
    }

    fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    fn socket(&self) -> PathBuf {
        Path::new(ssh::RUN_DIR).join(format!("{}.qmp", self.node.name))
    }

    fn pid_file(&self) -> PathBuf {
        Path::new(ssh::RUN_DIR).join(format!("{}.pid", self.node.name))
    }
}

/// Whether that process is the node's QEMU and no zombie.
fn alive(pid: &str, node: &NodeSpec) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == node.name.as_bytes()))
}

/// The nodes whose machine runs, seen from inside the lab.
pub fn running_nodes() -> Vec<&'static str> {
    let runs = |node: &&NodeSpec| {
        let file = Path::new(ssh::RUN_DIR).join(format!("{}.pid", node.name));
        fs::read_to_string(file).is_ok_and(|pid| alive(pid.trim(), node))
    };
    layout::NODES.iter().filter(runs).map(|node| node.name).collect()
}
