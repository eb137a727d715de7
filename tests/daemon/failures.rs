//! A host or an API server that refuses: said, not hammered, and over when it is over.

use std::sync::Arc;

use kvip::config::Scheduler;
use kvip::model::{Family, ObjectKey};
use kvip::report::status::Repairs;
use kvip::snapshot::Snapshot;
use kvip::snapshot::problem::Problem;

use crate::world::{World, dns, endpoint, nginx, pods, settings, snapshot};

#[test]
fn a_state_that_cannot_be_saved_is_a_finding_until_it_can() {
    let mut world = World::serving();
    let file = world.paths.state.join("snapshot.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    world.event(without_a_node());
    world.tick(10);
    let findings = world.findings();
    assert!(findings.iter().any(|finding| finding.contains("cannot be saved")), "{findings:?}");
    std::fs::remove_dir(&file).unwrap();
    world.tick(10);
    assert!(!world.findings().iter().any(|finding| finding.contains("cannot be saved")));
}

fn without_a_node() -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.nodes.remove("node-c");
    snapshot
}

#[test]
fn a_refusing_host_is_told_asked_again_each_2_s_and_recovers() {
    let mut world = World::new(settings());
    world.kernel().ipvs_refuses = true;
    world.list(snapshot());
    world.turn();
    assert_eq!(world.findings(), ["IPVS: no such module"]);
    assert!(
        world.status().summary.starts_with("degraded: IPVS: no such module"),
        "{}",
        world.status().summary
    );
    assert_eq!(world.wanted(), None, "VIPs must not come to a host that cannot serve them");
    let attempt = world.acts().len();
    for _ in 0..19 {
        world.after_millis(100);
    }
    assert_eq!(world.acts(), [""; 0], "no second attempt within 2 s");
    world.after_millis(100);
    assert_eq!(world.acts().len(), attempt);
    for _ in 0..200 {
        world.after_millis(100);
    }
    assert_eq!(world.acts().len(), 10 * attempt, "one attempt each 2 s");

    world.kernel().ipvs_refuses = false;
    world.after(2);
    assert_eq!(world.findings(), [""; 0]);
    assert!(world.status().as_planned);
    assert!(world.wanted().is_some());
    assert_eq!(world.servers(nginx()).unwrap().len(), 2);
}

#[test]
fn a_refusal_while_serving_removes_nothing_and_keeps_the_weight() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.become_holder();
    world.turn();
    world.keepalived_was_told();
    world.kernel().ipvs_refuses = true;
    let mut changed = snapshot();
    pods(&mut changed, "nginx").push(endpoint("10.2.8.10"));
    changed.vip_map.as_mut().unwrap().remove("10.87.2.51");
    world.event(changed);
    world.tick(10);
    assert!(!world.keepalived_was_told(), "a stage begins only when the one before succeeded");
    assert_eq!(world.servers(dns()).unwrap().len(), 2);
    assert_eq!(world.weight(), Some(64));
    world.kernel().ipvs_refuses = false;
    world.tick(3);
    assert!(world.keepalived_was_told());
    assert_eq!(world.servers(nginx()).unwrap().len(), 3);
}

#[test]
fn a_kernel_that_cannot_be_read_is_told() {
    let mut world = World::new(settings());
    world.kernel().ipvs_is_gone = true;
    world.list(snapshot());
    world.tick(10);
    assert_eq!(world.findings(), ["IPVS: the kernel has no ip_vs"]);
    assert_eq!((world.acts().len(), world.wanted(), world.weight()), (0, None, Some(-254)));
    world.kernel().ipvs_is_gone = false;
    world.tick(2);
    assert_eq!(world.findings(), [""; 0]);
    assert_eq!(world.weight(), Some(0));
}

#[test]
fn an_api_server_that_does_not_answer_changes_nothing() {
    let mut world = World::serving();
    world.keepalived_reads();
    world.turn();
    world.acts();
    world.keepalived_was_told();
    world.lose_contact(Problem::Unreachable {
        server: "https://10.87.2.4:6443".into(),
        path: "/etc/kvip/kubeconfig".into(),
        reason: "connection refused".into(),
    });
    world.tick(240);
    assert_eq!(world.acts(), [""; 0]);
    assert!(!world.keepalived_was_told());
    assert_eq!(
        world.status().summary,
        "degraded: cannot reach API server https://10.87.2.4:6443: connection refused for 4m, serving the last known \
         state; holds 0 of 2 VIPs; 2 Services"
    );
    assert_eq!(world.findings().len(), 1);
    world.confirm();
    world.tick(1);
    assert_eq!(world.status().summary, "holds 0 of 2 VIPs; 2 Services; in sync");
}

/// The usual cluster, whose nginx asks for that scheduler.
fn with_scheduler(name: &str) -> Snapshot {
    let mut snapshot = snapshot();
    let nginx = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(nginx).annotations.insert("kvip.io/scheduler".into(), name.into());
    snapshot
}

const REFUSED: &str = "default/nginx: the kernel refuses to have it: no such scheduler";

#[test]
fn a_refused_virtual_server_keeps_no_other_from_being_served() {
    let mut world = World::new(settings());
    world.kernel().lacks_scheduler = Some("twos");
    world.list(with_scheduler("twos"));
    world.turn();
    assert_eq!(world.findings(), [REFUSED]);
    assert_eq!((world.servers(nginx()), world.servers(dns()).map(|all| all.len())), (None, Some(2)));
    assert_eq!(world.weight(), Some(0));
    assert!(world.wanted().is_some());
    assert!(world.status().as_planned);
    assert!(world.kernel().written.frontends.iter().eq([&dns()]), "its port is refused, not the host's");

    world.acts();
    world.tick(5);
    assert_eq!(world.acts(), [""; 0], "the kernel is not asked again at once");
    let mut more = with_scheduler("twos");
    pods(&mut more, "dns").push(endpoint("10.2.4.53"));
    pods(&mut more, "nginx").push(endpoint("10.2.8.10"));
    world.event(more);
    world.turn();
    assert_eq!(world.servers(dns()).unwrap().len(), 3, "others need not wait");
    assert_eq!(world.findings(), [REFUSED]);

    world.kernel().lacks_scheduler = None;
    world.tick(60);
    assert_eq!(world.findings(), [""; 0]);
    assert_eq!(world.servers(nginx()).unwrap().len(), 3);
    assert_eq!(world.kernel().written.frontends.len(), 2);
}

#[test]
fn a_refused_change_leaves_what_is_there() {
    let mut world = World::serving();
    world.kernel().lacks_scheduler = Some("twos");
    world.event(with_scheduler("twos"));
    world.turn();
    assert_eq!(world.findings(), [REFUSED]);
    let mut more = with_scheduler("twos");
    pods(&mut more, "nginx").push(endpoint("10.2.8.10"));
    world.event(more);
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap().len(), 3, "its pods are followed all the same");
    world.event(with_scheduler("rr"));
    world.turn();
    assert_eq!(world.findings(), [""; 0], "another wish is tried at once");
    assert_eq!(world.kernel().table[&nginx().into()].service.scheduler, "rr");
}

fn in_mode_dsr() -> Snapshot {
    let mut snapshot = snapshot();
    let nginx = snapshot.services.get_mut(&ObjectKey::new("default", "nginx")).unwrap();
    Arc::make_mut(nginx).annotations.insert("kvip.io/mode".into(), "dsr".into());
    snapshot
}

/// The order of real servers counts for Maglev hashing, which the kernel may lack.
#[test]
fn a_refused_scheduler_moves_no_real_server() {
    let mut world = World::serving();
    world.kernel().lacks_scheduler = Some("mh");
    world.event(in_mode_dsr());
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap().len(), 2);
    world.acts();
    world.tick(130);
    let moved = world.acts().into_iter().filter(|act| act.contains("real server"));
    assert_eq!(moved.collect::<Vec<_>>(), [""; 0]);
    let status = world.status();
    assert_eq!((status.as_planned, status.faults), (true, 0));
}

#[test]
fn a_refused_real_server_moves_no_other() {
    let mut world = World::new(settings());
    world.kernel().impossible = Some("10.2.4.1".parse().unwrap());
    let mut first = in_mode_dsr();
    pods(&mut first, "nginx").insert(0, endpoint("10.2.4.1"));
    world.list(first);
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap().len(), 2);
    world.acts();
    world.tick(130);
    let moved = world.acts().into_iter().filter(|act| act.contains("real server"));
    let (tried, moved): (Vec<_>, Vec<_>) = moved.partition(|act| act.contains("10.2.4.1:80"));
    assert_eq!((moved, tried.is_empty()), (Vec::new(), false), "it is tried again at the audit");
    let status = world.status();
    assert_eq!((status.as_planned, status.faults), (true, 0));
}

#[test]
fn pods_that_ended_go_though_nft_refuses_what_else_is_new() {
    let mut world = World::serving();
    world.kernel().nft_refuses = true;
    let mut changed = snapshot();
    changed.vip_map.as_mut().unwrap().remove("10.87.2.51");
    pods(&mut changed, "nginx").pop();
    world.event(changed.clone());
    world.tick(5);
    assert_eq!(world.servers(nginx()).unwrap().len(), 1);
    assert_eq!(world.findings(), ["nftables: no such program"]);
    world.tick(60);
    pods(&mut changed, "nginx")[0] = endpoint("10.2.8.10");
    world.event(changed);
    world.tick(5);
    let servers = world.servers(nginx()).unwrap();
    assert_eq!(servers, [("10.2.8.10:80".to_owned(), 1)], "after an audit too, which nft cannot answer");
    assert!(world.servers(dns()).is_some(), "what the rules lead to stays");
    world.kernel().nft_refuses = false;
    world.tick(5);
    assert_eq!((world.servers(dns()), world.findings()), (None, Vec::new()));
    assert_eq!(world.status().repairs, Repairs::default());
}

/// One tenant's VIP of the other family must stand in nobody's way.
#[test]
fn a_host_without_ipv6_serves_all_but_mode_dsr_over_it() {
    let mut settings = settings();
    settings.allowed.push("fd00:87:2::/64".parse().unwrap());
    let mut world = World::new(settings);
    world.kernel().unroutable = Some(Family::V6);
    let mut both = in_mode_dsr();
    both.vip_map.as_mut().unwrap().insert("fd00-87-2--50".into(), "default/nginx".into());
    world.list(both.clone());
    world.turn();
    assert_eq!(world.weight(), Some(0), "it may hold VIPs");
    let findings = world.findings();
    assert!(
        findings.iter().any(|finding| finding.ends_with("mode dsr is not served over IPv6 here")),
        "{findings:?}"
    );
    let written = world.kernel().written.clone();
    assert!(written.frontends.contains(&nginx()) && written.steering.frontends.contains_key(&nginx()));
    assert!(
        written.steering.frontends.keys().chain(&written.frontends).all(|frontend| frontend.vip.is_ipv4())
    );
    assert!(world.status().as_planned);
    world.acts();
    world.tick(5);
    assert_eq!(world.acts(), [""; 0], "it is not asked again at once");
    pods(&mut both, "nginx").pop();
    world.event(both);
    world.turn();
    assert_eq!(world.servers(nginx()).unwrap().len(), 1);
}

#[test]
fn a_list_of_what_is_owned_that_cannot_be_written_is_tried_until_it_can() {
    let mut world = World::serving();
    let file = world.paths.state.join("owned.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let mut more = snapshot();
    more.vip_map.as_mut().unwrap().insert("10.87.2.52".into(), "default/nginx".into());
    world.event(more);
    world.tick(70);
    let findings = world.findings();
    assert!(findings.len() == 1 && findings[0].contains("owned.json"), "{findings:?}");
    std::fs::remove_dir(&file).unwrap();
    world.tick(5);
    assert_eq!(world.findings(), [""; 0]);
    assert!(world.owned().contains(&"10.87.2.52".to_owned()));
}

/// The tier for clients on the node itself needs no Maglev hashing, and is there.
#[test]
fn a_host_without_maglev_hashing_holds_nothing_where_all_is_of_mode_dsr() {
    let mut world = World::new(settings());
    world.kernel().lacks_scheduler = Some("mh");
    let mut all = in_mode_dsr();
    all.vip_map.as_mut().unwrap().remove("10.87.2.51");
    world.list(all);
    world.tick(3);
    assert_eq!((world.wanted(), world.weight()), (None, Some(-254)));
    assert!(!world.kernel().table.is_empty());
    world.kernel().lacks_scheduler = None;
    world.tick(60);
    assert!(world.wanted().is_some());
    assert_eq!((world.weight(), world.findings().len()), (Some(0), 0));
}

#[test]
fn a_host_that_can_serve_nothing_holds_nothing() {
    let mut settings = settings();
    settings.balancing.scheduler = Scheduler::Twos;
    let mut world = World::new(settings);
    world.kernel().lacks_scheduler = Some("twos");
    world.list(snapshot());
    world.tick(3);
    assert_eq!((world.wanted(), world.weight()), (None, Some(-254)));
    assert_eq!(world.findings().len(), 2);
    world.kernel().lacks_scheduler = None;
    world.tick(60);
    assert!(world.wanted().is_some());
    assert_eq!((world.weight(), world.findings().len()), (Some(0), 0));
}
