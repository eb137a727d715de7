//! What the admin says: the settings, checked.
//!
//! Files, environment and flags are read by the submodules; inside kvip there are only valid [`Settings`].

mod annotations;
mod checks;
mod cluster;
mod cross;
mod effective;
mod entries;
mod error;
mod keys;
mod layer;
mod load;
mod locate;
mod not_toml;
mod path;
mod prune;
mod range;
mod raw;
mod scheduler;
mod sections;
mod tables;
mod toml;
mod units;
mod values;
mod values_checks;
mod values_tables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ipvs::Timeouts;
use crate::ipvs::model::Tunnel;
use crate::marks::MarkBits;
use crate::model::{ObjectKey, Vrid};

pub use annotations::ANNOTATIONS;
pub use checks::{AllUnhealthy, CheckKind, Checks, Unhealthy};
pub use cluster::{CLUSTER_KEY, Unusable, nothing_allowed, with_cluster};
pub use effective::effective;
pub use error::Problem;
pub(crate) use keys::closest;
pub use keys::{KEYS, Key, TABLES, Table};
pub use load::WrongSettings;
pub use load::{CONFIG_FILE, HostLayers, Loaded, Sources, load, load_with_origins, read_host, require};
pub use range::AddressRange;
pub use scheduler::{Scheduler, SchedulerFlag};
pub use tables::{Group, NamePattern, Pool, Static, Tenant};
pub use units::{DurationError, format_duration, parse_duration};

/// All settings of one node, valid and with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the cluster is and what is read from it.
    pub cluster: Cluster,
    /// What this host is to the cluster; found by itself where not given.
    pub node: Node,
    /// Networks that VIPs must lie in.
    pub allowed: Vec<IpNet>,
    /// How VRRP is spoken.
    pub vrrp: Vrrp,
    /// How IPVS balances.
    pub balancing: Balancing,
    /// What mode dsr takes of this host.
    pub dsr: Dsr,
    /// How endpoints are checked.
    pub checks: Checks,
    /// Which ways of asking for a VIP count.
    pub asking: Asking,
    /// Addresses to give to Services of type LoadBalancer.
    pub pools: Vec<Pool>,
    /// Which namespaces may ask for what; none: all may ask for everything.
    pub tenants: Vec<Tenant>,
    /// VRRP groups beside the one of `[vrrp]`.
    pub groups: Vec<Group>,
    /// VIPs that need no cluster.
    pub statics: Vec<Static>,
}

/// `[asking]`: which ways of asking for a VIP count, beside the ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// The annotation `kvip.io/vips`; true by default.
    pub annotations: bool,
    /// Which Services of type LoadBalancer get addresses.
    pub load_balancers: LoadBalancers,
    /// spec.externalIPs; false by default, as kube-proxy programs them as well and any tenant can write them.
    pub external_ips: bool,
    /// Labels of the nodes that allocate addresses and write status; none: those that may hold VIPs do.
    pub allocators: BTreeMap<String, String>,
    /// How long the next allocator waits for the one before it, 10 s by default.
    pub takeover_after: Duration,
}

/// Which Services of type LoadBalancer get addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadBalancers {
    /// None.
    Off,
    /// Those with loadBalancerClass `kvip.io/kvip`; the default.
    Class,
    /// Those without a class too: kvip is the cluster's default.
    Default,
}

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The kubeconfig's path, `/etc/kvip/kubeconfig` by default.
    pub kubeconfig: PathBuf,
    /// The ConfigMap that maps VIPs to Services, `default/vip-configmap` by default.
    pub config_map: ObjectKey,
    /// How long a node without contact to the API counts as fresh, 5 min by default.
    pub stale_after: Duration,
    /// The cluster's Service ranges, in which no VIP may lie; beside the ClusterIPs seen.
    pub service_ranges: Vec<IpNet>,
    /// A folder of manifests in place of the API, with `source = "files"`.
    pub manifests: Option<PathBuf>,
    /// The ConfigMap with the settings that are the cluster's, `kvip-system/kvip` by default.
    pub settings_map: ObjectKey,
}

impl Cluster {
    /// How long a freed address rests: so long a holder without contact to the API may go on serving it, as it is the last
    /// to call itself stale.
    pub fn rest(&self) -> Duration {
        self.stale_after * 2
    }
}

/// `[node]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The Node object's name.
    pub name: Option<String>,
    /// The interface that holds VIPs.
    pub interface: Option<String>,
    /// The address that VRRP speaks from, for its family.
    pub address: Option<IpAddr>,
}

/// `[vrrp]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vrrp {
    /// The group's virtual router identifier, 50 by default.
    pub vrid: Vrid,
    /// The advertisement interval, 10 ms to 10 s in steps of 10 ms, 250 ms by default.
    pub advert: Duration,
    /// How adverts travel.
    pub transport: Transport,
    /// Labels that a Node must carry to be a member; none: all Nodes are.
    pub members: BTreeMap<String, String>,
    /// Nodes labelled node.kubernetes.io/exclude-from-external-load-balancers may be members; false by default.
    pub excluded_too: bool,
    /// How long kvip may be gone before its node yields, 60 s by default.
    pub gone_after: Duration,
}

/// How VRRP adverts travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// To 224.0.0.18 or ff02::12.
    Multicast,
    /// To each member's address, for networks without multicast.
    Unicast,
}

/// `[balancing]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancing {
    /// The forwarding mode of frontends that name none.
    pub mode: Mode,
    /// The IPVS scheduler, `wlc` by default.
    pub scheduler: Scheduler,
    /// Flags of schedulers, wherever these are used; none by default.
    pub scheduler_flags: BTreeSet<SchedulerFlag>,
    /// How mode tunnel wraps packets, IP in IP by default.
    pub tunnel: Tunnel,
    /// How long a terminating endpoint may keep its connections, 60 s by default.
    pub drain_limit: Duration,
    /// The TCP port of each node that is probed for life, 10250 (the kubelet's) by default.
    pub probe_port: u16,
    /// Whether kvip answers on healthCheckNodePort, for clusters without kube-proxy; false by default.
    pub health_check_node_port: bool,
    /// What HAProxy tells servers of clients in mode proxy, for Services that say nothing of it.
    pub proxy_protocol: ProxyProtocol,
    /// Which frontends are kept from kube-proxy.
    pub shield: Shield,
    /// The admin's word that a kube-proxy in ipvs mode leaves kvip's virtual servers alone; false by default.
    pub beside_kube_proxy_ipvs: bool,
    /// How long the host's IPVS remembers connections in which nothing moves; the kernel's own where not given.
    pub timeouts: Timeouts,
    /// The sync daemon.
    pub sync: Sync,
}

/// Which frontends are kept from kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shield {
    /// Those that it has rules for too, unless it is in ipvs mode.
    Auto,
    /// All.
    On,
    /// None.
    Off,
}

/// The kernel's IPVS sync daemon, which tells backups of the holder's connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sync {
    /// Whether it runs; false by default.
    pub on: bool,
    /// The interface that it speaks over; that of the VIPs by default.
    pub interface: Option<String>,
    /// What daemons that belong together share; the VRID of `[vrrp]` by default.
    pub id: Option<u8>,
}

/// `[dsr]`: what mode dsr takes of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dsr {
    /// The bits of the firewall mark that are kvip's.
    pub mark_bits: MarkBits,
    /// The routing table that brings packets into this host's own stack.
    pub route_table: u32,
    /// The priority of the rule that names it.
    pub rule_priority: u32,
}

impl Dsr {
    /// What counts where nothing is said.
    pub fn standard() -> Self {
        Self { mark_bits: MarkBits::standard(), route_table: 5087, rule_priority: 50 }
    }
}

impl Asking {
    /// What counts where nothing is said.
    pub fn standard() -> Self {
        Self {
            annotations: true,
            load_balancers: LoadBalancers::Class,
            external_ips: false,
            allocators: BTreeMap::new(),
            takeover_after: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// The defaults, with these networks allowed.
    pub fn standard(allowed: Vec<IpNet>) -> Self {
        Self {
            cluster: Cluster {
                kubeconfig: "/etc/kvip/kubeconfig".into(),
                config_map: ObjectKey::new("default", "vip-configmap"),
                stale_after: Duration::from_secs(300),
                service_ranges: Vec::new(),
                manifests: None,
                settings_map: ObjectKey::new("kvip-system", "kvip"),
            },
            node: Node::default(),
            allowed,
            vrrp: Vrrp {
                vrid: Vrid::new(50).expect("50 is a VRID"),
                advert: Duration::from_millis(250),
                transport: Transport::Multicast,
                members: BTreeMap::new(),
                excluded_too: false,
                gone_after: Duration::from_secs(60),
            },
            balancing: Balancing {
                mode: Mode::Nat,
                scheduler: Scheduler::Wlc,
                scheduler_flags: BTreeSet::new(),
                tunnel: Tunnel::Ipip,
                drain_limit: Duration::from_secs(60),
                probe_port: 10250,
                health_check_node_port: false,
                shield: Shield::Auto,
                beside_kube_proxy_ipvs: false,
                timeouts: Timeouts::default(),
                sync: Sync::default(),
                proxy_protocol: ProxyProtocol::V1,
            },
            dsr: Dsr::standard(),
            checks: Checks::standard(),
            asking: Asking::standard(),
            pools: Vec::new(),
            tenants: Vec::new(),
            groups: Vec::new(),
            statics: Vec::new(),
        }
    }
}

/// A forwarding mode: how packets to a VIP reach a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Destination NAT by IPVS, masqueraded where replies would miss the holder.
    Nat,
    /// Two tiers of IPVS: the holder hands packets on to the pod's node, which translates and answers by itself.
    Dsr,
    /// Classic direct routing: backends carry the VIP themselves and share a link with the holder.
    Dr,
    /// IPVS wraps packets for backends that carry the VIP themselves.
    Tunnel,
    /// HAProxy on the holder ends connections and makes others, with the PROXY protocol.
    Proxy,
    /// The VIP is held and nothing more: kube-proxy or the CNI balances.
    Announce,
}

impl Mode {
    /// All of them, the usual one first.
    pub const ALL: [Self; 6] = [Self::Nat, Self::Dsr, Self::Dr, Self::Tunnel, Self::Proxy, Self::Announce];

    /// Whether answers go past the holder, which so sees one way of connections.
    pub fn is_one_way(self) -> bool {
        matches!(self, Self::Dsr | Self::Dr | Self::Tunnel)
    }

    /// Its name in settings, annotations and the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
            Self::Dr => "dr",
            Self::Tunnel => "tunnel",
            Self::Proxy => "proxy",
            Self::Announce => "announce",
        }
    }

    /// The mode of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// What HAProxy tells a server of the client whose connection it passes on: the PROXY protocol's version
/// (proxy-protocol.txt of HAProxy).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// A binary header.
    V2,
    /// Nothing: the server sees the node's address alone.
    Off,
}

impl ProxyProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V1, Self::V2, Self::Off];

    /// Its name in settings and annotations.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Off => "off",
        }
    }

    /// What has that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }
}

#[cfg(test)]
mod tests;
