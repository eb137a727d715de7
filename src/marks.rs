//! The bits of the firewall mark that are kvip's, and what it writes in them for mode dsr.
//!
//! Pure. The highest of the bits steers a packet into this host's own stack although the VIP is not here; it is taken off
//! before IPVS looks. The lowest is the tier, and those between hold the frontend's number, so that each frontend has two
//! virtual servers by mark of its own: the one for what peers hand on, and the one for clients on this node. Other
//! programs' bits are never set: IPVS compares the whole mark, so a frontend's mark is written whole.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::model::Frontend;

/// Fewer bits could number no frontends.
const FEWEST: u32 = 3;

/// The bits of the mark that are kvip's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkBits(u32);

/// The marks of one frontend, without the steering bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

    /// The number of the frontend with those marks, unless they are of other bits.
    fn number(self, marks: Marks) -> Option<u32> {
        self.number_with(marks.own).filter(|number| self.of(*number) == marks)
    }

    /// The number of the frontend that has `mark` or would have it, unless it is of other bits.
    fn number_with(self, mark: u32) -> Option<u32> {
        let number = extract(mark, self.0 & !self.steer()) >> 1;
        let Marks { peers, own } = self.of(number);
        (number > 0 && (mark == peers || mark == own)).then_some(number)
    }

    /// Marks for `frontends`; those last in order for which there is no room have none. Which have some follows from the order
    /// alone. Which they have is this node's own affair.
    ///
    /// Those that had marks `before` keep them, or for the moment between IPVS and nftables one's packets would go to another's
    /// pods. For the same reason a number that has come free is taken last. A new frontend's number follows from its hash, and
    /// where that is taken it is the next free one. Numbers with one of the marks that are `foreign`, by which other programs
    /// have virtual servers on this host, are left to these.
    pub fn allot<'a>(
        self,
        frontends: impl Iterator<Item = &'a Frontend>,
        before: &BTreeMap<Frontend, Marks>,
        foreign: &BTreeSet<u32>,
    ) -> BTreeMap<Frontend, Marks> {
        let room = self.room();
        let foreign: BTreeSet<u32> = foreign.iter().filter_map(|mark| self.number_with(*mark)).collect();
        let had = |frontend: &Frontend| {
            let number = before.get(frontend).and_then(|marks| self.number(*marks));
            number.filter(|number| !foreign.contains(number))
        };
        let (old, new): (Vec<&Frontend>, Vec<&Frontend>) =
            frontends.take(room as usize - foreign.len()).partition(|frontend| had(frontend).is_some());
        let used: BTreeSet<u32> = before.values().filter_map(|marks| self.number(*marks)).collect();
        let mut taken: BTreeMap<u32, Frontend> =
            old.into_iter().filter_map(|frontend| Some((had(frontend)?, *frontend))).collect();
        let mut sorted: Vec<(u32, &Frontend)> =
            new.into_iter().map(|frontend| (hash(frontend) % room, frontend)).collect();
        sorted.sort_unstable();
        for (start, frontend) in sorted {
            let free = |number: &u32| !taken.contains_key(number) && !foreign.contains(number);
            let numbers = || (start + 1..=room).chain(1..=start).filter(free);
            let unused = numbers().find(|number| !used.contains(number));
            let number = unused.or_else(|| numbers().next()).expect("there are no more than have room");
            taken.insert(number, *frontend);
        }
        taken.into_iter().map(|(number, frontend)| (frontend, self.of(number))).collect()
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

/// The bits of `value` in the places of `mask`'s ones, side by side: what [`deposit`] put there.
fn extract(value: u32, mut mask: u32) -> u32 {
    let (mut result, mut place) = (0, 1);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if value & lowest != 0 {
            result |= place;
        }
        place <<= 1;
        mask &= !lowest;
    }
    result
}

/// The same in every run of one version of kvip.
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

    const NONE: BTreeSet<u32> = BTreeSet::new();

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

    /// As on nodes that have seen another past: who is served must be the same on all.
    #[test]
    fn the_last_in_order_goes_without_though_it_had_marks() {
        let [first, second, third, fourth] = [1, 2, 3, 4].map(frontend);
        let bits = MarkBits::new(0xf).unwrap();
        let before = bits.allot([second, third, fourth].iter(), &BTreeMap::new(), &NONE);
        let now = bits.allot([first, second, third, fourth].iter(), &before, &NONE);
        assert_eq!(now.keys().copied().collect::<Vec<_>>(), [first, second, third]);
        assert_eq!([now[&second], now[&third]], [before[&second], before[&third]]);
        let other_bits = MarkBits::new(0xf0).unwrap().allot([second].iter(), &before, &NONE);
        assert_eq!(other_bits, MarkBits::new(0xf0).unwrap().allot([second].iter(), &BTreeMap::new(), &NONE));
    }

    #[test]
    fn those_without_room_have_none() {
        let frontends: Vec<Frontend> = (1..=5).map(frontend).collect();
        let marked = |frontends: &mut dyn Iterator<Item = &Frontend>| -> BTreeSet<Frontend> {
            MarkBits::new(0xf).unwrap().allot(frontends, &BTreeMap::new(), &NONE).into_keys().collect()
        };
        assert_eq!(marked(&mut frontends.iter()), frontends[..3].iter().copied().collect());
        assert_eq!(marked(&mut frontends.iter().rev()), frontends[2..].iter().copied().collect());
    }

    #[test]
    fn marks_of_others_are_left_to_them() {
        let [first, second] = [1, 2].map(frontend);
        let bits = MarkBits::new(0xf).unwrap();
        let before = bits.allot([first, second].iter(), &BTreeMap::new(), &NONE);
        for mark in [before[&second].peers, before[&second].own] {
            let now = bits.allot([first, second].iter(), &before, &[mark].into());
            assert_eq!(now[&first], before[&first]);
            assert!(![now[&second].peers, now[&second].own].contains(&mark));
            let many: Vec<Frontend> = (1..=3).map(frontend).collect();
            let now = bits.allot(many.iter(), &BTreeMap::new(), &[mark].into());
            assert_eq!(now.into_keys().collect::<Vec<_>>(), many[..2], "there is room for one less");
        }
        let elsewhere = [0, 1, 0x10, before[&second].own | bits.steer()].into();
        assert_eq!(bits.allot([first, second].iter(), &BTreeMap::new(), &elsewhere), before);
    }

    proptest! {
        #[test]
        fn marks_are_kvips_and_each_ones_own(ports in prop::collection::btree_set(1_u16.., 0..200), bits in any::<u32>()) {
            let Some(bits) = MarkBits::new(bits) else { return Ok(()) };
            let frontends: Vec<Frontend> = ports.iter().copied().map(frontend).collect();
            let nothing = BTreeMap::new();
            let allotted = bits.allot(frontends.iter(), &nothing, &NONE);
            prop_assert_eq!(allotted.len(), frontends.len().min(bits.room() as usize));
            let all: Vec<u32> = allotted.values().flat_map(|marks| [marks.peers, marks.own]).collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            for mark in all {
                prop_assert_eq!(mark & !bits.0, 0);
                prop_assert_eq!(mark & bits.steer(), 0);
                prop_assert_ne!(mark, 0);
            }
            if frontends.len() <= bits.room() as usize {
                prop_assert_eq!(&bits.allot(frontends.iter().rev(), &nothing, &NONE), &allotted);
            }
            prop_assert_eq!(&bits.allot(frontends.iter().take(allotted.len()), &allotted, &NONE), &allotted);
        }

        /// Few numbers, so that many hashes are the same.
        #[test]
        fn who_comes_or_goes_moves_no_other(
            sets in prop::collection::vec(prop::collection::btree_set(1_u16..20, 0..14), 1..20),
        ) {
            let bits = MarkBits::new(0x107c).unwrap();
            let mut before = BTreeMap::new();
            for ports in sets {
                let frontends: Vec<Frontend> = ports.into_iter().map(frontend).collect();
                let now = bits.allot(frontends.iter(), &before, &NONE);
                prop_assert_eq!(now.len(), frontends.len());
                let numbers: BTreeSet<u32> = now.values().map(|marks| marks.own).collect();
                prop_assert_eq!(numbers.len(), now.len());
                for (frontend, marks) in before.iter().filter(|(frontend, _)| now.contains_key(frontend)) {
                    prop_assert_eq!(&now[frontend], marks);
                }
                let came = now.iter().filter(|(frontend, _)| !before.contains_key(frontend));
                let freed = came.filter(|(_, marks)| before.values().any(|had| had == *marks)).count();
                let spare = 15_usize.saturating_sub(before.len());
                let came = now.keys().filter(|frontend| !before.contains_key(frontend)).count();
                prop_assert_eq!(freed, came.saturating_sub(spare), "a number that came free is taken last");
                before = now;
            }
        }
    }
}
