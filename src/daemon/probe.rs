//! What is looked at of IPVS between two audits: all in turn, a part at a time.
//!
//! Pure. There is no event for changes of IPVS, so kvip asks: whoever removes all virtual servers is noticed by the next
//! probe, and whoever removes or changes one, or its real servers, by the end of the round.

use std::ops::Bound;
use std::time::Duration;

use crate::ipvs::{Key, Service, Table, VirtualServer};

/// Between two probes.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// A round takes so many probes, a second.
const ROUND: usize = 4;
/// So many virtual servers are asked for in parts. More are listed once a round, which is cheaper for each, and all that the
/// other probes ask for is whether some are there.
const ASKED: usize = 1000;
const SOME: usize = 10;
/// A round over more virtual servers than this takes a second for each so many, so that it stays cheap.
const LISTED: usize = 5000;
/// A probe looks at no more real servers than this.
const REAL_SERVERS: usize = 500;
/// To ask for a virtual server's real servers is worth so many of them.
const QUESTION: usize = 5;

/// Where the rounds are.
#[derive(Debug, Default)]
pub struct Rounds {
    probes: usize,
    last: Option<Key>,
    last_looked_into: Option<Key>,
    /// How many real servers may be looked at; a virtual server that has more of them waits until they may.
    budget: usize,
}

impl Rounds {
    /// Those of `table` that are looked at next, as they should be.
    pub fn next<'t>(&mut self, table: &'t Table) -> Vec<(Key, &'t Service)> {
        self.probes = self.probes.wrapping_add(1);
        let most = match table.len() {
            size @ 0..=ASKED => size.div_ceil(ROUND),
            size if self.probes.is_multiple_of(ROUND * size.div_ceil(LISTED)) => size,
            _ => SOME,
        };
        let chosen: Vec<_> = in_turn(table, self.last).take(most).collect();
        self.last = chosen.last().map(|(key, _)| **key);
        chosen.into_iter().map(|(key, server)| (*key, &server.service)).collect()
    }

    /// Those of `table` whose real servers are looked at next.
    pub fn look_into<'t>(&mut self, table: &'t Table) -> Vec<(Key, &'t VirtualServer)> {
        self.budget += REAL_SERVERS;
        let mut chosen = Vec::new();
        for (key, server) in in_turn(table, self.last_looked_into) {
            let Some(left) = self.budget.checked_sub(QUESTION + server.real_servers.len()) else {
                return chosen;
            };
            (self.budget, self.last_looked_into) = (left, Some(*key));
            chosen.push((*key, server));
        }
        // Nothing is saved up when all have been looked at.
        self.budget = 0;
        chosen
    }
}

/// Each virtual server once, from the one after `last` on.
fn in_turn(table: &Table, last: Option<Key>) -> impl Iterator<Item = (&Key, &VirtualServer)> {
    let from = last.map_or(Bound::Unbounded, Bound::Excluded);
    table.range((from, Bound::Unbounded)).chain(table).take(table.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::RealServer;
    use crate::ipvs::model::Forward;
    use crate::model::{Backend, Frontend, Protocol};

    fn table(size: usize) -> Table {
        let service = Service { scheduler: "wlc".into(), persistence: None, flags: 0 };
        let vip = "10.87.2.50".parse().unwrap();
        let key = |port| Key::Frontend(Frontend { vip, protocol: Protocol::Tcp, port });
        let port = |number| u16::try_from(number).unwrap();
        (0..size).map(|number| (key(port(number)), VirtualServer::new(service.clone()))).collect()
    }

    /// A probe of a table of this size asks for so many, and all have been asked for after so many probes.
    #[track_caller]
    fn check(size: usize, asks: usize, probes: usize) {
        let table = table(size);
        let mut rounds = Rounds::default();
        // The round may be anywhere.
        rounds.next(&table);
        let mut seen = std::collections::BTreeSet::new();
        for number in 1..=probes {
            assert_eq!(rounds.next(&table).iter().map(|(key, _)| seen.insert(*key)).count(), asks);
            assert_eq!(seen.len() == size, number == probes, "{size}: {number}");
        }
    }

    #[test]
    fn a_round_takes_a_second() {
        check(1, 1, 1);
        check(3, 1, 3);
        check(10, 3, 4);
        check(1000, 250, 4);
        assert_eq!(Rounds::default().next(&Table::new()), []);
    }

    #[test]
    fn many_are_listed_at_once() {
        let asks = |size: usize, probes: usize| {
            let (table, mut rounds) = (table(size), Rounds::default());
            (0..probes).map(|_| rounds.next(&table).len()).collect::<Vec<_>>()
        };
        assert_eq!(asks(5000, 8), [10, 10, 10, 5000, 10, 10, 10, 5000]);
        assert_eq!(asks(5001, 8), [10, 10, 10, 10, 10, 10, 10, 5001]);
    }

    /// How many virtual servers each of these probes looks into, where they have so many real servers.
    fn looks_into(of: &[usize], probes: usize) -> Vec<usize> {
        let mut table = table(of.len());
        for (server, size) in table.values_mut().zip(of) {
            let address = |number: usize| [10, 2, 0, u8::try_from(number % 250).unwrap()].into();
            let backend = |number| Backend { address: address(number), port: u16::try_from(number).unwrap() };
            let real = RealServer::new(Forward::Masquerade, 1);
            server.real_servers = (0..*size).map(|number| (backend(number), real)).collect();
        }
        let mut rounds = Rounds::default();
        (0..probes).map(|_| rounds.look_into(&table).len()).collect()
    }

    #[test]
    fn real_servers_are_looked_at_two_thousand_a_second() {
        assert_eq!(looks_into(&[], 2), [0, 0]);
        assert_eq!(looks_into(&[2, 3, 0], 3), [3, 3, 3]);
        assert_eq!(looks_into(&[5; 200], 4), [50, 50, 50, 50]);
        assert_eq!(looks_into(&[1995], 8), [0, 0, 0, 1, 0, 0, 0, 1], "a large one waits its turn");
    }

    #[test]
    fn what_left_the_table_ends_no_round() {
        let mut rounds = Rounds::default();
        rounds.next(&table(8));
        assert_eq!(rounds.next(&table(1)).len(), 1);
        assert_eq!(rounds.look_into(&table(1)).len(), 1);
    }
}
