//! What the values of `[checks]` and of the annotations `kvip.io/check…` may be.
//!
//! Pure. An error is the last part of a problem's line: what is allowed, or what to write instead.

use std::time::Duration;

use hyper::http::uri::{Authority, PathAndQuery};

use super::raw::Raw;
use super::values::{named, number, stepped, text};
use super::{AllUnhealthy, CheckKind, Unhealthy};
use crate::health::check::Statuses;

/// Longer than any path, name or datagram that a check needs.
const TEXT_MAX: usize = 1024;
/// A gRPC service's name is written with its length in one byte, which holds up to 127.
const SERVICE_MAX: usize = 100;

/// What endpoints are asked.
pub(super) fn kind(raw: Raw) -> Result<CheckKind, String> {
    named(text(raw)?).ok_or_else(|| "one of none, tcp, http, https, grpc, udp".into())
}

/// The time between two checks: often enough to be of use, seldom enough for thousands.
pub(super) fn every(raw: Raw) -> Result<Duration, String> {
    stepped(raw, Duration::from_secs(1)..=Duration::from_secs(3600), Duration::from_millis(1))
}

/// How long an answer may take.
pub(super) fn timeout(raw: Raw) -> Result<Duration, String> {
    stepped(raw, Duration::from_millis(100)..=Duration::from_secs(60), Duration::from_millis(1))
}

/// How many findings in a row.
pub(super) fn in_a_row(raw: Raw) -> Result<u8, String> {
    let usable = |count: i64| u8::try_from(count).ok().filter(|count| (1..=10).contains(count));
    number(raw, usable, "a whole number from 1 to 10")
}

/// What becomes of an endpoint that does not answer.
pub(super) fn unhealthy(raw: Raw) -> Result<Unhealthy, String> {
    named(text(raw)?).ok_or_else(|| "\"drain\" or \"remove\"".into())
}

/// What becomes of a frontend when none answers.
pub(super) fn all_unhealthy(raw: Raw) -> Result<AllUnhealthy, String> {
    named(text(raw)?).ok_or_else(|| "\"serve\" or \"refuse\"".into())
}

/// A page's path, with its query where it has one.
pub(super) fn path(raw: Raw) -> Result<String, String> {
    let path = text(raw)?;
    let good = path.starts_with('/') && path.len() <= TEXT_MAX && !path.contains('#');
    let parsed = path.parse::<PathAndQuery>().ok().filter(|_| good);
    parsed.map(|path| path.to_string()).ok_or_else(|| "a path from / on, as in \"/healthz\"".into())
}

/// Status codes.
pub(super) fn status(raw: Raw) -> Result<Statuses, String> {
    text(raw)?.parse().map_err(|error: crate::health::check::NotStatuses| error.to_string())
}

/// The header Host; empty: the endpoint's address.
pub(super) fn host(raw: Raw) -> Result<Option<String>, String> {
    let host = text(raw)?;
    let good = host.parse::<Authority>().is_ok() && host.len() <= TEXT_MAX && !host.contains('@');
    if host.is_empty() || good {
        return Ok(Some(host.to_owned()).filter(|host| !host.is_empty()));
    }
    Err("a name, with a port where one is needed, as in \"shop.example\"".into())
}

/// A gRPC service's name.
pub(super) fn service(raw: Raw) -> Result<String, String> {
    let name = text(raw)?;
    if name.len() <= SERVICE_MAX && name.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(name.to_owned());
    }
    Err(format!("up to {SERVICE_MAX} characters without spaces, as in \"shop.v1.Cart\""))
}

/// Bytes: as text, or as hexadecimal digits after `0x`.
pub(super) fn payload(raw: Raw) -> Result<Vec<u8>, String> {
    let text = text(raw)?;
    let wanted = || format!("text, or 0x and pairs of hexadecimal digits, of up to {TEXT_MAX} bytes");
    let bytes = match text.strip_prefix("0x") {
        Some(digits) => hexadecimal(digits).ok_or_else(wanted)?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.len() <= TEXT_MAX { Ok(bytes) } else { Err(wanted()) }
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = digits.chars().map(|c| c.to_digit(16)?.try_into().ok()).collect::<Option<_>>()?;
    let pairs = digits.chunks(2).map(|pair| Some(pair[0] << 4 | pair.get(1)?));
    pairs.collect()
}
