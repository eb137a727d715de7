//! `kvip check`: is the configuration right, and does this host have what it names.
//!
//! Reads files only; asks neither the cluster nor the kernel for more than whether something is there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::style::{self, Style};
use super::{Exit, Global, SettingsArgs};
use crate::config::{Cluster, Loaded, Problem, Settings, effective, read_host};
use crate::daemon::settings;
use crate::keepalived::{Paths, binary};
use crate::model::Finding;
use crate::nft::client;
use crate::snapshot::check_kubeconfig;
use crate::snapshot::problem::Problem as Unusable;

/// A program's path as kvip runs it, whatever PATH is, and the package that brings it.
type Program = (&'static str, &'static str);

const PROGRAMS: [Program; 2] = [(binary::PROGRAM, "keepalived"), (client::PROGRAM, "nftables")];

/// Where systemd is asked to start and reload keepalived.
const BUS: &str = "/run/dbus/system_bus_socket";

/// What was found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostView {
    /// What is wrong with the kubeconfig, or with the folder of manifests that is read in its place.
    source: Option<Finding>,
    /// Interfaces that settings name and that are not there, each with the key that names it.
    no_links: Vec<(String, String)>,
    /// Those of [`PROGRAMS`] that are not installed.
    missing: Vec<Program>,
    ip_vs: bool,
    /// Whether there is a system bus.
    bus: bool,
}

/// Checks the settings and looks at the host.
pub(super) async fn run(args: &SettingsArgs, global: &Global) -> anyhow::Result<Exit> {
    let host = read_host(&args.sources(global));
    let result = host.map(|host| settings::known(&host, &Paths::default().state));
    let findings = match &result {
        Ok(loaded) => {
            let host = findings(look(&loaded.settings).await);
            loaded.findings.iter().cloned().chain(host).collect()
        }
        Err(_) => Vec::new(),
    };
    let fine = result.is_ok() && findings.is_empty();
    if global.json {
        style::print(&format!("{}\n", serde_json::to_string_pretty(&as_json(&result, &findings))?))?;
    } else {
        style::print(&as_text(&result, &findings, Style::stdout()))?;
    }
    Ok(if fine { Exit::Fine } else { Exit::Mend })
}

async fn look(settings: &Settings) -> HostView {
    let is_there = |name: &str| Path::new("/sys/class/net").join(name).exists();
    HostView {
        source: source(&settings.cluster).await,
        no_links: links(settings).filter(|(_, name)| !is_there(name)).collect(),
        missing: PROGRAMS.into_iter().filter(|(path, _)| !Path::new(path).is_file()).collect(),
        ip_vs: Path::new("/proc/net/ip_vs").exists(),
        bus: Path::new(BUS).exists(),
    }
}

/// The interfaces that this host must have, each behind the key that names it. Those of groups with members of their own are
/// not among them: only the cluster knows whether this host is one.
fn links(settings: &Settings) -> impl Iterator<Item = (String, String)> {
    let Settings { node, balancing, groups, .. } = settings;
    let groups = groups.iter().enumerate().filter(|(_, group)| group.vrrp.members.is_empty());
    let of_groups =
        groups.map(|(number, group)| (format!("groups.{number}.interface"), group.interface.as_ref()));
    let own = [("node.interface", &node.interface), ("balancing.sync_interface", &balancing.sync.interface)];
    let own = own.into_iter().map(|(key, name)| (key.to_owned(), name.as_ref()));
    own.chain(of_groups).filter_map(|(key, name)| Some((key, name?.clone())))
}

/// What keeps the cluster's state from being read here. Whether the kubeconfig lets anyone in is for the API to say.
async fn source(cluster: &Cluster) -> Option<Finding> {
    if let Some(folder) = &cluster.manifests {
        let finding =
            || Finding::new(folder.display(), "no such folder").mend("make it and put the manifests there");
        return (!folder.is_dir()).then(finding);
    }
    let problem = check_kubeconfig(&cluster.kubeconfig).await.err()?;
    let is_of_root = is_only_for_root(&problem);
    Some(if is_of_root { problem.finding().mend("run this as root") } else { problem.finding() })
}

/// Whether root might well read what this user cannot.
pub(super) fn is_only_for_root(problem: &Unusable) -> bool {
    matches!(problem, Unusable::Unreadable { .. }) && !rustix::process::geteuid().is_root()
}

/// What has to be mended on the host, most important first.
fn findings(view: HostView) -> Vec<Finding> {
    let mut findings = Vec::from_iter(view.source);
    for (key, name) in &view.no_links {
        let text = format!("{key} names it, but this host has none so called");
        findings.push(Finding::new(name, text).mend("ip link"));
    }
    for (path, package) in &view.missing {
        let program = path.rsplit('/').next().unwrap_or(path);
        let mend = format!("apt install {package}, or dnf install {package}");
        findings.push(Finding::new(program, format!("not installed: {path} is not there")).mend(mend));
    }
    if !view.ip_vs {
        findings.push(Finding::new("ip_vs", "the kernel module is not loaded").mend("modprobe ip_vs"));
    }
    if !view.bus {
        let text = format!("{BUS} is not there, by which kvip asks systemd to start keepalived");
        let mend = "apt install dbus, or dnf install dbus; then systemctl start dbus.socket";
        findings.push(Finding::new("dbus", text).mend(mend));
    }
    findings
}

fn as_text(result: &Result<Loaded, Vec<Problem>>, findings: &[Finding], style: Style) -> String {
    let loaded = match result {
        Ok(loaded) => loaded,
        Err(problems) => {
            let head = format!("configuration is wrong: {}", style::count(problems.len(), "problem"));
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return format!("{}\n\n{}\n", style.bad(&head), lines.join("\n"));
        }
    };
    let rows: Vec<[String; 3]> = effective(&loaded.settings)
        .into_iter()
        .map(|(key, value)| {
            let origin = loaded.origins.get(&key).map(String::as_str).unwrap_or_default();
            let words = words(&key, &value);
            [key, words, style.faint(origin)]
        })
        .collect();
    let head = if loaded.findings.is_empty() {
        style.good("configuration is right")
    } else {
        style.bad("configuration is incomplete")
    };
    let mut text = format!("{head}\n\n{}", style::indent(&style::table(&rows), 2));
    if !findings.is_empty() {
        let rows: Vec<[&str; 2]> = findings
            .iter()
            .flat_map(|finding| {
                let mend = finding.mend.as_deref().map(|mend| ["", mend]);
                [Some([finding.subject.as_str(), finding.text.as_str()]), mend].into_iter().flatten()
            })
            .collect();
        let head = style.bad("to mend on this host");
        let _ = write!(text, "\n{head}\n{}", style::indent(&style::table(&rows), 2));
    }
    text
}

/// A value as a person would say it.
fn words(key: &str, value: &Value) -> String {
    let name = key.rsplit('.').next().unwrap_or(key);
    match value {
        Value::Null if name == "interface" && key.starts_with("groups.") => "as in [node]".to_owned(),
        Value::Null if name.ends_with("_timeout") => "left to the kernel".to_owned(),
        Value::Null if name == "sync_interface" => "the VIPs'".to_owned(),
        Value::Null if name == "sync_id" => "vrrp.vrid".to_owned(),
        Value::Null if name == "annotations" => "all".to_owned(),
        Value::Null => "found when kvip starts".to_owned(),
        Value::String(text) if text.is_empty() => match name {
            "members" => "all nodes".to_owned(),
            "allocators" => "the nodes that may hold VIPs".to_owned(),
            "namespace_labels" | "service_labels" => "any".to_owned(),
            "host" => "the endpoint's address".to_owned(),
            _ => "none".to_owned(),
        },
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() && name == "namespaces" => "all".to_owned(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn as_json(result: &Result<Loaded, Vec<Problem>>, findings: &[Finding]) -> Value {
    let problems: Vec<Value> = result.as_ref().err().into_iter().flatten().map(problem_json).collect();
    let settings: BTreeMap<String, Value> = result.as_ref().map(settings_json).unwrap_or_default();
    json!({
        "schema": "kvip.check.v1",
        "right": result.is_ok(),
        "problems": problems,
        "settings": settings,
        "findings": findings,
    })
}

/// Each key's value and, unless it is the default, where it came from.
fn settings_json(loaded: &Loaded) -> BTreeMap<String, Value> {
    let with_origin = |(key, value): (String, Value)| {
        let origin = loaded.origins.get(&key);
        let value = json!({"value": value, "origin": origin});
        (key, value)
    };
    effective(&loaded.settings).into_iter().map(with_origin).collect()
}

/// A problem's parts, and the line that a person would read.
pub(super) fn problem_json(problem: &Problem) -> Value {
    let Problem { file, line, column, subject, found, text, mend } = problem;
    json!({
        "file": file, "line": line, "column": column, "subject": subject, "found": found, "text": text,
        "mend": mend, "message": problem.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use crate::config::load_with_origins;
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::config::Sources;

    fn loaded(variables: &[(&str, &str)]) -> Result<Loaded, Vec<Problem>> {
        let env = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let sources = Sources {
            file: "/nowhere/config.toml".into(),
            drop_ins: "/nowhere".into(),
            env,
            flags: Vec::new(),
        };
        load_with_origins(&sources)
    }

    const GOOD: HostView =
        HostView { source: None, no_links: Vec::new(), missing: Vec::new(), ip_vs: true, bus: true };

    #[test]
    fn right_settings_are_shown_with_their_origins() {
        let result = loaded(&[("KVIP_VIPS__ALLOWED", "10.87.2.0/24,fd00::/64"), ("KVIP_VRRP__VRID", "51")]);
        let text = as_text(&result, &[], Style::PLAIN);
        assert!(text.starts_with("configuration is right\n\n"), "{text}");
        let rows = rows(&text);
        for row in [
            vec!["node.name", "found when kvip starts"],
            vec!["vips.allowed", "10.87.2.0/24, fd00::/64", "KVIP_VIPS__ALLOWED"],
            vec!["vrrp.vrid", "51", "KVIP_VRRP__VRID"],
            vec!["vrrp.members", "all nodes"],
            vec!["cluster.service_ranges", "none"],
        ] {
            assert!(rows.contains(&row), "{row:?} in\n{text}");
        }
        let json = as_json(&result, &[]);
        assert_eq!(json["schema"], "kvip.check.v1");
        assert_eq!(json["right"], true);
        assert_eq!(json["settings"]["vrrp.vrid"], json!({"value": 51, "origin": "KVIP_VRRP__VRID"}));
        assert_eq!(json["settings"]["vrrp.advert"], json!({"value": "250ms", "origin": null}));
    }

    /// The cells of each line of a table.
    fn rows(text: &str) -> Vec<Vec<&str>> {
        let cells = |line| str::split(line, "  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        text.lines().map(cells).collect()
    }

    /// A file of its own with this text, loaded.
    fn of_file(text: &str) -> (TempDir, Result<Loaded, Vec<Problem>>) {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, text).unwrap();
        let sources =
            Sources { drop_ins: folder.path().join("config.d"), file, env: Vec::new(), flags: Vec::new() };
        (folder, load_with_origins(&sources))
    }

    #[test]
    fn tables_are_shown_key_by_key() {
        let (folder, result) = of_file(
            "vips.allowed = ['10.87.2.0/24']\n[[pools]]\nname = 'public'\naddresses = ['10.87.2.64/28', '10.87.2.7']\n\
             [[groups]]\nname = 'edge'\naddresses = ['10.87.2.64/28']\nvrid = 60\n",
        );
        let text = as_text(&result, &[], Style::PLAIN);
        let file = folder.path().join("config.toml").display().to_string();
        let rows = rows(&text);
        let places = [3, 4, 6, 8].map(|line| format!("{file}:{line}"));
        for row in [
            vec!["pools.0.name", "public", &places[0]],
            vec!["pools.0.addresses", "10.87.2.64/28, 10.87.2.7", &places[1]],
            vec!["pools.0.auto_assign", "true"],
            vec!["pools.0.namespaces", "all"],
            vec!["pools.0.service_labels", "any"],
            vec!["tenants", "none"],
            vec!["groups.0.name", "edge", &places[2]],
            vec!["groups.0.vrid", "60", &places[3]],
            vec!["groups.0.interface", "as in [node]"],
            vec!["groups.0.members", "all nodes", "as in [vrrp]"],
            vec!["static", "none"],
            vec!["asking.allocators", "the nodes that may hold VIPs"],
            vec!["cluster.manifests", "none"],
        ] {
            assert!(rows.contains(&row), "{row:?} in\n{text}");
        }
        let json = as_json(&result, &[]);
        let addresses = json!({"value": ["10.87.2.64/28", "10.87.2.7"], "origin": places[1]});
        assert_eq!(json["settings"]["pools.0.addresses"], addresses);
        assert_eq!(json["settings"]["tenants"], json!({"value": [], "origin": null}));
    }

    #[test]
    fn what_is_not_written_is_shown_as_it_counts() {
        let tenants = "[[tenants]]\nnamespaces = ['a']\n[[tenants]]\nnamespaces = ['b']\nannotations = []\n";
        let (_folder, result) = of_file(&format!("vips.allowed = ['10.87.2.0/24']\n{tenants}"));
        let text = as_text(&result, &[], Style::PLAIN);
        let rows = rows(&text);
        assert!(rows.contains(&vec!["tenants.0.annotations", "all"]), "{text}");
        let none = rows.iter().find(|row| row.first() == Some(&"tenants.1.annotations")).unwrap();
        assert_eq!(none[1], "none");
        assert!(rows.contains(&vec!["checks.host", "the endpoint's address"]), "{text}");
    }

    #[test]
    fn nothing_allowed_is_to_be_mended() {
        let (folder, result) = of_file("");
        let findings = result.as_ref().unwrap().findings.clone();
        let text = as_text(&result, &findings, Style::PLAIN);
        assert!(text.starts_with("configuration is incomplete\n\n"), "{text}");
        let file = folder.path().join("config.toml").display().to_string();
        let expected = format!(
            "
to mend on this host
  vips.allowed  not set, so no VIP is served until {file} or ConfigMap kvip-system/kvip sets it
                in {file}, write the networks that VIPs may come from under [vips], as in allowed = [\"10.87.2.0/24\"]
"
        );
        assert!(text.ends_with(&expected), "{text}");
    }

    #[test]
    fn wrong_settings_are_listed() {
        let result = loaded(&[("KVIP_VIPS__ALLOWED", "10.87.2.0/24"), ("KVIP_VRRP__ADVERT", "3ms")]);
        let expected = "configuration is wrong: 1 problem\n\nKVIP_VRRP__ADVERT = 3ms: 10ms to 10s\n";
        assert_eq!(as_text(&result, &[], Style::PLAIN), expected);
        let problem = json!({
            "file": null, "line": null, "column": null, "subject": "KVIP_VRRP__ADVERT", "found": "3ms",
            "text": "10ms to 10s", "mend": null, "message": "KVIP_VRRP__ADVERT = 3ms: 10ms to 10s",
        });
        let expected = json!({
            "schema": "kvip.check.v1", "right": false, "problems": [problem], "settings": {}, "findings": [],
        });
        assert_eq!(as_json(&result, &[]), expected);
    }

    #[test]
    fn the_host_must_have_what_is_named() {
        let result = loaded(&[("KVIP_VIPS__ALLOWED", "10.87.2.0/24"), ("KVIP_NODE__INTERFACE", "ens18")]);
        let settings = result.as_ref().map(|loaded| &loaded.settings).unwrap();
        assert_eq!(findings(GOOD), []);
        let source = Unusable::KubeconfigMissing { path: "/etc/kvip/kubeconfig".into() };
        let view = HostView {
            source: Some(source.finding()),
            no_links: links(settings).collect(),
            missing: vec![PROGRAMS[1]],
            ip_vs: false,
            bus: false,
        };
        let text = as_text(&result, &findings(view), Style::PLAIN);
        let expected = "
to mend on this host
  cluster  kubeconfig /etc/kvip/kubeconfig is not there
           put one at /etc/kvip/kubeconfig, or set cluster.kubeconfig in the settings
  ens18    node.interface names it, but this host has none so called
           ip link
  nft      not installed: /usr/sbin/nft is not there
           apt install nftables, or dnf install nftables
  ip_vs    the kernel module is not loaded
           modprobe ip_vs
  dbus     /run/dbus/system_bus_socket is not there, by which kvip asks systemd to start keepalived
           apt install dbus, or dnf install dbus; then systemctl start dbus.socket
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[tokio::test]
    async fn every_interface_that_is_named_is_looked_for() {
        let text = "vips.allowed = ['10.87.2.0/24']\n[node]\ninterface = 'gone-a'\n\
             [balancing]\nsync_interface = 'gone-b'\n\
             [[groups]]\nname = 'a'\nvrid = 60\naddresses = ['10.87.2.64/28']\ninterface = 'lo'\n\
             [[groups]]\nname = 'b'\nvrid = 61\naddresses = ['10.87.2.7']\ninterface = 'gone-c'\n\
             [[groups]]\nname = 'c'\nvrid = 62\naddresses = ['10.87.2.8']\ninterface = 'gone-d'\nmembers = 'a=b'\n";
        let (_folder, result) = of_file(text);
        let settings = &result.unwrap().settings;
        let view = HostView { no_links: look(settings).await.no_links, ..GOOD };
        let names = [
            ("gone-a", "node.interface"),
            ("gone-b", "balancing.sync_interface"),
            ("gone-c", "groups.1.interface"),
        ];
        let expected = names.map(|(name, key)| {
            Finding::new(name, format!("{key} names it, but this host has none so called")).mend("ip link")
        });
        assert_eq!(findings(view), expected);
    }

    #[tokio::test]
    async fn a_folder_of_manifests_needs_no_kubeconfig() {
        let text = "vips.allowed = ['10.87.2.0/24']\n[cluster]\nsource = 'files'\nmanifests = '/nowhere'\n";
        let (_folder, result) = of_file(text);
        let settings = &result.unwrap().settings;
        let view = HostView { source: look(settings).await.source, ..GOOD };
        let expected = Finding::new("/nowhere", "no such folder").mend("make it and put the manifests there");
        assert_eq!(findings(view), [expected]);
    }

    #[tokio::test]
    async fn what_ails_the_kubeconfig_is_told_as_by_the_daemon() {
        let (folder, result) = of_file("vips.allowed = ['10.87.2.0/24']\n");
        let path = folder.path().join("kubeconfig");
        let cluster = Cluster { kubeconfig: path.clone(), ..result.unwrap().settings.cluster };
        let missing = Unusable::KubeconfigMissing { path: path.clone() };
        assert_eq!(source(&cluster).await, Some(missing.finding()));
        let text = "current-context: a\ncontexts: [{name: a, context: {cluster: c}}]\n\
             clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n";
        fs::write(&path, text).unwrap();
        assert_eq!(source(&cluster).await, None);
        fs::write(&path, text.replace("cluster: c", "cluster: d")).unwrap();
        let reason = "the cluster \"d\" of its context is not among its clusters".to_owned();
        assert_eq!(source(&cluster).await, Some(Unusable::KubeconfigInvalid { path, reason }.finding()));
    }
}
