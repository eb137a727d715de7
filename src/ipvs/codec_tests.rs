//! Messages against bytes laid out by hand from `<linux/netlink.h>`, `<linux/genetlink.h>` and `<linux/ip_vs.h>`, as
//! a little-endian machine has them.

use std::time::Duration;

use proptest::prelude::*;

use super::super::golden::{bytes, check};
use super::*;
use crate::netlink::wire::{Body, replies};

fn frontend(address: &str, protocol: Protocol, port: u16) -> Key {
    Frontend { vip: address.parse().unwrap(), protocol, port }.into()
}

fn backend(address: &str, port: u16) -> Backend {
    Backend { address: address.parse().unwrap(), port }
}

fn real(forward: Forward, weight: u32, connections: u32) -> RealServer {
    RealServer { connections, ..RealServer::new(forward, weight) }
}

const SERVICE_V4: &str = "
    06 00 01 00  02 00 00 00                                        # AF: AF_INET
    06 00 02 00  06 00 00 00                                        # PROTOCOL: TCP
    14 00 03 00  0a 57 02 32  00 00 00 00 00 00 00 00 00 00 00 00   # ADDR: 10.87.2.50
    06 00 04 00  00 50 00 00                                        # PORT: 80
";

#[test]
fn get_family() {
    check(
        &super::get_family(7),
        "20 00 00 00  10 00  05 00  07 00 00 00  00 00 00 00    # 32 bytes, GENL_ID_CTRL, REQUEST and ACK, 7
         03 02 00 00                                            # CTRL_CMD_GETFAMILY, version 2
         09 00 02 00  49 50 56 53 00 00 00 00                   # CTRL_ATTR_FAMILY_NAME: IPVS",
    );
}

#[test]
fn dump_services() {
    check(
        &super::dump_services(0x1c, 8),
        "14 00 00 00  1c 00  01 03  08 00 00 00  00 00 00 00    # REQUEST and DUMP
         04 01 00 00                                            # GET_SERVICE",
    );
}

#[test]
fn get_service() {
    check(
        &super::get_service(0x1c, 8, &frontend("10.87.2.50", Protocol::Tcp, 80)),
        &("44 00 00 00  1c 00  01 00  08 00 00 00  00 00 00 00   04 01 00 00    # REQUEST alone
           30 00 01 80"
            .to_owned()
            + SERVICE_V4),
    );
}

#[test]
fn add_a_virtual_server() {
    let service = Service { scheduler: "wlc".into(), persistence: None, flags: 0 };
    check(
        &command(0x1c, 9, &Command::NewService(frontend("10.87.2.50", Protocol::Tcp, 80), service)),
        &("68 00 00 00  1c 00  05 00  09 00 00 00  00 00 00 00   01 01 00 00
           54 00 01 80                                          # CMD_ATTR_SERVICE, nested"
            .to_owned()
            + SERVICE_V4
            + "08 00 06 00  77 6c 63 00                             # SCHED_NAME: wlc
               0c 00 07 00  00 00 00 00  ff ff ff ff                # FLAGS: none of all
               08 00 08 00  00 00 00 00                             # TIMEOUT
               08 00 09 00  ff ff ff ff                             # NETMASK"),
    );
}

#[test]
fn set_a_persistent_virtual_server_of_ipv6() {
    let persistence = Some(Persistence::of_address(Duration::from_hours(3), Family::V6));
    let service = Service { scheduler: "sh".into(), persistence, flags: 0x10 };
    check(
        &command(0x1c, 10, &Command::SetService(frontend("fd00::50", Protocol::Sctp, 3868), service)),
        "68 00 00 00  1c 00  05 00  0a 00 00 00  00 00 00 00   02 01 00 00
         54 00 01 80
         06 00 01 00  0a 00 00 00                                        # AF_INET6
         06 00 02 00  84 00 00 00                                        # SCTP
         14 00 03 00  fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 50
         06 00 04 00  0f 1c 00 00
         07 00 06 00  73 68 00 00                                        # sh
         0c 00 07 00  11 00 00 00  ff ff ff ff                           # PERSISTENT and SCHED2
         08 00 08 00  30 2a 00 00                                        # 10800 s
         08 00 09 00  80 00 00 00                                        # a prefix of 128 bits",
    );
}

#[test]
fn remove_a_virtual_server() {
    check(
        &command(0x1c, 1, &Command::DelService(frontend("10.87.2.50", Protocol::Tcp, 80))),
        &("44 00 00 00  1c 00  05 00  01 00 00 00  00 00 00 00   03 01 00 00
           30 00 01 80"
            .to_owned()
            + SERVICE_V4),
    );
}

#[test]
fn add_and_remove_a_real_server() {
    let (frontend, backend) = (frontend("10.87.2.50", Protocol::Tcp, 80), backend("10.2.4.10", 8080));
    check(
        &command(0x1c, 1, &Command::NewDest(frontend, backend, real(Forward::DirectRoute, 5, 77))),
        &("8c 00 00 00  1c 00  05 00  01 00 00 00  00 00 00 00   05 01 00 00
           30 00 01 80"
            .to_owned()
            + SERVICE_V4
            + "48 00 02 80                                                     # CMD_ATTR_DEST, nested
               14 00 01 00  0a 02 04 0a  00 00 00 00 00 00 00 00 00 00 00 00
               06 00 02 00  1f 90 00 00                                        # PORT: 8080
               08 00 03 00  03 00 00 00                                        # FWD_METHOD: direct route
               08 00 04 00  05 00 00 00                                        # WEIGHT
               08 00 05 00  00 00 00 00                                        # U_THRESH
               08 00 06 00  00 00 00 00                                        # L_THRESH
               06 00 0b 00  02 00 00 00                                        # ADDR_FAMILY"),
    );
    check(
        &command(0x1c, 1, &Command::DelDest(frontend, backend)),
        &("6c 00 00 00  1c 00  05 00  01 00 00 00  00 00 00 00   07 01 00 00".to_owned()
            + " 30 00 01 80"
            + SERVICE_V4
            + "28 00 02 80
               14 00 01 00  0a 02 04 0a  00 00 00 00 00 00 00 00 00 00 00 00
               06 00 02 00  1f 90 00 00
               06 00 0b 00  02 00 00 00"),
    );
}

/// A message of a service dump as ip_vs_genl_fill_service writes it, statistics shortened.
const DUMPED_SERVICE: &str = "
    5c 00 01 00
    06 00 01 00  02 00 00 00
    06 00 02 00  11 00 00 00                                        # UDP
    14 00 03 00  0a 57 02 32  de ad be ef 00 00 00 00 00 00 00 00   # the kernel may leave the rest unset
    06 00 04 00  00 35 00 00
    08 00 06 00  77 6c 63 00
    0c 00 07 00  07 00 00 00  ff ff ff ff                           # PERSISTENT, HASHED, ONEPACKET
    08 00 08 00  2c 01 00 00                                        # 300 s
    08 00 09 00  ff ff ff ff
    08 00 0a 00  04 00 01 00                                        # STATS
";

#[test]
fn read_a_virtual_server() {
    let persistence = Some(Persistence::of_address(Duration::from_mins(5), Family::V4));
    let expected = Service { scheduler: "wlc".into(), persistence, flags: 4 };
    assert_eq!(
        service(&bytes(DUMPED_SERVICE)),
        Ok(Some((frontend("10.87.2.50", Protocol::Udp, 53), expected)))
    );
}

#[test]
fn a_virtual_server_by_mark() {
    let by_mark = DUMPED_SERVICE.replace("06 00 04 00  00 35 00 00", "08 00 05 00  01 01 00 00");
    let read = service(&bytes(&by_mark)).unwrap().map(|(key, _)| key);
    assert_eq!(read, Some(Key::Mark(Family::V4, 0x101)));
    check(
        &command(0x1c, 1, &Command::DelService(Key::Mark(Family::V6, 0x101))),
        "28 00 00 00  1c 00  05 00  01 00 00 00  00 00 00 00   03 01 00 00
         14 00 01 80
         06 00 01 00  0a 00 00 00                               # AF_INET6
         08 00 05 00  01 01 00 00                               # FWMARK",
    );
}

#[test]
fn add_a_real_server_behind_a_tunnel() {
    let real = RealServer {
        thresholds: Thresholds { upper: 100, lower: 75 },
        ..real(Forward::Tunnel(Tunnel::Gue(6080)), 1, 0)
    };
    check(
        &command(0x1c, 1, &Command::NewDest(Key::Mark(Family::V4, 1), backend("10.2.4.10", 80), real)),
        "88 00 00 00  1c 00  05 00  01 00 00 00  00 00 00 00   05 01 00 00
         14 00 01 80  06 00 01 00  02 00 00 00  08 00 05 00  01 00 00 00
         60 00 02 80
         14 00 01 00  0a 02 04 0a  00 00 00 00 00 00 00 00 00 00 00 00
         06 00 02 00  00 50 00 00
         08 00 03 00  02 00 00 00                               # FWD_METHOD: tunnel
         08 00 04 00  01 00 00 00
         08 00 05 00  64 00 00 00                               # U_THRESH
         08 00 06 00  4b 00 00 00                               # L_THRESH
         06 00 0b 00  02 00 00 00
         05 00 0d 00  01 00 00 00                               # TUN_TYPE: GUE
         06 00 0e 00  17 c0 00 00                               # TUN_PORT: 6080, in network order
         06 00 0f 00  00 00 00 00                               # TUN_FLAGS",
    );
}

#[test]
fn skip_what_is_never_kvips() {
    let of_esp = DUMPED_SERVICE.replace("11 00 00 00", "32 00 00 00");
    assert_eq!(service(&bytes(&of_esp)), Ok(None));
}

const DUMPED_DEST: &str = "
    60 00 02 00
    14 00 01 00  fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 0a
    06 00 02 00  1f 90 00 00
    06 00 0b 00  0a 00 00 00
    08 00 03 00  00 00 00 00
    08 00 04 00  64 00 00 00
    08 00 05 00  00 00 00 00
    08 00 06 00  00 00 00 00
    08 00 07 00  03 00 00 00                                        # ACTIVE
    08 00 08 00  04 00 00 00                                        # INACT
    08 00 09 00  05 00 00 00                                        # PERSIST: templates, not connections
";

#[test]
fn read_a_real_server() {
    let expected = (backend("fd00::a", 8080), real(Forward::Masquerade, 100, 7));
    assert_eq!(dest(&bytes(DUMPED_DEST), Family::V6), Ok(expected));
    let old_kernel = DUMPED_DEST.replace("06 00 0b 00  0a 00 00 00", "08 00 99 00  00 00 00 00");
    assert_eq!(
        dest(&bytes(&old_kernel), Family::V6),
        Ok(expected),
        "without ADDR_FAMILY, with another attribute"
    );
}

#[test]
fn what_is_missing_or_impossible_is_named() {
    let check = |from: &str, to: &str, error| {
        assert_eq!(dest(&bytes(&DUMPED_DEST.replace(from, to)), Family::V6), Err(error), "{from}");
    };
    check("08 00 04 00", "08 00 99 00", DecodeError::Missing("weight"));
    check("08 00 03 00  00 00 00 00", "08 00 03 00  06 00 00 00", DecodeError::Value("forwarding method"));
    check("06 00 0b 00  0a 00", "06 00 0b 00  11 00", DecodeError::Value("address family"));
    check("60 00 02 00", "61 00 02 00", DecodeError::Truncated("an attribute"));
    assert_eq!(service(&bytes(DUMPED_DEST)), Err(DecodeError::Missing("virtual server")));
}

#[test]
fn every_cut_is_an_error() {
    for (golden, name) in [(DUMPED_SERVICE, "service"), (DUMPED_DEST, "dest")] {
        let whole = bytes(golden);
        for length in 0..whole.len() {
            let cut = &whole[..length];
            assert!(service(cut).is_err() && dest(cut, Family::V6).is_err(), "{name} cut to {length} bytes");
        }
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), inside in any::<bool>()) {
        let mut payload = bytes.clone();
        if inside {
            let length = u8::try_from(bytes.len() + 4).unwrap();
            payload = [&[length, 0, 1, 0], bytes.as_slice()].concat();
        }
        let _ = (service(&payload), dest(&payload, Family::V4), family_id(&payload));
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0usize..92, byte: u8) {
        let mut service_bytes = bytes(DUMPED_SERVICE);
        service_bytes[at] = byte;
        let mut dest_bytes = bytes(DUMPED_DEST);
        dest_bytes[at] = byte;
        let _ = (service(&service_bytes), dest(&dest_bytes, Family::V6));
    }

    /// What is written to add a virtual server is what a dump of it would say.
    #[test]
    fn a_service_written_is_read(v6: bool, address: u128, port: u16, seconds in prop::option::of((1u32..86_400, 1u8..=32)), flags in 0u32..16) {
        let vip = if v6 { Ipv6Addr::from(address).into() } else { Ipv4Addr::from((address >> 96) as u32).into() };
        let frontend = Frontend { vip, protocol: Protocol::Tcp, port };
        let persistence = seconds.map(|(seconds, bits)| {
            Persistence { timeout: Duration::from_secs(seconds.into()), prefix_len: if v6 { bits * 4 } else { bits } }
        });
        let wanted = Service { scheduler: "mh".into(), persistence, flags: flags << 2 };
        let key = Key::from(frontend);
        let message = command(0x1c, 1, &Command::NewService(key, wanted.clone()));
        let answers = replies(&message).unwrap();
        let Body::Data(payload) = answers[0].body else { panic!("{answers:?}") };
        prop_assert_eq!(service(payload), Ok(Some((key, wanted))));
    }
}
