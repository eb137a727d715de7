//! The last accepted snapshot on disk, for a start without the API (invariant 4).
//!
//! Owns the file's format and nothing of its content. Plain functions: when to save is the daemon's to decide.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Snapshot;

/// Where the daemon keeps it.
pub const PATH: &str = "/var/lib/kvip/snapshot.json";

/// The format that this version writes, and the highest that it reads.
const FORMAT: u32 = 1;

/// Why a saved snapshot is of no use; the start goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there and cannot be read.
    #[error("cannot read the saved snapshot {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is not what kvip writes.
    #[error("the saved snapshot {path} is damaged and ignored: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A later kvip wrote it.
    #[error("the saved snapshot {path} is of format {format}, this kvip reads up to {FORMAT}: ignored")]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format it names.
        format: u32,
    },
}

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    snapshot: &'a Snapshot,
}

#[derive(Deserialize)]
struct Header {
    format: u32,
}

#[derive(Deserialize)]
struct Read {
    snapshot: Snapshot,
}

/// Writes `snapshot` to `path`: readable by root alone, whole or not at all, on the disk when this returns.
pub fn save(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let text = serde_json::to_vec(&Written { format: FORMAT, snapshot })?;
    replace(path, &text)
}

/// Reads the snapshot at `path`; `None` when there is none yet.
pub fn load(path: &Path) -> Result<Option<Snapshot>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: path.into(), source }),
    };
    let damaged = |source| Error::Damaged { path: path.into(), source };
    let header: Header = serde_json::from_slice(&text).map_err(damaged)?;
    if header.format > FORMAT {
        return Err(Error::Newer { path: path.into(), format: header.format });
    }
    let read: Read = serde_json::from_slice(&text).map_err(damaged)?;
    Ok(Some(read.snapshot))
}

/// Replaces `path` by a file with `text`, mode 0600: a temporary file beside it, synced and renamed.
pub(super) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // One left by a crash may have another mode or be a link: it goes first.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // The rename itself is on disk once the directory is.
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {

    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::model::ObjectKey;
    use crate::snapshot::Service;

    fn example() -> Snapshot {
        let mut snapshot = Snapshot { cluster: Some("uid-1".into()), ..Snapshot::default() };
        snapshot.services.insert(ObjectKey::new("default", "nginx"), Service::default());
        snapshot.vip_map = Some([("10.87.2.50".into(), "default/nginx".into())].into());
        snapshot
    }

    #[test]
    fn what_was_saved_is_loaded_and_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        assert!(load(&path).unwrap().is_none());
        fs::write(dir.path().join("snapshot.json.new"), "left by a crash").unwrap();
        save(&path, &example()).unwrap();
        assert_eq!(load(&path).unwrap(), Some(example()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_no_use_is_an_error_that_says_why() {
        let cases = [
            ("", "damaged"),
            ("not json", "damaged"),
            (r#"{"format":1}"#, "missing field `snapshot`"),
            (r#"{"format":1,"snapshot":{"services":{"a/b/c":{}}}}"#, "namespace/name"),
            (r#"{"format":2,"snapshot":"other"}"#, "format 2"),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        for (text, why) in cases {
            fs::write(&path, text).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_cut_at_any_byte_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        save(&path, &example()).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(load(&path).is_err(), "cut at {length}");
        }
    }
}
