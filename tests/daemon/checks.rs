//! Health checks: what is asked, and what the kernel, the status and people get of endpoints that do not answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use kvip::config::{CheckKind, Settings};
use kvip::derive::{Changed, Deriver, Inputs, Leaving};
use kvip::health::check::Down;
use kvip::model::ObjectKey;
use kvip::snapshot::Snapshot;

use crate::world::{World, annotate, dns, end, nginx, pods, settings, snapshot};

const FIRST: &str = "10.2.4.10:80";
const SECOND: &str = "10.2.6.10:80";

/// The cluster, whose nginx has these annotations.
fn annotated(annotations: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = snapshot();
    annotate(&mut snapshot, annotations);
    snapshot
}

fn world(annotations: &[(&str, &str)]) -> World {
    let mut world = World::new(settings());
    world.list(annotated(annotations));
    world.turn();
    world
}

/// The real servers of nginx with their weights while `down` do not answer.
#[track_caller]
fn check(world: &mut World, down: &[&str], servers: &[(&str, u32)]) {
    world.unhealthy(down);
    world.tick(2);
    let servers: Vec<_> = servers.iter().map(|(at, weight)| ((*at).to_owned(), *weight)).collect();
    assert_eq!(world.servers(nginx()), Some(servers));
    assert!(world.status().as_planned);
}

/// Those that carry the VIP get packets as they came, for the Service's port, whatever its targetPort.
#[test]
fn in_modes_dr_and_tunnel_the_port_is_asked_that_clients_meet() {
    for mode in ["dr", "tunnel"] {
        let mut carried = annotated(&[("check", "tcp"), ("check-all-unhealthy", "refuse"), ("mode", mode)]);
        let key = ObjectKey::new("default", "nginx");
        Arc::make_mut(carried.slices.get_mut(&key).unwrap()).ports[0].port = 8080;
        for backend in pods(&mut carried, "nginx") {
            backend.node = None;
        }
        let mut world = World::new(settings());
        world.list(carried);
        world.turn();
        assert_eq!(world.checked(), [FIRST, SECOND], "{mode}");
        check(&mut world, &[FIRST], &[(FIRST, 0), (SECOND, 1)]);
        check(&mut world, &[FIRST, SECOND], &[(FIRST, 0), (SECOND, 0)]);
        check(&mut world, &[], &[(FIRST, 1), (SECOND, 1)]);
    }
}

#[test]
fn nothing_is_asked_unless_somebody_wants_it() {
    assert_eq!(World::serving().checked(), [""; 0]);
    assert_eq!(world(&[("check", "http")]).checked(), [FIRST, SECOND]);
    assert_eq!(
        world(&[("check", "http"), ("check-port", "8080")]).checked(),
        ["10.2.4.10:8080", "10.2.6.10:8080"]
    );
    let mut all = settings();
    all.checks.kind = CheckKind::Tcp;
    let mut world = World::new(all);
    world.list(snapshot());
    world.turn();
    assert_eq!(world.checked(), [FIRST, SECOND], "udp has no such port");
    world.list(annotated(&[("check", "none")]));
    world.turn();
    assert_eq!(world.checked(), [""; 0]);
}

#[test]
fn an_endpoint_that_does_not_answer_keeps_its_connections_and_gets_no_more() {
    let mut world = world(&[("check", "http")]);
    check(&mut world, &[SECOND], &[(FIRST, 1), (SECOND, 0)]);
    let status = world.status();
    let frontend = &status.vips[0].frontends[0];
    assert_eq!((frontend.ready, frontend.total), (1, 2));
    let finding = "default/nginx: 10.2.6.10:80 does not answer its http check (status 503)";
    assert_eq!(world.findings(), [finding]);
    assert_eq!(world.checked(), [FIRST, SECOND], "it is asked on");
    // A drain has a limit; this is none.
    world.tick(120);
    check(&mut world, &[SECOND], &[(FIRST, 1), (SECOND, 0)]);
    check(&mut world, &[], &[(FIRST, 1), (SECOND, 1)]);
    assert_eq!(world.findings(), [""; 0]);
}

#[test]
fn an_endpoint_that_does_not_answer_is_removed_where_that_is_wanted() {
    let mut world = world(&[("check", "http"), ("check-unhealthy", "remove")]);
    check(&mut world, &[FIRST], &[(SECOND, 1)]);
    check(&mut world, &[], &[(FIRST, 1), (SECOND, 1)]);
}

#[test]
fn where_none_answers_all_serve_unless_told_otherwise() {
    let mut serving = world(&[("check", "http")]);
    check(&mut serving, &[FIRST, SECOND], &[(FIRST, 1), (SECOND, 1)]);
    let all = "default/nginx: tcp 10.87.2.50:80: none of 2 answers its check, so all are tried";
    assert!(serving.findings().contains(&all.to_owned()), "{:?}", serving.findings());

    let mut refusing = world(&[("check", "http"), ("check-all-unhealthy", "refuse")]);
    check(&mut refusing, &[FIRST, SECOND], &[(FIRST, 0), (SECOND, 0)]);
    let none = "default/nginx: 10.87.2.50 is held but tcp 80 refuses connections: none of its 2 ready endpoints answers its check";
    assert!(refusing.findings().contains(&none.to_owned()), "{:?}", refusing.findings());
}

#[test]
fn an_endpoint_that_ends_or_whose_node_is_dead_is_not_asked() {
    let mut world = world(&[("check", "http")]);
    world.unhealthy(&[SECOND]);
    world.turn();
    let mut ending = annotated(&[("check", "http")]);
    end(&mut pods(&mut ending, "nginx")[1]);
    world.event(ending);
    world.turn();
    assert_eq!(world.checked(), [FIRST]);
    world.list(annotated(&[("check", "http")]));
    world.dead(&["node-b"]);
    world.turn();
    assert_eq!(world.checked(), [FIRST]);
}

/// Invariant 11: what is found of an endpoint costs the work of those that have it checked.
#[test]
fn an_endpoint_that_does_not_answer_touches_its_own_service_alone() {
    let settings =
        Settings { checks: kvip::config::Checks { kind: CheckKind::Tcp, ..settings().checks }, ..settings() };
    let snapshot = snapshot();
    let mut deriver = Deriver::default();
    let mut derive = |down: &Down| {
        deriver.derive(&Inputs {
            settings: &settings,
            snapshot: &snapshot,
            facts: &crate::world::facts(),
            dead: &BTreeSet::new(),
            leaving: &Leaving::new(),
            unhealthy: down,
            reach: &kvip::derive::Reach::default(),
            foreign_marks: &BTreeSet::new(),
        })
    };
    let (desired, _) = derive(&Down::new());
    assert!(desired.frontends.contains_key(&dns()));
    let target = desired.checked.iter().next().unwrap().clone();
    let down = Down::from_iter([(target, Arc::from("no answer"))]);
    assert_eq!(derive(&down).1, Changed::Servers([nginx()].into()));
    assert_eq!(derive(&down).1, Changed::Servers(BTreeSet::new()));
    assert_eq!(derive(&Down::new()).1, Changed::Servers([nginx()].into()));
}
