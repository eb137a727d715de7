//! The bits of the firewall mark that are kvip's, and what it writes in them for mode dsr.
//!
//! Pure. The highest of the bits steers a packet into this host's own stack although the VIP is not here; it is taken off
//! before IPVS looks. The lowest is the tier, and those between hold the frontend's number, so that each frontend has two
//! virtual servers by mark of its own: the one for what peers hand on, and the one for clients on this node. Other
//! programs' bits are never set: IPVS compares the whole mark, so a frontend's mark is written whole.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::model::Frontend;

/// Fewer bits could number no frontends.
const FEWEST: u32 = 3;

/// The bits of the mark that are kvip's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkBits(u32);

/// The marks of one frontend, without the steering bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Marks {
    /// Of what a peer hands on: only pods on this node take it.
    pub peers: u32,
    /// Of what clients on this node send: all pods take it, by NAT.
    pub own: u32,
}

impl MarkBits {
    /// `bits`, unless they are fewer than three.
    pub fn new(bits: u32) -> Option<Self> {
        (bits.count_ones() >= FEWEST).then_some(Self(bits))
    }

    /// The default: bit 24, and the 13 lowest. The lowest upper ones have takers in many clusters: 0x2000 hostPorts (CNI
    /// portmap), 0x4000 and 0x8000 kube-proxy, 0x10000 to 0x80000 Calico.
    pub fn standard() -> Self {
        Self(0x0100_1fff)
    }

    /// The bit that steers.
    pub fn steer(self) -> u32 {
        1 << self.0.ilog2()
    }

    /// How many frontends can be told apart.
    pub fn room(self) -> u32 {
        (1 << (self.0.count_ones() - 2)) - 1
    }

    /// The marks of the frontend with that number, from 1 to [`Self::room`].
    fn of(self, number: u32) -> Marks {
        let low = self.0 & !self.steer();
        Marks { peers: deposit(number << 1, low), own: deposit(number << 1 | 1, low) }
    }

    /// Marks for `frontends`, the same however they came to be; those last in order for which there is no room have none.
    ///
    /// A frontend's number follows from its hash, and where two have the same the next free one is taken: so one that
    /// comes or goes moves no other, but for those rare ones.
    pub fn allot<'a>(self, frontends: impl Iterator<Item = &'a Frontend>) -> BTreeMap<Frontend, Marks> {
        let room = self.room();
        let mut sorted: Vec<(u32, &Frontend)> =
            frontends.take(room as usize).map(|frontend| (hash(frontend) % room, frontend)).collect();
        sorted.sort_unstable();
        let mut taken = BTreeMap::new();
        for (start, frontend) in sorted {
            let mut number = start;
            while taken.contains_key(&number) {
                number = (number + 1) % room;
            }
            taken.insert(number, *frontend);
        }
        taken.into_iter().map(|(number, frontend)| (frontend, self.of(number + 1))).collect()
    }
}

impl fmt::Display for MarkBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The lowest bits of `value`, put in the places of `mask`'s ones, lowest first.
fn deposit(mut value: u32, mut mask: u32) -> u32 {
    let mut result = 0;
    while mask != 0 && value != 0 {
        let lowest = mask & mask.wrapping_neg();
        if value & 1 != 0 {
            result |= lowest;
        }
        value >>= 1;
        mask &= !lowest;
    }
    result
}

/// The same in every run of one version of kvip; another algorithm in another Rust release moves marks once.
fn hash(frontend: &Frontend) -> u32 {
    let mut hasher = DefaultHasher::new();
    frontend.hash(&mut hasher);
    let [high, low] = [hasher.finish() >> 32, hasher.finish() & u64::from(u32::MAX)];
    u32::try_from(high ^ low).expect("32 bits")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::model::Protocol;

    fn frontend(port: u16) -> Frontend {
        Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port }
    }

    #[test]
    fn bits_are_where_they_are_allowed() {
        let bits = MarkBits::new(0x8000_0ff0).unwrap();
        assert_eq!((bits.steer(), bits.room()), (0x8000_0000, 127));
        assert_eq!(bits.of(1), Marks { peers: 0x20, own: 0x30 });
        assert_eq!(bits.of(127), Marks { peers: 0xfe0, own: 0xff0 });
        assert_eq!(MarkBits::standard().of(0x80), Marks { peers: 0x100, own: 0x101 });
        assert_eq!(MarkBits::new(0x3), None);
    }

    #[test]
    fn those_without_room_have_none() {
        let frontends: Vec<Frontend> = (1..=5).map(frontend).collect();
        let marked = |frontends: &mut dyn Iterator<Item = &Frontend>| -> BTreeSet<Frontend> {
            MarkBits::new(0xf).unwrap().allot(frontends).into_keys().collect()
        };
        assert_eq!(marked(&mut frontends.iter()), frontends[..3].iter().copied().collect());
        assert_eq!(marked(&mut frontends.iter().rev()), frontends[2..].iter().copied().collect());
    }

    proptest! {
        #[test]
        fn marks_are_kvips_and_each_ones_own(ports in prop::collection::btree_set(1_u16.., 0..200), bits in any::<u32>()) {
            let Some(bits) = MarkBits::new(bits) else { return Ok(()) };
            let frontends: Vec<Frontend> = ports.iter().copied().map(frontend).collect();
            let allotted = bits.allot(frontends.iter());
            prop_assert_eq!(allotted.len(), frontends.len().min(bits.room() as usize));
            let all: Vec<u32> = allotted.values().flat_map(|marks| [marks.peers, marks.own]).collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            for mark in all {
                prop_assert_eq!(mark & !bits.0, 0);
                prop_assert_eq!(mark & bits.steer(), 0);
                prop_assert_ne!(mark, 0);
            }
            if frontends.len() <= bits.room() as usize {
                prop_assert_eq!(bits.allot(frontends.iter().rev()), allotted);
            }
        }
    }
}
