//! Which addresses may be VIPs: those in the allowed ranges that are nobody's yet.

use std::net::IpAddr;

use super::Inputs;
use crate::model::host_network;

/// Why `vip` may not be a VIP, or `None` when it may.
pub fn refusal(inputs: &Inputs, vip: IpAddr) -> Option<String> {
    outside_allowed(inputs, vip)
        .or_else(|| of_a_node(inputs, vip))
        .or_else(|| of_this_host(inputs, vip))
        .or_else(|| of_the_cluster(inputs, vip))
}

fn outside_allowed(inputs: &Inputs, vip: IpAddr) -> Option<String> {
    let allowed = &inputs.settings.allowed;
    let ranges = || allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    (!allowed.iter().any(|range| range.contains(&vip)))
        .then(|| format!("outside the allowed ranges ({})", ranges()))
}

fn of_a_node(inputs: &Inputs, vip: IpAddr) -> Option<String> {
    let (name, _) = inputs.snapshot.nodes.iter().find(|(_, node)| node.addresses.contains(&vip))?;
    Some(format!("it is the address of node {name}"))
}

/// The host's own addresses and its gateway. A VIP that keepalived put here carries its mark and is no obstacle.
fn of_this_host(inputs: &Inputs, vip: IpAddr) -> Option<String> {
    if inputs.facts.gateways.contains(&vip) {
        return Some("it is the address of a gateway".into());
    }
    let own = inputs.facts.addresses.iter().find(|address| address.ip == vip && !address.marked_as_vip())?;
    Some(format!("it is an address of this host, on {}", own.link))
}

fn of_the_cluster(inputs: &Inputs, vip: IpAddr) -> Option<String> {
    if let Some(range) = inputs.settings.cluster.service_ranges.iter().find(|range| range.contains(&vip)) {
        return Some(format!("it lies in the Service range {range}"));
    }
    let holder = inputs.snapshot.services.iter().find(|(_, service)| service.cluster_ips.contains(&vip));
    if let Some((key, _)) = holder {
        return Some(format!("it is the ClusterIP of {key}"));
    }
    let pods = inputs.snapshot.nodes.iter().find_map(|(name, node)| {
        let range =
            node.pod_cidrs.iter().find(|range| range.contains(&vip) && **range != host_network(vip))?;
        Some((name, range))
    });
    pods.map(|(name, range)| format!("it lies in the pod range {range} of node {name}"))
}
