//! The real servers behind a Service port: ready endpoints, or those still serving while all others end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::reach::Obstacles;
use super::{Place, Server, WantedServer};
use crate::model::{Backend, Family, Protocol};
use crate::snapshot::{Endpoint, EndpointSlice, ServicePort};

/// What all Services' endpoints are looked at with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Nodes that do not answer.
    pub dead: BTreeSet<String>,
    /// This node's name.
    pub node: Option<String>,
    /// This node's zone, of the label topology.kubernetes.io/zone.
    pub zone: Option<String>,
    /// Why packets cannot be handed on as they came to pods of other nodes.
    pub obstacles: Obstacles,
    /// The addresses of nodes, each with whether it is on a link of this host.
    pub hosts: BTreeMap<IpAddr, bool>,
    /// The networks of this host's links that nodes are in too.
    pub shared: BTreeSet<IpNet>,
}

/// What stands behind a Service port in one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behind {
    /// Real servers to have, and those to let go.
    pub servers: BTreeMap<Backend, Server>,
    /// The nodes that run them.
    pub nodes: BTreeSet<String>,
    /// How many endpoints there are, in whatever state.
    pub total: usize,
    /// Nodes that do not answer and whose endpoints are therefore left out.
    pub dead: BTreeSet<String>,
    /// The endpoints of these.
    pub silent: BTreeSet<Backend>,
    /// There are endpoints of the family, and none of their slices has the port.
    pub lacks_port: bool,
    /// How many of those that would serve are of weight 0.
    pub weightless: usize,
    /// Nodes whose pods cannot be handed packets as they came where that is wanted, and why not. `""` is for endpoints that
    /// name none.
    pub beyond: BTreeMap<String, Arc<str>>,
    /// The lowest address of the pods of each node that are to be handed packets as they came.
    pub ways: BTreeMap<String, IpAddr>,
}

/// Names of ports, each with its protocol.
pub type Names<'a> = BTreeSet<(&'a str, Protocol)>;

/// What is looked for behind a frontend.
#[derive(Debug, Clone, Copy)]
pub struct Sought<'a> {
    /// The Service's port.
    pub port: &'a ServicePort,
    /// What all ports of the Service are called.
    pub names: &'a Names<'a>,
    /// The VIP's.
    pub family: Family,
    /// A virtual server of it goes by the order of its real servers, where one has a place on all nodes or on none.
    pub ordered: bool,
    /// Nothing is masqueraded on its way to a pod.
    pub unmasked: bool,
}

impl Sought<'_> {
    fn is_it(&self, port: &ServicePort) -> bool {
        port.name == self.port.name && port.protocol == self.port.protocol
    }

    /// Whether the Service has no port of this name: not any more, or not yet.
    fn may_have_been_it(&self, port: &ServicePort) -> bool {
        port.protocol == self.port.protocol && !self.names.contains(&(port.name.as_str(), port.protocol))
    }

    /// What becomes of a real server that is to serve no more, but is as good as before for the connections that it has.
    fn relieved(&self) -> WantedServer {
        if self.ordered { WantedServer::Draining } else { WantedServer::Lingering }
    }
}

/// Which endpoints count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Those that are best for this node.
    ThisNode,
    /// The same ones whichever node looks: neither hints nor what this node knows of others' death change which there are.
    /// One on a dead node stays, idle, where clients leave it by themselves.
    Everywhere(Handing<'a>),
    /// Those that are best for this node, of those that can carry the VIP.
    Carriers(Carrying<'a>),
}

impl Scope<'_> {
    /// The port at which all listen, if that is not each one's own.
    fn port(self) -> Option<u16> {
        match self {
            Self::Carriers(carrying) => Some(carrying.port),
            Self::ThisNode | Self::Everywhere(_) => None,
        }
    }
}

/// How packets are to come to those that carry the VIP themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrying<'a> {
    /// The nodes that may hold the VIP.
    pub members: &'a BTreeSet<String>,
    /// Packets are wrapped, so that its node sends a pod those that are for it.
    pub wrapped: bool,
    /// The port that packets are for, as they came: all listen there, whatever their slices say.
    pub port: u16,
}

impl Carrying<'_> {
    /// Whether the node of `endpoint` gets packets for the VIP in its place, and may hold the VIP itself. Unless it does, it
    /// sends them on to the holder, which hands them on again, until they have no hops left.
    fn come_back(&self, around: &Surroundings, endpoint: &Endpoint) -> bool {
        let is_member = endpoint.node.as_ref().is_some_and(|node| self.members.contains(node));
        let gets_there = if around.hosts.contains_key(&endpoint.address) {
            // What is for this host itself needs no handing on.
            around.is_here(endpoint)
        } else {
            self.wrapped || around.shared.iter().any(|network| network.contains(&endpoint.address))
        };
        is_member && !gets_there
    }
}

/// How packets are to be handed on as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handing<'a> {
    /// The nodes that take such packets.
    pub members: &'a BTreeSet<String>,
    /// Why this node cannot hand any on, if so.
    pub blocked: Option<&'a str>,
    /// Nothing else will do: pods that cannot be handed them get nothing.
    pub only: bool,
}

impl Handing<'_> {
    /// Why packets cannot be handed on to `endpoint` on another node.
    fn obstacle(&self, around: &Surroundings, endpoint: &Endpoint) -> Option<Arc<str>> {
        let node = endpoint.node.as_deref().unwrap_or_default();
        if !self.members.contains(node) {
            return Some("no member of the VIP's group".into());
        }
        if let Some(why) = self.blocked {
            return Some(why.into());
        }
        match around.hosts.get(&endpoint.address) {
            Some(true) => None,
            Some(false) => Some("on no link of this node".into()),
            None => around.obstacles.get(&(node.to_owned(), Family::of(endpoint.address))).cloned(),
        }
    }
}

/// What is behind a port of a Service whose slices are given.
///
/// An endpoint's own weight counts before that of its zone. Of weight 0 it gets no more connections; where all nodes must
/// have the same real servers it goes after a while, as what a node makes of such a one depends on what it was before.
///
/// Ports match by name and protocol, as the EndpointSlice API defines it. Endpoints of dead nodes get no connections. Without
/// a ready endpoint, those serve that are serving while terminating (KEP-1669, as kube-proxy does). Of ready endpoints
/// with hints for this node or its zone only those serve (KEP-2433 and KEP-3015, as kube-proxy does).
///
/// When names of ports change, the Service has them a moment before its slices. What these say until then is no reason to
/// serve, as it may be of another port, and none to cut connections.
pub fn behind(
    around: &Surroundings,
    slices: &[&Arc<EndpointSlice>],
    sought: Sought<'_>,
    scope: Scope<'_>,
    zone_weights: &BTreeMap<String, u16>,
) -> Behind {
    let mut found = Behind::default();
    let mut candidates = Vec::new();
    let mut idle = Vec::new();
    for (endpoint, number, named) in endpoints_of(slices, sought) {
        found.total += usize::from(named);
        let backend = Backend { address: endpoint.address, port: scope.port().unwrap_or(number) };
        let node = endpoint.node.as_deref().unwrap_or_default();
        if sought.unmasked && !around.is_here(endpoint) {
            found.note_way(around, endpoint);
        }
        let access = found.access(around, endpoint, scope);
        if access == Access::Never {
            continue;
        }
        if endpoint.node.is_some() {
            found.nodes.insert(node.to_owned());
        }
        let dead = around.dead.contains(node);
        if dead && named {
            found.dead.insert(node.to_owned());
            found.silent.insert(backend);
        }
        match access {
            Access::At(place) if !dead => candidates.push((endpoint, backend, place, named)),
            // Clients of UDP and SCTP may keep one source port for ever: theirs would never leave.
            _ if dead && sought.port.protocol != Protocol::Tcp => {}
            _ => idle.push((endpoint, backend, named)),
        }
    }
    let any = slices.iter().any(|slice| slice.family == sought.family && !slice.endpoints.is_empty());
    found.lacks_port = found.total == 0 && any;
    let counting = candidates.iter().filter(|(.., named)| *named).map(|(endpoint, ..)| *endpoint);
    let any_ready = counting.clone().any(|endpoint| endpoint.ready);
    let hints = match scope {
        Scope::ThisNode | Scope::Carriers(_) => Hints::of(around, counting),
        Scope::Everywhere(_) => Hints::None,
    };
    let zoned = |endpoint: &Endpoint| endpoint.zone.as_ref().and_then(|zone| zone_weights.get(zone)).copied();
    let weight = |endpoint: &Endpoint| endpoint.weight.or_else(|| zoned(endpoint)).unwrap_or(1);
    let granted = |wanted: WantedServer, named| if named { wanted } else { wanted.min(sought.relieved()) };
    for (endpoint, backend, place, named) in candidates {
        if let Some(wanted) = wanted(endpoint, any_ready, &hints, sought, scope) {
            let wanted = granted(wanted, named);
            let weight = weight(endpoint);
            found.weightless += usize::from(weight == 0 && wanted == WantedServer::Active);
            let (wanted, weight) = weighed(wanted, weight, scope);
            found.put(backend, Server { wanted, weight: weight.into(), place });
        }
    }
    if matches!(scope, Scope::Everywhere(_)) {
        for (endpoint, backend, named) in
            idle.into_iter().filter(|(endpoint, ..)| endpoint.ready || endpoint.terminating)
        {
            let (wanted, weight) = weighed(granted(WantedServer::Idle, named), weight(endpoint), scope);
            let place = if around.is_here(endpoint) { Place::Here } else { Place::Elsewhere };
            found.put(backend, Server { wanted, weight: weight.into(), place });
        }
    }
    found
}

/// How packets may come to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    At(Place),
    /// Not from this node: it is there for the order of all, and gets no connections.
    NotFromHere,
    /// From no node.
    Never,
}

impl Surroundings {
    fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.is_some() && endpoint.node == self.node
    }
}

impl Behind {
    /// How packets may come to `endpoint`; takes note of what is in their way.
    fn access(&mut self, around: &Surroundings, endpoint: &Endpoint, scope: Scope<'_>) -> Access {
        let handing = match scope {
            Scope::Carriers(carrying) if carrying.come_back(around, endpoint) => {
                self.beyond.insert(endpoint.node.clone().unwrap_or_default(), "it may hold the VIP".into());
                return Access::Never;
            }
            Scope::ThisNode | Scope::Carriers(_) => return Access::At(Place::Elsewhere),
            Scope::Everywhere(handing) => handing,
        };
        if around.is_here(endpoint) {
            return Access::At(Place::Here);
        }
        let node = endpoint.node.as_deref().unwrap_or_default();
        let member = handing.members.contains(node);
        if member {
            self.note_way(around, endpoint);
        }
        let Some(why) = handing.obstacle(around, endpoint) else { return Access::At(Place::Elsewhere) };
        self.beyond.insert(node.to_owned(), why);
        match (handing.only, member) {
            (false, _) => Access::At(Place::Beyond),
            (true, true) => Access::NotFromHere,
            (true, false) => Access::Never,
        }
    }

    /// Takes note that the way to `endpoint` matters; that to a host's own address is known.
    fn note_way(&mut self, around: &Surroundings, endpoint: &Endpoint) {
        if around.hosts.contains_key(&endpoint.address) {
            return;
        }
        let node = endpoint.node.clone().unwrap_or_default();
        let lowest = self.ways.entry(node).or_insert(endpoint.address);
        *lowest = endpoint.address.min(*lowest);
    }

    fn put(&mut self, backend: Backend, server: Server) {
        let slot = self.servers.entry(backend).or_insert(server);
        *slot = (*slot).max(server);
    }
}

/// What is wanted of an endpoint of that weight.
fn weighed(wanted: WantedServer, weight: u16, scope: Scope<'_>) -> (WantedServer, u16) {
    match (weight, scope) {
        (0, Scope::Everywhere(_)) => (WantedServer::Draining, 1),
        (0, Scope::ThisNode | Scope::Carriers(_)) => (wanted.min(WantedServer::Idle), 0),
        _ => (wanted, weight),
    }
}

/// Endpoints with the number that the matching port has in their slice, and whether it goes by the very name. One that may
/// have been it matches where none does; where the order counts, which gives it a place, only if it is the only one.
fn endpoints_of<'a>(
    slices: &'a [&'a Arc<EndpointSlice>],
    sought: Sought<'a>,
) -> impl Iterator<Item = (&'a Endpoint, u16, bool)> {
    slices.iter().filter(move |slice| slice.family == sought.family).flat_map(move |slice| {
        let named = slice.ports.iter().any(|port| sought.is_it(port));
        let matches = move |port: &ServicePort| {
            if named { sought.is_it(port) } else { sought.may_have_been_it(port) }
        };
        let matching = slice.ports.iter().filter(move |port| matches(port));
        let is_doubtful = !named && sought.ordered && matching.clone().count() > 1;
        matching
            .filter(move |_| !is_doubtful)
            .flat_map(move |port| slice.endpoints.iter().map(move |one| (one, port.port, named)))
    })
}

/// Which ready endpoints serve this node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hints {
    /// All of them.
    None,
    /// Those meant for this node.
    Node(String),
    /// Those meant for this node's zone.
    Zone(String),
}

impl Hints {
    /// Hints count only when every ready endpoint has them and at least one is meant for here; otherwise some clients would
    /// be left without an endpoint while the hints are being written.
    fn of<'a>(around: &Surroundings, endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> Self {
        let ready = || endpoints.clone().filter(|endpoint| endpoint.ready);
        let meant = |here: &Option<String>, hints: fn(&Endpoint) -> &Vec<String>| {
            let here = here.as_ref()?;
            let all = ready().all(|endpoint| !hints(endpoint).is_empty());
            (all && ready().any(|endpoint| hints(endpoint).contains(here))).then(|| here.clone())
        };
        if let Some(node) = meant(&around.node, |endpoint| &endpoint.for_nodes) {
            return Self::Node(node);
        }
        meant(&around.zone, |endpoint| &endpoint.for_zones).map_or(Self::None, Self::Zone)
    }

    fn let_through(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::None => true,
            Self::Node(node) => endpoint.for_nodes.contains(node),
            Self::Zone(zone) => endpoint.for_zones.contains(zone),
        }
    }
}

/// What to do with one endpoint; `None`: nothing sends traffic to it. One that serves another zone now but has connections
/// from before keeps them. So does one that is not ready, which may be so again at any time; but not where all nodes are to
/// have the same real servers, as they may have had connections to others.
fn wanted(
    endpoint: &Endpoint,
    any_ready: bool,
    hints: &Hints,
    sought: Sought<'_>,
    scope: Scope<'_>,
) -> Option<WantedServer> {
    if endpoint.ready {
        let here = hints.let_through(endpoint);
        return Some(if here { WantedServer::Active } else { sought.relieved() });
    }
    if !any_ready && endpoint.serving && endpoint.terminating {
        return Some(WantedServer::Active);
    }
    match scope {
        _ if endpoint.terminating => Some(WantedServer::Draining),
        Scope::ThisNode | Scope::Carriers(_) => Some(WantedServer::Lingering),
        Scope::Everywhere(_) => None,
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
