//! The one loop: takes what cluster, host and admin say, runs a pass, reports.
//!
//! ```text
//! snapshot::kube ──┐                          ┌── keepalived::driver (file, check, reload: a task of its own)
//! net::watch ──────┤                          │
//! health ──────────┼──► Daemon ── pass ───────┼── ipvs, nft, stray addresses
//! keepalived ──────┤   (one owner of state)   │
//! signals, ticks ──┘                          └── status ──► systemd, journal, socket
//! ```
//!
//! Owns the order of things; decides nothing itself: what follows from what is in [`core`], [`crate::derive`] and
//! [`crate::plan`].

mod admission;
mod alive;
mod channels;
pub mod core;
pub mod ledger;
mod members;
mod moves;
pub mod objects;
mod orders;
pub mod pass;
mod probe;
mod refusals;
mod repairs;
mod run;
mod saving;
pub mod settings;
pub mod status;
mod tuning;
mod turn;
mod watchdog;
mod weight_files;
mod weights;
pub mod writers;

pub use admission::Admitted;
pub use channels::{Inputs, Outputs};
pub use ledger::Ledger;
pub use run::{SNAPSHOT, SOCKET, run};
pub use turn::Daemon;
