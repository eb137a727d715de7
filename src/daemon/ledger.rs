//! The list of VIPs that kvip owns on this host, kept on disk: what an earlier run programmed is still ours to retire.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::files;
use crate::model::Finding;

/// The list's file, `/var/lib/kvip/owned.json`.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// The list in the folder `state`.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("owned.json") }
    }

    /// Reads the list; no file is an empty list.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a list of addresses.
    pub fn load(&self) -> anyhow::Result<BTreeSet<IpAddr>> {
        match std::fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("read {} as a list of addresses", self.path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error).with_context(|| format!("read {}", self.path.display())),
        }
    }
}

impl super::pass::Ledger for Ledger {
    fn save(&self, owned: &BTreeSet<IpAddr>) -> Result<(), Finding> {
        let text = serde_json::to_string(owned).expect("a list of addresses is JSON");
        files::replace(&self.path, &text, files::PUBLIC).map_err(|error| {
            Finding::new(self.path.display(), error.to_string())
                .mend("check the disk and the unit's StateDirectory")
        })
    }
}
