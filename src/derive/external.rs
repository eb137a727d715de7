//! spec.externalIPs, where the settings allow them.
//!
//! kube-proxy programs them as well: in its iptables and nftables modes by rules, which the shield keeps from them, in its
//! ipvs mode as virtual servers of its own, which leaves no room for kvip's.

use super::Inputs;
use super::asks::{Asks, Source, by_age};
use crate::model::Finding;

/// The device that kube-proxy makes in its ipvs mode (pkg/proxy/ipvs in Kubernetes).
const KUBE_IPVS: &str = "kube-ipvs0";

/// Whether kube-proxy balances by IPVS on this host.
pub fn beside_ipvs(inputs: &Inputs) -> bool {
    inputs.facts.links.contains_key(KUBE_IPVS)
}

/// Gathers what externalIPs ask for.
pub fn ask(inputs: &Inputs, asks: &mut Asks) {
    if !inputs.settings.asking.external_ips {
        return;
    }
    let beside_ipvs = beside_ipvs(inputs);
    for (key, service) in by_age(inputs.snapshot, |service| !service.external_ips.is_empty()) {
        if beside_ipvs {
            let text = format!(
                "spec.externalIPs not served: kube-proxy in ipvs mode ({KUBE_IPVS} is there) has them"
            );
            asks.findings.push(Finding::new(key, text).mend("run kube-proxy with mode nftables or iptables"));
            continue;
        }
        for vip in &service.external_ips {
            asks.tenant(key, *vip, Source::ExternalIp);
        }
    }
}
