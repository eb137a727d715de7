//! What each setting's value may be: parsers from raw values to the types of [`Settings`](super::Settings).
//!
//! Pure. An error is the last part of a problem's line: what is allowed, or what to write instead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as SerdeError, StrDeserializer};

use super::raw::Raw;
use super::units::{DurationError, format_duration, parse_duration, with_each_unit};
use super::{AddressRange, LoadBalancers, Mode, ProxyProtocol, Scheduler, SchedulerFlag, Shield, Transport};
use crate::ipvs::model::Tunnel;
use crate::marks::MarkBits;
use crate::model::{ObjectKey, Vrid};

/// What a list of networks looks like, said when something else is found.
pub(super) const NETWORKS_WANTED: &str = "a list of networks is wanted, as in [\"10.87.2.0/24\"]";

/// Networks whose addresses can never be VIPs, with the reason.
const UNUSABLE: [(&str, &str); 9] = [
    ("0.0.0.0/8", "\"this network\" addresses, which no host may hold"),
    ("127.0.0.0/8", "loopback addresses"),
    ("169.254.0.0/16", "link-local addresses"),
    ("224.0.0.0/4", "multicast addresses"),
    ("255.255.255.255/32", "the broadcast address"),
    ("::/127", "the unspecified and the loopback address"),
    ("::ffff:0:0/96", "IPv4 addresses written as IPv6; write them as IPv4"),
    ("fe80::/10", "link-local addresses"),
    ("ff00::/8", "multicast addresses"),
];

/// Where cluster objects are read from: true for a folder of manifests, false for a cluster's API.
pub(super) fn from_files(raw: Raw) -> Result<bool, String> {
    match text(raw)? {
        "kubernetes" => Ok(false),
        "files" => Ok(true),
        _ => Err("\"kubernetes\", a cluster's API, or \"files\", a folder of manifests".into()),
    }
}

/// Yes or no.
pub(super) fn truth(raw: Raw) -> Result<bool, String> {
    match raw.value {
        Value::Bool(_, truth) => Ok(*truth),
        Value::String(_, text) if raw.loose => text.trim().parse().map_err(|_| "true or false".into()),
        _ => Err("true or false, without quotes".into()),
    }
}

/// Which Services of type LoadBalancer get addresses.
pub(super) fn load_balancers(raw: Raw) -> Result<LoadBalancers, String> {
    let wanted =
        "\"off\", \"class\" (those of class kvip.io/kvip) or \"default\" (those without a class too)";
    named(text(raw)?).ok_or_else(|| wanted.into())
}

/// Which frontends are kept from kube-proxy.
pub(super) fn shield(raw: Raw) -> Result<Shield, String> {
    let wanted = "\"auto\" (the frontends that kube-proxy has rules for too), \"on\" (all) or \"off\" (none)";
    named(text(raw)?).ok_or_else(|| wanted.into())
}

/// How long the next allocator waits.
pub(super) fn takeover_after(raw: Raw) -> Result<Duration, String> {
    seconds(raw, 1..=600)
}

/// A file's whole path.
pub(super) fn path(raw: Raw) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(raw)?);
    if path.is_absolute() { Ok(path) } else { Err("the whole path is wanted, from / on".into()) }
}

/// `namespace/name`.
pub(super) fn object_key(raw: Raw) -> Result<ObjectKey, String> {
    ObjectKey::parse(text(raw)?)
        .filter(|key| is_dns_label(&key.namespace) && is_dns_subdomain(&key.name))
        .ok_or_else(|| "namespace/name is wanted, as in \"default/vip-configmap\"".into())
}

/// A Node's name.
pub(super) fn node_name(raw: Raw) -> Result<String, String> {
    let name = text(raw)?;
    if is_dns_subdomain(name) {
        return Ok(name.to_owned());
    }
    Err("a Node's name is 1 to 253 lower-case letters, digits, '-' and '.'; see `kubectl get nodes`".into())
}

/// An interface's name: IFNAMSIZ of linux/if.h is 16 with its NUL. keepalived gives meaning to most other signs.
pub(super) fn interface(raw: Raw) -> Result<String, String> {
    let name = text(raw)?;
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
    if (1..=15).contains(&name.len()) && plain && name != "." && name != ".." {
        return Ok(name.to_owned());
    }
    Err("an interface's name is 1 to 15 letters, digits, '.', '_', '-' and '+'; see `ip link`".into())
}

/// An address that a host can speak from.
pub(super) fn unicast_address(raw: Raw) -> Result<IpAddr, String> {
    let text = text(raw)?;
    let address: IpAddr = text.parse().map_err(|_| {
        if text.contains('/') { "an address without a prefix length is wanted" } else { "not an IP address" }
    })?;
    let unusable = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    if unusable || address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err("a unicast address of this host is wanted; see `ip address`".into());
    }
    Ok(address)
}

/// A network without host bits, not the whole family.
pub(super) fn network(raw: Raw) -> Result<IpNet, String> {
    let text = text(raw)?;
    let network: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => {
            format!("needs a prefix length; for that address alone write \"{}\"", IpNet::from(address))
        }
        Err(_) => "not a network, as in \"10.87.2.0/24\" or \"fd00:87::/64\"".to_owned(),
    })?;
    if network.prefix_len() == 0 {
        return Err("every address there is; name the networks that are yours".into());
    }
    if network != network.trunc() {
        return Err(format!("has host bits set; the network is \"{}\"", network.trunc()));
    }
    Ok(network)
}

/// A network that VIPs may come from.
pub(super) fn vip_network(raw: Raw) -> Result<IpNet, String> {
    let network = network(raw)?;
    match unusable(network.into()) {
        Some(why) => Err(format!("no VIP can lie in {why}")),
        None => Ok(network),
    }
}

/// The network of addresses that no host can be reached at which overlaps with `range`, and why.
pub(super) fn unusable(range: AddressRange) -> Option<String> {
    UNUSABLE.into_iter().find_map(|(text, reason)| {
        let network: IpNet = text.parse().expect("the table holds networks");
        range.overlaps(network.into()).then(|| format!("{text}: {reason}"))
    })
}

/// A VRID.
pub(super) fn vrid(raw: Raw) -> Result<Vrid, String> {
    number(raw, Vrid::new, "a VRID is 1 to 255")
}

/// A TCP port.
pub(super) fn port(raw: Raw) -> Result<u16, String> {
    number(raw, |port| u16::try_from(port).ok().filter(|port| *port > 0), "a port is 1 to 65535")
}

/// The advertisement interval, whose unit on the wire is a centisecond (RFC 9568, section 5.2.7).
pub(super) fn advert(raw: Raw) -> Result<Duration, String> {
    stepped(raw, Duration::from_millis(10)..=Duration::from_secs(10), Duration::from_millis(10))
}

/// How long contact with the API may be lost. An idle API server confirms itself once a minute, by bookmarks, so that
/// anything under 2 min would take a quiet cluster for a lost one.
pub(super) fn stale_after(raw: Raw) -> Result<Duration, String> {
    seconds(raw, 120..=86_400)
}

/// How long kvip may be gone; keepalived counts it in whole seconds.
pub(super) fn gone_after(raw: Raw) -> Result<Duration, String> {
    seconds(raw, 1..=3_600)
}

/// How long a drain may last.
pub(super) fn drain_limit(raw: Raw) -> Result<Duration, String> {
    seconds(raw, 0..=3_600)
}

/// How long IPVS remembers a connection in which nothing moves; the kernel counts in whole seconds.
pub(super) fn ipvs_timeout(raw: Raw) -> Result<Duration, String> {
    seconds(raw, 1..=864_000)
}

/// What sync daemons that belong together share.
pub(super) fn sync_id(raw: Raw) -> Result<u8, String> {
    number(raw, |id| u8::try_from(id).ok(), "a sync ID is 0 to 255")
}

/// How adverts travel.
pub(super) fn transport(raw: Raw) -> Result<Transport, String> {
    named(text(raw)?).ok_or_else(|| "\"multicast\" or \"unicast\"".into())
}

/// A forwarding mode.
pub(super) fn mode(raw: Raw) -> Result<Mode, String> {
    Mode::named(text(raw)?).ok_or_else(|| format!("one of {}", Mode::ALL.map(Mode::name).join(", ")))
}

/// A version of the PROXY protocol, or none.
pub(super) fn proxy_protocol(raw: Raw) -> Result<ProxyProtocol, String> {
    ProxyProtocol::named(text(raw)?)
        .ok_or_else(|| format!("one of {}", ProxyProtocol::ALL.map(ProxyProtocol::name).join(", ")))
}

/// An IPVS scheduler.
pub(super) fn scheduler(raw: Raw) -> Result<Scheduler, String> {
    Scheduler::named(text(raw)?)
        .ok_or_else(|| format!("one of {}", Scheduler::ALL.map(Scheduler::name).join(", ")))
}

/// Flags of schedulers, with commas between them; empty text is none.
pub(super) fn scheduler_flags(raw: Raw) -> Result<BTreeSet<SchedulerFlag>, String> {
    SchedulerFlag::list(text(raw)?)
        .ok_or_else(|| format!("some of {}", SchedulerFlag::ALL.map(SchedulerFlag::name).join(", ")))
}

/// How packets are wrapped for a tunnel.
pub(super) fn tunnel(raw: Raw) -> Result<Tunnel, String> {
    Tunnel::named(text(raw)?).ok_or_else(|| Tunnel::WANTED.into())
}

/// Bits of the firewall mark, in hexadecimal digits.
pub(super) fn mark_bits(raw: Raw) -> Result<MarkBits, String> {
    let digits = text(raw)?.strip_prefix("0x").ok_or("hexadecimal digits, as in \"0x1001fff\"")?;
    let bits = u32::from_str_radix(digits, 16).map_err(|_| "up to 8 hexadecimal digits after 0x")?;
    MarkBits::new(bits).ok_or_else(|| "at least three bits are needed".into())
}

/// A routing table of its own: 0 and 253 to 255 are the kernel's.
pub(super) fn route_table(raw: Raw) -> Result<u32, String> {
    let usable = |table: i64| u32::try_from(table).ok().filter(|table| !matches!(table, 0 | 253..=255));
    number(raw, usable, "a routing table, 1 to 4294967295, but not 253 to 255, which are the kernel's")
}

/// A rule's priority: before the kernel's own of the table main, after that of the table local.
pub(super) fn rule_priority(raw: Raw) -> Result<u32, String> {
    let usable = |priority: i64| u32::try_from(priority).ok().filter(|one| (1..=32_765).contains(one));
    number(raw, usable, "1 to 32765")
}

/// A selector of labels, `key=value,key2=value2`; empty text selects all.
pub(super) fn selector(raw: Raw) -> Result<BTreeMap<String, String>, String> {
    let Value::String(_, selector) = raw.value else {
        return Err("a selector in quotes is wanted, as in \"node-role=edge\"".into());
    };
    let mut labels = BTreeMap::new();
    for part in selector.split(',').map(str::trim).filter(|_| !selector.trim().is_empty()) {
        let (key, value) = part
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()))
            .ok_or("a selector is key=value pairs joined by commas, as in \"node-role=edge\"")?;
        if !is_label_key(key) {
            return Err(format!("\"{key}\" is not a label's key"));
        }
        if !(value.is_empty() || is_label_part(value)) {
            return Err(format!("\"{value}\" is not a label's value"));
        }
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("the label {key} is given twice"));
        }
    }
    Ok(labels)
}

pub(super) fn text(raw: Raw<'_>) -> Result<&str, String> {
    match raw.value {
        Value::String(_, text) => Ok(text),
        _ => Err("text in quotes is wanted".into()),
    }
}

/// A number that `usable` takes; `allowed` says which are. One in quotes is told that these are what is wrong.
pub(super) fn number<T>(raw: Raw, usable: impl Fn(i64) -> Option<T>, allowed: &str) -> Result<T, String> {
    match raw.value {
        Value::String(..) if !raw.loose => Err(format!("a number, without quotes: {allowed}")),
        _ => integer(raw).and_then(usable).ok_or_else(|| allowed.to_owned()),
    }
}

fn integer(raw: Raw) -> Option<i64> {
    match raw.value {
        Value::String(_, text) if raw.loose => text.trim().parse().ok(),
        other => other.to_i128().and_then(|number| i64::try_from(number).ok()),
    }
}

fn seconds(raw: Raw, range: RangeInclusive<u64>) -> Result<Duration, String> {
    let range = Duration::from_secs(*range.start())..=Duration::from_secs(*range.end());
    stepped(raw, range, Duration::from_secs(1))
}

pub(super) fn stepped(raw: Raw, range: RangeInclusive<Duration>, step: Duration) -> Result<Duration, String> {
    let allowed = format!("{} to {}", format_duration(*range.start()), format_duration(*range.end()));
    let fits = |duration: &Duration| {
        range.contains(duration) && duration.as_millis().is_multiple_of(step.as_millis())
    };
    let duration = duration(raw, &allowed, fits)?;
    if !range.contains(&duration) {
        return Err(allowed);
    }
    if !duration.as_millis().is_multiple_of(step.as_millis()) {
        return Err(format!("a multiple of {}", format_duration(step)));
    }
    Ok(duration)
}

/// A bare number gets the mend: the same number with each unit with which it `fits` into what is `allowed`.
fn duration(raw: Raw, allowed: &str, fits: impl Fn(&Duration) -> bool) -> Result<Duration, String> {
    let bare = |number: u64| {
        let mut good: Vec<_> = with_each_unit(number).filter(|(_, duration)| fits(duration)).collect();
        // Nothing is the same in all units.
        good.dedup_by_key(|(_, duration)| *duration);
        let words: Vec<String> = good.into_iter().map(|(text, _)| format!("\"{text}\"")).collect();
        let mend = if words.is_empty() { String::new() } else { format!(": {}", either(&words)) };
        format!("needs a unit, {allowed}{mend}")
    };
    let text = match raw.value {
        Value::String(_, text) => text.trim(),
        Value::Num(..) => {
            let number = integer(raw).and_then(|number| u64::try_from(number).ok());
            return Err(number.map_or_else(duration_wanted, bare));
        }
        _ => return Err(duration_wanted()),
    };
    parse_duration(text).map_err(|error| match (error, text.parse()) {
        (DurationError::NoUnit, Ok(number)) => bare(number),
        (other, _) => other.to_string(),
    })
}

/// `a, b or c`.
fn either(words: &[String]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}

fn duration_wanted() -> String {
    "a duration in quotes is wanted, as in \"250ms\" or \"5m\"".to_owned()
}

/// The variant that serde calls `name`.
pub(super) fn named<'de, T: Deserialize<'de>>(name: &'de str) -> Option<T> {
    let deserializer: StrDeserializer<'de, SerdeError> = name.into_deserializer();
    T::deserialize(deserializer).ok()
}

/// RFC 1123 label: what a namespace is called.
pub(super) fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 1123 subdomain: what most objects are called.
pub(super) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// A label's key: a name, after a DNS subdomain and `/` where it has a prefix.
fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_part(name),
        None => is_label_part(text),
    }
}

/// A label's name or non-empty value: 1 to 63 letters, digits, `-`, `_` and `.`, alphanumeric at both ends.
fn is_label_part(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    text.len() <= 63 && inner && ends(text.chars().next()) && ends(text.chars().last())
}
