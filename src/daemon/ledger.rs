//! The list of VIPs that kvip owns on this host, kept on disk: what an earlier run programmed is still ours to retire.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

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

    fn write(&self, owned: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        let folder = self.path.parent().context("the list lies in a folder")?;
        let mut file = tempfile_in(folder)?;
        file.1.write_all(&serde_json::to_vec(owned)?)?;
        file.1.sync_all()?;
        std::fs::rename(&file.0, &self.path)?;
        Ok(())
    }
}

/// A new file beside the list, which a rename puts in its place.
fn tempfile_in(folder: &Path) -> std::io::Result<(PathBuf, std::fs::File)> {
    let path = folder.join("owned.json.new");
    let file = std::fs::File::create(&path)?;
    Ok((path, file))
}

impl super::pass::Ledger for Ledger {
    fn save(&self, owned: &BTreeSet<IpAddr>) -> Result<(), Finding> {
        let said = |error: &anyhow::Error| {
            Finding::new(self.path.display(), format!("cannot be written: {error:#}"))
        };
        self.write(owned).map_err(|error| said(&error).mend("check the disk and the unit's StateDirectory"))
    }
}
