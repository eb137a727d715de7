//! The package's `make-kubeconfig` with a kubectl that notes what it is asked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Notes its arguments and what it is to apply; the cluster serves ValidatingAdmissionPolicy.
const KUBECTL: &str = r#"#!/bin/sh
echo "kubectl $*" >>"$NOTES"
case "$*" in
"apply -f -") cat >>"$NOTES" ;;
"get --raw"*) echo '"validatingadmissionpolicies"' ;;
esac
"#;

/// What the script prints and what it asks of kubectl.
fn run(arguments: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let (kubectl, notes) = (folder.path().join("kubectl"), folder.path().join("notes"));
    fs::write(&kubectl, KUBECTL).expect("write");
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).expect("chmod");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/rbac/make-kubeconfig");
    let mut command = Command::new(script);
    command.args(arguments).env("NOTES", &notes);
    command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.path().display()));
    let output = command.output().expect("the script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).expect("UTF-8"), fs::read_to_string(notes).unwrap_or_default())
}

#[test]
fn rights_alone_come_without_a_token() {
    let (printed, asked) = run(&["--rights-only", "--config-map", "shop/vips"]);
    assert_eq!(printed, "");
    for part in ["rbac/kvip.yaml", "kind: Role\n", "resourceNames: [\"vips\"]", "rbac/policy.yaml"] {
        assert!(asked.contains(part), "{part}: {asked}");
    }
    assert!(!asked.contains("Secret") && !asked.contains("token"), "{asked}");
}

#[test]
fn the_help_names_every_option() {
    let (help, asked) = run(&["--help"]);
    for option in ["--role", "--server", "--duration", "--config-map", "--rights-only"] {
        assert!(help.contains(&format!("\n  {option} ")), "{option}: {help}");
    }
    assert_eq!(asked, "");
}
