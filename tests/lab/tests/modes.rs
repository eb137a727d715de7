//! Every forwarding mode on real kernels: whom pods see, where answers travel, what survives the holder, what fits through a
//! narrow link, and that nothing goes round in circles when nodes disagree. Each test prints what it measured.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use kvip_lab::asking::{Asking, ECHO, ECHO_PORTS};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::Lab;
use kvip_lab::layout::{CLIENT_V4, CLIENT_V6, OUTSIDE_V4, OUTSIDE_V6};
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::probe::Report;
use kvip_lab::scenario::{SOON, Turn, bare, echo_pods, explained, package};

#[path = "modes/affinity.rs"]
mod affinity;
#[path = "modes/classic.rs"]
mod classic;
#[path = "modes/cleanup.rs"]
mod cleanup;
#[path = "modes/draining.rs"]
mod draining;
#[path = "modes/host_network.rs"]
mod host_network;
#[path = "modes/local.rs"]
mod local;
#[path = "modes/narrow.rs"]
mod narrow;
#[path = "modes/overlay.rs"]
mod overlay;
#[path = "modes/paths.rs"]
mod paths;
#[path = "modes/preflight.rs"]
mod preflight;
#[path = "modes/rules.rs"]
mod rules;
#[path = "modes/sources.rs"]
mod sources;
#[path = "modes/handover.rs"]
mod z_handover;

/// A forwarding mode and the VIPs of the Service that is served by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    name: &'static str,
    v4: &'static str,
    v6: &'static str,
}

const NAT: Mode = Mode { name: "nat", v4: "10.87.2.51", v6: "fd00:87:2::51" };
const DSR: Mode = Mode { name: "dsr", v4: "10.87.2.52", v6: "fd00:87:2::52" };
/// Those that need nothing of pods and of nobody else.
const MODES: [Mode; 2] = [NAT, DSR];

impl Mode {
    fn vips(self) -> [&'static str; 2] {
        [self.v4, self.v6]
    }

    fn service(self) -> String {
        format!("echo-{}", self.name)
    }

    /// The Service, at the VIPs of this mode and served by it.
    fn on(self, service: Asking) -> Asking {
        service.annotation("kvip.io/vips", &self.vips().join(",")).annotation("kvip.io/mode", self.name)
    }

    /// All four ways to ask: either transport at either address.
    fn questions(self) -> impl Iterator<Item = Question> {
        let at = |vip| [Transport::Tcp, Transport::Udp].map(|transport| question(transport, vip));
        self.vips().into_iter().flat_map(at)
    }
}

/// A question to a VIP on connections that are held.
fn question(transport: Transport, vip: &str) -> Question {
    let address = vip.parse().expect("a constant address");
    Question::new(transport, SocketAddr::new(address, ECHO)).connections(1)
}

/// The lab with a pod on each node and a Service for each mode, all of which answer.
fn modes() -> Result<Turn> {
    let lab = bare()?;
    if lab.kubectl(&["get", "deployment", "echo"]).is_err() {
        lab.install_kvip(&package()?, &Settings::default())?;
        lab.kubectl_with(&["apply", "-f", "-"], &echo_pods(ECHO_PORTS))?;
        MODES.iter().try_for_each(|mode| mode.on(Asking::echo(&mode.service())).apply(&lab))?;
    }
    for mode in MODES {
        answered_by(&lab, mode, 3)?;
    }
    Ok(lab)
}

/// Waits until so many pods answer the client at both VIPs.
fn answered_by(lab: &Lab, mode: Mode, count: usize) -> Result<()> {
    let what = format!("{count} pods to answer at the VIPs of mode {}", mode.name);
    let answered = lab.wait_for(&what, Duration::from_secs(120), || {
        let all = mode.vips().iter().all(|vip| pods_behind(lab, vip).is_ok_and(|pods| pods.len() == count));
        all.then_some(())
    });
    explained(lab, answered)
}

fn pods_behind(lab: &Lab, vip: &str) -> Result<BTreeSet<String>> {
    let report = lab.ask(Asker::Client, &question(Transport::Udp, vip).connections(16), 1)?;
    Ok(report.pods().into_keys().collect())
}

/// Whose address pods are to see where it is kept. Of askers in the cluster they may see whatever lets them answer.
fn promised(asker: Asker, is_v4: bool) -> Option<&'static str> {
    match asker {
        Asker::Client => Some(if is_v4 { CLIENT_V4 } else { CLIENT_V6 }),
        Asker::Outside => Some(if is_v4 { OUTSIDE_V4 } else { OUTSIDE_V6 }),
        Asker::Node(_) | Asker::Pod(..) => None,
    }
}

/// Whether pods saw the asker's own address, and no other.
fn kept_source(report: &Report, asker: Asker, is_v4: bool) -> bool {
    promised(asker, is_v4).is_none_or(|address| report.sources().keys().eq([address]))
}

/// Waits until another node than `before` holds the VIPs.
fn successor(lab: &Lab, before: &str) -> Result<&'static str> {
    let found = lab.wait_for("another holder", SOON, || lab.holder().filter(|holder| *holder != before));
    explained(lab, found)
}
