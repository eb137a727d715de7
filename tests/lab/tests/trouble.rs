//! What can be wrong with a host or a cluster: kvip says which and how to mend it, keeps what it has, and recovers.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvip_lab::lab::{Lab, Node};
use kvip_lab::scenario::{
    SOON, VIP, VIP6, ask_for, explained, finding, serving, wait_until_settled, without_a_lost_request,
};

const MINUTES: Duration = Duration::from_secs(180);
/// kvip waits 20 s for its first pass; the rest is for a slow machine. systemd would wait 60 s for kvip.
const READY: Duration = Duration::from_secs(30);

/// Waits for a finding of `node` that says all of `words`.
fn told(lab: &Lab, node: &str, words: &[&str]) -> Result<()> {
    let told = lab.wait_for(&format!("{node} to say {words:?}"), MINUTES, || {
        let found = finding(lab, node, words[0])?;
        words.iter().all(|word| found.contains(word)).then_some(())
    });
    explained(lab, told)
}

/// A node that holds nothing, so that its trouble is its own.
fn backup(lab: &Lab) -> Result<&'static str> {
    Ok(lab.other_than(lab.wait_for_holder()?))
}

/// Breaks a node, waits for the finding, mends it, waits until all is well.
fn trouble(lab: &Lab, break_it: &str, words: &[&str], mend_it: &str) -> Result<()> {
    let node = broken(lab, break_it, words)?;
    mended(lab, node, mend_it)
}

/// Breaks a node and waits for the finding.
fn broken(lab: &Lab, break_it: &str, words: &[&str]) -> Result<&'static str> {
    let node = backup(lab)?;
    lab.node(node).must_within(MINUTES, break_it)?;
    told(lab, node, words)?;
    ensure!(lab.curl(VIP).is_some(), "{break_it} on a backup took the VIP away");
    Ok(node)
}

fn mended(lab: &Lab, node: &str, mend_it: &str) -> Result<()> {
    lab.node(node).must_within(MINUTES, mend_it)?;
    wait_until_settled(lab)
}

/// A kernel that was told to do without IPv6 refuses more than the addresses. The node serves what it can, to others' peace.
#[test]
fn a_host_without_ipv6_serves_ipv4() -> Result<()> {
    let lab = serving()?;
    let name = backup(&lab)?;
    let node = lab.node(name);
    // What a boot is to find again must not be in the dead machine's memory alone.
    node.must("sync")?;
    node.kill()?;
    node.boot_without_ipv6()?;
    let ready = lab.wait_for("the IPv4 half of a table", MINUTES, || {
        let status = node.kvip_status().ok()?;
        (status["real_servers"] == 3 && status["keepalived"] == "active").then_some(())
    });
    explained(&lab, ready)?;
    let others = || lab.nodes().filter(|other| other.spec().name != name);
    // The last of them hands IPv6 over to nobody.
    for other in others() {
        other.must_within(SOON, "kvip drain --force")?;
    }
    let held = lab.wait_for(&format!("{name} to hold {VIP}"), MINUTES, || {
        let addresses = node.must("ip -br addr").ok()?;
        (addresses.contains("10.87.2.50/") && lab.curl(VIP).is_some()).then_some(())
    });
    explained(&lab, held)?;
    for other in others() {
        other.must_within(SOON, "kvip undrain")?;
    }
    node.reboot()?;
    wait_until_settled(&lab)
}

/// A node that cannot ask the API keeps what it knew last. kvip is root without CAP_DAC_OVERRIDE, so permissions count.
#[test]
fn a_kubeconfig_that_is_no_good() -> Result<()> {
    let lab = serving()?;
    let cases: [(&str, &[&str]); 4] = [
        ("rm /etc/kvip/kubeconfig", &["/etc/kvip/kubeconfig is not there"]),
        ("sed -i 's/token: .*/token: expired/' /etc/kvip/kubeconfig", &["401", "auth whoami"]),
        ("sed -i 's/:6443/:6444/' /etc/kvip/kubeconfig", &["cannot reach API server"]),
        (
            "chown nobody /etc/kvip/kubeconfig; chmod 0600 /etc/kvip/kubeconfig",
            &["cannot read /etc/kvip/kubeconfig", "denied", "ls -l /etc/kvip/kubeconfig"],
        ),
    ];
    for (break_it, words) in cases {
        let node = broken(&lab, &format!("cp -p /etc/kvip/kubeconfig /root/good; {break_it}"), words)?;
        let table = lab.node(node).ipvs()?;
        let kept = [VIP, VIP6].iter().all(|vip| table.contains(&format!("-t {vip}:80 -r")));
        ensure!(kept, "{break_it}: {node} let go of what it served: {table}");
        mended(&lab, node, "cp -p /root/good /etc/kvip/kubeconfig")?;
    }
    Ok(())
}

/// The identity of the package's RBAC manifests, as a client certificate's name.
const ACCOUNT: &str = "system:serviceaccount:kvip-system:kvip";

/// Beside a token: a client certificate, an expired one, and an exec plugin, all under the unit's hardening.
#[test]
fn kubeconfigs_of_other_kinds() -> Result<()> {
    let lab = serving()?;
    let node = backup(&lab)?;
    let good = lab.enroll()?;
    let write = |kubeconfig: &str| lab.node(node).write("/etc/kvip/kubeconfig", kubeconfig.as_bytes());
    write(&lab.certificate_kubeconfig(ACCOUNT, &[], 1)?)?;
    follows_the_cluster(&lab, node)?;
    write(&lab.certificate_kubeconfig(ACCOUNT, &[], 0)?)?;
    told(&lab, node, &["401", "auth whoami"])?;
    let (before, token) = good.split_once("token: ").expect("the script's kubeconfig ends with a token");
    let credential = format!(
        "{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"{}\"}}}}",
        token.trim()
    );
    lab.node(node).write("/etc/kvip/plugin", format!("#!/bin/sh\necho '{credential}'\n").as_bytes())?;
    lab.node(node).must("chmod 0700 /etc/kvip/plugin")?;
    let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: /etc/kvip/plugin, interactiveMode: Never}";
    write(&format!("{before}{exec}\n"))?;
    follows_the_cluster(&lab, node)?;
    write(&good)?;
    wait_until_settled(&lab)
}

/// A VIP that is asked for now reaches the node's keepalived, and leaves it again.
fn follows_the_cluster(lab: &Lab, node: &str) -> Result<()> {
    for (value, listed) in [(Some(""), true), (None, false)] {
        ask_for(lab, "10.87.2.62", value)?;
        let seen = lab.wait_for(&format!("10.87.2.62 on {node}: {listed}"), MINUTES, || {
            let text = lab.node(node).must("cat /etc/keepalived/keepalived.conf").ok()?;
            (text.contains("10.87.2.62/32") == listed).then_some(())
        });
        explained(lab, seen)?;
    }
    Ok(())
}

#[test]
fn a_masked_keepalived() -> Result<()> {
    let lab = serving()?;
    trouble(
        &lab,
        "systemctl mask --now keepalived",
        &["systemctl unmask keepalived"],
        "systemctl unmask keepalived; systemctl start keepalived",
    )
}

/// Fails unless the foreign instance says version 2 with its password: keepalived dumps what it runs upon SIGUSR1.
const THEIR_ADVERT: &str = "rm -f /tmp/keepalived.data; kill -USR1 $(systemctl show -P MainPID keepalived)
    for n in $(seq 50); do grep -q 'VRRP Instance = kvip' /tmp/keepalived.data && break; sleep 0.2; done
    sed -n '/VRRP Instance = theirs/,/VRRP Instance = kvip/p' /tmp/keepalived.data | grep -e 'VRRP Version = 2' -e 'Authentication type = SIMPLE_PASSWORD' | wc -l | grep -qx 2";

#[test]
fn a_foreign_keepalived_configuration_is_not_overwritten() -> Result<()> {
    let lab = serving()?;
    let node = backup(&lab)?;
    let foreign = "global_defs {\n    router_id foreign\n}\nvrrp_instance theirs {\n    interface eth0\n    virtual_router_id 77\n    priority 50\n    advert_int 1\n    \
                   authentication {\n        auth_type PASS\n        auth_pass secret\n    }\n    \
                   virtual_ipaddress {\n        10.87.2.77\n    }\n}\n";
    lab.node(node).must("cp -p /etc/keepalived/keepalived.conf /root/ours")?;
    lab.node(node).write("/etc/keepalived/keepalived.conf", foreign.as_bytes())?;
    lab.node(node).must_within(MINUTES, "systemctl restart kvip")?;
    told(&lab, node, &["include /etc/keepalived/conf.d/kvip.conf"])?;
    ensure!(
        lab.node(node).must("cat /etc/keepalived/keepalived.conf")? == foreign,
        "a foreign file was changed"
    );
    // What kvip said to do: keepalived then runs both, and the node takes part again.
    let both = [foreign, "include /etc/keepalived/conf.d/kvip.conf\n"].concat();
    lab.node(node).write("/etc/keepalived/keepalived.conf", both.as_bytes())?;
    lab.node(node).must_within(MINUTES, "keepalived -t && systemctl restart keepalived")?;
    wait_until_settled(&lab)?;
    let theirs = lab.wait_for("the foreign instance to hold its address", SOON, || {
        lab.node(node).must("ip -br addr show eth0").ok()?.contains("10.87.2.77").then_some(())
    });
    explained(&lab, theirs)?;
    // A VIP that comes later is taken too, and their instance still speaks as they wrote it.
    ask_for(&lab, "10.87.2.63", Some(""))?;
    let taken = lab.wait_for("a new VIP beside the foreign instance", SOON, || {
        let file = lab.node(node).must("cat /etc/keepalived/conf.d/kvip.conf").ok()?;
        let active = lab.node(node).kvip_status().is_ok_and(|status| status["keepalived"] == "active");
        (active && file.contains("10.87.2.63/32")).then_some(())
    });
    explained(&lab, taken)?;
    lab.node(node).must_within(MINUTES, THEIR_ADVERT)?;
    ask_for(&lab, "10.87.2.63", None)?;
    lab.node(node).must_within(MINUTES, "cp -p /root/ours /etc/keepalived/keepalived.conf; rm -f /etc/keepalived/conf.d/kvip.conf; systemctl restart keepalived kvip")?;
    wait_until_settled(&lab)
}

#[test]
fn missing_tools_and_rights() -> Result<()> {
    let lab = serving()?;
    trouble(
        &lab,
        "mv /usr/sbin/nft /root/nft; systemctl restart kvip",
        &["nft is not installed", "apt install nftables"],
        "mv /root/nft /usr/sbin/nft",
    )?;
    trouble(
        &lab,
        "echo 'install ip_vs /bin/false' > /etc/modprobe.d/no.conf; systemctl stop kvip; ipvsadm -C; \
         for m in $(lsmod | sed -n 's/^\\(ip_vs_[a-z]*\\).*/\\1/p'); do rmmod $m; done; rmmod ip_vs; systemctl start kvip",
        &["ip_vs is not loaded", "modprobe ip_vs"],
        "rm /etc/modprobe.d/no.conf; modprobe ip_vs; sysctl -q -p /usr/lib/sysctl.d/50-kvip.conf",
    )?;
    trouble(
        &lab,
        "mkdir -p /etc/systemd/system/kvip.service.d; printf '[Service]\\nCapabilityBoundingSet=\\n' > /etc/systemd/system/kvip.service.d/no.conf; \
         systemctl daemon-reload; systemctl restart kvip",
        &["CAP_NET_ADMIN"],
        "rm /etc/systemd/system/kvip.service.d/no.conf; systemctl daemon-reload; systemctl restart kvip",
    )
}

#[test]
fn keepalived_that_is_not_installed() -> Result<()> {
    let lab = serving()?;
    trouble(
        &lab,
        "systemctl stop keepalived; mv /usr/sbin/keepalived /root/keepalived; systemctl restart kvip",
        &["apt install keepalived", "not installed"],
        "mv /root/keepalived /usr/sbin/keepalived; systemctl start keepalived",
    )
}

/// The file that keepalived's own test refuses is not put in place, and what runs goes on.
#[test]
fn a_configuration_that_keepalived_refuses() -> Result<()> {
    let lab = serving()?;
    let node = backup(&lab)?;
    let refusing = "#!/bin/sh\n\
                    case \"$*\" in *-t*) echo \"(Line 1) no such thing in this version\" >&2; exit 4;; esac\n\
                    exec /root/keepalived \"$@\"\n";
    lab.node(node).must("cp -p /usr/sbin/keepalived /root/keepalived; rm /usr/sbin/keepalived")?;
    lab.node(node).write("/usr/sbin/keepalived", refusing.as_bytes())?;
    lab.node(node).must("chmod 0755 /usr/sbin/keepalived")?;
    let conf =
        || lab.node(node).must("cat /etc/keepalived/keepalived.conf; systemctl show -P MainPID keepalived");
    let before = conf()?;
    ask_for(&lab, "10.87.2.63", Some(""))?;
    told(&lab, node, &["no such thing in this version"])?;
    ensure!(conf()? == before, "what keepalived refuses is in place\n{}", conf()?);
    ensure!(lab.curl(VIP).is_some(), "a backup's trouble took the VIP away");
    lab.node(node).must("rm /usr/sbin/keepalived; mv /root/keepalived /usr/sbin/keepalived")?;
    let taken = lab.wait_for("the VIP in keepalived.conf", MINUTES, || {
        conf().ok()?.contains("10.87.2.63/32").then_some(())
    });
    explained(&lab, taken)?;
    ask_for(&lab, "10.87.2.63", None)?;
    wait_until_settled(&lab)
}

/// keepalived's own test lets the file through, and keepalived dies of it: in the reload, and at each start after that.
const FALLS_AT_START: &str = "#!/bin/sh\n\
                              case \"$*\" in *-t*) ;; *) if grep -q 10.87.2.66/32 /etc/keepalived/keepalived.conf; then exit 1; fi;; esac\n\
                              exec /usr/sbin/keepalived.real \"$@\"\n";
const FALLS_IN_RELOAD: &str = "[Service]\nExecReload=\nExecReload=/bin/sh -c \
                               'if grep -q 10.87.2.66/32 /etc/keepalived/keepalived.conf; then kill -SEGV $MAINPID; else kill -HUP $MAINPID; fi'\n";

/// The file before is brought back and keepalived with it, and what it fell over is not tried again and again.
#[test]
fn a_configuration_that_keepalived_dies_of() -> Result<()> {
    let lab = serving()?;
    let node = lab.node(backup(&lab)?);
    let before = node.must("cat /etc/keepalived/keepalived.conf")?;
    node.must("mv /usr/sbin/keepalived /usr/sbin/keepalived.real; mkdir -p /etc/systemd/system/keepalived.service.d")?;
    node.write("/usr/sbin/keepalived", FALLS_AT_START.as_bytes())?;
    node.write("/etc/systemd/system/keepalived.service.d/falls.conf", FALLS_IN_RELOAD.as_bytes())?;
    node.must_within(MINUTES, "chmod 0755 /usr/sbin/keepalived; systemctl daemon-reload")?;
    let pid = || node.must("systemctl show -P MainPID keepalived");
    let fallen = pid()?;
    ask_for(&lab, "10.87.2.66", Some(""))?;
    told(&lab, node.spec().name, &["keepalived did not survive a reload with its new configuration"])?;
    let back = lab.wait_for("keepalived to run with the file before", MINUTES, || {
        let file = node.must("cat /etc/keepalived/keepalived.conf").ok()?;
        let active = node.run("systemctl is-active keepalived").ok()?.ok();
        (file == before && active && pid().ok()? != fallen).then_some(())
    });
    explained(&lab, back)?;
    let steady = pid()?;
    let journal = node.journal();
    ensure!(journal.contains("the one before is brought back"), "the journal does not say so:\n{journal}");
    // All others have the VIP, so nobody lacks it but this node.
    let held = lab.wait_for("the holder to carry the new VIP", SOON, || {
        lab.node(lab.holder()?).must("ip -br addr show eth0").ok()?.contains("10.87.2.66/").then_some(())
    });
    explained(&lab, held)?;
    ensure!(lab.curl(VIP).is_some(), "a backup's trouble took the VIP away");
    ask_for(&lab, "10.87.2.66", None)?;
    let unsaid = lab.wait_for("nothing more to be said", MINUTES, || {
        finding(&lab, node.spec().name, "did not survive").is_none().then_some(())
    });
    explained(&lab, unsaid)?;
    ensure!(pid()? == steady, "keepalived was made to read what it dies of once more");
    mended(
        &lab,
        node.spec().name,
        "mv /usr/sbin/keepalived.real /usr/sbin/keepalived; rm /etc/systemd/system/keepalived.service.d/falls.conf; systemctl daemon-reload",
    )
}

/// A server that takes connections and says nothing any more: what is idle for longer than bookmarks are apart is dead. Nobody's
/// request is lost meanwhile.
#[test]
fn an_api_server_that_is_frozen() -> Result<()> {
    let lab = serving()?;
    without_a_lost_request(&lab, || {
        lab.control("freeze", "kube-apiserver")?;
        let noticed = lab.wait_for("all nodes to miss the API server", MINUTES, || {
            let missed = |node: Node<'_>| {
                node.kvip_status().is_ok_and(|status| status["cluster"]["problem"].is_string())
            };
            lab.nodes().all(missed).then_some(())
        });
        lab.control("thaw", "kube-apiserver")?;
        explained(&lab, noticed)
    })?;
    // Leases were not renewed for a while, so the cluster may take pods for dead before it hears of their nodes again.
    let heard = lab.wait_for("all nodes to hear the API server", MINUTES, || {
        let hears =
            |node: Node<'_>| node.kvip_status().is_ok_and(|status| status["cluster"]["problem"].is_null());
        lab.nodes().all(hears).then_some(())
    });
    explained(&lab, heard)?;
    wait_until_settled(&lab)
}

/// Nothing is known of any cluster, and none is heard of: kvip is ready within its limit all the same, and says how it is.
#[test]
fn a_start_without_any_cluster() -> Result<()> {
    let lab = serving()?;
    let name = backup(&lab)?;
    let node = lab.node(name);
    node.must("systemctl stop kvip; mkdir /root/kept; mv /var/lib/kvip/snapshot.json /etc/kvip/kubeconfig /root/kept/")?;
    node.must_within(READY, "systemctl start kvip")?;
    let said = node.must("systemctl show -P StatusText kvip")?;
    ensure!(said.starts_with("degraded"), "kvip on {name} is ready and says {said}");
    told(&lab, name, &["/etc/kvip/kubeconfig"])?;
    node.must_within(MINUTES, "mv /root/kept/kubeconfig /etc/kvip/; systemctl restart kvip")?;
    wait_until_settled(&lab)
}

/// The cluster is made anew: another UID of kube-system, and nothing in it. Nothing is taken away until an admin says so.
/// Last of this file by its name: the cluster's objects are gone afterwards.
#[test]
fn z_a_rebuilt_cluster_waits_for_accept() -> Result<()> {
    let lab = serving()?;
    lab.control_reset()?;
    // The new cluster knows no kvip: only after it is enrolled anew can it be seen to be another.
    let kubeconfig = lab.enroll()?;
    for node in lab.nodes() {
        node.write("/etc/kvip/kubeconfig", kubeconfig.as_bytes())?;
    }
    for node in lab.nodes() {
        told(&lab, node.spec().name, &["another cluster", "kvip accept"])?;
        ensure!(node.ipvs()?.contains(&format!("-t {VIP}:80")), "{} let go of the VIP", node.spec().name);
    }
    ensure!(lab.holder().is_some(), "nobody holds the VIPs any more");
    for node in lab.nodes() {
        node.must_within(SOON, "kvip accept")?;
    }
    lab.wait_for("the accepted state", MINUTES, || {
        lab.nodes().all(|node| node.ipvs().is_ok_and(|table| !table.contains(VIP))).then_some(())
    })
}
