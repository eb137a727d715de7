//! Every way in which Services ask for addresses, on three nodes and a real API server, with the packaged kvip.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kvip::report::objects::place;
use kvip_lab::asking::{
    Asking, POOLS, addresses, check_answered_inside, claimed, condition, events, explain, in_url, ingress,
    items, must, object, settings, wait_for_addresses, wait_for_answer, wait_for_reason, wait_until_gone,
    wait_until_unsaid,
};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::Lab;
use kvip_lab::layout::NODES;
use kvip_lab::peer::Transport;
use kvip_lab::peer::ask::Question;
use kvip_lab::peer::drive::Asker;
use kvip_lab::prober::Failure;
use kvip_lab::scenario::{SOON, Turn, VIP, ask_for, bare, finding, set_up, without_a_lost_request_at};
use serde_json::{Value, json};

#[path = "services/checked.rs"]
mod checked;
#[path = "services/edits.rs"]
mod edits;
#[path = "services/endings.rs"]
mod endings;
#[path = "services/fields.rs"]
mod fields;
#[path = "services/grammar.rs"]
mod grammar;
#[path = "services/kinds.rs"]
mod kinds;
#[path = "services/manifests.rs"]
mod manifests;
#[path = "services/nodes.rs"]
mod nodes;
#[path = "services/refused.rs"]
mod refused;
#[path = "services/roles.rs"]
mod roles;
#[path = "services/statics.rs"]
mod statics;
#[path = "services/unserved.rs"]
mod unserved;
#[path = "services/wishes.rs"]
mod wishes;

/// What keepalived waits until it counts a node without kvip as gone: the default.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// The lab with kvip, the tutorial and the pools.
fn asking() -> Result<Turn> {
    let lab = bare()?;
    if lab.curl(VIP).is_none() {
        set_up(&lab, &Settings::default())?;
    }
    settings(&lab, POOLS)?;
    Ok(lab)
}

fn delete(lab: &Lab, service: &str) -> Result<()> {
    lab.kubectl(&["delete", "service", service]).map(drop)
}

/// The versions of all that kvip may write: they change with each write.
fn versions(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for kind in ["services -A", "ipaddresses", "events -A", "leases -n kvip-system"] {
        for item in items(lab, kind)? {
            let metadata = &item["metadata"];
            // The kubelets' and the scheduler's Events are not kvip's.
            if item["kind"] != "Event" || item["source"]["component"] == "kvip" {
                let name = format!("{} {}/{}", item["kind"], metadata["namespace"], metadata["name"]);
                versions.insert(name, metadata["resourceVersion"].to_string());
            }
        }
    }
    Ok(versions)
}

/// What is written within a minute's audit in which nothing happens.
fn check_idle(lab: &Lab) -> Result<()> {
    let before = versions(lab)?;
    let written = lab.wait_for("a write", Duration::from_secs(75), || {
        let now = versions(lab).ok()?;
        let changed: Vec<_> =
            now.iter().filter(|(name, version)| before.get(*name) != Some(version)).collect();
        (!changed.is_empty()).then(|| format!("{changed:?}"))
    });
    if let Ok(written) = written {
        let _ = must(lab, false, "").map_err(|error| eprintln!("{error:#}"));
        anyhow::bail!("an idle cluster sees writes: {written}");
    }
    Ok(())
}

#[test]
fn a_load_balancer_gets_an_address_says_so_and_gives_it_back() -> Result<()> {
    let lab = asking()?;
    Asking::new("web").load_balancer().apply(&lab)?;
    let given = wait_for_addresses(&lab, "web", 1)?.remove(0);
    let expected = json!([{"ip": given, "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}]);
    let said = ingress(&lab, "web")?;
    must(&lab, Value::from(said.clone()) == expected, &format!("the status says {said:?}, not {expected}"))?;
    let said = condition(&lab, "web")?;
    let expected = format!("True Allocated: load balancer at {given}");
    must(&lab, said == expected, &format!("the condition says \"{said}\", not \"{expected}\""))?;
    must(&lab, claimed(&lab)?.contains(&given), "the address is claimed")?;
    wait_for_answer(&lab, &given)?;
    check_answered_inside(&lab, &given)?;
    let told = lab.wait_for("an Event that says so", SOON, || {
        let said = events(&lab, "default", "web").ok()?;
        said.iter()
            .any(|event| event.starts_with("Normal Allocated: ") && event.contains(&given))
            .then_some(())
    });
    told.with_context(|| explain(&lab, "web"))?;
    check_idle(&lab)?;
    delete(&lab, "web")?;
    wait_until_gone(&lab, &given)?;
    let freed = lab.wait_for("the claim to be given back", SOON, || {
        claimed(&lab).ok().filter(|all| !all.contains(&given)).map(drop)
    });
    freed.with_context(|| explain(&lab, ""))?;
    made_again_with_both_families(&lab, &given)
}

/// Under the same name, now with both families.
fn made_again_with_both_families(lab: &Lab, before: &str) -> Result<()> {
    Asking::new("web").load_balancer().spec("ipFamilyPolicy", "RequireDualStack").apply(lab)?;
    let given = wait_for_addresses(lab, "web", 2)?;
    must(
        lab,
        !given.iter().any(|one| one == before),
        &format!("{before} is to rest, not to be given again"),
    )?;
    must(lab, given.iter().filter(|one| one.contains(':')).count() == 1, "one address of each family")?;
    for address in &given {
        wait_for_answer(lab, &in_url(address))?;
    }
    check_answered_inside(lab, given.iter().find(|one| one.contains(':')).context("an IPv6 address")?)?;
    delete(lab, "web")?;
    given.iter().try_for_each(|address| wait_until_gone(lab, address))
}

#[test]
fn a_service_that_becomes_another_leaves_nothing_behind() -> Result<()> {
    let lab = asking()?;
    let plain = Asking::new("moving");
    plain.clone().load_balancer().apply(&lab)?;
    let given = wait_for_addresses(&lab, "moving", 1)?.remove(0);
    wait_for_answer(&lab, &given)?;
    plain.apply(&lab)?;
    check_left(&lab, &given, "from LoadBalancer to ClusterIP")?;

    plain.clone().annotation("kvip.io/vips", "10.87.2.57").apply(&lab)?;
    wait_for_answer(&lab, "10.87.2.57")?;
    let said =
        lab.wait_for("a condition", SOON, || condition(&lab, "moving").ok().filter(|text| !text.is_empty()));
    let said = said.with_context(|| explain(&lab, "moving"))?;
    must(
        &lab,
        said == "True Allocated: served at 10.87.2.57",
        &format!("an annotation's condition says {said}"),
    )?;
    must(&lab, ingress(&lab, "moving")?.is_empty(), "an annotation writes no status.loadBalancer")?;
    plain.apply(&lab)?;
    check_left(&lab, "10.87.2.57", "from annotated to not")?;

    ask_for(&lab, "10.87.2.58", Some("default/moving"))?;
    wait_for_answer(&lab, "10.87.2.58")?;
    ask_for(&lab, "10.87.2.58", None)?;
    check_left(&lab, "10.87.2.58", "out of the ConfigMap")?;

    plain.clone().load_balancer().apply(&lab)?;
    let given = wait_for_addresses(&lab, "moving", 1)?.remove(0);
    // A class cannot be changed while the type stays, so the Service passes through ClusterIP, perhaps unseen.
    plain.apply(&lab)?;
    plain.clone().load_balancer().spec("loadBalancerClass", "example.com/other").apply(&lab)?;
    check_left(&lab, &given, "to another class")?;
    delete(&lab, "moving")
}

/// Nothing on the nodes, no claim in use, nothing in the status.
fn check_left(lab: &Lab, address: &str, change: &str) -> Result<()> {
    wait_until_gone(lab, address).context(change.to_owned())?;
    wait_until_unsaid(lab, "moving").context(change.to_owned())?;
    let freed = lab.wait_for(&format!("{address} to be given back"), SOON, || {
        claimed(lab).ok().filter(|all| !all.contains(address)).map(drop)
    });
    freed.with_context(|| explain(lab, "moving")).context(change.to_owned())
}

#[test]
fn services_share_an_address_and_external_ips_are_served() -> Result<()> {
    let lab = asking()?;
    let sharing = |name: &str| Asking::new(name).load_balancer().annotation("kvip.io/share-key", "one");
    sharing("share-a").apply(&lab)?;
    let first = wait_for_addresses(&lab, "share-a", 1)?.remove(0);
    sharing("share-b").port(8080).apply(&lab)?;
    let second = wait_for_addresses(&lab, "share-b", 1)?.remove(0);
    must(&lab, first == second, &format!("one key, two ports, and {first} is not {second}"))?;
    sharing("share-c").apply(&lab)?;
    let third = wait_for_addresses(&lab, "share-c", 1)?.remove(0);
    must(&lab, third != first, &format!("{first} port 80 is given twice"))?;
    for address in [first.clone(), format!("{first}:8080"), third.clone()] {
        wait_for_answer(&lab, &address)?;
    }
    lacks_a_port(&lab, &sharing("share-b"), &first)?;
    delete(&lab, "share-a")?;
    let closed = lab.wait_for("port 80 to be refused", SOON, || lab.curl(&first).is_none().then_some(()));
    closed.with_context(|| explain(&lab, ""))?;
    wait_for_answer(&lab, &format!("{first}:8080"))?;
    delete(&lab, "share-b")?;
    delete(&lab, "share-c")?;
    wait_until_gone(&lab, &first)?;

    Asking::new("outward").spec("externalIPs", vec!["10.87.2.59"]).apply(&lab)?;
    wait_for_answer(&lab, "10.87.2.59")?;
    check_answered_inside(&lab, "10.87.2.59")?;
    delete(&lab, "outward")?;
    wait_until_gone(&lab, "10.87.2.59")
}

/// A sharer adds the port that another has: what it had is served on, and it is told of the rest.
fn lacks_a_port(lab: &Lab, sharer: &Asking, address: &str) -> Result<()> {
    let port =
        |port: u16| json!({"name": format!("p{port}"), "port": port, "targetPort": 80, "protocol": "TCP"});
    sharer.clone().spec("ports", json!([port(8080), port(80)])).apply(lab)?;
    let words = format!("port tcp 80 of the shared {address} not served: in use by default/share-a");
    wait_for_reason(lab, "default", "share-b", &words)?;
    wait_for_answer(lab, &format!("{address}:8080"))?;
    sharer.clone().spec("ports", json!([port(8080)])).apply(lab)?;
    let whole = lab.wait_for("the condition to say that it has all again", SOON, || {
        condition(lab, "share-b").ok()?.starts_with("True Allocated").then_some(())
    });
    whole.with_context(|| explain(lab, "share-b"))
}

#[test]
fn a_tenant_gets_what_the_settings_give_it() -> Result<()> {
    let lab = asking()?;
    let tenants = "[[tenants]]\nnamespaces = [\"default\"]\npools = [\"*\"]\naddresses = [\"10.87.2.51-10.87.2.63\"]\n\
                   [[tenants]]\nnamespaces = [\"outside\"]\naddresses = [\"10.87.2.52\"]\n";
    settings(&lab, &[POOLS, tenants].concat())?;
    lab.kubectl(&["create", "namespace", "outside"])?;
    Asking::new("own").annotation("kvip.io/vips", "10.87.2.57").apply(&lab)?;
    let outside = |name| Asking::new(name).namespace("outside");
    outside("greedy").annotation("kvip.io/vips", "10.87.2.56 10.87.2.4").apply(&lab)?;
    outside("pool").load_balancer().apply(&lab)?;
    wait_for_answer(&lab, "10.87.2.57")?;
    for (service, words) in [
        ("greedy", "not served at 10.87.2.56 (kvip.io/vips): namespace outside may name 10.87.2.52 only"),
        ("pool", "it may use none"),
    ] {
        wait_for_reason(&lab, "outside", service, words)?;
    }
    must(
        &lab,
        finding(&lab, "node-a", "it is the address of node node-a").is_some(),
        "a node's address is nobody's VIP",
    )?;
    must(&lab, lab.curl(VIP).is_some(), "what others ask for goes on")?;
    lab.kubectl(&["delete", "namespace", "outside", "--wait=false"])?;
    delete(&lab, "own")?;
    settings(&lab, POOLS)?;
    wait_until_gone(&lab, "10.87.2.57")
}

/// Twenty requests of the client are answered by so many pods. A slow machine may let one pass its time, but none is
/// refused.
fn check_pods(lab: &Lab, vip: &str, pods: usize, what: &str) -> Result<()> {
    let target = SocketAddr::new(vip.parse::<IpAddr>()?, 80);
    let report = lab.ask(Asker::Client, &Question::new(Transport::Tcp, target), 20)?;
    let late_only = report.failures().keys().all(|failure| *failure == Failure::Timeout);
    let good = report.pods().len() == pods && report.answered() >= 18 && late_only;
    must(lab, good, &format!("{what} {pods} pods of 3 should answer: {:?}, {report}", report.pods()))
}

#[test]
fn session_affinity_keeps_a_client_at_one_pod() -> Result<()> {
    let lab = asking()?;
    let sticky = Asking::new("sticky").load_balancer().spec("ipFamilyPolicy", "RequireDualStack");
    sticky.apply(&lab)?;
    let vips = wait_for_addresses(&lab, "sticky", 2)?;
    for vip in &vips {
        wait_for_answer(&lab, &in_url(vip))?;
        check_pods(&lab, vip, 3, "without affinity")?;
    }
    let by_client = sticky.clone().spec("sessionAffinity", "ClientIP");
    let for_ten_minutes =
        by_client.clone().spec("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 600}}));
    for (service, seconds) in [(by_client, 10_800), (for_ten_minutes, 600)] {
        service.apply(&lab)?;
        for vip in &vips {
            let line = format!("-A -t {}:80 ", in_url(vip));
            let is_meant =
                |l: &str| l.starts_with(&line) && format!("{l} ").contains(&format!(" -p {seconds} "));
            let persistent = lab.wait_for(&format!("{line} for {seconds} s on all nodes"), SOON, || {
                lab.nodes()
                    .all(|node| node.ipvs().is_ok_and(|table| table.lines().any(is_meant)))
                    .then_some(())
            });
            persistent.with_context(|| explain(&lab, "sticky"))?;
            check_pods(&lab, vip, 1, "with affinity")?;
        }
    }
    delete(&lab, "sticky")?;
    vips.iter().try_for_each(|vip| wait_until_gone(&lab, vip))
}

#[test]
fn a_rollout_of_all_pods_refuses_nobody() -> Result<()> {
    let lab = asking()?;
    Asking::new("rolled").load_balancer().apply(&lab)?;
    let vip = wait_for_addresses(&lab, "rolled", 1)?.remove(0);
    wait_for_answer(&lab, &vip)?;
    without_a_lost_request_at(&lab, &vip, || {
        lab.kubectl(&["rollout", "restart", "deployment/nginx-deployment"])?;
        let limit = Duration::from_secs(240);
        let words = ["rollout", "status", "deployment/nginx-deployment", "--timeout=230s"];
        let output = lab.kubectl_within(limit, &words, "")?;
        ensure!(output.ok(), "{output}");
        Ok(())
    })?;
    delete(&lab, "rolled")?;
    wait_until_gone(&lab, &vip)
}

/// Until their successors are ready, those that end go on serving.
#[test]
fn pods_that_all_end_at_once_serve_until_others_do() -> Result<()> {
    let lab = asking()?;
    Asking::new("ended").load_balancer().apply(&lab)?;
    let vip = wait_for_addresses(&lab, "ended", 1)?.remove(0);
    wait_for_answer(&lab, &vip)?;
    let before = names(&lab)?;
    lab.kubectl(&["annotate", "pods", "-l", "app=nginx", "--overwrite", "lab.kvip/pre-stop-seconds=30"])?;
    without_a_lost_request_at(&lab, &vip, || {
        lab.kubectl(&["delete", "pods", "-l", "app=nginx", "--wait=false", "--grace-period=40"])?;
        lab.wait_for("three other pods to serve alone", SOON, || {
            let ready = |node: kvip_lab::lab::Node<'_>| {
                let table = node.ipvs().ok()?;
                let line = format!("-a -t {vip}:80 ");
                let servers = table.lines().filter(|l| l.starts_with(&line) && !l.ends_with("-w 0"));
                Some(servers.count())
            };
            let now = names(&lab).ok()?;
            (now.len() == 3 && now.is_disjoint(&before) && lab.nodes().all(|node| ready(node) == Some(3)))
                .then_some(())
        })
    })?;
    delete(&lab, "ended")?;
    wait_until_gone(&lab, &vip)
}

/// The tutorial's pods that are ready.
fn names(lab: &Lab) -> Result<BTreeSet<String>> {
    let slices = items(lab, "endpointslices -l kubernetes.io/service-name=nginx")?;
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    Ok(ready.filter_map(|endpoint| Some(endpoint["targetRef"]["name"].as_str()?.to_owned())).collect())
}

/// Where the stopped node is the holder, the new VIP comes with the others when `gone_after` has passed.
fn check_stand_in(lab: &Lab, first: &str) -> Result<String> {
    let before = claimed(lab)?;
    let asked = Instant::now();
    Asking::new("orphan").load_balancer().apply(lab)?;
    let found = lab.wait_for("a claim", SOON, || claimed(lab).ok()?.difference(&before).next().cloned());
    let vip = found.with_context(|| explain(lab, "orphan"))?;
    let took = asked.elapsed();
    let said = wait_for_addresses(lab, "orphan", 1)?;
    let said_after = asked.elapsed();
    eprintln!("{first} ranks first and is stopped: claimed after {took:.1?}, said after {said_after:.1?}");
    must(lab, said == [vip.clone()], &format!("{vip} is claimed and the status says {said:?}"))?;
    let turn = Duration::from_secs(5);
    must(lab, took > turn, &format!("another than {first} allocated after {took:?} already"))?;
    let answered = lab.wait_for(&format!("an answer from {vip}"), GONE_AFTER + SOON, || lab.curl(&vip));
    answered.with_context(|| explain(lab, "orphan"))?;
    check_claim_without_status(lab, &vip)?;
    Ok(vip)
}

/// As an allocator leaves it that dies between the claim and the status: the next one says what is claimed, and claims
/// nothing more.
fn check_claim_without_status(lab: &Lab, vip: &str) -> Result<()> {
    let before = claimed(lab)?;
    let bare = json!({"status": {"loadBalancer": null, "conditions": null}}).to_string();
    lab.kubectl(&["patch", "service", "orphan", "--subresource=status", "--type=merge", "-p", &bare])?;
    let said = wait_for_addresses(lab, "orphan", 1)?;
    must(lab, said == [vip], &format!("{vip} is claimed and the status says {said:?}"))?;
    must(lab, claimed(lab)? == before, "nothing more is claimed")
}

#[test]
fn another_allocator_stands_in_for_the_first() -> Result<()> {
    let lab = asking()?;
    Asking::new("orphan").apply(&lab)?;
    let uid = object(&lab, "service orphan")?["metadata"]["uid"].as_str().context("a UID")?.to_owned();
    let all = NODES.map(|node| node.name);
    let first =
        all.into_iter().find(|node| place(&uid, all, node) == Some(0)).context("a first allocator")?;
    lab.node(first).must("systemctl stop kvip")?;
    let stood_in = check_stand_in(&lab, first);
    lab.node(first).must("systemctl start kvip")?;
    let vip = stood_in?;
    let known = lab.wait_for("the first to serve it too", SOON, || {
        lab.node(first).ipvs().ok()?.contains(&format!("-A -t {vip}:80 ")).then_some(())
    });
    known.with_context(|| explain(&lab, "orphan"))?;
    must(&lab, addresses(&lab, "orphan")? == [vip.clone()], "the first, back again, leaves what was given")?;
    delete(&lab, "orphan")?;
    wait_until_gone(&lab, &vip)
}
