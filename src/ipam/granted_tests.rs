//! What a Service has, by claims written by hand.

use std::sync::Arc;

use super::super::claim::{Kind, User, Version};
use super::*;
use crate::config::{AddressRange, Pool};
use crate::model::Protocol;
use crate::snapshot::FamilyPolicy;

fn request() -> Request {
    let lan = Pool::standard("lan", vec![AddressRange::from("10.0.0.0/24".parse::<ipnet::IpNet>().unwrap())]);
    Request {
        service: ObjectKey::new("default", "web"),
        uid: "web".into(),
        families: vec![Family::V4],
        policy: FamilyPolicy::SingleStack,
        wish: Wish::Any,
        pools: vec![Arc::new(lan)],
        nameable: Vec::new(),
        share_key: None,
        ports: [(Protocol::Tcp, 80), (Protocol::Tcp, 443)].into(),
    }
}

fn claim(address: &str, created: i64, users: &[(&str, &[u16])]) -> Claim {
    let user = |(uid, ports): &(&str, &[u16])| User {
        service: ObjectKey::new("default", *uid),
        uid: (*uid).into(),
        ports: ports.iter().map(|port| (Protocol::Tcp, *port)).collect(),
    };
    Claim {
        address: address.parse().unwrap(),
        kind: Kind::IpAddress,
        users: users.iter().map(user).collect(),
        pool: None,
        share_key: None,
        released: None,
        created,
        version: Version::default(),
    }
}

/// The addresses with their ports, and the notices, as words.
fn check(request: &Request, claims: impl IntoIterator<Item = Claim>, want: &[&str]) {
    let claims: Claims = claims.into_iter().collect();
    let granted = granted(request, &claims);
    let addresses =
        granted.addresses.iter().map(|grant| format!("{} {}", grant.address, words::ports(&grant.ports)));
    let all: Vec<String> = addresses.chain(granted.notices.iter().map(Notice::to_string)).collect();
    assert_eq!(all, want);
}

#[test]
fn the_oldest_claim_of_the_very_service_counts() {
    let claims = [
        claim("10.0.0.9", 1, &[("other", &[])]),
        claim("10.0.0.8", 3, &[("web", &[])]),
        claim("10.0.0.7", 2, &[("web", &[])]),
    ];
    check(&request(), claims, &["10.0.0.7 ports tcp 80, tcp 443"]);
    check(&request(), [Claim { released: Some(5), ..claim("10.0.0.7", 1, &[("web", &[])]) }], &[]);
}

#[test]
fn an_address_outside_todays_pools_is_kept_and_told() {
    let told = "10.9.9.9 lies in no pool that the Service may use today; it is kept";
    check(&request(), [claim("10.9.9.9", 1, &[("web", &[])])], &["10.9.9.9 ports tcp 80, tcp 443", told]);
}

#[test]
fn of_a_shared_address_only_the_ports_written_down_are_served() {
    let mut shared = claim("10.0.0.7", 1, &[("other", &[443]), ("web", &[80])]);
    check(&request(), [shared.clone()], &[]);
    shared.share_key = Some("default/k".into());
    let joined = Request { share_key: Some("default/k".into()), ..request() };
    let told = "port tcp 443 of the shared 10.0.0.7 not served: in use by default/other";
    check(&joined, [shared.clone()], &["10.0.0.7 port tcp 80", told]);
    check(&Request { share_key: Some("default/l".into()), ..request() }, [shared], &[]);
}

#[test]
fn a_named_address_is_waited_for_on_the_one_that_there_is() {
    let named = Request { wish: Wish::Addresses(vec!["10.0.0.5".parse().unwrap()]), ..request() };
    let (old, new) = (claim("10.0.0.7", 1, &[("web", &[])]), claim("10.0.0.5", 2, &[("web", &[])]));
    let told = "10.0.0.7 is kept until the address asked for is to be had";
    check(&named, [old.clone()], &["10.0.0.7 ports tcp 80, tcp 443", told]);
    check(&named, [old, new], &["10.0.0.5 ports tcp 80, tcp 443"]);
}

#[test]
fn of_several_addresses_named_of_one_family_each_is_had_as_its_claim_is_there() {
    let named = ["10.0.0.5", "10.0.0.3"].map(|address| address.parse().unwrap());
    let both = Request { wish: Wish::Addresses(named.to_vec()), ..request() };
    let ours = |address, created| claim(address, created, &[("web", &[])]);
    let had = |address: &str| format!("{address} ports tcp 80, tcp 443");
    let (first, second, other) = (had("10.0.0.5"), had("10.0.0.3"), had("10.0.0.7"));
    check(&both, [ours("10.0.0.3", 1), ours("10.0.0.5", 2)], &[&first, &second]);
    check(&both, [ours("10.0.0.3", 1)], &[&second]);
    // What it had before stands in for the one that is missing, and for none when both are there.
    let told = "10.0.0.7 is kept until the address asked for is to be had";
    check(&both, [ours("10.0.0.7", 1), ours("10.0.0.5", 2)], &[&first, &other, told]);
    check(&both, [ours("10.0.0.7", 1), ours("10.0.0.5", 2), ours("10.0.0.3", 3)], &[&first, &second]);
}

#[test]
fn both_families_or_none_where_both_are_required() {
    let both = |policy| Request { families: vec![Family::V6, Family::V4], policy, ..request() };
    let v4 = || claim("10.0.0.7", 1, &[("web", &[])]);
    check(&both(FamilyPolicy::RequireDualStack), [v4()], &[]);
    check(&both(FamilyPolicy::PreferDualStack), [v4()], &["10.0.0.7 ports tcp 80, tcp 443"]);
}

#[test]
fn of_a_lease_and_an_ip_address_of_two_services_the_older_counts_and_of_one_second_the_lease() {
    let lease = |created| Claim { kind: Kind::Lease, ..claim("10.0.0.7", created, &[("web", &[])]) };
    let other = || claim("10.0.0.7", 5, &[("other", &[])]);
    check(&request(), [lease(5), other()], &["10.0.0.7 ports tcp 80, tcp 443"]);
    check(&request(), [lease(6), other()], &[]);
}
