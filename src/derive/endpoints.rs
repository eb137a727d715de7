//! The real servers behind a Service port: ready endpoints, or those still serving while all others end.

use std::collections::{BTreeMap, BTreeSet};

use super::{Inputs, WantedServer};
use crate::model::{Backend, Family, ObjectKey};
use crate::snapshot::{Endpoint, EndpointSlice, ServicePort};

/// The slices of each Service.
pub type SlicesOf<'a> = BTreeMap<&'a ObjectKey, Vec<&'a EndpointSlice>>;

/// What stands behind a Service port in one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behind {
    /// Real servers to have, and those to let go.
    pub servers: BTreeMap<Backend, WantedServer>,
    /// The nodes that run them.
    pub nodes: BTreeSet<String>,
    /// How many endpoints there are, in whatever state.
    pub total: usize,
    /// Nodes that do not answer and whose endpoints are therefore left out.
    pub dead: BTreeSet<String>,
}

/// Groups the snapshot's slices by Service.
pub fn slices_by_service<'a>(inputs: &Inputs<'a>) -> SlicesOf<'a> {
    let mut by_service = SlicesOf::new();
    for slice in inputs.snapshot.slices.values() {
        by_service.entry(&slice.service).or_default().push(slice);
    }
    by_service
}

/// What is behind `port` of a Service whose slices are given.
///
/// Ports match by name and protocol, as the EndpointSlice API defines it. Endpoints of dead nodes do not count. Without
/// a ready endpoint, those serve that are serving while terminating (KEP-1669, as kube-proxy does).
pub fn behind(inputs: &Inputs, slices: &[&EndpointSlice], port: &ServicePort, family: Family) -> Behind {
    let mut found = Behind::default();
    let mut candidates = Vec::new();
    for (endpoint, number) in endpoints_of(slices, port, family) {
        found.total += 1;
        if let Some(node) = &endpoint.node {
            found.nodes.insert(node.clone());
            if inputs.dead.contains(node) {
                found.dead.insert(node.clone());
                continue;
            }
        }
        candidates.push((endpoint, Backend { address: endpoint.address, port: number }));
    }
    let any_ready = candidates.iter().any(|(endpoint, _)| endpoint.ready);
    for (endpoint, backend) in candidates {
        if let Some(wanted) = wanted(endpoint, any_ready) {
            let slot = found.servers.entry(backend).or_insert(wanted);
            *slot = (*slot).max(wanted);
        }
    }
    found
}

/// Endpoints with the number that the matching port has in their slice.
fn endpoints_of<'a>(
    slices: &'a [&'a EndpointSlice],
    port: &'a ServicePort,
    family: Family,
) -> impl Iterator<Item = (&'a Endpoint, u16)> {
    slices.iter().filter(move |slice| slice.family == family).flat_map(move |slice| {
        let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        matching.flat_map(|p| slice.endpoints.iter().map(|endpoint| (endpoint, p.port)))
    })
}

/// What to do with one endpoint; `None`: nothing sends traffic to it.
fn wanted(endpoint: &Endpoint, any_ready: bool) -> Option<WantedServer> {
    if endpoint.ready || (!any_ready && endpoint.serving && endpoint.terminating) {
        return Some(WantedServer::Active);
    }
    endpoint.terminating.then_some(WantedServer::Draining)
}
