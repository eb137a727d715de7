//! A unit of systemd over D-Bus: its state, starting, reloading and stopping it.
//!
//! Owns one connection to the system bus, made when first needed and again after each failure. systemd may hold a job
//! back until kvip itself is ready, so only a driver's own task may wait here.

use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use zbus::wire::{DynamicType, OwnedObjectPath, OwnedVariant};
use zbus::{Connection, MatchRule, MessageStream, message};

/// How long a call of systemd may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// How long a job may take: a stop of many VIPs under way, or a start behind units that systemd orders before it.
const JOB_LIMIT: Duration = Duration::from_secs(60);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// What systemd knows of a unit (`org.freedesktop.systemd1(5)`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// LoadState: `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// ActiveState: `active`, `reloading`, `inactive`, `failed`, `activating`, `deactivating`.
    pub active: String,
    /// UnitFileState: `enabled`, `disabled`, …
    pub unit_file: String,
    /// MainPID; 0 when nothing runs.
    pub main_pid: u32,
}

impl UnitState {
    /// Whether it runs, busy reloading or not.
    pub fn runs(&self) -> bool {
        self.active == "active" || self.active == "reloading"
    }

    /// Why the unit can neither run nor be started, if so.
    pub fn obstacle(&self) -> Option<UnitError> {
        match self.load.as_str() {
            "not-found" => Some(UnitError::Absent),
            "masked" => Some(UnitError::Masked),
            _ => None,
        }
    }
}

/// Why a unit is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// There is no such unit.
    #[error("the unit does not exist")]
    Absent,
    /// The admin forbade it.
    #[error("the unit is masked")]
    Masked,
    /// The system bus or systemd does not answer.
    #[error("cannot ask systemd: {0}")]
    Bus(String),
    /// The job ended otherwise than it should.
    #[error("cannot {act} {unit}: the job's result is {result}")]
    Job {
        /// `start`, `reload` or `stop`.
        act: &'static str,
        /// Its name.
        unit: &'static str,
        /// systemd's word, such as `failed`, `dependency`, `canceled`.
        result: String,
    },
    /// The job did not end.
    #[error("cannot {act} {unit}: the job has not ended for {} s", JOB_LIMIT.as_secs())]
    TooLong {
        /// `start`, `reload` or `stop`.
        act: &'static str,
        /// Its name.
        unit: &'static str,
    },
}

/// A unit of this host's systemd.
#[derive(Debug)]
pub struct Unit {
    name: &'static str,
    address: Option<String>,
    connection: Option<Connection>,
}

impl Unit {
    /// The unit `name` on the system bus; the connection is made when first needed.
    pub fn new(name: &'static str) -> Self {
        Self { name, address: None, connection: None }
    }

    /// The unit on the bus at `address`, in the syntax of the D-Bus specification.
    pub fn at(name: &'static str, address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), ..Self::new(name) }
    }

    /// What systemd knows of it.
    pub async fn state(&mut self) -> Result<UnitState, UnitError> {
        let connection = self.connection().await?;
        let outcome = read_state(&connection, self.name).await;
        self.keep(outcome)
    }

    /// Starts it and waits for the job's end.
    pub async fn start(&mut self) -> Result<(), UnitError> {
        self.job("start", "StartUnit").await
    }

    /// Has it read its configuration again and waits for the job's end, which proves no more than that its ExecReload ran.
    pub async fn reload(&mut self) -> Result<(), UnitError> {
        self.job("reload", "ReloadUnit").await
    }

    /// Stops it and waits for the job's end.
    pub async fn stop(&mut self) -> Result<(), UnitError> {
        self.job("stop", "StopUnit").await
    }

    async fn connection(&mut self) -> Result<Connection, UnitError> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let connecting = async {
            match &self.address {
                Some(address) => zbus::connection::Builder::address(address.as_str()).build().await,
                None => Connection::system().await,
            }
        };
        let connection = limited(connecting).await?;
        self.connection = Some(connection.clone());
        Ok(connection)
    }

    /// Forgets the connection after a failure of the bus, so that the next use makes a new one.
    fn keep<T>(&mut self, outcome: Result<T, UnitError>) -> Result<T, UnitError> {
        if matches!(outcome, Err(UnitError::Bus(_))) {
            self.connection = None;
        }
        outcome
    }

    async fn job(&mut self, act: &'static str, method: &'static str) -> Result<(), UnitError> {
        let connection = self.connection().await?;
        let outcome = run_job(&connection, self.name, act, method).await;
        self.keep(outcome)
    }
}

async fn read_state(connection: &Connection, name: &str) -> Result<UnitState, UnitError> {
    let reply = call(connection, MANAGER_PATH, MANAGER, "LoadUnit", &(name,)).await?;
    let path: OwnedObjectPath = reply.body().deserialize().map_err(bus)?;
    let unit = "org.freedesktop.systemd1.Unit";
    Ok(UnitState {
        load: property(connection, &path, unit, "LoadState").await?,
        active: property(connection, &path, unit, "ActiveState").await?,
        unit_file: property(connection, &path, unit, "UnitFileState").await?,
        main_pid: property(connection, &path, "org.freedesktop.systemd1.Service", "MainPID").await?,
    })
}

async fn property<T>(
    connection: &Connection,
    path: &OwnedObjectPath,
    interface: &str,
    name: &str,
) -> Result<T, UnitError>
where
    T: TryFrom<OwnedVariant, Error = zbus::Error>,
{
    let reply =
        call(connection, path.as_str(), "org.freedesktop.DBus.Properties", "Get", &(interface, name)).await?;
    let value: OwnedVariant = reply.body().deserialize().map_err(bus)?;
    T::try_from(value).map_err(bus)
}

/// Subscribes before it asks, so that the job cannot end unheard; a subscription for each job needs no care for a systemd
/// that was executed anew in between.
async fn run_job(
    connection: &Connection,
    unit: &'static str,
    act: &'static str,
    method: &'static str,
) -> Result<(), UnitError> {
    let mut removed = limited(removed_jobs(connection)).await?;
    subscribe(connection).await?;
    let reply = call(connection, MANAGER_PATH, MANAGER, method, &(unit, "replace")).await?;
    let job: OwnedObjectPath = reply.body().deserialize().map_err(bus)?;
    let result = tokio::time::timeout(JOB_LIMIT, result_of(&mut removed, &job));
    match result.await.map_err(|_| UnitError::TooLong { act, unit })?? {
        result if result == "done" => Ok(()),
        result => Err(UnitError::Job { act, unit, result }),
    }
}

async fn removed_jobs(connection: &Connection) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder().msg_type(message::Type::Signal).path(MANAGER_PATH);
    let rule = rule.interface(MANAGER).member("JobRemoved").build()?;
    MessageStream::for_match_rule(rule, connection, None).await
}

/// systemd sends signals of jobs while somebody is subscribed; asked twice by the same client it says so.
async fn subscribe(connection: &Connection) -> Result<(), UnitError> {
    let asked = connection.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), "Subscribe", &());
    let known = "org.freedesktop.systemd1.AlreadySubscribed";
    limited(async {
        match asked.await {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == known => Ok(()),
            answer => answer.map(drop),
        }
    })
    .await
}

/// The result in the JobRemoved signal of `job`: `(u id, o job, s unit, s result)`.
async fn result_of(removed: &mut MessageStream, job: &OwnedObjectPath) -> Result<String, UnitError> {
    while let Some(signal) = removed.next().await {
        let signal = signal.map_err(bus)?;
        let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
            signal.body().deserialize().map_err(bus)?;
        if path == *job {
            return Ok(result);
        }
    }
    Err(UnitError::Bus("the bus closed the connection".to_owned()))
}

async fn call<B>(
    connection: &Connection,
    path: &str,
    interface: &str,
    method: &str,
    body: &B,
) -> Result<zbus::Message, UnitError>
where
    B: serde::Serialize + DynamicType,
{
    limited(connection.call_method(Some(SYSTEMD), path, Some(interface), method, body)).await
}

async fn limited<T>(act: impl Future<Output = zbus::Result<T>>) -> Result<T, UnitError> {
    match tokio::time::timeout(CALL_LIMIT, act).await {
        Ok(outcome) => outcome.map_err(bus),
        Err(_) => Err(UnitError::Bus(format!("no answer for {} s", CALL_LIMIT.as_secs()))),
    }
}

/// systemd's answers that have a mend of their own; anything else is the bus's matter.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn bus(error: zbus::Error) -> UnitError {
    let zbus::Error::MethodError(name, text, _) = &error else {
        return UnitError::Bus(error.to_string());
    };
    match name.as_str() {
        "org.freedesktop.systemd1.UnitMasked" => UnitError::Masked,
        "org.freedesktop.systemd1.NoSuchUnit" => UnitError::Absent,
        other => UnitError::Bus(text.clone().unwrap_or_else(|| other.to_owned())),
    }
}
