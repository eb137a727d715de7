//! What it costs to check 10,000 endpoints every 5 s, for each kind of check.
//!
//! `cargo bench --bench checks` starts itself twice in a network namespace of its own, where nothing else is asked: once as
//! the endpoints, once for each kind as what kvip runs. It prints the processor time of the checking process as a share of
//! one core, its memory, and how many checks it made. It needs `unshare` and `ip`, and root or user namespaces.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvip::health::check::{Check, Http, Kind, Target, Targets, ask, spawn_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

/// So many endpoints, each an address of 127.0.0.0/8.
const ENDPOINTS: u16 = 10_000;
const EVERY: Duration = Duration::from_secs(5);
/// Measured for so long, after a period in which all were asked once.
const MEASURED: Duration = Duration::from_secs(15);
const PORT: u16 = 8080;
/// What the processes are told to be.
const ROLE: &str = "KVIP_BENCH_ROLE";

#[expect(clippy::print_stdout, reason = "a benchmark tells what it measured")]
fn main() {
    match env::var(ROLE).as_deref() {
        Ok("namespace") => in_namespace(),
        Ok("endpoints") => runtime(2).block_on(endpoints()),
        Ok(kind) => runtime(2).block_on(checks(kind)),
        Err(_) => {
            println!("{:>5}  {:>9}  {:>12}  {:>9}", "kind", "checks/s", "of one core", "memory");
            let mut unshare = Command::new("unshare");
            unshare.args(["--user", "--map-root-user", "--net"]).arg(own());
            let status = unshare.env(ROLE, "namespace").status().expect("unshare is installed");
            assert!(status.success(), "{status}");
        }
    }
}

fn own() -> std::path::PathBuf {
    env::current_exe().expect("this program has a path")
}

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().expect("a runtime")
}

fn in_namespace() {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is installed");
    assert!(up.success());
    let role = |role: &str| -> Child {
        Command::new(own()).env(ROLE, role).stdin(Stdio::null()).spawn().expect("this program runs")
    };
    let mut endpoints = role("endpoints");
    for kind in ["tcp", "http", "udp"] {
        let status = role(kind).wait().expect("a child");
        assert!(status.success(), "{kind}: {status}");
    }
    endpoints.kill().expect("a child of this process");
    endpoints.wait().expect("a child");
}

/// All endpoints at once: a listener for every address, that answers each request with the same page.
async fn endpoints() {
    let tcp = TcpListener::bind(("0.0.0.0", PORT)).await.expect("a free port");
    let udp = UdpSocket::bind(("0.0.0.0", PORT)).await.expect("a free port");
    tokio::spawn(async move {
        let mut datagram = [0; 64];
        while udp.recv(&mut datagram).await.is_ok() {}
    });
    loop {
        let (stream, _) = tcp.accept().await.expect("a connection");
        tokio::spawn(page(stream));
    }
}

async fn page(mut stream: TcpStream) {
    let mut request = [0; 1024];
    if stream.read(&mut request).await.is_ok_and(|length| length > 0) {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
        let _ = stream.write_all(answer).await;
        // Until the other side has it.
        let _ = stream.read(&mut request).await;
    }
}

fn targets(kind: &str) -> Targets {
    let kind = match kind {
        "tcp" => Kind::Tcp,
        "udp" => Kind::Udp { send: Vec::new(), expect: None },
        _ => Kind::Http(Http {
            tls: false,
            path: "/healthz".into(),
            statuses: "200-399".parse().expect("statuses"),
            host: None,
        }),
    };
    let check = Arc::new(Check { kind, every: EVERY, timeout: Duration::from_secs(3), rise: 1, fall: 2 });
    let target = |number: u16| {
        let [high, low] = number.to_be_bytes();
        Target { address: SocketAddr::from(([127, 1, high, low], PORT)), check: Arc::clone(&check) }
    };
    (0..ENDPOINTS).map(|number| (target(number), 1_usize)).collect()
}

#[expect(clippy::print_stdout, reason = "a benchmark tells what it measured")]
async fn checks(kind: &str) {
    let (made, unknown) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (_targets, wanted) = watch::channel(targets(kind));
    let counters = (Arc::clone(&made), Arc::clone(&unknown));
    let down = spawn_with("node-a", wanted, move |target| {
        let (made, unknown) = counters.clone();
        async move {
            let found = ask(&target).await;
            made.fetch_add(1, Ordering::Relaxed);
            unknown.fetch_add(usize::from(found == kvip::health::check::Found::Unknown), Ordering::Relaxed);
            found
        }
    });
    tokio::time::sleep(EVERY + Duration::from_secs(1)).await;
    let (start, cpu, before) = (Instant::now(), processor_time(), made.load(Ordering::Relaxed));
    tokio::time::sleep(MEASURED).await;
    let took = start.elapsed().as_secs_f64();
    let share = processor_time().saturating_sub(cpu).as_secs_f64() / took;
    let made = made.load(Ordering::Relaxed) - before;
    println!(
        "{kind:>5}  {:>9.0}  {:>11.1}%  {:>6} MB",
        f64::from(u32::try_from(made).unwrap_or(u32::MAX)) / took,
        share * 100.0,
        memory() / 1024
    );
    let failed = (down.borrow().len(), unknown.load(Ordering::Relaxed));
    if failed != (0, 0) {
        println!(
            "       {} endpoints are down, {} checks failed here: this machine is busy",
            failed.0, failed.1
        );
    }
}

/// The time that this process has had processors for: fields 14 and 15 of /proc/self/stat, in hundredths of a second (proc(5)).
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("proc is mounted");
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in brackets");
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// The most memory that this process had, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}
