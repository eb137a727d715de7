//! healthCheckNodePort, where no kube-proxy answers on it: whether this node has ready endpoints of a Service, told over HTTP
//! to load balancers outside of the cluster.
//!
//! The answer is kube-proxy's (pkg/proxy/healthcheck in Kubernetes): 200 with endpoints, 503 without, whatever was asked, with
//! the number in `localEndpoints` and the header `X-Load-Balancing-Endpoint-Weight`. It is made when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::model::ObjectKey;
use crate::report::beats;
use crate::snapshot::Snapshot;

/// How long one asker may take.
const ASKER_LIMIT: Duration = Duration::from_secs(5);
/// Askers that are answered at a time, on all ports together. One more on each port waits with a descriptor, others without.
const ASKERS_MAX: usize = 256;
/// What is read of a request at most; nothing of it matters.
const REQUEST_MAX: u64 = 8192;
/// Before a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Askers that may wait to be taken, as many as tokio lets by itself.
const BACKLOG: u32 = 1024;

/// What the answers are made of.
#[derive(Debug, Clone)]
pub struct Local {
    /// This node.
    pub node: String,
    /// The cluster's state.
    pub snapshot: Arc<Snapshot>,
}

impl Local {
    /// The ports to answer on, with the Service of each.
    pub fn ports(&self) -> BTreeMap<u16, ObjectKey> {
        let services = self.snapshot.services.iter();
        services.filter_map(|(key, service)| Some((service.health_check_node_port?, key.clone()))).collect()
    }

    /// How many ready endpoints of `service` this node has.
    pub fn endpoints(&self, service: &ObjectKey) -> usize {
        let from = ObjectKey::new(service.namespace.clone(), "");
        let slices = self.snapshot.slices.range(from..);
        let slices = slices.take_while(|(key, _)| key.namespace == service.namespace);
        let own = slices.filter(|(_, slice)| slice.service == *service);
        let endpoints = own.flat_map(|(_, slice)| &slice.endpoints);
        let here = endpoints.filter(|one| one.ready && one.node.as_deref() == Some(self.node.as_str()));
        here.map(|endpoint| endpoint.address).collect::<BTreeSet<IpAddr>>().len()
    }
}

/// Answers for as long as `local` has a sender; while it is `None` on no port at all.
pub fn spawn(local: watch::Receiver<Option<Local>>) {
    tokio::spawn(run(local));
}

async fn run(mut local: watch::Receiver<Option<Local>>) {
    let room = Arc::new(Semaphore::new(ASKERS_MAX));
    let mut listeners = JoinSet::new();
    let mut running: BTreeMap<(u16, ObjectKey), AbortHandle> = BTreeMap::new();
    loop {
        beats::beat("node ports", beats::PROMPT);
        let wanted: BTreeSet<(u16, ObjectKey)> =
            local.borrow_and_update().iter().flat_map(Local::ports).collect();
        running.retain(|what, task| {
            let stays = wanted.contains(what);
            if !stays {
                task.abort();
            }
            stays
        });
        for (port, service) in wanted {
            running
                .entry((port, service.clone()))
                .or_insert_with(|| listeners.spawn(listen(port, service, local.clone(), Arc::clone(&room))));
        }
        tokio::select! {
            changed = local.changed() => if changed.is_err() { return },
            _ = listeners.join_next(), if !listeners.is_empty() => {}
            () = sleep(beats::EVERY) => {}
        }
    }
}

/// Answers on one port for ever. A port that another program has is left to it and tried again.
async fn listen(port: u16, service: ObjectKey, local: watch::Receiver<Option<Local>>, room: Arc<Semaphore>) {
    let mut told = false;
    let listener = loop {
        match or_ipv4(bind(Ipv6Addr::UNSPECIFIED.into(), port), || bind(Ipv4Addr::UNSPECIFIED.into(), port)) {
            Ok(listener) => break listener,
            Err(error) if !told => {
                warn!(port, "{service}: healthCheckNodePort {port} cannot be answered on: {error}");
                told = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    };
    info!(port, "{service}: answering on healthCheckNodePort {port}");
    let mut askers = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, say: others may give some back.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let place = Arc::clone(&room).acquire_owned().await;
        let count = local.borrow().as_ref().map_or(0, |local| local.endpoints(&service));
        let text = response(&service, count);
        askers.spawn(async move {
            let _ = timeout(ASKER_LIMIT, answer(stream, text)).await;
            drop(place);
        });
        while askers.try_join_next().is_some() {}
    }
}

/// What came of binding for both families, or of binding for IPv4 where the host has no IPv6 (`ipv6.disable=1`).
fn or_ipv4<T>(both: io::Result<T>, ipv4: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let no_ipv6 = |error: &io::Error| {
        matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
    };
    if both.as_ref().is_err_and(no_ipv6) { ipv4() } else { both }
}

/// Listens on `port` of `address`. `::` takes IPv4 too, whatever net.ipv6.bindv6only says (ipv6(7)).
fn bind(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        let socket = TcpSocket::new_v6()?;
        sockopt::set_ipv6_v6only(&socket, false)?;
        socket
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind((address, port).into())?;
    socket.listen(BACKLOG)
}

async fn answer(mut stream: TcpStream, text: String) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut request = Vec::new();
    let mut reader = reader.take(REQUEST_MAX);
    while !request.ends_with(b"\r\n\r\n") {
        if reader.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    writer.write_all(text.as_bytes()).await?;
    writer.shutdown().await
}

fn response(service: &ObjectKey, count: usize) -> String {
    let status = if count == 0 { "503 Service Unavailable" } else { "200 OK" };
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {count}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::snapshot::{Endpoint, EndpointSlice, Service};

    fn cluster(port: u16, ready: [bool; 3]) -> Local {
        let key = ObjectKey::new("default", "web");
        let mut snapshot = Snapshot::default();
        let service = Service { health_check_node_port: Some(port), ..Service::default() };
        snapshot.services.insert(key.clone(), Arc::new(service));
        let nodes = ["node-a", "node-a", "node-b"];
        let endpoints = (1_u8..).zip(ready).zip(nodes).map(|((last, ready), node)| Endpoint {
            ready,
            ..Endpoint::ready([10, 2, 4, last].into(), node)
        });
        let slice = EndpointSlice {
            service: key,
            family: Family::V4,
            ports: Vec::new(),
            endpoints: endpoints.collect(),
        };
        snapshot.slices.insert(ObjectKey::new("default", "web-1"), Arc::new(slice));
        Local { node: "node-a".into(), snapshot: Arc::new(snapshot) }
    }

    #[test]
    fn only_ready_endpoints_on_this_node_count() {
        let count = |ready| cluster(30_000, ready).endpoints(&ObjectKey::new("default", "web"));
        assert_eq!([count([true; 3]), count([true, false, true]), count([false, false, true])], [2, 1, 0]);
    }

    #[test]
    fn a_host_without_ipv6_is_answered_from_over_ipv4_and_a_taken_port_is_left() {
        let check = |errno: Errno, want: Result<&str, Errno>| {
            let came = or_ipv4(Err(errno.into()), || Ok("IPv4"));
            assert_eq!(came.map_err(|error| Errno::from_io_error(&error).unwrap()), want);
        };
        check(Errno::AFNOSUPPORT, Ok("IPv4"));
        check(Errno::ADDRNOTAVAIL, Ok("IPv4"));
        check(Errno::ADDRINUSE, Err(Errno::ADDRINUSE));
        check(Errno::ACCESS, Err(Errno::ACCESS));
        assert_eq!(or_ipv4(Ok("both"), || Ok("IPv4")).unwrap(), "both");
    }

    #[tokio::test]
    async fn ipv4_alone_can_be_listened_on() {
        let port = bind(Ipv4Addr::UNSPECIFIED.into(), 0).unwrap().local_addr().unwrap();
        assert_eq!(port.ip(), Ipv4Addr::UNSPECIFIED);
    }

    async fn ask(port: u16) -> Option<String> {
        ask_at(Ipv6Addr::LOCALHOST.into(), port).await
    }

    async fn ask_at(address: IpAddr, port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((address, port)).await.ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    /// A port at which nobody listens.
    async fn free_port() -> u16 {
        let free = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        free.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn who_asks_has_a_place_until_it_is_answered() {
        let port = free_port().await;
        let (_local, answers) = watch::channel(Some(cluster(port, [true; 3])));
        let room = Arc::new(Semaphore::new(2));
        let listening =
            tokio::spawn(listen(port, ObjectKey::new("default", "web"), answers, Arc::clone(&room)));
        let until = async |places: usize| {
            timeout(Duration::from_secs(60), async {
                while room.available_permits() != places {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("the places are taken and given back");
        };
        let connect = async || loop {
            if let Ok(stream) = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await {
                return stream;
            }
            tokio::task::yield_now().await;
        };
        let silent = connect().await;
        until(1).await;
        let second = connect().await;
        until(0).await;
        drop((silent, second));
        until(2).await;
        assert!(ask(port).await.is_some_and(|text| text.starts_with("HTTP/1.1 200")));
        listening.abort();
    }

    #[tokio::test]
    async fn the_answer_follows_the_endpoints_and_ends_with_the_service() {
        let port = free_port().await;
        let (local, answers) = watch::channel(Some(cluster(port, [true; 3])));
        spawn(answers);
        let until = async |good: fn(&Option<String>) -> bool| {
            timeout(Duration::from_secs(60), async {
                while !good(&ask(port).await) {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("the answer comes");
        };
        until(|text| {
            text.as_ref()
                .is_some_and(|text| text.starts_with("HTTP/1.1 200") && text.contains("\"localEndpoints\":2"))
        })
        .await;
        assert!(ask_at(Ipv4Addr::LOCALHOST.into(), port).await.is_some(), "both families are answered");
        local.send_replace(Some(cluster(port, [false; 3])));
        until(|text| text.as_ref().is_some_and(|text| text.starts_with("HTTP/1.1 503"))).await;
        local.send_replace(None);
        until(Option::is_none).await;
    }
}
