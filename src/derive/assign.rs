//! Which frontends each Service serves: everything that follows from asks, policies and groups, and nothing of endpoints.
//!
//! What is decided here changes with Services, Nodes, settings and the host; endpoints come and go beneath it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::asks::{self, Asked, Asks, Source};
use super::grammar::Entry;
use super::policy::Policy;
use super::{GroupView, Inputs, Owner, Vip, groups, load_balancer, source_ranges};
use crate::config::Static;
use crate::ipam::{Refusal, Request, Reserved, Step};
use crate::keepalived;
use crate::model::{Family, Finding, Frontend, ObjectKey};
use crate::snapshot::{Service, ServiceKind, ServicePort};

/// What is decided before any endpoint is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment {
    /// This node's name, when it is known.
    pub node: Option<String>,
    /// The VRRP groups by name.
    pub groups: Arc<BTreeMap<String, GroupView>>,
    /// What keepalived must run.
    pub keepalived: Arc<keepalived::Config>,
    /// The VIPs to hold.
    pub vips: Arc<BTreeMap<IpAddr, Vip>>,
    /// What each Service and static VIP serves.
    pub tasks: BTreeMap<Owner, Arc<Task>>,
    /// Frontends that only these networks may reach.
    pub source_ranges: BTreeMap<Frontend, BTreeSet<IpNet>>,
    /// This host's own addresses, where source ranges are about them.
    pub host: BTreeSet<IpAddr>,
    /// What Services of type LoadBalancer ask of the pools.
    pub requests: Arc<Requests>,
    /// What is refused.
    pub findings: Vec<Finding>,
}

/// What is asked of the pools, and what they cannot give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    /// By Service.
    pub of: BTreeMap<ObjectKey, Arc<Request>>,
    /// What is not given, and why, by Service.
    pub refusals: BTreeMap<ObjectKey, Vec<Refusal>>,
    /// Services for which an allocator has something to do, with what it does first.
    pub pending: BTreeMap<ObjectKey, Step>,
    /// Addresses that are given to nobody.
    pub reserved: Reserved,
}

/// What one owner serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// A Service: by frontend the port of it that is meant.
    Service {
        /// The Service's UID.
        uid: String,
        /// For how long a client keeps its pod.
        affinity: Option<Duration>,
        /// Its label selector.
        selector: Option<BTreeMap<String, String>>,
        /// Its frontends, with how they are asked for.
        frontends: BTreeMap<Frontend, (ServicePort, Source)>,
    },
    /// A static VIP.
    Static {
        /// Where clients connect.
        frontend: Frontend,
        /// Where it is served.
        backends: Vec<SocketAddr>,
    },
}

impl Task {
    /// Its frontends.
    pub fn frontends(&self) -> Box<dyn Iterator<Item = Frontend> + '_> {
        match self {
            Self::Service { frontends, .. } => Box::new(frontends.keys().copied()),
            Self::Static { frontend, .. } => Box::new(std::iter::once(*frontend)),
        }
    }
}

/// Assigns frontends to Services.
pub fn assign(inputs: &Inputs) -> Assignment {
    let policy = Policy::new(inputs);
    let mut asks = Asks::gather(inputs, &policy);
    let mut findings = std::mem::take(&mut asks.findings);
    let node = groups::own_node(inputs, &mut findings);
    let vips = asks.vips.keys().copied().collect();
    let groups = groups::groups(inputs, node.as_deref(), &vips, &mut findings);
    let carried = |vip: &IpAddr| groups.views.values().any(|group| group.vips.contains(vip));
    let mut tasks = Tasks { inputs: *inputs, taken: BTreeMap::new(), by_owner: BTreeMap::new(), findings };
    for one in inputs.settings.statics.iter().filter(|one| carried(&one.vip)) {
        tasks.fixed(one);
    }
    for (vip, asked) in asks.vips.iter().filter(|(vip, _)| carried(vip)) {
        tasks.vip(*vip, asked);
    }
    let held = asks.vips.iter().filter(|(vip, _)| carried(vip));
    let vips = held.map(|(vip, asked)| (*vip, Vip { floats_only: asked.floats_only })).collect();
    let reserved =
        policy.reserved(asks.vips.iter().filter(|(_, asked)| !asked.is_granted()).map(|(vip, _)| *vip));
    let requests = load_balancer::refusals(inputs, asks.requests, reserved, &mut tasks.findings);
    let source_ranges = tasks.source_ranges();
    let host = if source_ranges.is_empty() { BTreeSet::new() } else { own_addresses(inputs) };
    Assignment {
        node,
        groups: Arc::new(groups.views),
        keepalived: Arc::new(groups.keepalived),
        vips: Arc::new(vips),
        tasks: tasks.by_owner.into_iter().map(|(owner, task)| (owner, Arc::new(task))).collect(),
        source_ranges,
        host,
        requests: Arc::new(requests),
        findings: tasks.findings,
    }
}

fn own_addresses(inputs: &Inputs) -> BTreeSet<IpAddr> {
    let own = inputs.facts.addresses.iter().filter(|address| !address.marked_as_vip());
    own.map(|address| address.ip).collect()
}

/// Tasks as they are handed out. Of two that want one frontend the first gets it.
struct Tasks<'a> {
    inputs: Inputs<'a>,
    taken: BTreeMap<Frontend, Owner>,
    by_owner: BTreeMap<Owner, Task>,
    findings: Vec<Finding>,
}

impl Tasks<'_> {
    fn fixed(&mut self, one: &Static) {
        let frontend = Frontend { vip: one.vip, protocol: one.protocol, port: one.port };
        let owner = Owner::Static(one.name.clone());
        if self.take(frontend, &owner) {
            self.by_owner.insert(owner, Task::Static { frontend, backends: one.backends.clone() });
        }
    }

    fn vip(&mut self, vip: IpAddr, asked: &Asked) {
        for want in &asked.entries {
            match serviceable(&self.inputs, vip, &want.entry) {
                Ok((service, ports)) => {
                    for port in ports.into_iter().filter(|port| want.means(port)) {
                        self.port(vip, &want.entry.service, service, port, want.source);
                    }
                }
                Err(finding) => self.findings.push(finding),
            }
        }
    }

    fn port(&mut self, vip: IpAddr, key: &ObjectKey, service: &Service, port: &ServicePort, source: Source) {
        let frontend = Frontend { vip, protocol: port.protocol, port: port.port };
        let owner = Owner::Service(key.clone());
        if !self.take(frontend, &owner) {
            return;
        }
        let fresh = || Task::Service {
            uid: service.uid.clone(),
            affinity: service.affinity,
            selector: service.selector.clone(),
            frontends: BTreeMap::new(),
        };
        if let Task::Service { frontends, .. } = self.by_owner.entry(owner).or_insert_with(fresh) {
            frontends.entry(frontend).or_insert_with(|| (port.clone(), source));
        }
    }

    fn take(&mut self, frontend: Frontend, owner: &Owner) -> bool {
        let first = self.taken.entry(frontend).or_insert_with(|| owner.clone());
        if first == owner {
            return true;
        }
        let Frontend { vip, protocol, port } = frontend;
        let text = format!("not served at {vip} {protocol} {port}: {first} has it");
        let mend = "give one of the two another VIP or port, or let the ConfigMap select ports (ns/svc:port)";
        self.findings.push(Finding::new(owner, text).mend(mend));
        false
    }

    fn source_ranges(&mut self) -> BTreeMap<Frontend, BTreeSet<IpNet>> {
        let mut all = BTreeMap::new();
        for (owner, task) in &self.by_owner {
            let (Owner::Service(key), Task::Service { frontends, .. }) = (owner, task) else { continue };
            let Some(service) = self.inputs.snapshot.services.get(key) else { continue };
            let ranges = source_ranges::read(key, service, &mut self.findings);
            for frontend in frontends.keys() {
                if let Some(networks) = ranges.of(Family::of(frontend.vip)) {
                    all.insert(*frontend, networks.clone());
                }
            }
        }
        all
    }
}

/// The Service of an entry and those of its ports that the entry means, or why it cannot be served.
fn serviceable<'a>(
    inputs: &Inputs<'a>,
    vip: IpAddr,
    entry: &Entry,
) -> Result<(&'a Service, Vec<&'a ServicePort>), Finding> {
    let key = &entry.service;
    let refused = |why: String| Finding::new(key, format!("not served at {vip}: {why}"));
    if let Some(method) = asks::unavailable(entry.method) {
        let why = format!("method {} is not available in this version; NAT is", method.name());
        let port = entry.port.map_or(String::new(), |port| format!(":{port}"));
        return Err(refused(why).mend(format!("write {key}{port} or {key}{port}:NAT in the ConfigMap")));
    }
    let Some(service) = inputs.snapshot.services.get(key) else {
        let mend = format!("kubectl -n {} get services", key.namespace);
        return Err(refused("there is no such Service".into()).mend(mend));
    };
    if let Some(why) = not_balanced(service) {
        return Err(refused(why.into()));
    }
    if service.local_policy {
        let why = "externalTrafficPolicy Local keeps the client's address, which NAT cannot".to_owned();
        return Err(refused(why).mend(policy_cluster(key)));
    }
    let ports: Vec<_> =
        service.ports.iter().filter(|port| entry.port.is_none_or(|number| number == port.port)).collect();
    match (entry.port, ports.is_empty()) {
        (Some(number), true) => {
            Err(refused(format!("it has no port {number}; it has {}", port_list(service))))
        }
        (None, true) => Err(refused("it has no ports".into())),
        _ => Ok((service, ports)),
    }
}

fn not_balanced(service: &Service) -> Option<&'static str> {
    match service.kind {
        ServiceKind::Balanced => None,
        ServiceKind::Headless => Some("it is headless (clusterIP None), so there is nothing to balance"),
        ServiceKind::ExternalName => Some("it is of type ExternalName, an alias in DNS"),
    }
}

fn policy_cluster(key: &ObjectKey) -> String {
    let ObjectKey { namespace, name } = key;
    format!(
        "kubectl -n {namespace} patch service {name} -p '{{\"spec\":{{\"externalTrafficPolicy\":\"Cluster\"}}}}'"
    )
}

fn port_list(service: &Service) -> String {
    let ports: Vec<String> =
        service.ports.iter().map(|port| format!("{} {}", port.protocol, port.port)).collect();
    if ports.is_empty() { "none".into() } else { ports.join(", ") }
}
