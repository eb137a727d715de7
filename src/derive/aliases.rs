//! The annotations of Services that kvip reads, and those of its peers that mean the same.

use crate::snapshot::Service;

/// VIPs: on a Service of type LoadBalancer the addresses that it wants from IPAM, on any other those that it asks for.
pub const VIPS: &str = "kvip.io/vips";
/// The pool to take addresses from.
pub const POOL: &str = "kvip.io/pool";
/// Services of one namespace with the same key may share an address.
pub const SHARE_KEY: &str = "kvip.io/share-key";

/// By kvip's annotation those of MetalLB and kube-vip that mean the same on a Service of type LoadBalancer.
const ALIASES: [(&str, &[&str]); 3] = [
    (
        VIPS,
        &["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs", "kube-vip.io/loadbalancerIPs"],
    ),
    (POOL, &["metallb.io/address-pool", "metallb.universe.tf/address-pool"]),
    (SHARE_KEY, &["metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"]),
];

/// The annotation `key` of a Service of type LoadBalancer, or the first alias of it: which one, and what it says.
pub fn of<'a>(service: &'a Service, key: &'static str) -> Option<(&'static str, &'a str)> {
    let aliases = ALIASES.iter().find(|(own, _)| *own == key).map_or(&[][..], |(_, aliases)| aliases);
    std::iter::once(&key).chain(aliases).find_map(|name| {
        let said = service.annotations.get(*name)?.trim();
        (!said.is_empty()).then_some((*name, said))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvips_own_annotation_counts_before_an_alias() {
        let annotations = |all: &[(&str, &str)]| Service {
            annotations: all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Service::default()
        };
        let both = annotations(&[("metallb.io/address-pool", "lan"), (POOL, "dmz")]);
        assert_eq!(of(&both, POOL), Some((POOL, "dmz")));
        let alias = annotations(&[("metallb.io/address-pool", "lan"), (POOL, " ")]);
        assert_eq!(of(&alias, POOL), Some(("metallb.io/address-pool", "lan")));
        assert_eq!(of(&alias, SHARE_KEY), None);
    }
}
