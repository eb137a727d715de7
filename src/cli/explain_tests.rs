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
