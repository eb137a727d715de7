//! One good configuration, spoilt in one way at a time.

use super::*;
use crate::net::{Address, Link};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vrid(number: i64) -> Vrid {
    Vrid::new(number).unwrap()
}

fn facts() -> HostFacts {
    let address = |text: &str| Address {
        ip: ip(text),
        prefix_len: 24,
        link: "eth0".into(),
        noprefixroute: text == "10.0.0.51",
    };
    HostFacts {
        hostname: "node-a".into(),
        links: [
            ("eth0".to_owned(), Link { index: 2, up: true, ..Link::default() }),
            ("lo".to_owned(), Link { index: 1, up: true, loopback: true, ..Link::default() }),
        ]
        .into(),
        addresses: ["10.0.0.1", "10.0.0.51", "fd00::1"].map(address).into(),
        ..HostFacts::default()
    }
}

fn instance() -> Instance {
    Instance {
        vrid: vrid(50),
        family: Family::V4,
        interface: "eth0".into(),
        priority: 190,
        advert: Duration::from_millis(250),
        gone_after: Duration::from_secs(60),
        unicast: Some(Unicast { source: ip("10.0.0.1"), peers: [ip("10.0.0.2"), ip("10.0.0.3")].into() }),
        vips: [ip("10.0.0.50"), ip("10.0.0.51")].into(),
    }
}

fn config(instances: Vec<Instance>) -> Config {
    Config { router_id: "node-a".into(), gone_after: Duration::from_secs(60), instances }
}

/// Spoils the good instance, and tells what the check then says.
#[track_caller]
fn check_spoilt(spoil: impl FnOnce(&mut Instance), want: &str) {
    let mut instance = instance();
    spoil(&mut instance);
    assert_eq!(check(&config(vec![instance]), &facts()).unwrap_err().to_string(), want);
}

fn peers(instance: &mut Instance) -> &mut BTreeSet<IpAddr> {
    &mut instance.unicast.as_mut().unwrap().peers
}

#[test]
fn a_good_configuration_passes() {
    assert_eq!(check(&config(vec![instance()]), &facts()), Ok(()));
    assert_eq!(check(&config(vec![]), &facts()), Ok(()));
    let bare = Instance { vips: BTreeSet::new(), unicast: None, ..instance() };
    assert_eq!(check(&config(vec![bare]), &facts()), Ok(()));
}

#[test]
fn numbers_out_of_range() {
    check_spoilt(|i| i.priority = 255, "VRRP group 50: priority 255 is not 1 to 254");
    check_spoilt(|i| i.priority = 0, "VRRP group 50: priority 0 is not 1 to 254");
    check_spoilt(
        |i| i.advert = Duration::from_millis(3),
        "VRRP group 50: an advert each 3ms is outside 10ms to 10s",
    );
    check_spoilt(
        |i| i.vips = (0..=300u32).map(|n| IpAddr::from((0x0a01_0000 + n).to_be_bytes())).collect(),
        "VRRP group 50: 301 VIPs, where 300 is the most that one group carries",
    );
}

#[test]
fn interfaces() {
    check_spoilt(|i| i.interface = "eth9".into(), "VRRP group 50: this host has no interface eth9");
    check_spoilt(|i| i.interface = "lo".into(), "VRRP group 50: interface lo is a loopback interface");
    check_spoilt(
        |i| i.interface = "eth0 }".into(),
        "interface \"eth0 }\" holds a character that keepalived.conf cannot carry",
    );
}

#[test]
fn unicast_addresses() {
    check_spoilt(
        |i| i.unicast.as_mut().unwrap().source = ip("10.0.0.9"),
        "VRRP group 50: unicast source 10.0.0.9 is not an address of this host",
    );
    check_spoilt(
        |i| i.unicast.as_mut().unwrap().source = ip("fd00::1"),
        "VRRP group 50: fd00::1 in its IPv4 instance",
    );
    check_spoilt(|i| peers(i).clear(), "VRRP group 50: no unicast peers");
    check_spoilt(
        |i| _ = peers(i).insert(ip("10.0.0.1")),
        "VRRP group 50: unicast peer 10.0.0.1 is this node itself",
    );
    check_spoilt(|i| _ = peers(i).insert(ip("fd00::2")), "VRRP group 50: fd00::2 in its IPv4 instance");
}

#[test]
fn vips_of_the_other_family() {
    check_spoilt(|i| _ = i.vips.insert(ip("fd00::50")), "VRRP group 50: fd00::50 in its IPv4 instance");
}

#[test]
fn duplicates_across_instances() {
    let twice = config(vec![instance(), instance()]);
    assert_eq!(check(&twice, &facts()).unwrap_err().to_string(), "VRRP group 50 has two IPv4 instances");
    let shared = config(vec![instance(), Instance { vrid: vrid(51), ..instance() }]);
    assert_eq!(
        check(&shared, &facts()).unwrap_err().to_string(),
        "10.0.0.50 is in VRRP group 50 and in group 51"
    );
}

#[test]
fn a_router_id_that_would_break_the_file() {
    let broken = Config { router_id: "a\n}".into(), ..config(vec![]) };
    assert!(matches!(check(&broken, &facts()), Err(Refusal::Word { what: "router id", .. })));
}
