//! The image that all nodes start from, and the snapshot that lets them start in seconds.
//!
//! Owns the cache folder: an image is named after a hash of what it is made from, so that a stale one is
//! never used, and a half-made one never looks whole. Never touches a running lab.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::command::{self, command, wait_for};
use crate::layout::{self, Layout, NODES};
use crate::machine::{self, Accelerator};
use crate::progress::{step, step_with};
use crate::qmp::Qmp;

/// Downloading and unpacking a distribution on a slow line.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
/// A cold boot takes 11 s on two idle cores under emulation.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// A built image: a folder of the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    dir: PathBuf,
    #[serde(skip)]
    _held: Held,
}

/// While there is one of a folder of the cache, whoever makes another does not forget that folder.
type Held = Option<Arc<File>>;

/// A stopped machine, just booted and without a network card.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// The machine's state, as QEMU migrates it.
    pub state: PathBuf,
    /// Its disk at that moment: a thin layer over the image's.
    pub disk: PathBuf,
    #[serde(skip)]
    _held: Held,
}

impl Snapshot {
    /// The same, and kept in the cache for as long as this value lives.
    pub fn held(self) -> anyhow::Result<Self> {
        let dir = self.state.parent().context("a snapshot has a folder")?;
        Ok(Self { _held: hold(dir)?, ..self })
    }
}

impl Image {
    /// The image for this source tree, built now if the cache has none.
    pub fn ensure(layout: &Layout) -> anyhow::Result<Self> {
        fs::create_dir_all(&layout.cache)
            .with_context(|| format!("cannot make {}", layout.cache.display()))?;
        let lock = lock(&layout.cache)?;
        let suite = suite();
        let sources = layout.image_sources();
        let name = format!("image-{suite}-{}", hash_of(&image_inputs(&sources)?));
        let dir = layout.cache.join(&name);
        if !dir.exists() {
            let what = format!("building the {suite} image");
            let log = layout.cache.join("image.log");
            step_with(&what, || last_line(&log), || build(layout, &suite, &dir, &log))?;
            forget_others(&layout.cache, &format!("image-{suite}-"), &name)?;
        }
        let image = Self { _held: hold(&dir)?, dir };
        drop(lock);
        Ok(image)
    }

    /// The same, and kept in the cache for as long as this value lives.
    pub fn held(self) -> anyhow::Result<Self> {
        Ok(Self { _held: hold(&self.dir)?, ..self })
    }

    /// The snapshot of this image for this host's QEMU, made now if the cache has none.
    pub fn snapshot(&self, layout: &Layout, accelerator: Accelerator) -> anyhow::Result<Snapshot> {
        let lock = lock(&layout.cache)?;
        // Its disk names the one below by its path: a checkout that was moved makes another.
        let name = format!("snapshot-{}", hash_of(&(machine::fingerprint(accelerator)?, &self.dir)));
        let dir = self.dir.join(&name);
        if !dir.exists() {
            let what = format!("booting one machine ({}) for the snapshot", accelerator.name());
            step(&what, || self.take_snapshot(accelerator, &dir))?;
            forget_others(&self.dir, "snapshot-", &name)?;
        }
        let snapshot =
            Snapshot { state: dir.join("state"), disk: dir.join("disk.qcow2"), _held: hold(&dir)? };
        drop(lock);
        Ok(snapshot)
    }

    /// The unpacked kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The initial file system that mounts the disk.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// The initial file system that only says that it runs.
    pub fn probe(&self) -> PathBuf {
        self.dir.join("probe.img")
    }

    /// The private key that the nodes let in.
    pub fn ssh_key(&self) -> PathBuf {
        self.dir.join("id")
    }

    /// The disk below every node's own.
    pub fn base(&self) -> PathBuf {
        self.dir.join("base.img")
    }

    fn take_snapshot(&self, accelerator: Accelerator, dir: &Path) -> anyhow::Result<()> {
        let work = fresh(&dir.with_extension("part"))?;
        let disk = work.join("disk.qcow2");
        self.thin_disk(&disk)?;
        let mut qemu = machine::qemu(self, accelerator, &disk, "lab.snapshot");
        // A socket's path has 107 octets at most (unix(7)), and the checkout's may be longer.
        qemu.args(["-serial", "file:console", "-qmp", "unix:qmp,server=on,wait=off"]);
        let mut child = start(&qemu, &work)?;
        let socket = PathBuf::from(format!("/proc/{}/cwd/qmp", child.id()));
        let made = wait_until_warm(&work, &mut child).and_then(|()| save_state(&socket, &work.join("state")));
        // After a failure it may still run; after success it has quit.
        if made.is_err() {
            child.kill()?;
        }
        child.wait()?;
        made?;
        fs::rename(&work, dir)?;
        Ok(())
    }

    fn thin_disk(&self, path: &Path) -> anyhow::Result<()> {
        let mut make = command(&["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        make.arg(self.base()).arg(path);
        command::must(make, b"", Duration::from_secs(20)).map(drop)
    }
}

/// The table that tells a guest who it is by its MAC address.
fn nodes_table() -> String {
    let mut table = String::new();
    for node in &NODES {
        let layout::NodeSpec { name, mac, v4, v6, pod4, pod6 } = node;
        writeln!(table, "{name} {mac} {v4} {v6} {pod4} {pod6}").expect("a String takes all text");
    }
    table
}

/// The rest of the network, for the guest's shell to read.
fn network_variables() -> String {
    format!(
        "PREFIX_V4={}\nPREFIX_V6={}\nGATEWAY_V4={}\nGATEWAY_V6={}\nPODS_V4={}\nPODS_V6={}\n",
        layout::PREFIX_V4,
        layout::PREFIX_V6,
        layout::BRIDGE_V4,
        layout::BRIDGE_V6,
        layout::PODS_V4,
        layout::PODS_V6
    )
}

fn last_line(log: &Path) -> String {
    let said = fs::read_to_string(log).unwrap_or_default();
    said.lines().last().map(|line| format!("({line})")).unwrap_or_default()
}

fn build(layout: &Layout, suite: &str, dir: &Path, log: &Path) -> anyhow::Result<()> {
    let work = fresh(&dir.with_extension("part"))?;
    let (nodes, network) = (work.join("nodes"), work.join("network"));
    fs::write(&nodes, nodes_table())?;
    fs::write(&network, network_variables())?;
    let mut script = command(&["setpriv", "--pdeathsig", "KILL", "sh", "-c", "exec \"$@\" >\"$0\" 2>&1"]);
    script.arg(log).arg(layout.image_sources().join("build")).arg(suite).args([&work, &nodes, &network]);
    let output = command::run(script, b"", BUILD_LIMIT)?;
    if !output.ok() {
        let said = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!("cannot build the image (all of it in {}):\n{tail}", log.display());
    }
    fs::rename(&work, dir)?;
    Ok(())
}

/// Starts QEMU in that folder, where its words go to the file `qemu`.
fn start(qemu: &Command, work: &Path) -> anyhow::Result<Child> {
    // Ends with this process, whatever ends that.
    let mut child = command(&["setpriv", "--pdeathsig", "KILL"]);
    child.arg(qemu.get_program()).args(qemu.get_args()).current_dir(work);
    child.stderr(File::create(work.join("qemu"))?).spawn().context("cannot start QEMU")
}

/// Until the console says how the boot went, or QEMU is gone.
fn wait_until_warm(work: &Path, qemu: &mut Child) -> anyhow::Result<()> {
    let said = || fs::read_to_string(work.join("console")).unwrap_or_default();
    let mut ended = None;
    let verdict = wait_for("the machine to boot", BOOT_LIMIT, || {
        ended = qemu.try_wait().ok().flatten();
        let verdict = said().lines().find(|line| line.starts_with("LAB-")).map(str::to_owned);
        verdict.or_else(|| ended.map(|status| format!("QEMU ended ({status})")))
    });
    if ended.is_some() {
        let words = fs::read_to_string(work.join("qemu")).unwrap_or_default();
        bail!("{}; it says:\n{words}its console says:\n{}", verdict?, said());
    }
    match verdict.as_deref().map(str::trim) {
        Ok("LAB-READY") => Ok(()),
        Ok(other) => bail!("the machine did not come up clean: {other}"),
        Err(error) => bail!("{error}; its console says:\n{}", said()),
    }
}

fn save_state(socket: &Path, state: &Path) -> anyhow::Result<()> {
    let mut qmp = Qmp::connect(socket)?;
    qmp.execute("stop", &json!({}))?;
    qmp.execute("migrate-set-parameters", &json!({ "max-bandwidth": 10_000_000_000_u64 }))?;
    qmp.execute("migrate", &json!({ "uri": format!("exec:cat > '{}'", state.display()) }))?;
    wait_for("the snapshot", Duration::from_secs(120), || {
        let answer = qmp.execute("query-migrate", &json!({})).ok()?;
        (answer["status"] == "completed").then_some(())
    })?;
    // Quitting is what writes the disk's layer to its end.
    qmp.execute("quit", &json!({})).map(drop)
}

/// The Debian release that nodes run: `$KVIP_LAB_SUITE`, else bookworm.
fn suite() -> String {
    std::env::var("KVIP_LAB_SUITE").unwrap_or_else(|_| "bookworm".to_owned())
}

/// Everything that an image is made from, but for the archive's packages.
fn image_inputs(sources: &Path) -> anyhow::Result<Vec<(PathBuf, u32, Vec<u8>)>> {
    let mut inputs = vec![
        (PathBuf::from("nodes"), 0, nodes_table().into_bytes()),
        (PathBuf::from("network"), 0, network_variables().into_bytes()),
    ];
    let mut folders = vec![sources.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() != "host-packages" {
                // Whether others may run it is up to the umask of who checked it out.
                let mode = entry.metadata()?.permissions().mode() & 0o100;
                let path = entry.path().strip_prefix(sources)?.to_path_buf();
                inputs.push((path, mode, fs::read(entry.path())?));
            }
        }
    }
    inputs.sort();
    Ok(inputs)
}

fn hash_of(what: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// An empty folder of that name.
fn fresh(dir: &Path) -> anyhow::Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.to_path_buf())
}

/// Those that a running lab was raised from stay.
fn forget_others(dir: &Path, prefix: &str, keep: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && name != keep && File::open(entry.path())?.try_lock().is_ok() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn hold(dir: &Path) -> anyhow::Result<Held> {
    let folder = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    folder.lock_shared()?;
    Ok(Some(Arc::new(folder)))
}

/// Makes a second builder wait for the first.
fn lock(cache: &Path) -> anyhow::Result<File> {
    let file = File::create(cache.join("lock"))?;
    file.lock()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        fresh(&std::env::temp_dir().join(format!("kvip-lab-{name}-{}", std::process::id())))
            .expect("a folder can be made")
    }

    #[test]
    fn a_machine_that_ends_is_not_waited_for_and_its_words_are_told() {
        let work = scratch("ended");
        let start = Instant::now();
        let machine = "echo 'console here' >console; echo 'no such machine' >&2; exit 3";
        let mut child = super::start(&command(&["sh", "-c", machine]), &work).expect("sh runs");
        let error = wait_until_warm(&work, &mut child).expect_err("it never says LAB-READY").to_string();
        assert!(start.elapsed() < Duration::from_secs(20), "{error}");
        for part in ["exit status: 3", "no such machine", "console here"] {
            assert!(error.contains(part), "{error}");
        }
        fs::remove_dir_all(work).expect("it is ours");
    }

    #[test]
    fn an_image_is_the_same_for_every_umask() {
        let sources = scratch("umask");
        let script = sources.join("script");
        fs::write(&script, "true\n").expect("it is ours");
        let inputs = |mode| {
            fs::set_permissions(&script, fs::Permissions::from_mode(mode)).expect("it is ours");
            image_inputs(&sources).expect("they can be read")
        };
        assert_eq!(inputs(0o700), inputs(0o755));
        assert_ne!(inputs(0o600), inputs(0o755));
        fs::remove_dir_all(sources).expect("it is ours");
    }

    #[test]
    fn what_is_held_is_not_forgotten() {
        let cache = scratch("held");
        for name in ["image-a", "image-b", "image-c", "other"] {
            fs::create_dir(cache.join(name)).expect("it is new");
        }
        let held = hold(&cache.join("image-a")).expect("a folder can be locked");
        let left = || {
            let entries = fs::read_dir(&cache).expect("it is ours");
            let mut names: Vec<_> = entries.map(|entry| entry.expect("it is ours").file_name()).collect();
            names.sort();
            names
        };
        forget_others(&cache, "image-", "image-c").expect("they can be removed");
        assert_eq!(left(), ["image-a", "image-c", "other"]);
        drop(held);
        forget_others(&cache, "image-", "image-c").expect("they can be removed");
        assert_eq!(left(), ["image-c", "other"]);
        fs::remove_dir_all(cache).expect("it is ours");
    }
}
