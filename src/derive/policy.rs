//! Which addresses may be VIPs: those in the allowed ranges that are nobody's yet; and who may ask for which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use super::Inputs;
use crate::config::{AddressRange, NamePattern, Tenant};
use crate::ipam::Reserved;
use crate::net::Address;
use crate::snapshot::Labels;

/// Whose addresses are whose, looked up once for all VIPs.
pub struct Policy<'a> {
    inputs: Inputs<'a>,
    /// What the cluster has, as all nodes know.
    reserved: Reserved,
    /// What this host alone knows to be somebody's, with what it is.
    of_host: BTreeMap<IpAddr, String>,
    servers: BTreeSet<IpAddr>,
}

/// What an address of [`Snapshot::api_servers`] is.
///
/// [`Snapshot::api_servers`]: crate::snapshot::Snapshot::api_servers
const SERVER: &str = "is the address of an API server";

impl<'a> Policy<'a> {
    /// The policy of this cluster and this host.
    pub fn new(inputs: &Inputs<'a>) -> Self {
        let reserved = Reserved { addresses: taken(inputs), ranges: ranges(inputs) };
        let mut of_host = of_host(inputs);
        of_host.retain(|address, _| reserved.why(*address).is_none());
        Self { inputs: *inputs, reserved, of_host, servers: inputs.snapshot.api_servers().collect() }
    }

    /// Why `vip` may not be a VIP, or `None` when it may.
    pub fn refusal(&self, vip: IpAddr) -> Option<String> {
        self.refusal_of_admin(vip).or_else(|| self.servers.contains(&vip).then(|| format!("it {SERVER}")))
    }

    /// Why the admin may not make `vip` a VIP: the API server's own address may well be one.
    pub fn refusal_of_admin(&self, vip: IpAddr) -> Option<String> {
        self.outside_allowed(vip).or_else(|| self.refusal_of_static(vip))
    }

    /// Why a static VIP may not be one. The host's own settings name it, and they were checked against what is allowed.
    pub fn refusal_of_static(&self, vip: IpAddr) -> Option<String> {
        let what = self.reserved.why(vip).or_else(|| self.of_host.get(&vip).map(String::as_str));
        what.map(|what| format!("it {what}"))
    }

    /// Whether only this host refuses `vip`: another one may know of nothing that speaks against it.
    pub fn is_of_host(&self, vip: IpAddr) -> bool {
        self.of_host.contains_key(&vip)
    }

    /// What IPAM may not give: what is somebody's, and the VIPs that are asked for in another way.
    pub fn reserved(&self, asked: impl Iterator<Item = IpAddr>) -> Reserved {
        let mut reserved = self.reserved.clone();
        reserved.addresses.extend(self.of_host.clone());
        for server in &self.servers {
            reserved.addresses.entry(*server).or_insert_with(|| SERVER.into());
        }
        for vip in asked {
            reserved.addresses.entry(vip).or_insert_with(|| "is asked for as a VIP in another way".into());
        }
        reserved
    }

    fn outside_allowed(&self, vip: IpAddr) -> Option<String> {
        let allowed = &self.inputs.settings.allowed;
        if allowed.is_empty() {
            return Some("no address is allowed, as vips.allowed is not set".into());
        }
        let ranges = || allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        (!allowed.iter().any(|range| range.contains(&vip)))
            .then(|| format!("outside the allowed ranges ({})", ranges()))
    }

    /// The tenants that `namespace` belongs to; `None` where there are no tenants at all, so that all may ask for all.
    pub fn tenants_of(&self, namespace: &str) -> Option<Vec<&'a Tenant>> {
        let tenants = &self.inputs.settings.tenants;
        let inputs = self.inputs;
        (!tenants.is_empty())
            .then(|| tenants.iter().filter(|tenant| names(tenant, &inputs, namespace)).collect())
    }

    /// Why a Service of `namespace` may not name `vip` itself, or `None` when it may.
    pub fn not_for(&self, namespace: &str, vip: IpAddr) -> Option<String> {
        let tenants = self.tenants_of(namespace)?;
        if tenants.is_empty() {
            return Some(format!("namespace {namespace} is none of the tenants that may ask for VIPs"));
        }
        let mut ranges = tenants.iter().flat_map(|tenant| &tenant.addresses);
        if ranges.any(|range| range.contains(vip)) {
            return None;
        }
        Some(format!("namespace {namespace} may name {}", range_list(&tenants)))
    }
}

/// Single addresses that are somebody's, by what the API says.
fn taken(inputs: &Inputs) -> BTreeMap<IpAddr, String> {
    let mut taken = BTreeMap::new();
    for (name, node) in &inputs.snapshot.nodes {
        for address in node.addresses.iter().chain(&node.other_addresses) {
            taken.entry(*address).or_insert_with(|| format!("is the address of node {name}"));
        }
    }
    for (key, service) in &inputs.snapshot.services {
        for address in &service.cluster_ips {
            taken.entry(*address).or_insert_with(|| format!("is the ClusterIP of {key}"));
        }
    }
    taken
}

/// Single addresses that are somebody's, by what this host is.
fn of_host(inputs: &Inputs) -> BTreeMap<IpAddr, String> {
    let gateways = inputs.facts.gateways.iter();
    let mut taken: BTreeMap<IpAddr, String> =
        gateways.map(|gateway| (*gateway, "is the address of a gateway".into())).collect();
    // A VIP that keepalived put here carries its mark and is no obstacle.
    for own in inputs.facts.addresses.iter().filter(|address| !address.marked_as_vip()) {
        taken.entry(own.ip).or_insert_with(|| format!("is an address of this host, on {}", own.link));
        for (address, what) in ends(own) {
            taken.entry(address).or_insert(what);
        }
    }
    taken
}

/// The addresses of the network of `own` that hosts in it take for all of them (RFC 919, RFC 1122 section 3.2.1.3).
fn ends(own: &Address) -> Vec<(IpAddr, String)> {
    let IpAddr::V4(address) = own.ip else { return Vec::new() };
    let Some(network) = Ipv4Net::new(address, own.prefix_len).ok().filter(|net| net.prefix_len() < 31) else {
        return Vec::new();
    };
    let end = |address: Ipv4Addr, what: &str| {
        (IpAddr::V4(address), format!("is the {what} address of {} on {}", network.trunc(), own.link))
    };
    vec![end(network.network(), "network"), end(network.broadcast(), "broadcast")]
}

/// The cluster's own ranges: of Services and of pods.
fn ranges(inputs: &Inputs) -> Vec<(AddressRange, String)> {
    let services = inputs.settings.cluster.service_ranges.iter();
    let services =
        services.map(|range| (AddressRange::from(*range), format!("lies in the Service range {range}")));
    let pods = inputs.snapshot.nodes.iter().flat_map(|(name, node)| {
        // A range of one address is a host's own, and named as that.
        let ranges = node.pod_cidrs.iter().filter(|range| range.prefix_len() < range.max_prefix_len());
        ranges.map(move |range| {
            (AddressRange::from(*range), format!("lies in the pod range {range} of node {name}"))
        })
    });
    let objects = inputs.snapshot.service_cidrs.iter().flat_map(|(name, ranges)| {
        let text = move |range| format!("lies in the Service range {range} of ServiceCIDR {name}");
        ranges.iter().map(move |range| (AddressRange::from(*range), text(range)))
    });
    services.chain(objects).chain(pods).collect()
}

/// The annotations, without `kvip.io/`, by which Services of `namespace` may say how they are served; `None`: all.
pub fn annotations_of<'a>(inputs: &Inputs<'a>, namespace: &str) -> Option<Vec<&'a NamePattern>> {
    let mut tenants =
        inputs.settings.tenants.iter().filter(|tenant| names(tenant, inputs, namespace)).peekable();
    tenants.peek()?;
    let allowed: Option<Vec<&Vec<NamePattern>>> = tenants.map(|tenant| tenant.annotations.as_ref()).collect();
    Some(allowed?.into_iter().flatten().collect())
}

/// Whether `tenant` is about `namespace`.
fn names(tenant: &Tenant, inputs: &Inputs, namespace: &str) -> bool {
    let named = tenant.namespaces.is_empty() || tenant.namespaces.iter().any(|name| name.matches(namespace));
    named
        && carries(
            inputs.snapshot.namespaces.get(namespace).map(|labels| &**labels),
            &tenant.namespace_labels,
        )
}

/// Whether `labels` hold all of `selector`.
pub fn carries(labels: Option<&Labels>, selector: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

fn range_list(tenants: &[&Tenant]) -> String {
    let ranges: Vec<String> =
        tenants.iter().flat_map(|tenant| &tenant.addresses).map(AddressRange::to_string).collect();
    if ranges.is_empty() { "no address itself".into() } else { format!("{} only", ranges.join(", ")) }
}
