//! The installed haproxy, asked as a child process whether it accepts a file.
//!
//! Owns nothing; never starts the proxy itself.

use std::path::Path;
use std::time::Duration;

use crate::checker::{Unanswered, ask, refusal};

/// Where Debian and Red Hat install it; an admin's PATH need not lead there.
const PROGRAM: &str = "/usr/sbin/haproxy";

/// A check of 1,000 frontends takes well under a second; the limit is for a host under load.
const LIMIT: Duration = Duration::from_secs(20);

/// Why HAProxy could not be asked, or what it answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// There is no such program.
    #[error("haproxy is not installed: apt install haproxy")]
    NotInstalled,
    /// It ran into the time limit.
    #[error("haproxy did not answer within {} s", LIMIT.as_secs())]
    TooLong,
    /// It could not be run.
    #[error("cannot run {PROGRAM}: {0}")]
    Run(String),
    /// It refuses the file, in its own words.
    #[error("haproxy refuses it: {0}")]
    Refused(String),
}

/// Whether HAProxy accepts `file`: `haproxy -c`, of which any exit but 0 is a refusal with what it printed.
///
/// # Errors
/// Says why it does not, or why it could not be asked.
pub async fn haproxy_accepts(file: &Path) -> Result<(), ProgramError> {
    let output = ask(PROGRAM, &["-c".as_ref(), "-f".as_ref(), file.as_os_str()], LIMIT).await?;
    refusal(output, file, what_it_said).map_or(Ok(()), |reason| Err(ProgramError::Refused(reason)))
}

impl From<Unanswered> for ProgramError {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::NotInstalled => Self::NotInstalled,
            Unanswered::TooLong => Self::TooLong,
            Unanswered::Run(error) => Self::Run(error.to_string()),
        }
    }
}

/// HAProxy's alerts as one line, without the process's number and the draft's name, which the reader never sees:
/// `[ALERT]    (42) : config : parsing [/run/kvip/.x:7] : unknown keyword 'a'`.
fn what_it_said(printed: &str, file: &Path) -> String {
    let draft = format!("{}:", file.display());
    let alerts = printed.lines().filter_map(|line| line.strip_prefix("[ALERT]"));
    let said = alerts.map(|line| {
        let line = line.split_once(") : ").map_or(line, |(_, said)| said);
        line.trim().trim_start_matches("config : ").replace(&draft, "line ")
    });
    // The last two only say that there were errors.
    said.filter(|line| !line.contains("rror(s) found") && !line.starts_with("Fatal errors"))
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_line_and_not_the_draft() {
        let printed = "\
[NOTICE]   (42) : haproxy version is 2.6.12
[ALERT]    (42) : config : parsing [/run/kvip/.x:7] : unknown keyword 'a' in 'global' section
[ALERT]    (42) : config : Error(s) found in configuration file : /run/kvip/.x
[ALERT]    (42) : config : Fatal errors found in configuration.
";
        let said = what_it_said(printed, Path::new("/run/kvip/.x"));
        assert_eq!(said, "parsing [line 7] : unknown keyword 'a' in 'global' section");
    }
}
