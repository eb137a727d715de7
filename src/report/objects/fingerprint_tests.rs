//! Every setting that must agree changes the line, none of the others does, and the line is the same for ever.

use std::time::Duration;

use super::*;
use crate::config::{AllUnhealthy, CheckKind, LoadBalancers, Scheduler, Transport, Unhealthy};
use crate::ipvs::model::Tunnel;
use crate::model::{ObjectKey, Protocol, Vrid};

fn settings() -> Settings {
    Settings::standard(vec!["10.87.2.0/24".parse().unwrap()])
}

fn pool_named(name: &str) -> Pool {
    let network: ipnet::IpNet = "10.87.2.0/24".parse().unwrap();
    Pool::standard(name, vec![network.into()])
}

fn tenant_of(pool: &str) -> Tenant {
    let namespaces = vec![NamePattern::new("shop-*")];
    let pools = vec![NamePattern::new(pool)];
    Tenant { namespaces, namespace_labels: BTreeMap::new(), pools, addresses: Vec::new(), annotations: None }
}

fn group_of(vrid: i64, interface: Option<&str>) -> Group {
    let vrrp = Vrrp { vrid: Vrid::new(vrid).unwrap(), ..settings().vrrp };
    Group { name: "g".into(), addresses: Vec::new(), vrrp, interface: interface.map(Into::into) }
}

fn static_at(vip: &str, backend: &str) -> Static {
    Static {
        name: "any".into(),
        vip: vip.parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 6443,
        backends: vec![backend.parse().unwrap()],
        check: true,
    }
}

fn changed(change: impl FnOnce(&mut Settings)) -> String {
    let mut settings = settings();
    change(&mut settings);
    fingerprint(&settings)
}

fn one_label() -> BTreeMap<String, String> {
    BTreeMap::from([("a".to_owned(), "b".to_owned())])
}

#[test]
fn only_what_is_not_the_default_counts() {
    assert_eq!(fingerprint(&Settings::standard(Vec::new())), "");
    assert_eq!(fingerprint(&settings()), "vips.allowed=10.87.2.0/24");
}

#[test]
fn what_must_agree_changes_it() {
    let base = "vips.allowed=10.87.2.0/24";
    let check = |pair: &str, change: &dyn Fn(&mut Settings)| {
        let mut pairs = [base, pair];
        pairs.sort_unstable();
        assert_eq!(changed(change), pairs.join(" "));
    };
    check("vrrp.vrid=51", &|s| s.vrrp.vrid = Vrid::new(51).unwrap());
    check("vrrp.advert=1s", &|s| s.vrrp.advert = Duration::from_secs(1));
    check("vrrp.transport=unicast", &|s| s.vrrp.transport = Transport::Unicast);
    check("vrrp.members=a=b", &|s| s.vrrp.members = one_label());
    check("vrrp.excluded_too=true", &|s| s.vrrp.excluded_too = true);
    check("cluster.config_map=a/b", &|s| s.cluster.config_map = ObjectKey::new("a", "b"));
    check("cluster.service_ranges=10.96.0.0/16", &|s| {
        s.cluster.service_ranges = vec!["10.96.0.0/16".parse().unwrap()];
    });
    check("balancing.scheduler=rr", &|s| s.balancing.scheduler = Scheduler::Rr);
    check("balancing.scheduler_flags=sh-port,mh-port", &|s| {
        s.balancing.scheduler_flags = [SchedulerFlag::MhPort, SchedulerFlag::ShPort].into();
    });
    check("balancing.tunnel=gue:6080", &|s| s.balancing.tunnel = Tunnel::Gue(6080));
    check("balancing.drain_limit=5m", &|s| s.balancing.drain_limit = Duration::from_mins(5));
    check("balancing.beside_kube_proxy_ipvs=true", &|s| s.balancing.beside_kube_proxy_ipvs = true);
    check("balancing.sync=true", &|s| s.balancing.sync.on = true);
    check("balancing.sync_id=7", &|s| s.balancing.sync.id = Some(7));
    check("checks.kind=grpc", &|s| s.checks.kind = CheckKind::Grpc);
    check("checks.every=1m", &|s| s.checks.every = Duration::from_mins(1));
    check("checks.timeout=1m", &|s| s.checks.timeout = Duration::from_mins(1));
    check("checks.rise=2", &|s| s.checks.rise = 2);
    check("checks.fall=3", &|s| s.checks.fall = 3);
    check("checks.unhealthy=remove", &|s| s.checks.unhealthy = Unhealthy::Remove);
    check("checks.all_unhealthy=refuse", &|s| s.checks.all_unhealthy = AllUnhealthy::Refuse);
    check("checks.path=/a", &|s| s.checks.path = "/a".into());
    check("checks.status=200", &|s| s.checks.status = "200".parse().unwrap());
    check("checks.host=a", &|s| s.checks.host = Some("a".into()));
    check("asking.annotations=false", &|s| s.asking.annotations = false);
    check("asking.load_balancers=default", &|s| s.asking.load_balancers = LoadBalancers::Default);
    check("asking.external_ips=true", &|s| s.asking.external_ips = true);
    check("asking.allocators=a=b", &|s| s.asking.allocators = one_label());
    check("asking.takeover_after=20s", &|s| s.asking.takeover_after = Duration::from_secs(20));
}

#[test]
fn pools_tenants_groups_and_static_vips_count_in_full() {
    let lines = [
        changed(|s| s.pools = vec![pool_named("a")]),
        changed(|s| s.pools = vec![pool_named("b")]),
        changed(|s| s.pools = vec![pool_named("a"), pool_named("b")]),
        changed(|s| s.pools = vec![pool_named("b"), pool_named("a")]),
        changed(|s| s.pools = vec![Pool { auto_assign: false, ..pool_named("a") }]),
        changed(|s| s.pools = vec![Pool { priority: 1, ..pool_named("a") }]),
        changed(|s| s.pools = vec![Pool { addresses: Vec::new(), ..pool_named("a") }]),
        changed(|s| s.pools = vec![Pool { namespaces: vec![NamePattern::new("x")], ..pool_named("a") }]),
        changed(|s| s.pools = vec![Pool { namespace_labels: one_label(), ..pool_named("a") }]),
        changed(|s| s.pools = vec![Pool { service_labels: one_label(), ..pool_named("a") }]),
        changed(|s| s.pools = vec![Pool { avoid_0_255: true, ..pool_named("a") }]),
        changed(|s| s.tenants = vec![tenant_of("a")]),
        changed(|s| s.tenants = vec![tenant_of("b")]),
        changed(|s| s.tenants = vec![Tenant { annotations: Some(Vec::new()), ..tenant_of("b") }]),
        changed(|s| s.groups = vec![group_of(60, None)]),
        changed(|s| s.groups = vec![group_of(61, None)]),
        changed(|s| s.statics = vec![static_at("10.87.2.10", "10.87.2.4:6443")]),
        changed(|s| s.statics = vec![static_at("10.87.2.11", "10.87.2.4:6443")]),
        changed(|s| s.statics = vec![static_at("10.87.2.10", "10.87.2.5:6443")]),
    ];
    let different: std::collections::BTreeSet<_> = lines.iter().collect();
    assert_eq!(different.len(), lines.len(), "{lines:#?}");
    assert!(lines.iter().all(|line| line.len() < 80), "{lines:#?}");
}

#[test]
fn what_is_the_hosts_own_or_without_meaning_does_not_count() {
    let same = |change: &dyn Fn(&mut Settings)| assert_eq!(changed(change), fingerprint(&settings()));
    same(&|s| s.node.name = Some("node-a".into()));
    same(&|s| s.cluster.kubeconfig = "/elsewhere".into());
    same(&|s| s.vrrp.gone_after = Duration::from_secs(5));
    same(&|s| s.balancing.probe_port = 1);
    same(&|s| s.balancing.timeouts.udp = Some(Duration::from_secs(30)));
    same(&|s| s.balancing.sync.interface = Some("ens19".into()));
    same(&|s| s.allowed.push("10.87.2.0/24".parse().unwrap()));
    let [one, other] = [None, Some("ens19")].map(|name| changed(|s| s.groups = vec![group_of(60, name)]));
    assert_eq!(one, other);
    let [one, other] = [["10.0.0.0/8", "10.87.2.0/24"], ["10.87.2.0/24", "10.0.0.0/8"]]
        .map(|ranges| changed(|s| s.allowed = ranges.map(|range| range.parse().unwrap()).to_vec()));
    assert_eq!(one, other, "the order of allowed ranges");
}

#[test]
fn the_line_is_the_same_in_every_version() {
    let line = changed(|s| {
        s.pools = vec![Pool { priority: 5, ..pool_named("a") }];
        s.tenants = vec![tenant_of("a")];
        s.groups = vec![group_of(60, None)];
    });
    assert_eq!(
        line,
        "groups=name=g;vrrp.vrid=60 pools=#c13cd91e tenants=namespaces=shop-*;pools=a vips.allowed=10.87.2.0/24"
    );
}

#[test]
fn differences_are_told_by_key() {
    let check = |there: &str, here: &str, want: &str| assert_eq!(differences(there, here), want);
    check("vrrp.vrid=51", "vrrp.vrid=50", "vrrp.vrid is 51 there and 50 here");
    check("", "vrrp.advert=1s", "vrrp.advert is the default there and 1s here");
    check(
        "pools=#01234567 new.key=1",
        "pools=#11111111",
        "new.key is 1 there and the default here, pools is not the same",
    );
    check("pools=#01234567", "", "pools is not the same");
    check("a=b", "a=b", "");
}
