//! `kvip status`: the VIPs, who holds them, what is behind them, and what is wrong.
//!
//! Asks the running daemon over its socket; only a holder elsewhere is looked up here, among the kernel's neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Exit, Global, daemon, style};
use crate::net;
use crate::report::status::{self, HASH_TABLE, Status, Vip};

/// How long who holds a VIP may take to answer for it; milliseconds, on a quiet link.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(1);

/// Runs `kvip status`: 0 when all is well, 1 with findings.
///
/// # Errors
/// When the daemon does not answer, or the answer cannot be printed.
pub async fn run(global: &Global) -> anyhow::Result<Exit> {
    let mut status = daemon::ask().await.map_err(|error| daemon::no_answer(&error))?;
    let holders = holders(&status).await;
    let text = if global.json {
        fill_in(&mut status, &holders);
        serde_json::to_string_pretty(&status)? + "\n"
    } else {
        text(&status, &holders)
    };
    style::print(&text)?;
    Ok(if status.findings.is_empty() { Exit::Fine } else { Exit::Mend })
}

/// The nodes that hold the VIPs that are not here, as far as the neighbour table tells.
pub(super) async fn holders(status: &Status) -> BTreeMap<IpAddr, String> {
    let elsewhere = || status.vips.iter().filter(|vip| !vip.here).map(|vip| vip.vip);
    if elsewhere().next().is_none() {
        return BTreeMap::new();
    }
    let Ok(facts) = net::read().await else { return BTreeMap::new() };
    let own =
        status.node_addresses.iter().find(|(_, name)| **name == status.node).map(|(address, _)| *address);
    let link = own.and_then(|address| facts.link_of(address)).and_then(|name| facts.links.get(name));
    let Some(link) = link else { return BTreeMap::new() };
    let mut nodes: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (address, name) in &status.node_addresses {
        nodes.entry(name.clone()).or_default().push(*address);
    }
    // This host's own addresses have no entry, nor have those behind a router.
    let others = status.node_addresses.iter().filter(|(_, name)| **name != status.node);
    let others = others.map(|(address, _)| *address).filter(|address| facts.has_neighbour(*address));
    let asked: BTreeSet<IpAddr> = elsewhere().chain(others).collect();
    let Ok(table) = net::resolve(link.index, &asked, NEIGHBOUR_LIMIT).await else { return BTreeMap::new() };
    elsewhere().filter_map(|vip| Some((vip, net::owner_of(vip, &table, &nodes)?.to_owned()))).collect()
}

/// Says of each VIP which node holds it.
fn fill_in(status: &mut Status, holders: &BTreeMap<IpAddr, String>) {
    for vip in &mut status.vips {
        vip.holder = if vip.here { Some(status.node.clone()) } else { holders.get(&vip.vip).cloned() };
    }
}

/// The status for people.
pub fn text(status: &Status, holders: &BTreeMap<IpAddr, String>) -> String {
    let mut text = format!("{}\n\n", heading(status));
    if status.vips.is_empty() {
        text.push_str("no VIPs\n");
    } else {
        let of_vip: &[&str] =
            if grouped(status) { &["VIP", "GROUP", "HOLDER", "FOR"] } else { &["VIP", "HOLDER", "FOR"] };
        let of_frontend = &["SERVICE", "FRONTEND", "MODE", "READY"];
        let header = of_vip.iter().chain(of_frontend).map(|word| (*word).to_owned()).collect();
        let rows = status.vips.iter().flat_map(|vip| rows(status, vip, holders));
        text.push_str(&style::table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
    }
    if !status.findings.is_empty() {
        let rows: Vec<_> = status.findings.iter().flat_map(super::finding_rows).collect();
        text += &("\nfindings\n".to_owned() + &style::indent(&style::table(&rows), 2));
    }
    text
}

fn heading(status: &Status) -> String {
    let cluster = match (&status.cluster.problem, status.cluster.contact_seconds_ago) {
        (Some(problem), _) => problem.clone(),
        (None, Some(seconds)) => format!("in sync {} ago", style::age(Duration::from_secs(seconds))),
        (None, None) => "no answer from the API server yet".into(),
    };
    let planned = if status.as_planned { ", as planned" } else { ", not as planned yet" };
    let mut parts = vec![
        status.node.clone(),
        cluster,
        format!("keepalived {}", status.keepalived),
        format!(
            "{}{}, {}{planned}",
            style::count(status.virtual_servers, "virtual server"),
            hashed(status.hash_tables),
            style::count(status.real_servers, "real server")
        ),
    ];
    if !["", "idle"].contains(&status.haproxy.as_str()) {
        parts.insert(3, format!("haproxy {}", status.haproxy));
    }
    if status.drained {
        parts.push("drained (kvip undrain ends it)".into());
    }
    parts.join(" · ")
}

/// What Maglev hashing costs.
fn hashed(tables: usize) -> String {
    if tables == 0 {
        return String::new();
    }
    let kib = (tables * HASH_TABLE).div_ceil(1024);
    format!(" ({tables} by Maglev hashing, {kib} KiB or more)")
}

/// Whether there is more than one group to tell apart.
fn grouped(status: &Status) -> bool {
    status.groups.len() > 1
}

fn rows(status: &Status, vip: &Vip, holders: &BTreeMap<IpAddr, String>) -> Vec<Vec<String>> {
    let holder = match holders.get(&vip.vip) {
        _ if vip.here => format!("{} (here)", status.node),
        Some(node) => node.clone(),
        None => "elsewhere".into(),
    };
    let age = if vip.here { style::age(Duration::from_secs(vip.seconds)) } else { String::new() };
    let group = grouped(status).then(|| vip.group.clone());
    let first: Vec<String> = [vip.vip.to_string()].into_iter().chain(group).chain([holder, age]).collect();
    if vip.frontends.is_empty() {
        let what = if vip.floats_only { "(VIP only)" } else { "(refuses connections)" };
        return vec![[first, vec![what.into()]].concat()];
    }
    let frontend = |(index, frontend): (usize, &status::Frontend)| {
        let start = if index == 0 { first.clone() } else { vec![String::new(); first.len()] };
        let ready = if frontend.ready == frontend.total {
            frontend.total.to_string()
        } else {
            format!("{} of {}", frontend.ready, frontend.total)
        };
        let port = format!("{} {}", frontend.protocol, frontend.port);
        [start, vec![frontend.service.clone(), port, frontend.mode.clone(), ready]].concat()
    };
    vip.frontends.iter().enumerate().map(frontend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Finding, Protocol};

    #[test]
    fn each_vip_says_who_holds_it() {
        let vip = |address: &str, here| Vip {
            vip: address.parse().unwrap(),
            group: "vips".into(),
            here,
            holder: None,
            seconds: 0,
            floats_only: true,
            frontends: Vec::new(),
        };
        let vips = vec![vip("10.87.2.50", true), vip("10.87.2.51", false), vip("10.87.2.52", false)];
        let mut status = Status { node: "node-a".into(), vips, ..Status::default() };
        fill_in(&mut status, &[("10.87.2.51".parse().unwrap(), "node-b".to_owned())].into());
        let holders: Vec<_> = status.vips.iter().map(|vip| vip.holder.as_deref()).collect();
        assert_eq!(holders, [Some("node-a"), Some("node-b"), None]);
    }

    /// A holder's, with a finding.
    fn example() -> Status {
        let vip = |address: &str, here, frontends: Vec<status::Frontend>| Vip {
            vip: address.parse().unwrap(),
            group: "vips".into(),
            here,
            holder: None,
            seconds: 190,
            floats_only: frontends.is_empty(),
            frontends,
        };
        let nginx = status::Frontend {
            service: "default/nginx".into(),
            protocol: Protocol::Tcp,
            port: 80,
            mode: "nat".into(),
            ready: 4,
            total: 5,
        };
        Status {
            node: "node-a".into(),
            keepalived: "active".into(),
            as_planned: true,
            virtual_servers: 1,
            real_servers: 4,
            cluster: status::Cluster { contact_seconds_ago: Some(2), ..status::Cluster::default() },
            vips: vec![
                vip("10.87.2.50", true, vec![nginx]),
                vip("10.87.2.52", false, vec![]),
                vip("10.87.2.53", false, vec![]),
            ],
            findings: vec![Finding::new("default/shop", "no ready endpoints").mend("kubectl get pods")],
            ..Status::default()
        }
    }

    #[test]
    fn a_status_reads_as_a_table() {
        let status = example();
        let holders = [("10.87.2.52".parse().unwrap(), "node-b".to_owned())].into();
        let want = "\
node-a · in sync 2s ago · keepalived active · 1 virtual server, 4 real servers, as planned

VIP         HOLDER         FOR  SERVICE        FRONTEND  MODE  READY
10.87.2.50  node-a (here)  3m   default/nginx  tcp 80    nat   4 of 5
10.87.2.52  node-b              (VIP only)
10.87.2.53  elsewhere           (VIP only)

findings
  default/shop  no ready endpoints
                kubectl get pods
";
        assert_eq!(text(&status, &holders), want);

        let group = |name: &str, vrid| status::Group {
            name: name.into(),
            vrid,
            weight: Some(64),
            members: BTreeMap::new(),
            vips: 1,
        };
        let hashing = Status { virtual_servers: 3, hash_tables: 2, ..status.clone() };
        let first = text(&hashing, &holders);
        assert!(
            first.contains(" · 3 virtual servers (2 by Maglev hashing, 64 KiB or more), 4 real servers, "),
            "{first}"
        );

        let mut grouped = Status { groups: vec![group("edge", 60), group("vips", 50)], ..status };
        grouped.vips[1].group = "edge".into();
        let want = "\
VIP         GROUP  HOLDER         FOR  SERVICE        FRONTEND  MODE  READY
10.87.2.50  vips   node-a (here)  3m   default/nginx  tcp 80    nat   4 of 5
10.87.2.52  edge   node-b              (VIP only)
10.87.2.53  vips   elsewhere           (VIP only)
";
        let text = text(&grouped, &holders);
        assert_eq!(text.lines().skip(2).take(4).collect::<Vec<_>>(), want.lines().collect::<Vec<_>>());
    }
}
