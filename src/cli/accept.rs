//! `kvip accept`: lets through the state of the cluster that invariant 4 holds back.

use super::Exit;
use crate::daemon::SOCKET;
use crate::keepalived::Paths;
use crate::report::status;
use crate::snapshot::admit;

/// Runs `kvip accept`: names the held state in the file that the daemon looks for.
///
/// # Errors
/// When the file cannot be written.
pub async fn run() -> anyhow::Result<Exit> {
    let paths = Paths::default();
    let status = match status::ask(&paths.run.join(SOCKET)).await {
        Ok(status) => status,
        Err(error) => return Ok(super::no_daemon(&error)),
    };
    let Some(id) = &status.cluster.held_id else {
        println!("nothing waits to be accepted");
        return Ok(Exit::Fine);
    };
    admit::accept(&paths.state.join("accept"), id)?;
    println!("accepted: {}", status.cluster.held.unwrap_or_default());
    Ok(Exit::Fine)
}
