//! Mode proxy: HAProxy in front of real nginx, which is told who the client is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{Asking, in_url};
use kvip_lab::lab::Lab;
use kvip_lab::layout::{CLIENT_V4, CLIENT_V6};
use kvip_lab::scenario::{
    SOON, diagnosis, finding, serving, with_a_soft_hand_over_at, without_a_lost_request_at,
};

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

/// HAProxy's `show stat`, as comma-separated values.
const STATISTICS: &str = r#"perl -MIO::Socket::UNIX -e '
    $haproxy = IO::Socket::UNIX->new("/run/kvip-haproxy/admin.sock") or die "$!\n";
    print $haproxy "show stat\n"; print while <$haproxy>'"#;

fn service(protocol: &str) -> Asking {
    Asking::new("proxied")
        .annotation("kvip.io/vips", &format!("{VIP},{VIP6}"))
        .annotation("kvip.io/mode", "proxy")
        .annotation("kvip.io/proxy-protocol", protocol)
        .spec("ipFamilyPolicy", "RequireDualStack")
}

/// Waits until nginx answers at `address`, which is as in a URL, having seen `client`, if that is told.
fn answered(lab: &Lab, address: &str, client: Option<&str>) -> Result<()> {
    let done = lab.wait_for(&format!("{address} to be answered, with {client:?} seen"), SOON, || {
        let answer = lab.curl(address)?;
        let seen = client.map_or_else(|| " saw ".into(), |client| format!(" saw {client}\n"));
        answer.contains(&seen).then_some(())
    });
    done.with_context(|| format!("the last answer: {:?}\n{}", lab.curl(address), diagnosis(lab)))
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
        answered(&lab, &in_url(VIP6), Some(CLIENT_V6))?;
    }
    insiders_are_answered(&lab, holder)?;
    answers_leave_from_the_holder(&lab, holder)?;
    lab.on_all_nodes(|node| node.must(FORGET).map(drop)).into_iter().collect::<Result<()>>()?;
    service("off").apply(&lab)?;
    answered(&lab, VIP, None)
}

/// Processes and pods on the nodes go through the holder's HAProxy too, which tells nginx of their own addresses, or of their
/// node's where the CNI masquerades.
fn insiders_are_answered(lab: &Lab, holder: &str) -> Result<()> {
    for node in [holder, lab.other_than(holder)] {
        for who in ["", "ip netns exec $(lab-pod list | awk 'NR == 1 { print $1 }') "] {
            for vip in [VIP.to_owned(), format!("[{VIP6}]")] {
                let script = format!("{who}curl -s -g --max-time 10 http://{vip}/");
                let answer = lab.node(node).must_within(SOON, &script)?;
                let (_, seen) = answer.trim().rsplit_once(" saw ").context("nginx says whom it saw")?;
                println!("mode proxy, {script:?} on {node}: nginx is told of {seen}");
                let client = seen.parse::<IpAddr>().with_context(|| format!("{seen:?} is no address"))?;
                ensure!(client.is_ipv6() == vip.starts_with('['), "{script} on {node}: {answer}");
            }
        }
    }
    Ok(())
}

fn answers_leave_from_the_holder(lab: &Lab, holder: &str) -> Result<()> {
    for (vip, url) in [(VIP, VIP.to_owned()), (VIP6, format!("[{VIP6}]"))] {
        let trace = lab.trace(&format!("host {vip} and tcp port 80"))?;
        let answers = (0..12).filter_map(|_| lab.curl(&url)).count();
        let packets = trace.stop()?;
        let vip: IpAddr = vip.parse()?;
        let senders = packets.sent_from(vip).sent();
        println!("mode proxy at {vip}: {answers} of 12 answered, answers sent by {senders:?}");
        ensure!(answers == 12 && senders.keys().eq([&holder]), "{vip}: {packets}\n{}", diagnosis(lab));
    }
    Ok(())
}

/// systemd has HAProxy reload while clients ask, as each new frontend has it do.
#[test]
fn a_reload_loses_no_request() -> Result<()> {
    let lab = serving()?;
    service("off").apply(&lab)?;
    answered(&lab, VIP, None)?;
    let holder = lab.node(lab.wait_for_holder()?);
    let reloads = || -> Result<usize> {
        let journal =
            holder.must("journalctl -u kvip --no-pager -o cat | grep -c 'haproxy reloaded' || true")?;
        journal.trim().parse().with_context(|| format!("a count, not {journal:?}"))
    };
    let master = || holder.must("systemctl show -P MainPID -P NRestarts kvip-haproxy");
    let master_before = master()?;
    let before = reloads()?;
    without_a_lost_request_at(&lab, VIP, || {
        for port in 8081..8085 {
            let name = format!("proxied-{port}");
            let vips = format!("10.87.2.6{}", port - 8080);
            let another =
                Asking::new(&name).annotation("kvip.io/vips", &vips).annotation("kvip.io/mode", "proxy");
            another.annotation("kvip.io/proxy-protocol", "off").port(port).apply(&lab)?;
            answered(&lab, &format!("{vips}:{port}"), None)?;
        }
        Ok(())
    })?;
    let reloaded = reloads()? - before;
    println!("HAProxy was reloaded {reloaded} times");
    ensure!(reloaded >= 4, "HAProxy was reloaded {reloaded} times only\n{}", diagnosis(&lab));
    ensure!(master()? == master_before, "HAProxy was started anew\n{}", diagnosis(&lab));
    (8081..8085)
        .try_for_each(|port| lab.kubectl(&["delete", "service", &format!("proxied-{port}")]).map(drop))
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
    with_a_soft_hand_over_at(&lab, VIP, || {
        lab.node(holder).must("kvip drain --wait 40")?;
        lab.wait_for("another holder", SOON, || lab.holder().filter(|now| *now != holder))
    })?;
    lab.node(holder).must("kvip undrain").map(drop)
}

/// By sessionAffinity ClientIP, and what HAProxy itself says of that where docs/services.md says to look.
#[test]
fn a_client_keeps_its_pod_also_at_the_next_holder() -> Result<()> {
    let lab = serving()?;
    service("off").spec("sessionAffinity", "ClientIP").apply(&lab)?;
    answered(&lab, VIP, None)?;
    let kept = lab.wait_for("one pod for one client", SOON, || {
        let met = pods_met(&lab);
        (met.len() == 1).then_some(met)
    });
    let kept = kept.with_context(|| diagnosis(&lab))?;
    let holder = lab.wait_for_holder()?;
    let statistics = lab.node(holder).must(STATISTICS)?;
    let columns =
        |line: &str| line.trim_start_matches("# ").split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = statistics.lines();
    let head = columns(lines.next().context("HAProxy has statistics")?);
    let algorithm = head.iter().position(|name| name == "algo").context("with the algorithm")?;
    ensure!(lines.any(|line| columns(line).get(algorithm).is_some_and(|it| it == "source")), "{statistics}");
    lab.node(holder).must("kvip drain --wait 40")?;
    lab.wait_for("another holder", SOON, || lab.holder().filter(|now| *now != holder))?;
    answered(&lab, VIP, None)?;
    let then = pods_met(&lab);
    ensure!(then == kept, "{kept:?} first, at the next holder {then:?}\n{}", diagnosis(&lab));
    lab.node(holder).must("kvip undrain")?;
    service("off").apply(&lab)?;
    let several = lab.wait_for("all pods for one client", SOON, || (pods_met(&lab).len() == 3).then_some(()));
    several.with_context(|| diagnosis(&lab))
}

/// The pods that answer the client, asked a dozen times; each says its node and name.
fn pods_met(lab: &Lab) -> BTreeSet<String> {
    let answers = (0..12).filter_map(|_| lab.curl(VIP));
    answers.filter_map(|answer| Some(answer.split_once(" saw ")?.0.to_owned())).collect()
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

/// What it refuses is not put in place, and it serves on; where it is gone, a node that has it takes over.
#[test]
fn a_haproxy_that_refuses_or_is_gone_is_told_and_got_round() -> Result<()> {
    const REFUSES: &str = "#!/bin/sh\ncase \"$*\" in *-c*) echo '[ALERT]    (1) : config : no such thing in this version'; exit 1;; esac\n\
                           exec /usr/sbin/haproxy.real \"$@\"\n";
    const UNHEARD: &str = "mv /usr/sbin/haproxy.real /usr/sbin/haproxy";
    let lab = serving()?;
    service("off").apply(&lab)?;
    answered(&lab, VIP, None)?;
    let holder = lab.wait_for_holder()?;
    let node = lab.node(holder);
    let told = |words: &str, wanted: bool| {
        let told = lab.wait_for(&format!("{holder} to say {words:?}: {wanted}"), SOON * 2, || {
            (finding(&lab, holder, words).is_some() == wanted).then_some(())
        });
        told.with_context(|| diagnosis(&lab))
    };
    let master =
        || node.must("systemctl show -P MainPID -P NRestarts kvip-haproxy; cat /run/kvip/haproxy.cfg");
    let before = master()?;
    node.must("mv /usr/sbin/haproxy /usr/sbin/haproxy.real")?;
    node.write("/usr/sbin/haproxy", REFUSES.as_bytes())?;
    node.must("chmod 0755 /usr/sbin/haproxy")?;
    let another =
        Asking::new("another").annotation("kvip.io/vips", "10.87.2.61").annotation("kvip.io/mode", "proxy");
    another.annotation("kvip.io/proxy-protocol", "off").apply(&lab)?;
    told("no such thing in this version", true)?;
    ensure!(master()? == before, "what HAProxy refuses is in place\n{}", diagnosis(&lab));
    ensure!(lab.curl(VIP).is_some(), "HAProxy serves no more\n{}", diagnosis(&lab));
    node.must(UNHEARD)?;
    told("no such thing in this version", false)?;
    lab.kubectl(&["delete", "service", "another"])?;

    let holder_before = lab.wait_for_holder()?;
    let node = lab.node(holder_before);
    node.must_within(SOON, "mv /usr/sbin/haproxy /usr/sbin/haproxy.real; systemctl stop kvip-haproxy")?;
    let successor = lab.wait_for("a node that has HAProxy", SOON * 2, || {
        lab.holder().filter(|now| *now != holder_before && lab.curl(VIP).is_some())
    });
    successor.with_context(|| diagnosis(&lab))?;
    let found = finding(&lab, holder_before, "apt install haproxy");
    ensure!(found.is_some(), "{holder_before} does not say what it lacks\n{}", diagnosis(&lab));
    node.must(UNHEARD)?;
    let mended = lab.wait_for("HAProxy to run again", SOON * 2, || {
        let runs = node.run("systemctl is-active kvip-haproxy").ok()?.ok();
        (runs && finding(&lab, holder_before, "apt install haproxy").is_none()).then_some(())
    });
    mended.with_context(|| diagnosis(&lab))
}
