//! Where programs of this host listen, so that nothing else can listen at a VIP.
//!
//! Reads `/proc/net/tcp` and `tcp6` (proc_net_tcp.txt of the kernel's documentation).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::files;
use crate::model::Frontend;

/// The state LISTEN.
const LISTEN: &str = "0A";

/// The TCP listeners of both families.
pub fn listeners() -> BTreeSet<SocketAddr> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| files::read(Path::new(path)).ok().flatten());
    tables.iter().flatten().flat_map(|table| listed(table)).collect()
}

/// The one of `listeners` that takes the place of `frontend`: on every address of either family, as IPv6's commonly take
/// IPv4's connections too, or at the very VIP.
pub(super) fn in_the_way(listeners: &BTreeSet<SocketAddr>, frontend: &Frontend) -> Option<SocketAddr> {
    let of_port = || listeners.iter().filter(|listener| listener.port() == frontend.port);
    let everywhere = of_port().find(|listener| listener.ip().is_unspecified());
    everywhere.or_else(|| of_port().find(|listener| listener.ip() == frontend.vip)).copied()
}

/// `  0: 00000000:0050 00000000:0000 0A …`: address and port of this side, of the other side, state.
fn listed(table: &str) -> impl Iterator<Item = SocketAddr> {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let listens = words.nth(1)? == LISTEN;
        let port = u16::from_str_radix(port, 16).ok().filter(|_| listens)?;
        Some(SocketAddr::new(written(address)?, port))
    })
}

/// One or four numbers of 32 bits, each as this machine has it in memory.
fn written(address: &str) -> Option<IpAddr> {
    let number = |from: usize| {
        let digits = address.get(from..from + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    if address.len() == 8 {
        return Some(IpAddr::from(number(0)?));
    }
    let mut bytes = [0; 16];
    for (place, part) in bytes.chunks_mut(4).enumerate() {
        part.copy_from_slice(&number(place * 8)?);
    }
    Some(Ipv6Addr::from(bytes).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[cfg(target_endian = "little")]
    #[test]
    fn listeners_are_read_with_their_addresses() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   2: 00000000:01BB 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0
   3: 00000000000000000000000000000000:2382 00000000000000000000000000000000:0000 0A 0:0 0
   4: 000000FD02008700000000005000 00000000000000000000000000000000:0000 0A 0:0 0
   5: 000000FD020087000000000050000000:01BB 00000000000000000000000000000000:0000 0A 0:0 0
   6: 0000000000000000FFFF00003202570A:01BB 00000000000000000000000000000000:0000 0A 0:0 0
";
        let read: Vec<String> = listed(table).map(|listener| listener.to_string()).collect();
        let v6 = "[fd00:0:87:2::50]:443";
        assert_eq!(read, ["0.0.0.0:80", "127.0.0.1:8080", "[::]:9090", v6, "10.87.2.50:443"]);
    }

    /// What is in the way of port 80 of the VIP.
    #[track_caller]
    fn check(listeners: &[&str], found: Option<&str>) {
        let frontend = Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        let listeners = listeners.iter().map(|listener| listener.parse().unwrap()).collect();
        assert_eq!(in_the_way(&listeners, &frontend), found.map(|found| found.parse().unwrap()));
    }

    #[test]
    fn who_listens_at_the_vip_or_everywhere_is_in_the_way() {
        check(&[], None);
        check(&["0.0.0.0:81", "10.87.2.51:80", "10.87.2.50:81", "[fd00::50]:80"], None);
        check(&["10.87.2.50:80"], Some("10.87.2.50:80"));
        check(&["0.0.0.0:80"], Some("0.0.0.0:80"));
        check(&["10.87.2.50:80", "[::]:80"], Some("[::]:80"));
    }
}
