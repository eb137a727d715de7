//! `kvip accept`: lets through the state of the cluster that invariant 4 holds back.

use super::done::Done;
use super::{Exit, Global, daemon};
use crate::keepalived::Paths;
use crate::snapshot::admit;

/// Runs `kvip accept`: names the held state in the file that the daemon looks for.
///
/// # Errors
/// When the daemon does not answer, or the file cannot be written.
pub async fn run(global: &Global) -> anyhow::Result<Exit> {
    let paths = Paths::default();
    let status = daemon::ask().await.map_err(|error| daemon::no_answer(&error))?;
    let mut done = Done::new("accept");
    match &status.cluster.held_id {
        None => done.say("nothing waits to be accepted"),
        Some(id) => {
            admit::accept(&paths.state.join("accept"), id)?;
            done.say(format!("accepted: {}", status.cluster.held.unwrap_or_default()));
        }
    }
    done.print(global)
}
