//! A small API server on loopback for tests: objects by path, versions, merge patches, faults on demand, one watch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::snapshot::Link;

/// What the server holds and how it behaves.
#[derive(Default)]
pub(super) struct World {
    /// Objects by path; their versions grow with each write.
    pub(super) objects: BTreeMap<String, Value>,
    version: u64,
    /// Requests seen, as `METHOD path`; without watches and their lists.
    pub(super) seen: Vec<String>,
    /// Answer requests that begin so by this status and message, so many times.
    pub(super) faults: Vec<(&'static str, u16, &'static str, u32)>,
    /// Before the next patch somebody else writes the object.
    pub(super) race: Option<fn(&mut Value)>,
    /// Fields that this server does not know and drops.
    pub(super) drops_mode: bool,
    watches: Vec<mpsc::UnboundedSender<String>>,
}

impl World {
    pub(super) fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object);
    }

    /// The Events, as `reason: message xCOUNT`, in the order of their names.
    pub(super) fn events(&self) -> Vec<String> {
        let events =
            self.objects.iter().filter(|(path, _)| path.contains("/events/")).map(|(_, event)| event);
        let text = |e: &Value| {
            let [reason, message] = [&e["reason"], &e["message"]].map(|v| v.as_str().unwrap().to_owned());
            format!("{reason}: {message} x{}", e["count"])
        };
        events.map(text).collect()
    }

    /// Sends a watch event for the object at `path`.
    pub(super) fn send(&mut self, kind: &str, path: &str) {
        let line = json!({"type": kind, "object": self.objects[path]}).to_string();
        self.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }

    fn fault(&mut self, request: &str) -> Option<(u16, Value)> {
        let fault = self.faults.iter_mut().find(|fault| request.starts_with(fault.0) && fault.3 > 0)?;
        fault.3 -= 1;
        Some((fault.1, failure(fault.1, fault.2)))
    }

    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = format!("{method} {path}");
        self.seen.push(request.clone());
        if let Some(fault) = self.fault(&request) {
            return fault;
        }
        match method {
            "GET" => self.objects.get(path).map_or((404, failure(404, "not found")), |o| (200, o.clone())),
            "POST" => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return (409, failure(409, "already exists"));
                }
                self.put(&path, body.clone());
                self.send("ADDED", &path);
                (201, self.objects[&path].clone())
            }
            "PATCH" => self.patch(path, body),
            _ => (405, failure(405, "no such method")),
        }
    }

    fn patch(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let path = path.trim_end_matches("/status");
        let Some(mut object) = self.objects.get(path).cloned() else {
            return (404, failure(404, "not found"));
        };
        if let Some(race) = self.race.take() {
            race(&mut object);
            self.put(path, object.clone());
            object = self.objects[path].clone();
        }
        for field in ["resourceVersion", "uid"] {
            let condition = &body["metadata"][field];
            if !condition.is_null() && *condition != object["metadata"][field] {
                return (409, failure(409, "the object has been modified"));
            }
        }
        merge(&mut object, body);
        if self.drops_mode {
            for entry in object["status"]["loadBalancer"]["ingress"].as_array_mut().into_iter().flatten() {
                entry.as_object_mut().unwrap().remove("ipMode");
            }
        }
        self.put(path, object);
        if path.contains("/events/") {
            self.send("MODIFIED", path);
        }
        (200, self.objects[path].clone())
    }

    fn list(&self, path: &str) -> Value {
        let inside = self.objects.iter().filter(|(name, _)| name.starts_with(&format!("{path}/")));
        let items: Vec<&Value> = inside.map(|(_, object)| object).collect();
        json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }
}

fn failure(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "message": message, "code": code})
}

/// RFC 7396, as the API server applies it.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The server; it ends with this value.
pub(super) struct Api {
    world: Arc<Mutex<World>>,
    address: std::net::SocketAddr,
    _task: JoinSet<()>,
}

impl Api {
    pub(super) async fn start(world: World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = Arc::new(Mutex::new(world));
        let shared = Arc::clone(&world);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { world, address, _task: task }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(super) fn link(&self) -> Link {
        let server = format!("http://{}", self.address);
        let mut config = kube::Config::new(server.parse().unwrap());
        config.default_retry = false;
        Link::new(kube::Client::try_from(config).unwrap(), server, "/etc/kvip/kubeconfig")
    }

    /// Waits until somebody watches Events.
    pub(super) async fn until_watched(&self) {
        self.until(|world| !world.watches.is_empty()).await;
    }

    /// Waits until `condition` holds.
    pub(super) async fn until(&self, mut condition: impl FnMut(&World) -> bool) {
        let waiting = async {
            while !condition(&self.world()) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(Duration::from_secs(20), waiting).await.is_err() {
            let world = self.world();
            panic!("not in time; seen {:#?}, holds {:#?}", world.seen, world.objects);
        }
    }
}

/// Serves one connection: HTTP/1.1, one answer after the other, until a watch takes it over.
async fn serve(stream: TcpStream, world: Arc<Mutex<World>>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Some((method, target, body)) = request(&mut read).await {
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if query.contains("watch=true") {
            return serve_watch(&mut write, path, query, &world).await;
        }
        let (status, answer) = {
            let mut world = world.lock().unwrap();
            if method == "GET" && path.ends_with("/events") {
                world.fault(&format!("LIST {path}")).unwrap_or_else(|| (200, world.list(path)))
            } else {
                world.answer(&method, path, &body)
            }
        };
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n");
        let whole = format!("{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
        if write.write_all(whole.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn request<R: AsyncReadExt + Unpin>(read: &mut BufReader<R>) -> Option<(String, String, Value)> {
    let mut first = String::new();
    read.read_line(&mut first).await.ok().filter(|length| *length > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        read.read_line(&mut line).await.ok()?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    Some((words.next()?, words.next()?, serde_json::from_slice(&body).unwrap_or_default()))
}

async fn serve_watch(write: &mut OwnedWriteHalf, path: &str, query: &str, world: &Mutex<World>) {
    let (line, mut lines) = mpsc::unbounded_channel::<String>();
    assert!(path.ends_with("/events"), "only Events are watched here, not {path}");
    {
        let mut world = world.lock().unwrap();
        // What was written since the version that the watch begins at.
        let version = |text: &str| text.split('&').next().unwrap().parse::<u64>().unwrap();
        let since = query.split("resourceVersion=").nth(1).map_or(0, version);
        for event in world.list(path)["items"].as_array().unwrap() {
            if version(event["metadata"]["resourceVersion"].as_str().unwrap()) > since {
                line.send(json!({"type": "MODIFIED", "object": event}).to_string()).unwrap();
            }
        }
        world.watches.push(line);
    }
    let head = "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    if write.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    while let Some(line) = lines.recv().await {
        if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}
