//! Runs programs to their end within a limit, and keeps what they said.
//!
//! Output goes to unnamed files, not pipes: an ssh connection that stays behind for the next command keeps
//! the first command's stderr open, and reading a pipe would wait for it. Never retries.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use std::os::unix::process::ExitStatusExt;

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status, or 128 and the signal that ended it.
    pub status: i32,
    /// Standard output, lossily as UTF-8.
    pub stdout: String,
    /// Standard error, lossily as UTF-8.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with status 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n{name}:\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Runs `command` with `input` on its stdin. Fails if it cannot be started or outlives `limit` (it is killed
/// then); an exit status other than 0 is no failure here.
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> anyhow::Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (mut stdin, mut stdout, mut stderr) = (unnamed_file()?, unnamed_file()?, unnamed_file()?);
    stdin.write_all(input)?;
    stdin.rewind()?;
    command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let status = wait_within(&mut child, limit)?;
    let ended = status.map_or(128 + 9, number);
    let output = Output { status: ended, stdout: whole(&mut stdout)?, stderr: whole(&mut stderr)? };
    if status.is_none() {
        bail!("{name} did not end within {limit:?}: {output}");
    }
    Ok(output)
}

/// As [`run`], and fails with both streams unless the status is 0.
pub fn must(command: Command, input: &[u8], limit: Duration) -> anyhow::Result<Output> {
    let text = describe(&command);
    let output = run(command, input, limit)?;
    if output.ok() { Ok(output) } else { bail!("{text}: {output}") }
}

/// Runs `command` with the caller's own terminal, and gives its exit status.
pub fn interactive(mut command: Command) -> anyhow::Result<i32> {
    let text = describe(&command);
    command.status().map(number).with_context(|| format!("cannot start {text}"))
}

/// A command of a program and its arguments.
pub fn command<S: AsRef<std::ffi::OsStr>>(argv: &[S]) -> Command {
    let (program, arguments) = argv.split_first().expect("a command line has a program");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Polls `ask` until it gives something; fails naming `what` when `limit` has passed.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn wait_within(child: &mut Child, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A file that is gone when it is closed.
fn unnamed_file() -> anyhow::Result<File> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("kvip-lab-{}-{number}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn whole(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_input_and_status_are_kept() {
        let output =
            run(command(&["sh", "-c", "cat; echo bad >&2; exit 3"]), b"good", Duration::from_secs(9));
        let output = output.expect("sh runs");
        assert_eq!((output.status, &*output.stdout, &*output.stderr), (3, "good", "bad\n"));
    }

    #[test]
    fn a_program_that_outlives_its_limit_is_killed() {
        let error = run(command(&["sh", "-c", "echo hello; sleep 60"]), b"", Duration::from_millis(100));
        assert!(error.expect_err("a minute is over the limit").to_string().contains("hello"));
    }

    #[test]
    fn a_process_left_behind_does_not_hold_up_its_starter() {
        let start = Instant::now();
        run(command(&["sh", "-c", "sleep 3 &"]), b"", Duration::from_secs(9)).expect("sh runs");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
