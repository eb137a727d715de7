//! One owner's frontends with their real servers: the only step that looks at endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::asks::Source;
use super::assign::{Serving, Task};
use super::checks::{self, Checking, Judged};
use super::endpoints::{self, Behind, Carrying, Handing, Names, Scope, Sought, Surroundings};
use super::options::Options;
use super::virtual_servers::virtual_servers;
use super::{Balanced, Forwarding, Owner, Place, Proxying, Served, Server, WantedServer, kube_proxy, mode};
use crate::config::Mode;
use crate::haproxy;
use crate::health::check::{Down, Target};
use crate::ipvs;
use crate::ipvs::model::{Forward, Thresholds};
use crate::model::{Backend, Family, Finding, Frontend, ObjectKey};
use crate::nft::firewall::{Dropping, Firewall};
use crate::snapshot::EndpointSlice;

/// What all parts are made with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// What endpoints are looked at with.
    pub around: Surroundings,
    /// The kernel's name of the scheduler of static VIPs.
    pub scheduler: String,
    /// What other programs' rules let in.
    pub firewall: Firewall,
    /// VIPs that this host leaves to others.
    pub yielded: BTreeSet<IpAddr>,
    /// This host's own addresses.
    pub own: BTreeSet<IpAddr>,
}

impl Context {
    /// Whether this node is one of those that may hold the VIP.
    fn may_hold(&self, serving: &Serving) -> bool {
        self.around.node.as_ref().is_some_and(|node| serving.members.contains(node))
    }

    /// Whether this host leaves the VIP of `frontend` to others.
    fn yields(&self, frontend: &Frontend) -> bool {
        self.yielded.contains(&frontend.vip)
    }

    /// Whether IPVS gives connections to `served` to an address of this host, by NAT.
    fn turns_inward(&self, served: &Served) -> bool {
        let own = |backend: &Backend| self.own.contains(&backend.address);
        served.mode == Mode::Nat && !served.virtual_servers.is_empty() && served.servers.keys().any(own)
    }
}

/// What one owner's task comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Its frontends.
    pub frontends: BTreeMap<Frontend, Arc<Served>>,
    /// The nodes that run its real servers.
    pub nodes: BTreeSet<String>,
    /// Pods of nodes whose ways are to be looked at.
    pub ways: BTreeSet<(String, IpAddr)>,
    /// The endpoints to check.
    pub targets: BTreeSet<Target>,
    /// Those of the frontends whose packets from this host's own processes are to be steered into it.
    pub inward: BTreeSet<Frontend>,
    /// What does not serve.
    pub findings: BTreeSet<Finding>,
    /// Those of the targets that are down, with what was found.
    down: BTreeMap<Target, Arc<str>>,
}

/// Makes the part of `owner`, with the slices of its Service and the endpoints that are `down`.
pub fn serve(
    context: &Context,
    down: &Down,
    owner: &Owner,
    task: &Task,
    slices: &[&Arc<EndpointSlice>],
) -> Part {
    let mut part = Part::default();
    match (task, owner) {
        (Task::Service { options, selector, ports, frontends, .. }, Owner::Service(key)) => {
            let names = &ports.iter().map(|port| (port.name.as_str(), port.protocol)).collect();
            let service = Facts { key, options, selector: selector.as_ref(), names };
            let here = |frontend, serving| !context.yields(frontend) || kube_proxy::goes_on(serving);
            for (frontend, serving) in frontends.iter().filter(|(frontend, serving)| here(frontend, serving))
            {
                part.service(context, down, service, *frontend, serving, slices);
            }
        }
        (Task::Static { frontend, backends, checking }, owner) if !context.yields(frontend) => {
            part.fixed(context, down, owner, *frontend, backends, checking.as_ref());
        }
        (Task::Static { .. }, _) | (Task::Service { .. }, Owner::Static(_)) => {}
    }
    part.findings.extend(checks::findings(owner, &part.down));
    part
}

/// What a part needs of its Service.
#[derive(Debug, Clone, Copy)]
struct Facts<'a> {
    key: &'a ObjectKey,
    options: &'a Options,
    selector: Option<&'a BTreeMap<String, String>>,
    /// What its ports are called.
    names: &'a Names<'a>,
}

impl<'a> Facts<'a> {
    /// How its endpoints are checked: where others balance it would change nothing.
    fn checking(self, mode: Mode) -> Option<&'a Checking> {
        self.options.checking.as_ref().filter(|_| mode != Mode::Announce)
    }
}

impl Part {
    fn service(
        &mut self,
        context: &Context,
        down: &Down,
        service: Facts<'_>,
        frontend: Frontend,
        serving: &Serving,
        slices: &[&Arc<EndpointSlice>],
    ) {
        let dropping = context.firewall.dropping(&frontend, serving.mode);
        let blocked = dropping.as_ref().map(Dropping::words);
        let (members, port) = (&*serving.members, frontend.port);
        let scope = match serving.mode {
            Mode::Dsr => Scope::Everywhere(Handing {
                members,
                blocked: blocked.as_deref(),
                only: serving.keeps_client,
            }),
            Mode::Dr => Scope::Carriers(Carrying { members, wrapped: false, port }),
            Mode::Tunnel => Scope::Carriers(Carrying { members, wrapped: true, port }),
            Mode::Nat | Mode::Proxy | Mode::Announce => Scope::ThisNode,
        };
        let all = virtual_servers(service.options, frontend, serving);
        let untracked = service.options.is_untracked(frontend, serving.mode);
        let sought = Sought {
            port: &serving.port,
            names: service.names,
            family: Family::of(frontend.vip),
            ordered: all.iter().any(|balanced| balanced.service.goes_by_order()),
            unmasked: untracked,
        };
        let weights = &service.options.zone_weights;
        let mut behind = endpoints::behind(&context.around, slices, sought, scope, weights);
        let owner = Owner::Service(service.key.clone());
        let checking = service.checking(serving.mode);
        let all_stay = serving.mode == Mode::Dsr;
        let judge = |one: &Checking| one.judge(frontend.protocol, down, all_stay, &mut behind.servers);
        let judged = checking.map(judge).unwrap_or_default();
        self.findings.extend(nothing_behind(service, frontend, serving, &behind, &judged));
        let proxying = (serving.mode == Mode::Proxy)
            .then(|| proxying(service.options, behind.silent.union(&judged.removed)));
        self.judged(&owner, frontend, judged);
        self.findings.extend(hanging(context, service.key, frontend, serving, dropping.as_ref()));
        self.findings.extend(beyond(service.key, frontend, serving, &behind, dropping));
        self.findings.extend(dropped_by_mark(service.key, frontend, serving, &context.firewall));
        self.findings
            .extend(untracked.then(|| dropped_untracked(context, service.key, frontend, serving)).flatten());
        let served = Served {
            owner,
            source: serving.source,
            mode: serving.mode,
            virtual_servers: if context.yields(&frontend) { kube_proxy::left(all) } else { all },
            servers: behind.servers,
            thresholds: service.options.thresholds,
            check: checking.and_then(|checking| checking.check_of(frontend.protocol)),
            proxying,
            total: behind.total,
        };
        self.nodes.extend(behind.nodes);
        self.ways.extend(behind.ways);
        self.takes(context, frontend, served);
    }

    fn fixed(
        &mut self,
        context: &Context,
        down: &Down,
        owner: &Owner,
        frontend: Frontend,
        backends: &[SocketAddr],
        checking: Option<&Checking>,
    ) {
        let backend = |to: &SocketAddr| (Backend { address: to.ip(), port: to.port() }, ACTIVE);
        let mut servers = backends.iter().map(backend).collect();
        if let Some(checking) = checking {
            let judged = checking.judge(frontend.protocol, down, false, &mut servers);
            self.judged(owner, frontend, judged);
        }
        let service = ipvs::Service { scheduler: context.scheduler.clone(), persistence: None, flags: 0 };
        let forwarding = Forwarding::All(Forward::Masquerade);
        let served = Served {
            owner: owner.clone(),
            source: Source::Static,
            mode: Mode::Nat,
            virtual_servers: vec![Balanced { key: frontend.into(), service, forwarding }],
            servers,
            thresholds: Thresholds::default(),
            check: checking.and_then(|checking| checking.check_of(frontend.protocol)),
            proxying: None,
            total: backends.len(),
        };
        self.takes(context, frontend, served);
    }
}

impl Part {
    fn takes(&mut self, context: &Context, frontend: Frontend, served: Served) {
        if context.turns_inward(&served) {
            self.inward.insert(frontend);
        }
        self.frontends.insert(frontend, Arc::new(served));
    }

    /// Takes in what the checks made of a frontend.
    fn judged(&mut self, owner: &Owner, frontend: Frontend, judged: Judged) {
        if judged.all_are_tried {
            let all = judged.down.len();
            let text = format!("{frontend}: none of {all} answers its check, so all are tried");
            self.findings.insert(Finding::new(owner, text));
        }
        self.targets.extend(judged.targets);
        self.down.extend(judged.down);
    }
}

fn proxying<'a>(options: &Options, ended: impl Iterator<Item = &'a Backend>) -> Proxying {
    let balance = haproxy::Balance::of(options.scheduler, options.affinity.is_some());
    Proxying { protocol: options.proxy_protocol, balance, ended: ended.copied().collect() }
}

/// A backend of a static VIP.
const ACTIVE: Server = Server { wanted: WantedServer::Active, weight: 1, place: Place::Elsewhere };

/// The finding of endpoints that packets cannot be handed on to as they came.
fn beyond(
    key: &ObjectKey,
    frontend: Frontend,
    serving: &Serving,
    behind: &Behind,
    dropping: Option<Dropping<'_>>,
) -> Option<Finding> {
    if behind.beyond.is_empty() {
        return None;
    }
    let Frontend { vip, protocol, port } = frontend;
    if serving.mode != Mode::Dsr {
        return Some(comes_back(key, frontend, serving, behind));
    }
    let why = match &dropping {
        Some(dropping) => format!(
            "this host drops packets of connections of which it sees one way ({}), so pods on other nodes",
            dropping.words()
        ),
        None => {
            let name =
                |node: &str| if node.is_empty() { "no known node".to_owned() } else { node.to_owned() };
            let named = behind.beyond.iter().map(|(node, why)| format!("{} ({why})", name(node)));
            format!(
                "packets cannot be handed on as they came to pods on {}, so these",
                named.collect::<Vec<_>>().join(", ")
            )
        }
    };
    let then = if serving.keeps_client {
        "are left out, as externalTrafficPolicy Local keeps the client's address"
    } else {
        "are served by NAT and see this node's address"
    };
    let mend = match dropping {
        Some(dropping) => dropping.mend(vip),
        None if serving.keeps_client => {
            "give the group these nodes (vrrp.members), or their pods a direct route or a tunnel; see Forwarding modes in docs/services.md".into()
        }
        None => mode::use_mode(key, serving.named.as_deref(), Mode::Nat),
    };
    Some(Finding::new(key, format!("{vip} {protocol} {port} in mode dsr: {why} {then}")).mend(mend))
}

/// The finding of rules that drop what this node sees one way of, in modes that know no other way to a pod.
fn hanging(
    context: &Context,
    key: &ObjectKey,
    frontend: Frontend,
    serving: &Serving,
    dropping: Option<&Dropping<'_>>,
) -> Option<Finding> {
    let dropping = dropping.filter(|_| context.may_hold(serving) && serving.mode != Mode::Dsr)?;
    let Frontend { vip, protocol, port } = frontend;
    let text = format!(
        "{vip} {protocol} {port} in mode {}: this host drops packets of connections of which it sees one way ({}), so \
         connections hang while it holds the VIP",
        serving.mode.name(),
        dropping.words()
    );
    Some(Finding::new(key, text).mend(dropping.mend(vip)))
}

/// The finding of rules that drop what kvip has marked.
fn dropped_by_mark(
    key: &ObjectKey,
    frontend: Frontend,
    serving: &Serving,
    firewall: &Firewall,
) -> Option<Finding> {
    let dropping = firewall.dropping_marked(&frontend, serving.mode)?;
    let Frontend { vip, protocol, port } = frontend;
    let text = format!(
        "{vip} {protocol} {port} in mode dsr: this host drops packets by the mark that kvip gives them ({}), so none that comes \
         here gets to a pod",
        dropping.words()
    );
    Some(Finding::new(key, text).mend(dropping.mend(vip)))
}

/// The finding of rules that drop what connection tracking does not know.
fn dropped_untracked(
    context: &Context,
    key: &ObjectKey,
    frontend: Frontend,
    serving: &Serving,
) -> Option<Finding> {
    let dropping = context.firewall.dropping_untracked(&frontend).filter(|_| context.may_hold(serving))?;
    let Frontend { vip, protocol, port } = frontend;
    let text = format!(
        "{vip} {protocol} {port}, one by one: this host drops datagrams that connection tracking does not know ({}), so none \
         gets to a pod while it holds the VIP",
        dropping.words()
    );
    Some(Finding::new(key, text).mend(dropping.mend(vip)))
}

/// The finding of endpoints whose nodes may hold the VIP, so that none can carry it for them.
fn comes_back(key: &ObjectKey, frontend: Frontend, serving: &Serving, behind: &Behind) -> Finding {
    let Frontend { vip, protocol, port } = frontend;
    let pods = if serving.mode == Mode::Tunnel { "pods of the host's own network" } else { "pods" };
    let nodes: Vec<&str> = behind.beyond.keys().map(String::as_str).collect();
    let text = format!(
        "{vip} {protocol} {port} in mode {}: {pods} on {} are left out, as nodes that may hold the VIP send packets for it \
         back to the holder",
        serving.mode.name(),
        nodes.join(", ")
    );
    Finding::new(key, text).mend(mode::use_mode(key, serving.named.as_deref(), Mode::Dsr))
}

/// The finding of a frontend that nobody serves.
fn nothing_behind(
    service: Facts<'_>,
    frontend: Frontend,
    serving: &Serving,
    behind: &Behind,
    judged: &Judged,
) -> Option<Finding> {
    let active = behind.servers.values().any(|server| server.wanted == WantedServer::Active);
    if active || serving.mode == Mode::Announce {
        return None;
    }
    let (key, wanted) = (service.key, &serving.port);
    let Frontend { vip, protocol, port } = frontend;
    let family = Family::of(vip).number();
    let why = if !judged.down.is_empty() {
        format!("none of its {} ready endpoints answers its check", judged.down.len())
    } else if !behind.dead.is_empty() {
        let nodes: Vec<&str> = behind.dead.iter().map(String::as_str).collect();
        format!("its ready pods are on nodes that do not answer ({})", nodes.join(", "))
    } else if !behind.beyond.is_empty() {
        format!("mode {} can hand packets on to none of its pods", serving.mode.name())
    } else if behind.lacks_port {
        let name = if wanted.name.is_empty() { "it" } else { &wanted.name };
        format!("its pods have no port for {name}, see targetPort")
    } else if behind.total == 0 {
        format!("it has no IPv{family} endpoints")
    } else if behind.weightless > 0 {
        format!("{} of {} endpoints are ready, all of weight 0", behind.weightless, behind.total)
    } else {
        format!("no ready endpoints (0 of {} ready)", behind.total)
    };
    let text = format!("{vip} is held but {protocol} {port} refuses connections: {why}");
    let selector: Vec<String> =
        service.selector.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    let mend = if selector.is_empty() || behind.weightless > 0 {
        format!("kubectl -n {} get endpointslices -l kubernetes.io/service-name={}", key.namespace, key.name)
    } else {
        format!("kubectl -n {} get pods -l {}", key.namespace, selector.join(","))
    };
    Some(Finding::new(key, text).mend(mend))
}
