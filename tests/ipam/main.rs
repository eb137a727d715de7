//! Allocation on virtual time: three real allocators on a simulated API that delays, fails and shows old states, while
//! Services come and go and allocators die.
//!
//! Nothing here sleeps or has a network.

#![expect(clippy::unwrap_used, reason = "tests")]

mod api;
mod cases;
mod cluster;
mod races;
