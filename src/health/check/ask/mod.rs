//! Asks one endpoint, within the time that its check allows.
//!
//! Connections are closed by a reset (SO_LINGER of 0 s, socket(7)): whoever asks thousands of times a second cannot let each
//! connection rest for a minute in TIME_WAIT, and for two in the connection tracking.

mod grpc;
mod http;
mod tls;
mod udp;

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::{Check, Found, Kind, Target};
use crate::config::format_duration;
use crate::health::probe::knock;

/// How long ICMP's word that nobody listens is waited for: it takes a round trip within the cluster.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// A time limit that is noticed so much too late tells of a host without time for its own work: the answer may be here.
const LATE: Duration = Duration::from_millis(250);

/// What a check comes to before it has its answer: the `Err` of those who ask.
type Asked = Result<(), Found>;

/// Asks `target` what its check says.
pub async fn ask(target: &Target) -> Found {
    let Check { kind, timeout: limit, .. } = &*target.check;
    let silence_is_good = matches!(kind, Kind::Udp { expect: None, .. });
    let started = Instant::now();
    let limit = if silence_is_good { REFUSAL_LIMIT.min(*limit) } else { *limit };
    match timeout(limit, ask_by(kind, target.address)).await {
        Ok(Ok(())) => Found::Answer,
        Ok(Err(found)) => found,
        Err(_) if silence_is_good => Found::Answer,
        Err(_) if started.elapsed() > limit + LATE => Found::Unknown,
        Err(_) => Found::failure(format!("no answer within {}", format_duration(limit))),
    }
}

async fn ask_by(kind: &Kind, to: SocketAddr) -> Asked {
    match kind {
        Kind::Tcp => knock(to).await.map_err(|error| connecting(&error)),
        Kind::Http(page) => http::ask(to, page).await,
        Kind::Grpc { service } => grpc::ask(to, service).await,
        Kind::Udp { send, expect } => udp::ask(to, send, expect.as_deref()).await,
    }
}

/// A connection to `to`.
async fn connect(to: SocketAddr) -> Result<TcpStream, Found> {
    let attempt = async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_zero_linger()?;
        socket.connect(to).await
    };
    attempt.await.map_err(|error| connecting(&error))
}

/// What it says about the endpoint that it was not reached: nothing, where this host is the reason.
fn connecting(error: &io::Error) -> Found {
    match error.kind() {
        ErrorKind::ConnectionRefused => Found::failure("connection refused"),
        ErrorKind::ConnectionReset => Found::failure("connection reset"),
        ErrorKind::TimedOut => Found::failure("no answer"),
        ErrorKind::HostUnreachable => Found::failure("host unreachable"),
        ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => Found::failure("network unreachable"),
        _ => Found::Unknown,
    }
}

/// What goes wrong once there is a connection is the other side's doing.
fn broken(error: impl Display) -> Found {
    Found::failure(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_judged_by_who_made_them() {
        for (kind, failure) in [
            (ErrorKind::ConnectionRefused, true),
            (ErrorKind::ConnectionReset, true),
            (ErrorKind::TimedOut, true),
            (ErrorKind::HostUnreachable, true),
            (ErrorKind::NetworkUnreachable, true),
            (ErrorKind::AddrNotAvailable, false),
            (ErrorKind::AddrInUse, false),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::Other, false),
        ] {
            assert_eq!(connecting(&kind.into()) != Found::Unknown, failure, "{kind}");
        }
        let no_descriptor = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert_eq!(connecting(&no_descriptor), Found::Unknown);
    }
}
