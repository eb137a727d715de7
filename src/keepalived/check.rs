//! What `keepalived -t` lets through and keepalived then dies of, or serves wrongly.
//!
//! Owns nothing; pure: it sees a configuration and the host's facts, and never the disk.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{Config, Instance, Unicast};
use crate::model::{Family, Vrid};
use crate::net::HostFacts;

/// Above this number an advert-sending process stalls in the reloads and stops of an instance.
pub const MOST_VIPS: usize = 300;

/// Why a configuration is not given to keepalived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A reload that names it would kill keepalived and leave its addresses behind.
    #[error("VRRP group {vrid}: this host has no interface {interface}")]
    UnknownInterface {
        /// The group.
        vrid: Vrid,
        /// The interface that was asked for.
        interface: String,
    },
    /// The loopback interface sends no adverts.
    #[error("VRRP group {vrid}: interface {interface} is a loopback interface")]
    Loopback {
        /// The group.
        vrid: Vrid,
        /// The interface that was asked for.
        interface: String,
    },
    /// keepalived would go to FAULT.
    #[error("VRRP group {vrid}: unicast source {source_address} is not an address of this host")]
    SourceNotLocal {
        /// The group.
        vrid: Vrid,
        /// The address that was asked for.
        source_address: IpAddr,
    },
    /// Its own adverts would come back.
    #[error("VRRP group {vrid}: unicast peer {peer} is this node itself")]
    PeerIsSelf {
        /// The group.
        vrid: Vrid,
        /// The peer.
        peer: IpAddr,
    },
    /// keepalived would fall back to multicast.
    #[error("VRRP group {vrid}: no unicast peers")]
    NoPeers {
        /// The group.
        vrid: Vrid,
    },
    /// An address in an instance of the other family.
    #[error("VRRP group {vrid}: {address} in its IPv{} instance", family.number())]
    WrongFamily {
        /// The group.
        vrid: Vrid,
        /// The instance's family.
        family: Family,
        /// The address.
        address: IpAddr,
    },
    /// Two instances would fight for it on one host.
    #[error("{vip} is in VRRP group {first} and in group {second}")]
    DuplicateVip {
        /// The address.
        vip: IpAddr,
        /// The group that has it first.
        first: Vrid,
        /// The group that has it too.
        second: Vrid,
    },
    /// 255 is the owner's, who ignores every weight; 0 means leaving.
    #[error("VRRP group {vrid}: priority {priority} is not 1 to 254")]
    Priority {
        /// The group.
        vrid: Vrid,
        /// The priority.
        priority: u8,
    },
    /// VRRPv3 counts centiseconds in 12 bits; kvip allows 10 ms to 10 s.
    #[error("VRRP group {vrid}: an advert each {advert:?} is outside 10ms to 10s")]
    Advert {
        /// The group.
        vrid: Vrid,
        /// The interval.
        advert: Duration,
    },
    /// More than [`MOST_VIPS`].
    #[error("VRRP group {vrid}: {count} VIPs, where {MOST_VIPS} is the most that one group carries")]
    TooManyVips {
        /// The group.
        vrid: Vrid,
        /// How many.
        count: usize,
    },
    /// The same virtual router twice.
    #[error("VRRP group {vrid} has two IPv{} instances", family.number())]
    DuplicateInstance {
        /// The group.
        vrid: Vrid,
        /// The family of both.
        family: Family,
    },
    /// A word of the file would break its form.
    #[error("{what} {word:?} holds a character that keepalived.conf cannot carry")]
    Word {
        /// What it is.
        what: &'static str,
        /// The word.
        word: String,
    },
    /// keepalived's own check said no.
    #[error("keepalived refuses its configuration: {0}")]
    Keepalived(String),
}

/// Whether keepalived may have `config` on a host with these `facts`.
pub fn check(config: &Config, facts: &HostFacts) -> Result<(), Refusal> {
    word("router id", &config.router_id)?;
    for instance in &config.instances {
        numbers(instance)?;
        interface(instance, facts)?;
        vips(instance)?;
        if let Some(wanted) = &instance.unicast {
            unicast(instance, wanted, facts)?;
        }
    }
    duplicates(&config.instances)
}

fn numbers(instance: &Instance) -> Result<(), Refusal> {
    let (vrid, priority, advert) = (instance.vrid, instance.priority, instance.advert);
    if !(1..=254).contains(&priority) {
        return Err(Refusal::Priority { vrid, priority });
    }
    if !(Duration::from_millis(10)..=Duration::from_secs(10)).contains(&advert) {
        return Err(Refusal::Advert { vrid, advert });
    }
    Ok(())
}

fn interface(instance: &Instance, facts: &HostFacts) -> Result<(), Refusal> {
    let (vrid, interface) = (instance.vrid, instance.interface.clone());
    word("interface", &interface)?;
    match facts.links.get(&interface) {
        None => Err(Refusal::UnknownInterface { vrid, interface }),
        Some(link) if link.loopback => Err(Refusal::Loopback { vrid, interface }),
        Some(_) => Ok(()),
    }
}

fn vips(instance: &Instance) -> Result<(), Refusal> {
    let (vrid, count) = (instance.vrid, instance.vips.len());
    if count > MOST_VIPS {
        return Err(Refusal::TooManyVips { vrid, count });
    }
    instance.vips.iter().try_for_each(|vip| of_family(instance, *vip))
}

fn unicast(instance: &Instance, wanted: &Unicast, facts: &HostFacts) -> Result<(), Refusal> {
    let (vrid, source_address) = (instance.vrid, wanted.source);
    of_family(instance, source_address)?;
    if !facts.has(source_address) {
        return Err(Refusal::SourceNotLocal { vrid, source_address });
    }
    if wanted.peers.is_empty() {
        return Err(Refusal::NoPeers { vrid });
    }
    for peer in wanted.peers.iter().copied() {
        of_family(instance, peer)?;
        if peer == source_address || facts.has(peer) {
            return Err(Refusal::PeerIsSelf { vrid, peer });
        }
    }
    Ok(())
}

fn of_family(instance: &Instance, address: IpAddr) -> Result<(), Refusal> {
    let (vrid, family) = (instance.vrid, instance.family);
    if Family::of(address) == family { Ok(()) } else { Err(Refusal::WrongFamily { vrid, family, address }) }
}

fn duplicates(instances: &[Instance]) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    let mut holders = std::collections::BTreeMap::new();
    for Instance { vrid, family, vips, .. } in instances {
        if !seen.insert((*vrid, *family)) {
            return Err(Refusal::DuplicateInstance { vrid: *vrid, family: *family });
        }
        for vip in vips {
            if let Some(first) = holders.insert(*vip, *vrid) {
                return Err(Refusal::DuplicateVip { vip: *vip, first, second: *vrid });
            }
        }
    }
    Ok(())
}

/// keepalived.conf(5): `#` and `!` open comments, braces open blocks, `$`, `@` and `~` are replaced.
fn word(what: &'static str, word: &str) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Ok(());
    }
    Err(Refusal::Word { what, word: word.to_owned() })
}

#[cfg(test)]
mod tests;
