//! The schedulers of IPVS, and the flags that some of them have.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ipvs::model::{FLAG_SCHED_1, FLAG_SCHED_2};

/// An IPVS scheduler, by its kernel name (ipvsadm(8), `--scheduler`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Locality-based least connections.
    Lblc,
    /// Locality-based least connections with replication.
    Lblcr,
    /// Destination hashing.
    Dh,
    /// Source hashing.
    Sh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Weighted failover: the highest weight takes all.
    Fo,
    /// Weighted overflow: the highest weight takes as many connections as its weight says, then the next.
    Ovf,
    /// Maglev hashing.
    Mh,
    /// Weighted random twos choice.
    Twos,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Lblc,
        Self::Lblcr,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Mh,
        Self::Twos,
    ];

    /// The kernel's name, as in `ip_vs_wlc`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Dh => "dh",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Mh => "mh",
            Self::Twos => "twos",
        }
    }

    /// The scheduler of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheduler| scheduler.name() == name)
    }
}

impl Scheduler {
    /// Whether it goes by weights, other than that a weight of 0 gets no connections.
    pub fn weighs(self) -> bool {
        !matches!(self, Self::Rr | Self::Lc | Self::Dh)
    }

    /// Those of `flags` that are its own, as IPVS has them.
    pub fn bits(self, flags: &BTreeSet<SchedulerFlag>) -> u32 {
        flags.iter().filter(|flag| flag.scheduler() == self).fold(0, |bits, flag| bits | flag.bit())
    }
}

/// A flag of a scheduler, by the name that ipvsadm(8) has for it, `--sched-flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SchedulerFlag {
    /// Another real server takes what one without weight cannot.
    ShFallback,
    /// The client's port is hashed with its address.
    ShPort,
    /// Another real server takes what one without weight cannot.
    MhFallback,
    /// The client's port is hashed with its address.
    MhPort,
}

impl SchedulerFlag {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ShFallback, Self::ShPort, Self::MhFallback, Self::MhPort];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ShFallback => "sh-fallback",
            Self::ShPort => "sh-port",
            Self::MhFallback => "mh-fallback",
            Self::MhPort => "mh-port",
        }
    }

    /// The scheduler that has it.
    pub fn scheduler(self) -> Scheduler {
        match self {
            Self::ShFallback | Self::ShPort => Scheduler::Sh,
            Self::MhFallback | Self::MhPort => Scheduler::Mh,
        }
    }

    fn bit(self) -> u32 {
        match self {
            Self::ShFallback | Self::MhFallback => FLAG_SCHED_1,
            Self::ShPort | Self::MhPort => FLAG_SCHED_2,
        }
    }

    /// The flags of a list with commas; `None` when one of the names is no flag's.
    pub fn list(text: &str) -> Option<BTreeSet<Self>> {
        let names = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
        names.map(|name| Self::ALL.into_iter().find(|flag| flag.name() == name)).collect()
    }

    /// The list of `flags`, as it would be written.
    pub fn listed(flags: &BTreeSet<Self>) -> String {
        flags.iter().map(|flag| flag.name()).collect::<Vec<_>>().join(",")
    }
}
