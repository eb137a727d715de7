//! Allocation against the real API server: three allocators in this process, each with the packaged allocator's identity
//! and watches of its own, while Services come and go. No machine is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use kvip::ipam::{Claim, Kind, granted};
use kvip_lab::alone::ApiServer;
use kvip_lab::progress::step;
use serde_json::json;

mod allocators;

use allocators::{Cluster, Truth, View};

#[test]
fn three_allocators_on_the_real_api() -> Result<()> {
    let Some(server) = ApiServer::in_namespaces_of("three_allocators_on_the_real_api")? else {
        return Ok(());
    };
    let cluster = Cluster::new(&server)?;
    if !cluster.serves_ip_addresses()? {
        step("an old cluster: Leases", || leases_alone(&cluster))?;
        return step("the same cluster, upgraded", || upgraded(&server, &cluster));
    }
    let foreign = cluster.foreign()?;
    step("identities", || identities(&server))?;
    step("statuses", || statuses(&server, &cluster))?;
    step("a race for a small pool", || race(&cluster))?;
    step("allocators that die at work", || deaths(&cluster))?;
    step("an allocator that sees an old state", || old_views(&cluster))?;
    step("two sharers and one port", || sharers(&cluster))?;
    step("a Service made again", || made_again(&cluster))?;
    step("a Service that a finalizer holds", || held_by_a_finalizer(&cluster))?;
    step("from Leases to IPAddresses", || upgrade(&cluster))?;
    step("everything is given back", || all_given_back(&cluster))?;
    ensure!(foreign.contains_key("10.96.0.1"), "the cluster's own claim is there: {foreign:?}");
    for (address, version) in foreign {
        let now = cluster.foreign()?.remove(&address);
        ensure!(
            now.as_ref() == Some(&version),
            "{address}, which is not kvip's, was {version} and is {now:?}"
        );
    }
    Ok(())
}

/// A claim with these labels, written by hand.
fn claim(labels: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: IPAddress, metadata: {{name: 10.87.2.99, labels: {labels}}}, \
         spec: {{parentRef: {{resource: services, namespace: default, name: kubernetes}}}}}}"
    )
}

/// A Lease of that name, labelled as kvip's.
fn lease(name: &str) -> String {
    format!(
        "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: {name}, namespace: kvip-system, \
         labels: {{ipaddress.kubernetes.io/managed-by: kvip}}}}}}"
    )
}

/// What the two roles may not do.
fn identities(server: &ApiServer) -> Result<()> {
    let ours = claim("{ipaddress.kubernetes.io/managed-by: kvip}");
    let dry = ["apply", "--dry-run=server", "-f", "-"];
    let foreign = ["delete", "ipaddress", "10.96.0.1", "--dry-run=server"];
    let as_role = |role: &str, arguments: &[&str], input: &str| {
        let file = server.layout().state.join(format!("{role}.kubeconfig"));
        let option = format!("--kubeconfig={}", file.display());
        server.kubectl(&[&[option.as_str()], arguments].concat(), input)
    };
    // A policy is in force a moment after it was made.
    kvip_lab::command::wait_for("the policy", Duration::from_secs(60), || {
        as_role("allocator", &foreign, "")
            .ok()?
            .stderr
            .contains("kvip may only change and delete")
            .then_some(())
    })?;
    let relabel =
        ["label", "ipaddress", "10.96.0.1", "ipaddress.kubernetes.io/managed-by=kvip", "--overwrite"];
    let create = ["create", "--dry-run=server", "-f", "-"];
    let patch = |what: &'static str, more: &'static str| {
        [
            "patch",
            what,
            "kubernetes",
            more,
            "--type=merge",
            "--dry-run=server",
            "-p",
            "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}",
        ]
    };
    let status = patch("service", "--subresource=status");
    let service = patch("service", "--request-timeout=10s");
    let map = ["create", "configmap", "other", "-n", "kvip-system", "--dry-run=server"];
    for (role, arguments, input, refusal) in [
        ("member", &dry[..], ours.as_str(), "forbidden"),
        ("member", &foreign[..], "", "forbidden"),
        ("allocator", &dry[..], &claim("{a: b}"), "kvip may only make IPAddresses labelled"),
        ("allocator", &relabel[..], "", "kvip may only change and delete"),
        ("member", &status[..], "", "forbidden"),
        ("member", &service[..], "", "forbidden"),
        ("member", &create[..], &lease("kvip-0a570263"), "forbidden"),
        ("member", &map[..], "", "forbidden"),
        ("member", &["get", "secrets", "-n", "kvip-system"], "", "forbidden"),
        ("member", &["get", "pods"], "", "forbidden"),
        ("member", &["get", "services"], "", ""),
        ("member", &["get", "configmap", "other"], "", "not found"),
        ("member", &["get", "configmap", "another"], "", "forbidden"),
        ("allocator", &service[..], "", "forbidden"),
        ("allocator", &map[..], "", "forbidden"),
        ("allocator", &["get", "secrets", "-n", "kvip-system"], "", "forbidden"),
        ("allocator", &create[..], &lease("other"), "kvip may only write Leases named"),
        ("allocator", &create[..], &lease("kvip-0a570263"), ""),
        ("allocator", &dry[..], &ours, ""),
    ] {
        let output = as_role(role, arguments, input)?;
        ensure!(output.ok() == refusal.is_empty(), "{role} {arguments:?}: {output}");
        ensure!(output.stderr.contains(refusal), "{role} {arguments:?} is refused by {refusal}: {output}");
    }
    Ok(())
}

/// What the allocator may and may not write of a Service that is of another load balancer's class.
fn statuses(server: &ApiServer, cluster: &Cluster) -> Result<()> {
    let other = "{apiVersion: v1, kind: Service, metadata: {name: other}, spec: {type: LoadBalancer, \
                 loadBalancerClass: example.com/other, ports: [{port: 80}]}}";
    let made = server.kubectl(&["create", "-f", "-"], other)?;
    ensure!(made.ok(), "{made}");
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    for (patch, refusal) in [
        (json!({"status": {"conditions": condition("kvip.io/Served")}}), None),
        (json!({"status": {"conditions": condition("example.com/Other")}}), Some("conditions of its own")),
        (
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "10.87.2.99"}]}}}),
            Some("may only add load balancer"),
        ),
        (json!({"metadata": {"labels": {"a": "b"}}}), Some("may only write a Service's status")),
        (json!({"metadata": {"finalizers": ["a/b"]}}), Some("may only write a Service's status")),
    ] {
        let said = cluster.patch_status("other", &patch)?;
        let as_meant =
            said.as_deref().map_or(refusal.is_none(), |said| refusal.is_some_and(|text| said.contains(text)));
        ensure!(as_meant, "{patch}: {said:?}, not {refusal:?}");
    }
    Ok(())
}

/// Thirty Services want the twenty addresses of the pool, and all three allocators act at once for each.
fn race(cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::Fresh; 3], Duration::ZERO)?;
    let names: Vec<String> = (0..30).map(|number| format!("race-{number}")).collect();
    names.iter().try_for_each(|name| cluster.service(name, "lan", None, None, 80))?;
    cluster.wait("twenty Services with an address", |now| (now.served("race-") == 20).then_some(()))?;
    one_each(cluster)?;
    cluster.delete("race-")
}

/// Two of three allocators die as soon as the first claims are there: between a claim and whatever comes after it.
fn deaths(cluster: &Cluster) -> Result<()> {
    let mut nodes = cluster.start([View::Fresh; 3], Duration::ZERO)?;
    for number in 0..10 {
        cluster.service(&format!("death-{number}"), "other", None, None, 80)?;
    }
    cluster.wait("the first claims", |now| (now.served("death-") >= 2).then_some(()))?;
    nodes.truncate(1);
    cluster.wait("the survivor to end it", |now| (now.served("death-") == 10).then_some(()))?;
    one_each(cluster)?;
    cluster.delete("death-")
}

/// One allocator's watch of claims stopped before the first: to it every address is free, and no Service has one.
fn old_views(cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::NoClaims, View::Fresh, View::NoClaims], Duration::ZERO)?;
    for number in 0..8 {
        cluster.service(&format!("old-{number}"), "third", None, None, 80)?;
    }
    cluster.wait("eight Services with an address", |now| (now.served("old-") == 8).then_some(()))?;
    one_each(cluster)?;
    cluster.delete("old-")
}

/// Two Services share an address by one key and want one port; a third has its own.
fn sharers(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.start([View::Fresh; 3], Duration::ZERO)?;
    for (name, port) in [("share-a", 80), ("share-b", 80), ("share-c", 443)] {
        cluster.service(name, "fifth", Some("10.87.3.120"), Some("key"), port)?;
    }
    cluster.wait("two sharers", |now| {
        let users = now.claims.at("10.87.3.120".parse().ok()?)?.users.len();
        (users == 2 && now.served("share-") == 2).then_some(())
    })?;
    one_each(cluster)?;
    let told = || nodes.iter().flat_map(|node| node.refusals("share-")).collect::<BTreeSet<String>>();
    kvip_lab::command::wait_for("the third to be told", Duration::from_secs(60), || {
        told()
            .iter()
            .any(|text| text.starts_with("port tcp 80 of the shared 10.87.3.120 is in use by"))
            .then_some(())
    })?;
    cluster.delete("share-")
}

/// A Service with an address of its wish is deleted and made again: the claim of the old one gives it nothing, and it
/// gets the address when that is found out.
fn made_again(cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::Fresh; 3], Duration::ZERO)?;
    cluster.service("again", "fifth", Some("10.87.3.121"), None, 80)?;
    cluster.wait("its address", |now| (now.served("again") == 1).then_some(()))?;
    cluster.delete("again")?;
    cluster.service("again", "fifth", Some("10.87.3.121"), None, 80)?;
    cluster.wait("the new one's view", |now| (now.served("again") == 0).then_some(()))?;
    one_each(cluster)
}

/// A deleted Service that a finalizer keeps gives its address back: it asks for nothing any more.
fn held_by_a_finalizer(cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::Fresh; 3], Duration::from_secs(1))?;
    cluster.service("held", "other", None, None, 80)?;
    cluster.finalizers("held", &["example.com/held"])?;
    let address = cluster.wait("its address", |now| {
        let request = now.requests.values().find(|request| request.service.name == "held")?;
        granted(request, &now.claims).addresses.first().map(|grant| grant.address)
    })?;
    cluster.delete("held")?;
    cluster.wait("the address to be given back", |now| {
        now.claims.at(address).is_none_or(|claim| claim.released.is_some()).then_some(())
    })?;
    // It is still there, or there would be nothing to take the finalizer off.
    cluster.finalizers("held", &[])
}

/// Allocators that know of Leases alone; then two that know both beside one that does not.
fn upgrade(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.start([View::LeasesAlone; 3], Duration::ZERO)?;
    for number in 0..4 {
        cluster.service(&format!("lease-{number}"), "fourth", None, None, 80)?;
    }
    cluster.wait("four Leases", |now| (leases(now, "lease-").count() == 4).then_some(()))?;
    drop(nodes);
    let nodes = cluster.start([View::LeasesAlone, View::Fresh, View::Fresh], Duration::ZERO)?;
    for number in 4..8 {
        cluster.service(&format!("lease-{number}"), "fourth", None, None, 80)?;
    }
    cluster.wait("an IPAddress beside each Lease", |now| {
        let all = now.served("lease-") == 8;
        let twins = leases(now, "lease-").map(|lease| {
            now.claims.object(lease.address, Kind::IpAddress).map(|twin| twin.users == lease.users)
        });
        let twins: Vec<_> = twins.collect();
        (all && twins.len() == 8 && twins.iter().all(|same| *same == Some(true))).then_some(())
    })?;
    one_each(cluster)?;
    drop(nodes);
    leases_taken_away(cluster)?;
    cluster.delete("lease-")
}

/// With every allocator past the upgrade an admin deletes the Leases: nothing changes, and none comes back.
fn leases_taken_away(cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::Fresh; 3], Duration::ZERO)?;
    let before = cluster.at_rest()?;
    cluster.delete_leases()?;
    cluster.service("lease-8", "fourth", None, None, 80)?;
    cluster.wait("the new one's address", |now| (now.served("lease-8") == 1).then_some(()))?;
    one_each(cluster)?;
    let after = cluster.now()?;
    ensure!(leases(&after, "").next().is_none(), "there are Leases again");
    keep_what_they_had("lease-", &before, &after)
}

/// The Services whose names begin so have the same addresses as before.
fn keep_what_they_had(prefix: &str, before: &Truth, after: &Truth) -> Result<()> {
    for request in before.requests.values().filter(|request| request.service.name.starts_with(prefix)) {
        let has = |truth: &Truth| granted(request, &truth.claims).addresses;
        ensure!(has(before) == has(after), "{} keeps what it had", request.service);
    }
    Ok(())
}

/// Claims older than a minute, whose Services are gone, are found, rest, and go. Only the Service that was made again
/// is left, by now with its address.
fn all_given_back(cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::Fresh; 3], Duration::from_secs(1))?;
    cluster.wait("one claim alone", |now| {
        let addresses: Vec<_> = now.claims.addresses().map(|address| address.to_string()).collect();
        (addresses == ["10.87.3.121"] && now.served("again") == 1).then_some(())
    })
}

/// A cluster that serves no IPAddress.
fn leases_alone(cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::Fresh; 3], Duration::ZERO)?;
    for number in 0..30 {
        cluster.service(&format!("race-{number}"), "lan", None, None, 80)?;
    }
    for (name, port) in [("share-a", 80), ("share-b", 80), ("share-c", 443)] {
        cluster.service(name, "fifth", Some("10.87.3.120"), Some("key"), port)?;
    }
    cluster.wait("twenty Services with an address, and two that share one", |now| {
        (now.served("race-") == 20 && now.served("share-") == 2).then_some(())
    })?;
    one_each(cluster)?;
    ensure!(leases(&cluster.now()?, "").count() == 21, "each address is a Lease");
    Ok(())
}

/// The same data under an API server that knows IPAddresses, while the allocators go on.
fn upgraded(server: &ApiServer, cluster: &Cluster) -> Result<()> {
    let _nodes = cluster.start([View::Fresh; 3], Duration::ZERO)?;
    let before = cluster.now()?;
    server.upgrade()?;
    cluster.service("new", "other", None, None, 80)?;
    cluster.wait("an IPAddress beside each Lease", |now| {
        (now.served("new") == 1 && leases(now, "").count() == 22 && all_twins(now)).then_some(())
    })?;
    one_each(cluster)?;
    keep_what_they_had("", &before, &cluster.now()?)?;
    ["race-", "share-", "new"].into_iter().try_for_each(|prefix| cluster.delete(prefix))?;
    cluster.wait("no claim", |now| now.claims.is_empty().then_some(()))
}

/// Whether there is an IPAddress of the same Services beside each Lease.
fn all_twins(now: &Truth) -> bool {
    leases(now, "").all(|lease| {
        now.claims.object(lease.address, Kind::IpAddress).is_some_and(|twin| twin.users == lease.users)
    })
}

/// The Leases of Services whose names begin so.
fn leases<'a>(now: &'a Truth, prefix: &'a str) -> impl Iterator<Item = &'a Claim> {
    let leases = now.claims.objects().filter(|claim| claim.kind == Kind::Lease);
    leases.filter(move |claim| claim.users.iter().any(|user| user.service.name.starts_with(prefix)))
}

/// Waits until the allocators have nothing left to do, then looks that no Service has two addresses, no claim has a
/// user that it does not serve, and no frontend has two Services.
fn one_each(cluster: &Cluster) -> Result<()> {
    let now = cluster.at_rest()?;
    let mut frontends = BTreeMap::new();
    for request in now.requests.values() {
        let has = granted(request, &now.claims).addresses;
        ensure!(has.len() <= 1, "{} has {has:?}", request.service);
        let claimed: BTreeSet<_> = now.claims.addresses_of(&request.uid).collect();
        let live = claimed
            .iter()
            .filter(|address| now.claims.at(**address).is_some_and(|claim| claim.released.is_none()));
        ensure!(live.count() == has.len(), "{} has {has:?} and claims {claimed:?}", request.service);
        for grant in has {
            for port in grant.ports {
                let other = frontends.insert((grant.address, port), Arc::clone(request));
                ensure!(other.is_none(), "{} {port:?} has {other:?} and {request:?}", grant.address);
            }
        }
    }
    Ok(())
}
