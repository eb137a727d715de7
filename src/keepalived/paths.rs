//! Where kvip keeps what it shares with keepalived and with its own commands.
//!
//! Owns the names of files and nothing of their contents; never touches the disk.

use std::path::{Path, PathBuf};

use crate::model::Vrid;

/// The folders and files that kvip and keepalived meet at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What lives until the next boot: `/run/kvip`, kept when kvip stops (`RuntimeDirectoryPreserve=yes`).
    pub run: PathBuf,
    /// What outlives a boot: `/var/lib/kvip`.
    pub state: PathBuf,
    /// The file that keepalived reads: `/etc/keepalived/keepalived.conf`.
    pub keepalived_conf: PathBuf,
    /// kvip itself, as `vrrp_track_process` sees it in `/proc/PID/cmdline`: `/usr/bin/kvip`.
    pub program: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            run: "/run/kvip".into(),
            state: "/var/lib/kvip".into(),
            keepalived_conf: "/etc/keepalived/keepalived.conf".into(),
            program: "/usr/bin/kvip".into(),
        }
    }
}

impl Paths {
    /// All paths below `root`, so that a test has a host of its own.
    pub fn under(root: &Path) -> Self {
        let system = Self::default();
        let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        Self {
            run: below(&system.run),
            state: below(&system.state),
            keepalived_conf: below(&system.keepalived_conf),
            program: system.program,
        }
    }

    /// The weight file of `vrid`, which the instances of both families track.
    pub fn weight(&self, vrid: Vrid) -> PathBuf {
        self.run.join(format!("weight-{vrid}"))
    }

    /// When the daemon last made a turn.
    pub fn alive(&self) -> PathBuf {
        self.run.join("alive")
    }

    /// The mark of `kvip drain`: it outlives a boot, so that a drained node stays drained.
    pub fn drained(&self) -> PathBuf {
        self.state.join("drained")
    }

    /// The mark of a keepalived that is being stopped, or has been.
    pub fn stopping(&self) -> PathBuf {
        self.run.join("stopping")
    }

    /// A copy of the file that keepalived is known to run: what a reload is compared with and rolled back to.
    pub fn loaded(&self) -> PathBuf {
        self.run.join("keepalived.loaded")
    }

    /// kvip's file where `keepalived.conf` is somebody else's: `conf.d/kvip.conf` beside it.
    pub fn fragment(&self) -> PathBuf {
        self.keepalived_folder().join("conf.d/kvip.conf")
    }

    /// The line that makes a foreign `keepalived.conf` read [`Paths::fragment`].
    pub fn include_line(&self) -> String {
        format!("include {}", self.fragment().display())
    }

    /// The folder of `keepalived.conf`.
    pub fn keepalived_folder(&self) -> &Path {
        self.keepalived_conf.parent().unwrap_or(Path::new("/"))
    }
}
