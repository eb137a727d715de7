//! The daemon on virtual time: its real loop body, turned at explicit instants, on a simulated host.
//!
//! Nothing here sleeps or touches the kernel; files are in a temporary folder.

#![expect(clippy::unwrap_used, reason = "tests")]

mod admission;
mod asking;
mod checks;
mod dsr;
mod failures;
mod firewall;
mod groups;
mod host;
mod membership;
mod moves;
mod orders;
mod proxy;
mod repair;
mod reported;
mod serving;
mod statics;
mod tutorial;
mod weights;
mod world;
