//! Why a Service does not get an address, in words for whoever asked.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;

use super::claim::Port;
use super::words;
use crate::model::{Family, Finding, ObjectKey};

/// Why one address that a Service asks for is not given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// No pool that it may use has addresses of that family.
    NoPool {
        /// The family.
        family: Family,
        /// The pool that it names, if it names one.
        named: Option<String>,
        /// The pools that it may use.
        usable: Vec<String>,
    },
    /// All addresses of its pools are used.
    Exhausted {
        /// The family.
        family: Family,
        /// How full each pool is.
        pools: Vec<PoolUse>,
    },
    /// The address is given to nobody.
    Reserved {
        /// The address asked for.
        address: IpAddr,
        /// What it is: `is the address of node node-a`.
        why: String,
    },
    /// The address lies in no pool that the Service may use.
    OutsidePools {
        /// The address asked for.
        address: IpAddr,
        /// The pools that it may use.
        usable: Vec<String>,
    },
    /// The address is of a family that the Service does not have.
    OtherFamily(IpAddr),
    /// The cluster, or another program, has an IPAddress or Lease for it.
    Foreign(IpAddr),
    /// Other Services have the address.
    Taken {
        /// The address asked for.
        address: IpAddr,
        /// Who has it.
        by: BTreeSet<ObjectKey>,
    },
    /// Others share the address by the same key, and have some of the same ports.
    PortsTaken {
        /// The address asked for.
        address: IpAddr,
        /// The ports that both want.
        ports: BTreeSet<Port>,
        /// Who has them.
        by: BTreeSet<ObjectKey>,
    },
    /// The address was given back a short while ago.
    Resting {
        /// The address asked for.
        address: IpAddr,
        /// Who had it.
        last: BTreeSet<ObjectKey>,
        /// Until when it rests, in seconds since 1970.
        until: i64,
    },
}

/// How full a pool is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolUse {
    /// The pool's name.
    pub name: String,
    /// Its addresses of the family, as `first-last`.
    pub ranges: Vec<String>,
    /// How many these are.
    pub size: u128,
    /// How many Services have.
    pub used: usize,
    /// How many rest until no node can serve them for the Service that had them.
    pub resting: usize,
}

impl fmt::Display for PoolUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ranges, size, used, resting } = self;
        write!(f, "pool {name} ({}): {used} of {size} in use", ranges.join(", "))?;
        if *resting > 0 {
            write!(f, ", {resting} given back and still resting")?;
        }
        Ok(())
    }
}

impl PoolUse {
    /// As [`fmt::Display`], for a pool without a free address: what no Service has is not to be given.
    fn when_full(&self) -> String {
        let others = self.size.saturating_sub((self.used + self.resting) as u128);
        if others > 0 { format!("{self}, {others} not to be given") } else { self.to_string() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPool { family, named: Some(name), usable } => {
                write!(f, "no pool {name} with IPv{} addresses for it; {}", family.number(), may_use(usable))
            }
            Self::NoPool { family, named: None, usable } => {
                write!(f, "no pool gives IPv{} addresses unasked; {}", family.number(), may_use(usable))
            }
            Self::Exhausted { family, pools } => {
                write!(
                    f,
                    "no IPv{} address is free: {}",
                    family.number(),
                    words::list(pools.iter().map(PoolUse::when_full))
                )
            }
            Self::Reserved { address, why } => write!(f, "{address} cannot be given: it {why}"),
            Self::OutsidePools { address, usable } => {
                write!(f, "{address} lies in no pool of its own; {}", may_use(usable))
            }
            Self::OtherFamily(address) => {
                write!(
                    f,
                    "{address} cannot be given: the Service is not of family IPv{}",
                    Family::of(*address).number()
                )
            }
            Self::Foreign(address) => write!(f, "{address} belongs to the cluster or to another program"),
            Self::Taken { address, by } => write!(f, "{address} is in use by {}", words::list(by)),
            Self::PortsTaken { address, ports, by } => {
                write!(f, "{} of the shared {address} is in use by {}", words::ports(ports), words::list(by))
            }
            Self::Resting { address, last, until } => {
                let until =
                    Timestamp::from_second(*until).map_or_else(|_| until.to_string(), |at| at.to_string());
                write!(f, "{address} rests until {until}: {} gave it back", words::list(last))
            }
        }
    }
}

fn may_use(pools: &[String]) -> String {
    if pools.is_empty() { "it may use none".into() } else { format!("it may use {}", pools.join(", ")) }
}

impl Refusal {
    /// What to do about it.
    pub fn mend(&self) -> Option<String> {
        Some(match self {
            Self::NoPool { .. } => {
                "add such a pool in [[pools]], or name one in the annotation kvip.io/pool; selectors of pools and \
                 [[tenants]] say who may use which"
                    .into()
            }
            Self::Exhausted { .. } => "add addresses to the pool, or delete Services that need none".into(),
            Self::Reserved { .. } | Self::OtherFamily(_) | Self::Taken { .. } => "ask for another address".into(),
            Self::OutsidePools { .. } => "ask for an address of one of them, or add this one to a pool".into(),
            Self::Foreign(address) => format!("kubectl get ipaddress {address} -o yaml says whose it is"),
            Self::PortsTaken { .. } => "sharers need distinct ports".into(),
            Self::Resting { .. } => return None,
        })
    }

    /// The finding on `service` that it is.
    pub fn finding(&self, service: &ObjectKey) -> Finding {
        Finding { mend: self.mend(), ..Finding::new(service, self.to_string()) }
    }
}
