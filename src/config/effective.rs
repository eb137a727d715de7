//! The settings as one would write them: what `kvip check` shows.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::units::format_duration;
use super::{AddressRange, Group, KEYS, NamePattern, Pool, SchedulerFlag, Settings, Static, Tenant};

/// Each key with its value in force, in the order of the installed file; null where a value is still to be found out. A
/// list of tables gives a row for each key of each table, `pools.0.name`, or an empty list where there is none.
pub fn effective(settings: &Settings) -> Vec<(String, Value)> {
    let mut rows: Vec<(String, Value)> =
        KEYS.iter().map(|key| (key.path.to_owned(), value(settings, key.path))).collect();
    rows.extend(tables("pools", &settings.pools, pool));
    rows.extend(tables("tenants", &settings.tenants, tenant));
    rows.extend(tables("groups", &settings.groups, group));
    rows.extend(tables("static", &settings.statics, static_vip));
    rows
}

fn value(settings: &Settings, path: &str) -> Value {
    let Settings { cluster, node, allowed, vrrp, balancing, dsr, asking, checks, .. } = settings;
    match path {
        "cluster.source" => json!(if cluster.manifests.is_some() { "files" } else { "kubernetes" }),
        "cluster.manifests" => json!(cluster.manifests.clone().unwrap_or_default()),
        "cluster.kubeconfig" => json!(cluster.kubeconfig),
        "cluster.config_map" => json!(cluster.config_map),
        "cluster.settings_map" => json!(cluster.settings_map),
        "cluster.stale_after" => json!(format_duration(cluster.stale_after)),
        "cluster.service_ranges" => networks(&cluster.service_ranges),
        "node.name" => json!(node.name),
        "node.interface" => json!(node.interface),
        "node.address" => json!(node.address),
        "vips.allowed" => networks(allowed),
        "asking.annotations" => json!(asking.annotations),
        "asking.load_balancers" => json!(asking.load_balancers),
        "asking.external_ips" => json!(asking.external_ips),
        "asking.allocators" => selector(&asking.allocators),
        "asking.takeover_after" => json!(format_duration(asking.takeover_after)),
        "vrrp.vrid" => json!(vrrp.vrid),
        "vrrp.advert" => json!(format_duration(vrrp.advert)),
        "vrrp.transport" => json!(vrrp.transport),
        "vrrp.members" => selector(&vrrp.members),
        "vrrp.excluded_too" => json!(vrrp.excluded_too),
        "vrrp.gone_after" => json!(format_duration(vrrp.gone_after)),
        "balancing.mode" => json!(balancing.mode),
        "balancing.scheduler" => json!(balancing.scheduler),
        "balancing.scheduler_flags" => json!(SchedulerFlag::listed(&balancing.scheduler_flags)),
        "balancing.tunnel" => json!(balancing.tunnel.to_string()),
        "balancing.drain_limit" => json!(format_duration(balancing.drain_limit)),
        "balancing.probe_port" => json!(balancing.probe_port),
        "balancing.health_check_node_port" => json!(balancing.health_check_node_port),
        "balancing.shield" => json!(balancing.shield),
        "balancing.beside_kube_proxy_ipvs" => json!(balancing.beside_kube_proxy_ipvs),
        "balancing.tcp_timeout" => json!(balancing.timeouts.tcp.map(format_duration)),
        "balancing.tcp_fin_timeout" => json!(balancing.timeouts.tcp_fin.map(format_duration)),
        "balancing.udp_timeout" => json!(balancing.timeouts.udp.map(format_duration)),
        "balancing.sync" => json!(balancing.sync.on),
        "balancing.sync_interface" => json!(balancing.sync.interface),
        "balancing.sync_id" => json!(balancing.sync.id),
        "balancing.proxy_protocol" => json!(balancing.proxy_protocol.name()),
        "dsr.mark_bits" => json!(dsr.mark_bits.to_string()),
        "dsr.route_table" => json!(dsr.route_table),
        "dsr.rule_priority" => json!(dsr.rule_priority),
        "checks.kind" => json!(checks.kind),
        "checks.every" => json!(format_duration(checks.every)),
        "checks.timeout" => json!(format_duration(checks.timeout)),
        "checks.rise" => json!(checks.rise),
        "checks.fall" => json!(checks.fall),
        "checks.unhealthy" => json!(checks.unhealthy),
        "checks.all_unhealthy" => json!(checks.all_unhealthy),
        "checks.path" => json!(checks.path),
        "checks.status" => json!(checks.status.to_string()),
        "checks.host" => json!(checks.host.clone().unwrap_or_default()),
        _ => Value::Null,
    }
}

type Keys = Vec<(&'static str, Value)>;

fn pool(pool: &Pool) -> Keys {
    vec![
        ("name", json!(pool.name)),
        ("addresses", ranges(&pool.addresses)),
        ("auto_assign", json!(pool.auto_assign)),
        ("priority", json!(pool.priority)),
        ("namespaces", patterns(&pool.namespaces)),
        ("namespace_labels", selector(&pool.namespace_labels)),
        ("service_labels", selector(&pool.service_labels)),
        ("avoid_0_255", json!(pool.avoid_0_255)),
    ]
}

fn tenant(tenant: &Tenant) -> Keys {
    vec![
        ("namespaces", patterns(&tenant.namespaces)),
        ("namespace_labels", selector(&tenant.namespace_labels)),
        ("pools", patterns(&tenant.pools)),
        ("addresses", ranges(&tenant.addresses)),
        ("annotations", tenant.annotations.as_ref().map_or(Value::Null, |names| patterns(names))),
    ]
}

fn group(group: &Group) -> Keys {
    vec![
        ("name", json!(group.name)),
        ("addresses", ranges(&group.addresses)),
        ("vrid", json!(group.vrrp.vrid)),
        ("interface", json!(group.interface)),
        ("advert", json!(format_duration(group.vrrp.advert))),
        ("transport", json!(group.vrrp.transport)),
        ("members", selector(&group.vrrp.members)),
        ("excluded_too", json!(group.vrrp.excluded_too)),
        ("gone_after", json!(format_duration(group.vrrp.gone_after))),
    ]
}

fn static_vip(value: &Static) -> Keys {
    vec![
        ("name", json!(value.name)),
        ("vip", json!(value.vip)),
        ("protocol", json!(value.protocol)),
        ("port", json!(value.port)),
        ("backends", json!(value.backends)),
        ("check", json!(value.check)),
    ]
}

/// A row for each key of each table, and one that says that there is none.
fn tables<T>(name: &str, tables: &[T], keys: impl Fn(&T) -> Keys) -> Vec<(String, Value)> {
    if tables.is_empty() {
        return vec![(name.to_owned(), json!([]))];
    }
    let row = |(index, table): (usize, &T)| {
        keys(table).into_iter().map(move |(key, value)| (format!("{name}.{index}.{key}"), value)).collect()
    };
    tables.iter().enumerate().flat_map::<Vec<_>, _>(row).collect()
}

fn networks(networks: &[IpNet]) -> Value {
    networks.iter().map(IpNet::to_string).collect()
}

fn ranges(ranges: &[AddressRange]) -> Value {
    ranges.iter().map(AddressRange::to_string).collect()
}

fn patterns(patterns: &[NamePattern]) -> Value {
    patterns.iter().map(NamePattern::as_str).collect()
}

fn selector(labels: &BTreeMap<String, String>) -> Value {
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
    json!(labels.collect::<Vec<_>>().join(","))
}
