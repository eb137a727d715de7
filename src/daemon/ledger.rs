//! The list of what kvip owns on this host, on disk.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::files;
use crate::model::Finding;
use crate::owned::Owned;

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
    /// When the file cannot be read, or is no such list.
    pub fn load(&self) -> anyhow::Result<Owned> {
        match std::fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("read {} as the list of what kvip owns", self.path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Owned::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", self.path.display())),
        }
    }
}

impl super::pass::Ledger for Ledger {
    fn save(&self, owned: &Owned) -> Result<(), Finding> {
        let text = serde_json::to_string(owned).expect("addresses and numbers are JSON");
        files::replace(&self.path, &text, files::PUBLIC).map_err(|error| {
            Finding::new(self.path.display(), error.to_string())
                .mend("check the disk and the unit's StateDirectory")
        })
    }
}
