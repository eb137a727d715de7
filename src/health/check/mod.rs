//! Health checks of endpoints, where a Service or the settings ask for them: whether each answers as it should.
//!
//! The rules are pure, in [`Machine`]; [`spawn`] gives them a clock, and `ask` sockets. Every node checks for itself: what it
//! cannot reach it should not send clients to. What follows from a check that fails is decided in `derive`.
//!
//! # When in doubt, nothing is taken out
//!
//! - An endpoint that was not looked at yet counts as answering, until it has failed `fall` checks in a row.
//! - What fails on this host (no free descriptor, no free port, not permitted) says nothing about the endpoint.
//!
//! # What it costs
//!
//! At most 4,000 checks are begun a second and 1,024 wait for an answer, whatever is asked for; beyond that checks come
//! later. Connections are ended by a reset, so that none rests in TIME_WAIT.
//! `cargo bench --bench checks` measures 10,000 endpoints asked every 5 s.

mod ask;
mod machine;
mod run;
mod statuses;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;

pub use ask::ask;
pub use machine::{Found, Machine};
pub use run::{spawn, spawn_with};
pub use statuses::{NotStatuses, Statuses};

/// How an endpoint is checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Check {
    /// What it is asked.
    pub kind: Kind,
    /// The time from one check to the next.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// So many answers in a row bring an endpoint back, at least 1.
    pub rise: u8,
    /// So many failures in a row take it out, at least 1.
    pub fall: u8,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// For a TCP connection, which is broken off before the process behind the port hears of it.
    Tcp,
    /// For a page.
    Http(Http),
    /// `grpc.health.v1.Health/Check` over HTTP/2 without TLS.
    Grpc {
        /// The service's name in the request; empty: the server as a whole.
        service: String,
    },
    /// With a datagram.
    Udp {
        /// What it holds.
        send: Vec<u8>,
        /// What the answer must contain. `None`: no answer is needed, and only the other host's word that nobody listens
        /// (ICMP port unreachable) is a failure.
        expect: Option<Vec<u8>>,
    },
}

/// A page to ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Http {
    /// Over TLS. Certificates are not verified: the check asks who answers, and pods have few that name their address.
    pub tls: bool,
    /// Its path, from `/` on.
    pub path: String,
    /// The answers that are good.
    pub statuses: Statuses,
    /// The header Host, and the name in TLS; `None`: the endpoint's address.
    pub host: Option<String>,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Http(Http { tls: false, .. }) => "http",
            Self::Http(Http { tls: true, .. }) => "https",
            Self::Grpc { .. } => "grpc",
            Self::Udp { .. } => "udp",
        })
    }
}

/// One endpoint to check. Who wants the same of the same endpoint shares one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Whom to ask.
    pub address: SocketAddr,
    /// What, and how often.
    pub check: Arc<Check>,
}

/// The endpoints to check, each with how many want it. Two that grew from one are compared at the cost of what differs.
pub type Targets = OrdMap<Target, usize>;

/// The endpoints that do not answer as they should, each with what the check found that took it out.
pub type Down = OrdMap<Target, Arc<str>>;
