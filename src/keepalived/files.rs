//! Small files, read whole and replaced whole.
//!
//! Owns nothing; never leaves a half-written file under its real name, as keepalived reads at any moment.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What went wrong with a file, naming it and the act.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {path}: {source}", path = path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The attempted act: `read`, `write` or `remove`.
    pub act: &'static str,
    /// The system's answer.
    pub source: io::Error,
}

fn failed(path: &Path, act: &'static str) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError { path: path.to_owned(), act, source }
}

/// The text of `path`; `None` when there is no such file. Bytes that are no UTF-8 become U+FFFD.
pub fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "read")(error)),
    }
}

/// Makes `path` hold `text`, mode 0644 whatever the umask, by renaming a complete and synced file.
pub fn replace(path: &Path, text: &str) -> Result<(), FileError> {
    let new = draft(path);
    write_draft(&new, text)?;
    publish(&new, path)
}

/// Where the next version of `path` is written: beside it, hidden from an `include *.conf`.
pub fn draft(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.kvip-new"))
}

/// Writes `text` to `path` and to the disk, making its folder when there is none.
pub fn write_draft(path: &Path, text: &str) -> Result<(), FileError> {
    write_synced(path, text).map_err(failed(path, "write"))
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Renames `new` to `path` and syncs their folder, so that the name survives a power cut too.
pub fn publish(new: &Path, path: &Path) -> Result<(), FileError> {
    fs::rename(new, path).map_err(failed(path, "write"))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder, "sync"))
}

/// Removes `path`; a file that is not there is a success.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove")(error)),
        _ => Ok(()),
    }
}
