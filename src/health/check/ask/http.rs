//! Asks for a page by HTTP/1.1 and looks at the status alone; redirects are not followed.
//!
//! It does not say `Connection: close`: a server that closes first has the connection in TIME_WAIT.

use std::net::SocketAddr;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Asked, Found, broken, connect, tls};
use crate::health::check::Http;
use crate::http::exchange;

/// What kvip calls itself.
const AGENT: &str = "kvip-check";
/// What is kept of an answer's head at most.
const HEAD_MAX: usize = 16 * 1024;

/// Asks `to` for `page`.
pub async fn ask(to: SocketAddr, page: &Http) -> Asked {
    let stream = connect(to).await?;
    let status = if page.tls {
        status(tls::over(stream, name(to, page)).await?, to, page).await?
    } else {
        status(stream, to, page).await?
    };
    if page.statuses.contains(status) { Ok(()) } else { Err(Found::failure(format!("status {status}"))) }
}

/// Whom TLS is to name: the host without its port, when one is given.
fn name(to: SocketAddr, page: &Http) -> ServerName<'static> {
    let authority = page.host.as_ref().and_then(|host| host.parse::<hyper::http::uri::Authority>().ok());
    let host = authority.and_then(|host| ServerName::try_from(host.host().to_owned()).ok());
    host.unwrap_or_else(|| ServerName::IpAddress(to.ip().into()))
}

async fn status<S>(stream: S, to: SocketAddr, page: &Http) -> Result<u16, Found>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::get(&page.path)
        .header(HOST, page.host.clone().unwrap_or_else(|| to.to_string()))
        .header(USER_AGENT, AGENT)
        .body(Empty::<Bytes>::new())
        .map_err(|_| Found::Unknown)?;
    let mut http = http1::Builder::new();
    http.max_buf_size(HEAD_MAX);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answer = exchange(connection, sender.send_request(request)).await;
    Ok(answer.map_err(broken)?.status().as_u16())
}
