//! Tests of what a plan knows of health checks, and what it says of Services that wait for an allocator.

use super::*;
use crate::health::check;
use crate::ipam::{Kind, User, Version};
use crate::ipvs::Command;
use crate::model::{Backend, Protocol};
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

/// What is planned for the example of mode dsr with a dead node, on a host with `table`.
fn planned_for_dsr(table: Table) -> Plan {
    let folder = Path::new("tests/golden/dsr");
    let settings = config::load(&Sources::of_file(folder.join("config.toml"))).unwrap();
    let (snapshot, _) = snapshot::files::load(folder, &settings.cluster).unwrap();
    let host = Known {
        facts: &read_facts(&folder.join("host.toml")).unwrap(),
        reach: &Reach::default(),
        dead: &["node-b".to_owned()].into(),
        down: &Down::new(),
        marks: &BTreeMap::new(),
        foreign_marks: &BTreeSet::new(),
    };
    let build = keepalived::Build { dbus: true };
    view(String::new(), &settings, &snapshot, host, table, (Place::Main, None), build).plan
}

/// The kernel tells neither which weight an idle real server had last nor which have drained.
#[test]
fn a_node_at_rest_has_nothing_to_change() {
    let first = planned_for_dsr(Table::new());
    let mut table = Table::new();
    first.prepare.iter().for_each(|command| command.apply(&mut table));
    let (idle, ending) = (backend("10.2.6.9"), backend("10.2.4.11"));
    let mut drained = 0;
    for server in table.values_mut() {
        server.added.iter_mut().for_each(|(at, last)| *last = server.real_servers[at].weight);
        drained += usize::from(server.real_servers.contains_key(&ending));
    }
    let vip = Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
    assert_eq!((table[&vip.into()].last_weight(&idle), drained), (0, 1));
    let nothing = |table: &Table| {
        let Plan { prepare, retire, .. } = planned_for_dsr(table.clone());
        assert_eq!((prepare, retire), (vec![], vec![]));
    };
    nothing(&table);
    Command::DelDest(vip.into(), ending).apply(&mut table);
    nothing(&table);
    // What is missing or other than wanted is still told.
    Command::DelDest(vip.into(), idle).apply(&mut table);
    assert_eq!(planned_for_dsr(table).prepare.len(), 2);
}

fn backend(address: &str) -> Backend {
    Backend { address: address.parse().unwrap(), port: 8080 }
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

/// Beside a file of the admin's own.
#[test]
fn the_file_of_a_plan_is_the_one_that_kvip_writes() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    let (facts, reach, nobody, none) = (HostFacts::default(), Reach::default(), BTreeSet::new(), Down::new());
    let (marks, foreign_marks) = (BTreeMap::new(), BTreeSet::new());
    let host = Known {
        facts: &facts,
        reach: &reach,
        dead: &nobody,
        down: &none,
        marks: &marks,
        foreign_marks: &foreign_marks,
    };
    let planned = || {
        let disk = Disk::read(&paths).unwrap();
        let written = keepalived_file(&disk, &paths);
        let (settings, snapshot, build) =
            (Settings::standard(Vec::new()), Snapshot::default(), keepalived::Build::default());
        view(String::new(), &settings, &snapshot, host, Table::new(), written, build)
    };
    assert!(planned().keepalived_conf.contains("global_defs"), "it would be kvip's own");
    let foreign = format!("vrrp_instance A {{\n}}\n{}\n", paths.include_line());
    files::replace(&paths.keepalived_conf, foreign, files::PUBLIC).unwrap();
    let fragment = keepalived::render_fragment(&keepalived::Config::default(), &paths);
    assert_eq!(planned().keepalived_conf, fragment);
    files::replace(&paths.fragment(), fragment, files::PUBLIC).unwrap();
    assert!(!planned().reload);
    files::replace(&paths.fragment(), keepalived::MARKER, files::PUBLIC).unwrap();
    assert!(planned().reload);
}
