//! kvip in the lab: the package installed on the nodes, with the identity that the packaged RBAC manifests give it.
//!
//! Owns the settings that lab nodes get. Never gives kvip an admin's rights.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};

use crate::control;
use crate::lab::{Lab, Node};
use crate::layout::{API_URL, Layout, NODES};

/// What a step of the installation may take on a slow machine.
const STEP_LIMIT: Duration = Duration::from_secs(180);

/// The settings that a test cares about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `vrrp.advert`: 1 s, as emulated machines stall for longer than kvip's own 250 ms allows.
    pub advert: &'static str,
    /// More lines of TOML, sections included.
    pub extra: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { advert: "1s", extra: String::new() }
    }
}

impl Settings {
    /// The text of `/etc/kvip/config.toml`.
    pub fn toml(&self) -> String {
        format!(
            "[vips]\nallowed = [\"10.87.2.0/24\", \"fd00:87:2::/64\"]\n\n[vrrp]\nadvert = \"{}\"\n{}\n",
            self.advert, self.extra
        )
    }
}

/// Where `packaging/deb/build` puts the package, seen from the source tree.
pub const PACKAGES: &str = "target/debian";

/// The newest package of [`PACKAGES`].
pub fn deb(layout: &Layout) -> anyhow::Result<PathBuf> {
    newest_deb(&layout.repo.join(PACKAGES))
}

/// The package with a lower version, made from the same tree, that upgrades begin with.
pub fn old_deb(layout: &Layout) -> anyhow::Result<PathBuf> {
    newest_deb(&layout.repo.join("target/debian-0.0.9-1"))
}

/// The newest package in that folder.
pub fn newest_deb(folder: &Path) -> anyhow::Result<PathBuf> {
    let changed =
        |path: &Path| path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let files =
        fs::read_dir(folder).with_context(|| format!("no package in {}: make deb", folder.display()))?;
    let packages = files.filter_map(|file| Some(file.ok()?.path()));
    let packages = packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kvip_")))
        .max_by_key(|path| changed(path))
        .with_context(|| format!("no package in {}: make deb", folder.display()))
}

impl Lab {
    /// Installs the package on all nodes, enrolls and enables it, and waits until systemd calls it active.
    pub fn install_kvip(&self, deb: &Path, settings: &Settings) -> anyhow::Result<()> {
        let kubeconfig = self.enroll()?;
        let installed = self.on_all_nodes(|node| node.install_kvip(deb, settings, &kubeconfig));
        installed.into_iter().collect()
    }

    /// The kubeconfig that the package's own script makes: it can do what the package's RBAC manifest allows.
    pub fn enroll(&self) -> anyhow::Result<String> {
        self.enroll_as("allocator")
    }

    /// As [`Lab::enroll`], for a role: `allocator` or `member`.
    pub fn enroll_as(&self, role: &str) -> anyhow::Result<String> {
        let script = self.layout().repo.join("packaging/rbac/make-kubeconfig");
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", self.layout().programs().display());
        let kubeconfig = format!("KUBECONFIG={}", control::admin_kubeconfig(self.layout()).display());
        let script = script.to_string_lossy();
        let output = self.host(&["env", &path, &kubeconfig, &script, "--role", role, "--server", API_URL])?;
        if output.ok() { Ok(output.stdout) } else { bail!("make-kubeconfig: {output}") }
    }

    /// The one living node that holds the group's anchor; `None` while there is none, or more than one as in the midst of
    /// an election.
    pub fn holder(&self) -> Option<&'static str> {
        let held = self.on_all_nodes(|node| {
            let output = node.run_within(Duration::from_secs(5), "ip -4 -o addr show to 169.254.255.50", b"");
            output.is_ok_and(|output| output.ok() && !output.stdout.is_empty())
        });
        let mut holders = NODES.iter().zip(held).filter(|(_, holds)| *holds).map(|(node, _)| node.name);
        holders.next().filter(|_| holders.next().is_none())
    }

    /// Waits until exactly one living node holds the VIPs.
    pub fn wait_for_holder(&self) -> anyhow::Result<&'static str> {
        self.wait_for("a holder of the VIPs", Duration::from_secs(90), || self.holder())
    }

    /// The name of another node than `name`.
    pub fn other_than(&self, name: &str) -> &'static str {
        NODES.iter().map(|node| node.name).find(|other| *other != name).expect("the lab has three nodes")
    }

    /// What the client gets from `http://ADDRESS/`, when it gets something.
    pub fn curl(&self, address: &str) -> Option<String> {
        let url = format!("http://{address}/");
        let output =
            self.client(&["curl", "--silent", "--show-error", "--globoff", "--max-time", "3", &url]).ok()?;
        output.ok().then_some(output.stdout)
    }
}

impl Node<'_> {
    /// Installs the package, configures and enables it, and waits until systemd calls it active.
    pub fn install_kvip(&self, deb: &Path, settings: &Settings, kubeconfig: &str) -> anyhow::Result<()> {
        self.install_deb(deb)?;
        self.configure_kvip(settings, kubeconfig.as_bytes())?;
        self.must_within(STEP_LIMIT, "systemctl enable --now kvip").map(drop)
    }

    /// `dpkg -i`.
    pub fn install_deb(&self, deb: &Path) -> anyhow::Result<()> {
        self.copy_in(deb, "/tmp/kvip.deb")?;
        self.must_within(STEP_LIMIT, "dpkg -i /tmp/kvip.deb 2>&1").map(drop)
    }

    /// Writes settings and kubeconfig.
    pub fn configure_kvip(&self, settings: &Settings, kubeconfig: &[u8]) -> anyhow::Result<()> {
        self.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
        self.write("/etc/kvip/kubeconfig", kubeconfig)?;
        self.must("chmod 0600 /etc/kvip/kubeconfig").map(drop)
    }

    /// As [`Node::must`], with a limit of its own.
    pub fn must_within(&self, limit: Duration, script: &str) -> anyhow::Result<String> {
        let mut output = self.run_within(limit, script, b"")?;
        // ssh lost its connection; what tests do with this may be done twice.
        if output.status == 255 {
            output = self.run_within(limit, script, b"")?;
        }
        if output.ok() { Ok(output.stdout) } else { bail!("{}: {script}: {output}", self.spec().name) }
    }

    /// `kvip status --json` of this node.
    pub fn kvip_status(&self) -> anyhow::Result<serde_json::Value> {
        let ask = || self.run_within(Duration::from_secs(20), "kvip status --json", b"");
        let mut output = ask()?;
        if output.status == 255 {
            // The connection that commands share may have died, not the machine: the next one is a new one.
            output = ask()?;
        }
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("{}: kvip status: {output}", self.spec().name))
    }

    /// The node's IPVS table, as `ipvsadm -Sn` lists it.
    pub fn ipvs(&self) -> anyhow::Result<String> {
        self.must("ipvsadm -Sn")
    }

    /// kvip's journal since the node started.
    pub fn journal(&self) -> String {
        self.run("journalctl -u kvip -u keepalived --no-pager -o short-precise | tail -n 80")
            .map(|o| o.stdout)
            .unwrap_or_default()
    }
}
