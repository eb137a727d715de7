//! What the kernel refuses to make of single Services: told, left alone until the next audit, and in nobody's way.
//!
//! Pure. A scheduler that the kernel lacks, say, or an address that can be no real server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::derive::Desired;
use crate::ipvs::{Command, Key, Table};
use crate::model::{Backend, Finding, Frontend};
use crate::nft::Ruleset;

/// By virtual server and real server what the kernel refuses of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(BTreeMap<(Key, Option<Backend>), Finding>);

impl Refusals {
    /// Takes note of a refusal, as a finding on whose behalf it was asked for.
    pub fn note(&mut self, command: &Command, finding: &Finding, desired: &Desired) {
        let mut finding = finding.clone();
        if let Some(owner) = desired.owner_of(command.key()) {
            finding = Finding {
                subject: owner.to_string(),
                text: format!("the kernel refuses to {}", finding.text),
                ..finding
            };
        }
        self.0.insert((*command.key(), command.backend().copied()), finding);
    }

    /// Whether the virtual server `key` was refused, so that there is none of it in `table`.
    pub fn lacks(&self, key: &Key, table: Option<&Table>) -> bool {
        self.0.contains_key(&(*key, None)) && !table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether `command` would be refused again.
    pub fn covers(&self, command: &Command, table: Option<&Table>) -> bool {
        !self.0.is_empty() && !command.removes() && (self.names(command) || self.lacks(command.key(), table))
    }

    /// Whether something of what `command` is about was refused.
    pub fn names(&self, command: &Command) -> bool {
        self.0.contains_key(&(*command.key(), command.backend().copied()))
    }

    /// The virtual servers, and real servers of one, of which something was refused.
    pub fn subjects(&self) -> BTreeSet<(Key, Option<Backend>)> {
        self.0.keys().copied().collect()
    }

    /// Takes the frontends that were refused out of `ruleset`: the host's own programs must not answer in their place.
    pub fn close(&self, ruleset: &mut Ruleset, table: Option<&Table>) {
        let here = |frontend: &Frontend| !self.lacks(&(*frontend).into(), table);
        ruleset.frontends.retain(here);
        ruleset.steering.inward.retain(here);
    }

    /// Whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The VIPs of which something was refused.
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        self.0.keys().filter_map(|(key, _)| Some(key.frontend()?.vip)).collect()
    }

    /// What is refused.
    pub fn findings(&self) -> Vec<Finding> {
        self.0.values().cloned().collect()
    }
}
