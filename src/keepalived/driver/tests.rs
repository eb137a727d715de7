//! The driver with a keepalived that the test makes fall, refuse or vanish, on paused time.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::super::binary::BinaryError;
use super::super::check::Refusal;
use super::super::{Instance, render, render_fragment};
use super::act::{DISTRUST, STEADY};
use super::*;
use crate::model::{Family, Vrid};
use crate::net::{Address, Link};
use crate::unit::UnitError;

mod act;
mod beside;

/// A keepalived in memory, with what was asked of it.
#[derive(Debug, Clone)]
struct Fake(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    paths: Paths,
    unit: UnitState,
    asked: Vec<String>,
    /// The VIPs of each file that it read.
    read: Vec<usize>,
    /// It falls over a file with this text.
    falls_over: Option<&'static str>,
    /// It refuses a file with this text.
    refuses: Option<&'static str>,
    /// It refuses `keepalived.conf` beside a fragment with this text.
    clashes: Option<&'static str>,
    /// Its check of any file but kvip's draft never ends.
    ponders: bool,
    bus: Result<(), UnitError>,
    /// What somebody else does to it right after each reload.
    meanwhile: Option<fn(&mut Inner)>,
}

impl Fake {
    fn new(paths: &Paths, active: &str) -> Self {
        let unit =
            UnitState { load: "loaded".into(), active: active.into(), main_pid: 7, ..UnitState::default() };
        let paths = paths.clone();
        let (asked, read) = (vec![], vec![]);
        let (falls_over, refuses, clashes, meanwhile) = (None, None, None, None);
        let (ponders, bus) = (false, Ok(()));
        let inner = Inner { paths, unit, asked, read, falls_over, refuses, clashes, ponders, bus, meanwhile };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn act(&self, act: &str) -> Result<(), UnitError> {
        self.with(|inner| {
            inner.bus.clone()?;
            inner.asked.push(act.to_owned());
            let text = files::read(&inner.paths.keepalived_conf).unwrap().unwrap_or_default();
            inner.read.push(carried_in(&text).len());
            let falls = inner.falls_over.is_some_and(|word| text.contains(word));
            inner.unit.active = if falls { "failed" } else { "active" }.to_owned();
            inner.unit.main_pid = match inner.unit.main_pid {
                _ if falls => 0,
                0 => 7,
                pid => pid,
            };
            Ok(())
        })
    }

    fn asked(&self) -> Vec<String> {
        self.with(|inner| std::mem::take(&mut inner.asked))
    }
}

impl Service for Fake {
    async fn state(&mut self) -> Result<UnitState, UnitError> {
        self.with(|inner| inner.bus.clone().map(|()| inner.unit.clone()))
    }

    async fn start(&mut self) -> Result<(), UnitError> {
        self.act("start")
    }

    async fn reload(&mut self) -> Result<(), UnitError> {
        self.act("reload")?;
        self.with(|inner| {
            if let Some(meanwhile) = inner.meanwhile {
                meanwhile(inner);
            }
        });
        Ok(())
    }

    async fn build(&mut self) -> Result<Build, BinaryError> {
        Ok(Build { dbus: true })
    }

    async fn accepts(&mut self, file: &Path) -> Result<(), BinaryError> {
        let text = files::read(file).unwrap().unwrap();
        if self.with(|inner| inner.ponders && *file == inner.paths.keepalived_conf) {
            return Err(BinaryError::TooLong);
        }
        let reasons: Vec<_> = self.with(|inner| {
            let fragment = files::read(&inner.paths.fragment()).unwrap().unwrap_or_default();
            let clash =
                inner.clashes.filter(|word| *file == inner.paths.keepalived_conf && fragment.contains(word));
            inner.refuses.filter(|word| text.contains(word)).into_iter().chain(clash).collect()
        });
        if reasons.is_empty() { Ok(()) } else { Err(Refusal::Keepalived(reasons.join("; ")).into()) }
    }
}

fn address(ip: IpAddr) -> Address {
    Address { ip, prefix_len: 32, link: "eth0".into(), noprefixroute: true }
}

fn facts(addresses: impl IntoIterator<Item = IpAddr>) -> HostFacts {
    HostFacts {
        links: [("eth0".to_owned(), Link { index: 2, up: true, ..Link::default() })].into(),
        addresses: addresses.into_iter().map(address).collect(),
        ..HostFacts::default()
    }
}

fn config(vips: u32) -> Config {
    let instance = Instance {
        vrid: Vrid::new(50).unwrap(),
        family: Family::V4,
        interface: "eth0".into(),
        priority: 190,
        advert: Duration::from_secs(1),
        gone_after: Duration::from_secs(60),
        unicast: None,
        vips: (0..vips).map(vip).collect(),
    };
    Config { router_id: "node-a".into(), gone_after: Duration::from_secs(60), instances: vec![instance] }
}

fn none() -> Config {
    Config { instances: vec![], ..config(0) }
}

fn vip(number: u32) -> IpAddr {
    IpAddr::from((0x0a00_0100 + number).to_be_bytes())
}

/// A driver at work, and what the test can move.
struct Bench {
    _root: tempfile::TempDir,
    paths: Paths,
    fake: Fake,
    wants: watch::Sender<Option<Config>>,
    facts: watch::Sender<HostFacts>,
    status: watch::Receiver<Status>,
}

impl Bench {
    fn new(active: &str) -> Self {
        Self::with_files(active, |_| {})
    }

    fn with_files(active: &str, prepare: impl FnOnce(&Paths)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        prepare(&paths);
        let fake = Fake::new(&paths, active);
        let (wants, wanted) = watch::channel(None);
        let (facts, host) = watch::channel(facts([]));
        let status = spawn(wanted, host, paths.clone(), fake.clone());
        Self { _root: root, paths, fake, wants, facts, status }
    }

    /// keepalived runs, and has taken so many VIPs.
    async fn serving(vips: u32) -> Self {
        let mut bench = Self::new("active");
        bench.want(config(vips));
        bench.until_active(vips as usize).await;
        bench
    }

    fn want(&self, config: Config) {
        self.wants.send(Some(config)).unwrap();
    }

    /// Waits, on paused time, for a status that satisfies `good`.
    async fn until(&mut self, good: impl FnMut(&Status) -> bool) -> Status {
        let waited = tokio::time::timeout(Duration::from_secs(3600), self.status.wait_for(good)).await;
        waited.expect("the status comes within an hour").unwrap().clone()
    }

    async fn until_active(&mut self, vips: usize) -> Status {
        self.until(|status| status.state == State::Active && status.vips.len() == vips).await
    }

    fn text(&self) -> Option<String> {
        files::read(&self.paths.keepalived_conf).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_host_is_started_and_then_reloaded() {
    let mut bench = Bench::new("inactive");
    bench.want(config(2));
    let status = bench.until_active(2).await;
    assert_eq!((status.reloads, status.problem), (0, None));
    bench.want(config(3));
    let status = bench.until_active(3).await;
    assert_eq!(status.reloads, 1);
    assert_eq!(bench.fake.asked(), ["start", "reload"]);
    assert_eq!(bench.text(), Some(render(&config(3), &bench.paths, Build { dbus: true })));
    let mode = std::fs::metadata(&bench.paths.keepalived_conf).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_cost_one_reload() {
    let mut bench = Bench::serving(1).await;
    bench.fake.asked();
    for vips in 2..=9 {
        bench.want(config(vips));
        sleep(DEBOUNCE / 10).await;
    }
    bench.until_active(9).await;
    assert_eq!(bench.fake.asked(), ["reload"]);
}

#[tokio::test(start_paused = true)]
async fn vips_join_in_chunks() {
    let mut bench = Bench::new("active");
    bench.want(config(250));
    let status = bench.until_active(250).await;
    assert_eq!(status.reloads, 3);
    assert_eq!(bench.fake.with(|inner| inner.read.clone()), [100, 200, 250]);
    bench.want(config(0));
    bench.until_active(0).await;
    assert_eq!(bench.fake.with(|inner| inner.read.clone()), [100, 200, 250, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_kvip_reloads_nothing() {
    let mut bench = Bench::with_files("active", |paths| {
        let text = render(&config(3), paths, Build { dbus: true });
        files::replace(&paths.keepalived_conf, &text, files::PUBLIC).unwrap();
        files::replace(&paths.loaded(), &text, files::PUBLIC).unwrap();
    });
    assert_eq!(bench.status.borrow().vips.len(), 3);
    sleep(LOOK_AGAIN * 3).await;
    assert_eq!(bench.fake.asked(), [""; 0]);
    bench.want(config(3));
    bench.until_active(3).await;
    assert_eq!(bench.fake.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_keepalived_that_cannot_be_started_carries_nothing() {
    let mut bench = Bench::serving(2).await;
    bench.fake.with(|inner| {
        inner.falls_over = Some("10.0.1.1/32");
        inner.unit.active = "failed".into();
    });
    bench.until(|status| matches!(status.state, State::Failed(_)) && status.vips.is_empty()).await;
    sleep(Duration::from_secs(600)).await;
    assert!(bench.status.borrow().vips.is_empty(), "also between and after more tries");

    bench.fake.with(|inner| inner.unit.active = "active".into());
    let started = Instant::now();
    bench.until(|status| status.vips.len() == 2).await;
    assert!(started.elapsed() < Duration::from_secs(15), "before what it carries counts as left behind");
}

#[tokio::test(start_paused = true)]
async fn a_keepalived_that_dies_during_a_refusal_carries_nothing() {
    let mut bench = Bench::serving(2).await;
    bench.facts.send_replace(HostFacts::default());
    bench.want(config(3));
    let status = bench.until(|status| matches!(status.state, State::Refused(_))).await;
    assert_eq!(status.vips.len(), 2);
    bench.fake.with(|inner| inner.unit.active = "failed".into());
    bench.until(|status| status.vips.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_keepalived_that_is_being_stopped_carries_its_vips_still() {
    let mut bench = Bench::serving(2).await;
    bench.fake.with(|inner| inner.unit.active = "deactivating".into());
    bench.until(|status| status.state == State::Waiting("for keepalived to stop".into())).await;
    sleep(LOOK_AGAIN).await;
    assert_eq!(bench.status.borrow().vips.len(), 2);
    hold::set_stopping(&bench.paths).unwrap();
    bench.fake.with(|inner| inner.unit.active = "inactive".into());
    bench.until(|status| status.vips.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_file_is_never_put_in_place() {
    let mut bench = Bench::serving(1).await;
    bench.fake.asked();
    let good = bench.text();
    bench.fake.with(|inner| inner.refuses = Some("10.0.1.1/32"));
    bench.want(config(2));
    let status = bench.until(|status| matches!(status.state, State::Refused(_))).await;
    assert_eq!(status.state.to_string(), "refused: keepalived refuses its configuration: 10.0.1.1/32");
    assert_eq!((bench.text(), status.vips.len()), (good, 1));
    assert_eq!(bench.fake.asked(), [""; 0]);
    assert_eq!(std::fs::read_dir(bench.paths.keepalived_folder()).unwrap().count(), 1, "no draft is left");
    bench.fake.with(|inner| inner.refuses = None);
    bench.until_active(2).await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_appears_ends_a_refusal() {
    let mut bench = Bench::new("inactive");
    bench.facts.send_replace(HostFacts::default());
    bench.want(config(1));
    let status = bench.until(|status| matches!(status.state, State::Refused(_))).await;
    assert_eq!(status.problem.unwrap().text, "VRRP group 50: this host has no interface eth0");
    bench.facts.send_replace(facts([]));
    bench.until_active(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_is_asked_for_its_vips() {
    let mut bench = Bench::new("active");
    let anchor = anchor(Vrid::new(50).unwrap(), Family::V4);
    bench.facts.send_replace(facts([anchor, vip(0)]));
    bench.want(config(2));
    let status = bench.until_active(2).await;
    assert_eq!(
        status.problem.unwrap().text,
        "holds the group of 10.0.1.1 (1 in all) without having the address"
    );
    bench.facts.send_replace(facts([anchor, vip(0), vip(1)]));
    bench.until(|status| status.problem.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn no_bus_no_unit_no_permission_to_run() {
    let mut bench = Bench::new("inactive");
    bench.fake.with(|inner| inner.bus = Err(UnitError::Bus("gone".into())));
    bench.want(config(1));
    bench.until(|status| matches!(status.state, State::Failed(_))).await;
    bench.fake.with(|inner| {
        inner.bus = Ok(());
        inner.unit.load = "masked".into();
    });
    let status = bench.until(|status| status.state == State::Masked).await;
    assert_eq!(status.problem.unwrap().mend.as_deref(), Some("systemctl unmask keepalived.service"));
    bench.fake.with(|inner| inner.unit.load = "not-found".into());
    bench.until(|status| status.state == State::NotInstalled).await;
    bench.fake.with(|inner| inner.unit.load = "loaded".into());
    bench.until_active(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_reloads_without_instances_and_leaves_no_file() {
    let mut bench = Bench::serving(2).await;
    bench.want(none());
    let status = bench.until(|status| status.state == State::Idle).await;
    assert!(status.vips.is_empty());
    assert!(
        bench.text().is_none(),
        "it would hang the next boot: keepalived is never ready without an instance"
    );
    assert_eq!(bench.fake.asked(), ["reload", "reload"]);
}

#[tokio::test(start_paused = true)]
async fn a_keepalived_that_was_stopped_by_hand_stays_stopped() {
    let mut bench = Bench::new("inactive");
    hold::set_stopping(&bench.paths).unwrap();
    bench.want(config(1));
    let status = bench.until(|status| status.problem.is_some()).await;
    assert_eq!(status.problem.unwrap().mend.as_deref(), Some("systemctl start keepalived"));
    assert!(bench.text().is_some());
    assert_eq!(bench.fake.asked(), [""; 0]);
    hold::clear_stopping(&bench.paths).unwrap();
    bench.until_active(1).await;
    assert_eq!(bench.fake.asked(), ["start"]);
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_has_outlived_its_stop_goes() {
    let mut bench = Bench::new("deactivating");
    hold::set_stopping(&bench.paths).unwrap();
    bench.want(config(1));
    bench.until(|status| status.state == State::Waiting("for keepalived to stop".into())).await;
    sleep(LOOK_AGAIN).await;
    assert!(hold::stopping(&bench.paths), "the stop is under way");
    // Its ExecStartPre was not there to end the mark.
    bench.fake.with(|inner| inner.unit.active = "active".into());
    bench.until_active(1).await;
    assert!(!hold::stopping(&bench.paths));
    assert_eq!(bench.fake.asked(), ["reload"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_forgotten_when_nothing_is_to_run() {
    let mut bench = Bench::serving(1).await;
    bench.want(none());
    bench.until(|status| status.state == State::Idle).await;
    bench.fake.asked();
    // A kvip that marked each stop, and a restart of keepalived that systemd skipped.
    hold::set_stopping(&bench.paths).unwrap();
    bench.fake.with(|inner| inner.unit.active = "inactive".into());
    bench.want(none());
    sleep(LOOK_AGAIN * 2).await;
    assert!(!hold::stopping(&bench.paths));
    bench.want(config(1));
    bench.until_active(1).await;
    assert_eq!(bench.fake.asked(), ["start"]);

    bench.fake.with(|inner| inner.unit.active = "inactive".into());
    hold::set_stopping(&bench.paths).unwrap();
    bench.want(none());
    bench.until(|status| status.state == State::Idle).await;
    assert!(bench.text().is_none() && !hold::stopping(&bench.paths));
}
