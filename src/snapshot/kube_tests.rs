//! The watcher against a small API server on loopback, whose answers a test scripts and whose faults it forces.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use server::{NODES, Server, World, bookmark, service};

#[path = "kube_test_server.rs"]
mod server;

/// A watcher on `server`, with short waits.
struct Fixture {
    _dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    handles: Handles,
}

fn timing() -> Timing {
    Timing {
        answer: Duration::from_millis(500),
        plugin: Duration::from_secs(10),
        silence: Duration::from_millis(700),
        retry_first: Duration::from_millis(20),
        retry_longest: Duration::from_millis(100),
        refused: Duration::from_millis(50),
        beat: Duration::from_millis(20),
    }
}

fn follow(server: &Server, timing: Timing) -> Fixture {
    follow_map(server, timing, ObjectKey::new("default", "vip-configmap"))
}

/// As [`follow`], with that ConfigMap of VIPs.
fn follow_map(server: &Server, timing: Timing, config_map: ObjectKey) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    point(&kubeconfig, server.address);
    let standard = crate::config::Settings::standard(Vec::new()).cluster;
    let settings = Cluster { kubeconfig: kubeconfig.clone(), config_map, ..standard };
    Fixture { _dir: dir, kubeconfig, handles: spawn_with(settings, timing) }
}

fn point(kubeconfig: &PathBuf, address: SocketAddr) {
    let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
    fs::write(kubeconfig, text.to_string()).unwrap();
}

impl Fixture {
    /// Waits until the newest snapshot has these Services, and returns it.
    async fn services(&mut self, names: &[&str]) -> Update {
        let is = |update: &Option<Update>| {
            let keys = update.iter().flat_map(|u| u.snapshot.services.keys());
            update.is_some() && keys.map(|key| key.name.as_str()).eq(names.iter().copied())
        };
        let found = timeout(Duration::from_secs(10), self.handles.snapshots.wait_for(is)).await;
        found.expect("the snapshot in time").unwrap().clone().unwrap()
    }

    /// Waits until the problem's text has this in it; empty: until there is none.
    async fn problem(&mut self, text: &str) -> Contact {
        let is = |contact: &Contact| match &contact.problem {
            Some(problem) => !text.is_empty() && problem.to_string().contains(text),
            None => text.is_empty() && contact.last_ok.is_some(),
        };
        let found = timeout(Duration::from_secs(10), self.handles.contact.wait_for(is)).await;
        found.expect("the problem in time").unwrap().clone()
    }
}

/// Waits until `condition` holds.
async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.expect("the condition in time");
}

fn world() -> World {
    World { uid: "a".into(), version: 10, services: vec![service("web", 5)], ..World::default() }
}

#[tokio::test]
async fn lists_then_follows_changes() {
    let server = Server::start(world()).await;
    let mut fixture = follow(&server, timing());
    let first = fixture.services(&["web"]).await;
    assert_eq!((first.lists, first.snapshot.cluster.as_deref()), (1, Some("a")));
    fixture.problem("").await;
    until(|| !server.world.lock().unwrap().watches.is_empty()).await;
    server.change(|w| w.send("ADDED", &service("shop", 11)));
    let second = fixture.services(&["shop", "web"]).await;
    assert_eq!(second.lists, 1);
    server.change(|w| w.send("DELETED", &service("web", 12)));
    fixture.services(&["shop"]).await;
}

/// Whoever may write the status of one Service must not be able to stop kvip for all.
#[tokio::test]
async fn an_object_that_cannot_be_understood_stays_as_it_was_and_the_others_go_on() {
    let broken = |name: &str, version| {
        let mut service = service(name, version);
        service["status"] = json!({"conditions": [5]});
        service
    };
    let server =
        Server::start(World { services: vec![service("web", 5), broken("old", 6)], ..world() }).await;
    let mut fixture = follow(&server, timing());
    let first = fixture.services(&["web"]).await;
    let said = |update: &Update| update.snapshot.skipped.keys().cloned().collect::<Vec<_>>();
    assert_eq!(said(&first), ["Service default/old"]);
    until(|| !server.world.lock().unwrap().watches.is_empty()).await;
    server.change(|w| {
        w.send("MODIFIED", &broken("web", 11));
        w.send("ADDED", &service("shop", 12));
        w.send("DELETED", &broken("old", 13));
    });
    let second = fixture.services(&["shop", "web"]).await;
    server.change(|w| w.send("DELETED", &broken("web", 14)));
    let third = fixture.services(&["shop"]).await;
    assert_eq!(third.lists, second.lists);
    assert_eq!(said(&third), [""; 0]);
}

#[tokio::test]
async fn nothing_is_published_while_a_part_is_forbidden_and_the_text_names_it() {
    let server = Server::start(World { fault: Some((NODES, 403)), ..world() }).await;
    let mut fixture = follow(&server, timing());
    let contact = fixture.problem("does not let kvip list nodes (403): scripted").await;
    assert_eq!(contact.last_ok, None);
    until(|| !server.world.lock().unwrap().watches.is_empty()).await;
    assert!(fixture.handles.snapshots.borrow().is_none());
    server.change(|w| w.fault = None);
    fixture.services(&["web"]).await;
    fixture.problem("").await;
}

#[tokio::test]
async fn a_config_map_that_the_rights_do_not_name_is_named_by_the_mend() {
    let server =
        Server::start(World { refused: vec![("/api/v1/namespaces/shop/configmaps", 403)], ..world() }).await;
    let mut fixture = follow_map(&server, timing(), ObjectKey::new("shop", "vips"));
    let contact = fixture.problem("does not let kvip list configmaps (403): scripted").await;
    let mend = contact.problem.unwrap().mend().unwrap();
    assert!(mend.contains("/usr/share/kvip/make-kubeconfig --rights-only --config-map shop/vips"), "{mend}");
}

#[tokio::test]
async fn an_outage_keeps_the_state_and_the_watch_resumes_where_it_was() {
    let server = Server::start(world()).await;
    let mut fixture = follow(&server, timing());
    fixture.services(&["web"]).await;
    until(|| !server.world.lock().unwrap().watches.is_empty()).await;
    server.change(|w| w.send("BOOKMARK", &bookmark(17)));
    server.change(|w| w.version = 17);
    let (world, address) = server.stop().await;
    fixture.problem("cannot reach API server").await;
    assert!(!fixture.handles.snapshots.has_changed().unwrap());
    world.lock().unwrap().seen.clear();
    let server = Server::resume(world, address).await;
    fixture.problem("").await;
    until(|| server.world.lock().unwrap().seen.iter().any(|seen| seen.starts_with("watch"))).await;
    let seen = server.world.lock().unwrap().seen.clone();
    assert_eq!(seen.last().unwrap(), "watch 17", "{seen:?}");
}

#[tokio::test]
async fn a_version_too_old_is_listed_anew_and_counts_when_it_brings_news() {
    let server = Server::start(world()).await;
    let mut fixture = follow(&server, timing());
    let first = fixture.services(&["web"]).await;
    server.change(|w| {
        w.services = vec![service("new", 20)];
        w.version = 20;
        w.gone = true;
        w.watches.clear();
    });
    let status = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"});
    let send = || server.change(|w| w.send("ERROR", &status));
    send();
    let second = fixture.services(&["new"]).await;
    assert_eq!(second.lists, first.lists + 1);
    assert_eq!(fixture.handles.contact.borrow().problem, None, "old versions are in the order of things");
}

#[tokio::test]
async fn a_restored_cluster_that_went_back_is_listed_anew() {
    let server = Server::start(World { version: 500, ..world() }).await;
    let mut fixture = follow(&server, timing());
    fixture.services(&["web"]).await;
    let (world, address) = server.stop().await;
    fixture.problem("cannot reach").await;
    {
        let mut world = world.lock().unwrap();
        world.version = 40;
        world.services = vec![service("older", 30)];
    }
    let _server = Server::resume(world, address).await;
    assert_eq!(fixture.services(&["older"]).await.lists, 2);
}

#[tokio::test]
async fn another_cluster_at_the_same_address_is_listed_anew_with_its_uid() {
    let server = Server::start(world()).await;
    let mut fixture = follow(&server, timing());
    fixture.services(&["web"]).await;
    let (world, address) = server.stop().await;
    fixture.problem("cannot reach").await;
    {
        let mut world = world.lock().unwrap();
        world.uid = "b".into();
        world.services.clear();
    }
    let _server = Server::resume(world, address).await;
    let update = fixture.services(&[]).await;
    assert_eq!((update.lists, update.snapshot.cluster.as_deref()), (2, Some("b")));
}

#[tokio::test]
async fn a_new_kubeconfig_is_followed_without_an_empty_state_between() {
    let server = Server::start(world()).await;
    let other = Server::start(World { uid: "b".into(), ..world() }).await;
    let mut fixture = follow(&server, timing());
    fixture.services(&["web"]).await;
    fixture.handles.snapshots.mark_unchanged();
    fs::write(&fixture.kubeconfig, "half a fi").unwrap();
    fixture.problem("not a usable kubeconfig").await;
    assert!(!fixture.handles.snapshots.has_changed().unwrap());
    point(&fixture.kubeconfig, other.address);
    timeout(Duration::from_secs(10), fixture.handles.snapshots.changed()).await.unwrap().unwrap();
    let update = fixture.handles.snapshots.borrow().clone().unwrap();
    assert_eq!((update.lists, update.snapshot.cluster.as_deref()), (2, Some("b")));
    assert_eq!(update.snapshot.services.len(), 1);
}

#[tokio::test]
async fn refused_credentials_are_told_and_tried_again() {
    let server = Server::start(World { fault: Some(("/", 401)), ..world() }).await;
    let mut fixture = follow(&server, timing());
    fixture.problem("refuses the credentials").await;
    server.change(|w| w.fault = None);
    fixture.services(&["web"]).await;
    fixture.problem("").await;
    server.change(|w| {
        w.fault = Some(("/", 401));
        w.watches.clear();
    });
    fixture.problem("refuses the credentials").await;
}

#[tokio::test]
async fn the_connection_is_shared_while_there_is_a_session() {
    let server = Server::start(World { fault: Some(("/", 401)), ..world() }).await;
    let mut fixture = follow(&server, timing());
    fixture.problem("refuses the credentials").await;
    assert!(fixture.handles.link.borrow().is_none());
    server.change(|w| w.fault = None);
    fixture.services(&["web"]).await;
    let link = fixture.handles.link.borrow_and_update().clone().expect("a connection");
    assert!(
        Api::<k8s_openapi::api::core::v1::Service>::all(link.client)
            .list(&::kube::api::ListParams::default())
            .await
            .is_ok()
    );
    fs::write(&fixture.kubeconfig, "half a fi").unwrap();
    let gone = timeout(Duration::from_secs(10), fixture.handles.link.wait_for(Option::is_none)).await;
    gone.expect("the end in time").unwrap();
    point(&fixture.kubeconfig, server.address);
    timeout(Duration::from_secs(10), fixture.handles.link.wait_for(Option::is_some)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_silent_watch_is_started_again_and_is_no_problem_when_the_server_answers() {
    let server = Server::start(world()).await;
    let mut fixture = follow(&server, Timing { silence: Duration::from_millis(60), ..timing() });
    fixture.services(&["web"]).await;
    until(|| server.world.lock().unwrap().seen.iter().filter(|s| s.starts_with("watch")).count() > 2).await;
    assert_eq!(fixture.handles.contact.borrow().problem, None);
    let before = fixture.handles.contact.borrow().last_ok;
    until(|| fixture.handles.contact.borrow().last_ok > before).await;
}

#[tokio::test]
async fn a_frozen_server_is_told_and_the_loop_beats_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Connections are taken by the kernel and never answered.
    let world = Arc::new(Mutex::new(world()));
    let server = Server { address: listener.local_addr().unwrap(), world, task: tokio::spawn(async {}) };
    let mut fixture = follow(&server, Timing { answer: Duration::from_millis(50), ..timing() });
    fixture.problem("no answer within").await;
    let before = *fixture.handles.alive.borrow();
    until(|| *fixture.handles.alive.borrow() > before).await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_told_and_the_loop_beats_on() {
    let server = Server::start(world()).await;
    let mut fixture = follow(&server, timing());
    fixture.services(&["web"]).await;
    let exec =
        r#"{"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "sleep", "args": ["2"]}}"#;
    let text = fs::read_to_string(&fixture.kubeconfig).unwrap();
    fs::write(&fixture.kubeconfig, text.replace(r#"{"token":"t"}"#, exec)).unwrap();
    fixture.problem("credential plugin").await;
    let before = *fixture.handles.alive.borrow();
    until(|| *fixture.handles.alive.borrow() > before).await;
}

#[test]
fn contact_is_as_old_as_its_oldest_part() {
    let start = Instant::now();
    let mut voices = Voices::default();
    for (n, part) in (1..).zip(Part::ALL) {
        assert_eq!(voices.contact().last_ok, None);
        voices.heard(part, start + Duration::from_secs(n));
    }
    assert_eq!(voices.contact().last_ok, Some(start + Duration::from_secs(1)));
}

const NAMESPACES: &str = "/api/v1/namespaces";
const SETTINGS: &str = "/api/v1/namespaces/kvip-system/configmaps";
const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const IP_ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kvip-system/leases";

/// A world that has something of each kind that kvip can do without.
fn rich_world() -> World {
    let users = r#"[{"service": "default/web", "uid": "u-1", "ports": [["tcp", 80]]}]"#;
    let metadata = |name: &str| {
        json!({"name": name, "namespace": "kvip-system", "annotations": {"kvip.io/services": users},
            "labels": {"ipaddress.kubernetes.io/managed-by": "kvip"}})
    };
    let settings = json!({"metadata": {"namespace": "kvip-system", "name": "kvip"},
        "data": {"config.toml": "[asking]"}});
    let parent = json!({"parentRef": {"resource": "services", "namespace": "default", "name": "web"}});
    let others = [
        (NAMESPACES, json!({"metadata": {"name": "shop", "labels": {"team": "shop"}}})),
        (SETTINGS, settings),
        (SERVICE_CIDRS, json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}})),
        (IP_ADDRESSES, json!({"metadata": metadata("10.87.2.50"), "spec": parent})),
        (LEASES, json!({"metadata": metadata("kvip-0a570233")})),
    ];
    World { others: others.map(|(path, object)| (path, vec![object])).into(), ..world() }
}

/// How many of the parts that kvip can do without are there.
fn extras(snapshot: &crate::snapshot::Snapshot) -> usize {
    let settings = snapshot.cluster_settings.iter().count();
    snapshot.namespaces.len() + settings + snapshot.service_cidrs.len() + snapshot.claims.len()
}

impl Fixture {
    /// Waits until so many extras are there.
    async fn extras(&mut self, count: usize) -> Update {
        let is = |update: &Option<Update>| update.as_ref().is_some_and(|u| extras(&u.snapshot) == count);
        let found = timeout(Duration::from_secs(10), self.handles.snapshots.wait_for(is)).await;
        found.expect("the snapshot in time").unwrap().clone().unwrap()
    }
}

#[tokio::test]
async fn all_parts_are_followed_and_the_claims_by_their_label() {
    let server = Server::start(rich_world()).await;
    let mut fixture = follow(&server, timing());
    let update = fixture.extras(5).await;
    assert!(update.snapshot.skipped.is_empty(), "{:?}", update.snapshot.skipped);
    let asked = server.world.lock().unwrap().asked.clone();
    let of = |path: &str| asked.iter().find(|target| target.starts_with(&format!("{path}?"))).unwrap();
    for path in [IP_ADDRESSES, LEASES] {
        assert!(
            of(path).contains("labelSelector=ipaddress.kubernetes.io%2Fmanaged-by%3Dkvip"),
            "{}",
            of(path)
        );
    }
    assert!(of(SETTINGS).contains("fieldSelector=metadata.name%3Dkvip"), "{}", of(SETTINGS));
}

#[tokio::test]
async fn kinds_that_an_older_cluster_lacks_hold_nothing_back() {
    let refused = vec![(SERVICE_CIDRS, 404), (IP_ADDRESSES, 404)];
    let server = Server::start(World { refused, ..rich_world() }).await;
    let mut fixture = follow(&server, timing());
    let update = fixture.extras(3).await;
    assert_eq!(update.snapshot.skipped.values().flatten().count(), 0);
    fixture.problem("").await;
    server.change(|w| w.refused.clear());
    fixture.extras(5).await;
}

#[tokio::test]
async fn kinds_that_an_older_identity_may_not_read_are_findings_with_rule_and_mend() {
    let all = [NAMESPACES, SETTINGS, SERVICE_CIDRS, IP_ADDRESSES, LEASES];
    let refused = all.map(|path| (path, 403)).to_vec();
    let server = Server::start(World { refused, ..rich_world() }).await;
    let mut fixture = follow(&server, timing());
    let update = fixture.services(&["web"]).await;
    assert_eq!((extras(&update.snapshot), update.snapshot.skipped.len()), (0, 5));
    let finding = &update.snapshot.skipped["Namespace"][0];
    assert_eq!(
        finding.to_string(),
        "cluster: its API does not let kvip read namespaces (403): the rule \"namespaces: get, list, watch\" is \
         missing; pools and tenants that go by labels of namespaces match none"
    );
    assert!(finding.mend.as_ref().unwrap().contains("kubectl apply -f /usr/share/kvip/kvip.yaml"));
    let settings = update.snapshot.skipped["ConfigMap"][0].mend.clone().unwrap();
    assert!(settings.contains("make-kubeconfig --rights-only --config-map kvip-system/kvip"), "{settings}");
    let contact = fixture.problem("").await;
    assert!(contact.last_ok.is_some(), "an answer is contact");
    server.change(|w| w.refused.clear());
    assert!(fixture.extras(5).await.snapshot.skipped.is_empty());
}

#[tokio::test]
async fn what_can_no_longer_be_read_keeps_its_last_state() {
    let server = Server::start(rich_world()).await;
    let mut fixture = follow(&server, timing());
    fixture.extras(5).await;
    let (world, address) = server.stop().await;
    fixture.problem("cannot reach").await;
    world.lock().unwrap().refused = vec![(IP_ADDRESSES, 403), (NAMESPACES, 404)];
    let _server = Server::resume(world, address).await;
    let refused = |update: &Option<Update>| {
        update.as_ref().is_some_and(|update| update.snapshot.skipped.contains_key("IPAddress"))
    };
    let update = timeout(Duration::from_secs(10), fixture.handles.snapshots.wait_for(refused)).await;
    assert_eq!(extras(&update.unwrap().unwrap().as_ref().unwrap().snapshot), 5);
    fixture.problem("").await;
}

#[tokio::test]
async fn what_a_new_run_may_not_read_is_what_the_last_one_accepted() {
    let server = Server::start(rich_world()).await;
    let before = follow(&server, timing()).extras(5).await;
    let refused =
        vec![(IP_ADDRESSES, 403), (LEASES, 404), (NAMESPACES, 403), (SERVICE_CIDRS, 404), (SETTINGS, 403)];
    server.change(|w| w.refused = refused);
    let mut fixture = follow(&server, timing());
    let update = fixture.services(&["web"]).await;
    assert_eq!(extras(&update.snapshot), 0);
    let saved = Update::saved((*before.snapshot).clone());
    assert_eq!(extras(&update.with_unread_of(Some(&saved)).snapshot), 5);
    server.change(|w| {
        w.refused.clear();
        w.others.clear();
    });
    let fresh = |update: &Option<Update>| update.as_ref().is_some_and(|u| u.snapshot.skipped.is_empty());
    let update = timeout(Duration::from_secs(10), fixture.handles.snapshots.wait_for(fresh)).await;
    let update = update.unwrap().unwrap().clone().unwrap();
    assert_eq!(extras(&update.with_unread_of(Some(&saved)).snapshot), 0, "what is read counts");
}

#[tokio::test]
async fn other_faults_of_a_kind_that_kvip_can_do_without_are_waited_for() {
    let server = Server::start(World { refused: vec![(IP_ADDRESSES, 500)], ..rich_world() }).await;
    let mut fixture = follow(&server, timing());
    fixture.problem("fails to list ipaddresses.networking.k8s.io").await;
    assert!(fixture.handles.snapshots.borrow().is_none(), "that there are none is not known");
    server.change(|w| w.refused.clear());
    fixture.extras(5).await;
}
