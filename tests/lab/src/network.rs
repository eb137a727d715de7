//! The lab's network, made inside the supervisor's own namespace: a bridge, a tap a node, a client, and one behind a router.
//!
//! Owns every device in there. Never touches the host's network: the namespace is the supervisor's.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::Context as _;

use crate::command::{command, must};
use crate::layout::{
    BRIDGE, BRIDGE_V4, BRIDGE_V6, CLIENT, CLIENT_V4, CLIENT_V6, NODES, NodeSpec, OUTSIDE, OUTSIDE_MTU,
    OUTSIDE_ROUTER_V4, OUTSIDE_ROUTER_V6, OUTSIDE_V4, OUTSIDE_V6, PREFIX_V4, PREFIX_V6,
};

const LIMIT: Duration = Duration::from_secs(20);

/// The lab's own namespace routes between the nodes' network and the client outside. It tells nobody of shorter ways.
const ROUTER: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/br0/send_redirects", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// The host side of a node's network card.
pub fn tap(node: &NodeSpec) -> String {
    format!("tap-{}", node.name)
}

/// Makes the bridge, the taps and the clients' namespaces.
pub fn raise() -> anyhow::Result<()> {
    ip(&[], &lab_lines())?;
    ip(&["-n", CLIENT], &client_lines())?;
    ip(&["-n", OUTSIDE], &outside_lines())?;
    for (name, value) in ROUTER {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
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
         link set to-client master {BRIDGE} up\n\
         netns add {OUTSIDE}\n\
         link add to-outside mtu {OUTSIDE_MTU} type veth peer name eth0 mtu {OUTSIDE_MTU} netns {OUTSIDE}\n\
         addr add {OUTSIDE_ROUTER_V4}/24 dev to-outside\n\
         addr add {OUTSIDE_ROUTER_V6}/64 dev to-outside nodad\n\
         link set to-outside up\n"
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

/// What it says of its segments is what a client says whose own link takes 1500 octets: that there is a narrower one on
/// the way is for the router to tell.
fn outside_lines() -> String {
    format!(
        "link set lo up\n\
         addr add {OUTSIDE_V4}/24 dev eth0\n\
         addr add {OUTSIDE_V6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {OUTSIDE_ROUTER_V4} advmss 1460\n\
         route add default via {OUTSIDE_ROUTER_V6} advmss 1440\n"
    )
}

fn ip(options: &[&str], lines: &str) -> anyhow::Result<()> {
    let mut ip = command(&["ip"]);
    ip.args(options).args(["-batch", "-"]);
    must(ip, lines.as_bytes(), LIMIT).map(drop)
}
