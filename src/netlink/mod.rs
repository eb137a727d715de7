//! Netlink for what the crates of rtnetlink do not speak: IPVS and connection tracking (netlink(7)).
//!
//! `wire` is the framing, which is pure; `socket` asks and hears the answers.

pub(crate) mod socket;
pub(crate) mod wire;
