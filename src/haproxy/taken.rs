//! Ports that programs of this host listen on at all addresses, where nothing else can listen at a VIP.
//!
//! Reads `/proc/net/tcp` and `tcp6` (proc_net_tcp.txt of the kernel's documentation).

use std::collections::BTreeSet;
use std::path::Path;

use crate::files;

/// The state LISTEN.
const LISTEN: &str = "0A";

/// The ports of TCP listeners on every address of either family; IPv6's commonly take IPv4's connections too.
pub fn ports() -> BTreeSet<u16> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| files::read(Path::new(path)).ok().flatten());
    tables.iter().flatten().flat_map(|table| listed(table)).collect()
}

/// `  0: 00000000:0050 00000000:0000 0A …`: address and port of this side, of the other side, state.
fn listed(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let listens = words.nth(1)? == LISTEN && address.bytes().all(|digit| digit == b'0');
        u16::from_str_radix(port, 16).ok().filter(|_| listens)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_on_all_addresses_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   2: 00000000:01BB 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0
   3: 00000000000000000000000000000000:2382 00000000000000000000000000000000:0000 0A 0:0 0
";
        assert_eq!(listed(table).collect::<Vec<_>>(), [80, 9090]);
    }
}
