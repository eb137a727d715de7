//! The task against servers on the loopback link.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::net::Link;

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(10);

/// What kube-proxy answers, which may be another thing at any time.
type Answer = Arc<Mutex<String>>;

fn page(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn excluding(networks: &str) -> String {
    let config = format!(r#"{{"mode": "ipvs", "ipvs": {{"excludeCIDRs": [{networks}]}}}}"#);
    page("200 OK", &format!(r#"{{"kubeproxy.config.k8s.io": {config}}}"#))
}

/// A server that gives `answer` to whoever asks for `/configz`, and says how often it was asked.
async fn kube_proxy(answer: &Answer) -> (SocketAddr, watch::Receiver<usize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (times, asked) = watch::channel(0);
    let answer = Arc::clone(answer);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            assert!(request.starts_with(b"GET /configz HTTP/1.1\r\n"));
            times.send_modify(|times| *times += 1);
            let text = answer.lock().unwrap().clone();
            // Who asked may have gone.
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    (address, asked)
}

/// A host, with or without kube-proxy's device.
fn host(device: bool) -> HostFacts {
    let mut facts = HostFacts { hostname: "node-a".into(), ..HostFacts::default() };
    if device {
        facts.links.insert(KUBE_PROXY_DEVICE.into(), Link { index: 3, ..Link::default() });
    }
    facts
}

/// The same with what kube-proxy leaves alone.
fn told(networks: &[&str]) -> HostFacts {
    let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
    HostFacts { kube_proxy_excludes: Some(networks), ..host(true) }
}

/// Waits until the host is known to be `expected`.
async fn expect(facts: &mut watch::Receiver<HostFacts>, expected: &HostFacts) {
    let those = facts.wait_for(|facts| facts == expected);
    timeout(PATIENCE, those).await.expect("in time").expect("a task that follows");
}

/// Waits until kube-proxy was asked twice more: one question and its answer lie behind.
async fn asked_again(asked: &mut watch::Receiver<usize>) {
    let before = *asked.borrow();
    timeout(PATIENCE, asked.wait_for(|times| *times >= before + 2))
        .await
        .expect("in time")
        .expect("a server");
}

#[tokio::test]
async fn the_first_value_has_the_first_answer() {
    let answer = Answer::new(Mutex::new(excluding(r#""10.87.2.0/24""#)));
    let (address, _asked) = kube_proxy(&answer).await;
    let (_network, network) = watch::channel(host(true));
    let facts = watch_at(address, OFTEN, network).await;
    assert_eq!(*facts.borrow(), told(&["10.87.2.0/24"]));
}

#[tokio::test]
async fn what_it_says_is_followed_and_silence_changes_nothing() {
    let answer = Answer::new(Mutex::new(excluding("")));
    let (address, mut asked) = kube_proxy(&answer).await;
    let (_network, network) = watch::channel(host(true));
    let mut facts = watch_at(address, OFTEN, network).await;
    expect(&mut facts, &told(&[])).await;
    *answer.lock().unwrap() = excluding(r#""10.87.2.0/24", "fd00::/64""#);
    expect(&mut facts, &told(&["10.87.2.0/24", "fd00::/64"])).await;
    facts.mark_unchanged();
    let long = excluding(&" ".repeat(70_000));
    let cut = excluding("").replace("}}}", "");
    for wrong in [page("404 Not Found", "{}"), page("200 OK", "{}"), long, cut, String::new()] {
        *answer.lock().unwrap() = wrong.clone();
        asked_again(&mut asked).await;
        assert!(!facts.has_changed().unwrap(), "{wrong:.200}");
    }
}

#[tokio::test]
async fn its_device_is_told_of_with_its_answer_and_forgotten_without() {
    let answer = Answer::new(Mutex::new(excluding(r#""10.87.2.0/24""#)));
    let (address, asked) = kube_proxy(&answer).await;
    let (network, receiver) = watch::channel(host(false));
    let mut facts = watch_at(address, OFTEN, receiver).await;
    assert_eq!(*facts.borrow_and_update(), host(false));
    network.send_replace(host(true));
    timeout(PATIENCE, facts.changed()).await.expect("in time").expect("a task that follows");
    assert_eq!(*facts.borrow(), told(&["10.87.2.0/24"]), "at once with its answer");
    network.send_replace(host(false));
    expect(&mut facts, &host(false)).await;
    *answer.lock().unwrap() = page("404 Not Found", "");
    network.send_replace(host(true));
    expect(&mut facts, &host(true)).await;
    assert!(*asked.borrow() > 0);
}

#[tokio::test]
async fn nobody_listening_is_silence() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (_network, network) = watch::channel(host(true));
    let facts = watch_at(address, EVERY, network).await;
    assert_eq!(*facts.borrow(), host(true));
}

/// Both ends stay open, and nothing is said.
#[tokio::test(start_paused = true)]
async fn no_answer_is_waited_for_for_long() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (_network, network) = watch::channel(host(true));
    let start = tokio::time::Instant::now();
    let facts = watch_at(listener.local_addr().unwrap(), EVERY, network).await;
    assert_eq!(*facts.borrow(), host(true));
    assert!(start.elapsed() <= ask::LIMIT + Duration::from_millis(1));
}

#[tokio::test]
async fn without_its_device_it_is_not_asked() {
    let answer = Answer::new(Mutex::new(excluding("")));
    let (address, asked) = kube_proxy(&answer).await;
    let (network, receiver) = watch::channel(host(false));
    let mut facts = watch_at(address, Duration::ZERO, receiver).await;
    let renamed = HostFacts { hostname: "node-b".into(), ..host(false) };
    network.send_replace(renamed.clone());
    expect(&mut facts, &renamed).await;
    assert_eq!(*asked.borrow(), 0);
    drop(network);
    assert!(
        timeout(PATIENCE, facts.changed()).await.expect("in time").is_err(),
        "it ends with the network's"
    );
}
