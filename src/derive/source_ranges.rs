//! loadBalancerSourceRanges, by kube-proxy's rules: per family, white space trimmed; a family without entries, or with a
//! /0, is open; what cannot be parsed lets nobody in.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::model::{Family, Finding, ObjectKey};
use crate::snapshot::Service;
use crate::snapshot::convert::parse_network;

/// Who may reach a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    v4: Option<BTreeSet<IpNet>>,
    v6: Option<BTreeSet<IpNet>>,
}

impl Ranges {
    /// The networks of `family` that may come in; `None`: all.
    pub fn of(&self, family: Family) -> Option<&BTreeSet<IpNet>> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// Reads the ranges of `service`.
pub fn read(key: &ObjectKey, service: &Service, findings: &mut Vec<Finding>) -> Ranges {
    let mut networks = Vec::new();
    let mut unreadable = false;
    for text in service.source_ranges.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        if let Some(network) = parse_network(text) {
            networks.push(network);
        } else {
            unreadable = true;
            findings.push(unreadable_range(key, text));
        }
    }
    let of = |family: Family| {
        let mine: BTreeSet<IpNet> =
            networks.iter().copied().filter(|network| Family::of(network.addr()) == family).collect();
        let open = mine.iter().any(|network| network.prefix_len() == 0) || (mine.is_empty() && !unreadable);
        (!open).then_some(mine)
    };
    Ranges { v4: of(Family::V4), v6: of(Family::V6) }
}

fn unreadable_range(key: &ObjectKey, text: &str) -> Finding {
    let ObjectKey { namespace, name } = key;
    let why = format!(
        "spec.loadBalancerSourceRanges: \"{text}\" is not a network such as 192.0.2.0/24, so it lets nobody in"
    );
    Finding::new(key, why).mend(format!("kubectl -n {namespace} edit service {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(written: &[&str], v4: Option<&[&str]>, v6: Option<&[&str]>, findings: usize) {
        let service = Service {
            source_ranges: written.iter().map(|s| (*s).to_owned()).collect(),
            ..Service::default()
        };
        let mut found = Vec::new();
        let ranges = read(&ObjectKey::new("default", "web"), &service, &mut found);
        let want = |networks: Option<&[&str]>| {
            networks.map(|all| all.iter().map(|n| n.parse().unwrap()).collect::<BTreeSet<IpNet>>())
        };
        assert_eq!((ranges.v4, ranges.v6, found.len()), (want(v4), want(v6), findings), "{written:?}");
    }

    #[test]
    fn families_stand_for_themselves() {
        check(&[], None, None, 0);
        check(&["192.0.2.0/24"], Some(&["192.0.2.0/24"]), None, 0);
        check(&[" 192.0.2.7/24 ", "fd00::/64"], Some(&["192.0.2.0/24"]), Some(&["fd00::/64"]), 0);
        check(&["192.0.2.0/24", "0.0.0.0/0", "fd00::/64"], None, Some(&["fd00::/64"]), 0);
        // The API takes leading zeros, and kube-proxy reads them as decimal.
        check(&["010.001.0.0/16"], Some(&["10.1.0.0/16"]), None, 0);
    }

    #[test]
    fn what_cannot_be_read_lets_nobody_in() {
        check(&["192.0.2.0"], Some(&[]), Some(&[]), 1);
        check(&["192.0.2.0/24", "office"], Some(&["192.0.2.0/24"]), Some(&[]), 1);
    }
}
