//! Small real servers to check, each for as long as it is held.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HOST, HeaderName};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A server that ends when it is let go.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each connection that `listener` accepts with `serve`; all end together.
fn serve<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(serve(stream));
        }
    });
    Server { address, task }
}

async fn listener(ip: &str) -> TcpListener {
    TcpListener::bind((ip, 0)).await.unwrap()
}

/// An address where nobody listens.
pub async fn nobody(ip: &str) -> SocketAddr {
    listener(ip).await.local_addr().unwrap()
}

/// Accepts, and never says a word.
pub async fn silent(ip: &str) -> Server {
    serve(listener(ip).await, |stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
}

/// Says something that is neither HTTP nor TLS.
pub async fn babbling() -> Server {
    serve(listener("127.0.0.1").await, |mut stream| async move {
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n220 and so on\r\n").await;
        std::future::pending::<()>().await;
    })
}

pub async fn http(tls: bool) -> Server {
    let listener = listener("127.0.0.1").await;
    if !tls {
        return serve(listener, plain);
    }
    let acceptor = acceptor();
    serve(listener, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            }
        }
    })
}

/// The same without TLS, at that address.
pub async fn http_at(address: SocketAddr) -> Server {
    serve(TcpListener::bind(address).await.unwrap(), plain)
}

async fn plain(stream: TcpStream) {
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// A certificate that has run out, of an issuer that nobody knows, for a name that nobody has.
fn acceptor() -> TlsAcceptor {
    let pem = include_bytes!("nobody.pem");
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key);
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let status = match request.uri().path() {
        "/ok" => 200,
        "/moved" => 302,
        "/for-shop" if request.headers().get(HOST).is_some_and(|host| host == "shop.example") => 200,
        "/for-shop" => 421,
        "/never" => std::future::pending().await,
        _ => 503,
    };
    Ok(Response::builder().status(status).body(Full::new(Bytes::from_static(b"a page"))).unwrap())
}

/// `grpc.health.v1.Health` that serves itself and `shop.Cart`.
pub async fn grpc() -> Server {
    serve(listener("127.0.0.1").await, |stream| async move {
        let http = http2::Builder::new(TokioExecutor::new());
        let _ = http.serve_connection(TokioIo::new(stream), service_fn(health)).await;
    })
}

async fn health(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let question = request.into_body().collect().await.unwrap().to_bytes();
    let (head, message) = question.split_at(5);
    assert_eq!(head, [0, 0, 0, 0, u8::try_from(message.len()).unwrap()]);
    let service = message.get(2..).map_or("", |name| std::str::from_utf8(name).unwrap());
    let respond = || Response::builder().header("content-type", "application/grpc");
    Ok(match service {
        "" | "shop.Cart" => respond().body(frames(&[0, 0, 0, 0, 2, 8, 1], "0")),
        "shop.Orders" => respond().body(frames(&[0, 0, 0, 0, 2, 8, 2], "0")),
        "shop.Later" => respond().body(frames(&[], "14")),
        _ => respond().header("grpc-status", "5").body(Full::default().boxed()),
    }
    .unwrap())
}

/// A message, and the status in trailers.
fn frames(message: &[u8], status: &str) -> BoxBody<Bytes, Infallible> {
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), status.parse().unwrap())]);
    Full::new(Bytes::copy_from_slice(message)).with_trailers(async { Some(Ok(trailers)) }).boxed()
}

/// Answers `ping` with `pong`, and nothing else at all.
pub async fn udp(ip: &str) -> Server {
    let socket = UdpSocket::bind((ip, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut question = [0; 64];
        loop {
            let (length, from) = socket.recv_from(&mut question).await.unwrap();
            if &question[..length] == b"ping" {
                socket.send_to(b"pong", from).await.unwrap();
            }
        }
    });
    Server { address, task }
}
