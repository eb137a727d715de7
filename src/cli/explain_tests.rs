//! Tests of explanations: golden cases, and a host that has done its work, or has not.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::config::Sources;
use crate::ipvs::{Command, Table};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn view(case: &str) -> View {
    let folder = folder(case);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(view::of_folder(&folder, &Sources::of_file(folder.join("config.toml")))).unwrap()
}

/// Of a folder, as if nothing were there yet.
#[track_caller]
fn check(case: &str, about: &str, want: &str) {
    assert_eq!(text(&explain(&view(case), None, &subject(about).unwrap())), want);
}

#[test]
fn a_served_service_is_followed_to_its_pods() {
    let want = "\
default/nginx is served at 10.87.2.50, asked for by ConfigMap

  object    Service default/nginx, port http tcp 80, 1 EndpointSlice, 3 endpoints, 3 ready
  address   10.87.2.50 in allowed range 10.87.2.0/24
  group     vips: VRID 50 on eth0, 3 members: node-c 190, node-a 170, node-b 150
  balancer  tcp 10.87.2.50:80 wlc nat
              10.2.4.10:80  weight 1  node-a
              10.2.6.10:80  weight 1  node-b
              10.2.8.10:80  weight 1  node-c

all of it is as it should be
";
    check("tutorial", "default/nginx", want);
    let of_vip = want.replacen(
        "default/nginx is served at 10.87.2.50, asked",
        "10.87.2.50 serves default/nginx, asked",
        1,
    );
    check("tutorial", "10.87.2.50", &of_vip);
}

/// Only a VIP that nothing was asked for leaves its ports to the host.
#[test]
fn a_vip_whose_service_cannot_be_served_refuses_connections() {
    let told = text(&explain(&view("bad-services"), None, &subject("10.87.2.55").unwrap()));
    assert!(told.contains("10.87.2.55 in allowed range 10.87.2.0/24, which refuses connections\n"), "{told}");
}

#[test]
fn a_broken_chain_says_what_to_type() {
    check(
        "bad-services",
        "default/none-ready",
        "\
default/none-ready refuses connections at 10.87.2.57, asked for by ConfigMap

  object    Service default/none-ready, port http tcp 80, 1 EndpointSlice, 1 endpoint, 0 ready
  address   10.87.2.57 in allowed range 10.87.2.0/24
  group     vips: VRID 50 on eth0, 3 members: node-c 190, node-a 170, node-b 150
  balancer  tcp 10.87.2.57:80 wlc nat

to mend
  default/none-ready  10.87.2.57 is held but tcp 80 refuses connections: no ready endpoints (0 of 1 ready)
                      kubectl -n default get pods -l app=none-ready
",
    );
    check(
        "bad-services",
        "default/missing",
        "\
default/missing is not served

to mend
  default/missing  not served at 10.87.2.51: there is no such Service
                   kubectl -n default get services
",
    );
    check(
        "bad-keys",
        "10.87.2.4",
        "\
10.87.2.4 is no VIP

to mend
  default/vip-configmap  key \"10.87.2.4\" ignored: it is the address of node node-a
                         kubectl -n default edit configmap vip-configmap
",
    );
}

#[test]
fn what_nothing_asks_for_is_said_with_how_to_ask() {
    check(
        "tutorial",
        "10.87.2.99",
        &format!(
            "\
10.87.2.99 is no VIP

to mend
  10.87.2.99  nothing asks for it
              kvip plan {} lists the VIPs
",
            folder("tutorial").display()
        ),
    );
    let of_cluster = View { folder: None, ..view("tutorial") };
    let finding = Finding::new("10.87.2.99", "nothing asks for it").mend("kvip status lists the VIPs");
    assert_eq!(explain(&of_cluster, None, &subject("10.87.2.99").unwrap()).findings, [finding]);
    check(
        "tutorial",
        "shop/web",
        "\
shop/web is not served

to mend
  shop/web  there is no such Service
            kubectl -n shop get services
",
    );
    check(
        "pools",
        "default/named",
        "\
default/named is not served

  object  Service default/named, port tcp 80, 1 EndpointSlice, 2 endpoints, 2 ready

to mend
  default/named  it has no IPv4 address of pool asked yet: an allocator claims one
",
    );
}

#[test]
fn a_service_that_does_not_ask_is_told_how_to() {
    let mut view = view("tutorial");
    view.snapshot.services.insert(ObjectKey::new("shop", "web"), Arc::default());
    let explanation = explain(&view, None, &subject("shop/web").unwrap());
    let finding = Finding::new("shop/web", "nothing asks for a VIP for it");
    assert_eq!(
        explanation.findings,
        [finding.mend("kubectl -n shop annotate service web kvip.io/vips=ADDRESS")]
    );
}

#[test]
fn without_annotations_one_asks_by_the_configmap() {
    let of = |vip_map| {
        let mut view = View { annotations: false, ..view("tutorial") };
        view.snapshot.services.insert(ObjectKey::new("shop", "web"), Arc::default());
        view.snapshot.vip_map = vip_map;
        let explanation = explain(&view, None, &subject("shop/web").unwrap());
        explanation.findings.into_iter().map(|finding| finding.mend.unwrap()).collect::<Vec<_>>()
    };
    let edit = "kubectl -n default edit configmap vip-configmap, and write ADDRESS: shop/web";
    assert_eq!(of(Some(imbl::OrdMap::new())), [edit]);
    let create = "kubectl -n default create configmap vip-configmap --from-literal=ADDRESS=shop/web";
    assert_eq!(of(None), [create]);
}

/// The findings on `about` in a golden case: subject and text, without the folder's name.
fn said(case: &str, about: &str) -> Vec<String> {
    let findings = explain(&view(case), None, &subject(about).unwrap()).findings;
    let folder = format!("{}/", folder(case).display());
    let mut said: Vec<_> = findings.iter().map(|finding| finding.to_string().replace(&folder, "")).collect();
    said.sort();
    said
}

#[test]
fn a_wrong_entry_of_the_configmap_is_told_of_its_service() {
    let of = |entries: &str| {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self::folder("tutorial")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let map =
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: vip-configmap}}\ndata: {entries}\n");
        std::fs::write(folder.path().join("vip-configmap.yaml"), map).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sources = Sources::of_file(folder.path().join("config.toml"));
        let view = runtime.block_on(view::of_folder(folder.path(), &sources)).unwrap();
        let findings = explain(&view, None, &subject("default/nginx").unwrap()).findings;
        findings.into_iter().map(|finding| finding.text).collect::<Vec<_>>()
    };
    let methods = "write one of NAT, DR, PROXY, DSR, TUNNEL, ANNOUNCE, or none";
    let number = "; a port is written as its number";
    for (entry, method, more) in
        [("default/nginx:nat", "nat", ""), ("default/nginx:80/tcp", "80/tcp", number)]
    {
        let said = format!("key \"10.87.2.51\": `{entry}`: unknown method `{method}`; {methods}{more}");
        assert_eq!(of(&format!("{{10.87.2.51: '{entry}'}}")), [said]);
    }
    let outside = "key \"192.0.2.1\" ignored: outside the allowed ranges (10.87.2.0/24)";
    assert_eq!(of("{192.0.2.1: default/nginx}"), [outside]);
    let unread = of("[default/nginx]");
    assert!(unread.len() == 1 && unread[0].starts_with("ConfigMap vip-configmap: data: "), "{unread:?}");
}

#[test]
fn all_is_told_that_a_plan_says_of_a_service() {
    let words = "is unknown and is left out: one of";
    let expected = [
        format!("Service default/web: externalTrafficPolicy \"local\" {words} Cluster, Local"),
        format!("Service default/web: sessionAffinity \"clientip\" {words} None, ClientIP"),
        format!(
            "Service default/web: type \"clusterip\" {words} ClusterIP, NodePort, LoadBalancer, ExternalName"
        ),
        "services.yaml:1: Service default/web is written twice: what again.yaml:1 says of it does not count"
            .into(),
        "services.yaml:1: Service web: annotation \"kvip.io/thresholds\" = 100 is no text: put it in quotes"
            .into(),
        "services.yaml:1: Service web: spec.loadBalancerSourceRange is no field of it; did you mean loadBalancerSourceRanges?"
            .into(),
    ];
    assert_eq!(said("manifests-wrong", "default/web"), expected);
    let names = said("endpoints", "default/names");
    let slice =
        "EndpointSlice default/names-4: addressType FQDN: kvip balances to IPv4 and IPv6 addresses only";
    assert_eq!(names[0], slice);
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(said("manifests-wrong", "default/shop").len(), 1);
    assert_eq!(said("manifests-wrong", "default/legacy").len(), 1);
    let key = "default/vip-configmap: key \"fd00--50\" ignored: outside the allowed ranges (10.87.2.0/24, 10.2.0.0/16)";
    assert_eq!(said("bad-keys", "fd00::50"), [key]);
}

#[test]
fn a_service_that_cannot_be_read_is_not_called_missing() {
    let mut view = view("tutorial");
    view.snapshot.services.remove(&ObjectKey::new("shop", "web"));
    let text = "cannot be understood, so what was known of it stays: no integer";
    let unread = Finding::new("Service shop/web", text).about([ObjectKey::new("shop", "web")]);
    view.findings.push(unread.clone());
    assert_eq!(explain(&view, None, &subject("shop/web").unwrap()).findings, [unread]);
}

#[test]
fn what_keeps_the_host_from_holding_vips_is_told() {
    for (case, about, of_host) in [
        ("no-interface", "default/nginx", "node.interface: no interface eth7 on this host"),
        ("no-node", "default/nginx", "host stranger: it holds no VIPs"),
    ] {
        let said = said(case, about);
        assert!(said.len() == 1 && said[0].starts_with(of_host), "{case}: {said:?}");
    }
}

/// The daemon's own words reach here as JSON, which does not say what refuses a Service.
#[test]
fn what_plan_and_daemon_say_is_said_once() {
    let mut view = view("tutorial");
    let finding = Finding::new("default/nginx", "not served at 10.87.2.51: x");
    view.findings.push(Finding { refuses: true, ..finding.clone() });
    let status = Status { findings: vec![finding.clone()], ..Status::default() };
    let here = Here { status: Some(status), ..Here::default() };
    view.plan.prepare.clear();
    assert_eq!(explain(&view, Some(&here), &subject("default/nginx").unwrap()).findings, [finding]);
}

/// A host whose kernel has all that is wanted but the last `left` changes.
fn host_with(view: &mut View, left: usize) -> Vec<Command> {
    let mut todo = std::mem::take(&mut view.plan.prepare);
    let undone = todo.split_off(todo.len() - left);
    let mut table = Table::new();
    for command in &todo {
        command.apply(&mut table);
    }
    view.table = table;
    undone
}

#[test]
fn a_live_host_tells_what_it_has_and_what_it_lacks() {
    let mut view = view("tutorial");
    view.plan.prepare = host_with(&mut view, 1);
    let mut here =
        Here { holders: [("10.87.2.50".parse().unwrap(), "node-c".to_owned())].into(), status: None };
    let about = subject("default/nginx").unwrap();
    let want = "
  host      10.87.2.50 is on node-c
  balancer  tcp 10.87.2.50:80 wlc nat
              10.2.4.10:80  weight 1  0 connections  node-a
              10.2.6.10:80  weight 1  0 connections  node-b
              10.2.8.10:80  weight 1                 node-c

to mend
  kvip  1 change of IPVS not made yet on this node
        kvip plan; journalctl -u kvip -n 50
  kvip  the daemon does not answer, so nothing here follows the cluster
        systemctl status kvip; journalctl -u kvip -n 50
";
    let said = text(&explain(&view, Some(&here), &about));
    assert!(said.ends_with(want), "{said}");
    view.plan.prepare.clear();
    let problem = Finding::new("keepalived", "is masked").mend("systemctl unmask keepalived");
    let other = Finding::new("default/other", "no endpoints");
    here.status = Some(Status { drained: true, findings: vec![problem.clone(), other], ..Status::default() });
    let explanation = explain(&view, Some(&here), &about);
    assert_eq!(explanation.findings, [problem]);
    assert!(
        text(&explanation)
            .contains("  host      10.87.2.50 is on node-c; this node is drained (kvip undrain ends it)\n")
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!((&json["schema"], &json["served"]), (&"kvip.explain.v1".into(), &true.into()));
    let server = serde_json::json!({"address": "10.2.4.10:80", "state": "serves", "weight": 1, "connections": 0, "node": "node-a"});
    assert_eq!(json["links"][4]["servers"][0], server);
}

#[test]
fn a_vip_is_found_in_words_as_itself_alone() {
    let vip = |text: &str| text.parse::<IpAddr>().unwrap();
    for text in ["10.87.2.5: x", "at 10.87.2.5/32", "(10.87.2.5), y", "tcp 10.87.2.5:80"] {
        assert!(names(text, vip("10.87.2.5")), "{text}");
    }
    assert!(!names("10.87.2.50 and 110.87.2.5", vip("10.87.2.5")));
    assert!(names("key \"fd00-87--5\" ignored", vip("fd00:87::5")));
    assert!(!names("key \"fd00--50\": a fd00-5", vip("fd00::5")));
    assert!(names("tcp [fd00::5]:80", vip("fd00::5")) && !names("fd00::50", vip("fd00::5")));
}

#[test]
fn a_subject_is_a_service_or_a_vip() {
    let service = Ok(Subject::Service(ObjectKey::new("default", "nginx")));
    for text in ["default/nginx", "default/nginx:80", "default/nginx:NAT", "default/nginx:80:NAT"] {
        assert_eq!(subject(text), service, "{text}");
    }
    for text in ["10.87.2.50", "10.87.2.50/32", "10.87.2.50:80", " 10.87.2.50 "] {
        assert_eq!(subject(text), Ok(Subject::Vip("10.87.2.50".parse().unwrap())), "{text}");
    }
    for text in ["fd00::50", "fd00--50", "fd00::50/128", "[fd00::50]:80"] {
        assert_eq!(subject(text), Ok(Subject::Vip("fd00::50".parse().unwrap())), "{text}");
    }
    let wrong = |text: &str, why: &str| assert_eq!(subject(text), Err(why.to_owned()), "{text}");
    let form = "a Service is written namespace/name, as in default/nginx, and a VIP 10.87.2.50 or fd00::50";
    wrong("nginx", form);
    wrong("fd00:::50", form);
    wrong("10.87.2.0/24", "a VIP is one address, as 10.87.2.0");
    let number = "is no address: an IPv4 address is four numbers from 0 to 255, without zeros before them, and an IPv6 one fd00::50";
    for text in ["10.87.2.999", "10.87.2", "10.87.2.050"] {
        wrong(text, &format!("{text} {number}"));
    }
    wrong("10.87.2.999/32", &format!("10.87.2.999 {number}"));
}
