//! A simulated host: an IPVS table, a ruleset and addresses in memory, which can refuse and which counts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kvip::host::{Failure, Host};
use kvip::ipvs::{Command, Key, Service, SyncCommand, SyncDaemon, Table, Timeouts, VirtualServer};
use kvip::keepalived::Config;
use kvip::model::{Family, Finding};
use kvip::net::{Address, HostFacts, PolicyRoute};
use kvip::nft::firewall::Firewall;
use kvip::nft::{self, Ruleset};
use kvip::owned::Owned;
use tokio::sync::watch;

/// What the simulated kernel has and was asked.
#[derive(Debug)]
pub struct Kernel {
    /// All virtual servers, foreign ones among them.
    pub table: Table,
    /// The fingerprint of the table `inet kvip`.
    pub ruleset: Option<String>,
    /// The ruleset that was written last.
    pub written: Ruleset,
    /// The addresses, as the network task tells them.
    pub facts: watch::Sender<HostFacts>,
    /// What keepalived is wanted to run at this moment.
    pub wanted: watch::Receiver<Option<Config>>,
    /// How long IPVS remembers connections.
    pub timeouts: Timeouts,
    /// The sync daemons that run.
    pub sync_daemons: BTreeSet<SyncDaemon>,
    /// The kernel's settings that can be read.
    pub sysctls: BTreeMap<String, String>,
    /// Other programs' tables, as nft lists them.
    pub rules: String,
    /// IPVS refuses every change.
    pub ipvs_refuses: bool,
    /// The scheduler that the kernel lacks.
    pub lacks_scheduler: Option<&'static str>,
    /// What can be no real server.
    pub impossible: Option<IpAddr>,
    /// The family for which there are no policy rules and routes.
    pub unroutable: Option<Family>,
    /// IPVS cannot even be read.
    pub ipvs_is_gone: bool,
    /// nft neither lists nor takes a table.
    pub nft_refuses: bool,
    /// Everything that was asked for and may have changed something, in order, refused or not.
    pub acts: Vec<String>,
    /// How often something was read.
    pub reads: usize,
    /// Acts that were done after keepalived had a configuration to run.
    pub acts_after_switch: usize,
}

impl Kernel {
    /// Why a command fails, and whether what it asks for is at fault.
    fn verdict(&self, command: &Command) -> Result<(), (&'static str, bool)> {
        match command {
            _ if self.ipvs_refuses => Err(("no such module", false)),
            Command::NewService(_, service) | Command::SetService(_, service)
                if self.lacks_scheduler == Some(&service.scheduler) =>
            {
                Err(("have it: no such scheduler", true))
            }
            Command::NewDest(_, backend, _) if self.impossible == Some(backend.address) => {
                Err(("have it: invalid argument", true))
            }
            Command::NewDest(key, ..) | Command::SetDest(key, ..) if !self.table.contains_key(key) => {
                Err(("no such virtual server", false))
            }
            _ => Ok(()),
        }
    }

    fn note(&mut self, act: String) {
        self.acts_after_switch += usize::from(self.wanted.borrow().is_some());
        self.acts.push(act);
    }
}

/// The daemon's and the test's hold on the same kernel.
#[derive(Debug, Clone)]
pub struct Simulated(Arc<Mutex<Kernel>>);

impl Simulated {
    pub fn new(facts: watch::Sender<HostFacts>, wanted: watch::Receiver<Option<Config>>) -> Self {
        Self(Arc::new(Mutex::new(Kernel {
            table: Table::new(),
            ruleset: None,
            written: Ruleset::default(),
            facts,
            wanted,
            timeouts: Timeouts::default(),
            sync_daemons: BTreeSet::new(),
            sysctls: BTreeMap::new(),
            rules: String::new(),
            ipvs_refuses: false,
            lacks_scheduler: None,
            impossible: None,
            unroutable: None,
            ipvs_is_gone: false,
            nft_refuses: false,
            acts: Vec::new(),
            reads: 0,
            acts_after_switch: 0,
        })))
    }

    pub fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap()
    }
}

/// What the kernel tells of `server`: of last weights, those that still count.
fn dumped(server: &VirtualServer) -> VirtualServer {
    let mut server = server.clone();
    for (backend, last) in &mut server.added {
        *last = server.real_servers[backend].weight;
    }
    server
}

impl Host for Simulated {
    async fn table(&mut self, owned: &Owned) -> Result<Table, Finding> {
        let mut kernel = self.kernel();
        kernel.reads += 1;
        if kernel.ipvs_is_gone {
            return Err(Finding::new("IPVS", "the kernel has no ip_vs"));
        }
        let ours = kernel.table.iter().filter(|(key, _)| owned.has(key));
        Ok(ours.map(|(key, server)| (*key, dumped(server))).collect())
    }

    async fn marks(&mut self) -> Result<BTreeSet<(Family, u32)>, Finding> {
        let kernel = self.kernel();
        if kernel.ipvs_is_gone {
            return Err(Finding::new("IPVS", "the kernel has no ip_vs"));
        }
        Ok(kernel.table.keys().filter_map(Key::mark).collect())
    }

    async fn servers(&mut self, keys: &BTreeSet<Key>, _known: &Table) -> Result<Table, Finding> {
        let mut kernel = self.kernel();
        kernel.reads += 1;
        if kernel.ipvs_is_gone {
            return Err(Finding::new("IPVS", "the kernel has no ip_vs"));
        }
        let those = kernel.table.iter().filter(|(key, _)| keys.contains(key));
        Ok(those.map(|(key, server)| (*key, dumped(server))).collect())
    }

    async fn has(&mut self, expected: &[(Key, &Service)]) -> Result<bool, Finding> {
        let kernel = self.kernel();
        if kernel.ipvs_is_gone {
            return Err(Finding::new("IPVS", "the kernel has no ip_vs"));
        }
        let here = |key, want: &Service| kernel.table.get(key).is_some_and(|server| server.service == *want);
        Ok(expected.iter().all(|(key, want)| here(key, want)))
    }

    async fn has_real_servers(&mut self, expected: &[(Key, &VirtualServer)]) -> Result<bool, Finding> {
        let kernel = self.kernel();
        if kernel.ipvs_is_gone {
            return Err(Finding::new("IPVS", "the kernel has no ip_vs"));
        }
        let here = |(key, want): &(Key, &VirtualServer)| {
            kernel.table.get(key).is_some_and(|server| server.same_as(want))
        };
        Ok(expected.iter().all(here))
    }

    async fn timeouts(&mut self) -> Result<Timeouts, Finding> {
        Ok(self.kernel().timeouts)
    }

    async fn set_timeouts(&mut self, change: Timeouts) -> Result<(), Finding> {
        let mut kernel = self.kernel();
        kernel.note(format!("set the timeouts {change}"));
        let Timeouts { tcp, tcp_fin, udp } = kernel.timeouts;
        kernel.timeouts = Timeouts {
            tcp: change.tcp.or(tcp),
            tcp_fin: change.tcp_fin.or(tcp_fin),
            udp: change.udp.or(udp),
        };
        Ok(())
    }

    async fn sync_daemons(&mut self) -> Result<BTreeSet<SyncDaemon>, Finding> {
        Ok(self.kernel().sync_daemons.clone())
    }

    async fn change_sync(&mut self, command: &SyncCommand) -> Result<(), Finding> {
        let mut kernel = self.kernel();
        kernel.note(command.to_string());
        match command {
            SyncCommand::Start(daemon) => kernel.sync_daemons.insert(daemon.clone()),
            SyncCommand::Stop(daemon) => kernel.sync_daemons.remove(daemon),
        };
        Ok(())
    }

    async fn sysctls(&mut self, names: &[String]) -> BTreeMap<String, String> {
        let kernel = self.kernel();
        let known = names.iter().filter_map(|name| kernel.sysctls.get_key_value(name));
        known.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn firewall(&mut self) -> BoxFuture<'static, Result<Firewall, Finding>> {
        let mut firewall = Firewall::default();
        firewall.add(&self.kernel().rules);
        std::future::ready(Ok(firewall)).boxed()
    }

    async fn change_table(&mut self, commands: &[Command]) -> Vec<Failure> {
        let mut kernel = self.kernel();
        let mut failed = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            kernel.note(command.to_string());
            match kernel.verdict(command) {
                Ok(()) => command.apply(&mut kernel.table),
                Err((text, refused)) => {
                    failed.push(Failure { index, finding: Finding::new("IPVS", text), refused });
                }
            }
        }
        failed
    }

    async fn ruleset(&mut self) -> Result<Option<String>, Finding> {
        let mut kernel = self.kernel();
        kernel.reads += 1;
        if kernel.nft_refuses {
            return Err(Finding::new("nftables", "no such program"));
        }
        Ok(kernel.ruleset.clone())
    }

    async fn set_ruleset(&mut self, ruleset: &Ruleset) -> Result<String, Finding> {
        let mut kernel = self.kernel();
        kernel.note("write the ruleset".into());
        if kernel.nft_refuses {
            return Err(Finding::new("nftables", "no such program"));
        }
        kernel.written = ruleset.clone();
        let fingerprint = nft::fingerprint(ruleset);
        kernel.ruleset = Some(fingerprint.clone());
        Ok(fingerprint)
    }

    async fn remove_address(&mut self, address: &Address) -> Result<(), Finding> {
        let mut kernel = self.kernel();
        kernel.note(format!("remove address {}", address.ip));
        kernel.facts.send_modify(|facts| _ = facts.addresses.remove(address));
        Ok(())
    }

    async fn add_policy_route(&mut self, route: &PolicyRoute) -> Result<bool, Finding> {
        let mut kernel = self.kernel();
        kernel.note(format!("add {route}"));
        if kernel.unroutable == Some(route.family) {
            return Err(Finding::new("routing", format!("add {route}: permission denied")));
        }
        let mut is_new = false;
        kernel.facts.send_modify(|facts| is_new = facts.policy_routes.insert(*route));
        Ok(is_new)
    }

    async fn remove_policy_route(&mut self, route: &PolicyRoute) -> Result<(), Finding> {
        let mut kernel = self.kernel();
        kernel.note(format!("remove {route}"));
        kernel.facts.send_modify(|facts| _ = facts.policy_routes.remove(route));
        Ok(())
    }
}
