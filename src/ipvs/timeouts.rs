//! How long IPVS remembers connections in which nothing moves: settings of the whole host (ipvsadm(8), `--set`).
//!
//! Pure: the values, and their messages SET_CONFIG and GET_CONFIG.

use std::fmt;
use std::time::Duration;

use super::codec::VERSION;
use crate::netlink::wire::{ACK, Attributes, DecodeError, Writer};

const CMD_SET_CONFIG: u8 = 12;
const CMD_GET_CONFIG: u8 = 13;

const ATTR_TIMEOUT_TCP: u16 = 4;
const ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const ATTR_TIMEOUT_UDP: u16 = 6;

/// The times, in whole seconds; what is `None` is left as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Of open TCP connections; the kernel begins with 15 min.
    pub tcp: Option<Duration>,
    /// Of TCP connections that a FIN has begun to close; 2 min.
    pub tcp_fin: Option<Duration>,
    /// Of UDP; 5 min.
    pub udp: Option<Duration>,
}

impl Timeouts {
    /// What must be set, where `have` is as it is.
    #[must_use]
    pub fn against(self, have: Self) -> Self {
        let unless = |want: Option<Duration>, have| want.filter(|_| want != have);
        Self {
            tcp: unless(self.tcp, have.tcp),
            tcp_fin: unless(self.tcp_fin, have.tcp_fin),
            udp: unless(self.udp, have.udp),
        }
    }

    /// Whether nothing is to be set.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn attributes(self) -> [(u16, &'static str, Option<Duration>); 3] {
        [
            (ATTR_TIMEOUT_TCP, "tcp", self.tcp),
            (ATTR_TIMEOUT_TCP_FIN, "tcp_fin", self.tcp_fin),
            (ATTR_TIMEOUT_UDP, "udp", self.udp),
        ]
    }
}

/// `tcp 900 s, udp 300 s`.
impl fmt::Display for Timeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.attributes().into_iter().filter_map(|(_, name, time)| Some((name, time?)));
        let parts: Vec<String> = set.map(|(name, time)| format!("{name} {} s", time.as_secs())).collect();
        f.write_str(&parts.join(", "))
    }
}

/// Sets those that are given.
pub(super) fn set(family: u16, sequence: u32, timeouts: Timeouts) -> Vec<u8> {
    let mut writer = Writer::generic(family, ACK, sequence, CMD_SET_CONFIG, VERSION);
    for (kind, _, time) in timeouts.attributes() {
        if let Some(time) = time {
            writer.put_u32(kind, u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        }
    }
    writer.finish()
}

/// Asks for all of them.
pub(super) fn get(family: u16, sequence: u32) -> Vec<u8> {
    Writer::generic(family, ACK, sequence, CMD_GET_CONFIG, VERSION).finish()
}

/// The answer to [`get`]; a kernel without UDP or TCP balancing leaves theirs out.
pub(super) fn read(payload: &[u8]) -> Result<Timeouts, DecodeError> {
    let attributes = Attributes::parse(payload)?;
    let time = |kind: u16| match attributes.find(kind) {
        Some(_) => attributes.u32(kind, "timeout").map(|seconds| Some(Duration::from_secs(seconds.into()))),
        None => Ok(None),
    };
    Ok(Timeouts {
        tcp: time(ATTR_TIMEOUT_TCP)?,
        tcp_fin: time(ATTR_TIMEOUT_TCP_FIN)?,
        udp: time(ATTR_TIMEOUT_UDP)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::golden::check;
    use super::*;

    fn seconds(tcp: u64, udp: u64) -> Timeouts {
        Timeouts { tcp: Some(Duration::from_secs(tcp)), tcp_fin: None, udp: Some(Duration::from_secs(udp)) }
    }

    #[test]
    fn messages() {
        check(
            &set(0x1c, 9, seconds(900, 300)),
            "24 00 00 00  1c 00  05 00  09 00 00 00  00 00 00 00   0c 01 00 00    # SET_CONFIG
             08 00 04 00  84 03 00 00                                             # TIMEOUT_TCP
             08 00 06 00  2c 01 00 00                                             # TIMEOUT_UDP",
        );
        check(&get(0x1c, 10), "14 00 00 00  1c 00  05 00  0a 00 00 00  00 00 00 00   0d 01 00 00");
        assert_eq!(read(&set(0x1c, 9, seconds(900, 300))[20..]), Ok(seconds(900, 300)));
        assert_eq!(read(&[6, 0, 4, 0, 1, 0]), Err(DecodeError::Truncated("timeout")));
    }

    #[test]
    fn only_what_differs_is_set() {
        let have = Timeouts { tcp_fin: Some(Duration::from_secs(120)), ..seconds(900, 300) };
        assert!(seconds(900, 300).against(have).is_empty());
        assert!(Timeouts::default().against(have).is_empty());
        let change = seconds(901, 300).against(have);
        assert_eq!(change.to_string(), "tcp 901 s");
    }
}
