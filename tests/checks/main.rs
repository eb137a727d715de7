//! Health checks against real servers on loopback, a kind at a time: what counts as an answer, and what is left behind.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod servers;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::in_namespace;
use kvip::health::check::{Check, Down, Found, Http, Kind, Target, Targets, ask, spawn};
use tokio::sync::watch;

const TIMEOUT: Duration = Duration::from_millis(1500);

fn target(address: SocketAddr, kind: Kind) -> Target {
    let check = Check { kind, every: Duration::from_secs(1), timeout: TIMEOUT, rise: 1, fall: 2 };
    Target { address, check: Arc::new(check) }
}

fn page(path: &str, statuses: &str, host: Option<&str>, tls: bool) -> Kind {
    Kind::Http(Http {
        tls,
        path: path.into(),
        statuses: statuses.parse().unwrap(),
        host: host.map(str::to_owned),
    })
}

fn udp(send: &str, expect: Option<&str>) -> Kind {
    Kind::Udp { send: send.into(), expect: expect.map(Into::into) }
}

fn grpc(service: &str) -> Kind {
    Kind::Grpc { service: service.into() }
}

/// What the check finds: an answer, or what it says it found instead.
#[track_caller]
fn check(found: Found, wanted: Result<(), &str>) {
    match (found, wanted) {
        (Found::Answer, Ok(())) => {}
        (Found::Failure(found), Err(wanted)) => assert_eq!(&*found, wanted),
        (found, wanted) => panic!("{found:?} and not {wanted:?}"),
    }
}

#[tokio::test]
async fn tcp() {
    for ip in ["127.0.0.1", "::1"] {
        let (listening, refusing) = (servers::silent(ip).await, servers::nobody(ip).await);
        check(ask(&target(listening.address, Kind::Tcp)).await, Ok(()));
        check(ask(&target(refusing, Kind::Tcp)).await, Err("connection refused"));
    }
}

#[tokio::test]
async fn http_and_https() {
    for tls in [false, true] {
        let server = servers::http(tls).await;
        for (path, statuses, host, wanted) in [
            ("/ok", "200-399", None, Ok(())),
            ("/sad", "200-399", None, Err("status 503")),
            ("/sad", "200-399,503", None, Ok(())),
            ("/moved", "200-399", None, Ok(())),
            ("/moved", "200", None, Err("status 302")),
            ("/for-shop", "200", Some("shop.example"), Ok(())),
            ("/for-shop", "200", Some("shop.example:443"), Err("status 421")),
            ("/for-shop", "200", None, Err("status 421")),
            ("/never", "200", None, Err("no answer within 1s500ms")),
        ] {
            let target = target(server.address, page(path, statuses, host, tls));
            check(ask(&target).await, wanted);
        }
    }
}

#[tokio::test]
async fn http_of_servers_that_speak_something_else() {
    let refusing = servers::nobody("127.0.0.1").await;
    check(ask(&target(refusing, page("/", "200", None, false))).await, Err("connection refused"));
    let silent = servers::silent("127.0.0.1").await;
    let late = Err("no answer within 1s500ms");
    check(ask(&target(silent.address, page("/", "200", None, false))).await, late);
    check(ask(&target(silent.address, page("/", "200", None, true))).await, late);
    check(ask(&target(silent.address, grpc(""))).await, late);
    let babbling = servers::babbling().await;
    for kind in [page("/", "200", None, false), page("/", "200", None, true), grpc("")] {
        let found = ask(&target(babbling.address, kind.clone())).await;
        assert!(matches!(found, Found::Failure(_)), "{kind:?} {found:?}");
    }
}

#[tokio::test]
async fn grpc_health() {
    let server = servers::grpc().await;
    for (service, wanted) in [
        ("", Ok(())),
        ("shop.Cart", Ok(())),
        ("shop.Orders", Err("NOT_SERVING")),
        ("shop.None", Err("gRPC status 5")),
        ("shop.Later", Err("gRPC status 14")),
    ] {
        check(ask(&target(server.address, grpc(service))).await, wanted);
    }
    let http = servers::http(false).await;
    assert!(matches!(ask(&target(http.address, grpc(""))).await, Found::Failure(_)));
}

#[tokio::test]
async fn udp_answers_and_silence() {
    for ip in ["127.0.0.1", "::1"] {
        let server = servers::udp(ip).await;
        check(ask(&target(server.address, udp("ping", None))).await, Ok(()));
        check(ask(&target(server.address, udp("ping", Some("pong")))).await, Ok(()));
        check(
            ask(&target(server.address, udp("ping", Some("gong")))).await,
            Err("another answer than expected"),
        );
        check(ask(&target(server.address, udp("hush", None))).await, Ok(()));
        let late = Err("no answer within 1s500ms");
        check(ask(&target(server.address, udp("hush", Some("pong")))).await, late);
        let nobody = servers::nobody(ip).await;
        check(ask(&target(nobody, udp("", None))).await, Err("connection refused"));
    }
}

/// The states of IPv4 TCP sockets of this network namespace, as /proc/net/tcp numbers them.
fn socket_states() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().skip(1).map(|line| line.split_whitespace().nth(3).unwrap().to_owned()).collect()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn checks_leave_nothing_behind() {
    if !in_namespace("checks_leave_nothing_behind") {
        return;
    }
    let (http, https, grpc_server) =
        (servers::http(false).await, servers::http(true).await, servers::grpc().await);
    let silent = servers::silent("127.0.0.1").await;
    let targets = [
        target(http.address, Kind::Tcp),
        target(http.address, page("/ok", "200", None, false)),
        target(https.address, page("/ok", "200", None, true)),
        target(grpc_server.address, grpc("")),
        target(silent.address, page("/ok", "200", None, true)),
        target(silent.address, grpc("")),
    ];
    let before = descriptors();
    for target in &targets {
        futures::future::join_all((0..40).map(|_| ask(target))).await;
        let resting = socket_states().into_iter().filter(|state| state == "06").count();
        assert_eq!(resting, 0, "connections in TIME_WAIT after {}", target.check.kind);
    }
    drop(silent);
    // The servers of this process close their ends when they hear of it.
    let settled = async {
        while descriptors() > before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("all descriptors are closed");
}

#[tokio::test]
async fn a_server_that_goes_is_found_out_and_found_again() {
    let server = servers::http(false).await;
    let target = target(server.address, page("/ok", "200", None, false));
    let (_targets, wanted) = watch::channel(Targets::from_iter([(target.clone(), 1_usize)]));
    let mut down = spawn("node-a", wanted);
    let limit = Duration::from_secs(60);
    let address = server.address;
    drop(server);
    let gone = tokio::time::timeout(limit, down.wait_for(|down| down.contains_key(&target))).await.unwrap();
    assert_eq!(&*gone.unwrap()[&target], "connection refused");
    let _server = servers::http_at(address).await;
    tokio::time::timeout(limit, down.wait_for(Down::is_empty)).await.unwrap().unwrap();
}
