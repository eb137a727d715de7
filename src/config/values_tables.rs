//! What the values of pools, tenants, groups and static VIPs may be, as `values` says it for the other settings.
//!
//! Pure. An error is the last part of a problem's line: what is allowed, or what to write instead.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::raw::Raw;
use super::values::{is_dns_label, named, network, number, text, unusable};
use super::{AddressRange, NamePattern};
use crate::model::Protocol;

/// What a list of addresses looks like, said when something else is found.
pub(super) const RANGES_WANTED: &str =
    "a list of addresses is wanted, as in [\"10.87.2.64/28\", \"10.87.2.100-10.87.2.120\"]";

/// What a list of namespaces looks like.
pub(super) const NAMESPACES_WANTED: &str = "a list of namespaces is wanted, as in [\"shop\", \"team-*\"]";

/// What a list of pools looks like.
pub(super) const POOLS_WANTED: &str = "a list of pools is wanted, as in [\"public\", \"test-*\"]";

/// What a list of annotations looks like.
pub(super) const ANNOTATIONS_WANTED: &str =
    "a list of annotations without kvip.io/ is wanted, as in [\"scheduler\", \"check*\"]";

/// What a list of backends looks like.
pub(super) const BACKENDS_WANTED: &str = "a list of backends is wanted, as in [\"10.87.2.4:6443\"]";

/// The name of a pool or a group, which annotations and file names can hold.
pub(super) fn label(raw: Raw) -> Result<String, String> {
    let name = text(raw)?;
    if is_dns_label(name) {
        return Ok(name.to_owned());
    }
    Err("a name is 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends".into())
}

/// A name that only people read.
pub(super) fn title(raw: Raw) -> Result<String, String> {
    let name = text(raw)?.trim();
    let length = name.chars().count();
    if (1..=63).contains(&length) && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err("a name is 1 to 63 characters on one line".into())
}

/// A name, or the beginning of names with `*` at its end.
pub(super) fn name_pattern(raw: Raw) -> Result<NamePattern, String> {
    let pattern = text(raw)?;
    let start = pattern.strip_suffix('*');
    // Whatever can begin a name can be made one by a letter more.
    if start.map_or(is_dns_label(pattern), |start| start.len() < 63 && is_dns_label(&format!("{start}a"))) {
        return Ok(NamePattern::new(pattern));
    }
    Err("a name, or the beginning of names with one * at its end, as in \"team-*\"".into())
}

/// The name of an annotation without what all of them begin with, or the beginning of names with `*` at its end.
pub(super) fn annotation_pattern(raw: Raw) -> Result<NamePattern, String> {
    match text(raw)?.strip_prefix("kvip.io/") {
        Some(name) => Err(format!("write it without kvip.io/: \"{name}\"")),
        None => name_pattern(raw),
    }
}

/// A network, a range or one address, all of them addresses that a VIP could be.
pub(super) fn address_range(raw: Raw) -> Result<AddressRange, String> {
    let written = text(raw)?;
    let range = match written.split_once('-') {
        _ if written.contains('/') => network(raw)?.into(),
        Some((first, last)) => first_to_last(first.trim(), last.trim())?,
        None => IpNet::from(address(written)?).into(),
    };
    match unusable(range) {
        Some(why) => Err(format!("no VIP can lie in {why}")),
        None => Ok(range),
    }
}

fn first_to_last(first: &str, last: &str) -> Result<AddressRange, String> {
    let (first, last) = (address(first)?, address(last)?);
    AddressRange::new(first, last).ok_or_else(|| {
        if first.is_ipv4() == last.is_ipv4() {
            format!("the range runs backwards; write \"{last}-{first}\"")
        } else {
            "a range lies in one family: both ends IPv4, or both IPv6".to_owned()
        }
    })
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        "addresses are written \"10.87.2.64/28\", \"10.87.2.100-10.87.2.120\" or \"10.87.2.7\"".to_owned()
    })
}

/// A VIP.
pub(super) fn vip(raw: Raw) -> Result<IpAddr, String> {
    let text = text(raw)?;
    let vip: IpAddr = text.parse().map_err(|_| {
        if text.contains('/') { "an address without a prefix length is wanted" } else { "not an IP address" }
    })?;
    match unusable(IpNet::from(vip).into()) {
        Some(why) => Err(format!("no VIP can lie in {why}")),
        None => Ok(vip),
    }
}

/// A backend: an address that other hosts can reach, and a port.
pub(super) fn backend(raw: Raw) -> Result<SocketAddr, String> {
    let wanted = || "a backend is written \"10.87.2.4:6443\" or \"[fd00:87::4]:6443\"".to_owned();
    let backend: SocketAddr = text(raw)?.parse().map_err(|_| wanted())?;
    if backend.port() == 0 {
        return Err("a port is 1 to 65535".into());
    }
    match unusable(IpNet::from(backend.ip()).into()) {
        Some(why) => Err(format!("no backend can lie in {why}")),
        None => Ok(backend),
    }
}

/// A transport protocol.
pub(super) fn protocol(raw: Raw) -> Result<Protocol, String> {
    named(text(raw)?).ok_or_else(|| "\"tcp\", \"udp\" or \"sctp\"".into())
}

/// A pool's rank among pools.
pub(super) fn priority(raw: Raw) -> Result<i64, String> {
    let usable = |rank: i64| Some(rank).filter(|rank| (-1000..=1000).contains(rank));
    number(raw, usable, "a whole number from -1000 to 1000; pools with a higher one are tried first")
}
