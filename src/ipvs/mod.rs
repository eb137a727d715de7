//! The kernel's IPVS table: kvip's model of it, and the generic netlink client that reads and changes it.

pub mod model;

pub use model::{Command, RealServer, Table, VirtualServer};
