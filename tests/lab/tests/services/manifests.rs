//! A folder of manifests in place of an API: served from, and followed when it changes.

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{explain, wait_for_answer};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::Lab;
use kvip_lab::scenario::{SOON, VIP, VIP6, wait_until_settled};
use serde_json::Value;

use super::asking;

const FOLDER: &str = "/etc/kvip/manifests";
/// All that kvip reads of a cluster.
const KINDS: &str = "namespaces,nodes,services,endpointslices,configmaps,servicecidrs,ipaddresses";

#[test]
fn a_folder_of_manifests_is_served_and_followed() -> Result<()> {
    let lab = asking()?;
    let mut manifests: Value = serde_json::from_str(&lab.kubectl(&["get", KINDS, "-A", "-o", "json"])?)?;
    write(&lab, &manifests)?;
    let extra = format!("[cluster]\nsource = \"files\"\nmanifests = \"{FOLDER}\"\n");
    restart(&lab, &Settings { extra, ..Settings::default() })?;
    lab.control("stop", "kube-apiserver")?;
    wait_for_real_servers(&lab, 3)?;
    // What an API server writes has no field that nobody knows.
    let said = lab.node("node-a").must(&format!("kvip plan {FOLDER} || true"))?;
    ensure!(said.contains("to host") && !said.contains("is no field of it"), "{said}");

    let slices = manifests["items"].as_array_mut().context("a list")?.iter_mut().filter(|item| {
        item["metadata"]["labels"]["kubernetes.io/service-name"] == "nginx" && item["addressType"] == "IPv4"
    });
    for slice in slices {
        slice["endpoints"].as_array_mut().context("endpoints")?.pop();
    }
    write(&lab, &manifests)?;
    wait_for_real_servers(&lab, 2)?;
    for vip in [VIP, VIP6] {
        wait_for_answer(&lab, vip)?;
    }

    lab.control("start", "kube-apiserver")?;
    restart(&lab, &Settings::default())?;
    wait_for_real_servers(&lab, 3)?;
    wait_until_settled(&lab)
}

/// Gives the manifests to all nodes.
fn write(lab: &Lab, manifests: &Value) -> Result<()> {
    let written = lab.on_all_nodes(|node| {
        node.must(&format!("mkdir -p {FOLDER}"))?;
        node.write(&format!("{FOLDER}/cluster.json"), manifests.to_string().as_bytes())
    });
    written.into_iter().collect()
}

fn restart(lab: &Lab, settings: &Settings) -> Result<()> {
    let restarted = lab.on_all_nodes(|node| {
        node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
        node.must_within(SOON, "systemctl restart kvip").map(drop)
    });
    restarted.into_iter().collect()
}

/// Waits until on all nodes so many pods get connections at the tutorial's VIP.
fn wait_for_real_servers(lab: &Lab, count: usize) -> Result<()> {
    let found = lab.wait_for(&format!("{count} real servers on every node"), SOON, || {
        let serves = |line: &&str| line.starts_with(&format!("-a -t {VIP}:80 ")) && !line.ends_with("-w 0");
        let as_many = |table: String| table.lines().filter(serves).count() == count;
        lab.nodes().all(|node| node.ipvs().is_ok_and(as_many)).then_some(())
    });
    found.with_context(|| explain(lab, ""))
}
