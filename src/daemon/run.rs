//! `kvip run`: starts what feeds the loop, and turns it until told to stop.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Ledger;
use super::admission::Admitted;
use super::core::Core;
use super::turn::{Daemon, Inputs, Outputs};
use crate::config::{self, Settings, Sources};
use crate::health::{self, Targets};
use crate::host::Kernel;
use crate::keepalived::{self, Paths};
use crate::net;
use crate::report::beats;
use crate::report::status::{self, Status};
use crate::report::systemd::Notifier;
use crate::snapshot::{kube, saved};

/// The loop's own rhythm: drains, ages and marks on disk are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// READY waits no longer than this for the first pass.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A loop that has not turned for so long hangs: they turn each few seconds, with or without an API server.
const STALLED: Duration = Duration::from_secs(15);

/// The file of the saved snapshot in the state folder.
const SNAPSHOT: &str = "snapshot.json";
/// The status socket in the run folder.
pub const SOCKET: &str = "status.sock";

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin: settings that are wrong, a host whose network cannot be read.
pub async fn run(sources: &Sources) -> anyhow::Result<()> {
    let settings = config::require(sources)?;
    let paths = Paths::default();
    std::fs::create_dir_all(&paths.run).with_context(|| format!("make {}", paths.run.display()))?;
    std::fs::create_dir_all(&paths.state).with_context(|| format!("make {}", paths.state.display()))?;
    let notifier = Notifier::from_env();
    notifier.status("starting");
    info!("kvip {} starts", env!("CARGO_PKG_VERSION"));
    let mut feeds = Feeds::start(&settings, &paths).await?;
    let mut daemon = feeds.daemon(settings, &paths);
    turn_until_stopped(sources, &mut daemon, &mut feeds, &notifier).await
}

/// Every event, one at a time; each is followed by one turn.
async fn turn_until_stopped(
    sources: &Sources,
    daemon: &mut Daemon<Kernel, Ledger>,
    feeds: &mut Feeds,
    notifier: &Notifier,
) -> anyhow::Result<()> {
    let mut hang_up = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut ready = false;
    let mut told = String::new();
    let mut watchdog = Watchdog::new(notifier);
    loop {
        tokio::select! {
            changed = daemon.inputs.changed() => changed?,
            _ = tick.tick() => watchdog.beat(notifier, feeds),
            _ = hang_up.recv() => {
                notifier.reloading();
                reload(sources, daemon, feeds);
                notifier.ready();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        daemon.turn(Instant::now().into_std()).await;
        let summary = daemon.outputs.status.borrow().summary.clone();
        if summary != told {
            notifier.status(&summary);
            told = summary;
        }
        if !ready && (daemon.has_passed() || started.elapsed() >= READY_LIMIT) {
            ready = true;
            notifier.ready();
        }
    }
    notifier.stopping();
    info!("stopping; keepalived, IPVS and nftables go on as they are");
    Ok(())
}

/// Reads the settings anew; wrong ones are said and the old ones stay.
fn reload(sources: &Sources, daemon: &mut Daemon<Kernel, Ledger>, feeds: &mut Feeds) {
    match config::load(sources) {
        Ok(settings) => {
            let new_feed = daemon.core.settings.cluster != settings.cluster;
            feeds.follow(&daemon.core.settings, &settings, &mut daemon.inputs);
            daemon.take_settings(settings, new_feed);
            info!("settings reloaded");
        }
        Err(problems) => {
            for problem in problems {
                error!("{problem}; the old settings stay");
            }
        }
    }
}

/// Pings systemd's watchdog while every loop lives.
struct Watchdog {
    interval: Option<Duration>,
    last: Instant,
}

impl Watchdog {
    fn new(notifier: &Notifier) -> Self {
        Self { interval: notifier.watchdog_interval(), last: Instant::now() }
    }

    /// An unreachable API is no reason to stop pinging; a loop that does not turn is.
    fn beat(&mut self, notifier: &Notifier, feeds: &Feeds) {
        if self.interval.is_none_or(|interval| self.last.elapsed() < interval) {
            return;
        }
        match feeds.stalled() {
            None => {
                notifier.alive();
                self.last = Instant::now();
            }
            Some(name) => {
                warn!(
                    loop_name = name,
                    "a loop does not turn; systemd will restart kvip unless it does soon"
                );
            }
        }
    }
}

/// The tasks that feed the loop, and what they are told.
struct Feeds {
    cluster: kube::Handles,
    dead: watch::Receiver<health::Dead>,
    facts: watch::Receiver<net::HostFacts>,
    keepalived: watch::Receiver<keepalived::Status>,
    wants: watch::Sender<Option<keepalived::Config>>,
    targets: watch::Sender<Targets>,
}

impl Feeds {
    async fn start(settings: &Settings, paths: &Paths) -> anyhow::Result<Self> {
        let facts = net::watch().await.context("read this host's network")?;
        let (wants, wanted) = watch::channel(None);
        let (targets, probed) = watch::channel(Targets::new());
        let own = facts.borrow().hostname.clone();
        Ok(Self {
            cluster: kube::spawn(settings.cluster.clone()),
            dead: health::spawn(&own, probed, settings.balancing.probe_port),
            keepalived: keepalived::spawn(wanted, facts.clone(), paths.clone(), keepalived::Unit::new()),
            facts,
            wants,
            targets,
        })
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            updates: self.cluster.snapshots.clone(),
            contact: self.cluster.contact.clone(),
            facts: self.facts.clone(),
            dead: self.dead.clone(),
            keepalived: self.keepalived.clone(),
        }
    }

    fn daemon(&self, settings: Settings, paths: &Paths) -> Daemon<Kernel, Ledger> {
        let ledger = Ledger::new(&paths.state);
        let owned = ledger.load().unwrap_or_else(|error| {
            error!("{error:#}; VIPs that an earlier run owned and nobody asks for now are left as they are");
            BTreeSet::new()
        });
        let core = Core::new(settings, self.facts.borrow().clone(), owned);
        let (status, readers) = watch::channel(Status::default());
        let socket = paths.run.join(SOCKET);
        tokio::spawn(async move {
            if let Err(error) = status::serve(&socket, readers).await {
                error!("kvip status cannot be answered: {error:#}");
            }
        });
        let outputs = Outputs { keepalived: self.wants.clone(), targets: self.targets.clone(), status };
        let snapshot = paths.state.join(SNAPSHOT);
        let admitted = admitted(&snapshot);
        Daemon::new(
            core,
            Kernel::default(),
            ledger,
            paths.clone(),
            snapshot,
            admitted,
            self.inputs(),
            outputs,
        )
    }

    /// Starts anew the feeds whose settings changed.
    fn follow(&mut self, before: &Settings, after: &Settings, inputs: &mut Inputs) {
        if before.cluster != after.cluster {
            self.cluster = kube::spawn(after.cluster.clone());
        }
        if before.balancing.probe_port != after.balancing.probe_port {
            let own = self.facts.borrow().hostname.clone();
            self.dead = health::spawn(&own, self.targets.subscribe(), after.balancing.probe_port);
        }
        *inputs = self.inputs();
    }

    /// The name of a loop that has not turned for too long.
    fn stalled(&self) -> Option<&'static str> {
        (self.cluster.alive.borrow().elapsed() > STALLED).then_some("cluster").or_else(beats::late)
    }
}

/// The state that an earlier run saved.
fn admitted(path: &Path) -> Admitted {
    match saved::load(path) {
        Ok(Some(snapshot)) => Admitted::saved(snapshot),
        Ok(None) => Admitted::default(),
        Err(error) => {
            warn!("{error}; starting without a saved state");
            Admitted::default()
        }
    }
}
