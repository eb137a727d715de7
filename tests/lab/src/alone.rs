//! The API server alone, without machines, in namespaces of one test's own: for what needs its semantics and no node.
//!
//! Owns the state folder `state-api` beside the lab's. Everything ends with the test's process.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::command::{self, Output, command};
use crate::control::{self, Role};
use crate::layout::{API_URL, BRIDGE_V4, Layout};
use crate::progress::step;
use crate::ssh::RUN_DIR;

const LIMIT: Duration = Duration::from_secs(60);
/// Set inside of the namespaces, to the program of the control plane.
const INSIDE: &str = "KVIP_LAB_INSIDE";

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    layout: Layout,
}

impl ApiServer {
    /// Runs the test of that name of this program again, in namespaces of its own. `None` outside: the test is over, and
    /// went well. Inside, etcd and the API server, as the admin's kubectl finds them.
    pub fn in_namespaces_of(test: &str) -> anyhow::Result<Option<Self>> {
        let mut layout = Layout::from_environment();
        layout.state.set_file_name("state-api");
        let Some(kube) = env::var_os(INSIDE) else {
            run_inside(test, &control::build(&layout)?)?;
            return Ok(None);
        };
        raise(&layout, Path::new(&kube))?;
        Ok(Some(Self { layout }))
    }

    /// Where its files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Ends an API server of another version, and starts the lab's own on the same data: an upgraded cluster.
    pub fn upgrade(&self) -> anyhow::Result<()> {
        control::stop(Role::ApiServer)?;
        fs::remove_file(control::other_api_server(&self.layout))?;
        control::start(&self.layout, Role::ApiServer)
    }

    /// kubectl as the admin.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
        command::run(command(&control::kubectl_argv(&self.layout, arguments)), input.as_bytes(), LIMIT)
    }

    /// The kubeconfig of a role, by the package's own script, which may read default/other too. Its token comes from the API
    /// server itself, as there is no controller that fills Secrets.
    pub fn enroll(&self, role: &str) -> anyhow::Result<String> {
        let mut script = command(&[self.layout.repo.join("packaging/rbac/make-kubeconfig")]);
        script.args([
            "--role",
            role,
            "--server",
            API_URL,
            "--duration",
            "1h",
            "--config-map",
            "default/other",
        ]);
        let kubectl = self.layout.programs();
        script.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", kubectl.display()));
        script.env("KUBECONFIG", control::admin_kubeconfig(&self.layout));
        Ok(command::must(script, b"", LIMIT)?.stdout)
    }
}

fn run_inside(test: &str, kube: &Path) -> anyhow::Result<()> {
    let mut unshare = command(&["unshare"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    unshare.arg(env::current_exe()?).args(["--exact", test, "--nocapture"]).env(INSIDE, kube);
    match command::interactive(unshare)? {
        0 => Ok(()),
        status => bail!("{test} failed in its namespaces with status {status}"),
    }
}

fn raise(layout: &Layout, kube: &Path) -> anyhow::Result<()> {
    command::must(command(&["mount", "-t", "tmpfs", "tmpfs", "/run"]), b"", LIMIT)?;
    fs::create_dir_all(RUN_DIR)?;
    if layout.state.exists() {
        fs::remove_dir_all(&layout.state)
            .with_context(|| format!("cannot remove {}", layout.state.display()))?;
    }
    fs::create_dir_all(layout.log_dir())?;
    control::install(layout, kube)?;
    if let Some(other) = env::var_os("KVIP_LAB_API_SERVER") {
        fs::create_dir_all(layout.control_plane_state())?;
        symlink(fs::canonicalize(other)?, control::other_api_server(layout))?;
    }
    // The address that kubeconfigs and certificates name.
    let lines = format!("link set lo up\naddr add {BRIDGE_V4}/32 dev lo\n");
    command::must(command(&["ip", "-batch", "-"]), lines.as_bytes(), LIMIT)?;
    step("starting etcd and the API server", || control::start_api(layout))
}
