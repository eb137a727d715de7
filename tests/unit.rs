//! `Unit` against a stand-in for systemd on a bus of the test's own. Needs dbus-daemon.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use kvip::unit::{Unit, UnitError};
use zbus::wire::{ObjectPath, Variant};
use zbus::{Connection, Message, MessageStream};

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/keepalived_2eservice";

/// A message bus that ends with the test.
struct Bus {
    daemon: Child,
    address: String,
}

impl Bus {
    fn start() -> Self {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon runs");
        let mut address = String::new();
        let stdout = daemon.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut address).expect("it prints its address");
        Self { daemon, address: address.trim().to_owned() }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// What the stand-in answers.
#[derive(Debug, Clone)]
struct Answers {
    load: &'static str,
    active: &'static str,
    /// The result of a job, or the name of the error that a call ends with.
    job: Result<&'static str, &'static str>,
    subscribed: bool,
}

/// Serves the few calls of systemd that kvip makes.
async fn systemd(address: String, answers: Arc<Mutex<Answers>>) -> Connection {
    let builder = zbus::connection::Builder::address(address.as_str()).name("org.freedesktop.systemd1");
    let connection = builder.build().await.expect("the bus answers");
    let mut calls = MessageStream::from(&connection);
    let server = connection.clone();
    tokio::spawn(async move {
        let mut jobs = 0;
        while let Some(Ok(call)) = calls.next().await {
            if call.message_type() == zbus::message::Type::MethodCall {
                jobs += 1;
                answer(&server, &call, jobs, &answers).await.expect("the answer is sent");
            }
        }
    });
    connection
}

async fn answer(bus: &Connection, call: &Message, id: u32, answers: &Mutex<Answers>) -> zbus::Result<()> {
    let header = call.header();
    let member = header.member().expect("a call has a member").to_string();
    let now = answers.lock().expect("no panic").clone();
    match member.as_str() {
        "LoadUnit" => bus.reply(&header, &ObjectPath::try_from(UNIT_PATH)?).await,
        "Subscribe" if now.subscribed => {
            bus.reply_error(&header, "org.freedesktop.systemd1.AlreadySubscribed", &"subscribed").await
        }
        "Subscribe" => {
            answers.lock().expect("no panic").subscribed = true;
            bus.reply(&header, &()).await
        }
        "Get" => {
            let (_, name): (String, String) = call.body().deserialize()?;
            let value = match name.as_str() {
                "LoadState" => Variant::from(now.load),
                "ActiveState" => Variant::from(now.active),
                "MainPID" => Variant::from(42u32),
                _ => Variant::from("enabled"),
            };
            bus.reply(&header, &value).await
        }
        _ => job(bus, call, id, now.job).await,
    }
}

/// Another unit's job ends first; then this one's, before the caller has read its reply.
async fn job(bus: &Connection, call: &Message, id: u32, outcome: Result<&str, &str>) -> zbus::Result<()> {
    let result = match outcome {
        Ok(result) => result,
        Err(name) => return bus.reply_error(&call.header(), name, &"no").await,
    };
    let removed = async |id: u32, unit: &str, result: &str| {
        let path = format!("/org/freedesktop/systemd1/job/{id}");
        let body = (id, ObjectPath::try_from(path)?, unit, result);
        bus.emit_signal(None::<&str>, MANAGER_PATH, MANAGER, "JobRemoved", &body).await
    };
    removed(id + 1000, "other.service", "failed").await?;
    removed(id, "keepalived.service", result).await?;
    let path = format!("/org/freedesktop/systemd1/job/{id}");
    bus.reply(&call.header(), &ObjectPath::try_from(path)?).await
}

#[tokio::test]
async fn states_jobs_errors_and_a_systemd_that_comes_back() {
    let bus = Bus::start();
    let answers = Answers { load: "loaded", active: "active", job: Ok("done"), subscribed: false };
    let answers = Arc::new(Mutex::new(answers));
    let set = |change: fn(&mut Answers)| change(&mut answers.lock().expect("no panic"));
    let mut unit = Unit::at("keepalived.service", &bus.address);

    let absent = unit.state().await.expect_err("there is no systemd yet");
    assert!(matches!(absent, UnitError::Bus(_)), "{absent}");

    let systemd_1 = systemd(bus.address.clone(), Arc::clone(&answers)).await;
    let state = unit.state().await.expect("systemd answers");
    assert_eq!((state.load.as_str(), state.active.as_str(), state.main_pid), ("loaded", "active", 42));
    assert_eq!(state.unit_file, "enabled");

    unit.start().await.expect("the job is done");
    unit.reload().await.expect("and so is a second, on the same connection");
    unit.stop().await.expect("and a third");
    set(|answers| answers.job = Ok("failed"));
    let failed = unit.start().await.expect_err("the job fails");
    assert_eq!(failed.to_string(), "cannot start keepalived.service: the job's result is failed");
    set(|answers| answers.job = Err("org.freedesktop.systemd1.UnitMasked"));
    assert_eq!(unit.start().await, Err(UnitError::Masked));
    set(|answers| answers.job = Err("org.freedesktop.systemd1.NoSuchUnit"));
    assert_eq!(unit.reload().await, Err(UnitError::Absent));
    set(|answers| answers.load = "masked");
    let state = unit.state().await.expect("systemd answers");
    assert_eq!(state.obstacle(), Some(UnitError::Masked));

    systemd_1.release_name("org.freedesktop.systemd1").await.expect("the name is given up");
    unit.reload().await.expect_err("systemd is away");
    set(|answers| {
        answers.subscribed = false;
        answers.job = Ok("done");
    });
    let _systemd_2 = systemd(bus.address.clone(), Arc::clone(&answers)).await;
    unit.reload().await.expect("systemd is back");
}
