//! The settings as one would write them: what `kvip check` shows.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::units::format_duration;
use super::{KEYS, Settings};

/// Each key with its value in force, in the order of [`KEYS`]; null where a value is still to be found out.
pub fn effective(settings: &Settings) -> Vec<(&'static str, Value)> {
    KEYS.iter().map(|key| (key.path, value(settings, key.path))).collect()
}

fn value(settings: &Settings, path: &str) -> Value {
    let Settings { cluster, node, allowed, vrrp, balancing } = settings;
    match path {
        "cluster.source" => json!("kubernetes"),
        "cluster.kubeconfig" => json!(cluster.kubeconfig),
        "cluster.config_map" => json!(cluster.config_map),
        "cluster.stale_after" => json!(format_duration(cluster.stale_after)),
        "cluster.service_ranges" => networks(&cluster.service_ranges),
        "node.name" => json!(node.name),
        "node.interface" => json!(node.interface),
        "node.address" => json!(node.address),
        "vips.allowed" => networks(allowed),
        "vrrp.vrid" => json!(vrrp.vrid),
        "vrrp.advert" => json!(format_duration(vrrp.advert)),
        "vrrp.transport" => json!(vrrp.transport),
        "vrrp.members" => json!(selector(settings)),
        "vrrp.gone_after" => json!(format_duration(vrrp.gone_after)),
        "balancing.mode" => json!(balancing.mode),
        "balancing.scheduler" => json!(balancing.scheduler),
        "balancing.drain_limit" => json!(format_duration(balancing.drain_limit)),
        "balancing.probe_port" => json!(balancing.probe_port),
        _ => Value::Null,
    }
}

fn networks(networks: &[IpNet]) -> Value {
    networks.iter().map(IpNet::to_string).collect()
}

fn selector(settings: &Settings) -> String {
    let labels = settings.vrrp.members.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}
