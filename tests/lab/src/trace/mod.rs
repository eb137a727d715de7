//! What the nodes' cards saw of some packets: captured on the nodes by tcpdump, read and counted here.
//!
//! Owns the captures while they run. Never judges: which node may see what is the tests' to say.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::Lab;
use crate::layout::{NODES, NodeSpec};
use crate::ssh;

mod packet;

pub use packet::Packet;

/// What tcpdump may take to start on a slow machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The head of a capture (pcap-savefile(5)), which tcpdump writes when it listens.
const HEAD: usize = 24;

impl Lab {
    /// Captures what matches `filter` (pcap-filter(7)) on the cards of all nodes, until [`Trace::stop`].
    pub fn trace(&self, filter: &str) -> Result<Trace> {
        let start = |spec| Capture::start(self, spec, filter);
        let mut captures = NODES.iter().map(start).collect::<Result<Vec<_>>>()?;
        for capture in &mut captures {
            if !capture.listens(self)? {
                // ssh lost its connection: the next one is a new one.
                *capture = start(capture.spec)?;
                let name = capture.spec.name;
                ensure!(capture.listens(self)?, "{name}: tcpdump ended at once: is the filter well formed?");
            }
        }
        Ok(Trace { captures })
    }
}

/// Captures that are under way.
#[derive(Debug)]
pub struct Trace {
    captures: Vec<Capture>,
}

impl Trace {
    /// Ends them and reads what they have.
    pub fn stop(self) -> Result<Packets> {
        let mut packets = Vec::new();
        for mut capture in self.captures {
            capture.end()?;
            let bytes = capture.bytes();
            ensure!(bytes.len() >= HEAD, "{}: tcpdump wrote nothing", capture.spec.name);
            packets.extend(packet::read(&bytes[HEAD..], capture.spec));
        }
        Ok(Packets(packets))
    }
}

#[derive(Debug)]
struct Capture {
    spec: &'static NodeSpec,
    child: Child,
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn start(lab: &Lab, spec: &'static NodeSpec, filter: &str) -> Result<Self> {
        // It ends with standard input; a packet is written when it comes.
        let script = format!(
            "tcpdump -i eth0 -U --immediate-mode -s {} -w - '{filter}' 2>/dev/null & \
             cat >/dev/null; kill $!; wait $!; true",
            packet::LONGEST
        );
        let mut command = lab.enter(&ssh::argv(lab.layout(), spec.name, &script));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start a capture on {}", spec.name))?;
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 16_384];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { spec, child, bytes, reader: Some(reader) })
    }

    /// Waits until it listens, or has ended without that.
    fn listens(&mut self, lab: &Lab) -> Result<bool> {
        let what = format!("tcpdump on {}", self.spec.name);
        lab.wait_for(&what, START_LIMIT, || {
            let listens = self.bytes().len() >= HEAD;
            let ended = !matches!(self.child.try_wait(), Ok(None));
            (listens || ended).then_some(listens)
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| anyhow::anyhow!("reading a capture failed"))?;
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // A test that has failed already is not to fail again.
        let _ = self.end();
    }
}

/// All sightings: a packet that passes a node is seen when it comes and when it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packets(Vec<Packet>);

impl Packets {
    /// The sightings for which `keep` holds.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&Packet) -> bool) -> Self {
        Self(self.0.iter().filter(|packet| keep(packet)).cloned().collect())
    }

    /// Those that left a node with this source: answers, where it is a VIP.
    #[must_use]
    pub fn sent_from(&self, source: IpAddr) -> Self {
        self.only(|packet| packet.leaving && packet.source.ip() == source)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many packets each node sent, by its name.
    pub fn sent(&self) -> BTreeMap<&'static str, usize> {
        self.count(true)
    }

    /// How many packets each node received, by its name.
    pub fn received(&self) -> BTreeMap<&'static str, usize> {
        self.count(false)
    }

    /// How often one and the same packet came to a card of a node, at most. A loop makes this large.
    pub fn most_passes(&self) -> usize {
        let mut passes = BTreeMap::<&[u8], usize>::new();
        for packet in self.0.iter().filter(|packet| !packet.leaving) {
            *passes.entry(&packet.identity).or_default() += 1;
        }
        passes.into_values().max().unwrap_or(0)
    }

    fn count(&self, leaving: bool) -> BTreeMap<&'static str, usize> {
        let mut nodes = BTreeMap::new();
        for packet in self.0.iter().filter(|packet| packet.leaving == leaving) {
            *nodes.entry(packet.node).or_default() += 1;
        }
        nodes
    }
}

impl fmt::Display for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for packet in &self.0 {
            writeln!(f, "{packet}")?;
        }
        Ok(())
    }
}
