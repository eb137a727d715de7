//! Who may set the weight: the two marks that keep the daemon's hands off the weight files.
//!
//! Owns `/var/lib/kvip/drained` (made by `kvip drain`, ended by `kvip undrain`, outlives a boot) and `/run/kvip/stopping`
//! (made by keepalived's ExecStop, ended by its ExecStartPre, and by the driver when it has nothing to run any more or the mark
//! has outlived its stop). Never touches a weight.
//!
//! Whoever makes a mark lowers the weights itself, softly. The daemon, while [`held`], writes no weight but [`super::weight::OUT`]
//! where there is none (`prepare`); once the marks are gone it writes what its inputs say.

use std::path::Path;

use super::Paths;
use crate::files::{self, FileError};

/// Whether the node is drained.
pub fn drained(paths: &Paths) -> bool {
    is_there(&paths.drained())
}

/// Whether keepalived is being stopped, or was and has not been started since.
pub fn stopping(paths: &Paths) -> bool {
    is_there(&paths.stopping())
}

/// Whether anybody but the daemon sets the weights now.
pub fn held(paths: &Paths) -> bool {
    drained(paths) || stopping(paths)
}

/// Marks the node as drained.
pub fn set_drained(paths: &Paths) -> Result<(), FileError> {
    files::replace(&paths.drained(), "by kvip drain; kvip undrain ends it\n", files::PUBLIC)
}

/// Ends the drain.
pub fn clear_drained(paths: &Paths) -> Result<(), FileError> {
    files::remove(&paths.drained())
}

/// Marks keepalived as stopping.
pub fn set_stopping(paths: &Paths) -> Result<(), FileError> {
    files::replace(
        &paths.stopping(),
        "by keepalived.service's ExecStop; its ExecStartPre ends it\n",
        files::PUBLIC,
    )
}

/// keepalived is about to start or runs, or there is nothing of kvip's to start.
pub fn clear_stopping(paths: &Paths) -> Result<(), FileError> {
    files::remove(&paths.stopping())
}

/// A mark that cannot be looked at counts as set: low is the safe side.
fn is_there(mark: &Path) -> bool {
    mark.try_exists().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_mark_holds() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        assert!(!held(&paths));
        set_drained(&paths).unwrap();
        set_stopping(&paths).unwrap();
        assert!(drained(&paths) && stopping(&paths));
        clear_stopping(&paths).unwrap();
        assert!(held(&paths) && !stopping(&paths));
        clear_drained(&paths).unwrap();
        clear_drained(&paths).unwrap();
        assert!(!held(&paths));
    }
}
