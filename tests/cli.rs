//! The `kvip` program as a person meets it: what it prints, where, and how it exits.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail their test")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const GOOD: &str = "[vips]\nallowed = [\"10.87.2.0/24\"]\n";

/// A folder with a `config.toml`, and `kvip` told to use it.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new(config: Option<&str>) -> Self {
        let host = Self { folder: TempDir::new().unwrap() };
        if let Some(text) = config {
            fs::write(host.config(), text).unwrap();
        }
        host
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn kvip(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvip"));
        command.env_clear().arg("--config").arg(self.config()).args(arguments);
        command
    }
}

/// What `kvip` says without a settings' file of its own to use.
fn kvip(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvip")).env_clear().args(arguments).output().unwrap()
}

/// The folder of a golden case.
fn golden(case: &str) -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/").to_owned() + case
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn alone_it_says_the_next_step() {
    let host = Host::new(None);
    let output = host.kvip(&[]);
    assert_eq!(output.status.code(), Some(1));
    let out = text(&output.stdout);
    assert!(out.starts_with(concat!("kvip ", env!("CARGO_PKG_VERSION"), " on ")), "{out}");
    let next = format!(
        "next: in {}, write the networks that VIPs may come from under [vips], as in allowed = [\"10.87.2.0/24\"]\n",
        host.config().display()
    );
    assert!(out.ends_with(&next), "{out}");
    assert!(!out.contains('\u{1b}'), "no colour without a terminal");

    let json: serde_json::Value = serde_json::from_slice(&host.kvip(&["--json"]).stdout).unwrap();
    assert_eq!(json["schema"], "kvip.overview.v1");
    assert_eq!(json["state"], "not-configured");
}

/// Before anything is said of settings, which may be in that folder.
#[test]
fn a_folder_that_is_not_there_is_named_and_why() {
    let output = Host::new(None).kvip(&["plan", "/nowhere/at-all"]);
    assert_eq!(output.status.code(), Some(3));
    let expected = "read the folder /nowhere/at-all: No such file or directory (os error 2)";
    assert_eq!(text(&output.stderr), format!("kvip: {expected}\n"));
    for words in [&["plan", "/nowhere/at-all"][..], &["explain", "default/nginx", "/nowhere/at-all"]] {
        let output = Host::new(None).kvip(&[words, &["--json"]].concat());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(3), ""));
        let want =
            serde_json::json!({"schema": "kvip.error.v1", "error": expected, "mend": null, "problems": []});
        assert_eq!(json(&output), want);
    }
}

/// No daemon runs where tests do.
#[test]
fn a_daemon_that_does_not_answer_is_an_error_with_what_to_type() {
    for command in ["status", "accept"] {
        let host = Host::new(Some(GOOD));
        let output = host.kvip(&[command]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), ""), "{command}");
        let mend = "systemctl status kvip; journalctl -u kvip -n 50";
        let err = text(&output.stderr);
        assert!(err.starts_with("kvip: the daemon does not answer: "), "{err}");
        assert!(err.ends_with(&format!("\n  {mend}\n")), "{err}");
        let output = host.kvip(&[command, "--json"]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(3), ""), "{command}");
        let json = json(&output);
        assert_eq!((&json["schema"], &json["mend"]), (&"kvip.error.v1".into(), &mend.into()));
    }
}

/// At once: nobody waits for what only somebody can mend.
#[test]
fn a_kubeconfig_that_is_not_there_ends_a_plan() {
    let host = Host::new(Some(GOOD));
    let kubeconfig = host.folder.path().join("kubeconfig");
    let flag = format!("cluster.kubeconfig={}", kubeconfig.display());
    let output = host.kvip(&["plan", "--set", &flag]);
    assert_eq!(output.status.code(), Some(3));
    let path = kubeconfig.display();
    let expected = format!(
        "kvip: kubeconfig {path} is not there\n  put one at {path}, or set cluster.kubeconfig in the settings\n"
    );
    assert_eq!(text(&output.stderr), expected);
}

/// Where no journal listens, the log goes to standard error. Wrong settings end the daemon before it touches anything.
#[test]
fn a_daemon_without_a_journal_says_on_standard_error_why_it_ends() {
    let host = Host::new(Some(&format!("{GOOD}[vrrp]\nvrid = 256\n")));
    let output = host.kvip(&["run"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    let err = text(&output.stderr);
    let said = format!("ERROR {}:4: vrrp.vrid = 256: a VRID is 1 to 255\n", host.config().display());
    assert!(err.ends_with(&said), "{err}");
}

#[test]
fn check_lists_every_problem() {
    let host = Host::new(Some(&format!("{GOOD}[vrrp]\nvrid = 256\n")));
    let output = host.command(&["check", "--set", "vrrp.advert=3ms"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "configuration is wrong: 2 problems\n\n{}:4: vrrp.vrid = 256: a VRID is 1 to 255\n--set vrrp.advert = 3ms: 10ms to 10s\n",
        host.config().display()
    );
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn check_shows_what_is_in_force() {
    let host = Host::new(Some(GOOD));
    let kubeconfig = host.folder.path().join("kubeconfig");
    let flag = format!("cluster.kubeconfig={}", kubeconfig.display());
    let output = host.command(&["check", "--set", &flag]).env("KVIP_VRRP__VRID", "51").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "there is no kubeconfig");
    let out = text(&output.stdout);
    assert!(out.starts_with("configuration is right\n"), "{out}");
    let missing = format!("kubeconfig {} is not there", kubeconfig.display());
    assert!(out.lines().any(|line| line.ends_with(&missing)), "{out}");
    let vrid = out.lines().find(|line| line.contains("vrrp.vrid")).unwrap();
    assert_eq!(vrid.split_whitespace().collect::<Vec<_>>(), ["vrrp.vrid", "51", "KVIP_VRRP__VRID"]);
}

#[test]
fn wrong_usage_exits_2() {
    let host = Host::new(Some(GOOD));
    for arguments in
        [&["chek"][..], &["check", "--set", "vrid"], &["--frobnicate"], &["drain", "--wait", "1m"]]
    {
        let output = host.kvip(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "");
        assert_ne!(text(&output.stderr), "");
    }
    assert_eq!(host.kvip(&["--version"]).status.code(), Some(0));
    assert_eq!(host.kvip(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let host = Host::new(Some(GOOD));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = host.command(&["check"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn an_explanation_ends_as_its_subject_fares() {
    for (about, case, code) in [
        ("default/nginx", "tutorial", 0),
        ("default/nginx:80", "tutorial", 0),
        ("10.87.2.50", "tutorial", 0),
        ("10.87.2.99", "tutorial", 1),
        ("default/missing", "bad-services", 1),
        ("nginx", "tutorial", 2),
        ("10.87.2.999", "tutorial", 2),
    ] {
        let output = kvip(&["explain", about, &golden(case)]);
        assert_eq!(output.status.code(), Some(code), "{about}: {output:?}");
    }
    let json = json(&kvip(&["--json", "explain", "default/nginx", &golden("tutorial")]));
    assert_eq!((&json["schema"], &json["served"]), (&"kvip.explain.v1".into(), &true.into()));
}

#[test]
fn what_a_plan_would_write_is_json_too() {
    let words = ["plan", &golden("tutorial"), "--show", "nft"];
    let written = kvip(&words);
    let json = json(&kvip(&[&words[..], &["--json"]].concat()));
    assert_eq!(json["schema"], "kvip.plan.text.v1");
    assert_eq!(json["text"], text(&written.stdout));
}

#[test]
fn settings_named_by_hand_count_before_a_folders_own() {
    let host = Host::new(Some("[vips]\nallowed = [\"192.0.2.0/24\"]\n"));
    let output = host.kvip(&["plan", &golden("tutorial")]);
    assert!(text(&output.stdout).contains("outside"), "{output:?}");
    assert!(!text(&kvip(&["plan", &golden("tutorial")]).stdout).contains("outside"));
}

#[test]
fn wrong_settings_are_json_too() {
    for words in [&["plan"][..], &["explain", "default/nginx"]] {
        let folder = golden("tutorial");
        let words = [words, &[&folder, "--json", "--set", "vrrp.vrid=0"]].concat();
        let output = kvip(&words);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), ""), "{words:?}");
        let json = json(&output);
        assert_eq!(json["schema"], "kvip.error.v1");
        assert_eq!(json["problems"][0]["message"], "--set vrrp.vrid = 0: a VRID is 1 to 255");
    }
}
