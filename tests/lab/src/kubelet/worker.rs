//! The task of one Pod: does what [`decide`] says, one step after the other, until there is nothing left.
//!
//! Owns what is known of its Pod in the machine. Does nothing while the machine does not answer: the kubelet that
//! it stands for would be dead or cut off. Tries again after a failure, without end but ever more slowly.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::LIMIT;
use super::decide::{self, Local, Ports, Step};
use super::guest::{Guest, Look};
use super::status::Place;

/// Before the second try; doubled for each one after.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Before any later try.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// One Pod's worker.
pub struct Worker {
    /// Its name in the machine.
    pub name: String,
    /// Its name in the API.
    pub pod_name: String,
    /// Pods of its namespace.
    pub api: Api<Pod>,
    /// The way into the machine.
    pub guest: Guest,
    /// Where it runs.
    pub place: Place,
    /// What is known of it in the machine.
    pub local: Local,
    /// The API's view of it.
    pub wanted: watch::Receiver<Option<Arc<Pod>>>,
    /// The machine's.
    pub looks: watch::Receiver<Look>,
}

impl Worker {
    /// Works until the Pod is gone on both sides, or nobody wants anything any more.
    pub async fn run(mut self) {
        let mut pod = self.wanted.borrow_and_update().clone();
        let mut changed = Instant::now();
        let mut failures = 0;
        loop {
            if self.wanted.has_changed().unwrap_or(false) {
                pod.clone_from(&self.wanted.borrow_and_update());
            }
            let answers = self.notice(changed);
            let step = decide::next(pod.as_deref(), &self.local, &self.place, Timestamp::now());
            match step {
                Step::End => return,
                Step::Wait(until) => self.wait(until).await,
                _ if !answers => self.wait(None).await,
                step => match self.act(step, &mut pod).await {
                    Ok(()) => (failures, changed) = (0, Instant::now()),
                    Err(error) => {
                        tracing::warn!("{}: {error:#}", self.name);
                        sleep((FIRST_PAUSE * 2_u32.pow(failures)).min(LONGEST_PAUSE)).await;
                        failures = (failures + 1).min(8);
                    }
                },
            }
            if self.wanted.has_changed().is_err() {
                return;
            }
        }
    }

    /// Takes note of the last look, if it came after our own last change, and says whether the machine answers.
    fn notice(&mut self, changed: Instant) -> bool {
        let look = self.looks.borrow_and_update();
        let newer = look.answers && look.asked.is_some_and(|asked| asked > changed);
        if newer && self.local.serving && !look.pods.contains_key(&self.name) {
            tracing::warn!("{}: the machine has lost it", self.name);
            self.local.lost();
        }
        look.answers
    }

    async fn wait(&mut self, until: Option<Timestamp>) {
        let pause = until.map(|until| Duration::try_from(until.duration_since(Timestamp::now())));
        tokio::select! {
            // An error is noticed by the caller.
            _ = self.wanted.changed() => {}
            _ = self.looks.changed() => {}
            () = sleep(pause.unwrap_or(Ok(Duration::MAX)).unwrap_or_default()) => {}
        }
        self.wanted.mark_changed();
    }

    async fn act(&mut self, step: Step, pod: &mut Option<Arc<Pod>>) -> anyhow::Result<()> {
        match step {
            Step::Add { uid, ports } => self.add(uid, &ports).await,
            Step::Publish(status) => self.publish(*status, pod).await,
            Step::Remove { grace } => {
                tracing::info!("{}: ending it within {grace:?}", self.name);
                self.guest.remove(&self.name, grace).await?;
                self.local = Local::default();
                Ok(())
            }
            Step::Forget { uid } => self.forget(uid).await,
            Step::Wait(_) | Step::End => Ok(()),
        }
    }

    async fn add(&mut self, uid: String, ports: &Ports) -> anyhow::Result<()> {
        tracing::info!("{}: making it at {} on {ports:?}", self.name, self.place.v4);
        self.local.holds = Some(uid);
        let made = self.guest.add(&self.name, (&self.place.v4, &self.place.v6), ports).await;
        self.local.serving = made.is_ok();
        self.local.failure = made.as_ref().err().map(|error| format!("{error:#}"));
        made
    }

    /// Writes the status, and goes on from what the API made of it rather than wait for the watch to tell.
    async fn publish(&mut self, want: PodStatus, pod: &mut Option<Arc<Pod>>) -> anyhow::Result<()> {
        let Some(present) = pod.as_ref() else { return Ok(()) };
        tracing::info!("{}: now {}", self.name, summary(&want));
        // With its UID, or a namesake would get the status of the one before.
        let patch = Patch::Merge(json!({"metadata": {"uid": present.uid()}, "status": want}));
        let params = PatchParams::default();
        let result = within(self.api.patch_status(&self.pod_name, &params, &patch)).await?;
        match gone(result).context("cannot write its status")? {
            Some(answer) => {
                self.local.told = answer.status.clone().map(|kept| (want, kept));
                *pod = Some(Arc::new(answer));
            }
            // The watch will tell; until then nothing else is known.
            None => sleep(FIRST_PAUSE).await,
        }
        Ok(())
    }

    async fn forget(&mut self, uid: String) -> anyhow::Result<()> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
            ..DeleteParams::default().grace_period(0)
        };
        let result = within(self.api.delete(&self.pod_name, &params)).await?;
        gone(result).context("cannot have the API forget it")?;
        // Until the watch has told, this Pod looks like one that is still to be forgotten.
        let told = timeout(LIMIT, self.wanted.changed()).await;
        self.wanted.mark_changed();
        told.context("the API forgot it but the watch does not tell")?.ok();
        Ok(())
    }
}

fn summary(status: &PodStatus) -> String {
    let conditions = status.conditions.iter().flatten();
    let ready = conditions.filter(|condition| condition.type_ == "Ready" && condition.status == "True");
    let phase = status.phase.as_deref().unwrap_or("unknown");
    format!("{phase}, {}", if ready.count() > 0 { "ready" } else { "not ready" })
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> anyhow::Result<kube::Result<T>> {
    timeout(LIMIT, request).await.with_context(|| format!("the API did not answer within {LIMIT:?}"))
}

/// Not there, or another by the same name: None.
fn gone<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
        other => other.map(Some),
    }
}
