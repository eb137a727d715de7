//! The kernel's IPVS table: kvip's model of it, and the generic netlink client that reads and changes it.
//!
//! In reading order: [`model`] (what a table is), `codec` (IPVS's messages), [`timeouts`] and [`sync`] (what is the whole
//! host's) and [`client`] (tables read, commands applied), which alone does IO.

pub mod client;
mod codec;
#[cfg(test)]
mod golden;
pub mod model;
pub mod sync;
pub mod timeouts;

pub use client::{Client, Error};
pub use model::{Command, Key, RealServer, Service, Table, VirtualServer};
pub use sync::{SyncCommand, SyncDaemon};
pub use timeouts::Timeouts;
