//! The annotations of Services that kvip reads: the one table of their names.

use super::NamePattern;
use super::keys::closest;

/// All of them, without `kvip.io/`. Those of EndpointSlices (`weight` and `weights`) and those that kvip writes on objects of
/// its own are not among them.
pub const ANNOTATIONS: [&str; 27] = [
    "vips",
    "pool",
    "share-key",
    "mode",
    "scheduler",
    "scheduler-flags",
    "persistence-netmask",
    "persistence-netmask-v6",
    "thresholds",
    "one-packet",
    "tunnel",
    "zone-weights",
    "proxy-protocol",
    "check",
    "check-path",
    "check-status",
    "check-host",
    "check-port",
    "check-every",
    "check-timeout",
    "check-rise",
    "check-fall",
    "check-unhealthy",
    "check-all-unhealthy",
    "check-service",
    "check-send",
    "check-expect",
];

/// What may come after `kvip.io/check-`.
pub(super) fn check_words() -> impl Iterator<Item = &'static str> {
    ANNOTATIONS.iter().filter_map(|name| name.strip_prefix("check-"))
}

/// That `pattern` is no annotation's name, nor the beginning of one, and what was probably meant.
pub(super) fn none_called(pattern: &NamePattern) -> Option<String> {
    if ANNOTATIONS.iter().any(|name| pattern.matches(name)) {
        return None;
    }
    let written = pattern.as_str().trim_end_matches('*');
    let mend = match closest(written, ANNOTATIONS.iter().map(|name| (*name, *name))) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => {
            let short = ANNOTATIONS.iter().filter(|name| !name.starts_with("check-")).copied();
            format!("there are {}", short.chain(["check-*"]).collect::<Vec<_>>().join(", "))
        }
    };
    Some(format!("no annotation of Services is called so; {mend}"))
}
