//! Addresses for Services out of pools, without a leader.
//!
//! ```text
//! Request (what a Service asks) ┐
//! Claims  (what objects say)    ├─► granted()    pure: what every node serves
//!                               ├─► next_step()  pure: what an allocator writes next
//!                               └─► agenda()     pure: what it has to do, and when ─► Allocator ─► settle ─► ClaimStore
//! ```
//!
//! An address belongs to whoever made the object named after it, which the API lets only one make. The submodules own
//! the claims' form and their life; nothing here writes to a Service, and a claim of others (the cluster's own
//! ClusterIPs) is never written.
//!
//! A freed address rests before another Service gets it, as a node without contact may serve it that long. There is no
//! leader to remember that, so the claim itself does: it stays, with the time, until an allocator finds the rest over.
//!
//! That a Service asks no more is the cluster's to say, and any allocator acts on it. A setting of this node alone takes no
//! address away: others would give it again, and so on for ever. Only once all nodes have been of that mind for a while
//! is it given back.

mod agenda;
mod allocator;
mod candidates;
mod claim;
mod granted;
mod kube;
pub mod object;
mod refusal;
mod request;
mod settle;
mod step;
mod store;
mod words;

pub use agenda::{Outcome, Wanted};
pub use allocator::{Agreed, Allocator, Clock, Outcomes, spawn};
pub use candidates::{Known, pool_use};
pub use claim::{Claim, Claims, Kind, Port, User, Version};
pub use granted::{Grant, Granted, Notice, granted};
pub use kube::{CLASS, KubeStore, asks};
pub use refusal::{PoolUse, Refusal};
pub use request::{Request, Reserved, Wish};
pub use settle::{Now, Terms, expire, release, settle};
pub use step::{Kinds, Settled, Step, View, next_step};
pub use store::{Asks, ClaimStore, Found, LiveService, Look, StoreError};
