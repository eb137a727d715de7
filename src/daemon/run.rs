//! `kvip run`: starts what feeds the loop, and turns it until told to stop.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use super::admission::Admitted;
use super::channels::{Inputs, Outputs};
use super::core::Core;
use super::settings::Joined;
use super::status::View;
use super::turn::Daemon;
use super::writers::{self, Answers, Orders, Writers};
use super::{Ledger, alive, probe, watchdog};
use crate::config::{self, Settings, Sources};
use crate::conntrack::{self, Moves};
use crate::haproxy;
use crate::health::{self, Targets, check, node_ports};
use crate::host::Kernel;
use crate::keepalived::{self, Paths};
use crate::kube_proxy;
use crate::model::Finding;
use crate::net::{self, hops, peers};
use crate::nft::{self, watch::Touched};
use crate::report::beats;
use crate::report::status;
use crate::report::systemd::Notifier;
use crate::snapshot::{feed, saved};

/// The loop's own rhythm: drains, ages and marks on disk are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// READY waits no longer than this for the first pass.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A turn may run nft six times, of 10 s each at most, beside what is quick; one that takes longer hangs.
const TURN_LIMIT: Duration = Duration::from_secs(90);

/// The file of the saved snapshot in the state folder.
pub const SNAPSHOT: &str = "snapshot.json";
/// The status socket in the run folder.
pub const SOCKET: &str = "status.sock";

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin: settings that are wrong, a host whose network cannot be read.
pub async fn run(sources: &Sources) -> anyhow::Result<()> {
    let paths = Paths::default();
    if let Err(error) = alive::yield_if_gone(&paths) {
        warn!("{error}; this node keeps its weight although kvip may have been gone");
    }
    let host = config::require(sources)?;
    std::fs::create_dir_all(&paths.run).with_context(|| format!("make {}", paths.run.display()))?;
    std::fs::create_dir_all(&paths.state).with_context(|| format!("make {}", paths.state.display()))?;
    let notifier = Notifier::from_env();
    notifier.status("starting");
    info!("kvip {} starts", env!("CARGO_PKG_VERSION"));
    let mut joined = Joined::new(host, &paths.state);
    let settings = joined.first();
    let (mut feeds, orders) = Feeds::start(settings.clone(), &paths).await?;
    let mut daemon = feeds.daemon(settings, orders, &paths);
    daemon.join(joined);
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
    let [mut tick, mut probe] = [TICK, probe::INTERVAL].map(tokio::time::interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut ready = false;
    let mut told = String::new();
    watchdog::spawn(notifier.clone(), beats::late);
    loop {
        beats::beat("turn", TURN_LIMIT);
        tokio::select! {
            changed = daemon.inputs.changed() => changed?,
            _ = tick.tick() => {}
            _ = probe.tick() => if !daemon.probe().await { continue },
            _ = hang_up.recv() => {
                notifier.reloading();
                reload(sources, daemon);
                feeds.follow(daemon);
                notifier.ready();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        daemon.turn(Instant::now().into_std()).await;
        feeds.follow(daemon);
        let summary = daemon.outputs.status.borrow().summary(Instant::now().into_std());
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
    daemon.stop().await;
    info!("stopping; keepalived, IPVS and nftables go on as they are");
    Ok(())
}

/// Reads the settings anew; wrong ones are said and the old ones stay.
fn reload(sources: &Sources, daemon: &mut Daemon<Kernel, Ledger>) {
    match config::read_host(sources) {
        Ok(host) => {
            if let Some(settings) = daemon.reload(host) {
                let new_feed = daemon.core.settings.cluster != settings.cluster;
                daemon.take_settings(settings, new_feed);
            }
            info!("settings reloaded");
        }
        Err(problems) => {
            for problem in problems {
                error!("{problem}; the old settings stay");
            }
        }
    }
}

/// Follows the cluster, and beats for the tasks that do as long as they do.
fn follow_cluster(settings: config::Cluster) -> feed::Handles {
    let cluster = feed::spawn(settings);
    let mut alive = cluster.alive.clone();
    tokio::spawn(async move {
        let promise = beats::Promise::new("cluster", beats::PROMPT);
        promise.beat();
        while alive.changed().await.is_ok() {
            promise.beat();
        }
    });
    cluster
}

/// The tasks that feed the loop, and what they are told.
struct Feeds {
    /// What they were started with.
    settings: Settings,
    answers: Answers,
    writers: Writers,
    cluster: feed::Handles,
    dead: watch::Receiver<health::Dead>,
    checked: watch::Sender<check::Targets>,
    unhealthy: watch::Receiver<check::Down>,
    facts: watch::Receiver<net::HostFacts>,
    peers: watch::Sender<BTreeSet<IpAddr>>,
    macs: watch::Receiver<peers::Macs>,
    ways: watch::Sender<hops::Ways>,
    hops: watch::Receiver<hops::Hops>,
    ruleset: watch::Receiver<Touched>,
    keepalived: watch::Receiver<keepalived::Status>,
    haproxy: watch::Receiver<haproxy::Status>,
    conntrack: watch::Receiver<Option<Finding>>,
    moves: watch::Sender<Option<Moves>>,
    proxies: watch::Sender<Option<Arc<haproxy::Config>>>,
    wants: watch::Sender<Option<keepalived::Config>>,
    targets: watch::Sender<Targets>,
}

impl Feeds {
    async fn start(settings: Settings, paths: &Paths) -> anyhow::Result<(Self, Orders)> {
        let network = net::watch().await.context("read this host's network")?;
        let facts = kube_proxy::watch(network).await;
        let (wants, wanted) = watch::channel(None);
        let (proxies, to_serve) = watch::channel(None);
        let proxy_paths = haproxy::Paths::of(&paths.run);
        let (targets, probed) = watch::channel(Targets::new());
        let (peers, wanted_peers) = watch::channel(BTreeSet::new());
        let (ways, wanted_ways) = watch::channel(hops::Ways::new());
        let (moves, wanted_moves) = watch::channel(None);
        let (checked, to_check) = watch::channel(check::Targets::new());
        let own = facts.borrow().hostname.clone();
        let cluster = follow_cluster(settings.cluster.clone());
        let (orders, answers, writers) = writers::spawn(&cluster.link, settings.cluster.settings_map.clone());
        let feeds = Self {
            checked,
            unhealthy: check::spawn(&own, to_check),
            cluster,
            answers,
            writers,
            dead: health::spawn(&own, probed, settings.balancing.probe_port),
            haproxy: haproxy::spawn(to_serve, proxy_paths.clone(), haproxy::Haproxy::new(&proxy_paths)),
            proxies,
            keepalived: keepalived::spawn(wanted, facts.clone(), paths.clone(), keepalived::unit()),
            facts,
            macs: peers::spawn(wanted_peers),
            ways,
            hops: hops::spawn(wanted_ways),
            ruleset: nft::watch::watch(),
            conntrack: conntrack::spawn(wanted_moves),
            moves,
            peers,
            wants,
            targets,
            settings,
        };
        Ok((feeds, orders))
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            updates: self.cluster.snapshots.clone(),
            contact: self.cluster.contact.clone(),
            facts: self.facts.clone(),
            dead: self.dead.clone(),
            unhealthy: self.unhealthy.clone(),
            macs: self.macs.clone(),
            hops: self.hops.clone(),
            ruleset: self.ruleset.clone(),
            keepalived: self.keepalived.clone(),
            haproxy: self.haproxy.clone(),
            conntrack: self.conntrack.clone(),
            answers: self.answers.clone(),
        }
    }

    fn daemon(&self, settings: Settings, orders: Orders, paths: &Paths) -> Daemon<Kernel, Ledger> {
        let ledger = Ledger::new(&paths.state);
        let owned = ledger.load_or_stand_in(paths);
        let core = Core::new(settings, self.facts.borrow().clone(), owned);
        let (status, readers) = watch::channel(Arc::new(View::default()));
        let socket = paths.run.join(SOCKET);
        tokio::spawn(async move {
            // Making the document takes a while, and who borrows keeps turns from telling more.
            let document = || {
                let view = Arc::clone(&readers.borrow());
                view.document(Instant::now().into_std())
            };
            if let Err(error) = status::serve(&socket, document).await {
                error!("kvip status cannot be answered: {error:#}");
            }
        });
        let (local, answers) = watch::channel(None);
        node_ports::spawn(answers);
        let outputs = Outputs {
            keepalived: self.wants.clone(),
            haproxy: self.proxies.clone(),
            targets: self.targets.clone(),
            checked: self.checked.clone(),
            peers: self.peers.clone(),
            ways: self.ways.clone(),
            moves: self.moves.clone(),
            local,
            orders,
            status,
        };
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
    fn follow(&mut self, daemon: &mut Daemon<Kernel, Ledger>) {
        let after = &daemon.core.settings;
        if self.settings == *after {
            return;
        }
        let before = std::mem::replace(&mut self.settings, after.clone());
        if before.cluster != after.cluster {
            self.cluster = follow_cluster(after.cluster.clone());
            let (orders, answers, writers) =
                writers::spawn(&self.cluster.link, after.cluster.settings_map.clone());
            (self.answers, self.writers) = (answers, writers);
            daemon.write_by(orders);
        }
        let after = &self.settings;
        if before.balancing.probe_port != after.balancing.probe_port {
            let own = self.facts.borrow().hostname.clone();
            self.dead = health::spawn(&own, self.targets.subscribe(), after.balancing.probe_port);
        }
        daemon.inputs = self.inputs();
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
