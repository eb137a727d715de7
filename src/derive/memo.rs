//! Derives anew only what changed: an endpoint that comes or goes costs the work of its own Service.
//!
//! [`Deriver`] remembers the inputs of last time. What they were made of is compared: whole maps by whether they are the
//! very same, slices by what differs between two versions that share the rest. [`super::derive`] is a deriver that
//! remembers nothing, and a property test holds the two against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::assign::{Assignment, assign, own_addresses};
use super::counted::Counted;
use super::endpoints::Surroundings;
use super::local_pods::LocalPods;
use super::reach::{self, Reach};
use super::serve::{Context, Part, serve};
use super::{Desired, Inputs, Leaving, Owner, steering};
use crate::config::Settings;
use crate::health::check::{Down, Target};
use crate::marks::Marks;
use crate::model::{Frontend, ObjectKey};
use crate::net::{HostFacts, PolicyRoute};
use crate::nft::{self, Steering};
use crate::snapshot::{EndpointSlice, Map, Snapshot};

/// The label of a Node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What differs from what was derived before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// VIPs, rules or members may differ: everything is to be looked at.
    Everything,
    /// Only real servers of these frontends.
    Servers(BTreeSet<Frontend>),
}

/// Derives, and remembers.
#[derive(Debug, Default)]
pub struct Deriver {
    before: Option<Before>,
    assignment: Arc<Assignment>,
    /// The marks of the frontends of mode dsr, to be kept.
    marks: BTreeMap<Frontend, Marks>,
    context: Context,
    slices_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    parts: BTreeMap<Owner, Part>,
    /// Who has each endpoint checked, and which do not answer.
    checkers: BTreeMap<Target, BTreeSet<Owner>>,
    unhealthy: Down,
    local_pods: LocalPods,
    nodes: Counted<String>,
    inward: Counted<Frontend>,
    desired: Desired,
}

/// What came out differently when parts were made anew.
#[derive(Debug, Default)]
struct Remade {
    /// Frontends that differ.
    touched: BTreeSet<Frontend>,
    /// The nodes with backends differ.
    nodes: bool,
    /// The frontends that are steered inward differ.
    inward: bool,
}

/// The inputs of the last time, other than slices by what they were copied from.
#[derive(Debug)]
struct Before {
    settings: Settings,
    snapshot: Snapshot,
    facts: HostFacts,
    dead: BTreeSet<String>,
    leaving: Leaving,
    reach: Reach,
    foreign_marks: BTreeSet<u32>,
}

impl Before {
    fn of(inputs: &Inputs) -> Self {
        Self {
            settings: inputs.settings.clone(),
            snapshot: inputs.snapshot.clone(),
            facts: inputs.facts.clone(),
            dead: inputs.dead.clone(),
            leaving: inputs.leaving.clone(),
            reach: inputs.reach.clone(),
            foreign_marks: inputs.foreign_marks.clone(),
        }
    }

    /// Whether all that an assignment is made of is as it was.
    fn same_assignment(&self, inputs: &Inputs) -> bool {
        let (before, now) = (&self.snapshot, inputs.snapshot);
        before.services.ptr_eq(&now.services)
            && before.claims.is_copy_of(&now.claims)
            && before.nodes.ptr_eq(&now.nodes)
            && before.api_servers().eq(now.api_servers())
            && before.namespaces.ptr_eq(&now.namespaces)
            && before.service_cidrs.ptr_eq(&now.service_cidrs)
            && same_map(before.vip_map.as_ref(), now.vip_map.as_ref())
            && self.settings == *inputs.settings
            && self.facts == *inputs.facts
            && self.leaving == *inputs.leaving
            && self.foreign_marks == *inputs.foreign_marks
    }

    /// Whether all that the endpoints of every Service are looked at with is as it was.
    fn same_context(&self, inputs: &Inputs) -> bool {
        self.snapshot.nodes.ptr_eq(&inputs.snapshot.nodes)
            && self.settings == *inputs.settings
            && self.facts == *inputs.facts
            && self.dead == *inputs.dead
            && self.reach.hops == inputs.reach.hops
            && self.reach.firewall == inputs.reach.firewall
    }
}

fn same_map(before: Option<&OrdMap<String, String>>, now: Option<&OrdMap<String, String>>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => before.ptr_eq(now) || before == now,
        (None, None) => true,
        _ => false,
    }
}

impl Deriver {
    /// One that remembers nothing but the marks of frontends of mode dsr.
    pub fn keeping(marks: BTreeMap<Frontend, Marks>) -> Self {
        Self { marks, ..Self::default() }
    }

    /// Derives what this host should do, and tells what differs from last time.
    pub fn derive(&mut self, inputs: &Inputs) -> (Desired, Changed) {
        let first = self.before.is_none();
        let same_assignment = self.before.as_ref().is_some_and(|before| before.same_assignment(inputs));
        let same_context = self.before.as_ref().is_some_and(|before| before.same_context(inputs));
        let mut dirty = BTreeSet::new();
        let reassigned = !same_assignment && self.assign(inputs, &mut dirty);
        let anew = reassigned || !same_context;
        let ranges = anew && self.surround(inputs, &mut dirty);
        let local = self.take_slices(inputs, anew, &mut dirty) || ranges;
        self.take_unhealthy(inputs, &mut dirty);
        let no_ways = self.desired.ways.is_empty();
        let Remade { touched, nodes, inward } = self.remake(&dirty, inputs);
        self.proxy(&touched);
        let same_macs = self.before.as_ref().is_some_and(|before| before.reach.macs == inputs.reach.macs);
        if first || !same_assignment || !same_context || nodes {
            self.desired.peers = Arc::new(self.peers(inputs));
            self.desired.probed = Arc::new(self.probed(inputs));
        }
        let other_ways = self.desired.ways.is_empty() != no_ways;
        let steered = || !same_macs || ((!same_context || other_ways) && self.steers_otherwise(inputs));
        let rules = first || reassigned || local || inward || (self.steers() && steered());
        if rules {
            self.desired.ruleset = Arc::new(self.ruleset(inputs));
            self.desired.policy_routes = Arc::new(self.policy_routes(inputs));
        }
        match &mut self.before {
            Some(before) if same_assignment && same_context && same_macs => {
                before.snapshot = inputs.snapshot.clone();
            }
            before => *before = Some(Before::of(inputs)),
        }
        let changed = if rules { Changed::Everything } else { Changed::Servers(touched) };
        (self.desired.clone(), changed)
    }

    /// Assigns anew; true when something came out differently, and those whose tasks did are `dirty`.
    fn assign(&mut self, inputs: &Inputs, dirty: &mut BTreeSet<Owner>) -> bool {
        let fresh = assign(inputs, &self.marks);
        self.marks = fresh.marks();
        if fresh == *self.assignment {
            return false;
        }
        let before = std::mem::replace(&mut self.assignment, Arc::new(fresh));
        let now = &self.assignment;
        let owners = before.tasks.keys().chain(now.tasks.keys());
        dirty.extend(owners.filter(|owner| before.tasks.get(owner) != now.tasks.get(owner)).cloned());
        for finding in &before.findings {
            self.desired.findings.remove(finding);
        }
        self.desired.findings.extend(now.findings.iter().cloned());
        self.desired.node.clone_from(&now.node);
        self.desired.groups = Arc::clone(&now.groups);
        self.desired.vips = Arc::clone(&now.vips);
        self.desired.keepalived = Arc::clone(&now.keepalived);
        self.desired.assignment = Arc::clone(now);
        true
    }

    /// Looks at what surrounds endpoints; where that changed, all parts are `dirty`. True when this node's pod ranges are
    /// others.
    fn surround(&mut self, inputs: &Inputs, dirty: &mut BTreeSet<Owner>) -> bool {
        let node = self.assignment.node.clone();
        let own = node.as_ref().and_then(|name| inputs.snapshot.nodes.get(name));
        let zone = own.and_then(|node| node.labels.get(ZONE)).cloned();
        let ranges = own.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        let others = self.local_pods.set_ranges(ranges);
        let context = Context {
            around: Surroundings {
                dead: inputs.dead.clone(),
                node,
                zone,
                obstacles: reach::obstacles(inputs),
                hosts: reach::hosts(inputs),
                shared: reach::shared_networks(inputs),
            },
            firewall: inputs.reach.firewall.clone(),
            scheduler: inputs.settings.balancing.scheduler.name().to_owned(),
            yielded: self.assignment.yielded.clone(),
            own: own_addresses(inputs),
        };
        if context != self.context {
            self.context = context;
            dirty.extend(self.assignment.tasks.keys().cloned());
        }
        others
    }

    /// Takes in what differs between the slices of last time and now; true when the local pods' addresses did.
    ///
    /// `anew`: this node may be another one, so that all slices are looked at for pods on it.
    fn take_slices(&mut self, inputs: &Inputs, anew: bool, dirty: &mut BTreeSet<Owner>) -> bool {
        let nothing = Map::new();
        let before = self.before.as_ref().map_or(&nothing, |before| &before.snapshot.slices).clone();
        let now = &inputs.snapshot.slices;
        // An address that one slice loses and another gains is no news.
        let mut was = BTreeMap::new();
        let own = self.context.around.node.clone();
        for item in before.diff(now) {
            let (gone, here) = match item {
                DiffItem::Add(key, here) => (None, Some((key, here))),
                DiffItem::Remove(key, gone) => (Some((key, gone)), None),
                DiffItem::Update { old, new } => (Some(old), Some(new)),
            };
            if let Some((key, slice)) = gone {
                self.forget(key, slice);
                if !anew {
                    self.local_pods.count(slice, own.as_deref(), false, &mut was);
                }
                dirty.insert(Owner::Service(slice.service.clone()));
            }
            if let Some((key, slice)) = here {
                self.slices_of.entry(slice.service.clone()).or_default().insert(key.clone());
                if !anew {
                    self.local_pods.count(slice, own.as_deref(), true, &mut was);
                }
                dirty.insert(Owner::Service(slice.service.clone()));
            }
        }
        if anew {
            return self.local_pods.recount(now.values().map(Arc::as_ref), own.as_deref());
        }
        self.local_pods.differ(&was)
    }

    /// Takes in which endpoints do not answer; who has one of those checked that differ is `dirty`.
    fn take_unhealthy(&mut self, inputs: &Inputs, dirty: &mut BTreeSet<Owner>) {
        for item in self.unhealthy.diff(inputs.unhealthy) {
            let (DiffItem::Add(target, _)
            | DiffItem::Remove(target, _)
            | DiffItem::Update { new: (target, _), .. }) = item;
            dirty.extend(self.checkers.get(target).into_iter().flatten().cloned());
        }
        self.unhealthy = inputs.unhealthy.clone();
    }

    fn forget(&mut self, key: &ObjectKey, slice: &EndpointSlice) {
        if let Some(slices) = self.slices_of.get_mut(&slice.service) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
    }

    /// Makes the parts of `dirty` anew.
    fn remake(&mut self, dirty: &BTreeSet<Owner>, inputs: &Inputs) -> Remade {
        let mut remade = Remade::default();
        for owner in dirty {
            let task = self.assignment.tasks.get(owner);
            let slices = self.slices(owner, inputs.snapshot);
            let fresh = task
                .map(|task| serve(&self.context, &self.unhealthy, owner, task, &slices))
                .filter(|part| !part.frontends.is_empty());
            let before = self.parts.remove(owner).unwrap_or_default();
            let now = fresh.clone().unwrap_or_default();
            self.swap(&before, &now, &mut remade);
            self.swap_targets(owner, &before.targets, &now.targets);
            if let Some(part) = fresh {
                self.parts.insert(owner.clone(), part);
            }
        }
        self.desired.owners = self.parts.len();
        remade
    }

    /// What HAProxy must do for `touched`.
    fn proxy(&mut self, touched: &BTreeSet<Frontend>) {
        for frontend in touched {
            let want = self.desired.frontends.get(frontend).and_then(|served| served.proxy());
            if self.desired.haproxy.frontends.get(frontend) == want.as_ref() {
                continue;
            }
            let frontends = &mut Arc::make_mut(&mut self.desired.haproxy).frontends;
            match want {
                Some(proxy) => frontends.insert(*frontend, proxy),
                None => frontends.remove(frontend),
            };
        }
    }

    fn slices<'a>(&self, owner: &Owner, snapshot: &'a Snapshot) -> Vec<&'a Arc<EndpointSlice>> {
        let Owner::Service(service) = owner else { return Vec::new() };
        let keys = self.slices_of.get(service).into_iter().flatten();
        keys.filter_map(|key| snapshot.slices.get(key)).collect()
    }

    /// Puts `now` in the place of `before` in all that is counted over parts.
    fn swap(&mut self, before: &Part, now: &Part, remade: &mut Remade) {
        for frontend in before.frontends.keys().filter(|frontend| !now.frontends.contains_key(frontend)) {
            // Another owner may have taken it over already.
            if self.desired.frontends.get(frontend) == before.frontends.get(frontend) {
                self.desired.frontends.remove(frontend);
            }
            remade.touched.insert(*frontend);
        }
        for (frontend, served) in &now.frontends {
            if self.desired.frontends.get(frontend) != Some(served) {
                self.desired.frontends.insert(*frontend, Arc::clone(served));
                remade.touched.insert(*frontend);
            }
        }
        for finding in before.findings.difference(&now.findings) {
            self.desired.findings.remove(finding);
        }
        self.desired.findings.extend(now.findings.difference(&before.findings).cloned());
        for way in before.ways.difference(&now.ways) {
            self.desired.ways.remove(way);
        }
        self.desired.ways.extend(now.ways.difference(&before.ways).cloned());
        for node in before.nodes.difference(&now.nodes) {
            remade.nodes |= self.nodes.remove(node);
        }
        for node in now.nodes.difference(&before.nodes) {
            remade.nodes |= self.nodes.add(node.clone());
        }
        for frontend in before.inward.difference(&now.inward) {
            remade.inward |= self.inward.remove(frontend);
        }
        for frontend in now.inward.difference(&before.inward) {
            remade.inward |= self.inward.add(*frontend);
        }
    }

    fn swap_targets(&mut self, owner: &Owner, before: &BTreeSet<Target>, now: &BTreeSet<Target>) {
        for target in before.difference(now) {
            if self.desired.checked.remove(target) {
                self.checkers.remove(target);
            } else if let Some(owners) = self.checkers.get_mut(target) {
                owners.remove(owner);
            }
        }
        for target in now.difference(before) {
            self.desired.checked.add(target.clone());
            self.checkers.entry(target.clone()).or_default().insert(owner.clone());
        }
    }

    /// What the nftables table must do.
    fn ruleset(&self, inputs: &Inputs) -> nft::Ruleset {
        let Assignment { vips, tasks, source_ranges, yielded, .. } = &*self.assignment;
        let here = |frontend: &Frontend| {
            !yielded.contains(&frontend.vip) || self.desired.frontends.contains_key(frontend)
        };
        let vips = vips.iter();
        let frontends = tasks.values().flat_map(|task| task.balanced_here());
        let sources = source_ranges.iter().map(|(frontend, networks)| (*frontend, networks.clone()));
        nft::Ruleset {
            frontends: frontends.filter(here).collect(),
            closed: vips.filter(|(_, vip)| !vip.floats_only && !vip.announced).map(|(vip, _)| *vip).collect(),
            sources: sources.filter(|(frontend, _)| here(frontend)).collect(),
            host: self.assignment.host.clone(),
            shielded: self.assignment.shielded.clone(),
            untracked: tasks.values().flat_map(|task| task.untracked()).filter(here).collect(),
            local_pods: self.local_pods.networks(),
            steering: if self.steers() { self.steering(inputs) } else { Steering::default() },
        }
    }

    fn steering(&self, inputs: &Inputs) -> Steering {
        let inward = self.inward.iter().copied().collect();
        steering::of(&self.assignment, inward, &self.desired, inputs)
    }

    /// Whether packets are to be steered otherwise than the rules and routes say.
    fn steers_otherwise(&self, inputs: &Inputs) -> bool {
        self.desired.ruleset.steering != self.steering(inputs)
            || *self.desired.policy_routes != self.policy_routes(inputs)
    }

    /// Whether packets are steered: those of mode dsr, and this host's own to its own servers.
    fn steers(&self) -> bool {
        !self.inward.is_empty() || !self.marks.is_empty()
    }

    fn policy_routes(&self, inputs: &Inputs) -> BTreeSet<PolicyRoute> {
        let steering = &self.desired.ruleset.steering;
        steering::policy_routes(steering, inputs.settings)
    }

    /// The addresses of the nodes that hand packets of mode dsr on to this one: each of their cards has one of these.
    fn peers(&self, inputs: &Inputs) -> BTreeSet<IpAddr> {
        let tasks = || self.assignment.tasks.values();
        let members: BTreeSet<&String> = tasks().flat_map(|task| task.dsr_members()).collect();
        let others = members.into_iter().filter(|name| Some(*name) != self.assignment.node.as_ref());
        others.flat_map(|name| reach::addresses(name, inputs)).collect()
    }

    /// The nodes to watch for signs of life: all that run backends, but this one. One whose Node is deleted before its pods
    /// has no addresses.
    fn probed(&self, inputs: &Inputs) -> BTreeMap<String, Vec<IpAddr>> {
        let others = self.nodes.iter().filter(|name| Some(*name) != self.assignment.node.as_ref());
        let addresses = |name: &String| inputs.snapshot.nodes.get(name).map(|node| node.addresses.clone());
        others.map(|name| (name.clone(), addresses(name).unwrap_or_default())).collect()
    }
}
