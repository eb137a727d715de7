//! Sends a datagram, and hears whether somebody listens.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::{Asked, Found, connecting};

/// What is read of an answer at most.
const ANSWER_MAX: usize = 4096;

/// Sends `payload` and waits for an answer, which must contain `expect` where something is expected.
pub async fn ask(to: SocketAddr, payload: &[u8], expect: Option<&[u8]>) -> Asked {
    let answer = exchange(to, payload).await.map_err(|error| connecting(&error))?;
    let expect = expect.unwrap_or_default();
    let found = expect.is_empty() || answer.windows(expect.len()).any(|part| part == expect);
    if found { Ok(()) } else { Err(Found::failure("another answer than expected")) }
}

async fn exchange(to: SocketAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Its own socket each time, so that a late answer is not taken for that to a later question.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    socket.send(payload).await?;
    let mut answer = vec![0; ANSWER_MAX];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}
