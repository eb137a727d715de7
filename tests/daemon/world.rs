//! A daemon with everything around it: the simulated host, temporary files, and both ends of every channel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvip::config::Settings;
use kvip::conntrack::Moves;
use kvip::daemon::core::Core;
use kvip::daemon::status::View;
use kvip::daemon::writers::{Allocation, Answers, Orders};
use kvip::daemon::{Admitted, Daemon, Inputs, Ledger, Outputs};
use kvip::haproxy;
use kvip::health::check::Down;
use kvip::health::{Dead, Targets, check};
use kvip::ipam::Outcomes;
use kvip::keepalived::{self, Config, Paths, weight};
use kvip::model::{Backend, Finding, Frontend, ObjectKey, Vrid};
use kvip::net::hops::{Hops, Ways};
use kvip::net::peers::Macs;
use kvip::net::{Address, HostFacts};
use kvip::nft::watch::Touched;
use kvip::report::objects::agreement::{Heard, Own};
use kvip::report::objects::{State, Wanted};
use kvip::report::status::Status;
use kvip::snapshot::admit::Update;
use kvip::snapshot::kube::Contact;
use kvip::snapshot::{Snapshot, saved};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::host::{Kernel, Simulated};
pub use crate::tutorial::*;

/// All ends of the daemon's channels that are not the daemon's.
struct Ends {
    updates: watch::Sender<Option<Update>>,
    contact: watch::Sender<Contact>,
    dead: watch::Sender<Dead>,
    unhealthy: watch::Sender<Down>,
    checked: watch::Receiver<check::Targets>,
    macs: watch::Sender<Macs>,
    hops: watch::Sender<Hops>,
    ways: watch::Receiver<Ways>,
    ruleset: watch::Sender<Touched>,
    keepalived: watch::Sender<keepalived::Status>,
    haproxy: watch::Sender<haproxy::Status>,
    conntrack: watch::Sender<Option<Finding>>,
    moves: watch::Receiver<Option<Moves>>,
    proxies: watch::Receiver<Option<Arc<haproxy::Config>>>,
    writers: Writers,
    wanted: watch::Receiver<Option<Config>>,
    targets: watch::Receiver<Targets>,
    peers: watch::Receiver<BTreeSet<IpAddr>>,
    status: watch::Receiver<Arc<View>>,
}

/// The other ends of those who write to the cluster.
struct Writers {
    _outcomes: watch::Sender<Arc<Outcomes>>,
    _said: watch::Sender<Vec<Finding>>,
    _heard: watch::Sender<Heard>,
    allocate: watch::Receiver<Option<Allocation>>,
    say: watch::Receiver<State>,
    own: watch::Receiver<Option<Own>>,
}

fn writers() -> (Orders, Answers, Writers) {
    let (allocate_out, allocate) = watch::channel(None);
    let (say_out, say) = watch::channel(State::default());
    let (own_out, own) = watch::channel(None);
    let (outcomes, outcomes_in) = watch::channel(Arc::default());
    let (said, said_in) = watch::channel(Vec::new());
    let (heard, heard_in) = watch::channel(Heard::default());
    (
        Orders { allocate: allocate_out, say: say_out, own: own_out },
        Answers { outcomes: outcomes_in, said: said_in, heard: heard_in },
        Writers { _outcomes: outcomes, _said: said, _heard: heard, allocate, say, own },
    )
}

/// The daemon's ends of all channels, and the others.
fn channels(facts: watch::Receiver<HostFacts>) -> (Inputs, Outputs, Ends) {
    let (updates, updates_in) = watch::channel(None);
    let (contact, contact_in) = watch::channel(Contact::default());
    let (dead, dead_in) = watch::channel(Dead::default());
    let waiting = keepalived::Status::waiting("for kvip", keepalived::Carried::new());
    let (keepalived, keepalived_in) = watch::channel(waiting);
    let (keepalived_out, wanted) = watch::channel(None);
    let (targets_out, targets) = watch::channel(Targets::new());
    let (status_out, status) = watch::channel(Arc::new(View::default()));
    let (orders, answers, writers) = writers();
    let (unhealthy, unhealthy_in) = watch::channel(Down::new());
    let (checked_out, checked) = watch::channel(check::Targets::new());
    let (haproxy, haproxy_in) = watch::channel(haproxy::Status::default());
    let (haproxy_out, proxies) = watch::channel(None);
    let (macs, macs_in) = watch::channel(Macs::new());
    let (hops, hops_in) = watch::channel(Hops::new());
    let (ways_out, ways) = watch::channel(Ways::new());
    let (peers_out, peers) = watch::channel(BTreeSet::new());
    let (conntrack, conntrack_in) = watch::channel(None);
    let (moves_out, moves) = watch::channel(None);
    let (ruleset, ruleset_in) = watch::channel(Touched::default());
    let inputs = Inputs {
        unhealthy: unhealthy_in,
        macs: macs_in,
        hops: hops_in,
        ruleset: ruleset_in,
        updates: updates_in,
        contact: contact_in,
        facts,
        dead: dead_in,
        keepalived: keepalived_in,
        haproxy: haproxy_in,
        conntrack: conntrack_in,
        answers,
    };
    let outputs = Outputs {
        keepalived: keepalived_out,
        haproxy: haproxy_out,
        targets: targets_out,
        peers: peers_out,
        ways: ways_out,
        moves: moves_out,
        checked: checked_out,
        local: watch::Sender::new(None),
        orders,
        status: status_out,
    };
    #[rustfmt::skip]
    let ends = Ends {
        updates, contact, dead, unhealthy, checked, macs, hops, ways, ruleset, keepalived, haproxy, conntrack, moves, proxies, writers,
        wanted, targets, peers, status,
    };
    (inputs, outputs, ends)
}

pub struct World {
    runtime: tokio::runtime::Runtime,
    root: TempDir,
    pub paths: Paths,
    pub now: Instant,
    pub daemon: Daemon<Simulated, Ledger>,
    host: Simulated,
    ends: Ends,
    lists: u64,
}

impl World {
    /// A freshly booted host: keepalived's ExecStartPre has closed the weight file.
    pub fn new(settings: Settings) -> Self {
        Self::booted(settings, TempDir::new().unwrap(), None)
    }

    /// kvip has been served `snapshot` and turned once.
    pub fn serving() -> Self {
        let mut world = Self::new(settings());
        world.list(snapshot());
        world.turn();
        world
    }

    /// kvip ends and begins anew on this host, at the same instant.
    pub fn restart(self, settings: Settings) -> Self {
        let facts = self.kernel().facts.borrow().clone();
        let table = self.kernel().table.clone();
        let ruleset = self.kernel().ruleset.clone();
        let sync_daemons = self.kernel().sync_daemons.clone();
        let keepalived = self.ends.keepalived.borrow().clone();
        let mut world = Self::booted(settings, self.root, Some(facts));
        world.now = self.now;
        world.kernel().table = table;
        world.kernel().ruleset = ruleset;
        world.kernel().sync_daemons = sync_daemons;
        world.ends.keepalived.send_replace(keepalived);
        world
    }

    fn booted(settings: Settings, root: TempDir, facts_then: Option<HostFacts>) -> Self {
        let paths = Paths::under(root.path());
        std::fs::create_dir_all(&paths.run).unwrap();
        std::fs::create_dir_all(&paths.state).unwrap();
        weight::prepare(&paths, [vrid()]).unwrap();
        let (facts_out, facts_in) = watch::channel(facts_then.unwrap_or_else(facts));
        let (inputs, outputs, ends) = channels(facts_in.clone());
        let host = Simulated::new(facts_out, ends.wanted.clone());
        let ledger = Ledger::new(&paths.state);
        let owned = ledger.load_or_stand_in(&paths);
        let core = Core::new(settings, facts_in.borrow().clone(), owned);
        let file = paths.state.join("snapshot.json");
        let admitted = saved::load(&file).unwrap().map_or_else(Admitted::default, Admitted::saved);
        let daemon = Daemon::new(core, host.clone(), ledger, paths.clone(), file, admitted, inputs, outputs);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { runtime, root, paths, now: Instant::now(), daemon, host, ends, lists: 0 }
    }

    pub fn turn(&mut self) {
        let daemon = &mut self.daemon;
        self.runtime.block_on(async {
            daemon.turn(self.now).await;
            daemon.saved().await;
        });
    }

    /// systemd ends it in order.
    pub fn stop(&mut self) {
        self.runtime.block_on(self.daemon.stop());
    }

    /// Lets `seconds` pass, then turns once.
    pub fn after(&mut self, seconds: u64) {
        self.after_millis(seconds * 1000);
    }

    pub fn after_millis(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.turn();
    }

    /// Turns each second for `seconds`, and probes four times as often, as the loop does.
    pub fn tick(&mut self, seconds: u64) {
        for _ in 0..seconds {
            (0..4).for_each(|_| self.probe());
            self.turn();
        }
    }

    /// The loop's next probe, and the turn that follows where something is not as it should be.
    pub fn probe(&mut self) {
        self.now += Duration::from_millis(250);
        if self.runtime.block_on(self.daemon.probe()) {
            self.turn();
        }
    }

    /// The kernel tells that another hand changed something in the table `inet kvip`.
    pub fn ruleset_touched(&mut self) {
        self.ends.ruleset.send_modify(|touched| touched.times += 1);
    }

    pub fn kernel(&self) -> std::sync::MutexGuard<'_, Kernel> {
        self.host.kernel()
    }

    /// The API server's complete answer.
    pub fn list(&mut self, snapshot: Snapshot) {
        self.lists += 1;
        self.event(snapshot);
        self.confirm();
    }

    /// What the watches told makes this of the cluster's state.
    pub fn event(&mut self, snapshot: Snapshot) {
        let update = Update { snapshot: Arc::new(snapshot), lists: self.lists };
        self.ends.updates.send_replace(Some(update));
    }

    /// The API server confirms now that the state is current.
    pub fn confirm(&mut self) {
        let now = tokio::time::Instant::from_std(self.now);
        self.ends.contact.send_replace(Contact { last_ok: Some(now), problem: None });
    }

    /// What allocators are told, and what is told of this node's settings.
    pub fn ordered(&self) -> (Option<Allocation>, Option<Own>) {
        let writers = &self.ends.writers;
        (writers.allocate.borrow().clone(), writers.own.borrow().clone())
    }

    /// The cluster is followed anew, and nothing is heard of it yet.
    pub fn follow_anew(&mut self) {
        self.ends.contact.send_replace(Contact::default());
    }

    pub fn lose_contact(&mut self, problem: kvip::snapshot::problem::Problem) {
        self.ends.contact.send_modify(|contact| contact.problem = Some(problem));
    }

    pub fn dead(&mut self, nodes: &[&str]) {
        let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        self.ends.dead.send_replace(Dead { nodes, suspended: false });
    }

    /// These of the endpoints that are checked do not answer.
    pub fn unhealthy(&mut self, endpoints: &[&str]) {
        let checked = self.ends.checked.borrow();
        let down = checked.keys().filter(|target| endpoints.contains(&target.address.to_string().as_str()));
        let down: Down = down.map(|target| (target.clone(), Arc::<str>::from("status 503"))).collect();
        drop(checked);
        assert_eq!(down.len(), endpoints.len(), "all of them are checked");
        self.ends.unhealthy.send_replace(down);
    }

    /// The endpoints that are checked.
    pub fn checked(&self) -> Vec<String> {
        self.ends.checked.borrow().keys().map(|target| target.address.to_string()).collect()
    }

    /// HAProxy has done what it was told to, or could not, and is `state`.
    pub fn haproxy_is(&mut self, state: haproxy::State) {
        let tried: BTreeSet<_> =
            self.proxies().map(|config| config.frontends.keys().copied().collect()).unwrap_or_default();
        let frontends = if state == haproxy::State::Active { tried.clone() } else { BTreeSet::default() };
        self.ends.haproxy.send_modify(|status| {
            *status = haproxy::Status { state, frontends, tried, ..haproxy::Status::default() };
        });
    }

    /// Another program has the port of `frontend` on all addresses.
    pub fn haproxy_lacks(&mut self, frontend: Frontend) {
        self.ends.haproxy.send_modify(|status| {
            status.frontends.remove(&frontend);
            status.taken.insert(frontend);
        });
    }

    /// What HAProxy was told.
    pub fn proxies(&self) -> Option<Arc<haproxy::Config>> {
        self.ends.proxies.borrow().clone()
    }

    /// keepalived has read what it was given.
    pub fn keepalived_reads(&mut self) {
        let config = self.wanted().unwrap();
        let instances = config.instances.iter();
        let vips = instances.map(|instance| (instance.vrid, instance.vips.clone())).collect();
        self.ends.keepalived.send_modify(|status| {
            status.state = keepalived::State::Active;
            status.vips = vips;
        });
    }

    /// keepalived is in this state.
    pub fn keepalived_is(&mut self, state: keepalived::State) {
        self.ends.keepalived.send_modify(|status| status.state = state);
    }

    /// VRRP moves the anchor and the VIPs that keepalived runs here.
    pub fn become_holder(&mut self) {
        self.become_holder_of(vrid());
    }

    /// VRRP moves the anchors and the VIPs of one group.
    pub fn become_holder_of(&mut self, vrid: Vrid) {
        let config = self.wanted().unwrap();
        for instance in config.instances.iter().filter(|instance| instance.vrid == vrid) {
            let anchor = keepalived::anchor(vrid, instance.family);
            let all = instance.vips.iter().chain([&anchor]);
            all.for_each(|address| self.add_address(marked(&address.to_string())));
        }
    }

    /// VRRP moves them away again.
    pub fn lose(&mut self, vrid: Vrid) {
        let config = self.wanted().unwrap();
        for instance in config.instances.iter().filter(|instance| instance.vrid == vrid) {
            let anchor = keepalived::anchor(vrid, instance.family);
            let all = instance.vips.iter().chain([&anchor]);
            all.for_each(|address| self.remove_address(&address.to_string()));
        }
    }

    pub fn add_address(&mut self, address: Address) {
        self.kernel().facts.send_modify(|facts| _ = facts.addresses.insert(address));
    }

    pub fn remove_address(&mut self, address: &str) {
        self.kernel().facts.send_modify(|facts| facts.addresses.retain(|here| here.ip != ip(address)));
    }

    /// What keepalived is to run.
    pub fn wanted(&self) -> Option<Config> {
        self.ends.wanted.borrow().clone()
    }

    /// Whether keepalived was told anything since the last time this was asked.
    pub fn keepalived_was_told(&mut self) -> bool {
        let told = self.ends.wanted.has_changed().unwrap();
        self.ends.wanted.mark_unchanged();
        told
    }

    pub fn targets(&self) -> Vec<String> {
        self.ends.targets.borrow().keys().cloned().collect()
    }

    /// What connection tracking is to agree with, if a VIP has moved since the last time this was asked.
    pub fn moves(&mut self) -> Option<Moves> {
        let told = self.ends.moves.has_changed().unwrap();
        let moves = self.ends.moves.borrow_and_update().clone();
        moves.filter(|_| told)
    }

    /// Connection tracking cannot be read.
    pub fn conntrack_fails(&mut self, finding: Option<Finding>) {
        self.ends.conntrack.send_replace(finding);
    }

    /// The nodes whose link-layer addresses are asked for.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        self.ends.peers.borrow().clone()
    }

    /// The pods of other nodes that the way is looked for, with their nodes.
    pub fn ways(&self) -> Vec<String> {
        self.ends.ways.borrow().keys().map(|(node, address)| format!("{node} {address}")).collect()
    }

    pub fn hops(&mut self, hops: Hops) {
        self.ends.hops.send_replace(hops);
    }

    pub fn macs(&mut self, macs: Macs) {
        self.ends.macs.send_replace(macs);
    }

    pub fn status(&self) -> Status {
        self.ends.status.borrow().document(self.now)
    }

    /// What the allocator was told last.
    pub fn allocation(&self) -> Option<Allocation> {
        self.ends.writers.allocate.borrow().clone()
    }

    /// What is to be said of a Service.
    pub fn said(&self, service: &ObjectKey) -> Option<Wanted> {
        self.ends.writers.say.borrow().services.get(service).map(|wanted| (**wanted).clone())
    }

    /// Whether those who write to the cluster were told anything since the last time this was asked.
    pub fn orders(&mut self) -> bool {
        let Writers { allocate, say, own, .. } = &mut self.ends.writers;
        let told = [allocate.has_changed(), say.has_changed(), own.has_changed()];
        allocate.mark_unchanged();
        say.mark_unchanged();
        own.mark_unchanged();
        told.into_iter().any(Result::unwrap)
    }

    pub fn findings(&self) -> Vec<String> {
        self.status().findings.iter().map(ToString::to_string).collect()
    }

    pub fn weight(&self) -> Option<i16> {
        self.weight_of(vrid())
    }

    pub fn weight_of(&self, vrid: Vrid) -> Option<i16> {
        weight::read(&self.paths, vrid).unwrap()
    }

    /// The VIPs on the list on disk.
    pub fn owned(&self) -> Vec<String> {
        Ledger::new(&self.paths.state).load().unwrap().vips.iter().map(ToString::to_string).collect()
    }

    /// The real servers of a virtual server with their weights, `None` when there is no such virtual server.
    pub fn servers(&self, frontend: Frontend) -> Option<Vec<(String, u32)>> {
        let kernel = self.kernel();
        let server = kernel.table.get(&frontend.into())?;
        Some(server.real_servers.iter().map(|(at, real)| (at.to_string(), real.weight)).collect())
    }

    /// Gives a real server connections.
    pub fn connections(&self, frontend: Frontend, at: Backend, count: u32) {
        let mut kernel = self.kernel();
        kernel.table.get_mut(&frontend.into()).unwrap().real_servers.get_mut(&at).unwrap().connections =
            count;
    }

    /// What was asked of the host since the last time this was asked.
    pub fn acts(&self) -> Vec<String> {
        std::mem::take(&mut self.kernel().acts)
    }
}
