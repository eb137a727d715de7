//! The control plane: etcd, kube-apiserver, controllers, scheduler and one kubelet stand-in a node, each a process of its
//! own that can be stopped, frozen and started again without the others.
//!
//! Works only inside the lab's namespaces, which end all of it when they end. Owns the control plane's folder of the
//! state and the pid files beside the ssh sockets. Never touches a node.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::api;
use crate::command::{self, command, wait_for};
use crate::kubeconfig::{self, Identity};
use crate::layout::{API_PORT, BRIDGE_V4, Layout, NODES, PODS_V4, PODS_V6, SERVICES_V4, SERVICES_V6};
use crate::pki::Pki;
use crate::progress::step;
use crate::ssh::RUN_DIR;

/// Token of the admin, who may do everything. The lab is closed, so it need be no secret.
const ADMIN_TOKEN: &str = "lab-admin";
/// What a role may take to be ready, on a slow machine.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// What a role may take to end by itself before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,endpointslice-controller,endpointslice-mirroring-controller,\
node-lifecycle-controller,taint-eviction-controller,garbage-collector-controller,namespace-controller,serviceaccount-controller,\
serviceaccount-token-controller,pod-garbage-collector-controller,daemonset-controller";
/// How long a client certificate of the lab's own is valid, in days.
const DAYS: u32 = 3650;

/// One process of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The store.
    Etcd,
    /// The API server.
    ApiServer,
    /// Deployment, ReplicaSet, EndpointSlice, node-lifecycle and garbage controllers.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// The kubelet stand-in of a node.
    Kubelet(&'static str),
}

impl Role {
    /// All roles, in the order in which they start.
    pub fn all() -> impl Iterator<Item = Self> {
        let central = [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler];
        central.into_iter().chain(NODES.iter().map(|node| Self::Kubelet(node.name)))
    }

    /// The role as it is named on the command line and in files: `kube-apiserver`, `kubelet-node-a`.
    pub fn name(self) -> String {
        match self {
            Self::Etcd => "etcd".into(),
            Self::ApiServer => "kube-apiserver".into(),
            Self::ControllerManager => "kube-controller-manager".into(),
            Self::Scheduler => "kube-scheduler".into(),
            Self::Kubelet(node) => format!("kubelet-{node}"),
        }
    }

    /// The role of that name.
    pub fn parse(name: &str) -> anyhow::Result<Self> {
        let names: Vec<String> = Self::all().map(Self::name).collect();
        Self::all()
            .find(|role| role.name() == name)
            .with_context(|| format!("{name} is none of {}", names.join(", ")))
    }
}

/// Builds the program, if the cache has none, and says which it is.
pub fn build(layout: &Layout) -> anyhow::Result<PathBuf> {
    let script = layout.control_plane_sources().join("build");
    let status =
        command::interactive(command(&[script.as_os_str(), layout.control_plane_cache().as_os_str()]))?;
    if status != 0 {
        bail!("{} failed with status {status}", script.display());
    }
    let kube = layout.control_plane_cache().join("kube");
    fs::canonicalize(&kube).with_context(|| format!("cannot find {}", kube.display()))
}

/// Makes `built` the program of this lab to its end: the cache may move on meanwhile.
pub fn install(layout: &Layout, built: &Path) -> anyhow::Result<()> {
    let folder = layout.programs();
    fs::create_dir_all(&folder)?;
    for name in ["kube", "kubectl"] {
        symlink(built, folder.join(name))
            .with_context(|| format!("cannot make {name} in {}", folder.display()))?;
    }
    Ok(())
}

/// Starts everything, and waits until all nodes are registered.
pub fn start_all(layout: &Layout) -> anyhow::Result<()> {
    prepare(layout)?;
    step("starting the control plane", || Role::all().try_for_each(|role| start(layout, role)))?;
    step("waiting for the nodes to register", || wait_for("three Nodes", READY_LIMIT, || registered(layout)))
}

/// Starts etcd and the API server alone: there are no controllers then, and no nodes.
pub fn start_api(layout: &Layout) -> anyhow::Result<()> {
    prepare(layout)?;
    [Role::Etcd, Role::ApiServer].into_iter().try_for_each(|role| start(layout, role))
}

/// Where an API server of another version stands in, if it is there.
pub fn other_api_server(layout: &Layout) -> PathBuf {
    layout.control_plane_state().join("other-api-server")
}

/// Ends everything, forgets all objects, and starts anew: another cluster at the same address, with the same keys.
pub fn reset(layout: &Layout) -> anyhow::Result<()> {
    let running: Vec<(Role, Pid)> = Role::all().filter_map(|role| Some((role, alive(role)?))).collect();
    // Nothing of theirs is to be kept, so none is given the time to end in order.
    running.iter().try_for_each(|(_, pid)| send(*pid, Signal::KILL))?;
    running.iter().try_for_each(|(role, _)| wait_until_ended(*role))?;
    let data = layout.control_plane_state().join("etcd");
    if data.exists() {
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
    }
    start_all(layout)
}

/// Starts a role and waits until it is ready; one that runs is left alone.
pub fn start(layout: &Layout, role: Role) -> anyhow::Result<()> {
    if alive(role).is_some() {
        return Ok(());
    }
    let log = layout.log_dir().join(format!("{}.log", role.name()));
    let file = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let mut process = program(layout, role)?;
    process.stdout(file.try_clone()?).stderr(file).process_group(0);
    layout.export(&mut process);
    let child = process.spawn().with_context(|| format!("cannot start {}", role.name()))?;
    fs::write(pid_file(role), child.id().to_string())?;
    let ended = || if alive(role).is_none() { Some(Err(())) } else { None };
    let ready =
        wait_for(&role.name(), READY_LIMIT, || if is_ready(layout, role) { Some(Ok(())) } else { ended() })?;
    ready.map_err(|()| anyhow::anyhow!("{} ended at once; its log is {}", role.name(), log.display()))
}

/// Ends a role: by SIGTERM, then by SIGKILL.
pub fn stop(role: Role) -> anyhow::Result<()> {
    let Some(pid) = alive(role) else { return Ok(()) };
    send(pid, Signal::TERM)?;
    // A frozen one does not hear before it is thawed.
    send(pid, Signal::CONT)?;
    if wait_until_ended(role).is_err() {
        send(pid, Signal::KILL)?;
        wait_until_ended(role)?;
    }
    Ok(())
}

/// Ends a role at once, as a crash does.
pub fn kill(role: Role) -> anyhow::Result<()> {
    let Some(pid) = alive(role) else { return Ok(()) };
    send(pid, Signal::KILL)?;
    wait_until_ended(role)
}

/// Freezes a role: its connections stay open and say nothing.
pub fn freeze(role: Role) -> anyhow::Result<()> {
    signal(role, Signal::STOP)
}

/// Lets a frozen role go on.
pub fn thaw(role: Role) -> anyhow::Result<()> {
    signal(role, Signal::CONT)
}

/// kubectl as the admin, ready for its arguments.
pub fn kubectl_argv(layout: &Layout, arguments: &[&str]) -> Vec<String> {
    let kube = layout.programs().join("kube").to_string_lossy().into_owned();
    let kubeconfig = format!("--kubeconfig={}", admin_kubeconfig(layout).display());
    let words = [kube, "kubectl".into(), kubeconfig].into_iter();
    words.chain(arguments.iter().map(|word| (*word).to_owned())).collect()
}

/// The admin's kubeconfig.
pub fn admin_kubeconfig(layout: &Layout) -> PathBuf {
    layout.control_plane_state().join("admin.kubeconfig")
}

/// The kubeconfig of a node's kubelet stand-in.
pub fn kubelet_kubeconfig(layout: &Layout, node: &str) -> PathBuf {
    layout.control_plane_state().join(format!("kubelet-{node}.kubeconfig"))
}

fn signal(role: Role, signal: Signal) -> anyhow::Result<()> {
    let pid = alive(role).with_context(|| format!("{} does not run", role.name()))?;
    send(pid, signal)
}

/// One that has ended meanwhile needs no signal.
fn send(pid: Pid, signal: Signal) -> anyhow::Result<()> {
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot signal process {}", pid.as_raw_nonzero())),
    }
}

fn wait_until_ended(role: Role) -> anyhow::Result<()> {
    let what = format!("the end of {}", role.name());
    wait_for(&what, STOP_LIMIT, || alive(role).is_none().then_some(()))
}

/// Keys, tokens and kubeconfigs; those that are there stay.
fn prepare(layout: &Layout) -> anyhow::Result<()> {
    let folder = layout.control_plane_state();
    fs::create_dir_all(&folder)?;
    let pki = pki(layout)?;
    fs::write(folder.join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"))?;
    fs::write(admin_kubeconfig(layout), kubeconfig::text(&pki, Identity::Token(ADMIN_TOKEN))?)?;
    for node in &NODES {
        let (name, file) = (Role::Kubelet(node.name).name(), kubelet_kubeconfig(layout, node.name));
        if !file.exists() {
            pki.client(&name, &format!("system:node:{}", node.name), &["system:nodes"], DAYS)?;
            fs::write(file, kubeconfig::text(&pki, Identity::Certificate(&name))?)?;
        }
    }
    Ok(())
}

/// The control plane's keys.
pub fn pki(layout: &Layout) -> anyhow::Result<Pki> {
    Pki::ensure(&layout.control_plane_state().join("pki"))
}

fn program(layout: &Layout, role: Role) -> anyhow::Result<Command> {
    let own = std::env::current_exe()?;
    let other = Some(other_api_server(layout)).filter(|other| role == Role::ApiServer && other.exists());
    let kube = other.unwrap_or_else(|| layout.programs().join("kube"));
    let mut process = Command::new(if matches!(role, Role::Kubelet(_)) { own } else { kube });
    process.args(match role {
        Role::Kubelet(node) => vec!["kubelet".to_owned(), node.to_owned()],
        Role::Etcd => {
            vec![role.name(), format!("--data-dir={}", layout.control_plane_state().join("etcd").display())]
        }
        Role::ApiServer => api_server(layout)?,
        Role::ControllerManager => controller_manager(layout)?,
        Role::Scheduler => vec![
            role.name(),
            format!("--kubeconfig={}", admin_kubeconfig(layout).display()),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ],
    });
    process.stdin(std::process::Stdio::null());
    Ok(process)
}

fn api_server(layout: &Layout) -> anyhow::Result<Vec<String>> {
    let (folder, pki) = (layout.control_plane_state(), pki(layout)?);
    let key = pki.key("service-account");
    Ok(vec![
        Role::ApiServer.name(),
        "--etcd-servers=http://127.0.0.1:2379".into(),
        "--bind-address=::".into(),
        format!("--advertise-address={BRIDGE_V4}"),
        format!("--secure-port={API_PORT}"),
        format!("--cert-dir={}", folder.join("made").display()),
        format!("--tls-cert-file={}", pki.certificate("server").display()),
        format!("--tls-private-key-file={}", pki.key("server").display()),
        format!("--client-ca-file={}", pki.authority().display()),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", key.display()),
        format!("--service-account-signing-key-file={}", key.display()),
        format!("--service-cluster-ip-range={SERVICES_V4},{SERVICES_V6}"),
        "--authorization-mode=Node,RBAC".into(),
        format!("--token-auth-file={}", folder.join("tokens.csv").display()),
        "--endpoint-reconciler-type=none".into(),
        "--disable-admission-plugins=ServiceAccount".into(),
    ])
}

fn controller_manager(layout: &Layout) -> anyhow::Result<Vec<String>> {
    let pki = pki(layout)?;
    Ok(vec![
        Role::ControllerManager.name(),
        format!("--kubeconfig={}", admin_kubeconfig(layout).display()),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
        format!("--cluster-cidr={PODS_V4},{PODS_V6}"),
        format!("--root-ca-file={}", pki.authority().display()),
        format!("--service-account-private-key-file={}", pki.key("service-account").display()),
        format!("--controllers={CONTROLLERS}"),
        // Four missed renewals of a Lease. The default has been 50 s since Kubernetes 1.32, 40 s before.
        "--node-monitor-grace-period=40s".into(),
    ])
}

fn is_ready(layout: &Layout, role: Role) -> bool {
    match role {
        Role::Etcd => std::net::TcpStream::connect(("127.0.0.1", 2379)).is_ok(),
        Role::ApiServer => api::is_ready(&admin_kubeconfig(layout)),
        // These three have nothing to ask; that they work is seen in what they do.
        Role::ControllerManager | Role::Scheduler | Role::Kubelet(_) => true,
    }
}

fn registered(layout: &Layout) -> Option<()> {
    (api::nodes(&admin_kubeconfig(layout)).ok()? >= NODES.len()).then_some(())
}

fn pid_file(role: Role) -> String {
    format!("{RUN_DIR}/{}.pid", role.name())
}

/// The role's process, if it lives. The ids are those of the lab's own namespace, where few are used twice.
fn alive(role: Role) -> Option<Pid> {
    let number: i32 = fs::read_to_string(pid_file(role)).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    let state = stat[stat.rfind(')')? + 1..].split_whitespace().next()?.to_owned();
    (state != "Z").then(|| Pid::from_raw(number))?
}
