//! A static VIP, such as the control plane's own, answers from boot, when nothing is known of any cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvip_lab::asking::{Asking, explain, items, must, wait_for_answer, wait_until_gone};
use kvip_lab::kvip::Settings;
use kvip_lab::lab::{Lab, Node};
use kvip_lab::scenario::{SOON, VIP};

use super::{asking, delete};

const STATIC: &str = "10.87.2.60";
const SETTINGS: &str = "
[[static]]
name = \"control-plane\"
vip = \"10.87.2.60\"
port = 6443
backends = [\"10.87.2.4:6443\", \"10.87.2.6:6443\", \"10.87.2.8:6443\"]
";
/// What three machines that boot may take.
const BOOT: Duration = Duration::from_secs(180);
/// Stands for the API server of each node: it answers with the node's name, from boot.
const BACKEND: &str = "cat > /etc/backend.conf <<TEXT
pid /run/backend.pid; error_log /run/backend.log; events { worker_connections 512; }
http { access_log off; server { listen ADDRESS:6443; location / { return 200 \"$(hostname) static saw \\$remote_addr\\n\"; } } }
TEXT
cat > /etc/systemd/system/backend.service <<TEXT
[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/sbin/nginx -c /etc/backend.conf -g 'daemon off;'
Restart=on-failure
RestartSec=1
[Install]
WantedBy=multi-user.target
TEXT
systemctl daemon-reload; systemctl enable --now backend";

/// Does it on all nodes side by side.
fn on_all(lab: &Lab, act: impl Fn(Node<'_>) -> Result<()> + Sync) -> Result<()> {
    lab.on_all_nodes(act).into_iter().collect()
}

/// The nodes that answer at the VIP within some requests.
fn answering(lab: &Lab) -> BTreeSet<String> {
    let asked = (0..9).filter_map(|_| lab.curl(&format!("{STATIC}:6443")));
    asked.filter_map(|said| Some(said.split_whitespace().next()?.to_owned())).collect()
}

/// Each node's own processes are answered by all backends, the node's own among them, whoever holds the VIP.
fn nodes_are_answered(lab: &Lab) -> Result<()> {
    let script = format!("for i in $(seq 18); do curl -s -m 3 http://{STATIC}:6443/ || echo nobody; done");
    for node in lab.nodes() {
        let answers = node.must_within(SOON, &script)?;
        let by: BTreeSet<&str> = answers.lines().filter_map(|line| line.split_whitespace().next()).collect();
        println!("{STATIC} from {}: {by:?}", node.spec().name);
        must(lab, by.len() == 3 && !by.contains("nobody"), &format!("{}: {answers}", node.spec().name))?;
    }
    Ok(())
}

#[test]
fn static_vips_are_served_before_any_api() -> Result<()> {
    let lab = asking()?;
    let settings = |extra: &str| Settings { extra: extra.into(), ..Settings::default() }.toml();
    on_all(&lab, |node| {
        node.must(&BACKEND.replace("ADDRESS", node.spec().v4))?;
        node.write("/etc/kvip/config.toml", settings(SETTINGS).as_bytes())?;
        node.must("systemctl reload kvip").map(drop)
    })?;
    wait_for_answer(&lab, &format!("{STATIC}:6443"))?;
    lab.control("stop", "kube-apiserver")?;
    on_all(&lab, |node| {
        // Nothing is known of the cluster, as on a host that boots for the first time.
        node.must("systemctl stop kvip; rm -rf /var/lib/kvip/* /etc/keepalived/keepalived.conf; sync")?;
        node.reboot()
    })?;
    let all = lab.wait_for("all backends to answer without an API", BOOT, || {
        (answering(&lab).len() == 3).then_some(())
    });
    all.with_context(|| explain(&lab, ""))?;
    nodes_are_answered(&lab)?;
    must(&lab, lab.curl(VIP).is_none(), "without the API and a saved state the cluster's VIPs are unknown")?;
    let dead = lab.other_than(lab.wait_for_holder()?);
    lab.node(dead).must("systemctl stop backend")?;
    let out = lab.wait_for("the dead backend to be taken out", SOON, || {
        let answering = answering(&lab);
        (answering.len() == 2 && !answering.contains(dead)).then_some(())
    });
    out.with_context(|| explain(&lab, ""))?;
    lab.control("start", "kube-apiserver")?;
    on_all(&lab, |node| {
        node.write("/etc/kvip/config.toml", settings("").as_bytes())?;
        node.must("systemctl reload kvip; systemctl disable --now backend").map(drop)
    })?;
    wait_until_gone(&lab, STATIC)?;
    let back = lab.wait_for("the cluster's VIPs to answer again", BOOT, || lab.curl(VIP));
    back.map(drop).with_context(|| explain(&lab, ""))?;
    wait_for_controllers(&lab)
}

/// Waits until a new Service gets its EndpointSlice: Kubernetes' controllers, which have tried in vain for minutes, look for the
/// API server ever more rarely.
fn wait_for_controllers(lab: &Lab) -> Result<()> {
    Asking::new("noticed").apply(lab)?;
    let noticed = lab.wait_for("an EndpointSlice of a new Service", BOOT, || {
        let slices = items(lab, "endpointslices -l kubernetes.io/service-name=noticed").ok()?;
        (!slices.is_empty()).then_some(())
    });
    noticed.with_context(|| explain(lab, "noticed"))?;
    delete(lab, "noticed")
}
