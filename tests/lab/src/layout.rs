//! Every fixed name, address and path of the lab, in one place.
//!
//! Owns the three nodes' identities, the client's and the API's addresses, and where the lab keeps its
//! files. Does no IO but reading the environment in [`Layout::from_environment`]; never creates a file.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One node of the lab. Everything about it follows from its MAC address, which is all a guest is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSpec {
    /// Host name, Node name and ssh name.
    pub name: &'static str,
    /// MAC address of its `eth0`.
    pub mac: &'static str,
    /// IPv4 address (`InternalIP`), prefix length 24.
    pub v4: &'static str,
    /// IPv6 address (`InternalIP`), prefix length 64.
    pub v6: &'static str,
    /// IPv4 pod range, a /24; `.1` is the node's `cni0`.
    pub pod4: &'static str,
    /// IPv6 pod range, a /64; `::1` is the node's `cni0`.
    pub pod6: &'static str,
}

/// The nodes, with the tutorial's addresses.
pub const NODES: [NodeSpec; 3] = [
    NodeSpec {
        name: "node-a",
        mac: "52:54:00:aa:00:04",
        v4: "10.87.2.4",
        v6: "fd00:87:2::4",
        pod4: "10.2.4.0/24",
        pod6: "fd00:2:4::/64",
    },
    NodeSpec {
        name: "node-b",
        mac: "52:54:00:aa:00:06",
        v4: "10.87.2.6",
        v6: "fd00:87:2::6",
        pod4: "10.2.6.0/24",
        pod6: "fd00:2:6::/64",
    },
    NodeSpec {
        name: "node-c",
        mac: "52:54:00:aa:00:08",
        v4: "10.87.2.8",
        v6: "fd00:87:2::8",
        pod4: "10.2.8.0/24",
        pod6: "fd00:2:8::/64",
    },
];

/// The bridge that is the nodes' network, in the lab's network namespace.
pub const BRIDGE: &str = "br0";
/// The lab's own IPv4 address on the bridge (API server), the nodes' default gateway.
pub const BRIDGE_V4: &str = "10.87.2.1";
/// The lab's own IPv6 address on the bridge, the nodes' default gateway.
pub const BRIDGE_V6: &str = "fd00:87:2::1";
/// Prefix length of the nodes' IPv4 network.
pub const PREFIX_V4: u8 = 24;
/// Prefix length of the nodes' IPv6 network.
pub const PREFIX_V6: u8 = 64;
/// Name of the client's network namespace (`ip netns exec client …` inside the lab).
pub const CLIENT: &str = "client";
/// The client's IPv4 address.
pub const CLIENT_V4: &str = "10.87.2.200";
/// The client's IPv6 address.
pub const CLIENT_V6: &str = "fd00:87:2::200";
/// Name of the network namespace of a client that is not on the nodes' network: the bridge is its router.
pub const OUTSIDE: &str = "outside";
/// That client's IPv4 address.
pub const OUTSIDE_V4: &str = "192.0.2.200";
/// That client's IPv6 address.
pub const OUTSIDE_V6: &str = "2001:db8:2::200";
/// The router's IPv4 address on that client's network.
pub const OUTSIDE_ROUTER_V4: &str = "192.0.2.1";
/// The router's IPv6 address on that client's network.
pub const OUTSIDE_ROUTER_V6: &str = "2001:db8:2::1";
/// The largest packet between router and client, in octets: less than on the nodes' network, and the client does not say so.
pub const OUTSIDE_MTU: u16 = 1400;
/// All pods' IPv4 range.
pub const PODS_V4: &str = "10.2.0.0/16";
/// All pods' IPv6 range.
pub const PODS_V6: &str = "fd00:2::/32";
/// IPv4 Service range.
pub const SERVICES_V4: &str = "10.96.0.0/16";
/// IPv6 Service range.
pub const SERVICES_V6: &str = "fd00:96::/108";
/// Where nodes and kubectl reach the API server.
pub const API_URL: &str = "https://10.87.2.1:6443";
/// Port of the API server on [`BRIDGE_V4`].
pub const API_PORT: u16 = 6443;

/// The node of that name.
pub fn node(name: &str) -> Option<&'static NodeSpec> {
    NODES.iter().find(|node| node.name == name)
}

/// Where the lab keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Root of the source tree.
    pub repo: PathBuf,
    /// What is slow to make and may be kept between runs (`$KVIP_LAB_CACHE`, else `.lab/cache`).
    pub cache: PathBuf,
    /// What belongs to one running lab (`$KVIP_LAB_STATE`, else `.lab/state`).
    pub state: PathBuf,
}

impl Layout {
    /// The layout of this source tree, as the environment modifies it.
    pub fn from_environment() -> Self {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("the crate lies in tests/lab of the source tree")
            .to_path_buf();
        let place = |variable, default: &str| {
            env::var_os(variable).map_or_else(|| repo.join(default), |path| repo.join(PathBuf::from(path)))
        };
        Self {
            cache: place("KVIP_LAB_CACHE", ".lab/cache"),
            state: place("KVIP_LAB_STATE", ".lab/state"),
            repo,
        }
    }

    /// Makes `command`, if it is the lab's own program, use this very layout.
    pub fn export(&self, command: &mut Command) {
        command.env("KVIP_LAB_CACHE", &self.cache).env("KVIP_LAB_STATE", &self.state);
    }

    /// The scripts and guest files that images are built from.
    pub fn image_sources(&self) -> PathBuf {
        self.repo.join("tests/lab/image")
    }

    /// The Go module of the control plane.
    pub fn control_plane_sources(&self) -> PathBuf {
        self.repo.join("tests/lab/controlplane")
    }

    /// Built control plane programs, kept between runs.
    pub fn control_plane_cache(&self) -> PathBuf {
        self.cache.join("controlplane")
    }

    /// The programs that the running control plane was started from, and kubectl.
    pub fn programs(&self) -> PathBuf {
        self.control_plane_state().join("bin")
    }

    /// Data, certificates and logs of the running control plane.
    pub fn control_plane_state(&self) -> PathBuf {
        self.state.join("controlplane")
    }

    /// `ssh -F` this file reaches a node by its name, from inside the lab's network namespace.
    pub fn ssh_config(&self) -> PathBuf {
        self.state.join("ssh_config")
    }

    /// Process id, in the namespace of whoever asks first, of the lab's supervisor.
    pub fn pid_file(&self) -> PathBuf {
        self.state.join("lab.pid")
    }

    /// Disk, sockets and console log of one node.
    pub fn node_dir(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Logs of the lab's own parts.
    pub fn log_dir(&self) -> PathBuf {
        self.state.join("log")
    }

    /// The admin's kubeconfig (for kubectl and the tests, never for kvip).
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.control_plane_state().join("admin.kubeconfig")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_distinct_and_follow_the_mac() {
        for spec in &NODES {
            let number = spec.mac.rsplit(':').next().map_or("", |last| last.trim_start_matches('0'));
            for (text, prefix, suffix) in [
                (spec.v4, "10.87.2.", ""),
                (spec.v6, "fd00:87:2::", ""),
                (spec.pod4, "10.2.", ".0/24"),
                (spec.pod6, "fd00:2:", "::/64"),
            ] {
                assert_eq!(text, format!("{prefix}{number}{suffix}"), "{}", spec.name);
            }
        }
    }
}
