//! What an allocator has to do, and when: a pure function of what the watches told.
//!
//! Nothing to do is the usual answer, and then the API is not asked either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::candidates::Known;
use super::claim::{Claim, Claims};
use super::granted::{Granted, granted};
use super::refusal::Refusal;
use super::request::{Request, Reserved};
use super::settle::rested;
use super::step::{self, Kinds, Step, View};
use crate::model::ObjectKey;
use crate::rank;
use crate::snapshot::Map;

/// A claim younger than this, in seconds, is no orphan: its Service may be on its way to this node.
const ORPHAN_AFTER: i64 = 60;

/// What all allocators go by; as one node's watches and settings tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What each Service of type LoadBalancer and kvip's class asks for, also one that may use no pool today: what it has
    /// is kept. The claims of a Service that is not here are given back, once the API itself says that it asks no more.
    pub requests: Map<ObjectKey, Request>,
    /// The claims.
    pub claims: Claims,
    /// What is given to nobody.
    pub reserved: Arc<Reserved>,
    /// The nodes that allocate, by name.
    pub allocators: BTreeSet<String>,
    /// Whether the cluster serves IPAddresses.
    pub ip_addresses_served: bool,
    /// How long a freed address rests, as a node without contact may still serve it.
    pub rest: Duration,
    /// How long the next allocator waits for the one before it.
    pub takeover_after: Duration,
}

/// What an allocator knows of one Service that asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The Service's UID.
    pub uid: String,
    /// What it has.
    pub granted: Granted,
    /// What it does not get, and why; empty while that is being worked on.
    pub refusals: Vec<Refusal>,
    /// Something is left to do for it.
    pub pending: bool,
    /// The place of this node among the Service's allocators: 0 acts and tells first. `None`: this node is none.
    pub rank: Option<usize>,
    /// Why the API did not do what was to be done.
    pub trouble: Option<String>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Job {
    /// Bring a Service's claims to what it asks for.
    Settle { service: ObjectKey, uid: String },
    /// Find out whether a user of an address still is one.
    Release { address: IpAddr, service: ObjectKey, uid: String },
    /// Delete a claim whose rest is over.
    Expire(IpAddr),
    /// Find out whether an address still belongs to others.
    Probe(IpAddr),
}

impl Job {
    /// The UID of the Service whose address this may give back.
    pub fn released(&self) -> Option<&str> {
        match self {
            Self::Release { uid, .. } => Some(uid),
            Self::Settle { .. } | Self::Expire(_) | Self::Probe(_) => None,
        }
    }
}

/// All things to do, each with how long to wait before, and what the Services have.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    pub jobs: BTreeMap<Job, Todo>,
    pub outcomes: BTreeMap<ObjectKey, Outcome>,
}

/// When a thing is to be done, and what it begins with: another beginning makes it another thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Todo {
    pub wait: Duration,
    pub first: Option<Step>,
}

/// What `node` has to do at `now` (seconds since 1970), when objects of others have the addresses `foreign`.
pub(super) fn agenda(wanted: &Wanted, foreign: &BTreeSet<IpAddr>, node: &str, now: i64) -> Agenda {
    let known = Known { claims: wanted.claims.clone(), foreign: foreign.clone() };
    // Looked for once: it takes a look at each claim.
    let kinds = Kinds::of(wanted.ip_addresses_served, wanted.claims.any_lease());
    let mut agenda = Agenda::default();
    for (key, request) in &wanted.requests {
        let rank = place(wanted, request.uid.as_bytes(), node);
        let uid = request.uid.clone();
        let (pending, refusals) = match step::next_step(request, view(wanted, &known, kinds)) {
            Step::Done(settled) => (false, settled.refusals),
            step => {
                if let Some(rank) = rank {
                    let job = Job::Settle { service: key.clone(), uid: uid.clone() };
                    agenda.jobs.insert(job, Todo { wait: turn(wanted, rank), first: Some(step) });
                }
                (true, Vec::new())
            }
        };
        let granted = granted(request, &wanted.claims);
        let outcome = Outcome { uid, granted, refusals, pending, rank, trouble: None };
        agenda.outcomes.insert(key.clone(), outcome);
    }
    leftovers(wanted, node, now, &mut agenda.jobs);
    agenda
}

/// What the watches show. No step depends on the time but by what it would write, and that is not written.
fn view<'a>(wanted: &'a Wanted, known: &'a Known, kinds: Kinds) -> View<'a> {
    View { own: &wanted.claims, known, reserved: &wanted.reserved, kinds, rest: seconds(wanted.rest), now: 0 }
}

/// Users that no longer ask, and rests with their ends.
fn leftovers(wanted: &Wanted, node: &str, now: i64, jobs: &mut BTreeMap<Job, Todo>) {
    let asking: BTreeSet<&str> = wanted.requests.values().map(|request| request.uid.as_str()).collect();
    for claim in wanted.claims.objects() {
        for (job, due, thing) in leftover(claim, &asking, seconds(wanted.rest)) {
            if let Some(rank) = place(wanted, thing.as_bytes(), node) {
                let wait = Duration::from_secs(u64::try_from(due - now).unwrap_or(0)) + turn(wanted, rank);
                let todo = jobs.entry(job).or_insert(Todo { wait, first: None });
                todo.wait = todo.wait.min(wait);
            }
        }
    }
}

/// What is to be done with `claim`, when (seconds since 1970), and by what its allocators are ranked.
fn leftover(claim: &Claim, asking: &BTreeSet<&str>, rest: i64) -> Vec<(Job, i64, String)> {
    let address = claim.address;
    if let Some(released) = claim.released {
        return vec![(Job::Expire(address), rested(released, rest), address.to_string())];
    }
    let gone = claim.users.iter().filter(|user| !asking.contains(user.uid.as_str()));
    gone.map(|user| {
        let (service, uid) = (user.service.clone(), user.uid.clone());
        (Job::Release { address, service, uid: uid.clone() }, claim.created + ORPHAN_AFTER, uid)
    })
    .collect()
}

/// The place of `node` among the allocators of `thing`.
fn place(wanted: &Wanted, thing: &[u8], node: &str) -> Option<usize> {
    let ranked = rank::ranked(thing, wanted.allocators.iter().map(String::as_str));
    ranked.into_iter().position(|name| name == node)
}

fn turn(wanted: &Wanted, rank: usize) -> Duration {
    wanted.takeover_after * u32::try_from(rank).unwrap_or(u32::MAX)
}

/// A setting in whole seconds.
pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::claim::{Kind, User, Version};
    use super::super::request::Wish;
    use super::*;
    use crate::config::Pool;
    use crate::model::Family;
    use crate::snapshot::FamilyPolicy;

    const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

    fn wanted() -> Wanted {
        let pool = Pool::standard("lan", vec!["10.0.0.0/24".parse::<ipnet::IpNet>().unwrap().into()]);
        let request = Request {
            service: ObjectKey::new("default", "web"),
            uid: "web".into(),
            families: vec![Family::V4],
            policy: FamilyPolicy::SingleStack,
            wish: Wish::Any,
            pools: vec![Arc::new(pool)],
            nameable: Vec::new(),
            share_key: None,
            ports: [].into(),
        };
        Wanted {
            requests: [(request.service.clone(), Arc::new(request))].into_iter().collect(),
            allocators: NODES.map(str::to_owned).into(),
            ip_addresses_served: true,
            rest: Duration::from_secs(300),
            takeover_after: Duration::from_secs(10),
            ..Wanted::default()
        }
    }

    fn claim(released: Option<i64>) -> Claim {
        let service = ObjectKey::new("default", "web");
        Claim {
            address: Ipv4Addr::new(10, 0, 0, 7).into(),
            kind: Kind::IpAddress,
            users: vec![User { service, uid: "web".into(), ports: [].into() }],
            pool: None,
            share_key: None,
            released,
            created: 1000,
            version: Version::default(),
        }
    }

    /// When each node does its one thing, in seconds from `now`, in order.
    fn check(wanted: &Wanted, now: i64, want: &[u64]) {
        let todo = |node: &&str| {
            agenda(wanted, &BTreeSet::new(), node, now).jobs.into_values().map(|todo| todo.wait.as_secs())
        };
        let mut waits: Vec<u64> = NODES.iter().flat_map(todo).collect();
        waits.sort_unstable();
        assert_eq!(waits, want);
    }

    #[test]
    fn each_allocator_has_its_turn_and_a_node_that_is_none_has_no_work() {
        check(&wanted(), 1000, &[0, 10, 20]);
        let some = Wanted { allocators: ["node-a".to_owned()].into(), ..wanted() };
        check(&some, 1000, &[0]);
        assert_eq!(
            agenda(&some, &BTreeSet::new(), "node-b", 1000).outcomes.len(),
            1,
            "but it knows what there is"
        );
    }

    #[test]
    fn with_all_as_asked_there_is_nothing_to_do() {
        check(&Wanted { claims: [claim(None)].into_iter().collect(), ..wanted() }, 9000, &[]);
    }

    #[test]
    fn a_young_claim_without_its_service_is_waited_for_and_an_old_one_looked_after() {
        let orphan = Wanted { requests: Map::new(), claims: [claim(None)].into_iter().collect(), ..wanted() };
        check(&orphan, 1010, &[50, 60, 70]);
        check(&orphan, 9000, &[0, 10, 20]);
    }

    #[test]
    fn a_rest_ends_when_it_is_over() {
        let resting =
            Wanted { requests: Map::new(), claims: [claim(Some(2000))].into_iter().collect(), ..wanted() };
        check(&resting, 2100, &[212, 222, 232]);
    }
}
