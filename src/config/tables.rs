//! Settings of which there may be several: pools, tenants, groups and static VIPs.
//!
//! Plain data, valid once made; read by `entries`, checked against each other by `cross`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{AddressRange, Vrrp};
use crate::model::Protocol;

/// `[[pools]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name, as `kvip.io/pool` says it.
    pub name: String,
    /// Its addresses, in the order written.
    pub addresses: Vec<AddressRange>,
    /// Whether a Service that names no pool may get an address here; true by default.
    pub auto_assign: bool,
    /// Pools with a higher number are tried first; 0 by default.
    pub priority: i64,
    /// The namespaces that may use it; none: all.
    pub namespaces: Vec<NamePattern>,
    /// Labels that a namespace must carry.
    pub namespace_labels: BTreeMap<String, String>,
    /// Labels that a Service must carry.
    pub service_labels: BTreeMap<String, String>,
    /// Leaves out IPv4 addresses that end in .0 or .255; false by default.
    pub avoid_0_255: bool,
}

impl Pool {
    /// The pool `name` with these addresses and everything else as it is where nothing is said.
    pub fn standard(name: impl Into<String>, addresses: Vec<AddressRange>) -> Self {
        Self {
            name: name.into(),
            addresses,
            auto_assign: true,
            priority: 0,
            namespaces: Vec::new(),
            namespace_labels: BTreeMap::new(),
            service_labels: BTreeMap::new(),
            avoid_0_255: false,
        }
    }
}

/// A name, or with `*` at its end the beginning of names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamePattern(String);

impl NamePattern {
    /// The pattern that `text` writes; the caller has checked that it can be a name.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.strip_suffix('*').map_or(self.0 == name, |prefix| name.starts_with(prefix))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `[[tenants]]`: what some namespaces may ask for. Where there is one at all, a namespace that none names may ask for
/// nothing. The ConfigMap, which is the admin's, is not bound by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The namespaces by name; none: those that `namespace_labels` names.
    pub namespaces: Vec<NamePattern>,
    /// Labels that a namespace must carry.
    pub namespace_labels: BTreeMap<String, String>,
    /// The pools that they may use, by name; none: no pool.
    pub pools: Vec<NamePattern>,
    /// Addresses that they may name themselves (`kvip.io/vips`, spec.externalIPs); none: no address. An address of one of
    /// their pools may always be named by a Service of type LoadBalancer.
    pub addresses: Vec<AddressRange>,
    /// The annotations by which they may say how their Services are served, without `kvip.io/`; `None`: all.
    pub annotations: Option<Vec<NamePattern>>,
}

impl Tenant {
    /// One that no namespace is and that may ask for nothing. It stands for what was written and not understood, so
    /// that there still is a tenant and not everything is open.
    pub fn nobody() -> Self {
        Self {
            // No namespace has an empty name.
            namespaces: vec![NamePattern::new("")],
            namespace_labels: BTreeMap::new(),
            pools: Vec::new(),
            addresses: Vec::new(),
            annotations: Some(Vec::new()),
        }
    }
}

/// `[[groups]]`: a VRRP group of its own for some of the VIPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The VIPs that it carries; the group of `[vrrp]`, called `vips`, carries what no group does.
    pub addresses: Vec<AddressRange>,
    /// How it speaks, each key left out taken from `[vrrp]`; its VRID is its own.
    pub vrrp: Vrrp,
    /// The interface, when it is not that of `[node]`.
    pub interface: Option<String>,
}

/// `[[static]]`: a VIP with backends that needs no cluster, such as the control plane's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Static {
    /// Its name, for people.
    pub name: String,
    /// The VIP.
    pub vip: IpAddr,
    /// The transport protocol, `tcp` by default.
    pub protocol: Protocol,
    /// The port that clients use.
    pub port: u16,
    /// Where it is served.
    pub backends: Vec<SocketAddr>,
    /// Whether backends are asked by a TCP connection each 2 s; true by default for TCP.
    pub check: bool,
}

impl Static {
    /// What it is called when it has no name: `10.87.2.10:6443`, with the protocol behind it where that is not TCP.
    pub fn default_name(vip: IpAddr, protocol: Protocol, port: u16) -> String {
        let frontend = SocketAddr::new(vip, port);
        match protocol {
            Protocol::Tcp => frontend.to_string(),
            other => format!("{frontend}/{other}"),
        }
    }
}
