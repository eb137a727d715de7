//! Tests of what a plan knows of health checks, and what it says of Services that wait for an allocator.

use super::*;
use crate::health::check;
use crate::ipam::{Kind, User, Version};
use crate::model::ObjectKey;
use crate::report::status::FailingCheck;

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

/// What the daemon says is out counts for the plan, as long as the same is asked still.
#[test]
fn endpoints_that_fail_their_checks_are_known() {
    let target = |port| Target {
        address: format!("10.2.4.10:{port}").parse().unwrap(),
        check: check::Check {
            kind: check::Kind::Tcp,
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(3),
            rise: 1,
            fall: 2,
        }
        .into(),
    };
    let failing = |port, kind: &str| FailingCheck {
        address: target(port).address,
        kind: kind.into(),
        found: "timed out".into(),
    };
    let status = Status {
        failing_checks: vec![failing(80, "tcp"), failing(81, "http"), failing(82, "tcp")],
        ..Status::default()
    };
    let mut wanted = Desired::default();
    for port in [80, 81, 83] {
        wanted.checked.add(target(port));
    }
    let known: Vec<_> = down(&status, || wanted).into_iter().collect();
    assert_eq!(known, [(target(80), "timed out".into())]);
}
