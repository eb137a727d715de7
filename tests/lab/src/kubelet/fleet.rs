//! The Pods of one node: one worker for each name that the API or the machine knows.
//!
//! Owns the workers and the pods' addresses. Decides nothing about a single Pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::{mpsc, watch};

use super::addresses::Addresses;
use super::decide::Local;
use super::guest::{Guest, Look};
use super::status::Place;
use super::worker::Worker;
use crate::layout::NodeSpec;

/// The workers of one node.
pub struct Fleet {
    client: Client,
    guest: Guest,
    spec: &'static NodeSpec,
    addresses: Addresses,
    looks: watch::Receiver<Look>,
    /// By the name in the machine. Each is told what the API has by that name.
    workers: BTreeMap<String, watch::Sender<Option<Arc<Pod>>>>,
    ended: mpsc::UnboundedSender<String>,
}

impl Fleet {
    /// No workers yet; each that ends says so through `ended`, for [`Self::bury`].
    pub fn new(
        client: Client,
        guest: Guest,
        spec: &'static NodeSpec,
        looks: watch::Receiver<Look>,
        ended: mpsc::UnboundedSender<String>,
    ) -> Self {
        let addresses = Addresses::new(spec);
        Self { client, guest, spec, addresses, looks, workers: BTreeMap::new(), ended }
    }

    /// Tells each worker what the API has now, and hires one for each Pod that has none: one that is new, or one
    /// that is in the machine though the API does not know it.
    pub fn reconcile(&mut self, pods: &[Arc<Pod>]) {
        let look = self.looks.borrow().clone();
        let wanted: BTreeMap<String, &Arc<Pod>> =
            pods.iter().map(|pod| (machine_name(&namespace(pod), &pod.name_any()), pod)).collect();
        for (name, address) in &look.pods {
            self.addresses.keep(name, *address);
        }
        let names: BTreeSet<&String> =
            wanted.keys().chain(look.pods.keys()).chain(self.workers.keys()).collect();
        let names: Vec<String> = names.into_iter().cloned().collect();
        for name in names {
            let pod = wanted.get(&name).map(|pod| Arc::clone(pod));
            match self.workers.get(&name) {
                Some(worker) => tell(worker, pod),
                None => self.hire(&name, pod.as_ref(), &look),
            }
        }
    }

    /// A worker has ended. The next reconciliation hires another if there is work for one after all.
    pub fn bury(&mut self, name: &str) {
        self.workers.remove(name);
        self.addresses.free(name);
    }

    fn hire(&mut self, name: &str, pod: Option<&Arc<Pod>>, look: &Look) {
        let known = pod.and_then(|pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok());
        if let Some(address) = known {
            self.addresses.keep(name, address);
        }
        let Some((v4, v6)) = self.addresses.take(name) else {
            tracing::warn!("{name}: no address is free in {}", self.spec.pod4);
            return;
        };
        let (namespace, pod_name) = api_name(name);
        let (sender, wanted) = watch::channel(pod.cloned());
        let worker = Worker {
            name: name.to_owned(),
            pod_name,
            api: Api::namespaced(self.client.clone(), &namespace),
            guest: self.guest.clone(),
            place: Place { spec: self.spec, v4: v4.to_string(), v6: v6.to_string() },
            local: Local::found(pod.map(Arc::as_ref), look.pods.get(name).copied()),
            wanted,
            looks: self.looks.clone(),
        };
        let (name, ended) = (name.to_owned(), self.ended.clone());
        self.workers.insert(name.clone(), sender);
        tokio::spawn(async move {
            worker.run().await;
            // There is nobody to tell once the fleet is gone.
            let _ = ended.send(name);
        });
    }
}

fn tell(worker: &watch::Sender<Option<Arc<Pod>>>, pod: Option<Arc<Pod>>) {
    let version = |pod: &Option<Arc<Pod>>| pod.as_ref().map(|pod| (pod.uid(), pod.resource_version()));
    worker.send_if_modified(|told| {
        let news = version(told) != version(&pod);
        if news {
            *told = pod;
        }
        news
    });
}

fn namespace(pod: &Pod) -> String {
    pod.namespace().unwrap_or_else(|| "default".to_owned())
}

/// What a Pod is called in the machine: people see it there, so in the default namespace it is just its name. An
/// underscore is in neither part's alphabet.
fn machine_name(namespace: &str, name: &str) -> String {
    if namespace == "default" { name.to_owned() } else { format!("{namespace}_{name}") }
}

/// The namespace and name of what is called so in the machine.
fn api_name(name: &str) -> (String, String) {
    let (namespace, name) = name.split_once('_').unwrap_or(("default", name));
    (namespace.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_machine_lead_back_to_the_pod() {
        for (namespace, name, there) in
            [("default", "web-1", "web-1"), ("shop", "a.b", "shop_a.b"), ("a", "b", "a_b")]
        {
            assert_eq!(machine_name(namespace, name), there);
            assert_eq!(api_name(there), (namespace.to_owned(), name.to_owned()));
        }
    }
}
