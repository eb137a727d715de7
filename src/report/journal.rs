//! Where log lines go: the journal with its fields when it listens, otherwise standard error for people.
//!
//! In the journal an event's fields become `KVIP_…`; `journalctl` shows the message alone, so the message must say the
//! fact and the fields serve searching: `journalctl KVIP_VIP=10.87.2.50`.

use std::io::{self, IsTerminal};

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that says what is logged, such as `debug` or `kvip::ipvs=trace,info`.
pub const FILTER_VARIABLE: &str = "KVIP_LOG";

/// What is logged when the variable does not say.
const DEFAULT_FILTER: &str = "info,kube_client=off";

/// Starts logging for the process; a second call changes nothing.
pub fn init() {
    let wanted = std::env::var(FILTER_VARIABLE).ok();
    let (filter, problem) = filter(wanted.as_deref());
    let journal = if stderr_is_journal() { journal_layer() } else { None };
    let people = journal.is_none().then(|| {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(colour)
    });
    let started = tracing_subscriber::registry().with(filter).with(journal).with(people).try_init();
    if let (Ok(()), Some(problem)) = (started, problem) {
        tracing::warn!("{problem}");
    }
}

/// The journal's layer; none when the journal cannot be reached, although standard error leads to it.
///
/// Levels keep their names: the layer's own default makes info a notice and debug informational.
fn journal_layer() -> Option<tracing_journald::Layer> {
    let priorities =
        PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    let layer = tracing_journald::layer().ok()?;
    Some(
        layer
            .with_field_prefix(Some("KVIP".to_owned()))
            .with_syslog_identifier("kvip".to_owned())
            .with_priority_mappings(priorities),
    )
}

/// The filter that `wanted` describes, or the default and what is wrong.
fn filter(wanted: Option<&str>) -> (EnvFilter, Option<String>) {
    let default = || EnvFilter::new(DEFAULT_FILTER);
    let Some(wanted) = wanted.filter(|text| !text.trim().is_empty()) else { return (default(), None) };
    match EnvFilter::builder().parse(wanted) {
        Ok(filter) => (filter, None),
        Err(error) => {
            (default(), Some(format!("{FILTER_VARIABLE} = {wanted}: {error}; logging at {DEFAULT_FILTER}")))
        }
    }
}

/// Whether systemd connected standard error to the journal, and nobody has redirected it since.
fn stderr_is_journal() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), stat.st_dev, stat.st_ino)
}

/// systemd.exec(5), `$JOURNAL_STREAM`: device and inode of the stream, decimal, with a colon between.
fn is_journal(stream: Option<&str>, device: u64, inode: u64) -> bool {
    let parts = stream.and_then(|stream| stream.split_once(':'));
    parts.is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_journal(Some("9:31337"), 9, 31337));
        for stream in
            [None, Some(""), Some("9"), Some("9:31338"), Some("8:31337"), Some("9:31337:1"), Some("x:y")]
        {
            assert!(!is_journal(stream, 9, 31337), "{stream:?}");
        }
    }

    #[test]
    fn a_wrong_filter_is_told_and_replaced() {
        assert_eq!(filter(None).0.to_string(), filter(Some(" ")).0.to_string());
        let fallback = EnvFilter::new(DEFAULT_FILTER).to_string();
        let (good, problem) = filter(Some("kvip=debug"));
        assert_eq!((good.to_string().as_str(), problem), ("kvip=debug", None));
        let (default, problem) = filter(Some("kvip=loud"));
        assert_eq!(default.to_string(), fallback);
        assert!(problem.is_some_and(|text| text.starts_with("KVIP_LOG = kvip=loud: ")));
    }
}
