//! The kernel's IPVS table: kvip's model of it, and the generic netlink client that reads and changes it.
//!
//! In reading order: [`model`] (what a table is), `wire` (netlink's framing), `codec` (IPVS's messages), `socket`
//! (questions and answers) and [`client`] (tables read, commands applied). Only `socket` and `client` do IO.

pub mod client;
mod codec;
pub mod model;
mod socket;
mod wire;

pub use client::{Client, Error};
pub use model::{Command, Key, RealServer, Service, Table, VirtualServer};
