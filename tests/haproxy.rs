//! The driver with the real haproxy: who the backends think the client is, and what clients notice of changes.
//!
//! Everything happens in a network namespace of the test's own. Needs haproxy and iproute2.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::in_namespace;
use kvip::config::ProxyProtocol;
use kvip::haproxy::{self, Balance, Config, Paths, ProgramError, Proxy, Service, State, Status, servers};
use kvip::model::{Backend, Frontend, Protocol};
use kvip::unit::{UnitError, UnitState};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

const VIP: &str = "10.87.2.50";

/// haproxy as a child of the test, which is its systemd.
struct Unit {
    paths: Paths,
    child: Option<Child>,
}

impl Unit {
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            child.wait().unwrap();
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Service for Unit {
    async fn state(&mut self) -> Result<UnitState, UnitError> {
        let runs = self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none());
        let active = if runs { "active" } else { "failed" };
        Ok(UnitState { load: "loaded".into(), active: active.into(), ..UnitState::default() })
    }

    async fn start(&mut self) -> Result<(), UnitError> {
        let mut haproxy = Command::new("/usr/sbin/haproxy");
        haproxy.arg("-W").arg("-f").arg(&self.paths.config).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(haproxy.spawn().unwrap());
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), UnitError> {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-USR2", &id]).status().unwrap().success());
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), UnitError> {
        self.kill();
        Ok(())
    }

    async fn accepts(&mut self, file: &Path) -> Result<(), ProgramError> {
        haproxy::haproxy_accepts(file).await
    }

    async fn ask(&mut self, command: &str) -> io::Result<String> {
        haproxy::ask(&self.paths.socket, command).await
    }

    fn has_ipv6(&mut self) -> bool {
        true
    }

    fn listeners(&mut self) -> BTreeSet<SocketAddr> {
        haproxy::listeners()
    }
}

/// A driver with its haproxy.
struct Bench {
    wants: watch::Sender<Option<Arc<Config>>>,
    status: watch::Receiver<Status>,
    paths: Paths,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        for address in [VIP, "10.87.2.200", "10.2.4.1", "10.2.4.2", "10.2.4.3"] {
            ip(&format!("address add {address}/32 dev lo"));
        }
        ip("address add fd00:2:4::1/128 dev lo nodad");
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::of(&folder.path().join("kvip"));
        for path in [&paths.config, &paths.socket] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let (wants, wanted) = watch::channel(None);
        let unit = Unit { paths: paths.clone(), child: None };
        let status = haproxy::spawn(wanted, paths.clone(), unit);
        Self { wants, status, paths, _folder: folder }
    }

    /// Wants `config` and waits until HAProxy is as `enough` says.
    async fn reach(&mut self, config: &Config, enough: impl Fn(&Status) -> bool) -> Status {
        self.wants.send_replace(Some(Arc::new(config.clone())));
        self.until(enough).await
    }

    fn want(&self, config: &Config) {
        self.wants.send_replace(Some(Arc::new(config.clone())));
    }

    /// The servers that HAProxy has, in whatever state.
    async fn servers(&self) -> BTreeSet<String> {
        let said = haproxy::ask(&self.paths.socket, servers::SHOW).await.unwrap();
        servers::read(&said).unwrap().into_values().flat_map(|seen| seen.servers.into_keys()).collect()
    }

    async fn until(&mut self, enough: impl Fn(&Status) -> bool) -> Status {
        let reached = tokio::time::timeout(LIMIT, self.status.wait_for(|status| enough(status))).await;
        reached.unwrap_or_else(|_| panic!("{LIMIT:?} have passed")).unwrap().clone()
    }
}

/// Runs `ip` with `arguments`, which must succeed.
fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

fn frontend(vip: &str, port: u16) -> Frontend {
    Frontend { vip: vip.parse().unwrap(), protocol: Protocol::Tcp, port }
}

fn backend(address: &str) -> Backend {
    Backend { address: address.parse().unwrap(), port: 8080 }
}

fn proxy(protocol: ProxyProtocol, servers: &[(&str, u16)]) -> Proxy {
    let servers = servers.iter().map(|(address, weight)| (backend(address), *weight)).collect();
    let (owner, balance, ended) = ("default/nginx".into(), Balance::RoundRobin, BTreeSet::new());
    Proxy { owner, protocol, balance, servers, ended }
}

fn config<const N: usize>(frontends: [(Frontend, Proxy); N]) -> Config {
    Config { frontends: frontends.into() }
}

/// A server that answers a client's first line with its own address and the one of the client as the PROXY protocol has
/// it, then repeats what it hears until the client ends.
fn serve(address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let listener = TcpListener::bind((address, 8080)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap(), address));
        }
    });
}

fn answer(mut stream: TcpStream, address: IpAddr) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let client = client_in(&mut reader).unwrap_or_default();
    if writeln!(stream, "{address} {client}").is_ok() {
        let _ = io::copy(&mut reader, &mut stream);
    }
}

/// The client's address in the header, `none` where there is no header, once the client has said a line.
fn client_in(reader: &mut impl BufRead) -> Option<String> {
    let line = |reader: &mut dyn BufRead| {
        let mut line = String::new();
        reader.read_line(&mut line).ok().map(|_| line)
    };
    if reader.fill_buf().ok()?.first() == Some(&b'\r') {
        let mut header = [0; 16];
        reader.read_exact(&mut header).ok()?;
        // The signature, version 2 and PROXY, TCP over IPv4.
        assert_eq!((&header[..12], &header[12..14]), (&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, 0x11][..]));
        let mut addresses = vec![0; u16::from_be_bytes([header[14], header[15]]).into()];
        reader.read_exact(&mut addresses).ok()?;
        let client: [u8; 4] = addresses[..4].try_into().unwrap();
        return line(reader).map(|_| format!("v2 {}", Ipv4Addr::from(client)));
    }
    let first = line(reader)?;
    match first.split(' ').collect::<Vec<_>>()[..] {
        ["PROXY", _, client, ..] => line(reader).map(|_| format!("v1 {client}")),
        _ => Some("none".into()),
    }
}

/// A connection and what the server said first.
type Connected = (tokio::io::BufReader<tokio::net::TcpStream>, String);

/// Connects to `port` of the VIP as 10.87.2.200, and says hello.
async fn connect(port: u16) -> io::Result<Connected> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind("10.87.2.200:0".parse().unwrap())?;
    let stream = socket.connect(SocketAddr::new(VIP.parse().unwrap(), port)).await?;
    let mut stream = tokio::io::BufReader::new(stream);
    let answer = say(&mut stream, "hello").await?;
    Ok((stream, answer))
}

/// Says a line, and hears one.
async fn say(stream: &mut tokio::io::BufReader<tokio::net::TcpStream>, line: &str) -> io::Result<String> {
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_line(&mut answer))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer.trim().to_owned()) }
}

/// What a new client hears.
async fn heard(port: u16) -> String {
    connect(port).await.map_or_else(|error| error.to_string(), |(_, answer)| answer)
}

/// Waits until eight clients one after another hear `server`.
async fn until_only(server: &str) {
    let turned = async {
        let mut in_a_row = 0;
        while in_a_row < 8 {
            in_a_row = if heard(80).await.starts_with(server) { in_a_row + 1 } else { 0 };
        }
    };
    tokio::time::timeout(LIMIT, turned).await.unwrap_or_else(|_| panic!("{server} does not serve alone"));
}

/// Runs `test` of this name in a network namespace with the addresses of VIP, client and servers, the latter serving.
fn run<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Bench) -> F) {
    if !in_namespace(name) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::new();
        ["10.2.4.1", "10.2.4.2", "10.2.4.3"].into_iter().for_each(serve);
        test(bench).await;
    });
}

#[test]
fn servers_learn_the_client_as_it_is_wanted() {
    run("servers_learn_the_client_as_it_is_wanted", |mut bench| async move {
        let one = |protocol| proxy(protocol, &[("10.2.4.1", 1)]);
        let six = Proxy { servers: [(backend("fd00:2:4::1"), 1)].into(), ..one(ProxyProtocol::V1) };
        let want = config([
            (frontend(VIP, 80), one(ProxyProtocol::Off)),
            (frontend(VIP, 81), one(ProxyProtocol::V1)),
            (frontend(VIP, 82), one(ProxyProtocol::V2)),
            // This host does not have it.
            (frontend("fd00:87:2::50", 80), six),
        ]);
        let status = bench.reach(&want, |status| status.state == State::Active).await;
        assert_eq!(status.problems, []);
        assert_eq!(status.frontends, want.frontends.keys().copied().collect());
        assert_eq!(heard(80).await, "10.2.4.1 none");
        assert_eq!(heard(81).await, "10.2.4.1 v1 10.87.2.200");
        assert_eq!(heard(82).await, "10.2.4.1 v2 10.87.2.200");

        bench.reach(&Config::default(), |status| status.state == State::Idle).await;
        assert!(connect(80).await.is_err());
    });
}

/// Clients that come all the time, and how many of them heard what.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<BTreeMap<String, usize>>>,
}

impl Load {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |stop: Arc<AtomicBool>| async move {
            let mut heard_so_far = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                *heard_so_far.entry(heard(80).await).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            heard_so_far
        };
        let clients = (0..4).map(|_| tokio::spawn(client(Arc::clone(&stop)))).collect();
        Self { stop, clients }
    }

    async fn stop(self) -> BTreeMap<String, usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for client in self.clients {
            for (answer, count) in client.await.unwrap() {
                *all.entry(answer).or_default() += count;
            }
        }
        all
    }
}

#[test]
fn no_connection_is_lost_while_servers_and_frontends_come_and_go() {
    run("no_connection_is_lost_while_servers_and_frontends_come_and_go", |mut bench| async move {
        let served = |servers| config([(frontend(VIP, 80), proxy(ProxyProtocol::V1, servers))]);
        bench.reach(&served(&[("10.2.4.1", 1)]), |status| status.state == State::Active).await;
        let (mut open, _) = connect(80).await.unwrap();
        let load = Load::start();

        // Servers change while HAProxy runs on.
        bench.wants.send_replace(Some(Arc::new(served(&[("10.2.4.1", 0), ("10.2.4.2", 1)]))));
        until_only("10.2.4.2").await;
        bench.wants.send_replace(Some(Arc::new(served(&[("10.2.4.3", 2)]))));
        until_only("10.2.4.3").await;
        bench.wants.send_replace(Some(Arc::new(served(&[("10.2.4.1", 1)]))));
        until_only("10.2.4.1").await;
        assert_eq!(bench.status.borrow().reloads, 0);

        // Frontends do by reloads.
        for port in 81..86 {
            let mut want = served(&[("10.2.4.1", 1), ("10.2.4.2", 1)]);
            want.frontends.insert(frontend(VIP, port), proxy(ProxyProtocol::V2, &[("10.2.4.3", 1)]));
            bench.reach(&want, |status| status.frontends.contains(&frontend(VIP, port))).await;
            assert_eq!(heard(port).await, "10.2.4.3 v2 10.87.2.200");
        }
        assert_eq!(bench.status.borrow().reloads, 5);
        assert!(connect(84).await.is_err(), "it is gone");
        assert_eq!(say(&mut open, "still there?").await.unwrap(), "still there?");

        let heard = load.stop().await;
        println!("clients heard {heard:?}");
        let known = |answer: &String| answer.ends_with(" v1 10.87.2.200");
        assert!(heard.keys().all(known), "{heard:?}");
        assert!(heard.values().sum::<usize>() > 100, "{heard:?}");
    });
}

/// Waits until a client is refused.
async fn until_refused(port: u16) {
    let refused = async {
        while connect(port).await.err().map(|error| error.kind()) != Some(io::ErrorKind::ConnectionRefused) {}
    };
    tokio::time::timeout(LIMIT, refused).await.unwrap_or_else(|_| panic!("port {port} does not refuse"));
}

#[test]
fn without_a_server_clients_are_refused_and_open_connections_live_on() {
    run("without_a_server_clients_are_refused_and_open_connections_live_on", |mut bench| async move {
        let served = |servers| config([(frontend(VIP, 80), proxy(ProxyProtocol::V1, servers))]);
        bench.reach(&served(&[("10.2.4.1", 1)]), |status| status.state == State::Active).await;
        let (mut open, _) = connect(80).await.unwrap();

        // A flap of the only pod, which then ends.
        for none in [&[][..], &[("10.2.4.1", 0)]] {
            bench.wants.send_replace(Some(Arc::new(served(none))));
            until_refused(80).await;
            assert_eq!(say(&mut open, "still there?").await.unwrap(), "still there?");
            bench.wants.send_replace(Some(Arc::new(served(&[("10.2.4.1", 1)]))));
            until_only("10.2.4.1").await;
        }
        assert_eq!(bench.status.borrow().reloads, 0);

        // A process that begins while there is none refuses too, and serves when there is one.
        let mut want = served(&[]);
        want.frontends.insert(frontend(VIP, 81), proxy(ProxyProtocol::V1, &[("10.2.4.2", 1)]));
        bench.reach(&want, |status| status.reloads == 1).await;
        assert_eq!(heard(81).await, "10.2.4.2 v1 10.87.2.200");
        until_refused(80).await;
        want.frontends.extend(served(&[("10.2.4.3", 1)]).frontends);
        bench.reach(&want, |status| status.reloads == 2).await;
        assert_eq!(heard(80).await, "10.2.4.3 v1 10.87.2.200");
        assert_eq!(say(&mut open, "and now?").await.unwrap(), "and now?");
    });
}

/// A connection to the server at each of `addresses`, which serve in turn.
async fn connect_to<const N: usize>(
    addresses: [&str; N],
) -> [tokio::io::BufReader<tokio::net::TcpStream>; N] {
    let mut open = BTreeMap::new();
    while open.len() < N {
        let (stream, heard) = connect(80).await.unwrap();
        open.insert(heard.split(' ').next().unwrap().to_owned(), stream);
    }
    addresses.map(|address| open.remove(address).unwrap())
}

/// Waits until a connection is ended for its client.
async fn until_ended(stream: &mut tokio::io::BufReader<tokio::net::TcpStream>) {
    let ended = async { while say(stream, "still there?").await.is_ok() {} };
    tokio::time::timeout(LIMIT, ended).await.unwrap_or_else(|_| panic!("a connection goes on"));
}

#[test]
fn connections_to_servers_that_do_not_answer_end() {
    run("connections_to_servers_that_do_not_answer_end", |mut bench| async move {
        let served = |servers: &[(&str, u16)], ended: &[&str]| {
            let ended = ended.iter().map(|address| backend(address)).collect();
            config([(frontend(VIP, 80), Proxy { ended, ..proxy(ProxyProtocol::V1, servers) })])
        };
        let all = ["10.2.4.1", "10.2.4.2", "10.2.4.3"];
        bench.reach(&served(&all.map(|one| (one, 1)), &[]), |status| status.state == State::Active).await;
        let [mut first, mut second, mut third] = connect_to(all).await;

        // One is checked in vain, another is not ready any more and keeps what it has.
        bench.want(&served(&[(all[2], 1)], &[all[0]]));
        until_ended(&mut first).await;
        assert_eq!(say(&mut second, "still there?").await.unwrap(), "still there?");
        // Then its node is dead.
        bench.want(&served(&[(all[2], 1)], &[all[0], all[1]]));
        until_ended(&mut second).await;
        assert_eq!(bench.status.borrow().reloads, 0);

        // It is so too where HAProxy is to reload meanwhile.
        let mut want = served(&[(all[0], 1)], &[all[2]]);
        want.frontends.insert(frontend(VIP, 81), proxy(ProxyProtocol::V1, &[(all[1], 1)]));
        bench.want(&want);
        until_ended(&mut third).await;
        bench.until(|status| status.reloads == 1).await;
    });
}

#[test]
fn a_server_that_is_replaced_goes_when_its_client_has() {
    run("a_server_that_is_replaced_goes_when_its_client_has", |mut bench| async move {
        let served = |server| config([(frontend(VIP, 80), proxy(ProxyProtocol::V1, &[server]))]);
        bench.reach(&served(("10.2.4.1", 1)), |status| status.state == State::Active).await;
        let (open, _) = connect(80).await.unwrap();
        bench.want(&served(("10.2.4.2", 1)));
        until_only("10.2.4.2").await;
        assert_eq!(bench.servers().await.len(), 2);
        drop(open);
        let gone = async {
            for weight in [1, 2].into_iter().cycle() {
                bench.want(&served(("10.2.4.2", weight)));
                tokio::time::sleep(Duration::from_millis(500)).await;
                if bench.servers().await.len() == 1 {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, gone).await.unwrap_or_else(|_| panic!("the server stays"));
    });
}

#[test]
fn a_port_that_another_program_has_stands_in_the_way_of_no_other() {
    run("a_port_that_another_program_has_stands_in_the_way_of_no_other", |mut bench| async move {
        let one = || proxy(ProxyProtocol::V1, &[("10.2.4.1", 1)]);
        let other = TcpListener::bind("0.0.0.0:81").unwrap();
        let want = config([(frontend(VIP, 80), one()), (frontend(VIP, 81), one())]);
        let status = bench.reach(&want, |status| status.state == State::Active).await;
        assert_eq!(status.frontends, [frontend(VIP, 80)].into());
        let [problem] = &status.problems[..] else { panic!("{:?}", status.problems) };
        assert_eq!(
            problem.to_string(),
            "default/nginx: not served here at tcp 10.87.2.50:81: another program of this host listens on port 81 of all \
             addresses"
        );
        assert_eq!(heard(80).await, "10.2.4.1 v1 10.87.2.200");

        // Started without port 81, it is to serve one that is taken at the VIP alone.
        let there = TcpListener::bind((VIP, 82)).unwrap();
        let mut more = want.clone();
        more.frontends.extend([(frontend(VIP, 82), one()), (frontend(VIP, 83), one())]);
        let status = bench.reach(&more, |status| status.frontends.contains(&frontend(VIP, 83))).await;
        assert_eq!(status.frontends, [frontend(VIP, 80), frontend(VIP, 83)].into());
        let problems: Vec<String> = status.problems.iter().map(ToString::to_string).collect();
        let text =
            "default/nginx: not served here at tcp 10.87.2.50:82: another program of this host listens there";
        assert_eq!((problems.len(), problems[1].as_str()), (2, text));
        assert_eq!(heard(83).await, "10.2.4.1 v1 10.87.2.200");
        drop(there);
        bench.reach(&want, |status| status.frontends == [frontend(VIP, 80)].into()).await;

        drop(other);
        let status = bench.reach(&want, |status| status.frontends.contains(&frontend(VIP, 81))).await;
        assert_eq!(status.problems, []);
        assert_eq!(heard(81).await, "10.2.4.1 v1 10.87.2.200");
    });
}
