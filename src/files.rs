//! Small files, read whole and replaced whole.
//!
//! Owns nothing; never leaves a half-written file under its real name, as keepalived reads at any moment and kvip after a
//! power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What went wrong with a file, naming it and the act.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {path}: {reason}", path = path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The attempted act: `read`, `write` or `remove`.
    pub act: &'static str,
    /// The system's answer.
    pub reason: io::Error,
}

fn failed(path: &Path, act: &'static str) -> impl FnOnce(io::Error) -> FileError {
    move |reason| FileError { path: path.to_owned(), act, reason }
}

/// The text of `path`; `None` when there is no such file. Bytes that are no UTF-8 become U+FFFD.
pub fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "read")(error)),
    }
}

/// Whether `path` leads to a named pipe: opening it would wait for its other end.
pub fn is_named_pipe(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// Readable by all.
pub const PUBLIC: u32 = 0o644;

/// Readable by its owner, which is root, alone.
pub const PRIVATE: u32 = 0o600;

/// Makes `path` hold `contents`, with this mode whatever the umask, by renaming a complete and synced file.
pub fn replace(path: &Path, contents: impl AsRef<[u8]>, mode: u32) -> Result<(), FileError> {
    let new = draft(path);
    write_draft(&new, contents, mode)?;
    publish(&new, path)
}

/// Where the next version of `path` is written: beside it, hidden from an `include *.conf`.
pub fn draft(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.kvip-new"))
}

/// Writes `contents` to `path` and to the disk, making its folder when there is none.
pub fn write_draft(path: &Path, contents: impl AsRef<[u8]>, mode: u32) -> Result<(), FileError> {
    write_synced(path, contents.as_ref(), mode).map_err(failed(path, "write"))
}

fn write_synced(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // One left by a crash may have another mode or be a link: it goes first.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(contents)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_whatever_lay_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/state.json");
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "untouched").unwrap();
        for (text, mode) in [("one", PRIVATE), ("two", PUBLIC), ("three", PRIVATE)] {
            replace(&path, text, mode).unwrap();
            assert_eq!(read(&path).unwrap().as_deref(), Some(text));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
            std::os::unix::fs::symlink(&elsewhere, draft(&path)).unwrap();
        }
        assert_eq!(read(&elsewhere).unwrap().as_deref(), Some("untouched"));
    }

    #[test]
    fn errors_name_the_file_and_the_act() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken/name");
        fs::write(dir.path().join("taken"), "").unwrap();
        let error = replace(&path, "", PUBLIC).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot write {}/.name.kvip-new: ", path.parent().unwrap().display())),
            "{error}"
        );
        assert_eq!(read(&dir.path().join("none")).unwrap(), None);
        remove(&dir.path().join("none")).unwrap();
    }
}
