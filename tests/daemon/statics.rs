//! Static VIPs, which need no cluster.

use kvip::config::{Settings, Static};
use kvip::model::{Frontend, Protocol};

use crate::world::{World, ip, settings};

const BACKENDS: [&str; 3] = ["10.87.2.4:6443", "10.87.2.6:6443", "10.87.2.8:6443"];

fn real_servers(world: &World) -> usize {
    world.kernel().table.values().map(|server| server.real_servers.len()).sum()
}

const VIP: &str = "10.87.2.60";

/// With a static VIP for the control plane.
fn with_static(backends: &[&str]) -> Settings {
    let mut settings = settings();
    settings.statics.push(Static {
        name: "control-plane".into(),
        vip: ip(VIP),
        protocol: Protocol::Tcp,
        port: 6443,
        backends: backends.iter().map(|backend| backend.parse().unwrap()).collect(),
        check: true,
    });
    settings
}

#[test]
fn a_host_that_never_knew_a_cluster_serves_them_with_the_backends_that_answer() {
    let mut world = World::new(with_static(&BACKENDS));
    world.turn();
    assert_eq!(real_servers(&world), 3);
    world.unhealthy(&BACKENDS[..1]);
    // One that checks took out has no time to drain: it is gone after a turn or two.
    world.tick(2);
    assert_eq!(real_servers(&world), 2);
    world.unhealthy(&[]);
    world.tick(1);
    assert_eq!(real_servers(&world), 3);
}

/// The node's own processes reach its own backend by the VIP although another node holds it.
#[test]
fn packets_to_a_backend_on_this_host_are_steered_into_it_and_no_others() {
    let frontend = Frontend { vip: ip(VIP), protocol: Protocol::Tcp, port: 6443 };
    let steered = |world: &World| {
        let kernel = world.kernel();
        let steering = &kernel.written.steering;
        assert!(steering.frontends.is_empty());
        let routes = kernel.facts.borrow().policy_routes.len();
        (steering.inward.contains(&frontend), routes)
    };
    let mut world = World::new(with_static(&BACKENDS));
    world.turn();
    assert_eq!(steered(&world), (true, 2), "a rule and a route of IPv4");
    world.unhealthy(&BACKENDS[..1]);
    world.tick(2);
    assert_eq!(steered(&world), (false, 0));
    world.unhealthy(&[]);
    world.tick(1);
    assert_eq!(steered(&world), (true, 2));
    world.daemon.take_settings(with_static(&BACKENDS[1..]), false);
    world.tick(1);
    assert_eq!(steered(&world), (false, 0));
    assert_eq!(world.status().faults, 0);
}
