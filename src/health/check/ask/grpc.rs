//! Asks `grpc.health.v1.Health/Check` (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//!
//! Its two messages have a field each, so they are written and read here.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, TE};
use hyper::rt::Executor;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::{Asked, Found, broken, connect};
use crate::http::exchange;

/// An answer is 7 bytes.
const ANSWER_MAX: usize = 1024;
/// `HealthCheckResponse.ServingStatus`, by number.
const STATES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks `to` whether `service` is served.
pub async fn ask(to: SocketAddr, service: &str) -> Asked {
    let stream = connect(to).await?;
    let request = Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::new(question(service)))
        .map_err(|_| Found::Unknown)?;
    let tasks = Arc::default();
    let http = http2::Builder::new(Tasks(Arc::downgrade(&tasks)));
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answer = async { judge(sender.send_request(request).await.map_err(broken)?).await };
    exchange(connection, answer).await
}

/// Where hyper runs its tasks: a set of the check's own, so that they end with it, whatever they still wait for.
#[derive(Clone)]
struct Tasks(Weak<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        if let Some(tasks) = self.0.upgrade() {
            tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
        }
    }
}

/// `HealthCheckRequest { service = 1 }` in gRPC's frame: no compression, length, message.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, u8::try_from(service.len()).expect("the settings allow 100 bytes")]);
        message.extend(service.as_bytes());
    }
    let length = u32::try_from(message.len()).expect("a short message");
    [&[0][..], &length.to_be_bytes(), &message].concat().into()
}

async fn judge(answer: Response<Incoming>) -> Asked {
    let (head, body) = answer.into_parts();
    if !head.status.is_success() {
        return Err(Found::failure(format!("status {}", head.status.as_u16())));
    }
    failed(&head.headers)?;
    let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(broken)?;
    if let Some(trailers) = body.trailers() {
        failed(trailers)?;
    }
    match state(&body.to_bytes()) {
        Some(1) => Ok(()),
        Some(state) => Err(Found::failure(STATES.get(state).copied().unwrap_or("an unknown state"))),
        None => Err(Found::failure("not an answer of grpc.health.v1")),
    }
}

/// The call has failed when its status, in the head or the trailers, is another than 0.
fn failed(headers: &HeaderMap) -> Asked {
    let status = headers.get("grpc-status").and_then(|status| status.to_str().ok());
    match status {
        None | Some("0") => Ok(()),
        Some(status) => Err(Found::failure(format!("gRPC status {status}"))),
    }
}

/// The state in a frame with `HealthCheckResponse { status = 1 }`; an empty message is state 0.
fn state(frame: &[u8]) -> Option<usize> {
    match frame {
        [0, 0, 0, 0, 0] => Some(0),
        [0, 0, 0, 0, _, 0x08, state, ..] => Some(usize::from(*state)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol() {
        assert_eq!(question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(state(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(state(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(state(b"hello"), None);
        assert_eq!(state(&[]), None);
    }
}
