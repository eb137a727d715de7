//! Tests of what a plan says of Services that wait for an allocator.

use super::*;
use crate::ipam::{Kind, User, Version};
use crate::model::ObjectKey;

#[test]
fn the_second_object_of_a_claim_is_no_news() {
    let claim = |kind| Claim {
        address: "10.87.2.70".parse().unwrap(),
        kind,
        users: vec![User { service: ObjectKey::new("default", "web"), uid: "u".into(), ports: [].into() }],
        pool: Some("lan".into()),
        share_key: None,
        released: None,
        created: 0,
        version: Version::default(),
    };
    let create = Step::Create(claim(Kind::IpAddress));
    let said = next_claim(&create, Some(&Wish::Any), &Claims::default());
    assert_eq!(said.unwrap(), "it has no IPv4 address of pool lan yet: an allocator claims one");
    let claims = [claim(Kind::Lease)].into_iter().collect();
    assert_eq!(next_claim(&create, Some(&Wish::Any), &claims), None);
}
