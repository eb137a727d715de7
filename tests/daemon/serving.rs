//! From snapshots to the kernel: the order of things, churn, leaving, draining, audits and strays.

use kvip::ipvs::{Key, VirtualServer};
use kvip::model::{Frontend, Protocol};
use std::os::unix::fs::MetadataExt as _;

use crate::world::{World, backend, dns, end, endpoint, ip, marked, named, nginx, pods, settings, snapshot};

fn pair(at: &str, weight: u32) -> (String, u32) {
    (at.to_owned(), weight)
}

/// A virtual server of somebody else's.
fn foreign() -> (Key, VirtualServer) {
    let frontend = Frontend { vip: ip("10.99.0.1"), protocol: Protocol::Tcp, port: 80 };
    let service = kvip::ipvs::model::Service { scheduler: "rr".into(), persistence: None, flags: 0 };
    (frontend.into(), VirtualServer::new(service))
}

fn without_dns() -> kvip::snapshot::Snapshot {
    let mut snapshot = snapshot();
    snapshot.vip_map.as_mut().unwrap().remove("10.87.2.51");
    snapshot
}

#[test]
fn nothing_is_done_before_the_first_complete_snapshot() {
    let mut world = World::new(settings());
    world.tick(120);
    assert_eq!(world.acts(), [""; 0]);
    assert_eq!(world.wanted(), None);
    assert_eq!(world.weight(), Some(-254));
    assert!(!world.daemon.has_passed());
    let summary = world.status().summary;
    assert!(summary.starts_with("degraded: waiting for the API server"), "{summary}");
}

#[test]
fn the_first_pass_prepares_and_then_tells_keepalived() {
    let world = World::serving();
    let both = vec![pair("10.2.4.10:80", 1), pair("10.2.6.10:80", 1)];
    assert_eq!(world.servers(nginx()), Some(both));
    assert_eq!(world.kernel().written.frontends, [nginx(), dns()].into());
    assert_eq!(world.kernel().acts_after_switch, 0, "all was there before keepalived could know of a VIP");
    let wanted = world.wanted().unwrap();
    assert_eq!(wanted.instances[0].vips, [ip("10.87.2.50"), ip("10.87.2.51")].into());
    assert_eq!(world.owned(), ["10.87.2.50", "10.87.2.51"]);
    assert!(world.status().as_planned);
    assert_eq!(world.targets(), ["node-b", "node-c"]);
}

#[test]
fn churn_of_endpoints_changes_ipvs_and_nothing_else() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.turn();
    world.keepalived_was_told();
    world.acts();
    let mut changed = snapshot();
    pods(&mut changed, "nginx")[1] = endpoint("10.2.8.10");
    world.event(changed);
    world.after(1);
    let acts = world.acts();
    assert_eq!(
        acts,
        [
            "add real server 10.2.8.10:80 weight 1 to tcp 10.87.2.50:80",
            "remove real server 10.2.6.10:80 from tcp 10.87.2.50:80"
        ]
    );
    assert!(!world.keepalived_was_told(), "invariant 5");
}

/// The state on disk may be some seconds old, but not when kvip was stopped in order.
#[test]
fn a_restart_right_after_a_change_undoes_nothing() {
    let mut world = World::serving();
    let mut more = snapshot();
    pods(&mut more, "nginx").push(endpoint("10.2.8.10"));
    world.event(more);
    world.after(1);
    assert_eq!(world.servers(nginx()).unwrap().len(), 3);
    world.stop();
    let mut world = world.restart(settings());
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap().len(), 3, "before anything is heard of the cluster");
    assert_eq!(world.acts().iter().filter(|act| act.contains("real server")).count(), 0);
}

#[test]
fn an_idle_cluster_costs_nothing() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.tick(6);
    let files = |world: &World| {
        let state = ["owned.json", "snapshot.json"].map(|name| world.paths.state.join(name));
        let all = state.into_iter().chain([world.paths.weight(crate::world::vrid())]);
        all.map(|path| std::fs::metadata(path).unwrap().ino()).collect::<Vec<_>>()
    };
    let (before, reads) = (files(&world), world.kernel().reads);
    world.acts();
    world.keepalived_was_told();
    world.tick(53);
    assert_eq!(world.kernel().reads, reads, "the kernel is not even read between two audits");
    world.tick(300);
    assert_eq!(world.acts(), [""; 0]);
    assert_eq!(files(&world), before);
    assert!(!world.keepalived_was_told());
}

#[test]
fn a_vip_that_goes_keeps_its_frontends_until_it_has_left() {
    let mut world = World::serving();
    let (other, server) = foreign();
    world.kernel().table.insert(other, server.clone());
    world.keepalived_reads();
    world.become_holder();
    world.tick(1);
    world.acts();
    world.keepalived_was_told();

    world.event(without_dns());
    world.after(1);
    assert!(world.keepalived_was_told(), "keepalived is told at once");
    assert_eq!(world.wanted().unwrap().instances[0].vips, [ip("10.87.2.50")].into());
    assert_eq!(world.acts(), [""; 0], "it may still be here");

    world.keepalived_reads();
    world.after(1);
    assert_eq!(world.acts(), [""; 0], "keepalived has let go and the address is still here");
    assert!(world.kernel().written.frontends.contains(&dns()));

    world.remove_address("10.87.2.51");
    world.after(1);
    assert_eq!(world.servers(dns()), None);
    assert_eq!(world.kernel().written.frontends, [nginx()].into());
    assert_eq!(world.owned(), ["10.87.2.50"]);
    assert_eq!(world.kernel().table.get(&other), Some(&server), "somebody else's");
    assert!(world.status().as_planned);
}

#[test]
fn a_vip_that_goes_while_kvip_is_away_is_retired_by_the_next_run() {
    let mut world = World::serving();
    let (other, server) = foreign();
    world.kernel().table.insert(other, server.clone());
    world = world.restart(settings());
    world.list(without_dns());
    world.turn();
    world.after(1);
    assert_eq!(world.kernel().table.keys().copied().collect::<Vec<_>>(), [nginx().into(), other]);
    assert_eq!(world.owned(), ["10.87.2.50"]);
}

/// Its Service said who may connect, and nobody knows any more.
#[test]
fn a_vip_that_goes_while_kvip_is_away_is_closed_to_all_until_it_has_left() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.tick(1);
    world = world.restart(settings());
    world.list(without_dns());
    world.turn();
    world.after(1);
    assert!(world.servers(dns()).is_some(), "its open connections go on");
    let written = world.kernel().written.clone();
    assert!(written.closed.contains(&dns().vip) && !written.frontends.contains(&dns()));
    world.keepalived_reads();
    world.remove_address("10.87.2.51");
    world.after(1);
    assert_eq!(world.servers(dns()), None);
    assert_eq!(world.status().faults, 0);
}

#[test]
fn an_ending_pod_keeps_its_connections_until_they_are_gone() {
    let mut world = World::serving();
    let at = backend("10.2.4.10", 80);
    world.connections(nginx(), at, 3);
    let mut ending = snapshot();
    end(&mut pods(&mut ending, "nginx")[0]);
    world.event(ending);
    world.tick(30);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 0), pair("10.2.6.10:80", 1)]);
    assert!(world.status().as_planned, "a drain is no fault");
    world.connections(nginx(), at, 0);
    world.tick(1);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.6.10:80", 1)]);
    assert_eq!(world.status().faults, 0);
}

#[test]
fn an_ending_pod_is_dropped_after_the_drain_limit() {
    let mut world = World::serving();
    world.connections(nginx(), backend("10.2.4.10", 80), 3);
    let mut ending = snapshot();
    end(&mut pods(&mut ending, "nginx")[0]);
    world.event(ending);
    world.turn();
    world.tick(59);
    assert_eq!(world.servers(nginx()).unwrap().len(), 2);
    world.tick(2);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.6.10:80", 1)]);
}

/// A probe that fails for a while ends no session, unlike a pod that ends.
#[test]
fn a_pod_that_is_not_ready_keeps_its_connections_for_as_long_as_they_last() {
    let mut world = World::serving();
    let at = backend("10.2.4.10", 80);
    world.connections(nginx(), at, 3);
    let mut unready = snapshot();
    pods(&mut unready, "nginx")[0].ready = false;
    pods(&mut unready, "nginx")[0].serving = false;
    world.event(unready.clone());
    world.tick(300);
    let zeroed = [pair("10.2.4.10:80", 0), pair("10.2.6.10:80", 1)];
    assert_eq!(world.servers(nginx()).unwrap(), zeroed);
    let status = world.status();
    assert_eq!((status.vips[0].frontends[0].ready, status.as_planned), (1, true));
    world = world.restart(settings());
    world.list(unready.clone());
    world.tick(300);
    assert_eq!(world.servers(nginx()).unwrap(), zeroed, "nor does a restart of kvip end them");
    world.event(snapshot());
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 1), pair("10.2.6.10:80", 1)]);
    world.event(unready);
    world.turn();
    world.connections(nginx(), at, 0);
    world.tick(1);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.6.10:80", 1)]);
    assert_eq!(world.status().faults, 0);
}

#[test]
fn a_pod_that_is_meant_for_another_node_now_keeps_its_connections_for_as_long_as_they_last() {
    let mut world = World::serving();
    let at = backend("10.2.4.10", 80);
    world.connections(nginx(), at, 3);
    let mut hinted = snapshot();
    for (pod, node) in pods(&mut hinted, "nginx").iter_mut().zip(["node-b", "node-a"]) {
        pod.for_nodes = vec![node.into()];
    }
    world.event(hinted);
    world.tick(300);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 0), pair("10.2.6.10:80", 1)]);
    world.connections(nginx(), at, 0);
    world.tick(1);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.6.10:80", 1)]);
    let status = world.status();
    assert_eq!((status.as_planned, status.faults), (true, 0));
}

/// What it was before takes nothing from its time.
#[test]
fn a_pod_that_was_meant_for_another_node_has_its_whole_time_when_it_ends() {
    let mut world = World::serving();
    world.connections(nginx(), backend("10.2.4.10", 80), 3);
    let mut ending = snapshot();
    for (pod, node) in pods(&mut ending, "nginx").iter_mut().zip(["node-b", "node-a"]) {
        pod.for_nodes = vec![node.into()];
    }
    world.event(ending.clone());
    world.tick(300);
    end(&mut pods(&mut ending, "nginx")[0]);
    world.event(ending);
    world.turn();
    world.tick(59);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 0), pair("10.2.6.10:80", 1)]);
    world.tick(2);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.6.10:80", 1)]);
    assert_eq!(world.status().faults, 0);
}

#[test]
fn a_pod_that_is_not_ready_yet_is_nowhere() {
    let mut world = World::serving();
    let mut more = snapshot();
    for (name, address) in [("nginx", "10.2.8.10"), ("dns", "10.2.8.54")] {
        pods(&mut more, name).push(endpoint(address));
        pods(&mut more, name).last_mut().unwrap().ready = false;
    }
    world.acts();
    world.event(more);
    world.tick(5);
    assert_eq!(world.acts(), [""; 0]);
}

#[test]
fn a_udp_pod_that_is_not_ready_goes_at_once() {
    let mut world = World::serving();
    world.connections(dns(), backend("10.2.6.53", 53), 3);
    let mut unready = snapshot();
    pods(&mut unready, "dns")[0].ready = false;
    world.event(unready);
    world.turn();
    assert_eq!(world.servers(dns()).unwrap(), [pair("10.2.8.53:53", 1)]);
}

/// The first pod of nginx ends with connections, 40 s pass, and kvip begins anew.
fn restarted_in_a_drain() -> World {
    let mut world = World::serving();
    world.connections(nginx(), backend("10.2.4.10", 80), 3);
    let mut ending = snapshot();
    end(&mut pods(&mut ending, "nginx")[0]);
    world.event(ending.clone());
    world.turn();
    world.tick(40);
    world = world.restart(settings());
    world.list(ending);
    world.turn();
    world
}

#[test]
fn a_drain_outlives_a_restart_until_the_connections_are_gone() {
    let mut world = restarted_in_a_drain();
    assert_eq!(world.acts(), [""; 0], "all is as it should be, what drains among it");
    world.tick(30);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 0), pair("10.2.6.10:80", 1)]);
    world.connections(nginx(), backend("10.2.4.10", 80), 0);
    world.tick(1);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.6.10:80", 1)]);
}

#[test]
fn the_time_of_a_drain_begins_anew_with_a_restart() {
    let mut world = restarted_in_a_drain();
    world.tick(59);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 0), pair("10.2.6.10:80", 1)]);
    world.tick(2);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.6.10:80", 1)]);
    assert!(world.status().as_planned);
}

#[test]
fn a_udp_pod_that_ends_goes_at_once() {
    let mut world = World::serving();
    world.connections(dns(), backend("10.2.6.53", 53), 3);
    let mut ending = snapshot();
    end(&mut pods(&mut ending, "dns")[0]);
    world.event(ending);
    world.turn();
    assert_eq!(world.servers(dns()).unwrap(), [pair("10.2.8.53:53", 1)]);
}

#[test]
fn the_pods_of_a_dead_node_are_left_out_and_come_back() {
    let mut world = World::serving();
    world.keepalived_was_told();
    world.dead(&["node-b"]);
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 1)]);
    assert_eq!(world.targets(), ["node-b", "node-c"], "who is dead is still asked");
    world.dead(&[]);
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap().len(), 2);
    assert!(!world.keepalived_was_told());
}

/// As the API demands when a Service gets a second port. The slices follow a moment later.
#[test]
fn a_port_that_gets_a_name_cuts_no_connections() {
    let mut world = World::serving();
    world.connections(nginx(), backend("10.2.4.10", 80), 3);
    world.acts();
    let [service, both] = named(snapshot());
    world.event(service);
    world.tick(2);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 0)], "the one with connections");
    assert_eq!(world.targets(), ["node-b", "node-c"]);
    world.event(both);
    world.after(1);
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 1), pair("10.2.6.10:80", 1)]);
    let status = world.status();
    assert_eq!((status.as_planned, status.faults), (true, 0));
}

/// Whoever removes a machine that died deletes its Node, and the cluster its pods a while later.
#[test]
fn the_pods_of_a_dead_node_stay_out_when_its_node_object_is_deleted() {
    let mut world = World::serving();
    world.dead(&["node-b"]);
    world.turn();
    let mut gone = snapshot();
    gone.nodes.remove("node-b");
    world.event(gone);
    world.turn();
    assert_eq!(world.targets(), ["node-b", "node-c"], "it is still asked");
    assert_eq!(world.servers(nginx()).unwrap(), [pair("10.2.4.10:80", 1)]);
}

#[test]
fn strays_go_after_15_s_when_owned_and_marked() {
    let mut world = World::serving();
    world.keepalived_reads();
    let unmarked = kvip::net::Address { noprefixroute: false, ..marked("10.87.2.51") };
    world.add_address(marked("10.87.2.50"));
    world.add_address(marked("10.87.2.77"));
    world.add_address(unmarked);
    world.turn();
    world.acts();
    world.tick(14);
    assert_eq!(world.acts(), [""; 0], "VIPs under way look like strays for a moment");
    world.tick(1);
    assert_eq!(world.acts(), ["remove address 10.87.2.50"]);
    world.tick(20);
    assert_eq!(world.acts(), [""; 0]);
}

#[test]
fn the_vips_of_a_holder_are_no_strays() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.turn();
    world.acts();
    world.tick(120);
    assert_eq!(world.acts(), [""; 0]);
    assert!(world.status().summary.starts_with("holds 2 of 2 VIPs"), "{}", world.status().summary);
}
