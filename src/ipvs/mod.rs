//! The kernel's IPVS table: kvip's model of it, and the generic netlink client that reads and changes it.
//!
//! In reading order: [`model`] (what a table is), `wire` (netlink's framing), `codec` (IPVS's messages), [`timeouts`] and
//! [`sync`] (what is the whole host's), `socket` (questions and answers) and [`client`] (tables read, commands applied).
//! Only `socket` and `client` do IO.

pub mod client;
mod codec;
#[cfg(test)]
mod golden;
pub mod model;
mod socket;
pub mod sync;
pub mod timeouts;
mod wire;

pub use client::{Client, Error};
pub use model::{Command, Key, RealServer, Service, Table, VirtualServer};
pub use sync::{SyncCommand, SyncDaemon};
pub use timeouts::Timeouts;
