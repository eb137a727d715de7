//! Reads all settings from merged layers, section by section.
//!
//! Pure. Problems are noted in the layers; what is wrong is left out.

use super::entries::{self, Row};
use super::keys;
use super::raw::Merged;
use super::values::{self, NETWORKS_WANTED};
use super::values_checks;
use super::{
    Asking, Balancing, Checks, Cluster, Dsr, Group, Node, Pool, Settings, Static, Sync, Tenant, Vrrp, cross,
};
use crate::ipvs::Timeouts;
use ipnet::IpNet;

/// What is wrong with an empty `vips.allowed`.
const NONE_ALLOWED: &str = "no VIP could be served; name at least one network";

/// Reads everything. `whole` says that all layers are there, so that what is named and not there is a mistake.
pub(super) fn settings(merged: &mut Merged, whole: bool) -> Settings {
    let cluster = cluster(merged);
    let node = node(merged);
    let allowed = allowed(merged, &cluster.service_ranges);
    let asking = asking(merged);
    let vrrp = vrrp(merged);
    let balancing = balancing(merged);
    let dsr = dsr(merged);
    let checks = checks(merged);
    let pools = pools(merged, &allowed);
    let tenants = tenants(merged, &allowed, whole);
    let groups = groups(merged, &vrrp, &allowed);
    let statics = statics(merged, &allowed);
    Settings { cluster, node, allowed, vrrp, balancing, dsr, checks, asking, pools, tenants, groups, statics }
}

fn cluster(merged: &mut Merged) -> Cluster {
    let from_files = merged.read("cluster.source", values::from_files);
    let manifests = merged.read_optional("cluster.manifests", values::path);
    if from_files && !merged.contains("cluster.manifests") {
        let text = "needs the folder to read, as in manifests = \"/etc/kvip/manifests\"".to_owned();
        merged.complain(&"cluster.source".into(), text);
    }
    if manifests.is_some() && !from_files {
        let text = match merged.origins.get("cluster.source") {
            Some(place) => {
                format!("read with source = \"files\" only, and {place} sets another; change one of them")
            }
            None => "read with source = \"files\" only; set that too, or take this out".to_owned(),
        };
        merged.complain(&"cluster.manifests".into(), text);
    }
    Cluster {
        kubeconfig: merged.read("cluster.kubeconfig", values::path),
        config_map: merged.read("cluster.config_map", values::object_key),
        stale_after: merged.read("cluster.stale_after", values::stale_after),
        service_ranges: merged.read_list("cluster.service_ranges", NETWORKS_WANTED, values::network),
        manifests: manifests.filter(|_| from_files),
        settings_map: merged.read("cluster.settings_map", values::object_key),
    }
}

fn node(merged: &mut Merged) -> Node {
    Node {
        name: merged.read_optional("node.name", values::node_name),
        interface: merged.read_optional("node.interface", values::interface),
        address: merged.read_optional("node.address", values::unicast_address),
    }
}

/// A network that lies in a Service range could never give a VIP; one that only overlaps is cut by the range.
fn allowed(merged: &mut Merged, service_ranges: &[IpNet]) -> Vec<IpNet> {
    let before = merged.problems.len();
    let allowed = merged.read_list("vips.allowed", NETWORKS_WANTED, |raw| {
        let network = values::vip_network(raw)?;
        match service_ranges.iter().find(|range| range.contains(&network)) {
            Some(range) => {
                Err(format!("no VIP can lie in the Service range {range} of cluster.service_ranges"))
            }
            None => Ok(network),
        }
    });
    if allowed.is_empty() && merged.problems.len() == before {
        merged.complain_if_set("vips.allowed", NONE_ALLOWED);
    }
    allowed
}

fn asking(merged: &mut Merged) -> Asking {
    Asking {
        annotations: merged.read("asking.annotations", values::truth),
        load_balancers: merged.read("asking.load_balancers", values::load_balancers),
        external_ips: merged.read("asking.external_ips", values::truth),
        allocators: merged.read("asking.allocators", values::selector),
        takeover_after: merged.read("asking.takeover_after", values::takeover_after),
    }
}

fn vrrp(merged: &mut Merged) -> Vrrp {
    Vrrp {
        vrid: merged.read("vrrp.vrid", values::vrid),
        advert: merged.read("vrrp.advert", values::advert),
        transport: merged.read("vrrp.transport", values::transport),
        members: merged.read("vrrp.members", values::selector),
        excluded_too: merged.read("vrrp.excluded_too", values::truth),
        gone_after: merged.read("vrrp.gone_after", values::gone_after),
    }
}

fn balancing(merged: &mut Merged) -> Balancing {
    Balancing {
        mode: merged.read("balancing.mode", values::mode),
        scheduler: merged.read("balancing.scheduler", values::scheduler),
        scheduler_flags: merged.read("balancing.scheduler_flags", values::scheduler_flags),
        tunnel: merged.read("balancing.tunnel", values::tunnel),
        drain_limit: merged.read("balancing.drain_limit", values::drain_limit),
        probe_port: merged.read("balancing.probe_port", values::port),
        health_check_node_port: merged.read("balancing.health_check_node_port", values::truth),
        shield: merged.read("balancing.shield", values::shield),
        beside_kube_proxy_ipvs: merged.read("balancing.beside_kube_proxy_ipvs", values::truth),
        timeouts: Timeouts {
            tcp: merged.read_optional("balancing.tcp_timeout", values::ipvs_timeout),
            tcp_fin: merged.read_optional("balancing.tcp_fin_timeout", values::ipvs_timeout),
            udp: merged.read_optional("balancing.udp_timeout", values::ipvs_timeout),
        },
        sync: Sync {
            on: merged.read("balancing.sync", values::truth),
            interface: merged.read_optional("balancing.sync_interface", values::interface),
            id: merged.read_optional("balancing.sync_id", values::sync_id),
        },
        proxy_protocol: merged.read("balancing.proxy_protocol", values::proxy_protocol),
    }
}

fn dsr(merged: &mut Merged) -> Dsr {
    Dsr {
        mark_bits: merged.read("dsr.mark_bits", values::mark_bits),
        route_table: merged.read("dsr.route_table", values::route_table),
        rule_priority: merged.read("dsr.rule_priority", values::rule_priority),
    }
}

fn checks(merged: &mut Merged) -> Checks {
    Checks {
        kind: merged.read("checks.kind", values_checks::kind),
        every: merged.read("checks.every", values_checks::every),
        timeout: merged.read("checks.timeout", values_checks::timeout),
        rise: merged.read("checks.rise", values_checks::in_a_row),
        fall: merged.read("checks.fall", values_checks::in_a_row),
        unhealthy: merged.read("checks.unhealthy", values_checks::unhealthy),
        all_unhealthy: merged.read("checks.all_unhealthy", values_checks::all_unhealthy),
        path: merged.read("checks.path", values_checks::path),
        status: merged.read("checks.status", values_checks::status),
        host: merged.read("checks.host", values_checks::host),
        ..Checks::standard()
    }
}

fn pools(merged: &mut Merged, allowed: &[IpNet]) -> Vec<Pool> {
    let rows = entries::pools(merged);
    let rows = cross::pools(merged, rows, allowed);
    plain(merged, "pools", rows)
}

fn tenants(merged: &mut Merged, allowed: &[IpNet], whole: bool) -> Vec<Tenant> {
    let (rows, nobody) = entries::tenants(merged);
    cross::tenants(merged, &rows, allowed);
    if whole || merged.contains("pools") {
        let pools = merged.names("pools");
        cross::pools_of_tenants(merged, &rows, &pools);
    }
    let mut tenants = plain(merged, "tenants", rows);
    tenants.extend(nobody);
    tenants
}

fn groups(merged: &mut Merged, vrrp: &Vrrp, allowed: &[IpNet]) -> Vec<Group> {
    let rows = entries::groups(merged, vrrp);
    let rows = cross::groups(merged, rows, vrrp);
    cross::ranges_of_groups(merged, &rows, allowed);
    let inherited = keys::table("groups").into_iter().flat_map(|table| table.keys);
    let inherited: Vec<&str> = inherited
        .map(|key| key.path)
        .filter(|key| *key != "vrid" && keys::is_key(&format!("vrrp.{key}")))
        .collect();
    for (position, row) in rows.iter().enumerate() {
        for key in inherited.iter().filter(|key| !row.origins.iter().any(|(set, _)| set == *key)) {
            merged.origins.insert(format!("groups.{position}.{key}"), "as in [vrrp]".to_owned());
        }
    }
    plain(merged, "groups", rows)
}

fn statics(merged: &mut Merged, allowed: &[IpNet]) -> Vec<Static> {
    let rows = entries::statics(merged);
    let rows = cross::statics(merged, rows, allowed);
    plain(merged, "static", rows)
}

/// The values alone; where each key came from is noted under its number among them.
fn plain<T>(merged: &mut Merged, name: &str, rows: Vec<Row<T>>) -> Vec<T> {
    let mut values = Vec::new();
    for (position, row) in rows.into_iter().enumerate() {
        let origins = row.origins.into_iter();
        merged.origins.extend(origins.map(|(key, place)| (format!("{name}.{position}.{key}"), place)));
        values.push(row.value);
    }
    values
}
