//! Services of type LoadBalancer: which are kvip's, what they ask of the pools, and what they have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::aliases::{self, POOL, SHARE_KEY, VIPS};
use super::asks::{Asks, Source, by_age, no_vip, words};
use super::policy::{Policy, carries};
use super::{Inputs, Requests, grammar};
use crate::config::{AddressRange, LoadBalancers, Pool};
use crate::ipam::{self, Kinds, Known, Request, Reserved, Step, Wish};
use crate::model::{Family, Finding, ObjectKey};
use crate::snapshot::{Service, Snapshot};

/// kvip's loadBalancerClass.
pub const CLASS: &str = "kvip.io/kvip";

/// Whether `service` is of type LoadBalancer and kvip's to serve.
pub fn is_ours(inputs: &Inputs, service: &Service) -> bool {
    let Some(load_balancer) = &service.load_balancer else { return false };
    match (inputs.settings.asking.load_balancers, load_balancer.class.as_deref()) {
        (LoadBalancers::Off, _) => false,
        (LoadBalancers::Default, None) => true,
        (_, class) => class == Some(CLASS),
    }
}

/// Whether there are settings by which `service` is.
pub fn could_be_ours(service: &Service) -> bool {
    let class = service.load_balancer.as_ref().map(|load_balancer| load_balancer.class.as_deref());
    class.is_some_and(|class| class.is_none_or(|class| class == CLASS))
}

/// Gathers what Services of type LoadBalancer ask of the pools, and the addresses that they have.
pub fn ask(inputs: &Inputs, asks: &mut Asks) {
    let pools: Vec<Arc<Pool>> = inputs.settings.pools.iter().cloned().map(Arc::new).collect();
    for (key, service) in by_age(inputs.snapshot, |service| is_ours(inputs, service)) {
        let request = request(inputs, asks, &pools, key, service);
        let granted = ipam::granted(&request, &inputs.snapshot.claims);
        asks.findings.extend(granted.notices.iter().map(|notice| notice.finding(key)));
        let refusals: Vec<_> =
            granted.addresses.iter().map(|grant| asks.policy.refusal(grant.address)).collect();
        asks.by_host |= granted.addresses.iter().any(|grant| asks.policy.is_of_host(grant.address));
        let none = request.all_or_nothing() && refusals.iter().any(Option::is_some);
        let other = || none.then(|| "RequireDualStack takes both families or none".to_owned());
        for (grant, refusal) in granted.addresses.iter().zip(refusals) {
            match refusal.or_else(other) {
                None => asks.grant(key, grant.address, Source::LoadBalancer, Some(grant.ports.clone())),
                Some(why) => asks.refused(key, grant.address, Source::LoadBalancer, &why),
            }
        }
        asks.requests.insert(key.clone(), Arc::new(request));
    }
    nobody_gives(inputs, asks);
}

/// Services of kvip's class where none is served, and what keeps all of them waiting.
fn nobody_gives(inputs: &Inputs, asks: &mut Asks) {
    let asking = &inputs.settings.asking;
    if asking.load_balancers == LoadBalancers::Off {
        let ours = |service: &Service| {
            service.load_balancer.as_ref().is_some_and(|balancer| balancer.class.as_deref() == Some(CLASS))
        };
        for (key, _) in by_age(inputs.snapshot, ours) {
            let text = format!("class {CLASS} is not served: asking.load_balancers is \"off\"");
            asks.findings.push(Finding::new(key, text).mend("set it to \"class\", which is the default"));
        }
    }
    let nodes = &inputs.snapshot.nodes;
    let nobody = !nodes.values().any(|node| carries(Some(&node.labels), &asking.allocators));
    if nobody && !nodes.is_empty() && !asks.requests.is_empty() {
        let labels: Vec<String> =
            asking.allocators.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let text =
            format!("no Node has the labels {}, so nobody gives addresses to Services", labels.join(","));
        let mend = format!("kubectl label node NODE {}", labels.join(" "));
        asks.findings.push(Finding::new("asking.allocators", text).mend(mend));
    }
}

/// What the claims do not give: each refusal is a finding, and what is merely not done yet is an allocator's work.
pub fn refusals(
    inputs: &Inputs,
    requests: BTreeMap<ObjectKey, Arc<Request>>,
    reserved: Reserved,
    findings: &mut Vec<Finding>,
) -> Requests {
    let claims = &inputs.snapshot.claims;
    let known = Known { claims: claims.clone(), foreign: BTreeSet::new() };
    let kinds = Kinds::of(serves_ip_addresses(inputs.snapshot), claims.any_lease());
    // No step depends on the time but by what it would write, and nothing is written here.
    let rest = i64::try_from(inputs.settings.cluster.rest().as_secs()).expect("two days at most");
    let view = ipam::View { own: claims, known: &known, reserved: &reserved, kinds, rest, now: 0 };
    let (mut refusals, mut pending) = (BTreeMap::new(), BTreeMap::new());
    for (key, request) in &requests {
        match ipam::next_step(request, view) {
            Step::Done(settled) if settled.refusals.is_empty() => {}
            Step::Done(settled) => {
                findings.extend(settled.refusals.iter().map(|refusal| refusal.finding(key)));
                refusals.insert(key.clone(), settled.refusals);
            }
            step => drop(pending.insert(key.clone(), step)),
        }
    }
    Requests { of: requests, refusals, pending, reserved }
}

/// Whether the cluster has IPAddress objects: they came with ServiceCIDRs (both v1 since Kubernetes 1.33), of which a cluster
/// that serves them always has one.
pub fn serves_ip_addresses(snapshot: &Snapshot) -> bool {
    !snapshot.service_cidrs.is_empty()
}

fn request(
    inputs: &Inputs,
    asks: &mut Asks,
    pools: &[Arc<Pool>],
    key: &ObjectKey,
    service: &Service,
) -> Request {
    let (pools, nameable) = may_use(inputs, asks.policy, pools, key, service);
    let wish = wish(key, service, &mut asks.findings);
    Request {
        service: key.clone(),
        uid: service.uid.clone(),
        families: families(service),
        policy: service.family_policy,
        wish,
        pools,
        nameable,
        share_key: aliases::of(service, SHARE_KEY).map(|(_, share)| format!("{}/{share}", key.namespace)),
        ports: service.ports.iter().map(|port| (port.protocol, port.port)).collect(),
    }
}

/// The families in the Service's order; an object from before dual stack names none and has those of its ClusterIPs.
fn families(service: &Service) -> Vec<Family> {
    if !service.families.is_empty() {
        return service.families.clone();
    }
    let families: BTreeSet<Family> = service.cluster_ips.iter().map(|address| Family::of(*address)).collect();
    if families.is_empty() { vec![Family::V4] } else { families.into_iter().collect() }
}

/// The pools that a Service may use, and the addresses outside of them that it may name.
fn may_use(
    inputs: &Inputs,
    policy: &Policy,
    pools: &[Arc<Pool>],
    key: &ObjectKey,
    service: &Service,
) -> (Vec<Arc<Pool>>, Vec<AddressRange>) {
    let tenants = policy.tenants_of(&key.namespace);
    let for_tenant = |pool: &Pool| {
        tenants.as_ref().is_none_or(|tenants| {
            tenants.iter().flat_map(|tenant| &tenant.pools).any(|name| name.matches(&pool.name))
        })
    };
    let namespace = inputs.snapshot.namespaces.get(&key.namespace).map(|labels| &**labels);
    let for_service = |pool: &Pool| {
        let named = pool.namespaces.is_empty() || pool.namespaces.iter().any(|n| n.matches(&key.namespace));
        named
            && carries(namespace, &pool.namespace_labels)
            && carries(Some(&service.labels), &pool.service_labels)
    };
    let usable = pools.iter().filter(|pool| for_tenant(pool) && for_service(pool)).cloned().collect();
    let nameable = tenants.iter().flatten().flat_map(|tenant| tenant.addresses.iter().copied()).collect();
    (usable, nameable)
}

/// The addresses that a Service names count before spec.loadBalancerIP, and these before a pool.
fn wish(key: &ObjectKey, service: &Service, findings: &mut Vec<Finding>) -> Wish {
    let annotated = aliases::of(service, VIPS);
    let field = service.load_balancer.as_ref().and_then(|load_balancer| load_balancer.address.as_deref());
    let mut named = Vec::new();
    for word in annotated.map(|(_, text)| text).or(field).into_iter().flat_map(words) {
        match (grammar::key(word), annotated) {
            (Ok(address), _) => named.push(address),
            (Err(why), Some(annotation)) => {
                findings.push(no_vip(key, annotation, Source::LoadBalancer, word, &why));
            }
            (Err(why), None) => {
                let text = format!("spec.loadBalancerIP: \"{word}\" ignored: {why}");
                findings.push(Source::LoadBalancer.refusal(Finding::new(key, text)));
            }
        }
    }
    if !named.is_empty() {
        return Wish::Addresses(named);
    }
    aliases::of(service, POOL).map_or(Wish::Any, |(_, name)| Wish::Pool(name.to_owned()))
}
