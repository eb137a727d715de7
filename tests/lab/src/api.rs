//! Short questions to the API server, asked in this process: starting kubectl costs more than a starting API server
//! can spare on two cores.
//!
//! Owns no state; each question opens its own connection. Never writes.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

/// What an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether the API server says that it is ready.
pub fn is_ready(kubeconfig: &Path) -> bool {
    let ready = async |client: Client| {
        let request = Request::get("/readyz").body(Vec::new()).context("ask for /readyz")?;
        Ok(client.request_text(request).await?)
    };
    ask(kubeconfig, ready).is_ok_and(|answer| answer == "ok")
}

/// How many Nodes are registered.
pub fn nodes(kubeconfig: &Path) -> anyhow::Result<usize> {
    let count = async |client: Client| {
        Ok(Api::<Node>::all(client).list_metadata(&ListParams::default()).await?.items.len())
    };
    ask(kubeconfig, count)
}

fn ask<T>(kubeconfig: &Path, question: impl AsyncFnOnce(Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let answer = question(Client::try_from(config)?);
        tokio::time::timeout(LIMIT, answer).await.context("the API did not answer in time")?
    })
}
