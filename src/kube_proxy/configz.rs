//! kube-proxy's own configuration, as it tells it at `/configz` (k8s.io/component-base/configz).
//!
//! Pure. In newer versions it is the type that people write, before that (1.30 among them) the program's own struct,
//! whose keys are named as in Go. They differ in the case of letters alone.

use std::collections::BTreeSet;

use anyhow::Context as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

/// The name of the configuration among those that the program tells.
const GROUP: &str = "kubeproxy.config.k8s.io";

/// The networks of which the kube-proxy of this answer leaves other programs' virtual servers alone: in mode ipvs its
/// excludeCIDRs, in other modes all, as it has none of its own to set right.
pub fn excluded(answer: &[u8]) -> anyhow::Result<BTreeSet<IpNet>> {
    let all: Value = serde_json::from_slice(answer).context("it is not JSON")?;
    let config = field(&all, GROUP)?;
    let mode = field(config, "mode")?.as_str().context("its mode is no text")?;
    if mode != "ipvs" {
        return Ok([Ipv4Net::default().into(), Ipv6Net::default().into()].into());
    }
    let networks = field(field(config, "ipvs")?, "excludeCIDRs")?;
    let networks: Option<Vec<IpNet>> =
        serde_json::from_value(networks.clone()).context("its excludeCIDRs are no networks")?;
    Ok(networks.iter().flatten().map(IpNet::trunc).collect())
}

fn field<'a>(object: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let mut fields = object.as_object().into_iter().flatten();
    let found = fields.find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value).with_context(|| format!("it has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kube-proxy 1.37 tells.
    const EXTERNAL: &str = r#"{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration",
"apiVersion":"kubeproxy.config.k8s.io/v1alpha1",
"clientConnection":{"kubeconfig":"/etc/kube-proxy.kubeconfig","acceptContentTypes":"",
"contentType":"application/vnd.kubernetes.protobuf","qps":5,"burst":10},"logging":{"format":"text",
"flushFrequency":"5s","verbosity":0,"options":{"text":{"infoBufferSize":"0"},
"json":{"infoBufferSize":"0"}}},"hostnameOverride":"node-a","bindAddress":"0.0.0.0",
"healthzBindAddress":"0.0.0.0:10256","metricsBindAddress":"127.0.0.1:10249",
"bindAddressHardFail":false,"enableProfiling":false,"showHiddenMetricsForVersion":"","mode":"MODE",
"iptables":{"masqueradeBit":14,"masqueradeAll":false,"localhostNodePorts":true,"syncPeriod":"30s",
"minSyncPeriod":"1s"},"ipvs":{"syncPeriod":"30s","minSyncPeriod":"1s","scheduler":"",
"excludeCIDRs":NETWORKS,"strictARP":true,"tcpTimeout":"0s","tcpFinTimeout":"0s","udpTimeout":"0s"},
"nftables":{"masqueradeBit":14,"masqueradeAll":false,"syncPeriod":"30s","minSyncPeriod":"1s"},
"winkernel":{"networkName":"","sourceVip":"","enableDSR":false,"rootHnsEndpointName":"",
"forwardHealthCheckVip":false},"detectLocalMode":"ClusterCIDR","detectLocal":{"bridgeInterface":"",
"interfaceNamePrefix":""},"clusterCIDR":"10.2.0.0/16","nodePortAddresses":null,"oomScoreAdj":-999,
"conntrack":{"maxPerCore":32768,"min":131072,"tcpEstablishedTimeout":"24h0m0s",
"tcpCloseWaitTimeout":"1h0m0s","tcpBeLiberal":false,"udpTimeout":"0s","udpStreamTimeout":"0s"},
"configSyncPeriod":"15m0s","portRange":"","windowsRunAsService":false}}"#;

    /// What kube-proxy 1.30 tells.
    const INTERNAL: &str = r#"{"kubeproxy.config.k8s.io":{"FeatureGates":{},
"ClientConnection":{"Kubeconfig":"/etc/kube-proxy.kubeconfig","AcceptContentTypes":"",
"ContentType":"application/vnd.kubernetes.protobuf","QPS":5,"Burst":10},"Logging":{"format":"text",
"flushFrequency":"5s","verbosity":0,"options":{"json":{"infoBufferSize":"0"}}},
"HostnameOverride":"node-a","BindAddress":"0.0.0.0","HealthzBindAddress":"0.0.0.0:10256",
"MetricsBindAddress":"127.0.0.1:10249","BindAddressHardFail":false,"EnableProfiling":false,
"ShowHiddenMetricsForVersion":"","Mode":"MODE","IPTables":{"MasqueradeBit":14,"MasqueradeAll":false,
"LocalhostNodePorts":true,"SyncPeriod":"30s","MinSyncPeriod":"1s"},"IPVS":{"SyncPeriod":"30s",
"MinSyncPeriod":"0s","Scheduler":"","ExcludeCIDRs":NETWORKS,"StrictARP":true,"TCPTimeout":"0s",
"TCPFinTimeout":"0s","UDPTimeout":"0s"},"Winkernel":{"NetworkName":"","SourceVip":"",
"EnableDSR":false,"RootHnsEndpointName":"","ForwardHealthCheckVip":false},
"NFTables":{"MasqueradeBit":14,"MasqueradeAll":false,"SyncPeriod":"30s","MinSyncPeriod":"1s"},
"DetectLocalMode":"ClusterCIDR","DetectLocal":{"BridgeInterface":"","InterfaceNamePrefix":""},
"ClusterCIDR":"10.2.0.0/16","NodePortAddresses":null,"OOMScoreAdj":-999,
"Conntrack":{"MaxPerCore":32768,"Min":131072,"TCPEstablishedTimeout":"24h0m0s",
"TCPCloseWaitTimeout":"1h0m0s","TCPBeLiberal":false,"UDPTimeout":"0s","UDPStreamTimeout":"0s"},
"ConfigSyncPeriod":"15m0s","PortRange":""}}"#;

    fn answer(shape: &str, mode: &str, networks: &str) -> String {
        shape.replace("MODE", mode).replace("NETWORKS", networks)
    }

    #[track_caller]
    fn check(mode: &str, networks: &str, expected: Option<&[&str]>) {
        for answer in [EXTERNAL, INTERNAL].map(|shape| answer(shape, mode, networks)) {
            let found = excluded(answer.as_bytes()).ok();
            let found = found.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
            let expected = expected.map(|all| all.iter().copied().map(str::to_owned).collect());
            assert_eq!(found, expected, "{answer}");
        }
    }

    #[test]
    fn both_shapes_are_read() {
        let both = r#"["10.87.2.0/24","fd00:87:2::/64"]"#;
        check("ipvs", both, Some(&["10.87.2.0/24", "fd00:87:2::/64"]));
        check("ipvs", r#"["10.87.2.7/24"]"#, Some(&["10.87.2.0/24"]));
        check("ipvs", "[]", Some(&[]));
        check("ipvs", "null", Some(&[]));
    }

    #[test]
    fn in_other_modes_it_leaves_all_alone() {
        for mode in ["", "iptables", "nftables"] {
            check(mode, "null", Some(&["0.0.0.0/0", "::/0"]));
        }
    }

    #[test]
    fn what_says_something_else_says_nothing() {
        check("ipvs", r#"["10.87.2.0/240"]"#, None);
        check("ipvs", r#""10.87.2.0/24""#, None);
        let without = answer(EXTERNAL, "ipvs", "[]").replace("excludeCIDRs", "excluded");
        let wrong = ["", "404 page not found\n", "[]", "{}", r#"{"kubeproxy.config.k8s.io":null}"#, &without];
        for answer in wrong {
            assert!(excluded(answer.as_bytes()).is_err(), "{answer}");
        }
    }
}
