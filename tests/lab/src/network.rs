//! The lab's network, made inside the supervisor's own namespace: a bridge, a tap a node, a client.
//!
//! Owns every device in there. Never touches the host's network: the namespace is the supervisor's.

use std::fmt::Write as _;
use std::time::Duration;

use crate::command::{command, must};
use crate::layout::{
    BRIDGE, BRIDGE_V4, BRIDGE_V6, CLIENT, CLIENT_V4, CLIENT_V6, NODES, NodeSpec, PREFIX_V4, PREFIX_V6,
};

const LIMIT: Duration = Duration::from_secs(20);

/// The host side of a node's network card.
pub fn tap(node: &NodeSpec) -> String {
    format!("tap-{}", node.name)
}

/// Makes the bridge, the taps and the client's namespace.
pub fn raise() -> anyhow::Result<()> {
    ip(&[], &lab_lines())?;
    ip(&["-n", CLIENT], &client_lines())
}

/// Lets a node's packets through, or drops them without a word, as a broken switch would.
pub fn set_link(node: &NodeSpec, up: bool) -> anyhow::Result<()> {
    ip(&[], &format!("link set {} {}\n", tap(node), if up { "up" } else { "down" }))
}

fn lab_lines() -> String {
    // No spanning tree and no learning pause: a port is to forward from its first moment on.
    let mut lines = format!(
        "link set lo up\n\
         link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         addr add {BRIDGE_V4}/{PREFIX_V4} dev {BRIDGE}\n\
         addr add {BRIDGE_V6}/{PREFIX_V6} dev {BRIDGE} nodad\n\
         link set {BRIDGE} up\n\
         netns add {CLIENT}\n\
         link add to-client type veth peer name eth0 netns {CLIENT}\n\
         link set to-client master {BRIDGE} up\n"
    );
    for node in &NODES {
        let tap = tap(node);
        writeln!(lines, "tuntap add {tap} mode tap\nlink set {tap} master {BRIDGE} up")
            .expect("a String takes all text");
    }
    lines
}

fn client_lines() -> String {
    format!(
        "link set lo up\n\
         addr add {CLIENT_V4}/{PREFIX_V4} dev eth0\n\
         addr add {CLIENT_V6}/{PREFIX_V6} dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {BRIDGE_V4}\n\
         route add default via {BRIDGE_V6}\n"
    )
}

fn ip(options: &[&str], lines: &str) -> anyhow::Result<()> {
    let mut ip = command(&["ip"]);
    ip.args(options).args(["-batch", "-"]);
    must(ip, lines.as_bytes(), LIMIT).map(drop)
}
