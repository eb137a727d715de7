//! Three nodes on the simulated API, each with watches that lag, and a script of what happens to them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvip::config::{AddressRange, Pool};
use kvip::ipam::{
    Allocator, Kinds, Known, Request, Reserved, Step, View, Wanted, Wish, granted, next_step, spawn,
};
use kvip::model::{Family, ObjectKey, Protocol};
use kvip::snapshot::{FamilyPolicy, Map};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::api::{Api, REST, Truth, Way};

pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// Something that happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// A Service is made, made again, or asks for something else.
    Ask { name: u8, again: bool, shape: Shape },
    /// A Service is deleted.
    Delete { name: u8 },
    /// An allocator dies.
    Crash { node: usize },
    /// It is started again, with watches that are so many seconds behind.
    Start { node: usize, lag: [u64; 2] },
    /// The cluster itself takes an address of the pool.
    Foreign { last: u8 },
}

/// What a Service asks for.
#[derive(Debug, Clone)]
pub struct Shape {
    pub policy: u8,
    pub fixed: Option<u8>,
    pub shared: bool,
    pub ports: Vec<u16>,
}

pub fn pool() -> Pool {
    let range =
        |first: &str, last: &str| AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap();
    Pool::standard("lan", vec![range("10.0.0.1", "10.0.0.5"), range("fd00::1", "fd00::3")])
}

/// The request of Service `name`, which was made again `life` times.
pub fn request(name: u8, life: u32, shape: &Shape) -> Request {
    let (families, policy) = match shape.policy % 3 {
        0 => (vec![Family::V4], FamilyPolicy::SingleStack),
        1 => (vec![Family::V4, Family::V6], FamilyPolicy::PreferDualStack),
        _ => (vec![Family::V6, Family::V4], FamilyPolicy::RequireDualStack),
    };
    let wish = shape.fixed.map_or(Wish::Any, |last| Wish::Addresses(vec![address(last)]));
    Request {
        service: ObjectKey::new("default", format!("service-{name}")),
        uid: format!("uid-{name}-{life}"),
        families,
        policy,
        wish,
        pools: vec![Arc::new(pool())],
        nameable: Vec::new(),
        share_key: shape.shared.then(|| "default/key".to_owned()),
        ports: shape.ports.iter().map(|port| (Protocol::Tcp, *port)).collect(),
    }
}

pub fn address(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

pub struct Cluster {
    pub api: Arc<Api>,
    pub failing: Arc<Mutex<u64>>,
    /// Each node hears that all have the same settings.
    pub agree: Arc<AtomicBool>,
    pub allocators: [Option<(Allocator, JoinSet<()>)>; 3],
    seed: u64,
    lives: u32,
}

impl Cluster {
    pub fn new(ip_addresses_served: bool, seed: u64) -> Self {
        let failing = Arc::new(Mutex::new(0));
        let (api, agree) = (Api::new(ip_addresses_served), Arc::new(AtomicBool::new(true)));
        Self { api, failing, agree, allocators: [None, None, None], seed, lives: 0 }
    }

    pub fn happen(&mut self, event: &Event) {
        match event {
            Event::Ask { name, again, shape } => self.ask(*name, *again, shape),
            Event::Delete { name } => self.api.edit(|all| {
                all.remove(&ObjectKey::new("default", format!("service-{name}")));
            }),
            Event::Crash { node } => self.allocators[*node] = None,
            Event::Start { node, lag } => self.start(*node, *lag, false),
            Event::Foreign { last } => self.api.add_foreign(address(*last)),
        }
    }

    fn ask(&mut self, name: u8, again: bool, shape: &Shape) {
        self.lives += 1;
        let mut new = request(name, self.lives, shape);
        self.api.edit(|all| {
            if let Some(old) = all.get(&new.service).filter(|_| !again) {
                new.uid.clone_from(&old.uid);
            }
            all.insert(new.service.clone(), Arc::new(new));
        });
    }

    pub fn start(&mut self, node: usize, lag: [u64; 2], leases_alone: bool) {
        self.begin(node, lag, |way| way.leases_alone = leases_alone);
    }

    /// Starts an allocator on a node by whose settings no Service gets an address.
    pub fn start_set_otherwise(&mut self, node: usize) {
        self.begin(node, [0, 0], |way| way.takes_none = true);
    }

    fn begin(&mut self, node: usize, lag: [u64; 2], set: impl FnOnce(&mut Way)) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut way = Way::new(&self.api, self.seed, &self.failing);
        set(&mut way);
        let (wanted, feeds) = watches(&self.api, lag, &way);
        let (api, agree) = (self.api.clone(), self.agree.clone());
        let agreed = Arc::new(move || agree.load(Ordering::Relaxed));
        let allocator = spawn(NODES[node], Arc::new(way), wanted, agreed, Arc::new(move || api.now()));
        self.allocators[node] = Some((allocator, feeds));
    }

    /// Lets all be well for as long as it takes that nothing is left to do, then checks the end.
    pub async fn end_well(&mut self) {
        *self.failing.lock().unwrap() = 0;
        self.agree.store(true, Ordering::Relaxed);
        for node in 0..NODES.len() {
            self.start(node, [0, 0], false);
        }
        sleep(Duration::from_secs(3600)).await;
        let calls = self.api.calls();
        sleep(Duration::from_secs(3600)).await;
        // While a Service gets no address, each node looks once an hour whether others still have theirs.
        let asks_again = if self.api.foreign().is_empty() { 0 } else { 60 };
        assert!(self.api.calls() <= calls + asks_again, "an idle cluster sees no call");
        assert_eq!(*self.api.faults.lock().unwrap(), Vec::<String>::new());
        check_end(&self.api.truth.borrow(), self.api.foreign());
    }
}

/// Two watches, of Services and of claims, each behind by its own time.
fn watches(api: &Arc<Api>, lag: [u64; 2], way: &Way) -> (watch::Receiver<Option<Arc<Wanted>>>, JoinSet<()>) {
    let (out, wanted) = watch::channel(None);
    let out = Arc::new(out);
    let mut feeds = JoinSet::new();
    let (leases_alone, takes_none) = (way.leases_alone, way.takes_none);
    for (of_claims, lag) in [(false, lag[0]), (true, lag[1])] {
        let (mut truth, out) = (api.truth.subscribe(), out.clone());
        feeds.spawn(async move {
            loop {
                let mut now = truth.borrow_and_update().clone();
                if takes_none {
                    now.requests = Map::new();
                }
                sleep(Duration::from_secs(lag)).await;
                out.send_modify(|wanted| {
                    *wanted = Some(Arc::new(told(wanted.as_deref(), &now, of_claims, leases_alone)));
                });
                if truth.changed().await.is_err() {
                    return;
                }
            }
        });
    }
    (wanted, feeds)
}

fn told(before: Option<&Wanted>, truth: &Truth, of_claims: bool, leases_alone: bool) -> Wanted {
    let mut wanted = before.cloned().unwrap_or_default();
    if of_claims {
        wanted.claims = truth.claims.clone();
    } else {
        wanted.requests = truth.requests.clone();
    }
    wanted.ip_addresses_served = truth.ip_addresses_served && !leases_alone;
    wanted.allocators = NODES.map(str::to_owned).into();
    wanted.rest = REST;
    wanted.takeover_after = Duration::from_secs(10);
    wanted
}

/// What must be so in the end.
fn check_end(truth: &Truth, foreign: BTreeSet<IpAddr>) {
    let known = Known { claims: truth.claims.clone(), foreign };
    for request in truth.requests.values() {
        let has = granted(request, &truth.claims).addresses;
        for family in [Family::V4, Family::V6] {
            let addresses = has.iter().filter(|grant| Family::of(grant.address) == family);
            assert!(addresses.count() <= 1, "{} has two addresses: {has:?}", request.service);
        }
        let objects: BTreeSet<IpAddr> = truth.claims.addresses_of(&request.uid).collect();
        let served: BTreeSet<IpAddr> = has.iter().map(|grant| grant.address).collect();
        assert_eq!(objects, served, "the claims of {}", request.service);
        let view = View {
            own: &truth.claims,
            known: &known,
            reserved: &Reserved::default(),
            kinds: Kinds::of(truth.ip_addresses_served, truth.claims.any_lease()),
            rest: 300,
            now: 0,
        };
        let step = next_step(request, view);
        assert!(matches!(step, Step::Done(_)), "{} is not at its end: {step:?}", request.service);
    }
    let living: BTreeSet<&str> = truth.requests.values().map(|request| request.uid.as_str()).collect();
    for claim in truth.claims.objects() {
        assert_eq!(claim.released, None, "leaked: {claim:?}");
        assert!(claim.users.iter().all(|user| living.contains(user.uid.as_str())), "leaked: {claim:?}");
    }
}
