//! Random edits of Services, their EndpointSlices and the ConfigMap end where a fresh start ends.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kvip_lab::asking::{CLASS, explain, items, wait_until_gone};
use kvip_lab::batch::Edit;
use kvip_lab::lab::Lab;
use kvip_lab::layout::NODES;
use serde_json::{Value, json};

use super::asking;

const EDITS: usize = 200;
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const MAP: &str = "/api/v1/namespaces/default/configmaps/vip-configmap";
/// A Service is one of these.
const NAMES: [&str; 8] = ["edit-0", "edit-1", "edit-2", "edit-3", "edit-4", "edit-5", "edit-6", "edit-7"];
/// A VIP that is asked for by name is one of these.
const VIPS: [&str; 4] = ["10.87.2.52", "10.87.2.53", "10.87.2.54", "10.87.2.55"];
/// What it takes until nothing moves any more: drains, chunks of reloads, and a takeover.
const SETTLED: Duration = Duration::from_secs(150);

/// A xorshift generator: the same seed, the same edits.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("less than a usize")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn edit(&mut self) -> Edit {
        let name = self.pick(&NAMES);
        let slice = format!("{SLICES}/{name}-{}", self.below(2));
        match self.below(12) {
            0..5 => Edit::Apply(format!("{SERVICES}/{name}"), self.service(name)),
            5 => Edit::Delete(format!("{SERVICES}/{name}")),
            6..9 => Edit::Apply(slice.clone(), self.slice(name, &slice)),
            9 => Edit::Delete(slice),
            _ => Edit::Merge(MAP.into(), json!({"data": {self.pick(&VIPS): self.mapped()}})),
        }
    }

    fn mapped(&mut self) -> Value {
        let name = self.pick(&NAMES);
        match self.below(4) {
            0 => Value::Null,
            1 => json!(""),
            2 => json!(format!("default/{name}:80")),
            _ => json!(format!("default/{name}")),
        }
    }

    /// Without a selector: its slices are the test's own.
    fn service(&mut self, name: &str) -> Value {
        let ports: Vec<Value> = [80, 443]
            .iter()
            .take(1 + self.below(2))
            .map(
                |port| json!({"name": format!("p{port}"), "port": port, "targetPort": 80, "protocol": "TCP"}),
            )
            .collect();
        let mut annotations = json!({});
        let mut spec = json!({
            "ports": ports,
            "ipFamilyPolicy": self.pick(&["SingleStack", "PreferDualStack"]),
            "sessionAffinity": self.pick(&["None", "None", "ClientIP"]),
            "type": self.pick(&["ClusterIP", "ClusterIP", "NodePort"]),
        });
        if self.below(3) == 0 {
            annotations["kvip.io/mode"] = json!(self.pick(&["nat", "dsr", "announce"]));
        }
        match self.below(4) {
            0 => annotations["kvip.io/vips"] = json!(self.pick(&VIPS)),
            1 => spec["externalIPs"] = json!([self.pick(&VIPS)]),
            2 => {}
            _ => self.balance(&mut spec, &mut annotations),
        }
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "annotations": annotations}, "spec": spec,
        })
    }

    fn balance(&mut self, spec: &mut Value, annotations: &mut Value) {
        spec["type"] = json!("LoadBalancer");
        spec["loadBalancerClass"] = json!(CLASS);
        spec["allocateLoadBalancerNodePorts"] = json!(false);
        match self.below(4) {
            0 => annotations["kvip.io/share-key"] = json!("edits"),
            1 => annotations["kvip.io/pool"] = json!("named"),
            2 => spec["loadBalancerSourceRanges"] = json!(["10.87.2.200/32"]),
            _ => {}
        }
    }

    fn slice(&mut self, service: &str, path: &str) -> Value {
        let name = path.rsplit('/').next().unwrap_or_default();
        let endpoints: Vec<Value> = (0..self.below(4))
            .map(|_| {
                let node = self.pick(&NODES);
                let pod = node.pod4.replace("0/24", &(100 + self.below(50)).to_string());
                json!({"addresses": [pod], "nodeName": node.name, "conditions": {"ready": self.below(4) > 0}})
            })
            .collect();
        let ports = json!([{"name": "p80", "port": 80, "protocol": "TCP"}, {"name": "p443", "port": 80, "protocol": "TCP"}]);
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints, "ports": ports,
        })
    }
}

/// All that a node has and says, and what the API says of addresses, without what only tells how long or how often.
fn state(lab: &Lab, node: &str) -> Result<String> {
    let script =
        "ipvsadm -Sn | sort; nft --stateless list table inet kvip; cat /etc/keepalived/keepalived.conf
         for family in 4 6; do ip -$family rule; ip -$family route show table 5087 2>/dev/null || true; done";
    let kernel = lab.node(node).must(script)?;
    let mut status = lab.node(node).kvip_status()?;
    ensure!(status["as_planned"] == true, "{node} is not as planned");
    for field in ["keepalived_reloads", "faults", "summary"] {
        status[field].take();
    }
    for field in ["contact_seconds_ago", "from_disk"] {
        status["cluster"][field].take();
    }
    for vip in status["vips"].as_array_mut().into_iter().flatten() {
        vip["seconds"].take();
    }
    Ok(format!("{kernel}{status:#}\n{}", said(lab)?))
}

/// Whether a Service asks for an address by what it says itself.
fn asks(service: &Value) -> bool {
    let spec = &service["spec"];
    let annotated = !service["metadata"]["annotations"]["kvip.io/vips"].is_null();
    annotated || !spec["externalIPs"].is_null() || spec["loadBalancerClass"] == CLASS
}

/// Whether nothing of kvip's is in the status: nobody else writes load balancer entries here.
fn is_bare(service: &Value) -> bool {
    let status = &service["status"];
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    status["loadBalancer"]["ingress"].is_null() && conditions.all(|one| one["type"] != "kvip.io/Served")
}

/// What the API says of the Services' addresses and whose they are; claims that were given back go in their time.
fn said(lab: &Lab) -> Result<String> {
    let mut text = String::new();
    for service in items(lab, "services -n default")? {
        let conditions = service["status"]["conditions"].as_array().into_iter().flatten();
        let conditions: Vec<_> =
            conditions.map(|one| [&one["status"], &one["reason"], &one["message"]]).collect();
        let name = &service["metadata"]["name"];
        ensure!(
            asks(&service) || is_bare(&service),
            "{name} asks no more, and its status has something of kvip's"
        );
        writeln!(text, "{name} {} {conditions:?}", service["status"]["loadBalancer"])?;
    }
    for claim in items(lab, "ipaddresses -l ipaddress.kubernetes.io/managed-by=kvip")? {
        let (name, annotations) = (&claim["metadata"]["name"], &claim["metadata"]["annotations"]);
        if annotations["kvip.io/released-at"].is_null() {
            let is_said = text.contains(&format!("\"ip\":{name}"));
            ensure!(is_said, "{name} is claimed, and no status says so: it is to be given back yet");
            writeln!(text, "{name} {}", annotations["kvip.io/services"])?;
        }
    }
    Ok(text)
}

/// The lines that only one of the two has.
fn difference(one: &str, other: &str) -> String {
    let only = |sign: &str, these: &str, those: &str| -> Vec<String> {
        let lines = these.lines().filter(|line| !those.lines().any(|that| that == *line));
        lines.map(|line| format!("{sign} {line}")).collect()
    };
    [only("-", one, other), only("+", other, one)].concat().join("\n")
}

/// Waits until a node says the same for a while, with every Service's address given or refused.
fn settled(lab: &Lab, node: &str) -> Result<String> {
    let mut last = (String::new(), 0);
    let found = lab.wait_for(&format!("{node} to come to rest"), SETTLED, || {
        let now = state(lab, node).ok()?;
        last.1 = if now == last.0 { last.1 + 1 } else { 0 };
        last.0 = now;
        (last.1 >= 8).then(|| last.0.clone())
    });
    found.with_context(|| explain(lab, ""))
}

#[test]
fn random_edits_end_as_a_fresh_start_does() -> Result<()> {
    let lab = asking()?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = std::env::var("KVIP_LAB_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
    eprintln!("KVIP_LAB_SEED={seed}");
    let mut random = Random(seed.max(1));
    let edits: Vec<Edit> = (0..EDITS).map(|_| random.edit()).collect();
    let answers = lab.send(&edits)?;
    let strange = edits.iter().zip(&answers).find(|(_, answer)| ![200, 201, 404].contains(*answer));
    ensure!(strange.is_none(), "the API server does not take an edit: {strange:?}");
    for node in &NODES {
        check_fresh_start(&lab, node.name).with_context(|| format!("KVIP_LAB_SEED={seed}"))?;
    }
    clear(&lab)
}

/// The node comes to rest without a fault, and again in the same state when its kvip begins with nothing.
fn check_fresh_start(lab: &Lab, node: &str) -> Result<()> {
    let before = settled(lab, node)?;
    let faults = lab.node(node).kvip_status()?["faults"].clone();
    ensure!(faults == 0, "{node}: {faults} passes left something undone");
    lab.node(node).must("systemctl stop kvip && rm -rf /var/lib/kvip/* && systemctl start kvip")?;
    let mut after = String::new();
    let same = lab.wait_for("a fresh start to end in the same state", SETTLED, || {
        after = state(lab, node).ok()?;
        (after == before).then_some(())
    });
    same.with_context(|| {
        let difference = difference(&before, &after);
        format!("- before, + after a fresh start of {node}:\n{difference}\n{}", explain(lab, ""))
    })
}

/// Takes away all that the edits may have made.
fn clear(lab: &Lab) -> Result<()> {
    let services = NAMES.iter().map(|name| Edit::Delete(format!("{SERVICES}/{name}")));
    let slices =
        NAMES.iter().flat_map(|name| (0..2).map(move |n| Edit::Delete(format!("{SLICES}/{name}-{n}"))));
    let vips = VIPS.iter().map(|vip| Edit::Merge(MAP.into(), json!({"data": {*vip: null}})));
    lab.send(&services.chain(slices).chain(vips).collect::<Vec<_>>())?;
    VIPS.iter().try_for_each(|vip| wait_until_gone(lab, vip))
}
