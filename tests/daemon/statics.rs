//! Static VIPs, which need no cluster.

use kvip::config::Static;
use kvip::model::Protocol;

use crate::world::{World, ip, settings};

const BACKENDS: [&str; 3] = ["10.87.2.4:6443", "10.87.2.6:6443", "10.87.2.8:6443"];

fn real_servers(world: &World) -> usize {
    world.kernel().table.values().map(|server| server.real_servers.len()).sum()
}

#[test]
fn a_host_that_never_knew_a_cluster_serves_them_with_the_backends_that_answer() {
    let mut settings = settings();
    settings.statics.push(Static {
        name: "control-plane".into(),
        vip: ip("10.87.2.60"),
        protocol: Protocol::Tcp,
        port: 6443,
        backends: BACKENDS.iter().map(|backend| backend.parse().unwrap()).collect(),
        check: true,
    });
    let mut world = World::new(settings);
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
