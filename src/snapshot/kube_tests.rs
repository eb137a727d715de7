//! The watcher against a small API server on loopback, whose answers a test scripts and whose faults it forces.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

const SERVICES: &str = "/api/v1/services";
const NODES: &str = "/api/v1/nodes";
const IDENTITY: &str = "/api/v1/namespaces/kube-system";

/// What the server holds and how it behaves.
#[derive(Default)]
struct World {
    uid: String,
    version: u64,
    services: Vec<Value>,
    /// Answer requests for paths with this beginning by this status.
    fault: Option<(&'static str, u16)>,
    /// Watches of Services end with this status at once.
    gone: bool,
    /// Lines for the open watch of Services.
    watches: Vec<mpsc::UnboundedSender<String>>,
    /// Requests for Services seen, as `list` or `watch` and the version.
    seen: Vec<String>,
}

impl World {
    fn body(&self, path: &str) -> Value {
        if path == IDENTITY {
            return json!({"metadata": {"name": "kube-system", "uid": self.uid}});
        }
        let items = if path == SERVICES { self.services.clone() } else { Vec::new() };
        json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }

    /// Sends a watch event to whoever watches Services.
    fn send(&mut self, kind: &str, object: &Value) {
        let line = json!({"type": kind, "object": object}).to_string();
        self.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }
}

fn service(name: &str, version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name,
        "resourceVersion": version.to_string()}})
}

fn bookmark(version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": version.to_string()}})
}

struct Server {
    address: SocketAddr,
    world: Arc<Mutex<World>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(world: World) -> Self {
        Self::resume(Arc::new(Mutex::new(world)), "127.0.0.1:0".parse().unwrap()).await
    }

    async fn resume(world: Arc<Mutex<World>>, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&world);
        let task = tokio::spawn(async move {
            // Dropped, and every connection closed, with this task.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, world, task }
    }

    /// Ends the server and its connections, and gives back what it held.
    async fn stop(self) -> (Arc<Mutex<World>>, SocketAddr) {
        self.task.abort();
        let _ = self.task.await;
        (self.world, self.address)
    }

    fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock().unwrap());
    }
}

/// Serves one connection: HTTP/1.1, one answer after the other, until a watch takes it over.
async fn serve(stream: TcpStream, world: Arc<Mutex<World>>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(first)) = lines.next_line().await {
        while lines.next_line().await.ok().flatten().is_some_and(|line| !line.is_empty()) {}
        let target = first.split(' ').nth(1).unwrap().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if query.contains("watch=true") {
            return serve_watch(&mut write, path, query, &world).await;
        }
        let (status, body) = answer(path, &world);
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n");
        let whole = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        if write.write_all(whole.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn answer(path: &str, world: &Mutex<World>) -> (u16, Value) {
    let mut world = world.lock().unwrap();
    if path == SERVICES {
        world.seen.push("list".into());
    }
    match world.fault {
        Some((prefix, code)) if path.starts_with(prefix) => {
            (code, json!({"kind": "Status", "status": "Failure", "message": "scripted", "code": code}))
        }
        _ => (200, world.body(path)),
    }
}

async fn serve_watch(
    write: &mut tokio::net::tcp::OwnedWriteHalf,
    path: &str,
    query: &str,
    world: &Mutex<World>,
) {
    let (line, mut lines) = mpsc::unbounded_channel::<String>();
    let code = {
        let mut world = world.lock().unwrap();
        if path == SERVICES {
            let at = query.split("resourceVersion=").nth(1).unwrap_or_default();
            world.seen.push(format!("watch {}", at.split('&').next().unwrap()));
            world.watches.push(line.clone());
        }
        let gone = world.gone && path == SERVICES;
        let fault = world.fault.filter(|(prefix, _)| path.starts_with(prefix)).map(|(_, code)| code);
        if gone {
            let status = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"});
            line.send(json!({"type": "ERROR", "object": status}).to_string()).unwrap();
        }
        fault.unwrap_or(200)
    };
    let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
    if write.write_all(head.as_bytes()).await.is_err() || code != 200 {
        return;
    }
    // `line` stays here, so that a watch nobody writes to stays open.
    while let Some(line) = lines.recv().await {
        if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A watcher on `server`, with short waits.
struct Fixture {
    _dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    handles: Handles,
}

fn timing() -> Timing {
    Timing {
        answer: Duration::from_millis(500),
        silence: Duration::from_millis(700),
        retry_first: Duration::from_millis(20),
        retry_longest: Duration::from_millis(100),
        beat: Duration::from_millis(20),
    }
}

fn follow(server: &Server, timing: Timing) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    point(&kubeconfig, server.address);
    let settings = Cluster {
        kubeconfig: kubeconfig.clone(),
        config_map: ObjectKey::new("default", "vip-configmap"),
        stale_after: Duration::from_secs(300),
        service_ranges: Vec::new(),
    };
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
