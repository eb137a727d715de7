//! The addresses of pods on this node: its pod ranges, but for what endpoints say otherwise.
//!
//! Some CNIs hand out addresses by a book of their own (Calico, Cilium) while the cluster writes spec.podCIDRs all the same:
//! then a pod here may have an address of no range of this node, and one elsewhere an address of this node's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Counted;
use crate::model::host_network;
use crate::snapshot::EndpointSlice;

/// Where replies come back by themselves.
#[derive(Debug, Default)]
pub struct LocalPods {
    /// This node's spec.podCIDRs.
    ranges: Vec<IpNet>,
    /// Addresses of endpoints of which the ranges say the wrong: here and in none of them, or elsewhere and in one.
    exceptions: Counted<IpAddr>,
}

impl LocalPods {
    /// Takes in this node's pod ranges; true when they are others. The slices are to be counted anew then.
    pub fn set_ranges(&mut self, ranges: Vec<IpNet>) -> bool {
        let others = ranges != self.ranges;
        self.ranges = ranges;
        others
    }

    /// Counts `slices`, and nothing else, for the node `own`; true when what comes of it differs.
    pub fn recount<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a EndpointSlice>,
        own: Option<&str>,
    ) -> bool {
        let before = std::mem::take(&mut self.exceptions);
        for slice in slices {
            self.count(slice, own, true, &mut BTreeMap::new());
        }
        !before.iter().eq(self.exceptions.iter())
    }

    /// Counts the endpoints of `slice` in or out; `was` keeps which exceptions were there at first.
    pub fn count(
        &mut self,
        slice: &EndpointSlice,
        own: Option<&str>,
        add: bool,
        was: &mut BTreeMap<IpAddr, bool>,
    ) {
        for endpoint in slice.endpoints.iter().filter(|endpoint| own.is_some() && endpoint.node.is_some()) {
            let address = endpoint.address;
            let here = endpoint.node.as_deref() == own;
            if here == self.in_ranges(&address) {
                continue;
            }
            was.entry(address).or_insert(self.exceptions.contains(&address));
            if add {
                self.exceptions.add(address);
            } else {
                self.exceptions.remove(&address);
            }
        }
    }

    /// Whether one of `was` has come or gone since.
    pub fn differ(&self, was: &BTreeMap<IpAddr, bool>) -> bool {
        was.iter().any(|(address, was)| self.exceptions.contains(address) != *was)
    }

    /// All of them, as networks that may overlap.
    pub fn networks(&self) -> BTreeSet<IpNet> {
        let (elsewhere, here): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) =
            self.exceptions.iter().partition(|address| self.in_ranges(address));
        let mut networks: BTreeSet<IpNet> = here.into_iter().map(host_network).collect();
        for range in &self.ranges {
            cut(range.trunc(), &elsewhere, &mut networks);
        }
        networks
    }

    fn in_ranges(&self, address: &IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

/// Adds the networks that cover `range` without `holes`.
fn cut(range: IpNet, holes: &BTreeSet<IpAddr>, networks: &mut BTreeSet<IpNet>) {
    if holes.range(range.network()..=range.broadcast()).next().is_none() {
        networks.insert(range);
    } else if let Ok(halves) = range.subnets(range.prefix_len() + 1) {
        halves.for_each(|half| cut(half, holes, networks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, ObjectKey};
    use crate::snapshot::Endpoint;

    fn slice(endpoints: &[(&str, &str)]) -> EndpointSlice {
        let endpoint = |(address, node): &(&str, &str)| {
            let node = Some((*node).to_owned()).filter(|node| !node.is_empty());
            Endpoint { node, ..Endpoint::ready(address.parse().unwrap(), "") }
        };
        EndpointSlice {
            service: ObjectKey::new("default", "web"),
            family: Family::V4,
            ports: vec![],
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
    }

    /// The networks of node-a with `ranges` and the endpoints with their nodes.
    #[track_caller]
    fn check(ranges: &[&str], endpoints: &[(&str, &str)], expected: &[&str]) {
        let mut pods = LocalPods::default();
        pods.set_ranges(ranges.iter().map(|range| range.parse().unwrap()).collect());
        pods.recount([slice(endpoints)].iter(), Some("node-a"));
        let networks: Vec<String> = pods.networks().iter().map(IpNet::to_string).collect();
        assert_eq!(networks, expected, "{ranges:?} {endpoints:?}");
    }

    #[test]
    fn endpoints_count_for_more_than_ranges() {
        let [range, v6] = ["10.2.4.0/29", "fd00:2:4::/126"];
        check(&[range, v6], &[("10.2.4.1", "node-a"), ("10.2.6.1", "node-b")], &[range, v6]);
        check(&[range], &[("10.3.0.7", "node-a")], &[range, "10.3.0.7/32"]);
        check(&[range], &[("10.2.4.3", "node-b")], &["10.2.4.0/31", "10.2.4.2/32", "10.2.4.4/30"]);
        check(&[v6], &[("fd00:2:4::3", "node-b")], &["fd00:2:4::/127", "fd00:2:4::2/128"]);
        check(&["10.2.4.8/32"], &[("10.2.4.8", "node-b")], &[]);
        check(&[range], &[("10.2.4.3", "")], &[range]);
        check(&["0.0.0.0/0"], &[("10.2.4.3", "node-a")], &["0.0.0.0/0"]);
    }

    #[test]
    fn news_is_what_comes_or_goes_in_sum() {
        let mut pods = LocalPods::default();
        assert!(pods.set_ranges(vec!["10.2.4.0/24".parse().unwrap()]));
        let [one, none] = [slice(&[("10.2.4.3", "node-b")]), slice(&[("10.2.4.3", "node-a")])];
        assert!(pods.recount([&one, &one].into_iter(), Some("node-a")));
        assert!(!pods.recount([&one, &none].into_iter(), Some("node-a")));
        let mut step = |gone: &EndpointSlice, here: &EndpointSlice| {
            let mut was = BTreeMap::new();
            pods.count(gone, Some("node-a"), false, &mut was);
            pods.count(here, Some("node-a"), true, &mut was);
            pods.differ(&was)
        };
        assert!(!step(&one, &one));
        assert!(step(&one, &none));
        assert!(step(&none, &one));
    }
}
