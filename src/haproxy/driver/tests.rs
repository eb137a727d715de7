//! The driver with a HAProxy that the test makes refuse, stick or vanish, on paused time. It knows no commands that change
//! servers, as HAProxy 2.2.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::program::ProgramError;
use super::super::{Balance, Proxy};
use super::*;
use crate::config::ProxyProtocol;
use crate::model::{Backend, Protocol};
use crate::unit::UnitError;

/// A HAProxy in memory, with what was asked of it.
#[derive(Debug, Clone)]
struct Fake(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    paths: Paths,
    unit: UnitState,
    asked: Vec<&'static str>,
    /// The commands that each of its processes was given.
    told: Vec<(u32, String)>,
    /// What it serves by.
    running: String,
    process: u32,
    /// What `haproxy -c` says of every file.
    accepts: Result<(), ProgramError>,
    /// It does not take over a file with this text.
    sticks: Option<&'static str>,
    /// Its host has IPv6.
    has_ipv6: bool,
    /// It answers nothing.
    silent: bool,
    /// Where other programs listen. It comes to nothing with a file that has it listen there.
    others: Vec<SocketAddr>,
}

impl Fake {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn act(&self, act: &'static str, active: &str) {
        self.with(|inner| {
            inner.asked.push(act);
            let text = files::read(&inner.paths.config).unwrap().unwrap_or_default();
            let place = |other: &SocketAddr| {
                if other.ip().is_unspecified() {
                    format!(":{} ", other.port())
                } else {
                    format!("bind {other} ")
                }
            };
            if inner.others.iter().any(|other| text.contains(&place(other))) {
                return;
            }
            inner.unit.active = active.into();
            if inner.sticks.is_none_or(|word| !text.contains(word)) {
                inner.running = text;
                inner.process += 1;
            }
        });
    }

    fn asked(&self) -> Vec<&'static str> {
        self.with(|inner| std::mem::take(&mut inner.asked))
    }
}

impl Service for Fake {
    async fn state(&mut self) -> Result<UnitState, UnitError> {
        Ok(self.with(|inner| {
            inner.asked.push("state");
            inner.unit.clone()
        }))
    }

    async fn start(&mut self) -> Result<(), UnitError> {
        self.act("start", "active");
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), UnitError> {
        self.act("reload", "active");
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), UnitError> {
        self.act("stop", "inactive");
        Ok(())
    }

    async fn accepts(&mut self, _: &Path) -> Result<(), ProgramError> {
        self.with(|inner| inner.accepts.clone())
    }

    async fn ask(&mut self, command: &str) -> io::Result<String> {
        self.with(|inner| match command {
            _ if inner.silent => Err(io::ErrorKind::TimedOut.into()),
            "show info" => Ok(format!("Name: HAProxy\nPid: {}\n", inner.process)),
            SHOW => Ok(stat(&inner.running)),
            _ => {
                inner.told.push((inner.process, command.to_owned()));
                Ok("Unknown command".into())
            }
        })
    }

    fn has_ipv6(&mut self) -> bool {
        self.with(|inner| inner.has_ipv6)
    }

    fn listeners(&mut self) -> BTreeSet<SocketAddr> {
        self.with(|inner| {
            let own = inner.running.lines().filter_map(|line| line.strip_prefix("listen ")?.parse().ok());
            own.filter(|_| inner.unit.runs()).chain(inner.others.iter().copied()).collect()
        })
    }
}

/// What HAProxy says of the proxies in `text`.
fn stat(text: &str) -> String {
    let mut answer = "# pxname,svname,status,weight,\n".to_owned();
    let mut proxy = "";
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["listen", name] => {
                proxy = name;
                let _ = writeln!(answer, "{proxy},FRONTEND,OPEN,,");
            }
            ["server", name, _, "id", _, "weight", weight, ..] => {
                let _ = writeln!(answer, "{proxy},{name},no check,{weight},");
            }
            _ => {}
        }
    }
    answer
}

struct Bench {
    fake: Fake,
    wants: watch::Sender<Option<Arc<Config>>>,
    status: watch::Receiver<Status>,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::of(&folder.path().join("kvip"));
        let unit = UnitState { load: "loaded".into(), active: "inactive".into(), ..UnitState::default() };
        let inner = Inner {
            paths: paths.clone(),
            unit,
            asked: vec![],
            told: vec![],
            running: String::new(),
            process: 1,
            accepts: Ok(()),
            sticks: None,
            has_ipv6: true,
            silent: false,
            others: Vec::new(),
        };
        let fake = Fake(Arc::new(Mutex::new(inner)));
        let (wants, wanted) = watch::channel(None);
        let status = spawn(wanted, paths, fake.clone());
        Self { fake, wants, status, folder }
    }

    /// kvip is started anew beside the same HAProxy.
    fn restart(&mut self) {
        let (wants, wanted) = watch::channel(None);
        self.status = spawn(wanted, self.paths(), self.fake.clone());
        self.wants = wants;
    }

    fn paths(&self) -> Paths {
        Paths::of(&self.folder.path().join("kvip"))
    }

    async fn reach(&mut self, want: Config, enough: impl Fn(&Status) -> bool) -> Status {
        self.wants.send_replace(Some(Arc::new(want)));
        self.status.wait_for(|status| enough(status)).await.unwrap().clone()
    }
}

/// Port 80 with servers by the last part of their addresses.
fn config(servers: &[u8]) -> Config {
    let frontend = Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
    let backend = |last: &u8| (Backend { address: [10, 2, 4, *last].into(), port: 8080 }, 1);
    let proxy = Proxy {
        owner: "default/nginx".into(),
        protocol: ProxyProtocol::V1,
        balance: Balance::RoundRobin,
        servers: servers.iter().map(backend).collect(),
        ended: BTreeSet::new(),
    };
    Config { frontends: [(frontend, proxy)].into() }
}

fn active(status: &Status) -> bool {
    status.state == State::Active
}

fn acts(asked: &[&'static str]) -> Vec<&'static str> {
    asked.iter().copied().filter(|act| *act != "state").collect()
}

#[tokio::test(start_paused = true)]
async fn where_nothing_was_ever_wanted_systemd_is_not_asked() {
    let mut bench = Bench::new();
    bench.reach(Config::default(), |status| status.state == State::Idle).await;
    sleep(LOOK_AGAIN * 3).await;
    assert_eq!(bench.fake.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn it_is_started_reloaded_left_alone_and_stopped() {
    let mut bench = Bench::new();
    bench.reach(config(&[1]), active).await;
    assert_eq!(acts(&bench.fake.asked()), ["start"]);
    bench.reach(config(&[1, 2]), |status| status.reloads == 1).await;
    assert_eq!(acts(&bench.fake.asked()), ["reload"], "for want of commands");

    bench.restart();
    bench.reach(config(&[1, 2]), active).await;
    assert_eq!(acts(&bench.fake.asked()), [""; 0], "a new kvip finds all as it should be");

    bench.fake.with(|inner| inner.unit.active = "failed".into());
    sleep(LOOK_AGAIN * 2).await;
    assert_eq!(acts(&bench.fake.asked()), ["start"]);

    bench.reach(Config::default(), |status| status.state == State::Idle).await;
    assert_eq!(acts(&bench.fake.asked()), ["stop"]);
    assert!(!bench.paths().config.exists() && !bench.paths().loaded.exists());
}

/// A stop would end all connections.
#[tokio::test(start_paused = true)]
async fn it_runs_on_while_no_server_is_left_and_stops_when_nothing_is_wanted() {
    let mut bench = Bench::new();
    bench.reach(config(&[1]), active).await;
    bench.reach(config(&[]), |status| status.reloads == 1).await;
    assert!(!files::read(&bench.paths().config).unwrap().unwrap().contains("listen 10"), "the host refuses");
    bench.fake.with(|inner| inner.unit.active = "failed".into());
    sleep(LOOK_AGAIN * 2).await;
    assert_eq!(acts(&bench.fake.asked()), ["start", "reload", "start"]);
    bench.reach(config(&[1]), |status| status.reloads == 2).await;
    bench.reach(Config::default(), |status| status.state == State::Idle).await;
    assert_eq!(acts(&bench.fake.asked()), ["reload", "stop"]);
}

/// Those that the process of before kept would hang, as nobody can speak to it after the reload.
#[tokio::test(start_paused = true)]
async fn all_that_do_not_answer_lose_their_connections_before_a_reload() {
    let all: Vec<u8> = (1..=250).collect();
    let mut bench = Bench::new();
    bench.reach(config(&all), active).await;
    let process = bench.fake.with(|inner| inner.process);
    let mut want = config(&all[..10]);
    let dead = config(&all[10..]).frontends.into_values().flat_map(|proxy| proxy.servers.into_keys());
    want.frontends.first_entry().unwrap().get_mut().ended = dead.collect();
    bench.reach(want, |status| status.reloads == 1).await;
    let told = bench.fake.with(|inner| std::mem::take(&mut inner.told));
    assert!(told.iter().all(|(to, line)| *to == process && line.len() < 16 << 10));
    let ended = |line: &String| line.matches("; shutdown sessions server 10.87.2.50:80/").count();
    assert_eq!(told.iter().map(|(_, line)| ended(line)).sum::<usize>(), 240);
    assert!(!told.iter().any(|(_, line)| line.contains("del server")), "the new process has none of them");
}

/// What is told, and what is to be typed, where `error` is what `haproxy -c` ends with.
async fn check_trouble(error: ProgramError, state: State, finding: &str, mend: &str) {
    let mut bench = Bench::new();
    bench.reach(config(&[1]), active).await;
    let before = files::read(&bench.paths().config).unwrap();
    bench.fake.asked();
    bench.fake.with(|inner| inner.accepts = Err(error));
    let status = bench.reach(config(&[1, 2]), |status| !active(status)).await;
    assert_eq!(status.state, state);
    assert_eq!(status.problems, [Finding::new("haproxy", finding).mend(mend)]);
    assert_eq!(status.frontends.len(), 1, "the configuration before goes on");
    assert_eq!(files::read(&bench.paths().config).unwrap(), before);
    assert_eq!(acts(&bench.fake.asked()), [""; 0]);

    bench.fake.with(|inner| inner.accepts = Ok(()));
    bench.status.wait_for(active).await.unwrap();
    assert_eq!(acts(&bench.fake.asked()), ["reload"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_changes_nothing_and_is_told_with_its_mend() {
    let text = "haproxy refuses it: parsing [line 7] : no";
    check_trouble(
        ProgramError::Refused("parsing [line 7] : no".into()),
        State::Refused(text.into()),
        text,
        "kvip plan --show haproxy, which prints the file",
    )
    .await;
    check_trouble(
        ProgramError::NotInstalled,
        State::NotInstalled,
        "not installed, so that nothing is served in mode proxy",
        "apt install haproxy",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_masked_unit_is_told() {
    let mut bench = Bench::new();
    bench.fake.with(|inner| inner.unit.load = "masked".into());
    let status = bench.reach(config(&[1]), |status| status.state == State::Masked).await;
    let mend = "systemctl unmask kvip-haproxy.service";
    assert_eq!(status.problems, [Finding::new("haproxy", "kvip-haproxy.service is masked").mend(mend)]);
}

#[tokio::test(start_paused = true)]
async fn a_haproxy_that_is_gone_serves_nothing() {
    let mut bench = Bench::new();
    let status = bench.reach(config(&[1]), active).await;
    assert_eq!(ports(&status), [80]);
    bench.fake.with(|inner| (inner.unit.load, inner.unit.active) = ("masked".into(), "inactive".into()));
    let status = bench.status.wait_for(|status| !active(status)).await.unwrap().clone();
    assert_eq!((ports(&status), status.tried), (vec![], config(&[1]).frontends.into_keys().collect()));
}

/// The program is removed while it runs, and it ends: that it is not installed says more than that its unit does not start.
#[tokio::test(start_paused = true)]
async fn a_haproxy_that_was_removed_is_not_installed() {
    let mut bench = Bench::new();
    bench.reach(config(&[1]), active).await;
    bench.fake.asked();
    bench.fake.with(|inner| {
        inner.unit.active = "inactive".into();
        inner.accepts = Err(ProgramError::NotInstalled);
    });
    let status = bench.status.wait_for(|status| !active(status)).await.unwrap().clone();
    assert_eq!(status.state, State::NotInstalled);
    assert_eq!(status.problems[0].mend.as_deref(), Some("apt install haproxy"));
    assert_eq!(acts(&bench.fake.asked()), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_does_not_take_is_rolled_back_and_tried_again() {
    let mut bench = Bench::new();
    bench.reach(config(&[1]), active).await;
    let before = files::read(&bench.paths().config).unwrap();
    bench.fake.with(|inner| inner.sticks = Some("10.2.4.2:"));
    let status = bench.reach(config(&[1, 2]), |status| !active(status)).await;
    let text = "did not take its new configuration over";
    assert_eq!(status.problems, [Finding::new("haproxy", text).mend("journalctl -u kvip-haproxy -n 50")]);
    assert_eq!(files::read(&bench.paths().config).unwrap(), before);

    bench.fake.with(|inner| inner.sticks = None);
    bench.status.wait_for(active).await.unwrap();
    assert_ne!(files::read(&bench.paths().config).unwrap(), before);
}

/// One more port of the VIP.
fn with_port(mut config: Config, port: u16) -> Config {
    let (frontend, proxy) = config.frontends.first_key_value().unwrap();
    let more = (Frontend { port, ..*frontend }, proxy.clone());
    config.frontends.extend([more]);
    config
}

fn ports(status: &Status) -> Vec<u16> {
    status.frontends.iter().map(|frontend| frontend.port).collect()
}

#[tokio::test(start_paused = true)]
async fn a_vip_that_another_program_listens_at_stands_in_the_way_of_no_other() {
    let mut bench = Bench::new();
    bench.fake.with(|inner| inner.others = vec!["10.87.2.50:443".parse().unwrap()]);
    let want = with_port(config(&[1]), 443);
    let status = bench.reach(want.clone(), active).await;
    assert_eq!(ports(&status), [80], "it starts without");
    assert_eq!(status.lacking().into_iter().map(|frontend| frontend.port).collect::<Vec<_>>(), [443]);
    let text = "not served here at tcp 10.87.2.50:443: another program of this host listens there";
    let mend = "ss -ltnp 'sport = :443', and have it listen on its own addresses";
    assert_eq!(status.problems, [Finding::new("default/nginx", text).mend(mend)]);

    // What HAProxy itself listens at is in nobody's way, whatever else comes to nothing.
    bench.fake.with(|inner| inner.others.push("10.87.2.50:444".parse().unwrap()));
    let want = with_port(want, 444);
    bench.reach(want.clone(), |status| status.problems.len() == 2).await;
    let status = bench.status.wait_for(active).await.unwrap().clone();
    assert_eq!(ports(&status), [80]);

    bench.fake.with(|inner| inner.others.clear());
    let status = bench.reach(want, |status| ports(status) == [80, 443, 444]).await;
    assert_eq!(status.problems, []);
}

/// Another node may serve a VIP that is taken here, and most likely not a port that each node has for a program of its own.
#[tokio::test(start_paused = true)]
async fn what_is_likely_so_on_all_nodes_is_not_lacking_here() {
    let mut bench = Bench::new();
    bench.fake.with(|inner| inner.others = vec!["0.0.0.0:443".parse().unwrap()]);
    let want = with_port(config(&[1]), 443);
    let tried = |status: &Status| !status.tried.is_empty();
    let status = bench.reach(want.clone(), tried).await;
    assert!(matches!(status.state, State::Failed(_)));
    assert_eq!(status.lacking(), config(&[1]).frontends.into_keys().collect(), "HAProxy is not up yet");
    let status = bench.status.wait_for(active).await.unwrap().clone();
    assert_eq!((ports(&status), status.lacking()), (vec![80], BTreeSet::new()));

    bench.fake.with(|inner| inner.accepts = Err(ProgramError::Refused("no".into())));
    let want = with_port(want, 444);
    let status = bench.reach(want.clone(), |status| matches!(status.state, State::Refused(_))).await;
    assert_eq!((ports(&status), status.lacking()), (vec![80], BTreeSet::new()));
    bench.fake.with(|inner| inner.accepts = Err(ProgramError::NotInstalled));
    let status = bench.reach(with_port(want, 445), |status| status.state == State::NotInstalled).await;
    assert_eq!(status.lacking().into_iter().map(|frontend| frontend.port).collect::<Vec<_>>(), [444, 445]);
}

/// It is up and says nothing in time: nobody knows then whose the listeners are.
#[tokio::test(start_paused = true)]
async fn a_haproxy_that_is_slow_is_not_in_its_own_way() {
    let mut bench = Bench::new();
    bench.fake.with(|inner| inner.silent = true);
    let status = bench.reach(config(&[1]), |status| matches!(status.state, State::Failed(_))).await;
    assert_eq!(status.problems.len(), 1);
    bench.fake.with(|inner| inner.silent = false);
    let status = bench.status.wait_for(active).await.unwrap().clone();
    assert_eq!((ports(&status), status.problems), (vec![80], vec![]));
}

/// HAProxy would not start, and `haproxy -c`, which binds nothing, would not say so.
#[tokio::test(start_paused = true)]
async fn a_host_without_ipv6_serves_ipv4_alone() {
    let mut bench = Bench::new();
    bench.fake.with(|inner| inner.has_ipv6 = false);
    let mut want = config(&[1]);
    let (frontend, proxy) = want.frontends.first_key_value().unwrap();
    let six = (Frontend { vip: "fd00:87:2::50".parse().unwrap(), ..*frontend }, proxy.clone());
    want.frontends.extend([six]);
    let status = bench.reach(want.clone(), active).await;
    assert_eq!(status.frontends, config(&[1]).frontends.into_keys().collect());
    assert_eq!(status.tried, want.frontends.keys().copied().collect(), "its VIPs may come");
    let text = "not served here at tcp [fd00:87:2::50]:80: this host has no IPv6";
    let finding = Finding::new("default/nginx", text).mend("boot it without ipv6.disable=1");
    assert_eq!(status.problems, [finding]);
    assert!(!files::read(&bench.paths().config).unwrap().unwrap().contains("fd00"));
}
