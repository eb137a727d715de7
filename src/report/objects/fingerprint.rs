//! The settings that must be the same on all nodes, as one line that can be compared without being known in full.
//!
//! Pure. The line is `key=value` pairs in the order of their keys, only of keys that are not at their default: so a
//! version that knows a key more writes the same line while nobody sets it. A long value stands as its hash.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Serialize;

use crate::config::{
    AddressRange, Checks, Group, NamePattern, Pool, SchedulerFlag, Settings, Static, Tenant, Vrrp,
    format_duration,
};
use crate::rank;

/// Longer values stand as a hash: all pairs should fit the note of an Event, 1024 bytes.
const VALUE_LIMIT: usize = 32;

type Pairs = BTreeMap<&'static str, String>;

/// What of `settings` must be the same on all nodes.
pub fn fingerprint(settings: &Settings) -> String {
    let pairs = unlike(all(settings), &all(&Settings::standard(Vec::new())));
    pairs.iter().map(|(key, value)| format!("{key}={}", short(value))).collect::<Vec<_>>().join(" ")
}

/// How the settings `there` differ from those `here`, in words.
pub fn differences(there: &str, here: &str) -> String {
    let [there, here] = [there, here].map(parse);
    let keys: std::collections::BTreeSet<&str> = there.keys().chain(here.keys()).copied().collect();
    let differing = keys.into_iter().filter(|key| there.get(key) != here.get(key));
    differing.map(|key| difference(key, there.get(key), here.get(key))).collect::<Vec<_>>().join(", ")
}

fn difference(key: &str, there: Option<&&str>, here: Option<&&str>) -> String {
    let is_hash = |value: Option<&&str>| value.is_some_and(|value| value.starts_with('#'));
    if is_hash(there) || is_hash(here) {
        return format!("{key} is not the same");
    }
    let [there, here] = [there, here].map(|value| value.copied().unwrap_or("the default"));
    format!("{key} is {there} there and {here} here")
}

fn parse(line: &str) -> BTreeMap<&str, &str> {
    line.split(' ').filter_map(|pair| pair.split_once('=')).collect()
}

fn short(value: &str) -> String {
    let plain = value.len() <= VALUE_LIMIT && value.bytes().all(|byte| byte.is_ascii_graphic());
    if plain && !value.starts_with('#') {
        return value.to_owned();
    }
    format!("#{:08x}", rank::weight(value.as_bytes(), "") >> 32)
}

/// The pairs that are not as in `other`.
fn unlike(mut pairs: Pairs, other: &Pairs) -> Pairs {
    pairs.retain(|key, value| other.get(key) != Some(value));
    pairs
}

fn all(settings: &Settings) -> Pairs {
    let Settings { cluster, allowed, balancing, asking, .. } = settings;
    let mut pairs = vrrp(&settings.vrrp);
    pairs.extend(checks(&settings.checks));
    pairs.extend([
        ("cluster.config_map", cluster.config_map.to_string()),
        ("cluster.service_ranges", set(&cluster.service_ranges)),
        ("cluster.stale_after", format_duration(cluster.stale_after)),
        ("vips.allowed", set(allowed)),
        ("balancing.mode", word(&balancing.mode)),
        ("balancing.scheduler", word(&balancing.scheduler)),
        ("balancing.scheduler_flags", SchedulerFlag::listed(&balancing.scheduler_flags)),
        ("balancing.tunnel", balancing.tunnel.to_string()),
        ("balancing.drain_limit", format_duration(balancing.drain_limit)),
        ("balancing.beside_kube_proxy_ipvs", balancing.beside_kube_proxy_ipvs.to_string()),
        ("balancing.sync", balancing.sync.on.to_string()),
        ("balancing.sync_id", balancing.sync.id.map(|id| id.to_string()).unwrap_or_default()),
        ("asking.annotations", asking.annotations.to_string()),
        ("asking.load_balancers", word(&asking.load_balancers)),
        ("asking.external_ips", asking.external_ips.to_string()),
        ("asking.allocators", labels(&asking.allocators)),
        ("asking.takeover_after", format_duration(asking.takeover_after)),
        ("pools", list(&settings.pools, pool)),
        ("tenants", list(&settings.tenants, tenant)),
        ("static", list(&settings.statics, fixed)),
        ("groups", list(&settings.groups, |item| group(item, &settings.vrrp))),
    ]);
    pairs
}

fn vrrp(vrrp: &Vrrp) -> Pairs {
    Pairs::from([
        ("vrrp.vrid", vrrp.vrid.to_string()),
        ("vrrp.advert", format_duration(vrrp.advert)),
        ("vrrp.transport", word(&vrrp.transport)),
        ("vrrp.members", labels(&vrrp.members)),
        ("vrrp.excluded_too", vrrp.excluded_too.to_string()),
    ])
}

fn checks(checks: &Checks) -> Pairs {
    Pairs::from([
        ("checks.kind", word(&checks.kind)),
        ("checks.every", format_duration(checks.every)),
        ("checks.timeout", format_duration(checks.timeout)),
        ("checks.rise", checks.rise.to_string()),
        ("checks.fall", checks.fall.to_string()),
        ("checks.unhealthy", word(&checks.unhealthy)),
        ("checks.all_unhealthy", word(&checks.all_unhealthy)),
        ("checks.path", checks.path.clone()),
        ("checks.status", checks.status.to_string()),
        ("checks.host", checks.host.clone().unwrap_or_default()),
    ])
}

fn pool(pool: &Pool) -> Pairs {
    let defaults = Pairs::from([
        ("auto_assign", "true".to_owned()),
        ("priority", "0".to_owned()),
        ("avoid_0_255", "false".to_owned()),
    ]);
    let pairs = Pairs::from([
        ("name", pool.name.clone()),
        ("addresses", ranges(&pool.addresses)),
        ("auto_assign", pool.auto_assign.to_string()),
        ("priority", pool.priority.to_string()),
        ("namespaces", patterns(&pool.namespaces)),
        ("namespace_labels", labels(&pool.namespace_labels)),
        ("service_labels", labels(&pool.service_labels)),
        ("avoid_0_255", pool.avoid_0_255.to_string()),
    ]);
    unlike(pairs, &defaults)
}

fn tenant(tenant: &Tenant) -> Pairs {
    Pairs::from([
        ("namespaces", patterns(&tenant.namespaces)),
        ("namespace_labels", labels(&tenant.namespace_labels)),
        ("pools", patterns(&tenant.pools)),
        ("addresses", ranges(&tenant.addresses)),
        (
            "annotations",
            tenant.annotations.as_ref().map(|names| format!("[{}]", patterns(names))).unwrap_or_default(),
        ),
    ])
}

/// A host that holds no VIPs of its group needs it too: so that nobody is given its address.
fn fixed(fixed: &Static) -> Pairs {
    Pairs::from([
        ("vip", fixed.vip.to_string()),
        ("protocol", fixed.protocol.to_string()),
        ("port", fixed.port.to_string()),
        ("backends", set(&fixed.backends)),
    ])
}

/// A group without its interface, which is the host's; of how it speaks only what is not as in `[vrrp]`.
fn group(group: &Group, base: &Vrrp) -> Pairs {
    let mut pairs = unlike(vrrp(&group.vrrp), &vrrp(base));
    pairs.insert("name", group.name.clone());
    pairs.insert("addresses", ranges(&group.addresses));
    pairs
}

/// Items in their order, each as its pairs; a pair without a value is left out, as is one that a later version adds.
fn list<T>(items: &[T], pairs: impl Fn(&T) -> Pairs) -> String {
    let item = |item| {
        let pairs = pairs(item).into_iter().filter(|(_, value)| !value.is_empty());
        pairs.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
    };
    items.iter().map(item).collect::<Vec<_>>().join("|")
}

/// Values whose order says nothing.
fn set(values: &[impl Display]) -> String {
    let mut texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    texts.sort();
    texts.dedup();
    texts.join(",")
}

fn ranges(ranges: &[AddressRange]) -> String {
    ranges.iter().map(|range| format!("{}-{}", range.first(), range.last())).collect::<Vec<_>>().join(",")
}

fn patterns(patterns: &[NamePattern]) -> String {
    set(&patterns.iter().map(NamePattern::as_str).collect::<Vec<_>>())
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The word that stands for a value in the settings' files.
fn word(value: &impl Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().map_or_else(|| json.to_string(), str::to_owned)
}

#[cfg(test)]
#[path = "fingerprint_tests.rs"]
mod tests;
