//! One owner's frontends with their real servers: the only step that looks at endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::asks::Source;
use super::assign::Task;
use super::endpoints::{self, Behind, Surroundings};
use super::{Owner, Served, WantedServer};
use crate::config::Mode;
use crate::ipvs;
use crate::model::{Backend, Family, Finding, Frontend, ObjectKey};
use crate::snapshot::{EndpointSlice, ServicePort};

/// What all parts are made with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// What endpoints are looked at with.
    pub around: Surroundings,
    /// The kernel's name of the scheduler.
    pub scheduler: String,
    /// Backends of static VIPs that do not answer.
    pub unhealthy: BTreeSet<SocketAddr>,
}

/// What one owner's task comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Its frontends.
    pub frontends: BTreeMap<Frontend, Arc<Served>>,
    /// The nodes that run its real servers.
    pub nodes: BTreeSet<String>,
    /// What does not serve.
    pub findings: BTreeSet<Finding>,
}

/// Makes the part of `owner`, with the slices of its Service.
pub fn serve(context: &Context, owner: &Owner, task: &Task, slices: &[&Arc<EndpointSlice>]) -> Part {
    let mut part = Part::default();
    match task {
        Task::Service { affinity, selector, frontends, .. } => {
            let service = Facts { affinity: *affinity, selector: selector.as_ref() };
            for (frontend, (port, source)) in frontends {
                part.service(context, owner, service, *frontend, (port, *source), slices);
            }
        }
        Task::Static { frontend, backends } => part.fixed(context, owner, *frontend, backends),
    }
    part
}

/// What a part needs of its Service.
#[derive(Debug, Clone, Copy)]
struct Facts<'a> {
    affinity: Option<Duration>,
    selector: Option<&'a BTreeMap<String, String>>,
}

impl Part {
    fn service(
        &mut self,
        context: &Context,
        owner: &Owner,
        service: Facts<'_>,
        frontend: Frontend,
        (port, source): (&ServicePort, Source),
        slices: &[&Arc<EndpointSlice>],
    ) {
        let behind = endpoints::behind(&context.around, slices, port, Family::of(frontend.vip));
        if let Owner::Service(key) = owner {
            self.findings.extend(nothing_behind(key, service, frontend, port, &behind));
        }
        let served = Served {
            owner: owner.clone(),
            source,
            mode: Mode::Nat,
            virtual_server: virtual_server(context, service.affinity),
            servers: behind.servers,
            total: behind.total,
        };
        self.nodes.extend(behind.nodes);
        self.frontends.insert(frontend, Arc::new(served));
    }

    /// Where no backend answers all are served: the checks may be what is broken.
    fn fixed(&mut self, context: &Context, owner: &Owner, frontend: Frontend, backends: &[SocketAddr]) {
        let healthy = |backend: &&SocketAddr| !context.unhealthy.contains(backend);
        let none = !backends.iter().any(|backend| healthy(&backend));
        if none {
            let text =
                format!("none of the {} backends of {frontend} answers; all are tried", backends.len());
            self.findings.insert(Finding::new(owner, text));
        }
        let servers = backends
            .iter()
            .filter(|backend| none || healthy(backend))
            .map(|backend| (Backend { address: backend.ip(), port: backend.port() }, WantedServer::Active));
        let served = Served {
            owner: owner.clone(),
            source: Source::Static,
            mode: Mode::Nat,
            virtual_server: virtual_server(context, None),
            servers: servers.collect(),
            total: backends.len(),
        };
        self.frontends.insert(frontend, Arc::new(served));
    }
}

fn virtual_server(context: &Context, persistence: Option<Duration>) -> ipvs::model::Service {
    ipvs::model::Service { scheduler: context.scheduler.clone(), persistence, flags: 0 }
}

/// The finding of a frontend that nobody serves.
fn nothing_behind(
    key: &ObjectKey,
    service: Facts<'_>,
    frontend: Frontend,
    wanted: &ServicePort,
    behind: &Behind,
) -> Option<Finding> {
    if behind.servers.values().any(|wanted| *wanted == WantedServer::Active) {
        return None;
    }
    let Frontend { vip, protocol, port } = frontend;
    let family = Family::of(vip).number();
    let why = if !behind.dead.is_empty() {
        let nodes: Vec<&str> = behind.dead.iter().map(String::as_str).collect();
        format!("its ready pods are on nodes that do not answer ({})", nodes.join(", "))
    } else if behind.lacks_port {
        let name = if wanted.name.is_empty() { "it" } else { &wanted.name };
        format!("its pods have no port for {name}, see targetPort")
    } else if behind.total == 0 {
        format!("it has no IPv{family} endpoints")
    } else {
        format!("no ready endpoints (0 of {} ready)", behind.total)
    };
    let text = format!("{vip} is held but {protocol} {port} refuses connections: {why}");
    let selector: Vec<String> =
        service.selector.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    let mend = if selector.is_empty() {
        format!("kubectl -n {} get endpointslices -l kubernetes.io/service-name={}", key.namespace, key.name)
    } else {
        format!("kubectl -n {} get pods -l {}", key.namespace, selector.join(","))
    };
    Some(Finding::new(key, text).mend(mend))
}
