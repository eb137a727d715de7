//! kvip's keepalived configurations against the real keepalived: golden files, and what its check refuses.
//!
//! Each runs in a network namespace of its own that has an interface `eth0`. Needs keepalived, iproute2, and root or user
//! namespaces. `UPDATE_GOLDEN=1` rewrites the golden files.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use kvip::keepalived::{
    Build, Config, Instance, Paths, Unicast, binary, keepalived_accepts, render, render_fragment, vips_in,
};
use kvip::model::{Family, Vrid};

/// Makes eth0 and becomes `keepalived -t`, with a limit: 2.2.7 runs in circles over an undefined track_file.
const ON_ETH0: &str =
    "ip link add eth0 type veth peer name peer0 && exec timeout 5 /usr/sbin/keepalived -t -f \"$0\"";

/// What `keepalived -t` says of `file` on a host whose only interfaces are lo, eth0 and peer0.
fn keepalived_t(file: &Path) -> Output {
    let mut unshare = Command::new("unshare");
    unshare.arg("--net");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.args(["sh", "-c", ON_ETH0]).arg(file).output().expect("unshare runs")
}

fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
    texts.map(|text| text.parse().expect("an address")).into()
}

fn instance<const N: usize>(family: Family, vips: [&str; N]) -> Instance {
    Instance {
        vrid: Vrid::new(50).expect("in range"),
        family,
        interface: "eth0".into(),
        priority: 190,
        advert: Duration::from_millis(250),
        gone_after: Duration::from_secs(60),
        unicast: None,
        vips: addresses(vips),
    }
}

fn unicast<const N: usize>(source: &str, peers: [&str; N]) -> Unicast {
    Unicast { source: source.parse().expect("an address"), peers: addresses(peers) }
}

fn config(instances: Vec<Instance>) -> Config {
    Config { router_id: "node-a".into(), gone_after: Duration::from_secs(60), instances }
}

fn dual_stack() -> Config {
    let v4 = Instance {
        unicast: Some(unicast("10.87.2.4", ["10.87.2.6", "10.87.2.8"])),
        ..instance(Family::V4, ["10.87.2.50", "10.87.2.51", "10.87.2.52"])
    };
    let v6 = Instance {
        unicast: Some(unicast("fd00::4", ["fd00::6", "fd00::8"])),
        advert: Duration::from_secs(1),
        ..instance(Family::V6, ["fd00::50", "fd00::51"])
    };
    config(vec![v4, v6])
}

/// The text is the golden one, keepalived accepts it, and it reads back.
#[track_caller]
fn check(name: &str, config: &Config) {
    let text = render(config, &Paths::default(), Build { dbus: false });
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/keepalived").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
        fs::write(&path, &text).expect("write the golden file");
    }
    assert_eq!(text, fs::read_to_string(&path).expect("read the golden file"), "{name}");
    let output = keepalived_t(&path);
    assert!(output.status.success(), "{name}: {output:?}");
    let vips: BTreeSet<IpAddr> = config.instances.iter().flat_map(|i| i.vips.clone()).collect();
    assert_eq!(vips_in(&text), vips, "{name}");
}

#[test]
fn golden_files_are_accepted() {
    check("one-vip.conf", &config(vec![instance(Family::V4, ["10.87.2.50"])]));
    check("dual-stack-unicast.conf", &dual_stack());
    check("dual-stack-multicast.conf", &{
        let mut config = dual_stack();
        config.instances.iter_mut().for_each(|instance| instance.unicast = None);
        config
    });
    check("no-vips.conf", &config(vec![instance(Family::V4, [])]));
    check("no-member.conf", &config(vec![]));
}

/// Somebody's VRRPv2 with a password, which version 3 does not have, and kvip's beside it.
#[test]
fn a_fragment_leaves_other_instances_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let fragment = folder.path().join("kvip.conf");
    let main = folder.path().join("keepalived.conf");
    let foreign = "global_defs {\n    router_id theirs\n}\nvrrp_instance theirs {\n    interface eth0\n    virtual_router_id 77\n    \
                   authentication {\n        auth_type PASS\n        auth_pass secret\n    }\n    \
                   virtual_ipaddress {\n        10.87.2.77\n    }\n}\n";
    fs::write(&main, format!("{foreign}include {}\n", fragment.display())).expect("write");
    let refused_with = |text: String| {
        fs::write(&fragment, text).expect("write");
        let output = keepalived_t(&main);
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(refused_with(render_fragment(&dual_stack(), &Paths::default())), None);
    // What the fragment must not say.
    let whole = refused_with(render(&dual_stack(), &Paths::default(), Build { dbus: false }));
    assert!(whole.expect("a refusal").contains("authentication"));
}

#[test]
fn it_is_known_of_what_keepalived_would_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keepalived.conf");
    let check = |text: &str, survived: bool| {
        fs::write(&file, text).expect("write");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let error = runtime.block_on(keepalived_accepts(&file)).expect_err("refused");
        assert_eq!(error.is_survived(), survived, "{error}");
    };
    check("vrrp_instance a {\n    interface nope0\n    virtual_router_id 7\n}\n", false);
    check("vrrp_instance a {\n    virtual_router_id 7\n}\n", false);
    check("vrrp_instance a {\n    virtual_router_id\n}\n", false);
    check("unheard_of 1\n", true);
}

#[test]
fn three_hundred_vips_are_accepted() {
    let vips = (0..300u32).map(|n| IpAddr::from((0x0a57_0300 + n).to_be_bytes())).collect();
    let full = config(vec![Instance { vips, ..instance(Family::V4, []) }]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keepalived.conf");
    fs::write(&file, render(&full, &Paths::default(), Build { dbus: false })).expect("write");
    let output = keepalived_t(&file);
    assert!(output.status.success(), "{output:?}");
}

/// What `keepalived -t` itself refuses, so that kvip need not: any exit but 0.
#[test]
fn spoilt_files_are_refused() {
    let good = render(&dual_stack(), &Paths::default(), Build { dbus: false });
    let id = "virtual_router_id 50";
    let peers = "        10.87.2.6\n        10.87.2.8\n";
    let anchor = "        169.254.255.50/32 dev eth0 scope link noprefixroute\n";
    let cases = [
        ("unknown interface", "interface eth0", "interface eth9"),
        ("VRID 0", id, "virtual_router_id 0"),
        ("VRID 256", id, "virtual_router_id 256"),
        ("VRID in words", id, "virtual_router_id fifty"),
        ("duplicate name", "kvip_50_6", "kvip_50_4"),
        ("bad address", "10.87.2.51/32", "10.87.2.511/32"),
        ("/33", "10.87.2.51/32", "10.87.2.51/33"),
        ("bad option", "10.87.2.51/32 dev eth0", "10.87.2.51/32 device eth0"),
        ("priority 0", "priority 190", "priority 0"),
        ("priority 256", "priority 190", "priority 256"),
        ("empty unicast_peer", peers, ""),
        ("peer of the other family", "        10.87.2.6\n", "        fd00::6\n"),
        ("advert outside its range", "advert_int 0.25", "advert_int 41"),
        ("no virtual_ipaddress", anchor, ""),
        ("unknown keyword", "state BACKUP", "condition BACKUP"),
        ("undefined track_file", "track_file kvip_50 {", "track_file kvip_51 {"),
        ("undefined track_process", "vrrp_track_process kvip {", "vrrp_track_process other {"),
        (
            "a scope on an IPv6 address",
            "fe80::6b76:6970:50/128 dev eth0",
            "fe80::6b76:6970:50/128 dev eth0 scope link",
        ),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keepalived.conf");
    fs::write(&file, &good).expect("write");
    assert!(keepalived_t(&file).status.success(), "the good file is accepted");
    for (name, from, to) in cases {
        assert!(good.contains(from), "{name}: the good file has {from:?}");
        fs::write(&file, good.replace(from, to)).expect("write");
        let output = keepalived_t(&file);
        assert!(!output.status.success(), "{name}: {output:?}");
    }
    fs::write(&file, good.strip_suffix("}\n").expect("a last brace")).expect("write");
    assert!(!keepalived_t(&file).status.success(), "missing brace");
}

#[tokio::test]
async fn the_installed_keepalived_is_asked() {
    binary::build().await.expect("keepalived is installed");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keepalived.conf");
    fs::write(&file, render(&config(vec![]), &Paths::default(), Build { dbus: false })).expect("write");
    keepalived_accepts(&file).await.expect("a file without instances is fine");
    fs::write(&file, "nonsense\n").expect("write");
    let refusal = keepalived_accepts(&file).await.expect_err("nonsense is refused").to_string();
    assert!(refusal.starts_with("keepalived refuses its configuration: "), "{refusal}");
    assert!(refusal.contains("nonsense") && !refusal.contains(&*file.to_string_lossy()), "{refusal}");
}
