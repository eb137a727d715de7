//! Tests of what a plan knows of health checks, and what it says of Services that wait for an allocator.

use super::*;
use crate::health::check;
use crate::ipam::{Kind, User, Version};
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

/// What becomes of waiting for a cluster of which `problem` is told after a second, and how long that takes.
async fn waited(problem: Problem) -> (Option<Update>, Duration) {
    let (snapshots_out, mut snapshots) = watch::channel(None);
    let (contact_out, mut contact) = watch::channel(Contact::default());
    let begin = tokio::time::Instant::now();
    let server = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        contact_out.send_replace(Contact { problem: Some(problem), ..Contact::default() });
        tokio::time::sleep(Duration::from_secs(4)).await;
        snapshots_out.send_replace(Some(Update::saved(Snapshot::default())));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        update = complete(&mut snapshots, &mut contact) => (update, begin.elapsed()),
        () = server => unreachable!("it never ends"),
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_what_no_waiting_mends() {
    let path = || PathBuf::from("/etc/kvip/kubeconfig");
    let (server, reason) = (|| "https://10.87.2.1:6443".to_owned(), || "why".to_owned());
    let last = [
        Problem::KubeconfigMissing { path: path() },
        Problem::KubeconfigInvalid { path: path(), reason: reason() },
        Problem::Unreadable { file: path(), reason: reason() },
        Problem::PluginFailed { path: path(), reason: reason() },
        Problem::Tls { server: server(), path: path(), reason: reason() },
        Problem::Unauthorized { server: server(), path: path() },
        Problem::Forbidden {
            server: server(),
            verb: "list",
            resource: "nodes".into(),
            reason: reason(),
            one: None,
        },
        Problem::Folder { path: path(), reason: reason() },
    ];
    for problem in last {
        assert_eq!(waited(problem).await, (None, Duration::from_secs(1)));
    }
    let passing = [
        Problem::Unreachable { server: server(), path: path(), reason: reason() },
        Problem::ServerError { server: server(), verb: "list", resource: "nodes".into(), reason: reason() },
    ];
    for problem in passing {
        let update = Some(Update::saved(Snapshot::default()));
        assert_eq!(waited(problem).await, (update, Duration::from_secs(5)));
    }
}
