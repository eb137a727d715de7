//! Speaks QEMU's machine protocol over a unix socket: one connection, one command at a time.
//!
//! Owns the wire format (QEMU's docs/interop/qmp-spec). Never starts or ends a QEMU by itself.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// A command that QEMU does not answer within this time has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection past its greeting.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates no capabilities.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot reach QEMU at {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.read()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes one command and gives what it returned.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(line.as_bytes())?;
        loop {
            let answer = self.read().with_context(|| format!("no answer from QEMU to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or("no reason given"));
            }
            // Anything else is an event, told whenever it happens.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// The machine's run state ("running", "paused", "inmigrate", ...).
    pub fn status(&mut self) -> anyhow::Result<String> {
        let answer = self.execute("query-status", &json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed the connection");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
