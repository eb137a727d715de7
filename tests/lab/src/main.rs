//! `lab`: raises the lab, leaves it up for a person to play with, and takes it down.
//!
//! Owns the command line only; each subcommand is a call into the library.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use kvip_lab::command;
use kvip_lab::control::{self, Role};
use kvip_lab::demo;
use kvip_lab::lab::{Lab, client_argv};
use kvip_lab::layout::{self, Layout, NODES};
use kvip_lab::machine::Accelerator;
use kvip_lab::namespace::Running;
use kvip_lab::progress::{say, step};
use kvip_lab::serve::{self, ServeOptions};
use kvip_lab::vm::{self, Action, Machines};
use kvip_lab::{image::Image, kubelet, kvip, prober, scenario, ssh};

#[derive(Parser)]
#[command(name = "lab", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// Three virtual machines, a client and a control plane, in namespaces of their own.
#[derive(Subcommand)]
enum Verb {
    /// Build the image and the snapshot, if the cache has none.
    Image,
    /// Raise the lab. It stays up until interrupted, or with --detach until `lab down`.
    Up {
        /// Leave it up and return.
        #[arg(long)]
        detach: bool,
        /// Raise no control plane.
        #[arg(long)]
        no_control_plane: bool,
    },
    /// Raise the lab with kvip on all nodes and the tutorial applied, and leave it up.
    Play {
        /// The folder of the package to install.
        #[arg(default_value = kvip::PACKAGES)]
        packages: PathBuf,
    },
    /// End the lab and everything in it.
    Down,
    /// Tell kvip's story on a lab of its own: install, serve, scale, and outlive the holder.
    Demo {
        /// The folder of the package to install.
        #[arg(default_value = kvip::PACKAGES)]
        packages: PathBuf,
    },
    /// Say whether a lab is up and how its nodes are.
    Status,
    /// A shell on a node, or a command run there.
    Ssh {
        /// node-a, node-b or node-c.
        node: String,
        /// What to run instead of a shell.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a command as the client, which is no node.
    Client {
        /// Program and arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command in the lab's own namespaces.
    Exec {
        /// Program and arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Kill, freeze, cut off, restore or reboot a node.
    Node {
        /// What to do to it.
        action: Action,
        /// node-a, node-b or node-c.
        node: String,
    },
    /// Give all three nodes a fresh start.
    RestoreAll,
    /// kubectl as the cluster's admin.
    Kubectl {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Start, stop, freeze or thaw one process of the control plane, or reset all of it.
    Control {
        /// What to do.
        action: ControlAction,
        /// etcd, kube-apiserver, kube-controller-manager, kube-scheduler or kubelet-NODE; none for reset.
        role: Option<String>,
    },
    /// The kubelet stand-in of a node (internal).
    #[command(hide = true)]
    Kubelet {
        /// node-a, node-b or node-c.
        node: String,
    },
    /// Ask http://ADDRESS:PORT/ until stdin ends; prints a line of JSON a request.
    Probe {
        /// The VIP.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// Time between the starts of two requests.
        #[arg(long, default_value_t = 50)]
        interval_ms: u64,
    },
    /// Process 1 of the lab (internal).
    #[command(hide = true)]
    Init(ServeOptions),
    /// The supervisor (internal).
    #[command(hide = true)]
    Serve(ServeOptions),
}

/// What can be done to a process of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ControlAction {
    /// Start it and wait until it is ready.
    Start,
    /// End it in order.
    Stop,
    /// End it at once, as a crash does.
    Kill,
    /// Stop its processor time; its connections stay open.
    Freeze,
    /// Let it go on.
    Thaw,
    /// End all of them, forget all objects, start anew.
    Reset,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<i32> {
    let layout = Layout::from_environment();
    match verb {
        Verb::Image => image(&layout),
        Verb::Up { detach, no_control_plane } => up(&layout, detach, no_control_plane),
        Verb::Play { packages } => play(&layout, &packages),
        Verb::Down => down(&layout),
        Verb::Demo { packages } => demo::run(&kvip::newest_deb(&packages)?).map(|()| 0),
        Verb::Status => status(&layout),
        Verb::Ssh { node, command } => inside(&layout, &ssh_argv(&layout, &node, &command)?),
        Verb::Client { command } => inside(&layout, &client_argv(&command)),
        Verb::Exec { command } => inside(&layout, &command),
        Verb::Node { action, node } => node_action(&layout, action, &node),
        Verb::RestoreAll if !is_inside() => Lab::attach()?.restore().map(|()| 0),
        Verb::RestoreAll => Machines::load(&layout)?.restore_all().map(|()| 0),
        Verb::Kubectl { arguments } => kubectl(&layout, &arguments),
        Verb::Control { action, role } => control(&layout, action, role.as_deref()),
        Verb::Kubelet { node } => {
            let spec = layout::node(&node).with_context(|| format!("the lab has no node {node}"))?;
            kubelet::run(&layout, spec).map(|()| 0)
        }
        Verb::Probe { address, port, interval_ms } => {
            prober::run(address, port, Duration::from_millis(interval_ms));
            Ok(0)
        }
        Verb::Init(options) => serve::init(options).map(|()| 0),
        Verb::Serve(options) => serve::serve(&layout, options).map(|()| 0),
    }
}

fn image(layout: &Layout) -> anyhow::Result<i32> {
    let image = Image::ensure(layout)?;
    let accelerator = Accelerator::find(layout, &image);
    let snapshot = image.snapshot(layout, accelerator)?;
    let name = accelerator.name();
    say(&format!("image {}, snapshot ({name}) {}", image.base().display(), snapshot.state.display()));
    Ok(0)
}

fn up(layout: &Layout, detach: bool, no_control_plane: bool) -> anyhow::Result<i32> {
    let options = ServeOptions { watch_stdin: !detach, no_control_plane };
    let (lab, mut child) = Running::start(layout, options)?;
    tell(&format!("lab: up, process {}. Try", lab.supervisor()));
    let control_plane = (!no_control_plane).then_some("kubectl get nodes");
    let tries = ["ssh node-a", "client curl http://10.87.2.50", "node kill node-a", "status"];
    for words in tries.into_iter().chain(control_plane).chain(detach.then_some("down")) {
        tell(&format!("  {}lab {words}", sudo()));
    }
    if detach {
        return Ok(0);
    }
    tell("It ends when this command does (Ctrl-C).");
    // Waiting would close the pipe first, and its end is the lab's.
    let pipe = child.stdin.take();
    child.wait()?;
    drop(pipe);
    Ok(0)
}

fn play(layout: &Layout, packages: &Path) -> anyhow::Result<i32> {
    let package = kvip::newest_deb(packages)?;
    let (running, _child) =
        Running::start(layout, ServeOptions { watch_stdin: false, no_control_plane: false })?;
    let lab = Lab::attach()?;
    step("installing kvip on three nodes", || lab.install_kvip(&package, &kvip::Settings::default()))?;
    step("applying the tutorial", || {
        scenario::tutorial(&lab).and_then(|()| scenario::wait_until_settled(&lab))
    })?;
    let program = std::env::args().next().unwrap_or_else(|| "lab".into());
    println!("the lab is up (process {}), kvip serves http://{}/. Try", running.supervisor(), scenario::VIP);
    for words in [
        "ssh node-a kvip status",
        "ssh node-a journalctl -u kvip",
        "client curl http://10.87.2.50",
        "kubectl get pods -o wide",
        "kubectl scale deployment/nginx-deployment --replicas=5",
        "node kill node-a",
        "node restore node-a",
    ] {
        println!("  {}{program} {words}", sudo());
    }
    println!("`make lab-down` ends it.");
    Ok(0)
}

fn down(layout: &Layout) -> anyhow::Result<i32> {
    match Running::find(layout) {
        Some(lab) => {
            lab.end()?;
            say("down");
        }
        None => say("no lab is up here"),
    }
    Ok(0)
}

fn status(layout: &Layout) -> anyhow::Result<i32> {
    if is_inside() {
        let running = vm::running_nodes();
        for node in &NODES {
            let state = if running.contains(&node.name) { "runs" } else { "is dead" };
            tell(&format!("{:8} {:10} {:13} {state}", node.name, node.v4, node.v6));
        }
        return Ok(0);
    }
    let Some(lab) = Running::find(layout) else {
        tell("no lab is up here: lab up");
        return Ok(1);
    };
    tell(&format!("up, process {}, state in {}", lab.supervisor(), layout.state.display()));
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    inside(layout, &[program, "status".to_owned()])
}

fn node_action(layout: &Layout, action: Action, node: &str) -> anyhow::Result<i32> {
    let spec = layout::node(node).with_context(|| format!("the lab has no node {node}"))?;
    if is_inside() {
        return Machines::load(layout)?.apply(spec, action).map(|()| 0);
    }
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    let verb = format!("{action:?}").to_lowercase();
    inside(layout, &[program, "node".to_owned(), verb, node.to_owned()])
}

fn kubectl(layout: &Layout, arguments: &[String]) -> anyhow::Result<i32> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let argv = control::kubectl_argv(layout, &arguments);
    if is_inside() { command::interactive(command::command(&argv)) } else { inside(layout, &argv) }
}

fn control(layout: &Layout, action: ControlAction, role: Option<&str>) -> anyhow::Result<i32> {
    if !is_inside() {
        let program = std::env::current_exe()?.to_string_lossy().into_owned();
        let verb = format!("{action:?}").to_lowercase();
        let words = [program, "control".into(), verb].into_iter().chain(role.map(str::to_owned));
        return inside(layout, &words.collect::<Vec<_>>());
    }
    let named = || Role::parse(role.context("name the process, such as kube-apiserver")?);
    match action {
        ControlAction::Start => control::start(layout, named()?)?,
        ControlAction::Stop => control::stop(named()?)?,
        ControlAction::Kill => control::kill(named()?)?,
        ControlAction::Freeze => control::freeze(named()?)?,
        ControlAction::Thaw => control::thaw(named()?)?,
        ControlAction::Reset => control::reset(layout)?,
    }
    Ok(0)
}

fn ssh_argv(layout: &Layout, node: &str, command: &[String]) -> anyhow::Result<Vec<String>> {
    layout::node(node).with_context(|| format!("the lab has no node {node}"))?;
    let mut argv = ssh::argv(layout, node, &command.join(" "));
    if command.is_empty() {
        // A login shell on a terminal.
        argv.truncate(argv.len() - 2);
    }
    Ok(argv)
}

/// Runs a command in the lab's namespaces on this terminal.
fn inside<S: AsRef<str>>(layout: &Layout, argv: &[S]) -> anyhow::Result<i32> {
    let mut words: Vec<String> = Vec::new();
    // Entering a mount namespace leads to its root, but people name files as seen from where they are. /run is
    // another there.
    let here = std::env::current_dir()?;
    if !here.starts_with("/run") {
        words.extend(["env".to_owned(), format!("--chdir={}", here.display())]);
    }
    words.extend(argv.iter().map(|word| word.as_ref().to_owned()));
    let mut inner = Running::require(layout)?.enter(&words);
    layout.export(&mut inner);
    inner.stdin(std::process::Stdio::inherit());
    command::interactive(inner)
}

/// Prints a line for a person, who may have stopped reading.
fn tell(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// What people have to type before the name of this program, when they started it so.
fn sudo() -> &'static str {
    let by_sudo = rustix::process::geteuid().is_root() && std::env::var_os("SUDO_USER").is_some();
    if by_sudo { "sudo " } else { "" }
}

/// Whether this process is in a lab's namespaces: only there is the supervisor's own /run.
fn is_inside() -> bool {
    Path::new(ssh::RUN_DIR).is_dir()
}
