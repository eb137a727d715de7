//! kube-proxy in ipvs mode, which deletes every virtual server that is not its own.
//!
//! kvip cannot read kube-proxy's configuration, so it goes by the admin's word that ipvs.excludeCIDRs keeps kube-proxy
//! away. Without it this host yields: it holds no VIP that IPVS would balance, as there would soon be nothing behind it,
//! and programs no virtual server for it. Other modes go on, and so does what the holder hands on to this host's pods in
//! mode dsr: virtual servers by mark are none that kube-proxy could name (toVirtualServer, pkg/proxy/ipvs/util/ipvs_linux.go).
//!
//! That is of this host and not of the cluster: what Services are assigned, and what is said to the API, stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::assign::{Serving, Task};
use super::{Balanced, Inputs, Owner};
use crate::config::Mode;
use crate::keepalived;
use crate::model::Finding;
use crate::net::KUBE_PROXY_DEVICE as DEVICE;
use crate::report::words::count;

/// The VIPs that this host must leave to others.
pub fn yielded(inputs: &Inputs, tasks: &BTreeMap<Owner, Arc<Task>>) -> BTreeSet<IpAddr> {
    if !inputs.facts.kube_proxy_has_ipvs_mode() || inputs.settings.balancing.beside_kube_proxy_ipvs {
        return BTreeSet::new();
    }
    tasks.values().flat_map(|task| task.balanced_by_ipvs()).map(|frontend| frontend.vip).collect()
}

/// Whether a frontend is served on a host that yields its VIP.
pub fn goes_on(serving: &Serving) -> bool {
    serving.mode == Mode::Dsr
}

/// What is left of a frontend's virtual servers on a host that yields its VIP.
pub fn left(mut virtual_servers: Vec<Balanced>) -> Vec<Balanced> {
    virtual_servers.retain(|balanced| balanced.key.mark().is_some());
    virtual_servers
}

/// What is said of them.
pub fn finding(inputs: &Inputs, yielded: &BTreeSet<IpAddr>) -> Option<Finding> {
    let first = yielded.first()?;
    let which = if yielded.len() == 1 {
        first.to_string()
    } else {
        format!("{first} and {} more", count(yielded.len() - 1, "VIP"))
    };
    let text = format!(
        "in mode ipvs ({DEVICE} is there) it deletes virtual servers that are not its own, so this node does not hold {which}"
    );
    let allowed: Vec<String> = inputs.settings.allowed.iter().map(ToString::to_string).collect();
    let mend = format!(
        "put {} into ipvs.excludeCIDRs of kube-proxy's configuration, then set balancing.beside_kube_proxy_ipvs = true; or run \
         kube-proxy with mode nftables or iptables and then ip link delete {DEVICE}",
        allowed.join(", ")
    );
    Some(Finding::new("kube-proxy", text).mend(mend))
}

/// The configuration without `yielded`; an instance without VIPs is none.
pub fn without(yielded: &BTreeSet<IpAddr>, mut config: keepalived::Config) -> keepalived::Config {
    for instance in &mut config.instances {
        instance.vips.retain(|vip| !yielded.contains(vip));
    }
    config.instances.retain(|instance| !instance.vips.is_empty());
    config
}
