//! The host that kvip changes: the kernel's, and in the tests a simulated one.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::ipvs::{
    self, Client, Command, Key, Service, SyncCommand, SyncDaemon, Table, Timeouts, VirtualServer,
};
use crate::model::{Family, Finding};
use crate::net::{self, Address, PolicyRoute};
use crate::nft::firewall::Firewall;
use crate::nft::{self, Ruleset};
use crate::owned::Owned;
use crate::sysctl;

/// What the daemon does to its host beside keepalived. Each error is a finding: what failed and how to mend it.
pub trait Host: Send {
    /// Reads the virtual servers that are `owned`.
    fn table(&mut self, owned: &Owned) -> impl Future<Output = Result<Table, Finding>> + Send;

    /// Reads the firewall marks by which there are virtual servers, whosever.
    fn marks(&mut self) -> impl Future<Output = Result<BTreeSet<(Family, u32)>, Finding>> + Send;

    /// Reads some virtual servers again; one that is gone is missing.
    fn servers(
        &mut self,
        keys: &BTreeSet<Key>,
        known: &Table,
    ) -> impl Future<Output = Result<Table, Finding>> + Send;

    /// Whether these virtual servers are there as they are expected; real servers are not looked at.
    fn has(&mut self, expected: &[(Key, &Service)]) -> impl Future<Output = Result<bool, Finding>> + Send;

    /// Whether these virtual servers have the real servers that they are expected to have.
    fn has_real_servers(
        &mut self,
        expected: &[(Key, &VirtualServer)],
    ) -> impl Future<Output = Result<bool, Finding>> + Send;

    /// Changes IPVS; returns what failed, in the order of the commands.
    fn change_table(&mut self, commands: &[Command]) -> impl Future<Output = Vec<Failure>> + Send;

    /// How long IPVS remembers connections in which nothing moves.
    fn timeouts(&mut self) -> impl Future<Output = Result<Timeouts, Finding>> + Send;

    /// Sets those that are given.
    fn set_timeouts(&mut self, change: Timeouts) -> impl Future<Output = Result<(), Finding>> + Send;

    /// IPVS's sync daemons that run.
    fn sync_daemons(&mut self) -> impl Future<Output = Result<BTreeSet<SyncDaemon>, Finding>> + Send;

    /// Starts or stops a sync daemon.
    fn change_sync(&mut self, command: &SyncCommand) -> impl Future<Output = Result<(), Finding>> + Send;

    /// The kernel's settings of these names; what cannot be read is left out.
    fn sysctls(&mut self, names: &[String]) -> impl Future<Output = BTreeMap<String, String>> + Send;

    /// A fingerprint of the table `inet kvip` as it is now, `None` when there is none.
    fn ruleset(&mut self) -> impl Future<Output = Result<Option<String>, Finding>> + Send;

    /// Replaces the table `inet kvip`; returns its new fingerprint.
    fn set_ruleset(&mut self, ruleset: &Ruleset) -> impl Future<Output = Result<String, Finding>> + Send;

    /// What other programs' rules let in. May take seconds, and nothing else of the host waits for it.
    fn firewall(&mut self) -> BoxFuture<'static, Result<Firewall, Finding>>;

    /// Takes an address off its interface.
    fn remove_address(&mut self, address: &Address) -> impl Future<Output = Result<(), Finding>> + Send;

    /// Adds a policy rule or route; `false` when it was there.
    fn add_policy_route(&mut self, route: &PolicyRoute)
    -> impl Future<Output = Result<bool, Finding>> + Send;

    /// Removes a policy rule or route of kvip's.
    fn remove_policy_route(
        &mut self,
        route: &PolicyRoute,
    ) -> impl Future<Output = Result<(), Finding>> + Send;
}

/// A change of IPVS that was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which command it is of those that were to be carried out.
    pub index: usize,
    /// Why.
    pub finding: Finding,
    /// What it asks for is at fault, so that others may go on; otherwise the host is, or what is known of it.
    pub refused: bool,
}

/// The kernel that this process runs on.
#[derive(Default)]
pub struct Kernel {
    ipvs: Option<Client>,
    /// What was written into the table `inet kvip` last, unless it is known to have changed since.
    ruleset: Option<Ruleset>,
}

impl Kernel {
    /// The IPVS client, opened when first needed and after each failure to read.
    fn ipvs(&mut self) -> Result<&mut Client, Finding> {
        if self.ipvs.is_none() {
            self.ipvs = Some(Client::open().map_err(|error| problem("IPVS", &error))?);
        }
        Ok(self.ipvs.as_mut().expect("opened above"))
    }

    fn ask_ipvs<T>(&mut self, ask: impl FnOnce(&mut Client) -> Result<T, ipvs::Error>) -> Result<T, Finding> {
        ask(self.ipvs()?).map_err(|error| {
            self.ipvs = None;
            problem("IPVS", &error)
        })
    }
}

impl Host for Kernel {
    async fn table(&mut self, owned: &Owned) -> Result<Table, Finding> {
        self.ask_ipvs(|client| client.table(&|key| owned.has(key)))
    }

    async fn marks(&mut self) -> Result<BTreeSet<(Family, u32)>, Finding> {
        self.ask_ipvs(Client::marks)
    }

    async fn servers(&mut self, keys: &BTreeSet<Key>, known: &Table) -> Result<Table, Finding> {
        self.ask_ipvs(|client| client.servers(keys, known))
    }

    async fn has(&mut self, expected: &[(Key, &Service)]) -> Result<bool, Finding> {
        self.ask_ipvs(|client| client.has(expected))
    }

    async fn has_real_servers(&mut self, expected: &[(Key, &VirtualServer)]) -> Result<bool, Finding> {
        self.ask_ipvs(|client| client.has_real_servers(expected))
    }

    async fn timeouts(&mut self) -> Result<Timeouts, Finding> {
        self.ask_ipvs(Client::timeouts)
    }

    async fn set_timeouts(&mut self, change: Timeouts) -> Result<(), Finding> {
        self.ask_ipvs(|client| client.set_timeouts(change))
    }

    async fn sync_daemons(&mut self) -> Result<BTreeSet<SyncDaemon>, Finding> {
        self.ask_ipvs(Client::sync_daemons)
    }

    async fn change_sync(&mut self, command: &SyncCommand) -> Result<(), Finding> {
        self.ask_ipvs(|client| client.change_sync(command))
    }

    async fn sysctls(&mut self, names: &[String]) -> BTreeMap<String, String> {
        sysctl::read(names)
    }

    async fn change_table(&mut self, commands: &[Command]) -> Vec<Failure> {
        if commands.is_empty() {
            return Vec::new();
        }
        match self.ipvs() {
            Ok(client) => client.apply(commands).iter().map(failure).collect(),
            Err(finding) => {
                let failure = |index| Failure { index, finding: finding.clone(), refused: false };
                (0..commands.len()).map(failure).collect()
            }
        }
    }

    async fn ruleset(&mut self) -> Result<Option<String>, Finding> {
        let installed = blocking(nft::client::installed).await?;
        // Only a table that is as it was written is changed; any other is written whole.
        self.ruleset.take_if(|have| installed.as_ref() != Some(&nft::fingerprint(have)));
        Ok(installed)
    }

    async fn set_ruleset(&mut self, ruleset: &Ruleset) -> Result<String, Finding> {
        let (have, want) = (self.ruleset.take(), ruleset.clone());
        let written = blocking(move || match have {
            Some(have) => nft::client::change(&have, &want),
            None => nft::client::apply(&want),
        });
        let fingerprint = written.await?;
        self.ruleset = Some(ruleset.clone());
        Ok(fingerprint)
    }

    fn firewall(&mut self) -> BoxFuture<'static, Result<Firewall, Finding>> {
        blocking(nft::client::firewall).boxed()
    }

    async fn remove_address(&mut self, address: &Address) -> Result<(), Finding> {
        net::remove_address(address).await.map_err(|error| problem(&address.link, &error))
    }

    async fn add_policy_route(&mut self, route: &PolicyRoute) -> Result<bool, Finding> {
        net::add_policy_route(route).await.map_err(|error| problem("routing", &error))
    }

    async fn remove_policy_route(&mut self, route: &PolicyRoute) -> Result<(), Finding> {
        net::remove_policy_route(route).await.map_err(|error| problem("routing", &error))
    }
}

/// Runs nft without holding up the runtime.
async fn blocking<T, F>(work: F) -> Result<T, Finding>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, nft::client::Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| problem("nftables", &error)),
        Err(error) => Err(Finding::new("nftables", format!("the task that runs nft died: {error}"))),
    }
}

fn failure((index, error): &(usize, ipvs::Error)) -> Failure {
    Failure { index: *index, finding: problem("IPVS", error), refused: error.is_the_commands() }
}

/// An error of this host as a finding.
fn problem(subject: &str, error: &dyn std::error::Error) -> Finding {
    Finding::new(subject, error.to_string())
}
