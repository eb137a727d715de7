//! Folders of manifests and what kvip makes of them: the plan, the ruleset, keepalived's and HAProxy's files, text by text.
//!
//! Each folder of tests/golden with a `config.toml` is a case; `UPDATE_GOLDEN=1 cargo test --test golden` writes what is
//! expected anew. The real keepalived, nft and haproxy must accept every text; they look at the interfaces there are, so
//! that runs in a network namespace with those of the case's `host.toml`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::in_namespace;
use figment::Figment;
use figment::providers::{Format as _, Toml};
use kvip::net::HostFacts;

/// The expected texts of a case and how `kvip plan` is asked for them.
const TEXTS: [(&str, &[&str]); 4] = [
    ("plan.txt", &[]),
    ("keepalived.conf", &["--show", "keepalived"]),
    ("ruleset.nft", &["--show", "nft"]),
    ("haproxy.cfg", &["--show", "haproxy"]),
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The names of all cases.
fn cases() -> Vec<String> {
    let folders = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap());
    let cases = folders.filter(|folder| folder.path().join("config.toml").exists());
    let mut names: Vec<String> = cases.map(|case| case.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() > 2, "no cases in {}", golden().display());
    names
}

/// Runs `kvip plan CASE` in the folder `within`, so that what it prints is the same on every machine.
fn plan(within: &Path, case: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvip"));
    command.env_clear().current_dir(within).args(["plan", case]).args(arguments);
    command.output().unwrap()
}

/// Standard output; exit 1 goes with something that is not planned, and nothing else is wrong.
fn planned(within: &Path, case: &str, arguments: &[&str]) -> String {
    let output = plan(within, case, arguments);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(err, "", "{case}");
    if arguments.is_empty() {
        let mend = i32::from(out.contains("\nnot planned\n"));
        assert_eq!(output.status.code(), Some(mend), "{case}: {out}");
    }
    out
}

#[test]
fn texts() {
    let differences: String = cases()
        .iter()
        .flat_map(|case| TEXTS.map(|(file, arguments)| difference(case, file, arguments)))
        .flatten()
        .collect();
    assert_eq!(differences, "", "UPDATE_GOLDEN=1 writes them anew");
}

/// What scripts read: one case has all of it.
#[test]
fn a_plan_as_json() {
    assert_eq!(difference("tutorial", "plan-json.txt", &["--json"]), None, "UPDATE_GOLDEN=1 writes it anew");
}

/// What is expected and what `kvip plan` prints, where they differ; nothing where they have just been made the same.
fn difference(case: &str, file: &str, arguments: &[&str]) -> Option<String> {
    let path = golden().join(case).join(file);
    let text = planned(&golden(), case, arguments);
    if env::var_os("UPDATE_GOLDEN").is_some() && (path.exists() || !text.is_empty()) {
        fs::write(&path, &text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    (text != wanted).then(|| format!("{case}/{file} is expected to be\n{wanted}\nand is\n{text}\n"))
}

/// Runs `ip` with `arguments`, which must succeed.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

/// The host's links and addresses, in this namespace.
fn become_host(facts: &HostFacts) {
    let links = || facts.links.iter().filter(|(_, link)| !link.loopback).map(|(name, _)| name);
    for link in links() {
        let peer = format!("{link}-peer");
        ip(&format!("link add {link} type veth peer name {peer}"));
        ip(&format!("link set {link} up"));
        ip(&format!("link set {peer} up"));
    }
    for address in facts.addresses.iter().filter(|address| !address.ip.is_loopback()) {
        ip(&format!(
            "address add {}/{} dev {} {}",
            address.ip,
            address.prefix_len,
            address.link,
            if address.ip.is_ipv6() { "nodad" } else { "scope global" }
        ));
    }
}

fn leave_host(facts: &HostFacts) {
    for (link, _) in facts.links.iter().filter(|(_, link)| !link.loopback) {
        ip(&format!("link delete {link}"));
    }
}

#[test]
fn keepalived_nft_and_haproxy_accept_all_of_them() {
    if !in_namespace("keepalived_nft_and_haproxy_accept_all_of_them") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for case in cases() {
        let folder = golden().join(&case);
        let facts: HostFacts = Figment::from(Toml::file(folder.join("host.toml"))).extract().unwrap();
        become_host(&facts);
        let accepted =
            runtime.block_on(kvip::keepalived::keepalived_accepts(&folder.join("keepalived.conf")));
        assert!(accepted.is_ok(), "{case}: {accepted:?}");
        leave_host(&facts);
        let haproxy_cfg = folder.join("haproxy.cfg");
        if haproxy_cfg.exists() {
            let accepted = runtime.block_on(kvip::haproxy::haproxy_accepts(&haproxy_cfg));
            assert!(accepted.is_ok(), "{case}: {accepted:?}");
        }
        nft_accepts(&case, &fs::read(folder.join("ruleset.nft")).unwrap());
    }
}

fn nft_accepts(case: &str, ruleset: &[u8]) {
    let mut nft = Command::new(kvip::nft::client::PROGRAM);
    nft.args(["--check", "--file", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().unwrap();
    child.stdin.take().unwrap().write_all(ruleset).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn docs_name_cases_that_are_there_and_leave_none_out() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let text = fs::read_to_string(docs.join("services.md")).unwrap();
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(target.starts_with('#') || docs.join(target).exists(), "docs/services.md links {target}");
    }
    for row in text.lines().filter(|line| line.starts_with('[') && line.contains("]: ")) {
        let (name, target) = row.split_once("]: ").unwrap();
        assert!(docs.join(target).exists(), "docs/services.md names the case {target}");
        assert!(
            text.contains(&format!("{name}],")) || text.contains(&format!("{name}] |")),
            "{name}] is in no row"
        );
    }
    // What is about this host and not about a Service.
    let of_the_host = ["no-interface", "no-node", "unicast"];
    for case in cases().iter().filter(|case| !of_the_host.contains(&case.as_str())) {
        assert!(
            text.contains(&format!("](../tests/golden/{case})")) || text.contains(&format!("\n[{case}]: ")),
            "{case}"
        );
    }
}

/// The tutorial with `count` VIPs.
fn with_many_vips(count: u8, more: u8) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let case = folder.path().join("many");
    fs::create_dir(&case).unwrap();
    for file in ["cluster.yaml", "nginx.yaml", "host.toml"] {
        fs::copy(golden().join("tutorial").join(file), case.join(file)).unwrap();
    }
    fs::write(case.join("config.toml"), "[vips]\nallowed = [\"10.88.0.0/16\"]\n").unwrap();
    let mut map = "kind: ConfigMap\nmetadata: {name: vip-configmap}\ndata:\n".to_owned();
    for (net, hosts) in [(0, count), (1, more)] {
        for host in 1..=hosts {
            let _ = writeln!(map, "  10.88.{net}.{host}: default/nginx");
        }
    }
    fs::write(case.join("vips.yaml"), map).unwrap();
    folder
}

#[test]
fn a_group_carries_300_vips_and_says_what_it_leaves_out() {
    let most = with_many_vips(250, 50);
    let text = planned(most.path(), "many", &[]);
    assert!(!text.contains("not planned"), "{text}");

    let too_many = with_many_vips(250, 52);
    let text = planned(too_many.path(), "many", &[]);
    let (_, not_planned) = text.split_once("\nnot planned\n").unwrap();
    let wanted = "  \
default/nginx  not served at 10.88.1.51: its group carries 300 VIPs of the family before it
                 spread them over more groups: [[groups]] with a vrid and addresses in the settings
  default/nginx  not served at 10.88.1.52: its group carries 300 VIPs of the family before it
                 spread them over more groups: [[groups]] with a vrid and addresses in the settings
  group vips     302 IPv4 VIPs are asked for and a group carries at most 300: 2 too many, and the oldest Services go first
                 spread them over more groups: [[groups]] with a vrid and addresses in the settings

1200 changes to IPVS, a keepalived reload. `--show keepalived` prints the file, `--show nft` the rules.
";
    assert_eq!(not_planned, wanted);
    let file = planned(too_many.path(), "many", &["--show", "keepalived"]);
    assert_eq!(file.matches("10.88.").count(), 300);
    assert!(!file.contains("10.88.1.51/32"));
}
