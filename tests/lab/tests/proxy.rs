//! Mode proxy: HAProxy in front of real nginx, which is told who the client is.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::Asking;
use kvip_lab::lab::Lab;
use kvip_lab::layout::{CLIENT_V4, CLIENT_V6};
use kvip_lab::scenario::{SOON, diagnosis, serving, without_a_lost_request_at};

const VIP: &str = "10.87.2.60";
const VIP6: &str = "fd00:87:2::60";

/// Has every nginx take the PROXY protocol on its port, and tell whom it names.
const EXPECT: &str = r#"for conf in /run/lab-pod/*.conf; do
    sed -i 's/\(listen [^;]*:80\);/\1 proxy_protocol;/; s/\$remote_addr/$proxy_protocol_addr/' "$conf"
    kill -HUP "$(cat "${conf%.conf}.pid")"
done"#;
/// And takes that back.
const FORGET: &str = r#"for conf in /run/lab-pod/*.conf; do
    sed -i 's/ proxy_protocol;/;/; s/\$proxy_protocol_addr/$remote_addr/' "$conf"
    kill -HUP "$(cat "${conf%.conf}.pid")"
done"#;

fn service(protocol: &str) -> Asking {
    Asking::new("proxied")
        .annotation("kvip.io/vips", &format!("{VIP},{VIP6}"))
        .annotation("kvip.io/mode", "proxy")
        .annotation("kvip.io/proxy-protocol", protocol)
        .spec("ipFamilyPolicy", "RequireDualStack")
}

/// Waits until nginx answers at `address`, having seen `client`, if that is told.
fn answered(lab: &Lab, address: &str, client: Option<&str>) -> Result<()> {
    let url = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let done = lab.wait_for(&format!("{address} to be answered, with {client:?} seen"), SOON, || {
        let answer = lab.curl(&url)?;
        let seen = client.map_or_else(|| " saw ".into(), |client| format!(" saw {client}\n"));
        answer.contains(&seen).then_some(())
    });
    done.with_context(|| format!("the last answer: {:?}\n{}", lab.curl(&url), diagnosis(lab)))
}

#[test]
fn nginx_is_told_the_clients_address() -> Result<()> {
    let lab = serving()?;
    service("off").apply(&lab)?;
    // What it has not got it cannot tell: it is the holder that asks.
    answered(&lab, VIP, None)?;
    let holder = lab.wait_for_holder()?;
    let answer = lab.curl(VIP).context("it has just answered")?;
    ensure!(!answer.contains(CLIENT_V4), "without the PROXY protocol nginx sees {answer}");
    lab.on_all_nodes(|node| node.must(EXPECT).map(drop)).into_iter().collect::<Result<()>>()?;
    for protocol in ["v1", "v2"] {
        service(protocol).apply(&lab)?;
        answered(&lab, VIP, Some(CLIENT_V4))?;
        answered(&lab, VIP6, Some(CLIENT_V6))?;
    }
    // Processes and pods on the nodes go through the holder's HAProxy too.
    let other = lab.other_than(holder);
    for node in [holder, other] {
        for who in ["", "ip netns exec $(lab-pod list | awk 'NR == 1 { print $1 }') "] {
            lab.node(node).must(&format!("{who}curl -s --max-time 10 http://{VIP}/"))?;
        }
    }
    lab.on_all_nodes(|node| node.must(FORGET).map(drop)).into_iter().collect::<Result<()>>()?;
    service("off").apply(&lab)?;
    answered(&lab, VIP, None)
}

#[test]
fn pods_come_and_go_and_the_holder_changes_without_a_lost_request() -> Result<()> {
    let lab = serving()?;
    service("off").apply(&lab)?;
    answered(&lab, VIP, None)?;
    without_a_lost_request_at(&lab, VIP, || {
        for count in [5, 3] {
            lab.kubectl(&["scale", "deployment/nginx-deployment", &format!("--replicas={count}")])?;
            lab.wait_for(&format!("{count} pods behind {VIP}"), SOON, || ready(&lab, count).then_some(()))?;
        }
        Ok(())
    })?;
    let holder = lab.wait_for_holder()?;
    let probe = lab.probe(VIP, 80, Duration::from_millis(100))?;
    lab.node(holder).must("kvip drain --wait 40")?;
    let moved = lab.wait_for("another holder", SOON, || lab.holder().filter(|now| *now != holder));
    answered(&lab, VIP, None)?;
    let report = probe.stop()?;
    eprintln!("mode proxy, the holder drained: {report}");
    moved.with_context(|| diagnosis(&lab))?;
    lab.node(holder).must("kvip undrain").map(drop)
}

/// Whether every node counts so many pods for the Service.
fn ready(lab: &Lab, count: u64) -> bool {
    lab.nodes().all(|node| {
        node.kvip_status().is_ok_and(|status| {
            let vips = status["vips"].as_array().cloned().unwrap_or_default();
            let mut frontends = vips.iter().filter_map(|vip| vip["frontends"].as_array()).flatten();
            frontends.any(|one| one["service"] == "default/proxied" && one["ready"] == count)
        })
    })
}
