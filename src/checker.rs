//! keepalived and HAProxy, asked as child processes whether they accept a file, with a limit.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::report::systemd::command;

/// Why a program gave no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// There is no such program.
    NotInstalled,
    /// It ran into the time limit.
    TooLong,
    /// It could not be run.
    Run(io::Error),
}

/// What `program` prints, in English, and how it ends.
///
/// # Errors
/// When there is no such program, or it cannot be run, or does not end within `limit`.
pub async fn ask(program: &str, arguments: &[&OsStr], limit: Duration) -> Result<Output, Unanswered> {
    let child = command(program).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
    match tokio::time::timeout(limit, child).await {
        Err(_) => Err(Unanswered::TooLong),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(Unanswered::NotInstalled),
        Ok(output) => output.map_err(Unanswered::Run),
    }
}

/// Why a checker refused `file`, unless it accepted it: what `said` makes of what it printed, else how it ended.
pub fn refusal(output: Output, file: &Path, said: fn(&str, &Path) -> String) -> Option<String> {
    if output.status.success() {
        return None;
    }
    let printed = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
    let said = said(&printed, file);
    Some(if said.is_empty() { output.status.to_string() } else { said })
}
