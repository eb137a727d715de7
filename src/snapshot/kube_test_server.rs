//! A small API server on loopback: what it holds and how it fails is a test's to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

pub(super) const SERVICES: &str = "/api/v1/services";
pub(super) const NODES: &str = "/api/v1/nodes";
const IDENTITY: &str = "/api/v1/namespaces/kube-system";

/// What the server holds and how it behaves.
#[derive(Default)]
pub(super) struct World {
    pub(super) uid: String,
    pub(super) version: u64,
    pub(super) services: Vec<Value>,
    /// Answer requests for paths with this beginning by this status.
    pub(super) fault: Option<(&'static str, u16)>,
    /// Answer requests for these very paths by this status.
    pub(super) refused: Vec<(&'static str, u16)>,
    /// What is at other paths.
    pub(super) others: BTreeMap<&'static str, Vec<Value>>,
    /// All requests that list or watch: path and query.
    pub(super) asked: Vec<String>,
    /// Watches of Services end with this status at once.
    pub(super) gone: bool,
    /// Lines for the open watch of Services.
    pub(super) watches: Vec<mpsc::UnboundedSender<String>>,
    /// Requests for Services seen, as `list` or `watch` and the version.
    pub(super) seen: Vec<String>,
}

impl World {
    fn fault_at(&self, path: &str) -> Option<u16> {
        let at = |(prefix, code)| path.starts_with(prefix).then_some(code);
        let refused = self.refused.iter().find(|(refused, _)| *refused == path);
        refused.map(|(_, code)| *code).or_else(|| self.fault.and_then(at))
    }

    fn body(&self, path: &str) -> Value {
        if path == IDENTITY {
            return json!({"metadata": {"name": "kube-system", "uid": self.uid}});
        }
        let items = match path {
            SERVICES => self.services.clone(),
            _ => self.others.get(path).cloned().unwrap_or_default(),
        };
        json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }

    /// Sends a watch event to whoever watches Services.
    pub(super) fn send(&mut self, kind: &str, object: &Value) {
        let line = json!({"type": kind, "object": object}).to_string();
        self.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }
}

pub(super) fn service(name: &str, version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name,
        "resourceVersion": version.to_string()}})
}

pub(super) fn bookmark(version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": version.to_string()}})
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) world: Arc<Mutex<World>>,
    pub(super) task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(world: World) -> Self {
        Self::resume(Arc::new(Mutex::new(world)), "127.0.0.1:0".parse().unwrap()).await
    }

    pub(super) async fn resume(world: Arc<Mutex<World>>, address: SocketAddr) -> Self {
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
    pub(super) async fn stop(self) -> (Arc<Mutex<World>>, SocketAddr) {
        self.task.abort();
        let _ = self.task.await;
        (self.world, self.address)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut World)) {
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
        world.lock().unwrap().asked.push(target.clone());
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
    match world.fault_at(path) {
        Some(code) => {
            (code, json!({"kind": "Status", "status": "Failure", "message": "scripted", "code": code}))
        }
        None => (200, world.body(path)),
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
        let fault = world.fault_at(path);
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
