//! What the daemon tells people and programs: one JSON document over a unix socket, in a versioned schema.
//!
//! Whoever connects to the socket gets the state of that moment and the end of the stream; nothing is read from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::beats;
use crate::model::{Finding, Protocol};

/// The document's shape; its number rises when a field changes its meaning or goes.
pub const SCHEMA: &str = "kvip.status.v1";

/// The octets of one table of Maglev hashing: 4093 pointers with the default CONFIG_IP_VS_MH_TAB_INDEX of 12 (ip_vs_mh.c).
pub const HASH_TABLE: usize = 4093 * 8;

/// Between two attempts to take in a reader when one failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long one reader of the socket may take.
const READER_LIMIT: Duration = Duration::from_secs(5);
/// Readers at a time: each has a descriptor and a document. More wait to be taken in.
const READERS_MAX: usize = 16;

/// The state of one node's kvip.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: String,
    /// kvip's version.
    pub version: String,
    /// The node's name, or the host's while no Node is known to be this host.
    pub node: String,
    /// One line in plain words, as systemd shows it.
    pub summary: String,
    /// Where the cluster's state comes from.
    pub cluster: Cluster,
    /// keepalived in a few words, such as `active`.
    pub keepalived: String,
    /// HAProxy in a few words; `idle` where nothing is served in mode proxy.
    #[serde(default)]
    pub haproxy: String,
    /// Whether this node is kept from holding VIPs by `kvip drain`.
    pub drained: bool,
    /// The weight file's value of the group `vips`: what is added to the base priority.
    pub weight: Option<i16>,
    /// Members of the group `vips` with their base priorities.
    pub members: BTreeMap<String, u8>,
    /// All VRRP groups, `vips` among them.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// The addresses of all Nodes, by which a holder elsewhere is recognised.
    pub node_addresses: BTreeMap<IpAddr, String>,
    /// The VIPs.
    pub vips: Vec<Vip>,
    /// How many virtual servers are programmed.
    pub virtual_servers: usize,
    /// How many virtual servers go by Maglev hashing, which takes [`HASH_TABLE`] octets or more of the kernel for each.
    #[serde(default)]
    pub hash_tables: usize,
    /// How many real servers are programmed.
    pub real_servers: usize,
    /// Whether the kernel has what was planned.
    pub as_planned: bool,
    /// Passes after which a second plan was not empty; each is a defect.
    pub faults: u64,
    /// How often kvip has put right what another program did.
    #[serde(default)]
    pub repairs: Repairs,
    /// Reloads of keepalived since kvip started.
    pub keepalived_reloads: u64,
    /// Nodes that do not answer.
    pub dead_nodes: Vec<String>,
    /// Endpoints that do not answer their health checks.
    #[serde(default)]
    pub failing_checks: Vec<FailingCheck>,
    /// What is not served, or not as asked.
    pub findings: Vec<Finding>,
}

/// An endpoint that does not answer its health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingCheck {
    /// Whom the check asks.
    pub address: SocketAddr,
    /// The kind of check, such as `tcp`.
    pub kind: String,
    /// What came in place of an answer.
    pub found: String,
}

/// How often kvip has put right what another program did, since kvip started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// Virtual servers.
    pub ipvs: u64,
    /// The table `inet kvip`.
    pub nftables: u64,
    /// Policy rules and routes.
    #[serde(default)]
    pub routing: u64,
}

/// The cluster's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Seconds since the API server last confirmed that the state is current; `None`: never since kvip started.
    pub contact_seconds_ago: Option<u64>,
    /// Why the API cannot be followed, when it cannot.
    pub problem: Option<String>,
    /// Why a newer state waits for `kvip accept`.
    pub held: Option<String>,
    /// What `kvip accept` must name.
    pub held_id: Option<String>,
    /// The state comes from the copy on disk and was not yet confirmed.
    pub from_disk: bool,
}

/// A VRRP group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its virtual router identifier.
    pub vrid: u8,
    /// The weight file's value: what is added to the base priority.
    pub weight: Option<i16>,
    /// Members with their base priorities.
    pub members: BTreeMap<String, u8>,
    /// How many VIPs it carries.
    pub vips: usize,
}

/// A VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// The address.
    pub vip: IpAddr,
    /// The VRRP group that carries it.
    #[serde(default)]
    pub group: String,
    /// Whether this host has it.
    pub here: bool,
    /// The node that has it, as far as the neighbour table tells; `kvip status` fills it in.
    #[serde(default)]
    pub holder: Option<String>,
    /// Since how many seconds it is, or is not, here, as far as this run of kvip knows.
    pub seconds: u64,
    /// Nothing was asked to be balanced on it, so that its ports are the host's.
    #[serde(default)]
    pub floats_only: bool,
    /// Its frontends; one that has none and does not only float refuses connections.
    pub frontends: Vec<Frontend>,
}

/// A frontend of a VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// `namespace/name`.
    pub service: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// The forwarding mode.
    pub mode: String,
    /// Endpoints that get connections.
    pub ready: usize,
    /// Endpoints.
    pub total: usize,
}

/// Serves the newest status on the socket at `path`, which everybody on the host may read.
///
/// # Errors
/// When the socket cannot be made; a single reader's trouble is nobody's error.
pub async fn serve(path: &Path, status: impl Fn() -> Status) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("make the socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .with_context(|| format!("open the socket {} to all users", path.display()))?;
    let room = Arc::new(Semaphore::new(READERS_MAX));
    let promise = beats::Promise::new("status", beats::PROMPT);
    loop {
        promise.beat();
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = sleep(beats::EVERY) => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, say: others may give some back.
            sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let document = serde_json::to_vec(&status()).context("write the status as JSON")?;
        tokio::spawn(async move {
            let _ = tokio::time::timeout(READER_LIMIT, answer(stream, document)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: UnixStream, document: Vec<u8>) -> std::io::Result<()> {
    stream.write_all(&document).await?;
    stream.shutdown().await
}

/// Asks the running daemon.
///
/// # Errors
/// When nobody listens, or what answers is not kvip of this schema.
pub async fn ask(path: &Path) -> anyhow::Result<Status> {
    let mut stream =
        UnixStream::connect(path).await.with_context(|| format!("connect to {}", path.display()))?;
    let mut document = Vec::new();
    tokio::time::timeout(READER_LIMIT, stream.read_to_end(&mut document))
        .await
        .context("wait for the daemon's answer")?
        .context("read the daemon's answer")?;
    let status: Status = serde_json::from_slice(&document).context("understand the daemon's answer")?;
    anyhow::ensure!(status.schema == SCHEMA, "the daemon speaks {}, this kvip {SCHEMA}", status.schema);
    Ok(status)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Paused, so that nobody's time is up before all have run as far as they can.
    #[tokio::test(start_paused = true)]
    async fn so_many_read_at_a_time_and_the_next_has_its_turn() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("status");
        let made = Arc::new(AtomicUsize::new(0));
        let (socket, count) = (path.clone(), Arc::clone(&made));
        // More than a socket takes unread.
        let status = Status { schema: SCHEMA.into(), summary: "x".repeat(1 << 20), ..Status::default() };
        let document = move || {
            count.fetch_add(1, Ordering::Relaxed);
            status.clone()
        };
        let serving = tokio::spawn(async move { serve(&socket, document).await });
        while UnixStream::connect(&path).await.is_err() {
            tokio::task::yield_now().await;
        }
        let mut readers = Vec::new();
        for _ in 0..READERS_MAX + 4 {
            readers.push(UnixStream::connect(&path).await.unwrap());
        }
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        let begun = made.load(Ordering::Relaxed);
        assert!(begun <= READERS_MAX + 1, "one who was gone before it read, and {READERS_MAX}: {begun}");
        readers.clear();
        tokio::time::resume();
        let status = ask(&path).await.unwrap();
        assert_eq!(status.summary.len(), 1 << 20);
        serving.abort();
    }
}
