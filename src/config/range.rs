//! Ranges of addresses, as pools, tenants and groups name them.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

/// Addresses from the first to the last, both included and of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// From `first` to `last`, unless they are of two families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The first address.
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub fn last(self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// Whether some address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Whether each of its addresses lies in one of `networks`.
    pub fn within(self, networks: &[IpNet]) -> bool {
        let mut next = self.first;
        // Each turn goes past the end of one network, so there are no more turns than networks.
        for _ in networks {
            let Some(network) = networks.iter().find(|network| network.contains(&next)) else { return false };
            if network.broadcast() >= self.last {
                return true;
            }
            match successor(network.broadcast()) {
                Some(address) => next = address,
                None => return false,
            }
        }
        false
    }

    /// The network that it is, if it is one.
    fn network(self) -> Option<IpNet> {
        let mut networks = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => IpSubnets::from(Ipv4Subnets::new(first, last, 0)),
            (IpAddr::V6(first), IpAddr::V6(last)) => IpSubnets::from(Ipv6Subnets::new(first, last, 0)),
            _ => return None,
        };
        networks.next().filter(|_| networks.next().is_none())
    }
}

impl From<IpNet> for AddressRange {
    fn from(network: IpNet) -> Self {
        Self { first: network.network(), last: network.broadcast() }
    }
}

impl fmt::Display for AddressRange {
    /// As one would write it: one address, a network, or `first-last`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network() {
            _ if self.first == self.last => f.pad(&self.first.to_string()),
            Some(network) => f.pad(&network.to_string()),
            None => f.pad(&format!("{}-{}", self.first, self.last)),
        }
    }
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    #[test]
    fn writes_the_shortest_form() {
        assert_eq!(range("10.0.0.1", "10.0.0.1").to_string(), "10.0.0.1");
        assert_eq!(range("10.0.0.0", "10.0.0.255").to_string(), "10.0.0.0/24");
        assert_eq!(range("10.0.0.0", "10.0.0.254").to_string(), "10.0.0.0-10.0.0.254");
        assert_eq!(range("fd00::", "fd00::ff").to_string(), "fd00::/120");
        assert_eq!(range("fd00::1", "fd00::ff").to_string(), "fd00::1-fd00::ff");
        assert_eq!(AddressRange::from("fd00::/64".parse::<IpNet>().unwrap()).to_string(), "fd00::/64");
    }

    #[test]
    fn overlaps_within_a_family_only() {
        assert!(range("10.0.0.1", "10.0.0.9").overlaps(range("10.0.0.9", "10.0.0.10")));
        assert!(range("10.0.0.1", "10.0.0.9").overlaps(range("10.0.0.3", "10.0.0.4")));
        assert!(!range("10.0.0.1", "10.0.0.9").overlaps(range("10.0.0.10", "10.0.0.11")));
        assert!(!range("0.0.0.1", "0.0.0.9").overlaps(range("::1", "::9")));
    }

    #[test]
    fn may_lie_in_several_networks() {
        let networks = ["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/25", "255.255.255.0/24", "fd00::/64"];
        let networks = networks.map(|text| text.parse().unwrap());
        assert!(range("10.0.0.0", "10.0.1.255").within(&networks));
        assert!(!range("10.0.0.0", "10.0.2.0").within(&networks));
        assert!(!range("9.255.255.255", "10.0.0.1").within(&networks));
        assert!(range("255.255.255.1", "255.255.255.255").within(&networks));
        assert!(range("fd00::1", "fd00::9").within(&networks));
        assert!(!range("fd00::1", "fd00:0:0:1::").within(&networks));
        assert!(!range("10.0.0.1", "10.0.0.1").within(&[]));
    }
}
