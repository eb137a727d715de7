//! kube-proxy in ipvs mode, which deletes every virtual server that is not its own, but for those at addresses that its
//! ipvs.excludeCIDRs cover.
//!
//! Where kube-proxy tells these, they count for each VIP; where it does not, the admin's word counts for all. What is not
//! covered this host yields: it holds no such VIP that IPVS would balance, as there would soon be nothing behind it, and
//! programs no virtual server for it. Other modes go on, and so does what the holder hands on to this host's pods in
//! mode dsr: virtual servers by mark are none that kube-proxy could name (toVirtualServer,
//! pkg/proxy/ipvs/util/ipvs_linux.go).
//!
//! That is of this host and not of the cluster: what Services are assigned, and what is said to the API, stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::assign::{Serving, Task};
use super::{Balanced, Inputs, Owner};
use crate::config::Mode;
use crate::keepalived;
use crate::kube_proxy::ADDRESS;
use crate::model::Finding;
use crate::net::KUBE_PROXY_DEVICE as DEVICE;
use crate::report::words::{count, short};

/// The VIPs that this host must leave to others.
pub fn yielded(inputs: &Inputs, tasks: &BTreeMap<Owner, Arc<Task>>) -> BTreeSet<IpAddr> {
    let Inputs { settings, facts, .. } = inputs;
    if !facts.kube_proxy_has_ipvs_mode() {
        return BTreeSet::new();
    }
    let word = settings.balancing.beside_kube_proxy_ipvs;
    let vips = tasks.values().flat_map(|task| task.balanced_by_ipvs()).map(|frontend| frontend.vip);
    vips.filter(|vip| !facts.kube_proxy_leaves_alone(*vip).unwrap_or(word)).collect()
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
    let excluded = inputs.facts.kube_proxy_excludes.as_ref();
    let why = match excluded {
        None => format!("it does not tell at {ADDRESS} which it leaves alone"),
        Some(networks) if networks.is_empty() => "its ipvs.excludeCIDRs are empty".into(),
        Some(networks) => format!("its ipvs.excludeCIDRs are {}", short(listed(networks))),
    };
    let although = match excluded {
        Some(_) if inputs.settings.balancing.beside_kube_proxy_ipvs => {
            ", although balancing.beside_kube_proxy_ipvs = true"
        }
        _ => "",
    };
    let text = format!(
        "in mode ipvs ({DEVICE} is there) it deletes virtual servers that are not its own, and {why}, so this node does not \
         hold {which}{although}"
    );
    Some(Finding::new("kube-proxy", text).mend(mend(&inputs.settings.allowed, excluded)))
}

/// What has kube-proxy leave alone all that is `allowed`; what it leaves alone already need not be said again.
fn mend(allowed: &[IpNet], excluded: Option<&BTreeSet<IpNet>>) -> String {
    let covered = |network: &&IpNet| excluded.into_iter().flatten().any(|one| one.contains(*network));
    let missing = listed(allowed.iter().filter(|network| !covered(network)));
    let then = match excluded {
        Some(_) => " and restart it".to_owned(),
        None => format!(
            ", then set its metricsBindAddress to {ADDRESS}, or balancing.beside_kube_proxy_ipvs = true in kvip's"
        ),
    };
    format!(
        "put {missing} into ipvs.excludeCIDRs of kube-proxy's configuration{then}; or run kube-proxy with mode nftables or \
         iptables and then ip link delete {DEVICE}"
    )
}

fn listed<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> String {
    networks.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The configuration without `yielded`; an instance without VIPs is none.
pub fn without(yielded: &BTreeSet<IpAddr>, mut config: keepalived::Config) -> keepalived::Config {
    for instance in &mut config.instances {
        instance.vips.retain(|vip| !yielded.contains(vip));
    }
    config.instances.retain(|instance| !instance.vips.is_empty());
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::derive::assign::assign;
    use crate::derive::{Leaving, Reach, VIPS};
    use crate::health::check::Down;
    use crate::model::{ObjectKey, Protocol};
    use crate::net::{HostFacts, Link};
    use crate::snapshot::{Service, ServicePort, Snapshot};

    /// A Service at each of two VIPs of each family.
    fn cluster() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, vip) in [("a", "10.0.0.50"), ("b", "10.0.0.51"), ("c", "fd00::50"), ("d", "fd00::51")] {
            let service = Service {
                ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80 }],
                annotations: [(VIPS.to_owned(), vip.to_owned())].into(),
                ..Service::default()
            };
            snapshot.services.insert(ObjectKey::new("default", name), service.into());
        }
        snapshot
    }

    /// What a host with `device` yields of them, and what is said of that, where kube-proxy tells of `excluded` and the admin
    /// has given his `word` or not.
    fn found(device: &str, excluded: Option<&[&str]>, word: bool) -> (Vec<String>, Option<Finding>) {
        let mut settings =
            Settings::standard(["10.0.0.0/24", "fd00::/64"].map(|net| net.parse().unwrap()).into());
        settings.balancing.beside_kube_proxy_ipvs = word;
        let network = |text: &&str| text.parse().unwrap();
        let facts = HostFacts {
            links: [(device.to_owned(), Link::default())].into(),
            kube_proxy_excludes: excluded.map(|all| all.iter().map(network).collect()),
            ..HostFacts::default()
        };
        let inputs = Inputs {
            settings: &settings,
            snapshot: &cluster(),
            facts: &facts,
            dead: &BTreeSet::new(),
            leaving: &Leaving::new(),
            unhealthy: &Down::new(),
            reach: &Reach::default(),
            foreign_marks: &BTreeSet::new(),
        };
        let assignment = assign(&inputs, &BTreeMap::new());
        let mut findings = assignment.findings.into_iter();
        let said = findings.find(|finding| finding.subject == "kube-proxy");
        (assignment.yielded.iter().map(ToString::to_string).collect(), said)
    }

    #[track_caller]
    fn check(excluded: Option<&[&str]>, word: bool, yielded: &[&str], said: Option<(&str, &str)>) {
        let (vips, finding) = found(DEVICE, excluded, word);
        assert_eq!(vips, yielded, "{excluded:?}, {word}");
        let Some((why, mend)) = said else { return assert_eq!(finding, None) };
        let finding = finding.expect("something is said of it");
        let text = "in mode ipvs (kube-ipvs0 is there) it deletes virtual servers that are not its own, and ";
        assert_eq!(finding.text, format!("{text}{why}"));
        let or = "; or run kube-proxy with mode nftables or iptables and then ip link delete kube-ipvs0";
        assert_eq!(finding.mend, Some(format!("put {mend}{or}")));
    }

    const ALL: [&str; 4] = ["10.0.0.50", "10.0.0.51", "fd00::50", "fd00::51"];

    #[test]
    fn what_kube_proxy_excludes_is_held() {
        let both: &[&str] = &["10.0.0.0/16", "fd00::/64", "192.0.2.0/24"];
        check(Some(both), false, &[], None);
        check(Some(both), true, &[], None);
        check(Some(&["0.0.0.0/0", "::/0"]), false, &[], None);
    }

    #[test]
    fn what_kube_proxy_does_not_exclude_is_yielded() {
        check(
            Some(&[]),
            false,
            &ALL,
            Some((
                "its ipvs.excludeCIDRs are empty, so this node does not hold 10.0.0.50 and 3 VIPs more",
                "10.0.0.0/24, fd00::/64 into ipvs.excludeCIDRs of kube-proxy's configuration and restart it",
            )),
        );
        check(
            Some(&["10.0.0.0/24", "fd00::50/128"]),
            false,
            &["fd00::51"],
            Some((
                "its ipvs.excludeCIDRs are 10.0.0.0/24, fd00::50/128, so this node does not hold fd00::51",
                "fd00::/64 into ipvs.excludeCIDRs of kube-proxy's configuration and restart it",
            )),
        );
    }

    #[test]
    fn what_kube_proxy_says_counts_before_the_admins_word() {
        check(
            Some(&["10.0.0.50/32", "fd00::/64"]),
            true,
            &["10.0.0.51"],
            Some((
                "its ipvs.excludeCIDRs are 10.0.0.50/32, fd00::/64, so this node does not hold 10.0.0.51, although \
                 balancing.beside_kube_proxy_ipvs = true",
                "10.0.0.0/24 into ipvs.excludeCIDRs of kube-proxy's configuration and restart it",
            )),
        );
    }

    #[test]
    fn where_kube_proxy_tells_nothing_the_admins_word_counts() {
        check(None, true, &[], None);
        check(
            None,
            false,
            &ALL,
            Some((
                "it does not tell at 127.0.0.1:10249 which it leaves alone, so this node does not hold 10.0.0.50 and 3 \
                 VIPs more",
                "10.0.0.0/24, fd00::/64 into ipvs.excludeCIDRs of kube-proxy's configuration, then set its \
                 metricsBindAddress to 127.0.0.1:10249, or balancing.beside_kube_proxy_ipvs = true in kvip's",
            )),
        );
    }

    #[test]
    fn without_its_device_nothing_is_yielded() {
        assert_eq!(found("eth0", None, false), (Vec::new(), None));
    }
}
