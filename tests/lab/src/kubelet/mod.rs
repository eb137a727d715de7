//! A stand-in for the kubelet: one process a node, beside the node's virtual machine and truly tied to it.
//!
//! Registers the Node and renews its Lease while the machine answers over ssh; runs each Pod that is bound to the node as
//! a network namespace in the machine, keeps the Pod's status, and ends it gracefully. Runs no containers.

mod guest;
mod node;
mod pods;

use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, Config};

use crate::control;
use crate::layout::{Layout, NodeSpec};
use guest::Guest;
use pods::Pods;

/// Between two looks at the machine; a Lease is renewed at every second one.
const BEAT: Duration = Duration::from_secs(5);

/// Runs until ended.
pub fn run(layout: &Layout, spec: &'static NodeSpec) -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(layout, spec))
}

async fn serve(layout: &Layout, spec: &'static NodeSpec) -> anyhow::Result<()> {
    let client = client(layout).await?;
    let guest = Guest::new(layout, spec);
    let (store, writer) = reflector::store::<Pod>();
    let bound = watcher::Config::default().fields(&format!("spec.nodeName={}", spec.name));
    let watch = watcher(Api::<Pod>::all(client.clone()), bound).default_backoff().reflect(writer);
    let mut watch = watch.boxed();
    let mut pods = Pods::new(client.clone(), guest.clone(), spec);
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => match guest.list().await {
                Ok(running) => {
                    pods.running(&running);
                    if let Err(error) = node::renew(&client, spec).await {
                        tracing::warn!("cannot renew the node: {error:#}");
                    }
                }
                Err(error) => tracing::warn!("the machine does not answer: {error:#}"),
            },
            event = watch.next() => match event.context("the watch of Pods ended")? {
                Ok(_) => {}
                Err(error) => tracing::warn!("watching Pods: {error}"),
            },
            done = pods.next_done() => pods.finish(done),
        }
        pods.reconcile(&store.state());
    }
}

async fn client(layout: &Layout) -> anyhow::Result<Client> {
    let file = kube::config::Kubeconfig::read_from(control::admin_kubeconfig(layout))?;
    let config = Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
