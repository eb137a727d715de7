//! The order of addresses, and what a full pool says.

use super::*;
use crate::model::ObjectKey;
use crate::snapshot::FamilyPolicy;
use std::sync::Arc;

fn pool(name: &str, priority: i64, networks: &[&str]) -> Pool {
    let range = |text: &&str| AddressRange::from(text.parse::<ipnet::IpNet>().unwrap());
    Pool {
        name: name.into(),
        addresses: networks.iter().map(range).collect(),
        auto_assign: true,
        priority,
        namespaces: Vec::new(),
        namespace_labels: [].into(),
        service_labels: [].into(),
        avoid_0_255: false,
    }
}

fn request(uid: &str, pools: Vec<Pool>) -> Request {
    Request {
        service: ObjectKey::new("default", "web"),
        uid: uid.into(),
        families: vec![Family::V4],
        policy: FamilyPolicy::SingleStack,
        wish: Wish::Any,
        pools: pools.into_iter().map(Arc::new).collect(),
        nameable: Vec::new(),
        share_key: None,
        ports: [].into(),
    }
}

/// All addresses that a request is given, one after the other, each by its pool's name; and the refusal at the end.
fn all(request: &Request, family: Family, reserved: &Reserved) -> (Vec<(String, IpAddr)>, String) {
    let mut known = Known::default();
    let mut given = Vec::new();
    loop {
        match free_address(request, family, &known, reserved) {
            Ok((address, pool)) => {
                given.push((pool.name.clone(), address));
                known.foreign.insert(address);
            }
            Err(refusal) => return (given, refusal.to_string()),
        }
    }
}

#[test]
fn each_address_comes_once_and_services_begin_at_different_places() {
    let pools = || vec![pool("lan", 0, &["10.0.0.0/28", "10.0.1.0/28"])];
    let mut firsts = BTreeSet::new();
    for uid in ["a", "b", "c", "d", "e", "f"] {
        let (given, _) = all(&request(uid, pools()), Family::V4, &Reserved::default());
        let distinct: BTreeSet<IpAddr> = given.iter().map(|(_, address)| *address).collect();
        assert_eq!((given.len(), distinct.len()), (32, 32));
        firsts.insert(given[0].1);
    }
    assert!(firsts.len() > 3, "{firsts:?}");
}

#[test]
fn sharers_begin_at_the_same_place() {
    let first = |uid| {
        let request = Request {
            share_key: Some("default/k".into()),
            ..request(uid, vec![pool("lan", 0, &["10.0.0.0/24"])])
        };
        free_address(&request, Family::V4, &Known::default(), &Reserved::default()).unwrap().0
    };
    assert_eq!(first("a"), first("b"));
}

#[test]
fn pools_come_by_priority_then_name_and_only_those_that_give_unasked() {
    let hidden = Pool { auto_assign: false, ..pool("hidden", 9, &["10.0.3.0/32"]) };
    let pools = vec![
        hidden,
        pool("b", 0, &["10.0.0.0/32"]),
        pool("a", 0, &["10.0.1.0/32"]),
        pool("z", 5, &["10.0.2.0/32"]),
    ];
    let names = |request: &Request| {
        all(request, Family::V4, &Reserved::default()).0.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let any = request("a", pools);
    assert_eq!(names(&any), ["z", "a", "b"]);
    assert_eq!(names(&Request { wish: Wish::Pool("hidden".into()), ..any.clone() }), ["hidden"]);
    let nowhere = Request { wish: Wish::Pool("nowhere".into()), ..any };
    let said = all(&nowhere, Family::V4, &Reserved::default()).1;
    assert_eq!(said, "no pool nowhere with IPv4 addresses for it; it may use a, b, hidden, z");
}

#[test]
fn what_is_reserved_or_shunned_is_left_out() {
    let shy = Pool { avoid_0_255: true, ..pool("shy", 0, &["10.0.0.254/31", "10.0.1.0/31"]) };
    let mut reserved = Reserved::default();
    reserved.addresses.insert("10.0.0.254".parse().unwrap(), "the address of node node-a".into());
    let (given, said) = all(&request("a", vec![shy]), Family::V4, &reserved);
    assert_eq!(given, [("shy".to_owned(), "10.0.1.1".parse().unwrap())]);
    assert_eq!(
        said,
        "no IPv4 address is free: pool shy (10.0.0.254-10.0.0.255, 10.0.1.0-10.0.1.1): 0 of 4 in use, 4 not to be given"
    );
}

#[test]
fn a_pool_as_large_as_ipv6_allows_is_walked_in_no_time() {
    let whole = pool("whole", 0, &["::/0"]);
    let networks = ["::/1", "8000::/2", "c000::/2"].map(|text| text.parse::<ipnet::IpNet>().unwrap());
    let ranges = networks.map(|network| (AddressRange::from(network), "the Service range".to_owned()));
    let reserved = Reserved { ranges: ranges.into(), ..Reserved::default() };
    let request = request("a", vec![whole]);
    assert!(free_address(&request, Family::V6, &Known::default(), &reserved).is_err());
    assert!(free_address(&request, Family::V6, &Known::default(), &Reserved::default()).is_ok());
}
