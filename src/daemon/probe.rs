//! Which virtual servers are looked at between two audits: all in turn, a few at a time.
//!
//! Pure. There is no event for changes of IPVS, so kvip asks: whoever removes all of them is noticed by the next probe,
//! and whoever removes one by the end of the round.

use std::ops::Bound;
use std::time::Duration;

use crate::ipvs::{Key, Service, Table};

/// Between two probes.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// A round takes so many probes, a second.
const ROUND: usize = 4;
/// A probe asks for no more than this, so that it stays cheap: a round over more than a thousand virtual servers takes a
/// second for each thousand.
const MOST: usize = 250;

/// Where the round is.
#[derive(Debug, Default)]
pub struct Rounds {
    last: Option<Key>,
}

impl Rounds {
    /// Those of `table` that are looked at next, as they should be.
    pub fn next<'t>(&mut self, table: &'t Table) -> Vec<(Key, &'t Service)> {
        let most = table.len().div_ceil(ROUND).min(MOST);
        let from = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut chosen: Vec<_> = table.range((from, Bound::Unbounded)).take(most).collect();
        let missing = most - chosen.len();
        chosen.extend(table.iter().take(missing));
        self.last = chosen.last().map(|(key, _)| **key);
        chosen.into_iter().map(|(key, server)| (*key, &server.service)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::VirtualServer;
    use crate::model::{Frontend, Protocol};

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
    fn a_round_takes_a_second_or_a_thousand_virtual_servers_a_second() {
        check(1, 1, 1);
        check(3, 1, 3);
        check(10, 3, 4);
        check(1000, 250, 4);
        check(3000, 250, 12);
        assert_eq!(Rounds::default().next(&Table::new()), []);
    }

    #[test]
    fn what_left_the_table_ends_no_round() {
        let mut rounds = Rounds::default();
        rounds.next(&table(8));
        assert_eq!(rounds.next(&table(1)).len(), 1);
    }
}
