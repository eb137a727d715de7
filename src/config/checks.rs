//! `[checks]`: how endpoints are checked, where nothing else is said, and by Service what it says of its own.

use std::time::Duration;

use figment::value::Value;
use serde::{Deserialize, Serialize};

use super::annotations::check_words;
use super::raw::Raw;
use super::{values, values_checks};
use crate::health::check::{Check, Http, Kind, Statuses};

/// How endpoints are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    /// What they are asked; nothing by default, as the cluster's readiness probes ask already.
    pub kind: CheckKind,
    /// The time from one check of an endpoint to the next, 5 s by default.
    pub every: Duration,
    /// How long an answer may take, 3 s by default.
    pub timeout: Duration,
    /// So many answers in a row bring an endpoint back, 1 by default.
    pub rise: u8,
    /// So many failures in a row take it out, 2 by default.
    pub fall: u8,
    /// What becomes of an endpoint that is out.
    pub unhealthy: Unhealthy,
    /// What becomes of a frontend whose endpoints are all out.
    pub all_unhealthy: AllUnhealthy,
    /// The page of http and https, `/` by default.
    pub path: String,
    /// The answers of http and https that are good, 200 to 399 by default.
    pub status: Statuses,
    /// The header Host of http and https, and the name in TLS; the endpoint's address by default.
    pub host: Option<String>,
    /// The port that is asked. A Service may name one; its endpoints' own otherwise.
    pub port: Option<u16>,
    /// The service that grpc asks about. A Service may name one; the server as a whole otherwise.
    pub service: String,
    /// The datagram of udp. A Service may say it; empty otherwise.
    pub send: Vec<u8>,
    /// What the answer of udp must contain. A Service may say it; no answer is needed otherwise.
    pub expect: Option<Vec<u8>>,
}

/// What endpoints are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// Nothing; the default.
    None,
    /// For a TCP connection.
    Tcp,
    /// For a page.
    Http,
    /// For a page, by TLS.
    Https,
    /// `grpc.health.v1.Health/Check`.
    Grpc,
    /// With a datagram.
    Udp,
}

/// What becomes of an endpoint that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unhealthy {
    /// It keeps the connections that it has and gets no more; the default.
    Drain,
    /// It is removed, and its connections end.
    Remove,
}

/// What becomes of a frontend whose endpoints all do not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllUnhealthy {
    /// All serve: the checks may be what is broken. The default.
    Serve,
    /// It refuses connections.
    Refuse,
}

impl Checks {
    /// What counts where nothing is said.
    ///
    /// The times are those of the original keepalived-vip. One failure may be a pod that restarts or a moment of load; two in
    /// a row take longer than that. One answer is enough, as what has answered can serve.
    pub fn standard() -> Self {
        Self {
            kind: CheckKind::None,
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(3),
            rise: 1,
            fall: 2,
            unhealthy: Unhealthy::Drain,
            all_unhealthy: AllUnhealthy::Serve,
            path: "/".into(),
            status: "200-399".parse().expect("a range of status codes"),
            host: None,
            port: None,
            service: String::new(),
            send: Vec::new(),
            expect: None,
        }
    }

    /// Takes what the annotation says whose name is `kvip.io/check` and `rest`.
    ///
    /// # Errors
    /// What is allowed, where `text` is not; then nothing has changed.
    pub fn set(&mut self, rest: &str, text: &str) -> Result<(), String> {
        let value = Value::from(text.trim());
        let raw = Raw { value: &value, loose: true };
        match rest {
            "" => self.kind = values_checks::kind(raw)?,
            "-path" => self.path = values_checks::path(raw)?,
            "-status" => self.status = values_checks::status(raw)?,
            "-host" => self.host = values_checks::host(raw)?,
            "-port" => self.port = Some(values::port(raw)?),
            "-every" => self.every = values_checks::every(raw)?,
            "-timeout" => self.timeout = values_checks::timeout(raw)?,
            "-rise" => self.rise = values_checks::in_a_row(raw)?,
            "-fall" => self.fall = values_checks::in_a_row(raw)?,
            "-unhealthy" => self.unhealthy = values_checks::unhealthy(raw)?,
            "-all-unhealthy" => self.all_unhealthy = values_checks::all_unhealthy(raw)?,
            "-service" => self.service = values_checks::service(raw)?,
            "-send" => self.send = values_checks::payload(raw)?,
            "-expect" => self.expect = Some(values_checks::payload(raw)?).filter(|bytes| !bytes.is_empty()),
            _ => {
                let words: Vec<&str> = check_words().collect();
                return Err(format!("after kvip.io/check there may be -{}", words.join(", -")));
            }
        }
        Ok(())
    }

    /// The check that this asks for, if any.
    pub fn check(&self) -> Option<Check> {
        let http = |tls| {
            let (path, statuses, host) = (self.path.clone(), self.status.clone(), self.host.clone());
            Kind::Http(Http { tls, path, statuses, host })
        };
        let kind = match self.kind {
            CheckKind::None => return None,
            CheckKind::Tcp => Kind::Tcp,
            CheckKind::Http => http(false),
            CheckKind::Https => http(true),
            CheckKind::Grpc => Kind::Grpc { service: self.service.clone() },
            CheckKind::Udp => Kind::Udp { send: self.send.clone(), expect: self.expect.clone() },
        };
        let Self { every, timeout, rise, fall, .. } = *self;
        Some(Check { kind, every, timeout, rise, fall })
    }
}
