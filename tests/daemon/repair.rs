//! What other programs do to what is kvip's is noticed, put right and counted; what is theirs is left alone. And what is
//! the whole host's: the kernel's settings, IPVS's timeouts, its sync daemon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvip::config::{Mode, Settings};
use kvip::ipvs::sync::Role;
use kvip::ipvs::{Key, RealServer, SyncDaemon, Table, Timeouts, VirtualServer};
use kvip::model::{Backend, Frontend, ObjectKey, Protocol};
use kvip::net::{KUBE_PROXY_DEVICE, Link};
use kvip::report::status::Repairs;
use kvip::snapshot::Snapshot;

use crate::host::Kernel;
use crate::world::{World, backend, dns, ip, nginx, settings, snapshot, vrid};

/// A virtual server of somebody else's.
fn foreign() -> (Key, VirtualServer) {
    let frontend = Frontend { vip: ip("10.99.0.1"), protocol: Protocol::Tcp, port: 80 };
    let service = kvip::ipvs::Service { scheduler: "rr".into(), persistence: None, flags: 0 };
    (frontend.into(), VirtualServer::new(service))
}

/// What is kvip's in the kernel, without what comes and goes by itself.
fn programmed(world: &World) -> (Table, Option<String>) {
    let kernel = world.kernel();
    (kernel.table.clone(), kernel.ruleset.clone())
}

/// Another program does something to a serving host: after so many steps, and no sooner, all is as before; what is not
/// kvip's is as the other program left it; and it is counted once.
#[track_caller]
fn check(steps: usize, step: fn(&mut World), expected: Repairs, act: impl FnOnce(&mut Kernel)) {
    let mut world = World::serving();
    let before = programmed(&world);
    let (key, server) = foreign();
    act(&mut world.kernel());
    world.kernel().table.insert(key, server.clone());
    for number in 1..=steps {
        let (mut table, ruleset) = programmed(&world);
        table.remove(&key);
        assert!((table, ruleset) != before, "repaired before step {number}");
        step(&mut world);
    }
    assert_eq!(world.kernel().table.remove(&key), Some(server), "somebody else's");
    assert!(programmed(&world) == before, "not repaired by step {steps}");
    assert_eq!(world.status().repairs, expected);
    world.acts();
    world.tick(59);
    assert_eq!(world.acts(), [""; 0], "once is enough");
    assert_eq!((world.status().repairs, world.status().faults), (expected, 0));
    assert_eq!(world.findings(), [""; 0]);
}

/// A second of the loop.
const SECOND: fn(&mut World) = |world| world.tick(1);
const IPVS_ONCE: Repairs = Repairs { ipvs: 1, nftables: 0, routing: 0 };

#[test]
fn a_flush_of_ipvs_is_repaired_by_the_next_probe() {
    check(1, World::probe, IPVS_ONCE, |kernel| kernel.table.clear());
}

#[test]
fn a_virtual_server_that_is_removed_is_put_back() {
    check(1, World::probe, IPVS_ONCE, |kernel| _ = kernel.table.remove(&nginx().into()));
    check(1, World::probe, IPVS_ONCE, |kernel| _ = kernel.table.remove(&dns().into()));
}

#[test]
fn a_virtual_server_that_balances_otherwise_is_set_back() {
    check(1, World::probe, IPVS_ONCE, |kernel| {
        kernel.table.get_mut(&nginx().into()).unwrap().service.scheduler = "rr".into();
    });
}

#[test]
fn real_servers_that_are_removed_changed_or_added_are_set_back() {
    let at = backend("10.2.4.10", 80);
    let real_servers = |kernel: &mut Kernel, change: fn(&mut BTreeMap<Backend, RealServer>, Backend)| {
        change(&mut kernel.table.get_mut(&nginx().into()).unwrap().real_servers, at);
    };
    check(1, World::probe, IPVS_ONCE, |kernel| real_servers(kernel, |all, at| _ = all.remove(&at)));
    check(1, World::probe, IPVS_ONCE, |kernel| {
        real_servers(kernel, |all, at| all.get_mut(&at).unwrap().weight = 7);
    });
    check(1, World::probe, IPVS_ONCE, |kernel| {
        real_servers(kernel, |all, at| _ = all.insert(backend("10.9.9.9", 80), all[&at]));
    });
}

/// Connections come and go, and each probe sees other ones.
#[test]
fn connections_are_no_change() {
    let mut world = World::serving();
    let reads = world.kernel().reads;
    for connections in 1..20 {
        world.kernel().table.values_mut().flat_map(|one| one.real_servers.values_mut()).for_each(|real| {
            real.connections = connections;
        });
        world.probe();
    }
    assert_eq!((world.kernel().reads, world.status().repairs), (reads, Repairs::default()));
}

#[test]
fn a_ruleset_whose_removal_nobody_told_is_found_by_the_audit() {
    check(60, SECOND, Repairs { nftables: 1, ..Repairs::default() }, |kernel| kernel.ruleset = None);
}

#[test]
fn the_ruleset_is_read_when_another_hand_touches_it() {
    for ruleset in [None, Some("altered".to_owned())] {
        let mut world = World::serving();
        let before = programmed(&world);
        world.kernel().ruleset = ruleset;
        world.ruleset_touched();
        world.turn();
        assert!(programmed(&world) == before);
        assert_eq!(world.status().repairs, Repairs { nftables: 1, ..Repairs::default() });
        // The repair is a touch too.
        world.acts();
        world.ruleset_touched();
        world.turn();
        assert_eq!((world.acts(), world.status().repairs.nftables), (Vec::new(), 1));
    }
}

#[test]
fn what_kvip_does_itself_is_no_repair() {
    let mut world = World::serving();
    let mut changed = snapshot();
    changed.vip_map.as_mut().unwrap().remove("10.87.2.51");
    world.event(changed);
    world.tick(2);
    world.list(snapshot());
    world.tick(120);
    let mut world = world.restart(settings());
    world.list(snapshot());
    world.tick(120);
    assert_eq!(world.status().repairs, Repairs::default());
}

#[test]
fn what_the_host_refuses_is_no_repair() {
    let mut world = World::serving();
    world.kernel().ipvs_refuses = true;
    let mut changed = snapshot();
    changed.vip_map.as_mut().unwrap().insert("10.87.2.52".into(), "default/nginx".into());
    world.event(changed);
    world.tick(10);
    world.kernel().ipvs_refuses = false;
    world.tick(10);
    assert!(world.status().as_planned);
    assert_eq!(world.status().repairs, Repairs::default());
}

#[test]
fn a_fight_is_a_finding_while_it_lasts() {
    let mut world = World::serving();
    for _ in 0..11 {
        assert_eq!(world.findings(), [""; 0]);
        world.kernel().table.clear();
        world.tick(1);
    }
    let expected = "IPVS: another program removes or changes kvip's virtual servers; repaired more than 10 times in a minute";
    assert_eq!(world.findings(), [expected]);
    assert!(world.status().as_planned, "and served nevertheless");
    world.tick(60);
    assert_eq!(world.findings(), [""; 0]);
    assert_eq!(world.status().repairs.ipvs, 11);
}

/// Settings with the word that kube-proxy in ipvs mode leaves alone what is kvip's.
fn beside_ipvs() -> Settings {
    let mut settings = settings();
    settings.balancing.beside_kube_proxy_ipvs = true;
    settings
}

/// A host on which kube-proxy runs in ipvs mode.
fn beside_kube_proxy_ipvs() -> World {
    let world = World::new(beside_ipvs());
    let device = Link { index: 3, ..Link::default() };
    world.kernel().facts.send_modify(|facts| _ = facts.links.insert(KUBE_PROXY_DEVICE.into(), device));
    world
}

/// The tutorial, whose nginx others balance at an address that kube-proxy knows too.
fn announced() -> Snapshot {
    let mut snapshot = snapshot();
    let service = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    let service = Arc::make_mut(service);
    service.annotations.insert("kvip.io/mode".into(), "announce".into());
    service.external_ips = vec![nginx().vip];
    snapshot
}

#[test]
fn what_kube_proxy_has_in_ipvs_mode_at_a_vip_that_it_balances_is_left_to_it() {
    let mut world = beside_kube_proxy_ipvs();
    let (_, mut server) = foreign();
    world.kernel().table.insert(nginx().into(), server.clone());
    world.list(announced());
    world.turn();
    let at_nginx = |world: &World| world.kernel().table.get(&nginx().into()).cloned();
    assert_eq!(at_nginx(&world), Some(server.clone()));
    server.service.scheduler = "lc".into();
    world.kernel().table.insert(nginx().into(), server.clone());
    world.tick(120);
    let mut world = world.restart(beside_ipvs());
    world.list(announced());
    world.tick(60);
    assert_eq!(at_nginx(&world), Some(server));
    assert_eq!((world.status().repairs, world.findings()), (Repairs::default(), Vec::new()));
}

#[test]
fn what_kvip_had_there_goes_when_kube_proxy_is_to_balance() {
    let mut world = beside_kube_proxy_ipvs();
    world.list(snapshot());
    world.turn();
    assert!(world.kernel().table.contains_key(&nginx().into()));
    world.event(announced());
    world.after(61);
    assert!(!world.kernel().table.contains_key(&nginx().into()));
    assert_eq!(world.status().repairs, Repairs::default());
}

/// The tutorial, whose nginx's VIP only floats.
fn floating() -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.vip_map.as_mut().unwrap().insert("10.87.2.50".into(), String::new());
    snapshot
}

/// As of ldirectord at a VIP that floats, of kube-router at one of mode announce.
#[test]
fn what_others_balance_at_a_vip_that_is_only_held_is_left_to_them() {
    for held in [floating(), announced()] {
        let mut world = World::new(settings());
        let (_, server) = foreign();
        let theirs = [nginx(), Frontend { port: 8080, ..nginx() }];
        let there = |world: &World| {
            let kernel = world.kernel();
            theirs.map(|frontend| kernel.table.get(&frontend.into()).cloned())
        };
        let all = [Some(server.clone()), Some(server.clone())];
        world.kernel().table.extend(theirs.map(|frontend| (frontend.into(), server.clone())));
        world.list(held.clone());
        world.tick(120);
        assert_eq!(there(&world), all);
        let mut world = world.restart(settings());
        world.list(held.clone());
        world.tick(60);
        assert_eq!(there(&world), all, "by the next run");
        let mut without = held.clone();
        without.vip_map.as_mut().unwrap().remove("10.87.2.50");
        world.event(without);
        world.tick(120);
        assert_eq!(there(&world), all, "when the VIP goes");
        assert_eq!(world.status().repairs, Repairs::default());
    }
}

#[test]
fn what_kvip_had_at_a_vip_goes_when_it_only_floats() {
    for restarts in [false, true] {
        let mut world = World::serving();
        assert!(world.servers(nginx()).is_some());
        if restarts {
            world = world.restart(settings());
            world.turn();
        }
        world.event(floating());
        world.turn();
        assert_eq!(world.servers(nginx()), None, "{restarts}");
        let (_, server) = foreign();
        world.kernel().table.insert(nginx().into(), server.clone());
        world.tick(120);
        assert_eq!(world.kernel().table.get(&nginx().into()), Some(&server), "and others may balance there");
        assert_eq!(world.status().repairs, Repairs::default());
    }
}

#[test]
fn all_nodes_answering_for_what_kube_proxy_balances_is_a_finding() {
    let mut world = beside_kube_proxy_ipvs();
    let names = ["eth0", "all"].map(|link| format!("net.ipv4.conf.{link}.arp_ignore"));
    world.kernel().sysctls.extend(names.clone().map(|name| (name, "0".into())));
    world.list(snapshot());
    world.turn();
    assert_eq!(world.findings(), [""; 0]);
    world.list(announced());
    world.turn();
    let expected = format!(
        "{}: is 0 and must be 1: kube-proxy has VIPs of mode announce on kube-ipvs0, so this node answers ARP for them on eth0 whoever holds them",
        names[1]
    );
    assert_eq!(world.findings(), [expected]);
    world.kernel().sysctls.insert(names[1].clone(), "1".into());
    world.tick(60);
    assert_eq!(world.findings(), [""; 0]);
}

#[test]
fn a_kernel_setting_that_is_another_is_a_finding_until_it_is_mended() {
    let mut world = World::serving();
    let name = "net.ipv4.vs.conntrack";
    world.kernel().sysctls.insert(name.into(), "0".into());
    world.tick(60);
    let expected =
        format!("{name}: is 0 and must be 1: clients get no answer from pods on other nodes than the holder");
    assert_eq!(world.findings(), [expected]);
    assert!(world.status().as_planned);
    world.kernel().sysctls.insert(name.into(), "1".into());
    world.tick(60);
    assert_eq!(world.findings(), [""; 0]);
}

/// nginx alone, in `mode` and with a port of `protocol`.
fn by(mode: Mode, protocol: Protocol) -> Snapshot {
    let mut snapshot = snapshot();
    let key = ObjectKey::new("default", "nginx");
    let service = Arc::make_mut(snapshot.services.get_mut(&key).unwrap());
    service.annotations.insert("kvip.io/mode".into(), mode.name().into());
    service.ports[0].protocol = protocol;
    Arc::make_mut(snapshot.slices.get_mut(&key).unwrap()).ports[0].protocol = protocol;
    snapshot.vip_map.as_mut().unwrap().remove("10.87.2.51");
    snapshot
}

#[test]
fn what_another_holder_takes_up_in_its_middle_needs_its_protocols_setting() {
    let [tcp, sctp] = ["tcp", "sctp"].map(|protocol| format!("net.ipv4.vs.sloppy_{protocol}"));
    for (mode, protocol, expected) in [
        (Mode::Dsr, Protocol::Tcp, Some((&tcp, "connections"))),
        (Mode::Dsr, Protocol::Sctp, Some((&sctp, "associations of SCTP"))),
        (Mode::Dsr, Protocol::Udp, None),
        (Mode::Nat, Protocol::Sctp, None),
    ] {
        let mut world = World::new(settings());
        world.kernel().sysctls.extend([&tcp, &sctp].map(|name| (name.clone(), "0".into())));
        world.list(by(mode, protocol));
        world.turn();
        let text = |(name, what)| {
            format!(
                "{name}: is 0 and must be 1: open {what} in mode dsr do not survive a change of the holder"
            )
        };
        assert_eq!(
            world.findings(),
            Vec::from_iter(expected.map(text)),
            "{protocol} in mode {}",
            mode.name()
        );
        world.kernel().sysctls.extend([&tcp, &sctp].map(|name| (name.clone(), "1".into())));
        world.tick(60);
        assert_eq!(world.findings(), [""; 0]);
    }
}

#[test]
fn timeouts_are_set_where_the_settings_name_them_and_set_again_by_the_audit() {
    let minutes = |minutes| Some(Duration::from_mins(minutes));
    let kernels = Timeouts { tcp: minutes(15), tcp_fin: minutes(2), udp: minutes(5) };
    let mut settings = settings();
    settings.balancing.timeouts.tcp = minutes(30);
    let mut world = World::new(settings);
    world.kernel().timeouts = kernels;
    world.list(snapshot());
    world.turn();
    assert_eq!(world.kernel().timeouts, Timeouts { tcp: minutes(30), ..kernels });
    world.kernel().timeouts = Timeouts { udp: minutes(1), ..kernels };
    world.tick(61);
    assert_eq!(world.kernel().timeouts, Timeouts { tcp: minutes(30), udp: minutes(1), ..kernels });
}

fn daemon(role: Role) -> SyncDaemon {
    SyncDaemon { role, interface: "eth0".into(), sync_id: 50 }
}

/// A serving host whose settings want the sync daemon.
fn synced() -> World {
    let mut settings = settings();
    settings.balancing.sync.on = true;
    let mut world = World::new(settings);
    world.list(snapshot());
    world.turn();
    world.keepalived_reads();
    world
}

#[test]
fn the_sync_daemon_follows_the_holder() {
    let mut world = synced();
    assert_eq!(world.kernel().sync_daemons, [daemon(Role::Backup)].into());
    world.become_holder();
    world.turn();
    assert_eq!(world.kernel().sync_daemons, [daemon(Role::Master)].into());
    world.lose(vrid());
    world.turn();
    assert_eq!(world.kernel().sync_daemons, [daemon(Role::Backup)].into());
}

#[test]
fn a_sync_daemon_that_an_earlier_run_started_is_stopped_when_it_is_not_wanted() {
    let mut world = synced().restart(settings());
    assert_eq!(world.kernel().sync_daemons, [daemon(Role::Backup)].into());
    world.list(snapshot());
    world.turn();
    assert_eq!(world.kernel().sync_daemons, [].into());
    assert_eq!(world.findings(), [""; 0]);
}

#[test]
fn the_sync_daemons_of_others_are_left_alone() {
    let theirs = SyncDaemon { sync_id: 7, ..daemon(Role::Master) };
    let mut world = synced();
    world.kernel().sync_daemons.insert(theirs.clone());
    world.become_holder();
    world.turn();
    assert_eq!(world.kernel().sync_daemons, [theirs].into());
    let expected = "IPVS: balancing.sync: another program's sync daemon runs already (master on eth0, sync ID 7), and kvip \
                    leaves it alone";
    assert_eq!(world.findings(), [expected]);
    world.kernel().sync_daemons.clear();
    world.tick(61);
    assert_eq!(world.kernel().sync_daemons, [daemon(Role::Master)].into());
    assert_eq!(world.findings(), [""; 0]);
}

#[test]
fn beside_kube_proxy_in_ipvs_mode_vips_leave_before_their_virtual_servers() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.tick(1);
    let fresh = world.weight().unwrap();
    let device = Link { index: 9, up: false, ..Link::default() };
    world.kernel().facts.send_modify(|facts| _ = facts.links.insert("kube-ipvs0".into(), device));
    world.turn();
    assert_eq!(world.wanted().unwrap().instances, [], "keepalived is told at once");
    assert!(world.weight().unwrap() < fresh, "a node that can serve them comes first");
    assert!(world.servers(nginx()).is_some(), "the VIPs are still here");
    world.keepalived_reads();
    for address in ["169.254.255.50", "10.87.2.50", "10.87.2.51"] {
        world.remove_address(address);
    }
    world.tick(1);
    assert_eq!(world.servers(nginx()), None);
    let found = world.findings();
    let expected = "kube-proxy: in mode ipvs (kube-ipvs0 is there) it deletes virtual servers that are not its own, and it \
                    does not tell at 127.0.0.1:10249 which it leaves alone, so this node does not hold 10.87.2.50 and 1 VIP \
                    more";
    assert_eq!(found, [expected]);

    world.kernel().facts.send_modify(|facts| _ = facts.links.remove("kube-ipvs0"));
    world.tick(1);
    assert_eq!(world.wanted().unwrap().instances[0].vips.len(), 2);
    assert_eq!(world.servers(nginx()).unwrap().len(), 2);
    assert_eq!(world.findings(), [""; 0]);
}

#[test]
fn what_kube_proxy_excludes_is_held_beside_its_ipvs_mode_whatever_the_admin_says() {
    let mut world = beside_kube_proxy_ipvs();
    world.list(snapshot());
    world.turn();
    let vips =
        |world: &World| world.wanted().unwrap().instances.iter().flat_map(|one| one.vips.clone()).collect();
    let check = |world: &mut World, excluded: &[&str], held: &[&str], finding: Option<&str>| {
        let networks = excluded.iter().map(|text| text.parse().unwrap()).collect();
        world.kernel().facts.send_modify(|facts| facts.kube_proxy_excludes = Some(networks));
        world.tick(1);
        let held: Vec<_> = held.iter().copied().map(ip).collect();
        let now: Vec<_> = vips(world);
        assert_eq!(now, held, "{excluded:?}");
        assert_eq!(world.servers(nginx()).is_some(), held.contains(&nginx().vip), "{excluded:?}");
        let why = "kube-proxy: in mode ipvs (kube-ipvs0 is there) it deletes virtual servers that are not its own, and its \
                   ipvs.excludeCIDRs are";
        let although = ", although balancing.beside_kube_proxy_ipvs = true";
        let expected = finding.map(|end| format!("{why} {end}{although}"));
        assert_eq!(world.findings(), Vec::from_iter(expected), "{excluded:?}");
    };
    let both = ["10.87.2.50", "10.87.2.51"];
    check(&mut world, &["10.87.2.0/24"], &both, None);
    let end = "10.87.2.50/32, so this node does not hold 10.87.2.51";
    check(&mut world, &["10.87.2.50/32"], &both[..1], Some(end));
    let end = "empty, so this node does not hold 10.87.2.50 and 1 VIP more";
    check(&mut world, &[], &[], Some(end));
    check(&mut world, &["10.87.2.0/24"], &both, None);
}
