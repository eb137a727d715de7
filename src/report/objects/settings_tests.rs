//! Nodes that say and hear settings over a small API server.

use std::time::Duration;

use super::*;
use crate::report::objects::fake_api::{Api as Server, World};

const EVENTS: &str = "/api/v1/namespaces/kvip-system/events";

struct Node {
    own: watch::Sender<Option<Own>>,
    listener: Listener,
    link: watch::Sender<Option<Link>>,
}

impl Node {
    fn start(server: &Server, name: &str, settings: &str) -> Self {
        let nodes = ["node-a", "node-b"].map(str::to_owned).into();
        let own = Own { cluster: None, node: name.into(), fingerprint: settings.into(), nodes };
        let (own, owns) = watch::channel(Some(own));
        let (link, connection) = watch::channel(Some(server.link()));
        Self { own, listener: spawn(connection, owns, ObjectKey::new("kvip-system", "kvip")), link }
    }

    fn change(&self, line: &str) {
        self.own.send_modify(|own| own.as_mut().unwrap().fingerprint = line.into());
    }

    async fn findings(&mut self, text: &str) {
        let is = |heard: &Heard| match text {
            "" => heard.findings.is_empty(),
            text => heard.findings.iter().any(|finding| finding.to_string().contains(text)),
        };
        let found = tokio::time::timeout(Duration::from_secs(20), self.listener.heard.wait_for(is)).await;
        found.expect("the finding in time").unwrap();
    }
}

fn posts(world: &World) -> usize {
    world.seen.iter().filter(|seen| !seen.starts_with("GET")).count()
}

#[tokio::test]
async fn two_nodes_that_disagree_both_find_it_until_they_agree() {
    let server = Server::start(World::default()).await;
    let mut a = Node::start(&server, "node-a", "vrrp.vrid=50");
    server.until(|world| posts(world) == 1).await;
    let mut b = Node::start(&server, "node-b", "vrrp.vrid=51");
    a.findings("node-b's cluster-wide settings differ from this node's: vrrp.vrid is 51 there and 50 here")
        .await;
    b.findings("node-a's cluster-wide settings differ from this node's: vrrp.vrid is 50 there and 51 here")
        .await;
    assert_eq!(posts(&server.world()), 2, "each once");
    b.change("vrrp.vrid=50");
    a.findings("").await;
    b.findings("").await;
    assert_eq!(
        server.world().events(),
        [
            "KvipSettings: cluster-wide settings of node-a: vrrp.vrid=50 x1",
            "KvipSettings: cluster-wide settings of node-b: vrrp.vrid=50 x2",
        ]
    );
    // Created, found there already, and counted on.
    assert_eq!(posts(&server.world()), 4);
}

#[tokio::test]
async fn what_was_said_long_ago_is_said_again_for_a_node_that_differs() {
    let server = Server::start(World::default()).await;
    let a = Node::start(&server, "node-a", "");
    let path = format!("{EVENTS}/node-a.kvip-settings");
    server.until(|world| world.objects.contains_key(&path)).await;
    assert_eq!(
        server.world().events(),
        ["KvipSettings: cluster-wide settings of node-a: all at their defaults x1"]
    );
    // The server's time for Events is over.
    server.until_watched().await;
    {
        let mut world = server.world();
        world.send("DELETED", &path);
        world.objects.remove(&path);
    }
    let mut b = Node::start(&server, "node-b", "vrrp.advert=1s");
    b.findings("vrrp.advert is the default there and 1s here").await;
    drop(a);
}

#[tokio::test]
async fn a_lack_of_permission_is_told_once_for_saying_and_once_for_hearing() {
    let mut world = World::default();
    let cannot = "events is forbidden: User \"kvip\" cannot create resource \"events\"";
    world.faults.push(("POST", 403, cannot, 1));
    world.faults.push(("LIST", 403, "events is forbidden: User \"kvip\" cannot list resource \"events\"", 1));
    let server = Server::start(world).await;
    let mut node = Node::start(&server, "node-a", "a=1");
    node.findings("does not let kvip create events (403)").await;
    assert_eq!(posts(&server.world()), 1);
    node.link.send_replace(Some(server.link()));
    node.findings("").await;
    server.until(|world| world.events().len() == 1).await;
}

/// As an API server denies at first when it starts: the watch goes on from where it was, and nothing says so.
#[tokio::test]
async fn a_watch_that_is_denied_once_is_not_denied_for_ever() {
    let server = Server::start(World::default()).await;
    let (out, heard) = watch::channel(Heard::default());
    let mut task = Task::new(ObjectKey::new("kvip-system", "kvip"), out);
    task.link = Some(server.link());
    let start = Instant::now();
    let mut findings_at = |second: u64, told: Option<watcher::Result<watcher::Event<Event>>>| {
        let now = start + Duration::from_secs(second);
        if let Some(told) = told {
            task.hear(told, now);
        }
        task.tell(now);
        heard.borrow().findings.len()
    };
    let denied = || {
        let status = kube::core::Status::failure("events is forbidden", "Forbidden").with_code(403).boxed();
        Some(Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))))
    };
    assert_eq!(findings_at(0, Some(Ok(watcher::Event::InitDone))), 0);
    assert_eq!(findings_at(10, denied()), 1);
    assert_eq!(findings_at(60, denied()), 1, "denied again");
    assert_eq!(findings_at(149, None), 1);
    assert_eq!(findings_at(150, None), 0, "not denied any more");
    assert_eq!(findings_at(160, denied()), 1);
    assert_eq!(findings_at(161, Some(Ok(watcher::Event::InitDone))), 0, "it was listed");
}

#[tokio::test]
async fn a_missing_namespace_is_told() {
    let mut world = World::default();
    world.faults.push(("POST", 404, "namespaces \"kvip-system\" not found", 1));
    let server = Server::start(world).await;
    let mut node = Node::start(&server, "node-a", "a=1");
    node.findings("there is no namespace kvip-system").await;
}

#[test]
fn an_event_says_what_can_be_read_back() {
    let own = Own { cluster: None, node: "n".repeat(253), fingerprint: "a=1 b=2".into(), nodes: [].into() };
    let event = event(&own, &ObjectKey::new("kvip-system", "kvip"), Timestamp::UNIX_EPOCH);
    assert_eq!(read(&event), Some((own.node.as_str(), "a=1 b=2")));
    assert!(event.metadata.name.as_ref().unwrap().len() <= 253);
    assert_eq!(event.involved_object.namespace, event.metadata.namespace);
    for odd in ["a=1\nb=2", "a=\u{1b}[31m", &"a".repeat(2049)] {
        let mut event = event.clone();
        event.metadata.annotations.as_mut().unwrap().insert(LINE.into(), odd.into());
        assert_eq!(read(&event), None);
    }
    let mut foreign = event;
    foreign.source.as_mut().unwrap().component = Some("other".into());
    assert_eq!(read(&foreign), None);
    assert_eq!(read(&Event::default()), None);
}
