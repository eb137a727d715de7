//! What is said to the cluster: from what is served to what allocators shall do and Services shall show.
//!
//! Pure. Nothing here depends on endpoints: a change of them alone makes nothing of this anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Mode, Settings};
use crate::derive::{self, Assignment, Owner, Source, Task};
use crate::ipam;
use crate::model::{Frontend, ObjectKey};
use crate::report::objects::status::{says_refused, says_served, served_at};
use crate::report::objects::{self, Address, Held, IpMode, Kind, Port, Shown, State, Verdict};
use crate::snapshot::{Map, Node, Service, ServicePort, Snapshot};

/// The reason of a condition when no address is given.
const NO_ADDRESS: &str = "NoAddress";
/// The reason of a condition when the Service cannot be served.
const NOT_SERVED: &str = "NotServed";
/// What is wrong with a port in the status that another Service has at the address.
const PORT_TAKEN: &str = "kvip.io/PortTaken";
/// With one that cannot be served in the Service's mode.
const PORT_NOT_SERVED: &str = "kvip.io/PortNotServed";

/// What all of this is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// The cluster's state.
    pub snapshot: &'a Snapshot,
    /// What is served.
    pub assignment: &'a Assignment,
    /// What the allocator found, by Service.
    pub outcomes: &'a ipam::Outcomes,
    /// The VIPs on this host.
    pub here: &'a BTreeSet<IpAddr>,
    /// No node is known to go by other settings.
    pub agreed: bool,
}

/// The nodes that allocate, by name: those that the settings select. Where these select none, the members of VRRP groups,
/// as on other nodes there may be no kvip, and each that never acts makes some Services wait for the next one's turn.
pub fn allocators(settings: &Settings, snapshot: &Snapshot) -> BTreeSet<String> {
    let selector = &settings.asking.allocators;
    let nodes_that = |chosen: &dyn Fn(&Node) -> bool| -> BTreeSet<String> {
        let nodes = snapshot.nodes.iter().filter(|(_, node)| chosen(node));
        nodes.map(|(name, _)| name.clone()).collect()
    };
    if !selector.is_empty() {
        return nodes_that(&|node| selector.iter().all(|(key, value)| node.labels.get(key) == Some(value)));
    }
    let groups = derive::groups_of(settings);
    let members = nodes_that(&|node| groups.iter().any(|group| group.takes(node)));
    if members.is_empty() { nodes_that(&|_| true) } else { members }
}

/// What allocators go by.
pub fn to_allocate(inputs: &Inputs) -> ipam::Wanted {
    let Inputs { settings, snapshot, assignment, .. } = inputs;
    let requests = &assignment.requests;
    ipam::Wanted {
        requests: requests.of.iter().map(|(key, request)| (key.clone(), Arc::clone(request))).collect(),
        claims: snapshot.claims.clone(),
        reserved: Arc::new(requests.reserved.clone()),
        allocators: allocators(settings, snapshot),
        ip_addresses_served: derive::serves_ip_addresses(snapshot),
        rest: settings.cluster.rest(),
        takeover_after: settings.asking.takeover_after,
    }
}

/// What Services shall show, and what this node holds of them; a change of what was said `before`, so that what is the same
/// is shared.
pub fn to_say(inputs: &Inputs, before: &State) -> State {
    let Inputs { settings, snapshot, assignment, .. } = inputs;
    let allocators = allocators(settings, snapshot);
    let here = View::of(*inputs);
    let elsewhere = assignment.elsewhere.as_deref();
    let elsewhere = elsewhere.map(|assignment| View::of(Inputs { assignment, ..*inputs }));
    let mut services = before.services.clone();
    for key in before.services.keys().filter(|key| !snapshot.services.contains_key(*key)) {
        services.remove(key);
    }
    for (key, service) in &snapshot.services {
        let shown = Shown::of(service);
        // Another allocator serves what it has said to be served. That something of this host alone speaks against it is no
        // reason to take that back: the other would say it again, and so on for ever.
        let view = elsewhere.as_ref().filter(|_| says_served(&shown)).unwrap_or(&here);
        let said_of = |view| said(view, key, service, shown.is_ours());
        let Some(said) = said_of(view) else {
            services.remove(key);
            continue;
        };
        let place = assignment
            .node
            .as_deref()
            .and_then(|own| objects::place(&service.uid, allocators.iter().map(String::as_str), own));
        // What this host alone refuses others may refuse in other words. Those of the first allocator stay.
        let of_host = elsewhere.as_ref().is_some_and(|elsewhere| {
            says_refused(&shown) && said_of(elsewhere).is_none_or(|other| other.verdict != said.verdict)
        });
        let place = place.filter(|place| *place == 0 || !of_host);
        if !inputs.agreed && stands(service, &shown, &said, place == Some(0)) {
            services.remove(key);
            continue;
        }
        let wanted = objects::Wanted {
            uid: service.uid.clone(),
            kind: Kind::of(service),
            addresses: said.addresses,
            ingress: assignment.requests.of.contains_key(key),
            verdict: said.verdict,
            place,
            shown,
        };
        if services.get(key).is_none_or(|known| **known != wanted) {
            services.insert(key.clone(), Arc::new(wanted));
        }
    }
    State {
        node: assignment.node.clone(),
        takeover_after: settings.asking.takeover_after,
        services,
        held: Some(held(inputs)),
    }
}

/// What is to be said of one Service.
struct Said {
    verdict: Verdict,
    addresses: Vec<Address>,
}

/// What is assigned, and what of it is refused.
struct View<'a> {
    inputs: Inputs<'a>,
    /// What anybody is served at.
    taken: BTreeSet<Frontend>,
    /// What findings refuse to Services, by the Services' names.
    refused: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> View<'a> {
    fn of(inputs: Inputs<'a>) -> Self {
        let mut refused: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for finding in inputs.assignment.findings.iter().filter(|finding| finding.refuses) {
            refused.entry(&finding.subject).or_default().insert(&finding.text);
        }
        let taken = inputs.assignment.tasks.values().flat_map(|task| task.frontends()).collect();
        Self { inputs, taken, refused }
    }
}

/// What is to be said of a Service that asks by itself, or that `shows` something of kvip's; `None`: nothing, or not yet.
fn said(view: &View, key: &ObjectKey, service: &Service, shows: bool) -> Option<Said> {
    let inputs = &view.inputs;
    let frontends = own_frontends(inputs.assignment, key);
    let mut addresses = addresses(view, service, &frontends);
    addresses.extend(kept(inputs.assignment, key, service));
    let served = !frontends.is_empty();
    let asks = asks(inputs, key, service);
    if let Some(verdict) = missing(view, key, service, served).filter(|_| asks) {
        return Some(Said { verdict, addresses });
    }
    if served {
        return Some(Said { verdict: Verdict::Allocated, addresses });
    }
    // What asks the pools has an answer soon; whatever else is not served asks for nothing any more.
    let waits = inputs.assignment.requests.of.contains_key(key);
    (shows && !waits).then_some(Said { verdict: Verdict::NotOurs, addresses })
}

/// Whether what a Service shows is left to others although this node would say `said`: by their settings they may be right, and
/// would only say it again, and so on for ever.
fn stands(service: &Service, shown: &Shown, said: &Said, is_first: bool) -> bool {
    match &said.verdict {
        Verdict::NotOurs => could_ask(service),
        Verdict::Refused { .. } => says_served(shown) || (says_refused(shown) && !is_first),
        Verdict::Allocated => {
            let vips: BTreeSet<IpAddr> = said.addresses.iter().map(|address| address.ip).collect();
            !is_first && !says_refused(shown) && served_at(shown) == vips
        }
    }
}

/// What a Service that asks by itself does not get.
fn missing(view: &View, key: &ObjectKey, service: &Service, served: bool) -> Option<Verdict> {
    let inputs = &view.inputs;
    // Of a Service that has an address the allocator may know less than the claims do.
    let by_claims = inputs.assignment.requests.refusals.get(key).map(Vec::as_slice).unwrap_or_default();
    let no_address = if served { by_claims } else { refusals(inputs, key, service) };
    let reason = if no_address.is_empty() { NOT_SERVED } else { NO_ADDRESS };
    let refused = view.refused.get(&*key.to_string()).into_iter().flatten().map(ToString::to_string);
    let all: Vec<String> = no_address.iter().map(ToString::to_string).chain(refused).collect();
    (!all.is_empty()).then(|| Verdict::Refused { reason: reason.into(), text: all.join("; ") })
}

/// Whether a Service asks for addresses by what it says itself, given or not.
fn asks(inputs: &Inputs, key: &ObjectKey, service: &Service) -> bool {
    let asking = &inputs.settings.asking;
    inputs.assignment.requests.of.contains_key(key)
        || (asking.annotations && service.annotations.contains_key(derive::VIPS))
        || (asking.external_ips && !service.external_ips.is_empty())
}

/// Whether there are settings by which a Service asks for addresses.
fn could_ask(service: &Service) -> bool {
    derive::could_be_ours(service)
        || service.annotations.contains_key(derive::VIPS)
        || !service.external_ips.is_empty()
}

/// Why a Service gets no address: what the allocator ran into, else what follows from the claims.
fn refusals<'a>(inputs: &Inputs<'a>, key: &ObjectKey, service: &Service) -> &'a [ipam::Refusal] {
    let outcome = inputs.outcomes.get(key).filter(|outcome| outcome.uid == service.uid);
    let found = outcome.map(|outcome| outcome.refusals.as_slice()).filter(|found| !found.is_empty());
    found.or_else(|| inputs.assignment.requests.refusals.get(key).map(Vec::as_slice)).unwrap_or_default()
}

/// The frontends that a Service has by what it says itself. What the ConfigMap gives it is the admin's, and its status is
/// left alone.
fn own_frontends(assignment: &Assignment, key: &ObjectKey) -> BTreeMap<Frontend, Mode> {
    match assignment.tasks.get(&Owner::Service(key.clone())).map(|task| &**task) {
        Some(Task::Service { frontends, .. }) => frontends
            .iter()
            .filter(|(_, serving)| serving.source != Source::ConfigMap)
            .map(|(frontend, serving)| (*frontend, serving.mode))
            .collect(),
        _ => BTreeMap::new(),
    }
}

/// The addresses of `frontends`, each with all ports of the Service and which of them are not served there.
fn addresses(view: &View, service: &Service, frontends: &BTreeMap<Frontend, Mode>) -> Vec<Address> {
    let vips: BTreeSet<IpAddr> = frontends.keys().map(|frontend| frontend.vip).collect();
    let port = |vip: IpAddr, port: &ServicePort| {
        let frontend = Frontend { vip, protocol: port.protocol, port: port.port };
        let error = (!frontends.contains_key(&frontend)).then(|| {
            if view.taken.contains(&frontend) { PORT_TAKEN.to_owned() } else { PORT_NOT_SERVED.to_owned() }
        });
        Port { protocol: port.protocol, port: port.port, error }
    };
    // Where kvip only announces, kube-proxy must not leave the address to it.
    let announced =
        |vip: IpAddr| frontends.iter().any(|(frontend, mode)| frontend.vip == vip && *mode == Mode::Announce);
    let address = |vip: IpAddr| Address {
        ip: vip,
        mode: if announced(vip) { IpMode::Vip } else { IpMode::Proxy },
        ports: service.ports.iter().map(|one| port(vip, one)).collect(),
    };
    vips.into_iter().map(address).collect()
}

/// The addresses that stay in the status although they are not served.
fn kept<'a>(
    assignment: &'a Assignment,
    key: &ObjectKey,
    service: &'a Service,
) -> impl Iterator<Item = Address> + 'a {
    let port = |one: &ServicePort| Port { protocol: one.protocol, port: one.port, error: None };
    let vips = assignment.shown.get(key).into_iter().flatten();
    vips.map(move |vip| Address {
        ip: *vip,
        mode: IpMode::Proxy,
        ports: service.ports.iter().map(port).collect(),
    })
}

/// The VIPs on this host, by the Services that they are for.
fn held(inputs: &Inputs) -> Map<ObjectKey, Held> {
    let mut held = Map::new();
    for (owner, task) in &inputs.assignment.tasks {
        let (Owner::Service(key), Task::Service { uid, .. }) = (owner, &**task) else { continue };
        let vips: BTreeSet<IpAddr> =
            task.frontends().map(|frontend| frontend.vip).filter(|vip| inputs.here.contains(vip)).collect();
        if !vips.is_empty() {
            held.insert(key.clone(), Arc::new(Held { uid: uid.clone(), vips }));
        }
    }
    held
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
