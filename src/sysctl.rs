//! The kernel's settings without which VIPs cannot be served: what must hold, and what to type where it does not.
//!
//! kvip verifies and never sets them: those of IPVS are the package's (sysctl.d), forwarding is the cluster's. Only
//! [`read`] does IO.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use crate::config::Mode;
use crate::derive::Desired;
use crate::model::{Family, Finding, Protocol};
use crate::net::{HostFacts, KUBE_PROXY_DEVICE};

/// Where the package puts those of IPVS.
const OURS: &str = "/usr/lib/sysctl.d/50-kvip.conf";

/// A setting that must be 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: &'static str,
    /// What is so without it.
    without: &'static str,
    /// The package sets it at boot.
    ours: bool,
}

const CONNTRACK: Wanted = Wanted {
    name: "net.ipv4.vs.conntrack",
    without: "clients get no answer from pods on other nodes than the holder",
    ours: true,
};
const EXPIRE_NODEST: Wanted = Wanted {
    name: "net.ipv4.vs.expire_nodest_conn",
    without: "connections to a pod that is gone hang",
    ours: true,
};
const EXPIRE_QUIESCENT: Wanted = Wanted {
    name: "net.ipv4.vs.expire_quiescent_template",
    without: "clients with session affinity stay at a pod that is ending",
    ours: true,
};
const SLOPPY_TCP: Wanted = Wanted {
    name: "net.ipv4.vs.sloppy_tcp",
    without: "open connections in mode dsr do not survive a change of the holder",
    ours: true,
};
const SLOPPY_SCTP: Wanted = Wanted {
    name: "net.ipv4.vs.sloppy_sctp",
    without: "open associations of SCTP in mode dsr do not survive a change of the holder",
    ours: true,
};
const FORWARD_V4: Wanted =
    Wanted { name: "net.ipv4.ip_forward", without: "no packet to a VIP reaches a pod", ours: false };
const FORWARD_V6: Wanted = Wanted {
    name: "net.ipv6.conf.all.forwarding",
    without: "no packet to an IPv6 VIP reaches a pod",
    ours: false,
};

/// What must be 1 for what is desired.
pub fn wanted(desired: &Desired) -> Vec<Wanted> {
    let balanced = || desired.frontends.iter().filter(|(_, served)| !served.virtual_servers.is_empty());
    let of = |family| balanced().any(|(frontend, _)| Family::of(frontend.vip) == family);
    let by_dsr = |protocol: Protocol| {
        balanced().any(|(frontend, served)| served.mode == Mode::Dsr && frontend.protocol == protocol)
    };
    let any = balanced().next().is_some();
    let all = [
        (any, CONNTRACK),
        (any, EXPIRE_NODEST),
        (any, EXPIRE_QUIESCENT),
        (by_dsr(Protocol::Tcp), SLOPPY_TCP),
        (by_dsr(Protocol::Sctp), SLOPPY_SCTP),
        (of(Family::V4), FORWARD_V4),
        (of(Family::V6), FORWARD_V6),
    ];
    all.into_iter().filter_map(|(needed, wanted)| needed.then_some(wanted)).collect()
}

/// A finding for each that is there and something else.
pub fn findings(wanted: &[Wanted], have: &BTreeMap<String, String>) -> Vec<Finding> {
    let finding = |one: &Wanted| {
        let value = have.get(one.name).filter(|value| *value != "1")?;
        let name = one.name;
        let keep = if one.ours {
            format!(
                "{OURS} has it, so look for what sets it otherwise: grep -r {name} /etc/sysctl.d /etc/sysctl.conf"
            )
        } else {
            format!("and to keep it: echo {name} = 1 >/etc/sysctl.d/60-forwarding.conf")
        };
        let finding = Finding::new(name, format!("is {value} and must be 1: {}", one.without));
        Some(finding.mend(format!("sysctl -w {name}=1; {keep}")))
    };
    wanted.iter().filter_map(finding).collect()
}

/// The links of the IPv4 VIPs with frontends of mode dsr: where their clients come in.
pub fn links_of_dsr(desired: &Desired) -> BTreeSet<String> {
    let dsr = desired.frontends.iter().filter(|(_, served)| served.mode == Mode::Dsr);
    links_of(desired, dsr.map(|(frontend, _)| frontend.vip))
}

/// The links of the IPv4 VIPs whose clients' addresses nodes see on packets that others hand on: those of mode dsr, and those
/// whose datagrams are balanced one by one.
pub fn links_of_clients(desired: &Desired) -> BTreeSet<String> {
    let untracked = desired.ruleset.untracked.iter().map(|frontend| frontend.vip);
    &links_of(desired, untracked) | &links_of_dsr(desired)
}

fn links_of(desired: &Desired, vips: impl Iterator<Item = IpAddr>) -> BTreeSet<String> {
    let vips: BTreeSet<IpAddr> = vips.filter(IpAddr::is_ipv4).collect();
    let instances = desired.keepalived.instances.iter();
    instances.filter(|one| !one.vips.is_disjoint(&vips)).map(|one| one.interface.clone()).collect()
}

/// The settings by which the kernel drops what comes over `links` from addresses that it would not answer there (RFC 3704,
/// the strict way): the stricter of a link's and that of all counts.
pub fn rp_filters(links: &BTreeSet<String>) -> Vec<String> {
    of_links(links, rp_filter)
}

/// The settings by which the kernel looks for the way back to a source by the packet's mark as well: a link's, or that of all
/// (`IN_DEV_SRC_VMARK` in the kernel's inetdevice.h).
pub fn valid_marks(links: &BTreeSet<String>) -> Vec<String> {
    of_links(links, src_valid_mark)
}

fn of_links(links: &BTreeSet<String>, name: fn(&str) -> String) -> Vec<String> {
    if links.is_empty() {
        return Vec::new();
    }
    links.iter().map(|link| name(link)).chain([name("all")]).collect()
}

/// A finding for each of `links` on which marks count in the search for the way back: by the mark of mode dsr every address is
/// this host's own, and what comes from such a one is dropped as a martian (`__fib_validate_source` in fib_frontend.c).
pub fn looked_up_by_mark(links: &BTreeSet<String>, have: &BTreeMap<String, String>) -> Vec<Finding> {
    let on = |name: &String| have.get(name).is_some_and(|value| value != "0");
    let all = src_valid_mark("all");
    let names = if on(&all) { vec![all] } else { links.iter().map(|link| src_valid_mark(link)).collect() };
    let finding = |name: String| {
        let text = "is 1 and must be 0: packets to IPv4 VIPs of mode dsr are dropped here";
        let mend = format!(
            "sysctl -w {name}=0; and to keep it, where wg-quick(8) sets it for a default route: PostUp = sysctl -w {name}=0 \
             in its file, with rp_filter = 2 on the link that its packets leave by"
        );
        Finding::new(&name, text).mend(mend)
    };
    names.into_iter().filter(on).map(finding).collect()
}

/// A finding for each of `links` over which packets that peers hand on would be dropped. Where a link has no IPv4 address
/// the loose way drops them too (`last_resort` in the kernel's fib_frontend.c).
pub fn strict(links: &BTreeSet<String>, have: &BTreeMap<String, String>, facts: &HostFacts) -> Vec<Finding> {
    let value = |link: &str| have.get(&rp_filter(link)).and_then(|value| value.parse::<u8>().ok());
    let numbered =
        |link: &String| facts.addresses.iter().any(|address| address.link == *link && address.ip.is_ipv4());
    let finding = |link: &String| {
        let name = rp_filter(link);
        match value(link).max(value("all")) {
            Some(1) => {
                let text = "is strict and must be 2: packets that peers hand on with the client's address are dropped here";
                let keep = format!("echo {name} = 2 >>/etc/sysctl.d/60-forwarding.conf");
                Some(Finding::new(&name, text).mend(format!("sysctl -w {name}=2; and to keep it: {keep}")))
            }
            Some(2) if !numbered(link) => {
                let text = format!(
                    "is 2 and {link} has no IPv4 address: packets that peers hand on with the client's address are dropped here"
                );
                let mend = format!(
                    "give it one of this node's pods' range, as most CNIs do: ip address add ADDRESS/32 dev {link}"
                );
                Some(Finding::new(&name, text).mend(mend))
            }
            _ => None,
        }
    };
    links.iter().filter_map(finding).collect()
}

/// The links on which this host may hold IPv4 VIPs that kube-proxy in ipvs mode balances: their addresses are on a device of
/// its own on all nodes.
pub fn announcing(desired: &Desired, facts: &HostFacts) -> BTreeSet<String> {
    let announced = |vip: &IpAddr| vip.is_ipv4() && desired.vips.get(vip).is_some_and(|vip| vip.announced);
    let instances = desired.keepalived.instances.iter().filter(|_| facts.kube_proxy_has_ipvs_mode());
    let announcing = instances.filter(|instance| instance.vips.iter().any(announced));
    announcing.map(|instance| instance.interface.clone()).collect()
}

/// The settings by which the kernel answers ARP on `links` for addresses of other devices: the greater of a link's and that
/// of all counts (ip-sysctl in the kernel's documentation).
pub fn arp_ignores(links: &BTreeSet<String>) -> Vec<String> {
    of_links(links, arp_ignore)
}

/// A finding for each of `links` on which nodes answer ARP for VIPs of mode announce that they do not hold.
pub fn answers_everywhere(links: &BTreeSet<String>, have: &BTreeMap<String, String>) -> Vec<Finding> {
    let answers = |link: &str| have.get(&arp_ignore(link)).is_some_and(|value| value == "0");
    let finding = |link: &String| {
        let text = format!(
            "is 0 and must be 1: kube-proxy has VIPs of mode announce on {KUBE_PROXY_DEVICE}, so this node answers ARP for them \
             on {link} whoever holds them"
        );
        let mend = "set ipvs.strictARP: true in kube-proxy's configuration and restart it";
        Finding::new(arp_ignore("all"), text).mend(mend)
    };
    links.iter().filter(|link| answers(link) && answers("all")).map(finding).collect()
}

fn rp_filter(link: &str) -> String {
    of_link(link, "rp_filter")
}

fn arp_ignore(link: &str) -> String {
    of_link(link, "arp_ignore")
}

fn src_valid_mark(link: &str) -> String {
    of_link(link, "src_valid_mark")
}

/// A dot in a link's name is written as a slash (sysctl(8)).
fn of_link(link: &str, setting: &str) -> String {
    format!("net.ipv4.conf.{}.{setting}", link.replace('.', "/"))
}

/// A name as a path: dots and slashes change places.
fn exchanged(name: &str) -> String {
    let other = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(other).collect()
}

/// The values that `names` have now; what cannot be read is left out.
pub fn read(names: &[String]) -> BTreeMap<String, String> {
    let value = |name: &String| {
        let path = Path::new("/proc/sys").join(exchanged(name));
        Some((name.clone(), std::fs::read_to_string(path).ok()?.trim().to_owned()))
    };
    names.iter().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Address;

    #[track_caller]
    fn check(wanted: Wanted, value: Option<&str>, expected: Option<&str>) {
        let have = value.map(|value| (wanted.name.to_owned(), value.to_owned())).into_iter().collect();
        let found = findings(&[wanted], &have);
        assert_eq!(found.first().map(ToString::to_string).as_deref(), expected);
    }

    #[test]
    fn what_is_not_1_is_said_with_the_mend() {
        check(CONNTRACK, Some("1"), None);
        check(CONNTRACK, None, None);
        let text = "net.ipv4.vs.conntrack: is 0 and must be 1: clients get no answer from pods on other nodes than the holder";
        check(CONNTRACK, Some("0"), Some(text));
        let have = [CONNTRACK, FORWARD_V4].map(|one| (one.name.to_owned(), "0".to_owned())).into();
        let mends: Vec<String> = findings(&[CONNTRACK, FORWARD_V4], &have)
            .into_iter()
            .filter_map(|finding| finding.mend)
            .collect();
        assert!(
            mends[0].starts_with("sysctl -w net.ipv4.vs.conntrack=1; /usr/lib/sysctl.d/50-kvip.conf has it")
        );
        assert!(mends[1].ends_with("echo net.ipv4.ip_forward = 1 >/etc/sysctl.d/60-forwarding.conf"));
    }

    #[test]
    fn values_are_read_where_there_are_any() {
        let read = read(&["kernel.ostype", "no.such.setting"].map(str::to_owned));
        assert_eq!(read, [("kernel.ostype".to_owned(), "Linux".to_owned())].into());
    }

    #[test]
    fn only_the_holder_may_answer_for_what_kube_proxy_has_on_its_device() {
        let links = ["eth0".to_owned()].into();
        let [link, all] = ["net.ipv4.conf.eth0.arp_ignore", "net.ipv4.conf.all.arp_ignore"];
        assert_eq!(arp_ignores(&links), [link, all]);
        assert_eq!(arp_ignores(&BTreeSet::new()), [""; 0]);
        for (own, of_all, expected) in [("0", "0", 1), ("1", "0", 0), ("0", "1", 0), ("2", "2", 0)] {
            let have = [(link.to_owned(), own.to_owned()), (all.to_owned(), of_all.to_owned())].into();
            assert_eq!(answers_everywhere(&links, &have).len(), expected, "{own} and {of_all}");
        }
        assert_eq!(answers_everywhere(&links, &BTreeMap::new()), []);
    }

    #[test]
    fn marks_must_not_count_in_the_way_back() {
        let links = ["eth0", "eth0.100"].map(str::to_owned).into();
        let [card, vlan, all] =
            ["eth0", "eth0/100", "all"].map(|link| format!("net.ipv4.conf.{link}.src_valid_mark"));
        assert_eq!(valid_marks(&links), [card.clone(), vlan.clone(), all.clone()]);
        for (of_vlan, of_all, expected) in
            [("0", "0", None), ("1", "0", Some(&vlan)), ("0", "1", Some(&all)), ("1", "1", Some(&all))]
        {
            let have = [(&card, "0"), (&vlan, of_vlan), (&all, of_all)];
            let have = have.map(|(name, value)| (name.clone(), value.to_owned())).into();
            let found = looked_up_by_mark(&links, &have);
            let text = |name| {
                format!("{name}: is 1 and must be 0: packets to IPv4 VIPs of mode dsr are dropped here")
            };
            let said = found.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(said, Vec::from_iter(expected.map(text)));
            for finding in &found {
                let mend = format!("sysctl -w {}=0;", expected.unwrap());
                assert!(finding.mend.as_ref().is_some_and(|text| text.starts_with(&mend)), "{finding:?}");
            }
        }
        assert_eq!(looked_up_by_mark(&links, &BTreeMap::new()), []);
    }

    #[test]
    fn overlays_must_not_be_strict() {
        let links = ["flannel.1".to_owned()].into();
        let [link, all] = ["net.ipv4.conf.flannel/1.rp_filter", "net.ipv4.conf.all.rp_filter"];
        assert_eq!(rp_filters(&links), [link, all]);
        assert_eq!(exchanged(link), "net/ipv4/conf/flannel.1/rp_filter");
        let numbered = |ip: &str| {
            let ip = ip.parse().unwrap();
            let address = Address { ip, prefix_len: 32, link: "flannel.1".into(), noprefixroute: false };
            HostFacts { addresses: [address].into(), ..HostFacts::default() }
        };
        for (own, of_all, ip, expected) in [
            ("0", "0", "10.2.4.0", None),
            ("1", "0", "10.2.4.0", Some("is strict")),
            ("0", "1", "10.2.4.0", Some("is strict")),
            ("2", "1", "10.2.4.0", None),
            ("1", "2", "10.2.4.0", None),
            ("0", "2", "fd00::1", Some("is 2 and flannel.1 has no IPv4 address")),
            ("0", "0", "fd00::1", None),
        ] {
            let have = [(link.to_owned(), own.to_owned()), (all.to_owned(), of_all.to_owned())].into();
            let found = strict(&links, &have, &numbered(ip));
            let said = found.first().map(|finding| finding.text.as_ref());
            let as_expected = said
                .map_or(expected.is_none(), |said: &str| expected.is_some_and(|text| said.starts_with(text)));
            assert!(as_expected, "{own}, {of_all} and {ip}: {said:?}");
            let mend = expected.map(|text| match text {
                "is strict" => {
                    format!("sysctl -w {link}=2; and to keep it: echo {link} = 2 >>/etc/sysctl.d/60-forwarding.conf")
                }
                _ => "give it one of this node's pods' range, as most CNIs do: ip address add ADDRESS/32 dev flannel.1".to_owned(),
            });
            assert_eq!(found.first().and_then(|finding| finding.mend.as_deref()), mend.as_deref());
        }
    }
}
