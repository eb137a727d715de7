//! The host that kvip changes: the kernel's, and in the tests a simulated one.

use std::collections::BTreeSet;
use std::future::Future;

use crate::ipvs::{Client, Command, Key, Table};
use crate::model::Finding;
use crate::net::{self, Address, PolicyRoute};
use crate::nft::{self, Ruleset};
use crate::owned::Owned;

/// What the daemon does to its host beside keepalived. Each error is a finding: what failed and how to mend it.
pub trait Host: Send {
    /// Reads the virtual servers that are `owned`.
    fn table(&mut self, owned: &Owned) -> impl Future<Output = Result<Table, Finding>> + Send;

    /// Reads some virtual servers again; one that is gone is missing.
    fn servers(
        &mut self,
        keys: &BTreeSet<Key>,
        known: &Table,
    ) -> impl Future<Output = Result<Table, Finding>> + Send;

    /// Changes IPVS; the commands that failed come back by their index.
    fn change_table(&mut self, commands: &[Command]) -> impl Future<Output = Vec<(usize, Finding)>> + Send;

    /// A fingerprint of the table `inet kvip` as it is now, `None` when there is none.
    fn ruleset(&mut self) -> impl Future<Output = Result<Option<String>, Finding>> + Send;

    /// Replaces the table `inet kvip`; returns its new fingerprint.
    fn set_ruleset(&mut self, ruleset: &Ruleset) -> impl Future<Output = Result<String, Finding>> + Send;

    /// Takes an address off its interface.
    fn remove_address(&mut self, address: &Address) -> impl Future<Output = Result<(), Finding>> + Send;

    /// Adds a policy rule or route.
    fn add_policy_route(&mut self, route: &PolicyRoute) -> impl Future<Output = Result<(), Finding>> + Send;

    /// Removes a policy rule or route of kvip's.
    fn remove_policy_route(
        &mut self,
        route: &PolicyRoute,
    ) -> impl Future<Output = Result<(), Finding>> + Send;
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
}

impl Host for Kernel {
    async fn table(&mut self, owned: &Owned) -> Result<Table, Finding> {
        let read = self.ipvs()?.table(&|key| owned.has(key));
        read.map_err(|error| {
            self.ipvs = None;
            problem("IPVS", &error)
        })
    }

    async fn servers(&mut self, keys: &BTreeSet<Key>, known: &Table) -> Result<Table, Finding> {
        let read = self.ipvs()?.servers(keys, known);
        read.map_err(|error| {
            self.ipvs = None;
            problem("IPVS", &error)
        })
    }

    async fn change_table(&mut self, commands: &[Command]) -> Vec<(usize, Finding)> {
        if commands.is_empty() {
            return Vec::new();
        }
        match self.ipvs() {
            Ok(client) => {
                let failed = client.apply(commands);
                failed.into_iter().map(|(index, error)| (index, problem("IPVS", &error))).collect()
            }
            Err(finding) => (0..commands.len()).map(|index| (index, finding.clone())).collect(),
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

    async fn remove_address(&mut self, address: &Address) -> Result<(), Finding> {
        net::remove_address(address).await.map_err(|error| problem(&address.link, &error))
    }

    async fn add_policy_route(&mut self, route: &PolicyRoute) -> Result<(), Finding> {
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

/// An error of this host as a finding.
fn problem(subject: &str, error: &dyn std::error::Error) -> Finding {
    Finding::new(subject, error.to_string())
}
