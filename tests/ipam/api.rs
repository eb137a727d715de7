//! The simulated API: objects by name, conditional writes, and on every change the check that no address serves two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvip::ipam::{
    Asks, Claim, ClaimStore, Claims, Found, Kind, Kinds, LiveService, Look, Port, Request, StoreError,
    granted,
};
use kvip::model::ObjectKey;
use kvip::snapshot::Map;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long a freed address rests here.
pub const REST: Duration = Duration::from_secs(300);
/// When the world begins, in seconds since 1970.
const BEGINNING: i64 = 1_700_000_000;

/// What watches can tell of the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    pub requests: Map<ObjectKey, Request>,
    /// The UIDs of Services that would ask by other settings than any node has.
    pub of_no_class: BTreeMap<ObjectKey, String>,
    pub claims: Claims,
    pub ip_addresses_served: bool,
}

/// The cluster, behind its API.
pub struct Api {
    state: Mutex<State>,
    pub truth: watch::Sender<Truth>,
    /// What must never be, and was.
    pub faults: Mutex<Vec<String>>,
    begun: Instant,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<(IpAddr, Kind), Claim>,
    foreign: Vec<IpAddr>,
    revision: u64,
    calls: u64,
    /// Which Service an address served last, and until when.
    served: BTreeMap<IpAddr, (ObjectKey, Instant)>,
    /// The Services that ever were on an address together: they have a namespace and a share key in common, and no rest
    /// between them.
    together: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Whether an address must rest between two Services; not while allocators of two minds are at work.
    lax: bool,
}

impl Api {
    pub fn new(ip_addresses_served: bool) -> Arc<Self> {
        let truth = Truth { ip_addresses_served, ..Truth::default() };
        Arc::new(Self {
            state: Mutex::default(),
            faults: Mutex::default(),
            truth: watch::Sender::new(truth),
            begun: Instant::now(),
        })
    }

    /// Seconds since 1970.
    pub fn now(&self) -> i64 {
        BEGINNING + i64::try_from(self.begun.elapsed().as_secs()).unwrap()
    }

    /// How many calls allocators made.
    pub fn calls(&self) -> u64 {
        self.state.lock().unwrap().calls
    }

    /// From here on the rest between two Services is not checked.
    pub fn be_lax(&self) {
        self.state.lock().unwrap().lax = true;
    }

    /// Somebody else makes an IPAddress, unless there is one.
    pub fn add_foreign(&self, address: IpAddr) {
        let mut state = self.state.lock().unwrap();
        if !state.objects.contains_key(&(address, Kind::IpAddress)) && !state.foreign.contains(&address) {
            state.foreign.push(address);
        }
    }

    /// The addresses of others.
    pub fn foreign(&self) -> BTreeSet<IpAddr> {
        self.state.lock().unwrap().foreign.iter().copied().collect()
    }

    /// Changes what Services ask for.
    pub fn edit(&self, edit: impl FnOnce(&mut Map<ObjectKey, Request>)) {
        let mut state = self.state.lock().unwrap();
        self.publish(&mut state, |truth| edit(&mut truth.requests));
    }

    /// A Service that asks is from now on of a kind that no node's settings take, and stays.
    pub fn take_class_away(&self, key: &ObjectKey) {
        let mut state = self.state.lock().unwrap();
        self.publish(&mut state, |truth| {
            let request = truth.requests.remove(key).unwrap();
            truth.of_no_class.insert(key.clone(), request.uid.clone());
        });
    }

    pub fn serve_ip_addresses(&self) {
        let mut state = self.state.lock().unwrap();
        self.publish(&mut state, |truth| truth.ip_addresses_served = true);
    }

    fn publish(&self, state: &mut State, change: impl FnOnce(&mut Truth)) {
        let mut truth = self.truth.borrow().clone();
        state.note_served(&truth);
        change(&mut truth);
        truth.claims = state.objects.values().cloned().collect();
        state.note_together(&truth);
        if let Err(fault) = state.check(&truth) {
            self.faults.lock().unwrap().push(fault);
        }
        self.truth.send_replace(truth);
    }

    fn write<T>(&self, write: impl FnOnce(&mut State) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut state = self.state.lock().unwrap();
        let done = write(&mut state)?;
        self.publish(&mut state, |_| {});
        Ok(done)
    }
}

impl State {
    /// Notes, before a change, who is served until now.
    fn note_served(&mut self, truth: &Truth) {
        for request in truth.requests.values() {
            for grant in granted(request, &truth.claims).addresses {
                self.served.insert(grant.address, (request.service.clone(), Instant::now()));
            }
        }
    }

    /// Notes who is on an address together.
    fn note_together(&mut self, truth: &Truth) {
        for claim in truth.claims.objects().filter(|claim| claim.users.len() > 1) {
            let users = claim.users.iter().map(|user| user.service.clone());
            self.together.entry(claim.address).or_default().extend(users);
        }
    }

    /// Whatever the claims are at any time: no frontend has two Services, and no address goes from one to another
    /// before nobody can serve it for the first.
    fn check(&self, truth: &Truth) -> Result<(), String> {
        let mut frontends: BTreeMap<(IpAddr, Port), &ObjectKey> = BTreeMap::new();
        for request in truth.requests.values() {
            for grant in granted(request, &truth.claims).addresses {
                for port in &grant.ports {
                    let other = frontends.insert((grant.address, *port), &request.service);
                    if let Some(other) = other {
                        return Err(format!("{} {port:?}: {other} and {}", grant.address, request.service));
                    }
                }
                self.check_rest(request, grant.address)?;
            }
        }
        Ok(())
    }

    fn check_rest(&self, request: &Request, address: IpAddr) -> Result<(), String> {
        let Some((last, until)) = self.served.get(&address) else { return Ok(()) };
        let shared = |service| self.together.get(&address).is_some_and(|all| all.contains(service));
        let same = *last == request.service || (shared(last) && shared(&request.service));
        // Claims have whole seconds.
        let rested = until.elapsed() + Duration::from_secs(1) >= REST;
        if self.lax || same || rested {
            return Ok(());
        }
        Err(format!("{address} goes from {last} to {} after {:?}", request.service, until.elapsed()))
    }

    fn current(&self, claim: &Claim) -> Result<(), StoreError> {
        let have = self.objects.get(&(claim.address, claim.kind));
        let same = have.is_some_and(|have| have.version == claim.version);
        if same { Ok(()) } else { Err(StoreError::Changed) }
    }

    fn put(&mut self, mut claim: Claim, uid: Option<String>, now: i64) {
        self.revision += 1;
        claim.version.resource = self.revision.to_string();
        if let Some(uid) = uid {
            claim.version.uid = uid;
            claim.created = now;
        }
        self.objects.insert((claim.address, claim.kind), claim);
    }
}

/// The way of one allocator to the API.
pub struct Way {
    pub api: Arc<Api>,
    random: Mutex<u64>,
    /// Of a hundred calls, how many fail; half of them after they were done.
    pub failing: Arc<Mutex<u64>>,
    /// It never asks whether IPAddresses are served.
    pub leases_alone: bool,
    /// By its settings no Service gets an address.
    pub takes_none: bool,
}

impl Way {
    pub fn new(api: &Arc<Api>, seed: u64, failing: &Arc<Mutex<u64>>) -> Self {
        let random = Mutex::new(seed | 1);
        Self { api: api.clone(), random, failing: failing.clone(), leases_alone: false, takes_none: false }
    }

    /// xorshift64.
    fn random(&self, below: u64) -> u64 {
        let mut x = self.random.lock().unwrap();
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        *x % below
    }

    async fn call<T>(&self, act: impl FnOnce(&Api) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.api.state.lock().unwrap().calls += 1;
        let fate = self.random(100);
        let failing = *self.failing.lock().unwrap();
        let lost = || StoreError::Failed { attempt: "call".into(), reason: "the line broke".into() };
        sleep(Duration::from_millis(self.random(1500))).await;
        if fate < failing / 2 {
            return Err(lost());
        }
        let answer = act(&self.api);
        sleep(Duration::from_millis(self.random(1500))).await;
        if fate < failing { Err(lost()) } else { answer }
    }

    fn served(&self, api: &Api) -> bool {
        !self.leases_alone && api.truth.borrow().ip_addresses_served
    }
}

impl ClaimStore for Way {
    async fn look(&self, uid: &str) -> Result<Look, StoreError> {
        self.call(|api| {
            let served = self.served(api);
            let state = api.state.lock().unwrap();
            let seen = state.objects.values().filter(|claim| served || claim.kind == Kind::Lease);
            let any_lease = state.objects.keys().any(|(_, kind)| *kind == Kind::Lease);
            let claims = seen.filter(|claim| claim.names(uid)).cloned().collect();
            Ok(Look { claims, kinds: Kinds::of(served, any_lease) })
        })
        .await
    }

    async fn get(&self, address: IpAddr, kind: Kind) -> Result<Found, StoreError> {
        self.call(|api| {
            if kind == Kind::IpAddress && !self.served(api) {
                return Ok(Found::Nothing);
            }
            let state = api.state.lock().unwrap();
            if kind == Kind::IpAddress && state.foreign.contains(&address) {
                return Ok(Found::Foreign);
            }
            Ok(state.objects.get(&(address, kind)).cloned().map_or(Found::Nothing, Found::Ours))
        })
        .await
    }

    async fn create(&self, claim: &Claim) -> Result<(), StoreError> {
        self.call(|api| {
            let now = api.now();
            api.write(|state| {
                let foreign = claim.kind == Kind::IpAddress && state.foreign.contains(&claim.address);
                if foreign || state.objects.contains_key(&(claim.address, claim.kind)) {
                    return Err(StoreError::Exists);
                }
                let uid = format!("object-{}", state.revision);
                state.put(claim.clone(), Some(uid), now);
                Ok(())
            })
        })
        .await
    }

    async fn change(&self, before: &Claim, after: &Claim) -> Result<(), StoreError> {
        self.call(|api| {
            let now = api.now();
            api.write(|state| {
                state.current(before)?;
                state.put(after.clone(), None, now);
                Ok(())
            })
        })
        .await
    }

    async fn delete(&self, claim: &Claim) -> Result<(), StoreError> {
        self.call(|api| {
            api.write(|state| {
                state.current(claim)?;
                state.objects.remove(&(claim.address, claim.kind));
                Ok(())
            })
        })
        .await
    }

    async fn service(&self, key: &ObjectKey) -> Result<Option<LiveService>, StoreError> {
        self.call(|api| {
            let truth = api.truth.borrow();
            let asks = if self.takes_none { Asks::NotBySettings } else { Asks::Yes };
            let asking =
                truth.requests.get(key).map(|request| LiveService { uid: request.uid.clone(), asks });
            let of_no_class = || {
                let uid = truth.of_no_class.get(key)?.clone();
                Some(LiveService { uid, asks: Asks::NotBySettings })
            };
            Ok(asking.or_else(of_no_class))
        })
        .await
    }
}
