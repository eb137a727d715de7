//! The last accepted snapshot on disk, for a start without the API (invariant 4).
//!
//! Owns the file's format and nothing of its content. Plain functions: when to save is the daemon's to decide.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use tokio::task::{JoinHandle, spawn_blocking};

use super::Snapshot;
use crate::files;

/// Where the daemon keeps it.
pub const PATH: &str = "/var/lib/kvip/snapshot.json";

/// The format that this version writes, and the highest that it reads.
const FORMAT: u32 = 1;

/// Why a saved snapshot is of no use; the start goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there and cannot be read.
    #[error("cannot read the saved snapshot {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The file is not what kvip writes.
    #[error("the saved snapshot {path} is damaged and ignored: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: serde_json::Error,
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
    files::replace(path, text, files::PRIVATE).map_err(|error| error.reason)
}

/// The same, off the caller's thread: to serialize a large cluster and to sync the disk may take a second. Needs a tokio
/// runtime. The caller starts no second one for the same path before this one is done.
pub fn save_aside(path: &Path, snapshot: Arc<Snapshot>) -> JoinHandle<io::Result<()>> {
    let path = path.to_owned();
    spawn_blocking(move || save(&path, &snapshot))
}

/// Reads the snapshot at `path`; `None` when there is none yet.
pub fn load(path: &Path) -> Result<Option<Snapshot>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(reason) => return Err(Error::Read { path: path.into(), reason }),
    };
    let damaged = |reason| Error::Damaged { path: path.into(), reason };
    let header: Header = serde_json::from_slice(&text).map_err(damaged)?;
    if header.format > FORMAT {
        return Err(Error::Newer { path: path.into(), format: header.format });
    }
    let read: Read = serde_json::from_slice(&text).map_err(damaged)?;
    Ok(Some(read.snapshot))
}

#[cfg(test)]
mod tests {

    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ipam::{Claim, Kind, User, Version};
    use crate::model::{Finding, ObjectKey};
    use crate::snapshot::{Labels, Service};

    fn example() -> Snapshot {
        let mut snapshot = Snapshot { cluster: Some("uid-1".into()), ..Snapshot::default() };
        snapshot.services.insert(ObjectKey::new("default", "nginx"), Service::default().into());
        snapshot.vip_map = Some(vec![("10.87.2.50", "default/nginx")].into());
        snapshot
    }

    #[test]
    fn what_was_saved_is_loaded_and_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        assert!(load(&path).unwrap().is_none());
        fs::write(files::draft(&path), "left by a crash").unwrap();
        save(&path, &example()).unwrap();
        assert_eq!(load(&path).unwrap(), Some(example()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_part_is_saved() {
        let user = User { service: ObjectKey::new("default", "web"), uid: "u".into(), ports: [].into() };
        let claim = |kind| Claim {
            address: "fd00::50".parse().unwrap(),
            kind,
            users: vec![user.clone()],
            pool: Some("lan".into()),
            share_key: None,
            released: None,
            created: 7,
            version: Version::default(),
        };
        let mut snapshot = example();
        snapshot.claims = [claim(Kind::Lease), claim(Kind::IpAddress)].into_iter().collect();
        snapshot
            .namespaces
            .insert("shop".into(), [("team".into(), "shop".into())].into_iter().collect::<Labels>().into());
        snapshot.service_cidrs.insert("kubernetes".into(), vec!["10.96.0.0/16".parse().unwrap()].into());
        snapshot.cluster_settings = Some("[asking]".into());
        snapshot.skipped.insert("Lease kvip-0".into(), vec![Finding::new("Lease kvip-0", "odd")]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        save(&path, &snapshot).unwrap();
        assert_eq!(load(&path).unwrap(), Some(snapshot));
    }

    #[tokio::test]
    async fn it_can_be_saved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        save_aside(&path, Arc::new(example())).await.unwrap().unwrap();
        assert_eq!(load(&path).unwrap(), Some(example()));
        let nowhere = save_aside(Path::new("/proc/none/snapshot.json"), Arc::default()).await.unwrap();
        assert!(nowhere.is_err());
    }

    #[test]
    fn what_an_earlier_kvip_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        let text = r#"{"format":1,"snapshot":{"cluster":"uid-1","slices":{},"nodes":{},
            "services":{"default/nginx":{"uid":"","kind":"Balanced","ports":[],"cluster_ips":[],"selector":null,
            "local_policy":false,"affinity":null}},"vip_map":{"10.87.2.50":"default/nginx"}}}"#;
        fs::write(&path, text).unwrap();
        assert_eq!(load(&path).unwrap(), Some(example()));
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
