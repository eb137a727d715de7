//! Who asks for which VIP: the ConfigMap, annotations, Services of type LoadBalancer, externalIPs and the static VIPs.
//!
//! A VIP belongs to the first that asks for it, in this order: static VIPs, the ConfigMap (both the admin's), addresses
//! that IPAM gave, annotations, externalIPs; of two Services the older first. Others of the same namespace may add
//! ports to it, nobody else may.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::aliases::VIPS;
use super::annotations::annotate;
use super::grammar::{self, Entry};
use super::policy::Policy;
use super::{Inputs, annotations, external, load_balancer};
use crate::ipam::{Port, Request};
use crate::model::{Finding, ObjectKey};
use crate::snapshot::{Service, ServicePort, Snapshot};

/// What is asked of one VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whose it is.
    pub party: Party,
    /// Nothing is balanced: the address floats.
    pub floats_only: bool,
    /// What is to be balanced; of two for one frontend the first wins.
    pub entries: Vec<Want>,
}

/// One Service to balance on a VIP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// The Service, the port of it and the method.
    pub entry: Entry,
    /// How it is asked for.
    pub source: Source,
    /// The ports that are its own, where others share the address; `None`: all.
    pub only: Option<BTreeSet<Port>>,
}

impl Asked {
    /// Whether the address is a pool's: IPAM gave it.
    pub fn is_granted(&self) -> bool {
        self.entries.first().is_some_and(|want| want.source == Source::LoadBalancer)
    }
}

impl Want {
    /// Whether the Service's `port` is meant.
    pub fn means(&self, port: &ServicePort) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&(port.protocol, port.port)))
    }
}

/// Who owns a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Party {
    /// The admin.
    Admin,
    /// The Services of a namespace.
    Namespace(String),
}

/// How a VIP is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A `[[static]]` of the settings.
    Static,
    /// The ConfigMap.
    ConfigMap,
    /// An address of a pool.
    LoadBalancer,
    /// The annotation `kvip.io/vips`.
    Annotation,
    /// spec.externalIPs.
    ExternalIp,
}

impl Source {
    /// `finding` as one that refuses a Service what it asks for in this way: what the ConfigMap asks for is the admin's, and
    /// nothing for the Service's status.
    pub fn refusal(self, finding: Finding) -> Finding {
        Finding { refuses: !matches!(self, Self::Static | Self::ConfigMap), ..finding }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Static => "static",
            Self::ConfigMap => "ConfigMap",
            Self::LoadBalancer => "LoadBalancer",
            Self::Annotation => VIPS,
            Self::ExternalIp => "spec.externalIPs",
        })
    }
}

/// The asks of a cluster, as they are gathered.
pub struct Asks<'a> {
    /// Every VIP that may be held, with what is asked of it.
    pub vips: BTreeMap<IpAddr, Asked>,
    /// What is refused.
    pub findings: Vec<Finding>,
    /// What this host is keeps something from being served that another host may well serve.
    pub by_host: bool,
    /// What Services of type LoadBalancer ask of the pools.
    pub requests: BTreeMap<ObjectKey, Arc<Request>>,
    /// Which addresses may be VIPs, and whose.
    pub policy: &'a Policy<'a>,
}

impl<'a> Asks<'a> {
    /// Gathers all asks.
    pub fn gather(inputs: &Inputs, policy: &'a Policy<'a>) -> Self {
        let mut asks = Self {
            vips: BTreeMap::new(),
            findings: Vec::new(),
            by_host: false,
            requests: BTreeMap::new(),
            policy,
        };
        asks.statics(inputs);
        asks.config_map(inputs);
        load_balancer::ask(inputs, &mut asks);
        asks.annotations(inputs);
        external::ask(inputs, &mut asks);
        asks.idle(inputs);
        asks
    }

    fn statics(&mut self, inputs: &Inputs) {
        for one in &inputs.settings.statics {
            self.by_host |= self.policy.is_of_host(one.vip);
            if let Some(why) = self.policy.refusal_of_static(one.vip) {
                let text = format!("static VIP {} is not served: {why}", one.vip);
                self.findings.push(Finding::new(format!("static {}", one.name), text));
                continue;
            }
            let asked = Asked { party: Party::Admin, floats_only: false, entries: Vec::new() };
            self.vips.entry(one.vip).or_insert(asked);
        }
    }

    fn config_map(&mut self, inputs: &Inputs) {
        let map = &inputs.settings.cluster.config_map;
        let Some(entries) = &inputs.snapshot.vip_map else {
            self.findings.extend(missing_map(inputs, map));
            return;
        };
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (key, value) in entries {
            let vip = match grammar::key(key) {
                Ok(vip) => vip,
                Err(why) => {
                    self.ignored(map, (key, value), &why);
                    continue;
                }
            };
            self.by_host |= self.policy.is_of_host(vip);
            if let Some(why) = self.policy.refusal_of_admin(vip) {
                self.ignored(map, (key, value), &why);
                continue;
            }
            match seen.entry(vip) {
                Slot::Vacant(slot) => {
                    slot.insert(key);
                    self.mapped(map, key, vip, value);
                }
                Slot::Occupied(_) => {
                    self.ignored(map, (key, value), &format!("{vip} is written by an earlier key"));
                }
            }
        }
    }

    fn ignored(&mut self, map: &ObjectKey, (key, value): (&str, &str), why: &str) {
        self.of_map(map, format!("key \"{key}\" ignored: {why}"), value);
    }

    /// A finding on the ConfigMap, where it says `entries`.
    fn of_map(&mut self, map: &ObjectKey, text: String, entries: &str) {
        let mend = format!("kubectl -n {} edit configmap {}", map.namespace, map.name);
        self.findings.push(Finding::new(map, text).mend(mend).about(grammar::services(entries)));
    }

    fn mapped(&mut self, map: &ObjectKey, key: &str, vip: IpAddr, value: &str) {
        let mut wanted = Vec::new();
        let written = grammar::value(value);
        let floats_only = written.is_empty();
        for (entry, text) in written.into_iter().zip(value.split(',').map(str::trim)) {
            match entry {
                Ok(entry) => wanted.push((entry, text)),
                Err(why) => self.of_map(map, format!("key \"{key}\": {why}"), text),
            }
        }
        wanted.sort();
        wanted.dedup_by(|(entry, _), (before, _)| entry == before);
        for same in wanted.chunk_by(|(a, _), (b, _)| (&a.service, a.port) == (&b.service, b.port)) {
            for (_, text) in &same[1..] {
                let first = same[0].1;
                let why = format!("key \"{key}\": `{text}` does not count, as there is `{first}` too");
                self.of_map(map, why, text);
            }
        }
        let entries =
            wanted.into_iter().map(|(entry, _)| Want { entry, source: Source::ConfigMap, only: None });
        let asked =
            self.vips.entry(vip).or_insert(Asked { party: Party::Admin, floats_only, entries: Vec::new() });
        asked.entries.extend(entries);
    }

    fn annotations(&mut self, inputs: &Inputs) {
        for (key, service) in by_age(inputs.snapshot, |service| service.annotations.contains_key(VIPS)) {
            if load_balancer::is_ours(inputs, service) {
                continue;
            }
            if !inputs.settings.asking.annotations {
                let text = format!("annotation {VIPS} is not read: asking.annotations is false");
                self.findings
                    .push(Finding::new(key, text).mend("ask by the ConfigMap of VIPs, or set it to true"));
                continue;
            }
            let annotation = (VIPS, &*service.annotations[VIPS]);
            for word in words(annotation.1) {
                match grammar::key(word) {
                    Ok(vip) => self.tenant(key, vip, Source::Annotation),
                    Err(why) => self.findings.push(no_vip(key, annotation, Source::Annotation, word, &why)),
                }
            }
        }
    }

    /// Annotations that come to nothing, also of Services that ask for none: that may be why they do not.
    fn idle(&mut self, inputs: &Inputs) {
        for (key, service) in inputs.snapshot.services.iter().filter(|(_, service)| !service.deleting) {
            // Of class kvip.io/kvip, where that is not served, something else is told.
            let uses_pools = load_balancer::is_ours(inputs, service) || is_of_class(service);
            self.findings.extend(annotations::idle(key, service, uses_pools));
        }
    }

    /// All VIPs, in the order in which they go first where not all can be held: the admin's, then those of the oldest Services, of
    /// equal age by UID, which nobody chooses.
    pub fn in_order(&self, inputs: &Inputs) -> Vec<IpAddr> {
        let services = &inputs.snapshot.services;
        let is_static = |vip: &IpAddr| inputs.settings.statics.iter().any(|one| one.vip == *vip);
        let age = |asked: &Asked| {
            let asking = asked.entries.iter().filter_map(|want| services.get(&want.entry.service));
            asking.map(|service| (service.created, service.uid.clone())).min()
        };
        let rank = |(vip, asked): &(&IpAddr, &Asked)| match asked.party {
            Party::Admin => (!is_static(vip), None, **vip),
            Party::Namespace(_) => (true, age(asked), **vip),
        };
        let mut all: Vec<_> = self.vips.iter().collect();
        all.sort_by_cached_key(rank);
        all.into_iter().map(|(vip, _)| *vip).collect()
    }

    /// A Service asks for `vip` by itself.
    pub fn tenant(&mut self, key: &ObjectKey, vip: IpAddr, source: Source) {
        self.by_host |= self.policy.is_of_host(vip);
        let why = self.policy.refusal(vip).or_else(|| self.policy.not_for(&key.namespace, vip));
        if let Some(why) = why {
            self.refused(key, vip, source, &why);
            return;
        }
        self.grant(key, vip, source, None);
    }

    /// Says why a Service does not get what it asks for.
    pub fn refused(&mut self, key: &ObjectKey, vip: IpAddr, source: Source, why: &str) {
        let text = format!("not served at {vip} ({source}): {why}");
        self.findings.push(source.refusal(Finding::new(key, text)));
    }

    /// Adds a Service to `vip`, unless that is another party's.
    pub fn grant(&mut self, key: &ObjectKey, vip: IpAddr, source: Source, only: Option<BTreeSet<Port>>) {
        let entry = Entry { service: key.clone(), port: None, method: None };
        let asked = self.vips.entry(vip).or_insert_with(|| Asked {
            party: Party::Namespace(key.namespace.clone()),
            floats_only: false,
            entries: Vec::new(),
        });
        // What the admin wrote for this very Service says it all.
        if asked.entries.iter().any(|want| want.entry.service == *key) {
            return;
        }
        if asked.party == Party::Namespace(key.namespace.clone()) {
            asked.entries.push(Want { entry, source, only });
            return;
        }
        let why = format!("the address belongs to {}", owner(asked));
        self.refused(key, vip, source, &why);
    }
}

/// `word` is among the VIPs that a Service asks for by an annotation of this name and text, and is none.
pub fn no_vip(key: &ObjectKey, (name, text): (&str, &str), source: Source, word: &str, why: &str) -> Finding {
    // A reason in parentheses is a better one.
    let hint = if why.ends_with(')') { "" } else { "; write addresses with commas between them, no ranges" };
    let good = words(text).filter(|word| grammar::key(word).is_ok());
    let vips: Vec<&str> = good.chain(["VIP"]).collect();
    let mend = annotate(key, &format!("{name}={}", vips.join(",")));
    let text = format!("annotation {name}: \"{word}\" ignored: {why}{hint}");
    source.refusal(Finding::new(key, text).mend(mend))
}

/// Whether `service` names kvip's class.
fn is_of_class(service: &Service) -> bool {
    let class = service.load_balancer.as_ref().and_then(|balancer| balancer.class.as_deref());
    class == Some(load_balancer::CLASS)
}

/// Whose an address is, in words.
fn owner(asked: &Asked) -> String {
    match asked.entries.first() {
        Some(want) => format!("{} ({})", want.entry.service, want.source),
        None => "the admin's settings".into(),
    }
}

/// No ConfigMap is a finding only where nothing else asks for VIPs: clusters may well do without one.
fn missing_map(inputs: &Inputs, map: &ObjectKey) -> Option<Finding> {
    let settings = inputs.settings;
    let asks = |service: &Service| {
        let external = settings.asking.external_ips && !service.external_ips.is_empty();
        external || service.annotations.contains_key(VIPS) || load_balancer::is_ours(inputs, service)
    };
    let others = inputs.snapshot.services.values().any(|service| asks(service));
    if others || !settings.statics.is_empty() || !settings.pools.is_empty() {
        return None;
    }
    let text = "there is no such ConfigMap, so no VIP is asked for";
    let mend = format!(
        "kubectl -n {} create configmap {} --from-literal=VIP=NAMESPACE/SERVICE",
        map.namespace, map.name
    );
    Some(Finding::new(map, text).mend(mend))
}

/// The Services that `which` names, the oldest first; of equal age by UID, which nobody chooses.
pub fn by_age(snapshot: &Snapshot, which: impl Fn(&Service) -> bool) -> Vec<(&ObjectKey, &Service)> {
    let mut found: Vec<_> = snapshot
        .services
        .iter()
        .map(|(key, service)| (key, &**service))
        .filter(|(_, service)| !service.deleting && which(service))
        .collect();
    found.sort_by_key(|(key, service)| (service.created, &service.uid, *key));
    found
}

/// The words of a list in an annotation: separated by commas or white space.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

/// The VIPs that a snapshot asks for, whether they may be served or not.
pub fn vips_asked_for(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let mapped = snapshot.vip_map.iter().flatten().filter_map(|(key, _)| grammar::key(key).ok());
    let annotations = snapshot.services.values().filter_map(|service| service.annotations.get(VIPS));
    let annotated = annotations.flat_map(|text| words(text)).filter_map(|word| grammar::key(word).ok());
    let claimed = snapshot.claims.addresses();
    mapped.chain(annotated).chain(claimed).collect()
}
