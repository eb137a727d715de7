//! What several test programs need: a network namespace of one's own.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail their test")]

use std::env;
use std::process::Command;

/// Runs the test `name` of this program again in a network namespace of its own, where loopback is up. True in there.
///
/// Needs `unshare` and `ip`, and either root or unprivileged user namespaces.
pub fn in_namespace(name: &str) -> bool {
    const INSIDE: &str = "KVIP_TEST_NAMESPACE";
    if env::var_os(INSIDE).is_some() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success(), "ip cannot bring loopback up");
        return true;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        // That of an admin after `su`: nothing may have to be found in /usr/sbin by its name.
        .env("PATH", "/usr/bin:/bin")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespace");
    false
}
