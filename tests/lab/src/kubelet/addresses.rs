//! Which addresses of the node's pod ranges its pods have.
//!
//! Pure. A pod's two addresses follow from one host number. Never gives a number again while another is free that
//! has rested longer: a client that still knows an ended pod must not meet its successor.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::layout::NodeSpec;

/// Host numbers for pods; .1 is the node's own.
const HOSTS: RangeInclusive<u8> = 10..=250;

/// The host numbers that are in use, by their pods' names in the machine.
#[derive(Debug, Clone)]
pub struct Addresses {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    taken: BTreeMap<String, u8>,
    next: u8,
}

impl Addresses {
    /// All addresses of that node, free.
    pub fn new(spec: &NodeSpec) -> Self {
        let prefix = |range: &'static str| range.split('/').next().expect("a range has an address");
        let known = "the layout's ranges are well formed";
        let (v4, v6) = (prefix(spec.pod4).parse().expect(known), prefix(spec.pod6).parse().expect(known));
        Self { v4, v6, taken: BTreeMap::new(), next: *HOSTS.start() }
    }

    /// The addresses of that pod: those that it has, else new ones. None when the range is used up.
    pub fn take(&mut self, name: &str) -> Option<(Ipv4Addr, Ipv6Addr)> {
        if !self.taken.contains_key(name) {
            let host = (self.next..=*HOSTS.end()).chain(HOSTS).find(|host| self.is_free(*host))?;
            self.next = if host == *HOSTS.end() { *HOSTS.start() } else { host + 1 };
            self.taken.insert(name.to_owned(), host);
        }
        self.taken.get(name).map(|host| self.pair(*host))
    }

    /// Notes that the pod has that address already, unless it is another's or none of this node's.
    pub fn keep(&mut self, name: &str, address: Ipv4Addr) {
        let host = address.octets()[3];
        let ours = HOSTS.contains(&host) && self.pair(host).0 == address;
        if ours && !self.taken.contains_key(name) && self.is_free(host) {
            self.taken.insert(name.to_owned(), host);
            self.next = self.next.max(if host == *HOSTS.end() { *HOSTS.start() } else { host + 1 });
        }
    }

    /// The pod is no more.
    pub fn free(&mut self, name: &str) {
        self.taken.remove(name);
    }

    fn is_free(&self, host: u8) -> bool {
        self.taken.values().all(|taken| *taken != host)
    }

    fn pair(&self, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        let [a, b, c, _] = self.v4.octets();
        let mut segments = self.v6.segments();
        // The same digits, so that both addresses of a pod look alike: .12 and ::12.
        let digits = u16::from_str_radix(&host.to_string(), 16);
        segments[7] = digits.expect("decimal digits are hexadecimal ones too");
        (Ipv4Addr::new(a, b, c, host), Ipv6Addr::from(segments))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::NODES;

    fn v4(pair: Option<(Ipv4Addr, Ipv6Addr)>) -> String {
        pair.map_or_else(|| "none".to_owned(), |pair| pair.0.to_string())
    }

    #[test]
    fn both_addresses_have_the_same_digits_and_stay() {
        let mut addresses = Addresses::new(&NODES[0]);
        let first = addresses.take("a").unwrap();
        assert_eq!((first.0.to_string(), first.1.to_string()), ("10.2.4.10".into(), "fd00:2:4::10".into()));
        assert_eq!(addresses.take("a"), Some(first));
        assert_eq!(v4(addresses.take("b")), "10.2.4.11");
    }

    #[test]
    fn a_freed_address_rests_until_the_others_were_used() {
        let mut addresses = Addresses::new(&NODES[0]);
        addresses.take("a");
        addresses.free("a");
        assert_eq!(v4(addresses.take("b")), "10.2.4.11");
        for number in 12..=250 {
            addresses.take(&number.to_string());
        }
        assert_eq!(v4(addresses.take("c")), "10.2.4.10");
        assert_eq!(v4(addresses.take("d")), "none");
    }

    #[test]
    fn an_address_found_in_the_machine_is_kept_once() {
        let mut addresses = Addresses::new(&NODES[0]);
        addresses.keep("a", Ipv4Addr::new(10, 2, 4, 40));
        addresses.keep("b", Ipv4Addr::new(10, 2, 4, 40));
        addresses.keep("c", Ipv4Addr::new(10, 2, 6, 50));
        assert_eq!(v4(addresses.take("a")), "10.2.4.40");
        assert_eq!(v4(addresses.take("b")), "10.2.4.41");
        assert_eq!(v4(addresses.take("c")), "10.2.4.42");
    }
}
