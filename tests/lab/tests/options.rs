//! How Services are balanced, as the kernel has it: kvip makes it of a folder of manifests or of what the API server tells
//! it, ipvsadm reads it back.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node, Options};
use kvip_lab::scenario::package;

/// What kvip may take for all of it on a slow machine.
const LIMIT: Duration = Duration::from_secs(60);
const SCHEDULERS: [&str; 13] =
    ["rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq", "lblc", "lblcr", "fo", "ovf"];
/// The scheduler that Debian's kernel is built without.
const LACKED: &str = "twos";

/// Name, annotations without `kvip.io/`, further fields of the spec, and lines of `ipvsadm -Sn` that come of it, with `V`
/// for the VIP.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

const CASES: [Case; 7] = [
    (
        "sh-flags",
        "scheduler: sh, kvip.io/scheduler-flags: 'sh-fallback,sh-port'",
        "",
        &["-A -t V:80 -s sh -b sh-fallback,sh-port"],
    ),
    ("mh-flags", "scheduler: mh, kvip.io/scheduler-flags: mh-port", "", &["-A -t V:80 -s mh -b mh-port"]),
    (
        "office",
        "persistence-netmask: '24'",
        "sessionAffinity: ClientIP, ",
        &["-A -t V:80 -s wlc -p 10800 -M 255.255.255.0"],
    ),
    ("limited", "thresholds: 80-100", "", &["-> 10.2.6.10:8080 100 80 "]),
    ("one-packet", "one-packet: 'true'", "", &["-A -t V:80 -s wlc", "-A -u V:53 -s wlc -o"]),
    (
        "gue",
        "mode: tunnel, kvip.io/tunnel: 'gue:6080'",
        "",
        &["-a -t V:80 -r 10.2.6.10:80 -i -w 1 --tun-type gue --tun-port 6080"],
    ),
    ("zoned", "zone-weights: 'z2=7'", "", &["-a -t V:80 -r 10.2.6.10:8080 -m -w 7"]),
];

const OF_SLICES: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: of-slices, annotations: {kvip.io/persistence-netmask-v6: "64"}}
spec: {ipFamilies: [IPv6], sessionAffinity: ClientIP, ports: [{name: web, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: of-slices
  labels: {kubernetes.io/service-name: of-slices}
  annotations: {kvip.io/weight: "3", kvip.io/weights: "fd00:2:6::10=5"}
addressType: IPv6
ports: [{name: web, port: 8080}]
endpoints: [{addresses: ["fd00:2:6::10"], nodeName: node-b}, {addresses: ["fd00:2:6::11"], nodeName: node-b}]
"#;

/// What a folder of manifests needs beside the Services: this node.
const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n\
                    status: {addresses: [{type: InternalIP, address: 10.87.2.4}]}\n";

/// The objects, and the lines that the kernel's table must begin with.
fn manifests() -> (String, Vec<String>) {
    let (mut text, mut wanted, mut vips) = (String::new(), Vec::new(), String::new());
    let mut add = |name: &str, annotations: &str, spec: &str, lines: &[&str]| {
        let vip = format!("10.87.2.{}", 100 + wanted.len());
        wanted.push(lines.iter().map(|line| line.replace('V', &vip)).collect::<Vec<_>>());
        let _ = writeln!(vips, "  {vip}: default/{name}");
        let ports = "[{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}]";
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{kvip.io/{annotations}}}}}\n\
             spec: {{{spec}ports: {ports}}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
             ports: [{{name: web, port: 8080}}, {{name: dns, port: 5353, protocol: UDP}}]\n\
             endpoints: [{{addresses: [10.2.6.10], nodeName: node-b, zone: z2}}]\n"
        );
    };
    for scheduler in SCHEDULERS {
        let line = format!("-A -t V:80 -s {scheduler}");
        add(scheduler, &format!("scheduler: {scheduler}"), "", &[&line]);
    }
    add(LACKED, &format!("scheduler: {LACKED}"), "", &[]);
    for (name, annotations, spec, lines) in CASES {
        add(name, annotations, spec, lines);
    }
    // The office's network in IPv6, and weights that slices say themselves.
    text.push_str(OF_SLICES);
    vips.push_str("  fd00-87-2--64: default/of-slices\n");
    wanted.push(
        [
            "-A -t [fd00:87:2::64]:80 -s wlc -p 10800 -M 64",
            "-a -t [fd00:87:2::64]:80 -r [fd00:2:6::10]:8080 -m -w 5",
            "-a -t [fd00:87:2::64]:80 -r [fd00:2:6::11]:8080 -m -w 3",
        ]
        .map(str::to_owned)
        .into(),
    );
    let _ = write!(
        text,
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: vip-configmap}}\ndata:\n{vips}"
    );
    (text, wanted.concat())
}

/// Waits until the node's kernel has what is wanted, and kvip has told of the one scheduler that there is not.
fn wait_until_balanced(node: &Node<'_>, wanted: &[String]) -> Result<()> {
    let lab = node.lab();
    // What ipvsadm saves has no thresholds.
    let table = || node.must("ipvsadm -Sn; ipvsadm -Ln --thresholds | awk '{ $1 = $1; print }'");
    let missing = || -> Result<Vec<&String>> {
        let table = table()?;
        let is_there = |line: &str| table.lines().any(|there| there.starts_with(line));
        Ok(wanted.iter().filter(|line| !is_there(line)).collect())
    };
    let done = lab.wait_for("the table", LIMIT, || missing().ok()?.is_empty().then_some(()));
    ensure!(done.is_ok(), "missing: {:#?}\nof {}\n{}", missing()?, table()?, node.journal());
    // Where the kernel has not got a scheduler, that Service alone is not served.
    let refused = lab.wait_for("the finding", LIMIT, || {
        let findings = node.kvip_status().ok()?["findings"].to_string();
        findings.contains(&format!("modprobe ip_vs_{LACKED}")).then_some(())
    });
    ensure!(refused.is_ok(), "{}\n{}", node.kvip_status()?, node.journal());
    let status = node.kvip_status()?;
    ensure!(status["faults"] == 0, "what was read is what was written: {status}");
    Ok(())
}

#[test]
fn the_kernel_balances_as_annotated() -> Result<()> {
    let lab = Lab::start(Options { control_plane: false })?;
    let node = lab.node("node-a");
    let (text, wanted) = manifests();
    node.install_deb(&package()?)?;
    node.must("mkdir -p /etc/kvip/manifests")?;
    node.write("/etc/kvip/manifests/all.yaml", [NODE, &text].concat().as_bytes())?;
    let extra = "[cluster]\nsource = \"files\"\nmanifests = \"/etc/kvip/manifests\"".to_owned();
    node.write("/etc/kvip/config.toml", Settings { extra, ..Settings::default() }.toml().as_bytes())?;
    // Those that are not loaded at boot are the kernel's to load when it is asked for them.
    node.must("modprobe -r ip_vs_dh ip_vs_mh; systemctl enable --now kvip")?;
    wait_until_balanced(&node, &wanted)
}

/// The same objects, told by the API server.
#[test]
fn every_node_balances_as_annotated_in_the_api() -> Result<()> {
    let lab = Lab::start(Options::default())?;
    let (text, wanted) = manifests();
    lab.install_kvip(&package()?, &Settings::default())?;
    lab.kubectl_with(&["apply", "-f", "-"], &text)?;
    lab.nodes().try_for_each(|node| wait_until_balanced(&node, &wanted))
}
