//! Mode proxy: HAProxy listens before anybody is sent to it.

use kvip::haproxy::State;
use kvip::snapshot::Snapshot;

use crate::weights::minutes;
use crate::world::{World, annotate, ip, nginx, pods, settings, snapshot};

/// nginx served by HAProxy.
fn proxied() -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.vip_map =
        Some([("10.87.2.50", "default/nginx:PROXY"), ("10.87.2.51", "default/dns")].as_slice().into());
    snapshot
}

#[test]
fn a_virtual_server_goes_when_haproxy_serves_in_its_place() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.turn();
    assert_eq!(world.proxies().unwrap().frontends.len(), 0);

    world.list(proxied());
    world.turn();
    let proxies = world.proxies().unwrap();
    assert_eq!(proxies.frontends.keys().copied().collect::<Vec<_>>(), [nginx()]);
    assert_eq!(proxies.frontends[&nginx()].servers.values().copied().collect::<Vec<_>>(), [1, 1]);
    assert!(world.servers(nginx()).is_some(), "until HAProxy serves");
    assert!(world.kernel().written.frontends.contains(&nginx()));
    assert!(world.status().as_planned);

    world.haproxy_is(State::Active);
    world.turn();
    assert_eq!(world.servers(nginx()), None);
    assert!(world.kernel().written.frontends.contains(&nginx()), "its port stays open");
    assert_eq!(world.wanted().unwrap().instances[0].vips, [ip("10.87.2.50"), ip("10.87.2.51")].into());

    world.list(snapshot());
    world.turn();
    assert!(world.servers(nginx()).is_some());
    assert_eq!(world.proxies().unwrap().frontends.len(), 0);
}

#[test]
fn haproxy_is_told_of_a_frontend_that_nobody_serves() {
    let mut world = World::new(settings());
    let mut unready = proxied();
    for pod in pods(&mut unready, "nginx") {
        pod.ready = false;
    }
    world.list(unready);
    world.turn();
    assert!(world.proxies().unwrap().frontends[&nginx()].rests());
    world.list(proxied());
    world.turn();
    assert!(!world.proxies().unwrap().frontends[&nginx()].rests());
}

/// The servers of nginx that HAProxy is to have, with their weights, and those whose connections end.
#[track_caller]
fn check_servers(world: &mut World, servers: &[(&str, u16)], ended: &[&str]) {
    world.turn();
    let proxies = world.proxies().unwrap();
    let proxy = &proxies.frontends[&nginx()];
    let have: Vec<_> = proxy.servers.iter().map(|(at, weight)| (at.to_string(), *weight)).collect();
    assert_eq!(have, servers.iter().map(|(at, weight)| ((*at).to_owned(), *weight)).collect::<Vec<_>>());
    assert_eq!(proxy.ended.iter().map(ToString::to_string).collect::<Vec<_>>(), ended);
}

const FIRST: &str = "10.2.4.10:80";
const SECOND: &str = "10.2.6.10:80";

/// nginx served by HAProxy, with these annotations.
fn checked(annotations: &[(&str, &str)]) -> World {
    let mut snapshot = proxied();
    annotate(&mut snapshot, annotations);
    let mut world = World::new(settings());
    world.list(snapshot);
    world.turn();
    world
}

#[test]
fn haproxys_servers_follow_the_checks() {
    let (http, remove, refuse) =
        (("check", "http"), ("check-unhealthy", "remove"), ("check-all-unhealthy", "refuse"));
    let mut world = checked(&[http]);
    check_servers(&mut world, &[(FIRST, 1), (SECOND, 1)], &[]);
    world.unhealthy(&[SECOND]);
    check_servers(&mut world, &[(FIRST, 1), (SECOND, 0)], &[]);
    world.unhealthy(&[FIRST, SECOND]);
    check_servers(&mut world, &[(FIRST, 1), (SECOND, 1)], &[]);

    let mut world = checked(&[http, remove, refuse]);
    world.unhealthy(&[SECOND]);
    check_servers(&mut world, &[(FIRST, 1)], &[SECOND]);
    world.unhealthy(&[]);
    check_servers(&mut world, &[(FIRST, 1), (SECOND, 1)], &[]);
    world.unhealthy(&[FIRST, SECOND]);
    check_servers(&mut world, &[], &[FIRST, SECOND]);
    assert!(world.proxies().unwrap().frontends[&nginx()].rests());
}

#[test]
fn connections_to_pods_of_a_dead_node_end_and_those_to_pods_that_go_do_not() {
    let mut world = checked(&[]);
    world.dead(&["node-b"]);
    check_servers(&mut world, &[(FIRST, 1)], &[SECOND]);
    world.dead(&[]);
    check_servers(&mut world, &[(FIRST, 1), (SECOND, 1)], &[]);
    let mut fewer = proxied();
    pods(&mut fewer, "nginx").pop();
    world.event(fewer);
    check_servers(&mut world, &[(FIRST, 1)], &[]);
}

/// A VIP of mode proxy comes when HAProxy is `state`, and not before.
fn check_waits(state: State) {
    let mut world = World::new(settings());
    world.list(proxied());
    world.turn();
    assert!(world.proxies().unwrap().frontends.contains_key(&nginx()));
    assert_eq!(world.wanted(), None, "{state}");
    world.haproxy_is(state);
    world.turn();
    assert_eq!(world.wanted().unwrap().instances[0].vips, [ip("10.87.2.50"), ip("10.87.2.51")].into());
}

#[test]
fn a_vip_waits_for_haproxy_and_for_no_longer_than_it_can_be_helped() {
    check_waits(State::Active);
    check_waits(State::NotInstalled);
}

const LACKS: &str = "VIPs: HAProxy has not served all that it is to for 30s, so nodes whose HAProxy does are preferred as holders";

/// A port that each node has for a program of its own, and a file that HAProxy refuses: trouble that is this node's own still
/// counts beside them.
#[test]
fn what_haproxy_can_serve_on_no_node_makes_none_stale() {
    let mut world = World::new(settings());
    world.list(proxied());
    world.turn();
    world.haproxy_is(State::Active);
    world.haproxy_lacks(nginx());
    minutes(&mut world, 1);
    assert_eq!(world.weight(), Some(0));
    world.keepalived_reads();
    world.become_holder();
    minutes(&mut world, 10);
    assert_eq!((world.weight(), world.findings()), (Some(64), vec![]));
    world.haproxy_is(State::Refused("no".into()));
    minutes(&mut world, 1);
    assert_eq!(world.weight(), Some(64));
    world.after(600);
    assert_eq!(world.weight(), Some(-64), "it has lost the API");
}

/// Nothing moves where no node has one: the holder is the last to say so, and stays above the others then.
#[test]
fn a_node_whose_haproxy_cannot_serve_comes_after_those_whose_can() {
    let mut world = World::new(settings());
    world.list(proxied());
    world.tick(3);
    assert_eq!(world.weight(), Some(-254), "HAProxy has not tried yet");
    let mut check = |state: State, after: u64, weight: i16| {
        world.haproxy_is(state.clone());
        world.after(after);
        assert_eq!(world.weight(), Some(weight), "{state}");
        if weight == 0 {
            world.keepalived_reads();
            world.become_holder();
        }
    };
    check(State::NotInstalled, 1, -128);
    check(State::Active, 1, 0);
    check(State::NotInstalled, 1, 64);
    check(State::NotInstalled, 29, 64);
    check(State::NotInstalled, 1, -64);
    check(State::Active, 1, 64);
    check(State::Masked, 30, 64);
    check(State::Masked, 30, -64);
    assert_eq!(world.findings(), [LACKS]);

    world.list(snapshot());
    world.turn();
    assert_eq!(world.weight(), Some(64), "nothing is wanted of it");
}
