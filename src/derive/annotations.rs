//! Reads the annotations of a Service, word by word.
//!
//! Pure. The error of a parser is the rest of a sentence that begins "… is not": what is allowed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::aliases::{POOL, SHARE_KEY, VIPS};
use super::load_balancer::CLASS;
use super::{Inputs, policy};
use crate::config::{ANNOTATIONS, Mode, ProxyProtocol, Scheduler, SchedulerFlag, closest};
use crate::ipvs::model::{Thresholds, Tunnel};
use crate::model::{Finding, ObjectKey};
use crate::snapshot::{Service, WEIGHTS_WANTED};

/// What the names of kvip's annotations begin with.
const PREFIX: &str = "kvip.io/";
/// The annotations that ask for an address.
const ASKING: [&str; 3] = [VIPS, POOL, SHARE_KEY];
/// Those that only Services of type LoadBalancer use.
const OF_POOLS: [&str; 2] = [POOL, SHARE_KEY];
/// Those of EndpointSlices.
const OF_SLICES: [&str; 2] = ["weight", "weights"];
/// What some write for the kind of a check, which is called `check` alone.
const KIND_OF_CHECK: [&str; 2] = ["check-kind", "check-type"];

/// The annotations of `service` that come to nothing whatever else it says: those whose names nobody knows, and those of pools
/// where it `uses_pools` not.
pub fn idle(key: &ObjectKey, service: &Service, uses_pools: bool) -> Vec<Finding> {
    let ours = service.annotations.keys().filter(|name| name.starts_with(PREFIX));
    let why = ours.filter_map(|name| Some((name, unknown(name).or_else(|| of_pools(name, uses_pools))?)));
    why.map(|(name, why)| finding(key, name, &format!("annotation {name} {why}"))).collect()
}

fn of_pools(name: &str, uses_pools: bool) -> Option<String> {
    let idle = !uses_pools && OF_POOLS.contains(&name);
    idle.then(|| format!("has no effect: it counts only on type LoadBalancer with class {CLASS}"))
}

/// What is to be said of the annotation `name` of a Service, if it begins as kvip's do and is none.
fn unknown(name: &str) -> Option<String> {
    let word = name.strip_prefix(PREFIX).filter(|word| !ANNOTATIONS.contains(word))?;
    if OF_SLICES.contains(&word) {
        return Some("has no effect: it counts on EndpointSlices alone".into());
    }
    let nearest = if KIND_OF_CHECK.iter().any(|kind| kind.eq_ignore_ascii_case(word)) {
        Some("check")
    } else {
        closest(word, ANNOTATIONS.iter().map(|known| (*known, *known)))
    };
    Some(match nearest {
        Some(known) => format!("is not known; did you mean {PREFIX}{known}?"),
        None if word.starts_with("check") => {
            format!("is not known: after {PREFIX}check there may be {}", of_checks().join(", "))
        }
        None => "is not known".into(),
    })
}

/// What the annotations that say how endpoints are checked have after their beginning.
fn of_checks() -> Vec<&'static str> {
    let rest = ANNOTATIONS.iter().filter_map(|known| known.strip_prefix("check"));
    rest.filter(|rest| !rest.is_empty()).collect()
}

/// Whether the annotation `name` is one of kvip's on Services.
pub fn is_known(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|word| ANNOTATIONS.contains(&word))
}

/// `service` without the annotations that its tenants may not use, each of which is a finding. Those that ask for addresses are
/// bound by the tenants' pools and addresses alone.
pub fn permitted<'a>(
    inputs: &Inputs,
    key: &ObjectKey,
    service: &'a Service,
    findings: &mut Vec<Finding>,
) -> Cow<'a, Service> {
    let Some(allowed) = policy::annotations_of(inputs, &key.namespace) else { return Cow::Borrowed(service) };
    let is_free = |name: &str| {
        let known = name.strip_prefix(PREFIX).filter(|_| is_known(name) && !ASKING.contains(&name));
        known.is_none_or(|known| allowed.iter().any(|pattern| pattern.matches(known)))
    };
    let mut permitted = service.clone();
    permitted.annotations.retain(|name, _| is_free(name));
    for name in service.annotations.keys().filter(|name| !is_free(name)) {
        let may_use = match allowed[..] {
            [] => "none".to_owned(),
            _ => {
                allowed.iter().map(|name| format!("{PREFIX}{}", name.as_str())).collect::<Vec<_>>().join(", ")
            }
        };
        let text = format!(
            "annotation {name} ignored: of such annotations namespace {} may use {may_use}",
            key.namespace
        );
        findings.push(finding(key, name, &text));
    }
    Cow::Owned(permitted)
}

/// Reads annotations, and notes those that say nothing sensible.
pub struct Reader<'a> {
    /// The Service's key.
    pub key: &'a ObjectKey,
    /// The Service.
    pub service: &'a Service,
    /// What is wrong.
    pub findings: &'a mut Vec<Finding>,
}

impl Reader<'_> {
    /// What the annotation `name` says, if it says something that `parse` takes.
    pub fn read<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let said = self.service.annotations.get(name)?.trim();
        match parse(said) {
            Ok(value) => Some(value),
            Err(allowed) => {
                self.ignore(name, &format!("\"{said}\" is not {allowed}"));
                None
            }
        }
    }

    /// Notes that the annotation `name` does not count.
    pub fn ignore(&mut self, name: &str, why: &str) {
        self.findings.push(finding(self.key, name, &format!("annotation {name} ignored: {why}")));
    }
}

/// What is to be said of the annotation `name`, which can be taken off.
pub fn finding(key: &ObjectKey, name: &str, text: &str) -> Finding {
    let mend = format!("kubectl -n {} annotate service {} {name}-", key.namespace, key.name);
    Finding::new(key, text).mend(mend)
}

/// The command that makes `change`, as `NAME=VALUE`, or `NAME-` to take it off.
pub fn annotate(key: &ObjectKey, change: &str) -> String {
    format!("kubectl -n {} annotate --overwrite service {} {change}", key.namespace, key.name)
}

/// A forwarding mode.
pub fn mode(text: &str) -> Result<Mode, String> {
    Mode::named(text).ok_or_else(|| either(&Mode::ALL.map(Mode::name)))
}

/// What servers are told of clients in mode proxy.
pub fn proxy_protocol(text: &str) -> Result<ProxyProtocol, String> {
    ProxyProtocol::named(text).ok_or_else(|| either(&ProxyProtocol::ALL.map(ProxyProtocol::name)))
}

/// An IPVS scheduler.
pub fn scheduler(text: &str) -> Result<Scheduler, String> {
    Scheduler::named(text).ok_or_else(|| either(&Scheduler::ALL.map(Scheduler::name)))
}

/// Flags of `scheduler`.
pub fn scheduler_flags(scheduler: Scheduler, text: &str) -> Result<BTreeSet<SchedulerFlag>, String> {
    let its: Vec<&str> = SchedulerFlag::ALL
        .into_iter()
        .filter(|flag| flag.scheduler() == scheduler)
        .map(SchedulerFlag::name)
        .collect();
    let wanted = || match its[..] {
        [] => format!("a flag of scheduler {}, which has none; sh and mh have some", scheduler.name()),
        _ => format!("a list of flags of scheduler {}: {}", scheduler.name(), its.join(", ")),
    };
    let flags = SchedulerFlag::list(text).filter(|flags| flags.iter().all(|flag| its.contains(&flag.name())));
    flags.ok_or_else(wanted)
}

/// Yes or no.
pub fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "true or false".into())
}

/// How many leading bits of IPv4 addresses count: as a prefix length, or as a mask.
pub fn prefix_v4(text: &str) -> Result<u8, String> {
    let of_mask = |mask: Ipv4Addr| ipnet::ip_mask_to_prefix(mask.into()).ok();
    let bits = text.parse().ok().or_else(|| text.parse().ok().and_then(of_mask));
    bits.filter(|bits| (1..=32).contains(bits))
        .ok_or_else(|| "a prefix length, 1 to 32, or a mask, as 255.255.255.0".into())
}

/// How many leading bits of IPv6 addresses count.
pub fn prefix_v6(text: &str) -> Result<u8, String> {
    let bits = text.parse().ok().filter(|bits| (1..=128).contains(bits));
    bits.ok_or_else(|| "a prefix length, 1 to 128".into())
}

/// `UPPER` or `LOWER-UPPER`.
pub fn thresholds(text: &str) -> Result<Thresholds, String> {
    let (lower, upper) = text.split_once('-').map_or((None, text), |(lower, upper)| (Some(lower), upper));
    let number = |text: &str| text.trim().parse().ok().filter(|number| *number > 0);
    let read = || {
        let upper = number(upper)?;
        let lower = lower.map_or(Some(0), number)?;
        (lower <= upper).then_some(Thresholds { upper, lower })
    };
    read().ok_or_else(|| "UPPER or LOWER-UPPER, numbers of connections from 1 on, as 80-100".into())
}

/// How packets are wrapped.
pub fn tunnel(text: &str) -> Result<Tunnel, String> {
    Tunnel::named(text).ok_or_else(|| Tunnel::WANTED.into())
}

/// Weights by zone.
pub fn zone_weights(text: &str) -> Result<BTreeMap<String, u16>, String> {
    let pair = |part: &str| {
        let (zone, weight) = part.split_once('=')?;
        let zone = zone.trim();
        (!zone.is_empty()).then_some((zone.to_owned(), weight.trim().parse().ok()?))
    };
    let weights: Option<BTreeMap<_, _>> = text.split(',').map(pair).collect();
    weights
        .filter(|weights| weights.len() == text.split(',').count())
        .ok_or_else(|| format!("ZONE=WEIGHT with commas between them, each zone once, {WEIGHTS_WANTED}"))
}

/// `a, b or c`.
fn either(words: &[&str]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}
