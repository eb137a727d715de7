//! Asks kube-proxy's metrics server for the configuration that it runs with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::configz;
use crate::http::exchange;

/// How long its answer may take: it comes from this host and out of memory.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// How long it may be, many times what it is.
const ANSWER_MAX: usize = 64 * 1024;

/// The networks of which the kube-proxy that listens at `address` leaves virtual servers alone; `None` when it does not
/// tell, or not in time.
pub async fn ask(address: SocketAddr) -> Option<BTreeSet<IpNet>> {
    let answer = timeout(LIMIT, page(address)).await.map_err(|_| anyhow!("no answer within {LIMIT:?}"));
    match answer.flatten().and_then(|answer| configz::excluded(&answer)) {
        Ok(networks) => Some(networks),
        Err(error) => {
            debug!("kube-proxy does not tell its configuration at {address}: {error:#}");
            None
        }
    }
}

async fn page(address: SocketAddr) -> anyhow::Result<Bytes> {
    let request = Request::get("/configz")
        .header(HOST, address.to_string())
        .header(USER_AGENT, "kvip")
        .body(Empty::<Bytes>::new())?;
    let mut http = http1::Builder::new();
    http.max_buf_size(ANSWER_MAX);
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        ensure!(answer.status() == StatusCode::OK, "status {}", answer.status());
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        Ok(body.map_err(|error| anyhow!(error))?.to_bytes())
    };
    exchange(connection, answer).await
}
