//! Which frontends each Service serves: everything that follows from asks, policies and groups, and nothing of endpoints.
//!
//! What is decided here changes with Services, Nodes, settings and the host; endpoints come and go beneath it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::asks::{Asked, Asks, Source, Want};
use super::checks::Checking;
use super::grammar::Entry;
use super::groups::MOST_VIPS;
use super::mode::Named;
use super::options::{self, Options};
use super::policy::Policy;
use super::{
    GroupView, Inputs, Owner, Vip, annotations, groups, kube_proxy, load_balancer, mode, shield,
    source_ranges,
};
use crate::config::{Mode, Static};
use crate::ipam::{Refusal, Request, Reserved, Step};
use crate::keepalived;
use crate::marks::Marks;
use crate::model::{Family, Finding, Frontend, ObjectKey};
use crate::net::HostFacts;
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
    /// VIPs that this host leaves to others, as it cannot serve them.
    pub yielded: BTreeSet<IpAddr>,
    /// The VIPs to hold.
    pub vips: Arc<BTreeMap<IpAddr, Vip>>,
    /// What each Service and static VIP serves.
    pub tasks: BTreeMap<Owner, Arc<Task>>,
    /// Frontends that only these networks may reach.
    pub source_ranges: BTreeMap<Frontend, BTreeSet<IpNet>>,
    /// This host's own addresses, where source ranges are about them.
    pub host: BTreeSet<IpAddr>,
    /// Frontends to keep from kube-proxy.
    pub shielded: BTreeSet<Frontend>,
    /// VIPs that Services keep in their status although they are not served: a status without them would have them served,
    /// and written again, for ever.
    pub shown: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    /// What Services of type LoadBalancer ask of the pools.
    pub requests: Arc<Requests>,
    /// Of some the holder sees one way of connections, or none: what other programs' rules make of these matters.
    pub one_way: bool,
    /// What is refused.
    pub findings: Vec<Finding>,
    /// What is assigned where nothing of this host speaks against it, if something does: other hosts may serve all of that.
    pub elsewhere: Option<Arc<Assignment>>,
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
        /// How it is to be served.
        options: Arc<Options>,
        /// Its label selector.
        selector: Option<BTreeMap<String, String>>,
        /// Its ports, those too that are served nowhere.
        ports: Vec<ServicePort>,
        /// Its frontends.
        frontends: BTreeMap<Frontend, Serving>,
    },
    /// A static VIP.
    Static {
        /// Where clients connect.
        frontend: Frontend,
        /// Where it is served.
        backends: Vec<SocketAddr>,
        /// How the backends are checked.
        checking: Option<Checking>,
    },
}

/// A port of a Service, served at a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The port.
    pub port: ServicePort,
    /// How it is asked for.
    pub source: Source,
    /// The forwarding mode.
    pub mode: Mode,
    /// The entry of the ConfigMap that names the mode, if one does.
    pub named: Option<Arc<Named>>,
    /// The nodes that may hold the VIP.
    pub members: Arc<BTreeSet<String>>,
    /// The client's address is to be kept, or the client is not served (externalTrafficPolicy Local).
    pub keeps_client: bool,
    /// Other nodes learn of its connections from the holder's sync daemon.
    pub synced: bool,
    /// Its firewall marks, where the mode needs some.
    pub marks: Option<Marks>,
}

impl Task {
    /// Its frontends.
    pub fn frontends(&self) -> Box<dyn Iterator<Item = Frontend> + '_> {
        match self {
            Self::Service { frontends, .. } => Box::new(frontends.keys().copied()),
            Self::Static { frontend, .. } => Box::new(std::iter::once(*frontend)),
        }
    }

    /// How each of a Service's frontends is served.
    fn serving(&self) -> impl Iterator<Item = (&Frontend, &Serving)> {
        let frontends = match self {
            Self::Service { frontends, .. } => Some(frontends),
            Self::Static { .. } => None,
        };
        frontends.into_iter().flatten()
    }

    /// Its frontends of the modes that `means` names; a static VIP is of mode nat.
    fn of_modes(&self, means: fn(Mode) -> bool) -> impl Iterator<Item = Frontend> {
        let fixed = match self {
            Self::Static { frontend, .. } => Some(*frontend).filter(|_| means(Mode::Nat)),
            Self::Service { .. } => None,
        };
        let of_service = self.serving().filter(move |(_, serving)| means(serving.mode));
        of_service.map(|(frontend, _)| *frontend).chain(fixed)
    }

    /// Those of its frontends that this host takes connections for: all that no other program balances.
    pub fn balanced_here(&self) -> impl Iterator<Item = Frontend> {
        self.of_modes(|mode| mode != Mode::Announce)
    }

    /// Those of its frontends that IPVS balances.
    pub fn balanced_by_ipvs(&self) -> impl Iterator<Item = Frontend> {
        self.of_modes(|mode| !matches!(mode, Mode::Announce | Mode::Proxy))
    }

    /// Its frontends that connection tracking is not to know.
    pub fn untracked(&self) -> impl Iterator<Item = Frontend> {
        let options = match self {
            Self::Service { options, .. } => Some(options),
            Self::Static { .. } => None,
        };
        let is_it = move |(frontend, serving): &(&Frontend, &Serving)| {
            options.is_some_and(|options| options.is_untracked(**frontend, serving.mode))
        };
        self.serving().filter(is_it).map(|(frontend, _)| *frontend)
    }

    /// Its frontends of mode dsr, with their marks.
    fn marks(&self) -> impl Iterator<Item = (Frontend, Marks)> {
        self.serving().filter_map(|(frontend, serving)| Some((*frontend, serving.marks?)))
    }

    /// The nodes that share its frontends of mode dsr.
    pub fn dsr_members(&self) -> impl Iterator<Item = &String> {
        let dsr = self.serving().filter(|(_, serving)| serving.mode == Mode::Dsr);
        dsr.flat_map(|(_, serving)| serving.members.iter())
    }
}

impl Assignment {
    /// The frontends of mode nat.
    pub fn of_mode_nat(&self) -> BTreeSet<Frontend> {
        self.tasks.values().flat_map(|task| task.of_modes(|mode| mode == Mode::Nat)).collect()
    }

    /// The frontends of mode dsr, with their marks.
    pub fn marks(&self) -> BTreeMap<Frontend, Marks> {
        self.tasks.values().flat_map(|task| task.marks()).collect()
    }
}

/// Assigns frontends to Services; those of mode dsr that have `marks` keep them.
pub fn assign(inputs: &Inputs, marks: &BTreeMap<Frontend, Marks>) -> Assignment {
    let (here, by_host) = assigned(inputs, marks);
    let nowhere = HostFacts::default();
    let elsewhere = by_host.then(|| Arc::new(assigned(&Inputs { facts: &nowhere, ..*inputs }, marks).0));
    Assignment { elsewhere, ..here }
}

/// What is assigned by the facts of `inputs`, and whether these keep something from being served.
fn assigned(inputs: &Inputs, marks: &BTreeMap<Frontend, Marks>) -> (Assignment, bool) {
    let policy = Policy::new(inputs);
    let mut asks = Asks::gather(inputs, &policy);
    let mut findings = std::mem::take(&mut asks.findings);
    let node = groups::own_node(inputs, &mut findings);
    let groups = groups::groups(inputs, node.as_deref(), asks.in_order(inputs), &mut findings);
    let carried = |vip: &IpAddr| groups.views.values().any(|group| group.vips.contains(vip));
    for (vip, asked) in asks.vips.iter().filter(|(vip, _)| !carried(vip)) {
        for want in &asked.entries {
            let text =
                format!("not served at {vip}: its group carries {MOST_VIPS} VIPs of the family before it");
            findings.push(want.source.refusal(Finding::new(&want.entry.service, text).mend(groups::SPREAD)));
        }
    }
    let mut tasks = Tasks {
        inputs: *inputs,
        taken: BTreeMap::new(),
        by_owner: BTreeMap::new(),
        members: members(&groups.views),
        synced: synced(inputs, &groups.views),
        options: BTreeMap::new(),
        shown: BTreeMap::new(),
        findings,
    };
    for one in inputs.settings.statics.iter().filter(|one| carried(&one.vip)) {
        tasks.fixed(one);
    }
    for (vip, asked) in asks.vips.iter().filter(|(vip, _)| carried(vip)) {
        tasks.vip(*vip, asked);
    }
    tasks.mark(marks);
    let announced = tasks.announced();
    let seen_so = |task: &Task| task.of_modes(Mode::is_one_way).chain(task.untracked()).next().is_some();
    let one_way = tasks.by_owner.values().any(seen_so);
    let held = asks.vips.iter().filter(|(vip, _)| carried(vip));
    let source_ranges = tasks.source_ranges();
    let shielded = shield::shielded(inputs, &tasks.by_owner);
    let (mut findings, shown) = (tasks.findings, tasks.shown);
    let tasks = tasks.by_owner.into_iter().map(|(owner, task)| (owner, Arc::new(task))).collect();
    let yielded = kube_proxy::yielded(inputs, &tasks);
    findings.extend(kube_proxy::finding(inputs, &yielded));
    let held = held.filter(|(vip, _)| !yielded.contains(*vip));
    let held = held.map(|(vip, asked)| {
        (*vip, Vip { floats_only: asked.floats_only, announced: announced.contains(vip) })
    });
    let vips = held.collect();
    let reserved =
        policy.reserved(asks.vips.iter().filter(|(_, asked)| !asked.is_granted()).map(|(vip, _)| *vip));
    let requests = load_balancer::refusals(inputs, asks.requests, reserved, &mut findings);
    let host = if source_ranges.is_empty() { BTreeSet::new() } else { own_addresses(inputs) };
    let assignment = Assignment {
        shielded,
        shown,
        node,
        groups: Arc::new(groups.views),
        keepalived: Arc::new(kube_proxy::without(&yielded, groups.keepalived)),
        yielded,
        vips: Arc::new(vips),
        tasks,
        source_ranges,
        host,
        requests: Arc::new(requests),
        one_way,
        findings,
        elsewhere: None,
    };
    (assignment, asks.by_host)
}

/// The members of the group of each VIP.
fn members(groups: &BTreeMap<String, GroupView>) -> BTreeMap<IpAddr, Arc<BTreeSet<String>>> {
    let mut members = BTreeMap::new();
    for group in groups.values() {
        let names: Arc<BTreeSet<String>> = Arc::new(group.members.keys().cloned().collect());
        members.extend(group.vips.iter().map(|vip| (*vip, Arc::clone(&names))));
    }
    members
}

/// The VIPs of the group whose holder tells the others of its connections, where the sync daemon is on.
fn synced(inputs: &Inputs, groups: &BTreeMap<String, GroupView>) -> BTreeSet<IpAddr> {
    let settings = inputs.settings;
    let followed = |group: &&GroupView| settings.balancing.sync.on && group.vrid == settings.vrrp.vrid;
    groups.values().filter(followed).flat_map(|group| group.vips.iter().copied()).collect()
}

/// This host's own addresses, VIPs aside.
pub fn own_addresses(inputs: &Inputs) -> BTreeSet<IpAddr> {
    let own = inputs.facts.addresses.iter().filter(|address| !address.marked_as_vip());
    own.map(|address| address.ip).collect()
}

/// Tasks as they are handed out. Of two that want one frontend the first gets it.
struct Tasks<'a> {
    inputs: Inputs<'a>,
    taken: BTreeMap<Frontend, Owner>,
    by_owner: BTreeMap<Owner, Task>,
    members: BTreeMap<IpAddr, Arc<BTreeSet<String>>>,
    synced: BTreeSet<IpAddr>,
    options: BTreeMap<ObjectKey, Arc<Options>>,
    shown: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    findings: Vec<Finding>,
}

impl Tasks<'_> {
    fn fixed(&mut self, one: &Static) {
        let frontend = Frontend { vip: one.vip, protocol: one.protocol, port: one.port };
        let owner = Owner::Static(one.name.clone());
        if self.take(frontend, &owner, Source::Static) {
            let checking = one.check.then(Checking::of_static);
            self.by_owner.insert(owner, Task::Static { frontend, backends: one.backends.clone(), checking });
        }
    }

    fn vip(&mut self, vip: IpAddr, asked: &Asked) {
        for want in &asked.entries {
            match serviceable(&self.inputs, vip, &want.entry) {
                Ok((service, ports)) => self.ports(vip, want, service, ports),
                Err(finding) => self.findings.push(want.source.refusal(finding)),
            }
        }
    }

    fn ports(&mut self, vip: IpAddr, want: &Want, service: &Service, ports: Vec<&ServicePort>) {
        let key = &want.entry.service;
        let options = self.options(key, service);
        let named = Named::of(&self.inputs, vip, want).map(Arc::new);
        match mode::of(&self.inputs, vip, want, named.as_deref(), service, &options) {
            Ok(mode) => {
                let synced = self.synced.contains(&vip);
                self.findings.extend(options::without_effect(key, service, &options, mode, synced));
                if mode == Mode::Announce {
                    let unbalanced = mode::unbalanced(vip, want, service);
                    self.findings.extend(unbalanced.map(|finding| want.source.refusal(finding)));
                }
                for port in ports.into_iter().filter(|port| want.means(port)) {
                    self.port((vip, want), named.as_ref(), service, &options, port, mode);
                }
            }
            Err(refused) => {
                if refused.by_its_status && want.source == Source::LoadBalancer {
                    self.shown.entry(key.clone()).or_default().insert(vip);
                }
                self.findings.push(want.source.refusal(refused.finding));
            }
        }
    }

    /// What the Service says of how it is served; read once, so that each mistake is one finding.
    fn options(&mut self, key: &ObjectKey, service: &Service) -> Arc<Options> {
        let (inputs, findings) = (&self.inputs, &mut self.findings);
        let read = || {
            let service = annotations::permitted(inputs, key, service, findings);
            Arc::new(Options::of(key, &service, inputs.settings, findings))
        };
        Arc::clone(self.options.entry(key.clone()).or_insert_with(read))
    }

    fn port(
        &mut self,
        (vip, want): (IpAddr, &Want),
        named: Option<&Arc<Named>>,
        service: &Service,
        options: &Arc<Options>,
        port: &ServicePort,
        mode: Mode,
    ) {
        let (key, source) = (&want.entry.service, want.source);
        if let Some(finding) = mode::unfit(vip, key, named.map(AsRef::as_ref), port, mode) {
            self.findings.push(source.refusal(finding));
            return;
        }
        let frontend = Frontend { vip, protocol: port.protocol, port: port.port };
        let owner = Owner::Service(key.clone());
        if !self.take(frontend, &owner, source) {
            return;
        }
        let members = self.members.get(&vip).cloned().unwrap_or_default();
        let fresh = || Task::Service {
            uid: service.uid.clone(),
            options: Arc::clone(options),
            selector: service.selector.clone(),
            ports: service.ports.clone(),
            frontends: BTreeMap::new(),
        };
        if let Task::Service { frontends, .. } = self.by_owner.entry(owner).or_insert_with(fresh) {
            let keeps_client = service.local_policy;
            let synced = self.synced.contains(&vip);
            let (port, named) = (port.clone(), named.cloned());
            let serving =
                || Serving { port, source, mode, named, members, keeps_client, synced, marks: None };
            frontends.entry(frontend).or_insert_with(serving);
        }
    }

    /// Gives the frontends of mode dsr their marks. Those of the youngest Services for which there are none left are not
    /// served.
    fn mark(&mut self, before: &BTreeMap<Frontend, Marks>) {
        let bits = self.inputs.settings.dsr.mark_bits;
        let mut owners: Vec<(&Owner, &Task)> = self.by_owner.iter().collect();
        owners.sort_by_key(|(owner, _)| self.age(owner));
        let dsr = |(_, task): (_, &Task)| task.of_modes(|mode| mode == Mode::Dsr).collect::<Vec<_>>();
        let frontends: Vec<Frontend> = owners.into_iter().flat_map(dsr).collect();
        let marks = bits.allot(frontends.iter(), before, self.inputs.foreign_marks);
        for (owner, task) in &mut self.by_owner {
            let Task::Service { frontends, .. } = task else { continue };
            for (frontend, serving) in frontends.iter_mut().filter(|(_, one)| one.mode == Mode::Dsr) {
                serving.marks = marks.get(frontend).copied();
                if serving.marks.is_none() {
                    let text =
                        format!("not served at {frontend}: all {} marks for mode dsr are taken", bits.room());
                    let finding = Finding::new(owner, text).mend("give dsr.mark_bits more bits");
                    self.findings.push(serving.source.refusal(finding));
                }
            }
            frontends.retain(|_, serving| serving.mode != Mode::Dsr || serving.marks.is_some());
        }
    }

    /// When the Service that is to be served was made, and its UID, as of Services that ask alike; what is static comes first.
    fn age(&self, owner: &Owner) -> Option<(i64, &str)> {
        let Owner::Service(key) = owner else { return None };
        self.inputs.snapshot.services.get(key).map(|service| (service.created, &*service.uid))
    }

    /// VIPs with a frontend that others balance, so that kvip cannot know which of their ports are taken.
    fn announced(&self) -> BTreeSet<IpAddr> {
        let announced = |task: &Task| task.of_modes(|mode| mode == Mode::Announce).collect::<Vec<_>>();
        self.by_owner.values().flat_map(announced).map(|frontend| frontend.vip).collect()
    }

    fn take(&mut self, frontend: Frontend, owner: &Owner, source: Source) -> bool {
        let first = self.taken.entry(frontend).or_insert_with(|| owner.clone());
        if first == owner {
            return true;
        }
        let Frontend { vip, protocol, port } = frontend;
        let text = format!("not served at {vip} {protocol} {port}: {first} has it");
        let mend = "give one of the two another VIP or port, or let the ConfigMap select ports (ns/svc:port)";
        self.findings.push(source.refusal(Finding::new(owner, text).mend(mend)));
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
    let Some(service) = inputs.snapshot.services.get(key) else {
        let mend = format!("kubectl -n {} get services", key.namespace);
        return Err(refused("there is no such Service".into()).mend(mend));
    };
    if let Some(why) = not_balanced(service) {
        return Err(refused(why.into()));
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

fn port_list(service: &Service) -> String {
    let ports: Vec<String> =
        service.ports.iter().map(|port| format!("{} {}", port.protocol, port.port)).collect();
    if ports.is_empty() { "none".into() } else { ports.join(", ") }
}
