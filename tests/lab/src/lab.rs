//! What tests and the demo call: a lab, its nodes, its client.
//!
//! Owns the lab that it started: dropping it ends everything. Decides nothing about kvip.

use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::command::{self, Output};
use crate::control;
use crate::kubeconfig::{self, Identity};
use crate::layout::{self, CLIENT, Layout, NODES, NodeSpec};
use crate::namespace::{Running, lab_binary};
use crate::probe::Probe;
use crate::serve::ServeOptions;
use crate::ssh;
use crate::vm::Action;

/// What a command may take unless its caller says otherwise.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// What the end of an earlier lab may take.
const END_LIMIT: Duration = Duration::from_secs(30);
/// What killing, restoring or booting may take.
const ACTION_LIMIT: Duration = Duration::from_secs(420);

/// What a lab is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Raise the control plane beside the nodes.
    pub control_plane: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { control_plane: true }
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    running: Running,
    /// There is none for a lab that somebody else started and will end.
    supervisor: Option<Child>,
}

impl Lab {
    /// Raises a lab that ends with this value, and with this process however that ends.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let layout = Layout::from_environment();
        // The lab of the test file before ends with its process, a moment after it.
        command::wait_for("the lab that is up here to end (`make lab-down` ends it)", END_LIMIT, || {
            Running::find(&layout).is_none().then_some(())
        })?;
        let serve = ServeOptions { watch_stdin: true, no_control_plane: !options.control_plane };
        let (running, child) = Running::start(&layout, serve)?;
        Ok(Self { layout, running, supervisor: Some(child) })
    }

    /// The lab that is up already; it outlives this value.
    pub fn attach() -> anyhow::Result<Self> {
        let layout = Layout::from_environment();
        let running = Running::require(&layout)?;
        Ok(Self { layout, running, supervisor: None })
    }

    /// Where its files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The node of that name. Panics at another name: there are three, and they are known.
    pub fn node(&self, name: &str) -> Node<'_> {
        let spec = layout::node(name).unwrap_or_else(|| panic!("the lab has no node {name}"));
        Node { lab: self, spec }
    }

    /// All nodes, in their order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        NODES.iter().map(|spec| Node { lab: self, spec })
    }

    /// Does `act` on all nodes side by side, and gives what came of it in their order.
    pub fn on_all_nodes<T: Send>(&self, act: impl Fn(Node<'_>) -> T + Sync) -> Vec<T> {
        let act = &act;
        thread::scope(|scope| {
            let nodes: Vec<_> = self.nodes().map(|node| scope.spawn(move || act(node))).collect();
            nodes.into_iter().map(|node| node.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }

    /// Runs a command as the client, which is no node.
    pub fn client<S: AsRef<str>>(&self, argv: &[S]) -> anyhow::Result<Output> {
        self.host(&client_argv(argv))
    }

    /// Runs a command in the lab's own namespaces, where the nodes' network and the API server are.
    pub fn host<S: AsRef<str>>(&self, argv: &[S]) -> anyhow::Result<Output> {
        self.host_within(RUN_LIMIT, argv, b"")
    }

    /// As [`Self::host`], with input and a limit of its own.
    pub fn host_within<S: AsRef<str>>(
        &self,
        limit: Duration,
        argv: &[S],
        input: &[u8],
    ) -> anyhow::Result<Output> {
        let seconds = limit.as_secs_f32().to_string();
        // The inner limit ends the command itself; the outer one is for a namespace that does not answer.
        let mut words: Vec<&str> = vec!["timeout", "--kill-after=2", &seconds];
        words.extend(argv.iter().map(AsRef::as_ref));
        command::run(self.enter(&words), input, limit + Duration::from_secs(10))
    }

    /// A command for the lab's own namespaces, not started yet.
    pub fn enter<S: AsRef<str>>(&self, argv: &[S]) -> std::process::Command {
        let mut command = self.running.enter(argv);
        self.layout.export(&mut command);
        command
    }

    /// Runs kubectl as the cluster's admin.
    pub fn kubectl_within(&self, limit: Duration, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
        self.host_within(limit, &control::kubectl_argv(&self.layout, arguments), input.as_bytes())
    }

    /// Runs kubectl as the cluster's admin and gives what it says; fails unless it succeeds.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// As [`Self::kubectl`], with input: manifests for `apply -f -`.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let output = self.kubectl_within(RUN_LIMIT, arguments, input)?;
        if output.ok() { Ok(output.stdout) } else { bail!("kubectl {}: {output}", arguments.join(" ")) }
    }

    /// A kubeconfig that acts as a service account, by a token that the API makes, valid for an hour.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> anyhow::Result<String> {
        let token = self.kubectl(&["-n", namespace, "create", "token", name])?;
        kubeconfig::text(&control::pki(&self.layout)?, Identity::Token(token.trim()))
    }

    /// A kubeconfig that acts as `user` in `groups`, by a client certificate valid for `days` (0: expired at once).
    pub fn certificate_kubeconfig(&self, user: &str, groups: &[&str], days: u32) -> anyhow::Result<String> {
        let pki = control::pki(&self.layout)?;
        let name = format!("client-{}", user.replace([':', '/'], "-"));
        pki.client(&name, user, groups, days)?;
        kubeconfig::text(&pki, Identity::Certificate(&name))
    }

    /// `start`, `stop`, `kill`, `freeze` or `thaw` of one process of the control plane, such as `kube-apiserver`.
    pub fn control(&self, verb: &str, role: &str) -> anyhow::Result<()> {
        self.own_program(&["control", verb, role])
    }

    /// Fresh nodes and an empty cluster: what a test file starts from.
    pub fn reset(&self) -> anyhow::Result<()> {
        self.restore()?;
        self.control_reset()
    }

    /// An empty cluster; the nodes stay as they are.
    pub fn control_reset(&self) -> anyhow::Result<()> {
        self.own_program(&["control", "reset"])
    }

    /// Gives all three nodes a fresh start, side by side.
    pub fn restore(&self) -> anyhow::Result<()> {
        self.own_program(&["restore-all"])
    }

    /// Starts to ask `http://vip:port/` as the client, once every `interval`.
    pub fn probe(&self, vip: &str, port: u16, interval: Duration) -> anyhow::Result<Probe> {
        let program = lab_binary()?.to_string_lossy().into_owned();
        let milliseconds = interval.as_millis().to_string();
        let words = [&*program, "probe", vip, &port.to_string(), "--interval-ms", &milliseconds];
        Probe::start(self.enter(&client_argv(&words)))
    }

    /// Polls `ask` until it gives something; fails naming `what` when `limit` has passed.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        ask: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        if Running::find(&self.layout).is_none() {
            bail!("the lab has ended, so there will be no {what}");
        }
        command::wait_for(what, limit, ask)
    }

    fn own_program(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let program = lab_binary()?.to_string_lossy().into_owned();
        let words: Vec<&str> = std::iter::once(&*program).chain(arguments.iter().copied()).collect();
        let output = self.host_within(ACTION_LIMIT, &words, b"")?;
        if output.ok() { Ok(()) } else { bail!("lab {}: {output}", arguments.join(" ")) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(child) = &mut self.supervisor {
            // Nothing more can be done about a lab that does not end; its namespaces die with it anyway.
            let _ = self.running.end();
            let _ = child.wait();
        }
    }
}

/// One node of a lab.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    lab: &'a Lab,
    spec: &'static NodeSpec,
}

impl Node<'_> {
    /// The lab that it is in.
    pub fn lab(&self) -> &Lab {
        self.lab
    }

    /// Its name and addresses.
    pub fn spec(&self) -> &'static NodeSpec {
        self.spec
    }

    /// Runs a shell script on it, at most a minute. Fails only if ssh could not be run at all: a node that
    /// does not answer gives status 255.
    pub fn run(&self, script: &str) -> anyhow::Result<Output> {
        self.run_within(RUN_LIMIT, script, b"")
    }

    /// As [`Self::run`], with input and a limit of its own.
    pub fn run_within(&self, limit: Duration, script: &str, input: &[u8]) -> anyhow::Result<Output> {
        self.lab.host_within(limit, &ssh::argv(&self.lab.layout, self.spec.name, script), input)
    }

    /// Runs a script that is to succeed and gives its standard output; fails with both streams otherwise.
    pub fn must(&self, script: &str) -> anyhow::Result<String> {
        let output = self.run(script)?;
        if output.ok() { Ok(output.stdout) } else { bail!("{}: {script}: {output}", self.spec.name) }
    }

    /// The name of one of its pods that begins with `prefix`; its network namespace has the same.
    pub fn pod(&self, prefix: &str) -> anyhow::Result<String> {
        let list = self.must("lab-pod list")?;
        let mut names = list.lines().filter_map(|line| line.split(' ').next());
        let name = names.find(|name| !name.is_empty() && name.starts_with(prefix));
        Ok(name.with_context(|| format!("no pod {prefix}* on {}: {list}", self.spec.name))?.to_owned())
    }

    /// Copies a file of this host to `destination` on the node, with the mode 0644.
    pub fn copy_in(&self, path: &Path, destination: &str) -> anyhow::Result<()> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.write(destination, &bytes)
    }

    /// Writes a file on the node.
    pub fn write(&self, destination: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let script = format!("cat > '{destination}'");
        let attempt = || self.run_within(Duration::from_secs(120), &script, bytes);
        let mut output = attempt()?;
        // ssh lost its connection: to write once more does no harm.
        if output.status == 255 {
            output = attempt()?;
        }
        if output.ok() { Ok(()) } else { bail!("{}: cannot write {destination}: {output}", self.spec.name) }
    }

    /// Ends the machine at once, as a power failure does.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.act(Action::Kill)
    }

    /// Stops its processor: the machine is there and does nothing.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.act(Action::Freeze)
    }

    /// Lets its processor go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.act(Action::Thaw)
    }

    /// Drops every packet from and to it; its own card still claims a carrier.
    pub fn cut_link(&self) -> anyhow::Result<()> {
        self.act(Action::Cut)
    }

    /// Undoes [`Self::cut_link`].
    pub fn heal_link(&self) -> anyhow::Result<()> {
        self.act(Action::Heal)
    }

    /// Starts it fresh from the snapshot (it may run or be dead) and waits until it is up. Its files are gone.
    pub fn restore(&self) -> anyhow::Result<()> {
        self.act(Action::Restore)
    }

    /// Boots a killed node from its own disk, files kept, and waits until it is up.
    pub fn boot(&self) -> anyhow::Result<()> {
        self.act(Action::Boot)
    }

    /// As [`Self::boot`], with a kernel that is told to do without IPv6.
    pub fn boot_without_ipv6(&self) -> anyhow::Result<()> {
        self.act(Action::BootV4)
    }

    /// Shuts it down in order, boots it again, files kept, and waits until it is up.
    pub fn reboot(&self) -> anyhow::Result<()> {
        self.act(Action::Reboot)
    }

    fn act(&self, action: Action) -> anyhow::Result<()> {
        let verb = format!("{action:?}").to_lowercase();
        self.lab.own_program(&["node", &verb, self.spec.name])
    }
}

/// A command line that runs `argv` in the client's namespace, given to the lab's own.
pub fn client_argv<S: AsRef<str>>(argv: &[S]) -> Vec<String> {
    namespace_argv(CLIENT, argv)
}

/// As [`client_argv`], in the namespace of that name.
pub fn namespace_argv<S: AsRef<str>>(name: &str, argv: &[S]) -> Vec<String> {
    let net = format!("--net=/run/netns/{name}");
    let words = ["nsenter", &net, "--"].into_iter();
    words.chain(argv.iter().map(AsRef::as_ref)).map(str::to_owned).collect()
}
