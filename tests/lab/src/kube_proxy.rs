//! The real kube-proxy on the nodes, in the mode that a test wants it in.
//!
//! Owns its program, its identity and its unit on each node. What a test makes of it is the test's.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::{Lab, Node};
use crate::layout::{PODS_V4, PODS_V6};

/// To unpack it, to start it or to have it clean up, on three slow machines at once.
const LIMIT: Duration = Duration::from_secs(180);
/// The name that Kubernetes' own role binding knows, with the rights of system:node-proxier.
const USER: &str = "system:kube-proxy";
const UNPACK: &str = "gzip -d >/usr/sbin/kube-proxy.new && chmod 755 /usr/sbin/kube-proxy.new && \
    mv /usr/sbin/kube-proxy.new /usr/sbin/kube-proxy";
/// Succeeds when rules of each family have been written since kube-proxy started.
const SYNCED: &str = "curl -s --max-time 5 http://127.0.0.1:10249/metrics | awk '
    /^kubeproxy_sync_proxy_rules_last_timestamp_seconds/ { if ($NF > 0) synced++ }
    END { exit synced < 2 }'";

/// How kube-proxy balances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// By rules of iptables.
    Iptables,
    /// By a table of nftables.
    Nftables,
    /// By virtual servers of its own.
    Ipvs {
        /// Networks of which it leaves virtual servers alone.
        exclude_cidrs: Vec<String>,
    },
}

impl Mode {
    fn arguments(&self) -> String {
        match self {
            Self::Iptables => "--proxy-mode=iptables".into(),
            Self::Nftables => "--proxy-mode=nftables".into(),
            Self::Ipvs { exclude_cidrs } => format!(
                "--proxy-mode=ipvs --ipvs-strict-arp --ipvs-exclude-cidrs={}",
                exclude_cidrs.join(",")
            ),
        }
    }

    fn unit(&self, node: &str) -> String {
        format!(
            "[Unit]\nDescription=kube-proxy\n\n[Service]\nExecStart=/usr/sbin/kube-proxy \
             --kubeconfig=/etc/kube-proxy.kubeconfig --hostname-override={node} \
             --cluster-cidr={PODS_V4},{PODS_V6} {}\n",
            self.arguments()
        )
    }
}

impl Lab {
    /// Starts kube-proxy on all nodes, in place of one in another mode, and waits until its rules are there.
    pub fn start_kube_proxy(&self, mode: &Mode) -> Result<()> {
        let kubeconfig = self.certificate_kubeconfig(USER, &[], 1)?;
        let path = self.layout().control_plane_cache().join("kube-proxy.gz");
        let program = fs::read(&path).with_context(|| {
            format!("cannot read {}: tests/lab/controlplane/build --with-kube-proxy makes it", path.display())
        })?;
        on_all(self, |node| {
            if !node.run("test -x /usr/sbin/kube-proxy")?.ok() {
                let unpacked = node.run_within(LIMIT, UNPACK, &program)?;
                anyhow::ensure!(unpacked.ok(), "{}: cannot unpack kube-proxy: {unpacked}", node.spec().name);
            }
            stop(node)?;
            node.write("/etc/kube-proxy.kubeconfig", kubeconfig.as_bytes())?;
            node.write("/etc/systemd/system/kube-proxy.service", mode.unit(node.spec().name).as_bytes())?;
            node.must_within(LIMIT, "systemctl daemon-reload && systemctl start kube-proxy").map(drop)
        })?;
        self.nodes().try_for_each(wait_until_synced)
    }

    /// Ends kube-proxy and starts it again, on all nodes.
    pub fn restart_kube_proxy(&self) -> Result<()> {
        on_all(self, |node| node.must_within(LIMIT, "systemctl restart kube-proxy").map(drop))?;
        self.nodes().try_for_each(wait_until_synced)
    }

    /// Ends kube-proxy on all nodes and has it take away what it made.
    pub fn stop_kube_proxy(&self) -> Result<()> {
        on_all(self, stop)
    }
}

fn wait_until_synced(node: Node<'_>) -> Result<()> {
    let what = format!("rules of kube-proxy on {}", node.spec().name);
    let synced = node.lab().wait_for(&what, LIMIT, || node.run(SYNCED).ok()?.ok().then_some(()));
    synced.with_context(|| {
        let journal = node.run("journalctl -u kube-proxy -n 60 --no-pager");
        journal.map_or_else(|error| error.to_string(), |output| output.stdout)
    })
}

/// Ends it where it runs. Its own cleaning flushes all of IPVS; after mode ipvs it fails in the end, as iptables chains of its
/// own still refer to each other.
fn stop(node: Node<'_>) -> Result<()> {
    let script = "systemctl -q is-active kube-proxy || exit 0
        device=$(ls -d /sys/class/net/kube-ipvs0)
        systemctl stop kube-proxy
        kube-proxy --cleanup --kubeconfig=/etc/kube-proxy.kubeconfig 2>&1 || [ -n \"$device\" ]";
    node.must_within(LIMIT, script).map(drop)
}

fn on_all(lab: &Lab, act: impl Fn(Node<'_>) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let act = &act;
        let nodes: Vec<_> = lab.nodes().map(|node| scope.spawn(move || act(node))).collect();
        nodes.into_iter().try_for_each(|node| node.join().expect("the thread does not panic"))
    })
}
