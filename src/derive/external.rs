//! spec.externalIPs, where the settings allow them.
//!
//! kube-proxy programs them as well: in its iptables and nftables modes by rules, which the shield keeps from them, in its
//! ipvs mode as virtual servers of its own, which leaves no room for kvip's.

use super::Inputs;
use super::asks::{Asks, Source, by_age};
use crate::model::Finding;
use crate::net::KUBE_PROXY_DEVICE as DEVICE;

/// Gathers what externalIPs ask for.
pub fn ask(inputs: &Inputs, asks: &mut Asks) {
    if !inputs.settings.asking.external_ips {
        return;
    }
    let beside_ipvs = inputs.facts.kube_proxy_has_ipvs_mode();
    for (key, service) in by_age(inputs.snapshot, |service| !service.external_ips.is_empty()) {
        if beside_ipvs {
            asks.by_host = true;
            let text =
                format!("spec.externalIPs not served: kube-proxy in ipvs mode ({DEVICE} is there) has them");
            let finding = Finding::new(key, text).mend("run kube-proxy with mode nftables or iptables");
            asks.findings.push(Source::ExternalIp.refusal(finding));
            continue;
        }
        for vip in &service.external_ips {
            asks.tenant(key, *vip, Source::ExternalIp);
        }
    }
}
