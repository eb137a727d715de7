//! HAProxy's socket: one command, one answer.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// No answer is longer: 10,000 servers take 4 MB.
const MOST_BYTES: u64 = 64 << 20;

/// Gives `command` to the HAProxy that listens at `socket`; what it answers, errors of the command too, which HAProxy
/// does not tell apart.
///
/// # Errors
/// When nobody listens there, or does not answer in time.
pub async fn ask(socket: &Path, command: &str) -> io::Result<String> {
    let asking = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(MOST_BYTES).read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(LIMIT, asking).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
