//! What one endpoint that comes or goes costs, among few Services and among many (invariant 11).
//!
//! `cargo bench --bench endpoint_change` derives, plans and applies the change against a host in memory, for clusters of
//! 100, 1,000 and 10,000 Services in one run, and prints the ratios. Beside it stands the cost of a fresh start, which does
//! grow.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kvip::config::Settings;
use kvip::daemon::core::Core;
use kvip::daemon::pass::{self, Applied, Outcome};
use kvip::host::{Failure, Host};
use kvip::ipvs::{
    Command, Key, Service as VirtualService, SyncCommand, SyncDaemon, Table, Timeouts, VirtualServer,
};
use kvip::model::{Family, Finding, ObjectKey, Protocol};
use kvip::net::{Address, HostFacts, Link, PolicyRoute};
use kvip::nft::firewall::Firewall;
use kvip::nft::{self, Ruleset};
use kvip::owned::Owned;
use kvip::snapshot::{Endpoint, EndpointSlice, Node, Service, ServicePort, Snapshot};

/// Pods of each Service.
const PODS: u8 = 5;
/// Ports are spread over as many VIPs as one VRRP instance may carry.
const VIPS: usize = 300;
/// Endpoint changes that are timed, of which the median counts.
const CHANGES: usize = 301;

#[expect(clippy::print_stdout, reason = "a benchmark tells what it measured")]
fn main() {
    println!("{:>9}  {:>14}  {:>14}", "Services", "one endpoint", "fresh start");
    let mut first = None;
    for services in [100, 1_000, 10_000] {
        let (change, fresh) = measure(services);
        let (base_change, base_fresh) = *first.get_or_insert((change, fresh));
        println!(
            "{services:>9}  {:>9.1} us {:>4.1}x  {:>7.1} ms {:>6.1}x",
            change.as_secs_f64() * 1e6,
            change.as_secs_f64() / base_change.as_secs_f64(),
            fresh.as_secs_f64() * 1e3,
            fresh.as_secs_f64() / base_fresh.as_secs_f64(),
        );
    }
}

/// The median time of an endpoint change, and the time of the first pass.
fn measure(services: usize) -> (Duration, Duration) {
    let mut snapshot = cluster(services);
    let settings = Settings::standard(vec!["10.87.0.0/16".parse().expect("a network")]);
    let mut core = Core::new(settings, facts(), Owned::default());
    let (mut applied, mut host) = (Applied::default(), Memory::default());
    let mut outcome = None;
    let started = Instant::now();
    turn(&mut core, &mut applied, &mut host, &snapshot, &mut outcome);
    let fresh = started.elapsed();
    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|n| {
            let key = ObjectKey::new("default", format!("service-{}", n * 7 % services));
            let slice = Arc::make_mut(snapshot.slices.get_mut(&key).expect("each Service has a slice"));
            slice.endpoints[0].ready = !slice.endpoints[0].ready;
            let started = Instant::now();
            turn(&mut core, &mut applied, &mut host, &snapshot, &mut outcome);
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    assert!(outcome.is_some_and(|outcome| outcome.as_planned), "every pass ends as planned");
    (times[CHANGES / 2], fresh)
}

fn turn(
    core: &mut Core,
    applied: &mut Applied,
    host: &mut Memory,
    snapshot: &Snapshot,
    outcome: &mut Option<Outcome>,
) {
    core.snapshot = Some(Arc::new(snapshot.clone()));
    let pass = pass::pass(core, applied, host, &NoDisk, outcome.take(), |_| (), Instant::now());
    *outcome = black_box(ready(pass));
}

/// The output of a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a host in memory answers at once"),
    }
}

fn cluster(services: usize) -> Snapshot {
    let mut snapshot = Snapshot { cluster: Some("bench".into()), ..Snapshot::default() };
    let node = Node { addresses: vec![Ipv4Addr::new(10, 87, 0, 4).into()], ..Node::default() };
    snapshot.nodes.insert("node-a".into(), Arc::new(node));
    let mut map = std::collections::BTreeMap::<String, String>::new();
    for n in 0..services {
        let name = format!("service-{n}");
        let key = ObjectKey::new("default", &name);
        let port = u16::try_from(1 + n / VIPS).expect("few ports a VIP");
        let ports = vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port }];
        let endpoints = (0..PODS).map(|pod| Endpoint::ready(pod_address(n, pod), "node-a")).collect();
        let slice =
            EndpointSlice { service: key.clone(), family: Family::V4, ports: ports.clone(), endpoints };
        snapshot.slices.insert(key.clone(), Arc::new(slice));
        snapshot.services.insert(key, Arc::new(Service { ports, ..Service::default() }));
        let vip = n % VIPS;
        let value = map.entry(format!("10.87.{}.{}", 1 + vip / 250, 1 + vip % 250)).or_default();
        value.push_str(if value.is_empty() { "" } else { "," });
        value.push_str("default/");
        value.push_str(&name);
    }
    snapshot.vip_map = Some(map.into());
    snapshot
}

fn pod_address(service: usize, pod: u8) -> IpAddr {
    let number = u32::try_from(service).expect("few Services") * u32::from(PODS) + u32::from(pod);
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number).into()
}

fn facts() -> HostFacts {
    let own = Address {
        ip: Ipv4Addr::new(10, 87, 0, 4).into(),
        prefix_len: 16,
        link: "eth0".into(),
        noprefixroute: false,
    };
    HostFacts {
        hostname: "node-a".into(),
        links: [("eth0".to_owned(), Link { index: 2, up: true, ..Link::default() })].into(),
        addresses: [own].into(),
        ..HostFacts::default()
    }
}

/// A host in memory that refuses nothing.
#[derive(Default)]
struct Memory {
    table: Table,
    ruleset: Option<String>,
}

impl Host for Memory {
    async fn table(&mut self, _owned: &Owned) -> Result<Table, Finding> {
        Ok(self.table.clone())
    }

    async fn marks(&mut self) -> Result<BTreeSet<(Family, u32)>, Finding> {
        Ok(BTreeSet::new())
    }

    async fn servers(&mut self, keys: &BTreeSet<Key>, _known: &Table) -> Result<Table, Finding> {
        let those = keys.iter().filter_map(|key| self.table.get_key_value(key));
        Ok(those.map(|(key, server)| (*key, server.clone())).collect())
    }

    async fn has(&mut self, _expected: &[(Key, &VirtualService)]) -> Result<bool, Finding> {
        Ok(true)
    }

    async fn has_real_servers(&mut self, _expected: &[(Key, &VirtualServer)]) -> Result<bool, Finding> {
        Ok(true)
    }

    async fn timeouts(&mut self) -> Result<Timeouts, Finding> {
        Ok(Timeouts::default())
    }

    async fn set_timeouts(&mut self, _change: Timeouts) -> Result<(), Finding> {
        Ok(())
    }

    async fn sync_daemons(&mut self) -> Result<BTreeSet<SyncDaemon>, Finding> {
        Ok(BTreeSet::new())
    }

    async fn change_sync(&mut self, _command: &SyncCommand) -> Result<(), Finding> {
        Ok(())
    }

    async fn sysctls(&mut self, _names: &[String]) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    async fn change_table(&mut self, commands: &[Command]) -> Vec<Failure> {
        for command in commands {
            command.apply(&mut self.table);
        }
        Vec::new()
    }

    async fn ruleset(&mut self) -> Result<Option<String>, Finding> {
        Ok(self.ruleset.clone())
    }

    async fn set_ruleset(&mut self, ruleset: &Ruleset) -> Result<String, Finding> {
        let fingerprint = nft::fingerprint(ruleset);
        self.ruleset = Some(fingerprint.clone());
        Ok(fingerprint)
    }

    fn firewall(&mut self) -> BoxFuture<'static, Result<Firewall, Finding>> {
        std::future::ready(Ok(Firewall::default())).boxed()
    }

    async fn remove_address(&mut self, _address: &Address) -> Result<(), Finding> {
        Ok(())
    }

    async fn add_policy_route(&mut self, _route: &PolicyRoute) -> Result<bool, Finding> {
        Ok(true)
    }

    async fn remove_policy_route(&mut self, _route: &PolicyRoute) -> Result<(), Finding> {
        Ok(())
    }
}

/// Nothing is kept.
struct NoDisk;

impl pass::Ledger for NoDisk {
    fn save(&self, _owned: &Owned) -> Result<(), Finding> {
        Ok(())
    }
}
