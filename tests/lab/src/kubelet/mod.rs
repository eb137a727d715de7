//! A stand-in for the kubelet: one process a node, beside the node's virtual machine and truly tied to it.
//!
//! Registers the Node and renews its Lease while the machine answers over ssh; runs each Pod that is bound to the node as
//! a network namespace with nginx on its TCP ports and `lab-peer` on its UDP and SCTP ports in the machine, keeps the Pod's status, and ends it gracefully. Runs no containers,
//! whatever their image. It has the rights of a kubelet of this very node, no more.
//!
//! ```text
//! watch of Pods ─┐                        ┌─ worker ─ decide, status (pure) ─► guest (ssh: lab-pod)
//!                ├─► fleet (addresses) ───┼─ worker                        └─► API (status, delete)
//! looks ─────────┘                        └─ worker
//!   └─ guest (ssh: lab-pod list) every few seconds, then node (Lease, status)
//! ```
//!
//! Two annotations steer a Pod: `lab.kvip/ready: "false"` makes it not ready, at any time; a deleted one goes on
//! serving for `lab.kvip/pre-stop-seconds` (or its containers' `lifecycle.preStop.sleep`).

mod addresses;
mod decide;
mod fleet;
mod guest;
mod node;
mod status;
mod worker;

use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, Config};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::control;
use crate::layout::{Layout, NodeSpec};
use fleet::Fleet;
use guest::{Guest, Look};
use node::Membership;

/// Between two looks at the machine.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two renewals of the Lease, as a kubelet does it.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// What a request to the API may take; a frozen API server answers none.
const LIMIT: Duration = Duration::from_secs(10);
/// Silence that shows a dead watch: bookmarks come every minute.
const WATCH_LIMIT: Duration = Duration::from_secs(90);

/// Runs until ended.
pub fn run(layout: &Layout, spec: &'static NodeSpec) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::new("warn,kvip_lab=info");
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(filter)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(layout, spec))
}

async fn serve(layout: &Layout, spec: &'static NodeSpec) -> anyhow::Result<()> {
    let client = client(layout, spec).await?;
    let guest = Guest::new(layout, spec);
    let (tell, looks) = watch::channel(Look::default());
    tokio::select! {
        () = beat(&guest, Membership::new(client.clone(), spec), tell) => Ok(()),
        result = pods(client, &guest, spec, looks) => result,
    }
}

/// Looks at the machine again and again; while it answers, the node is alive.
async fn beat(guest: &Guest, mut membership: Membership, tell: watch::Sender<Look>) {
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed: Option<Instant> = None;
    loop {
        every.tick().await;
        let asked = Instant::now();
        let mut found = guest.list().await;
        if found.is_err() {
            // The shared connection may have died, not the machine: the next one is a new one.
            found = guest.list().await;
        }
        log_turn(tell.borrow().answers, found.as_ref().err());
        let answers = found.is_ok();
        tell.send_modify(|look| {
            (look.asked, look.answers) = (Some(asked), answers);
            look.pods = found.unwrap_or_else(|_| std::mem::take(&mut look.pods));
        });
        // A tick early rather than a tick late.
        let due = renewed.is_none_or(|last| last.elapsed() + LOOK_EVERY / 2 >= RENEW_EVERY);
        if answers && due {
            match membership.renew(Timestamp::now()).await {
                Ok(()) => renewed = Some(asked),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
    }
}

/// Logs when the machine begins or ceases to answer.
fn log_turn(answered: bool, failure: Option<&anyhow::Error>) {
    match failure {
        None if !answered => tracing::info!("the machine answers"),
        Some(error) if answered => tracing::warn!("the machine does not answer: {error:#}"),
        Some(error) => tracing::debug!("the machine still does not answer: {error:#}"),
        None => {}
    }
}

async fn pods(
    client: Client,
    guest: &Guest,
    spec: &'static NodeSpec,
    mut looks: watch::Receiver<Look>,
) -> anyhow::Result<()> {
    let (store, writer) = reflector::store::<Pod>();
    let bound = watcher::Config::default().fields(&format!("spec.nodeName={}", spec.name));
    let watch = watcher(Api::<Pod>::all(client.clone()), bound).default_backoff().reflect(writer);
    let mut watch = watch.boxed();
    let (end, mut ended) = mpsc::unbounded_channel();
    let mut fleet = Fleet::new(client, guest.clone(), spec, looks.clone(), end);
    // Nothing is done before both sides are known: a Pod missing from half a list is not a deleted one.
    let (mut listed, mut looked) = (false, false);
    loop {
        tokio::select! {
            event = watch.next() => match event.context("the watch of Pods ended")? {
                Ok(watcher::Event::InitDone) => listed = true,
                Ok(_) => {}
                Err(error) => tracing::warn!("watching Pods: {error}"),
            },
            Ok(()) = looks.changed() => looked |= looks.borrow().answers,
            Some(name) = ended.recv() => fleet.bury(&name),
        }
        if listed && looked {
            fleet.reconcile(&store.state());
        }
    }
}

async fn client(layout: &Layout, spec: &NodeSpec) -> anyhow::Result<Client> {
    let path = control::kubelet_kubeconfig(layout, spec.name);
    let file = kube::config::Kubeconfig::read_from(&path)
        .with_context(|| format!("cannot use {}", path.display()))?;
    let mut config =
        Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    config.read_timeout = Some(WATCH_LIMIT);
    Ok(Client::try_from(config)?)
}
