//! kvip gives Services of a bare-metal Kubernetes cluster virtual IP addresses (VIPs) that outlive any node.
//!
//! # The data path
//!
//! ```text
//! kubeconfig ── watch Services, EndpointSlices, Nodes, the ConfigMap, claims; or a folder of manifests
//!      │
//!  Snapshot ── saved to disk, loaded at boot            snapshot
//!      │
//!      ▼
//!  derive (pure) ◄── Settings, HostFacts, dead nodes    config, net, kube_proxy, health
//!      │
//!  Desired + Findings                                   derive (assignment, then one part a Service)
//!      │
//!      ▼
//!  plan (pure) ◄── what the host has now                plan
//!      │
//!  ordered operations: prepare → switch → retire
//!      │
//!      ▼
//!  apply: ipvs (netlink) · nft (one owned table) · keepalived (file, check, reload) · weight files · stray addresses
//!      │
//!      ▼
//!  report: systemd · journal · status socket · status and Events of Services        ipam: addresses out of pools
//! ```
//!
//! # Invariants
//!
//! 1. The pure modules (`model`, `derive`, `plan`) do no IO and read no clock.
//! 2. Only keepalived moves VIPs; kvip's death, restart or upgrade changes nothing on the data path.
//! 3. kvip touches only what it owns, and never flushes.
//! 4. Nothing is removed without a complete snapshot of the same cluster.
//! 5. Endpoint churn touches IPVS only; keepalived reads only a checked file, written atomically.
//! 6. Make before break.
//! 7. One bad object never blocks another: findings stand beside what could be derived.
//! 8. An idle cluster costs no API write and no reload.
//! 9. After a pass, planning again gives an empty plan.
//! 10. What must agree on all nodes is a pure function of API objects and cluster-wide settings.
//! 11. The cost of one endpoint change depends on that Service alone (`cargo bench --bench endpoint_change`).
//!
//! # Reading order
//!
//! [`model`], [`snapshot`], `derive`, [`ipam`], `plan`, then the host's sides [`ipvs`], [`nft`], [`keepalived`], [`haproxy`],
//! [`net`], [`conntrack`] and [`kube_proxy`], then `daemon`, the one loop that joins them.

pub mod backoff;
mod checker;
pub mod cli;
pub mod config;
pub mod conntrack;
pub mod daemon;
pub mod derive;
pub mod files;
pub mod haproxy;
pub mod health;
pub mod host;
mod http;
pub mod ipam;
pub mod ipvs;
pub mod keepalived;
pub mod kube_proxy;
pub mod marks;
pub mod model;
pub mod net;
mod netlink;
pub mod nft;
pub mod owned;
pub mod plan;
pub mod rank;
pub mod report;
pub mod snapshot;
pub mod sysctl;
pub mod unit;
