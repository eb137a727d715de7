//! The order of real servers and their last weights, of which mh makes the same table on all nodes.

use super::*;

#[test]
fn a_pod_between_others_stands_where_a_fresh_start_would_put_it() {
    let mut world = serving();
    let mut more = dsr_snapshot();
    pods(&mut more, "nginx").push(endpoint("10.2.4.7"));
    pods(&mut more, "nginx").push(endpoint("10.2.6.2"));
    world.event(more.clone());
    world.after(1);
    let sorted = ["10.2.4.7", "10.2.4.10", "10.2.6.2", "10.2.6.10"];
    assert_eq!(addresses(&server(&world, nginx().into())), sorted);
    let mut fresh = World::new(settings());
    fresh.list(more);
    fresh.turn();
    assert_eq!(server(&fresh, nginx().into()), server(&world, nginx().into()));
    let alike = |(fresh, world): (&VirtualServer, &VirtualServer)| fresh.same_as(world);
    assert!(by_mark(&fresh).iter().zip(&by_mark(&world)).all(alike));
    assert_eq!(world.status().faults, 0);
}

/// The real servers that are removed when a pod comes that sorts before all others.
fn moved_by_a_pod_before_others(mut snapshot: Snapshot) -> Vec<String> {
    let mut world = World::new(settings());
    world.list(snapshot.clone());
    world.turn();
    world.acts();
    pods(&mut snapshot, "nginx").push(endpoint("10.2.4.7"));
    world.event(snapshot);
    world.after(1);
    assert_eq!(world.status().faults, 0);
    let acts = world.acts();
    assert!(acts.iter().any(|act| act.contains("10.2.4.7")), "{acts:?}");
    acts.into_iter().filter(|act| act.starts_with("remove")).collect()
}

/// A removed real server may lose connections.
#[test]
fn none_is_moved_where_no_other_node_takes_connections_up() {
    let moved =
        ["10.2.4.10", "10.2.6.10"].map(|pod| format!("remove real server {pod}:80 from tcp 10.87.2.50:80"));
    assert_eq!(
        moved_by_a_pod_before_others(dsr_snapshot()),
        moved,
        "in the tier for clients elsewhere alone"
    );
    let mut by_nat = snapshot();
    let service = by_nat.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(service).annotations.insert("kvip.io/scheduler".into(), "mh".into());
    assert_eq!(moved_by_a_pod_before_others(by_nat), [""; 0], "in mode nat");
}

#[test]
fn a_dead_node_changes_weights_and_nothing_else() {
    let mut world = serving();
    world.dead(&["node-b"]);
    world.after(1);
    let others = server(&world, nginx().into());
    assert_eq!(weights(&others), [(backend("10.2.4.10", 80), 1), (backend("10.2.6.10", 80), 0)].into());
    assert_eq!(addresses(&others), ["10.2.4.10", "10.2.6.10"]);
    world.dead(&[]);
    world.after(1);
    assert_eq!(weights(&server(&world, nginx().into()))[&backend("10.2.6.10", 80)], 1);
}

/// What mh makes of an idle pod depends on the weight that it had last, and that the kernel does not tell.
#[test]
fn an_idle_pod_has_the_places_of_its_weight() {
    let mut world = serving();
    world.dead(&["node-b"]);
    world.after(1);
    world.acts();
    let mut heavier = dsr_snapshot();
    pods(&mut heavier, "nginx")[1].weight = Some(5);
    world.event(heavier.clone());
    world.after(1);
    let set =
        |weight| format!("set real server 10.2.6.10:80 of tcp 10.87.2.50:80 to weight {weight} direct route");
    assert_eq!(world.acts(), [set(5), set(0)]);
    world.tick(62);
    assert_eq!(world.acts(), [""; 0], "when all has been read anew");
    let mut fresh = World::new(settings());
    fresh.dead(&["node-b"]);
    fresh.list(heavier.clone());
    fresh.turn();
    assert_eq!(server(&fresh, nginx().into()), server(&world, nginx().into()));
    let mut world = world.restart(settings());
    world.dead(&["node-b"]);
    world.list(heavier);
    world.turn();
    assert_eq!(world.acts(), [set(5), set(0)], "by the next run, which may have missed a change");
    assert_eq!(world.status().faults, 0);
}

/// A client of UDP that sends on from one port would never leave it.
#[test]
fn a_udp_pod_of_a_dead_node_goes() {
    let mut snapshot = snapshot();
    let service = snapshot.services.get_mut(&ObjectKey::new("default", "dns")).unwrap();
    Arc::make_mut(service).annotations.insert("kvip.io/mode".into(), Mode::Dsr.name().into());
    let mut world = World::new(settings());
    world.list(snapshot);
    world.turn();
    assert_eq!(addresses(&server(&world, dns().into())), ["10.2.6.53", "10.2.8.53"]);
    world.dead(&["node-b"]);
    world.after(1);
    assert_eq!(addresses(&server(&world, dns().into())), ["10.2.8.53"]);
    assert_eq!(world.targets(), ["node-b", "node-c"], "who is dead is still asked");
    world.dead(&[]);
    world.after(1);
    assert_eq!(addresses(&server(&world, dns().into())), ["10.2.6.53", "10.2.8.53"]);
    assert_eq!(world.status().faults, 0);
}

/// What drains is there, and then gone, on all nodes alike: it goes by time, whether it has connections or not, and a node
/// that begins anew adds it as the others once did.
#[test]
fn an_ending_pod_drains_by_time_alone() {
    let mut world = serving();
    let mut ending = dsr_snapshot();
    end(&mut pods(&mut ending, "nginx")[1]);
    world.event(ending);
    world.turn();
    let drained =
        |world: &World| weights(&server(world, nginx().into())).get(&backend("10.2.6.10", 80)).copied();
    world.tick(59);
    assert_eq!(drained(&world), Some(0), "without any connection");
    world.tick(2);
    assert_eq!(drained(&world), None);
    world.acts();
    world.tick(60);
    assert_eq!(world.acts(), [""; 0], "it is not put back while it is still ending");
    assert_eq!(world.status().faults, 0);
    let mut world = world.restart(settings());
    world.tick(5);
    assert_eq!(world.acts(), [""; 0], "nor by the next run");
    assert_eq!(world.status().faults, 0);
}

/// All nodes have the same table all the while, and who has connections keeps them.
#[test]
fn a_port_that_gets_a_name_moves_no_real_server() {
    let mut world = serving();
    let before = server(&world, nginx().into());
    world.acts();
    let [service, both] = named(dsr_snapshot());
    world.event(service);
    world.tick(5);
    assert_eq!(weights(&server(&world, nginx().into())).into_values().collect::<Vec<_>>(), [0, 0]);
    world.event(both);
    world.tick(1);
    let after = server(&world, nginx().into());
    assert_eq!((weights(&after), &after.added), (weights(&before), &before.added));
    let moved = |act: &&String| act.starts_with("remove real server") && act.contains("10.87.2.50");
    assert_eq!(world.acts().iter().filter(moved).count(), 0);
    assert_eq!(world.status().faults, 0);
}

/// The tutorial's nginx with a port `admin` besides, of which the ConfigMap leaves that one out.
fn beside_admin() -> Snapshot {
    let mut snapshot = dsr_snapshot();
    let key = ObjectKey::new("default", "nginx");
    let admin = |port| ServicePort { name: "admin".into(), protocol: Protocol::Tcp, port };
    Arc::make_mut(snapshot.services.get_mut(&key).unwrap()).ports.push(admin(9090));
    Arc::make_mut(snapshot.slices.get_mut(&key).unwrap()).ports.push(admin(9090));
    snapshot.vip_map = Some([("10.87.2.50", "default/nginx:80")].as_slice().into());
    snapshot
}

/// It is not for clients of the VIP, whatever slices lack.
#[test]
fn a_port_that_is_left_out_gets_no_place() {
    let mut world = World::new(settings());
    world.list(beside_admin());
    world.turn();
    let before = server(&world, nginx().into());
    assert_eq!(before.real_servers.len(), 2);
    world.acts();
    let [service, _] = named(beside_admin());
    world.event(service);
    world.tick(1);
    let renamed = server(&world, nginx().into());
    assert_eq!(
        (weights(&renamed).len(), &renamed.added),
        (2, &before.added),
        "while its neighbour is renamed"
    );

    let mut lacking = beside_admin();
    let key = ObjectKey::new("default", "nginx");
    Arc::make_mut(lacking.slices.get_mut(&key).unwrap()).ports.remove(0);
    world.event(lacking);
    world.tick(1);
    assert_eq!(
        server(&world, nginx().into()).real_servers,
        [].into(),
        "where pods lack the one that is served"
    );
    assert_eq!(world.status().faults, 0);
    assert!(!world.acts().iter().any(|act| act.contains(":9090")));
}

/// Others have it still, for as long as it drains.
#[test]
fn a_node_that_begins_anew_adds_an_ending_pod() {
    let mut world = World::new(settings());
    let mut ending = dsr_snapshot();
    end(&mut pods(&mut ending, "nginx")[1]);
    world.list(ending);
    world.turn();
    assert_eq!(weights(&server(&world, nginx().into()))[&backend("10.2.6.10", 80)], 0);
}
