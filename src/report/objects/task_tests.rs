//! The task against a small API server.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::model::Protocol;
use crate::report::objects::fake_api::{Api, World};
use crate::report::objects::{Address, IpMode, Kind, Port, Shown, Verdict};
use crate::snapshot::{Map, convert};

const PATH: &str = "/api/v1/namespaces/default/services/web";
const GET: &str = "GET /api/v1/namespaces/default/services/web";
const PATCH: &str = "PATCH /api/v1/namespaces/default/services/web/status";
const EVENT: &str = "POST /api/v1/namespaces/default/events";

fn key() -> ObjectKey {
    ObjectKey::new("default", "web")
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web", "uid": "u1"},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "kvip.io/kvip"},
        "status": {"loadBalancer": {"ingress": [{"hostname": "foreign"}]}}})
}

fn world() -> World {
    let mut world = World::default();
    world.put(PATH, service());
    world
}

fn wanted(place: u32) -> Wanted {
    let port = Port { protocol: Protocol::Tcp, port: 80, error: None };
    let address = Address { ip: "10.87.2.50".parse().unwrap(), mode: IpMode::Proxy, ports: vec![port] };
    Wanted {
        uid: "u1".into(),
        kind: Kind::LoadBalancer(Some("kvip.io/kvip".into())),
        addresses: vec![address],
        ingress: true,
        verdict: Verdict::Allocated,
        place: Some(place),
        shown: Shown::default(),
    }
}

/// What the snapshot shows of a live Service.
fn shown(live: &Value) -> Shown {
    let typed = serde_json::from_value(live.clone()).unwrap();
    Shown::of(&convert::service(&typed).value.unwrap())
}

struct Fixture {
    api: Api,
    link: watch::Sender<Option<Link>>,
    state: watch::Sender<State>,
    handles: Handles,
}

impl Fixture {
    async fn start(world: World) -> Self {
        let api = Api::start(world).await;
        let (link, links) = watch::channel(Some(api.link()));
        let takeover_after = Duration::from_millis(200);
        let state = State { node: Some("node-a".into()), takeover_after, ..State::default() };
        let (state, states) = watch::channel(state);
        Self { handles: spawn(links, states), api, link, state }
    }

    fn want(&self, wanted: Wanted) {
        self.state.send_modify(|state| drop(state.services.insert(key(), Arc::new(wanted))));
    }

    fn hold(&self, vips: &[&str]) {
        let vips = vips.iter().map(|vip| vip.parse().unwrap()).collect();
        let held = Arc::new(Held { uid: "u1".into(), vips });
        self.state.send_modify(|state| drop(state.held.get_or_insert_default().insert(key(), held)));
    }

    /// Tells the task what the API server has now, as a watch would.
    fn show(&self) {
        let shown = shown(&self.api.world().objects[PATH]);
        self.state.send_modify(|state| {
            let mut wanted = (**state.services.get(&key()).unwrap()).clone();
            wanted.shown = shown;
            state.services.insert(key(), Arc::new(wanted));
        });
    }

    async fn finding(&mut self, text: &str) {
        let is = |all: &Vec<Finding>| match text {
            "" => all.is_empty(),
            text => all.iter().any(|finding| finding.to_string().contains(text)),
        };
        let found = tokio::time::timeout(Duration::from_secs(20), self.handles.findings.wait_for(is)).await;
        found.expect("the finding in time").unwrap();
    }

    /// The requests, without those of [`Fixture::settle`].
    fn seen(&self) -> Vec<String> {
        self.api.world().seen.iter().filter(|seen| !seen.contains("/marker/")).cloned().collect()
    }

    /// An Event of another Service says that what was told before has been done. The first such Service may be taken
    /// for one that was held from the beginning.
    async fn settle(&self) {
        let marked = |world: &World| world.seen.iter().filter(|seen| seen.contains("/marker/")).count();
        let before = marked(&self.api.world());
        for n in 0..200 {
            let held = Arc::new(Held { uid: "m".into(), vips: ["10.0.0.9".parse().unwrap()].into() });
            let key = ObjectKey::new("marker", format!("m{before}-{n}"));
            self.state.send_modify(|state| drop(state.held.get_or_insert_default().insert(key, held)));
            let done = self.api.until(|world| marked(world) > before);
            if tokio::time::timeout(Duration::from_millis(100), done).await.is_ok() {
                return;
            }
        }
        panic!("no event of the marker");
    }
}

fn ingress(world: &World) -> &Value {
    &world.objects[PATH]["status"]["loadBalancer"]["ingress"]
}

#[tokio::test]
async fn a_status_is_written_once_and_told_once_and_then_there_is_silence() {
    let fixture = Fixture::start(world()).await;
    fixture.hold(&[]);
    fixture.want(wanted(0));
    fixture.api.until(|world| world.events().len() == 1).await;
    assert_eq!(fixture.seen(), [GET, PATCH, EVENT]);
    assert_eq!(fixture.api.world().events(), ["Allocated: load balancer at 10.87.2.50 x1"]);
    let entry = json!({"ip": "10.87.2.50", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]});
    assert_eq!(ingress(&fixture.api.world()), &json!([{"hostname": "foreign"}, entry]));
    fixture.show();
    fixture.settle().await;
    assert_eq!(fixture.seen().len(), 3);
}

#[tokio::test]
async fn a_service_that_shows_what_is_wanted_costs_no_request() {
    let fixture = Fixture::start(world()).await;
    fixture.hold(&[]);
    let live = json!({"ip": "10.87.2.50", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]});
    let condition = json!({"type": "kvip.io/Served", "status": "True", "reason": "Allocated",
        "message": "load balancer at 10.87.2.50", "lastTransitionTime": "2025-01-01T00:00:00Z"});
    let mut object = service();
    object["status"] = json!({"loadBalancer": {"ingress": [live]}, "conditions": [condition]});
    fixture.want(Wanted { shown: shown(&object), ..wanted(0) });
    fixture.settle().await;
    assert_eq!(fixture.seen(), [""; 0]);
}

#[tokio::test]
async fn a_conflict_is_tried_again_and_the_other_writers_entry_stays() {
    let mut world = world();
    world.race = Some(|live| live["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.1"}]));
    let fixture = Fixture::start(world).await;
    fixture.want(wanted(0));
    fixture.api.until(|world| world.events().len() == 1).await;
    assert_eq!(fixture.seen(), [GET, PATCH, GET, PATCH, EVENT]);
    assert_eq!(ingress(&fixture.api.world())[0], json!({"ip": "192.0.2.1"}));
    assert_eq!(ingress(&fixture.api.world())[1]["ip"], "10.87.2.50");
}

#[tokio::test]
async fn the_next_allocator_waits_and_does_nothing_when_the_first_was_there() {
    let fixture = Fixture::start(world()).await;
    fixture.want(wanted(1));
    let began = Instant::now();
    fixture.api.until(|world| !world.seen.is_empty()).await;
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    fixture.api.until(|world| world.events().len() == 1).await;
    assert_eq!(fixture.seen(), [GET, PATCH, EVENT]);
    // The third one's snapshot is behind: a look at the API is all that it does.
    let live = fixture.api.world().objects[PATH].clone();
    let mut world = World::default();
    world.put(PATH, live);
    let third = Fixture::start(world).await;
    third.hold(&[]);
    third.want(wanted(2));
    third.api.until(|world| !world.seen.is_empty()).await;
    third.settle().await;
    assert_eq!(third.seen(), [GET]);
}

#[tokio::test]
async fn a_service_that_is_gone_or_another_is_left_alone() {
    for change in [
        |w: &mut World| w.objects.clear(),
        |w: &mut World| {
            w.put(PATH, json!({"apiVersion": "v1", "kind": "Service", "metadata": {"uid": "u2"}}));
        },
    ] {
        let mut world = world();
        change(&mut world);
        let fixture = Fixture::start(world).await;
        fixture.hold(&[]);
        fixture.want(wanted(0));
        fixture.api.until(|world| !world.seen.is_empty()).await;
        fixture.settle().await;
        assert_eq!(fixture.seen(), [GET]);
        assert!(fixture.handles.findings.borrow().is_empty());
    }
}

#[tokio::test]
async fn a_lack_of_permission_is_one_finding_and_no_storm_and_ends_with_new_credentials() {
    let mut world = world();
    let words = "services \"web\" is forbidden: User \"kvip\" cannot patch resource \"services/status\"";
    world.faults.push(("PATCH", 403, words, 1));
    let mut fixture = Fixture::start(world).await;
    fixture.hold(&[]);
    fixture.want(wanted(0));
    fixture.finding("does not let kvip patch services/status (403)").await;
    assert!(fixture.handles.findings.borrow()[0].mend.as_ref().unwrap().contains("kubectl apply -f"));
    fixture.settle().await;
    assert_eq!(fixture.seen(), [GET, PATCH], "and Events go on");
    fixture.link.send_replace(Some(fixture.api.link()));
    fixture.finding("").await;
    fixture.api.until(|world| world.seen.iter().filter(|seen| *seen == PATCH).count() == 2).await;
}

#[tokio::test]
async fn a_status_that_is_refused_is_a_finding_of_that_service() {
    let mut world = world();
    world.faults.push(("PATCH", 422, "Service \"web\" is invalid: status: no", 1));
    let mut fixture = Fixture::start(world).await;
    fixture.want(wanted(0));
    fixture.finding("default/web: API server").await;
    fixture.want(Wanted { place: None, ..wanted(0) });
    fixture.finding("").await;
}

#[tokio::test]
async fn a_server_that_drops_the_mode_is_told_and_not_written_to_again() {
    let mut world = world();
    world.drops_mode = true;
    let mut fixture = Fixture::start(world).await;
    fixture.hold(&[]);
    fixture.want(wanted(0));
    fixture.finding("default/web: the API server did not keep the status").await;
    fixture.settle().await;
    assert_eq!(fixture.seen().iter().filter(|seen| *seen == PATCH).count(), 1);
}

#[tokio::test]
async fn an_outage_loses_no_event() {
    let mut world = world();
    world.faults.push(("GET", 503, "later", 1));
    world.faults.push(("POST", 503, "later", 1));
    let fixture = Fixture::start(world).await;
    fixture.want(wanted(0));
    fixture.api.until(|world| world.events().len() == 1).await;
    assert_eq!(fixture.seen(), [GET, GET, PATCH, EVENT, EVENT]);
}

#[tokio::test]
async fn nothing_is_done_without_a_connection_or_a_name() {
    let fixture = Fixture::start(world()).await;
    fixture.link.send_replace(None);
    fixture.want(wanted(0));
    fixture.state.send_modify(|state| state.node = None);
    fixture.link.send_replace(Some(fixture.api.link()));
    assert!(fixture.seen().is_empty());
    fixture.state.send_modify(|state| state.node = Some("node-a".into()));
    fixture.api.until(|world| world.events().len() == 1).await;
}

#[tokio::test]
async fn the_new_holder_says_so_and_a_flapping_one_counts() {
    let fixture = Fixture::start(world()).await;
    fixture.hold(&["10.87.2.50"]);
    // What is held from the beginning is no change. Wait until that is known before there is one.
    fixture.want(wanted(0));
    fixture.api.until(|world| world.events().len() == 1).await;
    fixture.hold(&["10.87.2.50", "fd00::50"]);
    fixture.api.until(|world| world.events().len() == 2).await;
    let has = |world: &World, text: &str| world.events().iter().any(|event| event == text);
    assert!(has(&fixture.api.world(), "HolderChanged: node-a now holds fd00::50 x1"));
    fixture.hold(&["10.87.2.50"]);
    fixture.settle().await;
    fixture.hold(&["10.87.2.50", "fd00::50"]);
    fixture.api.until(|world| has(world, "HolderChanged: node-a now holds fd00::50 x2")).await;
}

#[test]
fn holders() {
    let state = |node: &str, held: Option<&[&str]>| State {
        node: Some(node.into()),
        held: held.map(|vips| {
            let vips = vips.iter().map(|vip| vip.parse().unwrap()).collect();
            [(key(), Arc::new(Held { uid: "u1".into(), vips }))].into_iter().collect()
        }),
        ..State::default()
    };
    let check = |old: Option<&[&str]>, new: Option<&[&str]>, want: &[&str]| {
        let said = new_holder(&state("node-b", old), &state("node-b", new));
        let notes: Vec<_> = said.into_iter().map(|said| said.word.note).collect();
        assert_eq!(notes, want);
    };
    check(None, Some(&["10.87.2.50"]), &[]);
    check(Some(&["10.87.2.50"]), None, &[]);
    check(Some(&[]), Some(&["10.87.2.50"]), &["node-b now holds 10.87.2.50"]);
    check(
        Some(&["10.87.2.50"]),
        Some(&["10.87.2.50", "10.87.2.51", "fd00::50"]),
        &["node-b now holds 10.87.2.51, fd00::50"],
    );
    check(Some(&["10.87.2.50"]), Some(&[]), &[]);
    let empty = State { held: Some(Map::new()), ..state("node-b", None) };
    assert_eq!(new_holder(&empty, &state("node-b", Some(&["10.87.2.50"]))).len(), 1);
}
