//! The words that every part of kvip shares: objects, frontends, backends and findings.
//!
//! Plain data without IO; parsed at the edge, valid inside.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::report::words::one_line;

/// An IP address family; everything that VRRP and IPVS do is per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family's number as in `VRRP instance …_4`: 4 or 6.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

/// The network that holds `address` alone: /32 or /128.
pub fn host_network(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// A transport protocol that a Service port may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The IP protocol number, of `/etc/protocols`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with that IP protocol number, when it is one that a Service can name.
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A namespaced object's key, written `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The object's name in it.
    pub name: String,
}

impl ObjectKey {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads `namespace/name`; `None` unless there are exactly two non-empty parts.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let good = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        good.then(|| Self::new(namespace, name))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.namespace, self.name))
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::invalid_value(serde::de::Unexpected::Str(&text), &"namespace/name")
        })
    }
}

/// Where clients connect: a VIP, a protocol and a port. In IPVS it is a virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// The virtual address.
    pub vip: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The Service's port, 1 to 65535.
    pub port: u16,
}

impl Frontend {
    /// What stands before all frontends of `vip` and behind those of every lower VIP.
    pub fn before(vip: IpAddr) -> Self {
        Self { vip, protocol: Protocol::Tcp, port: 0 }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, std::net::SocketAddr::new(self.vip, self.port))
    }
}

/// Where a pod listens. In IPVS it is a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    /// The pod's address, of the VIP's family.
    pub address: IpAddr,
    /// The pod's port.
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&std::net::SocketAddr::new(self.address, self.port).to_string())
    }
}

/// A virtual router identifier: 1 to 255 (RFC 9568, section 5.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Vrid(u8);

impl Vrid {
    /// `number` as a VRID, unless it is 0 or above 255.
    pub fn new(number: i64) -> Option<Self> {
        u8::try_from(number).ok().filter(|n| *n > 0).map(Self)
    }

    /// The number on the wire.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Vrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that is not served, or not as it was asked for, said to the person who can mend it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Finding {
    /// The object's own name, such as `default/nginx` or `default/vip-configmap`.
    pub subject: String,
    /// What is the matter: one sentence part, lower case, no full stop.
    pub text: String,
    /// The next command to type or setting to change, when there is one.
    pub mend: Option<String>,
    /// It refuses a Service what that asks for by itself, so that the Service's status says it too.
    #[serde(skip)]
    pub refuses: bool,
    /// The Services that it matters to where the subject is another object, and the ConfigMap of VIPs where that is not read.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub about: BTreeSet<ObjectKey>,
}

impl Finding {
    /// A finding on `subject` without a mend, each part of it on one line.
    pub fn new(subject: impl fmt::Display, text: impl Into<String>) -> Self {
        let (subject, text) = (one_line(&subject.to_string()), one_line(&text.into()));
        Self { subject, text, mend: None, refuses: false, about: BTreeSet::new() }
    }

    /// The same finding with what to do about it.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(one_line(&mend.into()));
        self
    }

    /// The same finding, which matters to `objects` too.
    #[must_use]
    pub fn about(mut self, objects: impl IntoIterator<Item = ObjectKey>) -> Self {
        self.about.extend(objects);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}
