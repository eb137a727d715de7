//! Claims in a real cluster, by its API.
//!
//! Owns the calls and their limit. Reads are never from a cache: they name no resourceVersion.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use ::kube::{Client, Resource};
use futures::TryFutureExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::networking::v1::IPAddress;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::claim::{Claim, Kind};
use super::object;
use super::step::Kinds;
use super::store::{Asks, ClaimStore, Found, LiveService, Look, StoreError};
use crate::config::LoadBalancers;
use crate::model::ObjectKey;
use crate::snapshot::read::Read;

/// The loadBalancerClass of Services that ask kvip for an address.
pub const CLASS: &str = "kvip.io/kvip";
/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
const GROUP: &str = "networking.k8s.io/v1";

/// A cluster.
pub struct KubeStore {
    /// `None`: act as where IPAddresses are not served.
    ip_addresses: Option<Api<IPAddress>>,
    leases: Api<Lease>,
    client: Client,
    asking: LoadBalancers,
    /// IPAddresses were seen to be served. They do not go away but by a downgrade, which the next failed call tells.
    served: AtomicBool,
}

impl KubeStore {
    /// The cluster of `client`, in which `asking` says which Services ask for addresses.
    pub fn new(client: Client, asking: LoadBalancers) -> Self {
        Self { ip_addresses: Some(Api::all(client.clone())), ..Self::with_leases_alone(client, asking) }
    }

    /// As [`KubeStore::new`], but as if the cluster served no IPAddresses: what a kvip does that asked before the
    /// cluster was upgraded.
    pub fn with_leases_alone(client: Client, asking: LoadBalancers) -> Self {
        Self {
            ip_addresses: None,
            leases: Api::namespaced(client.clone(), object::NAMESPACE),
            client,
            asking,
            served: AtomicBool::new(false),
        }
    }

    /// The IPAddresses, where they are served.
    async fn ip_addresses(&self) -> Result<Option<&Api<IPAddress>>, StoreError> {
        let Some(api) = &self.ip_addresses else { return Ok(None) };
        if !self.served.load(Ordering::Relaxed) {
            let list = call("ask what the API serves", self.client.list_api_group_resources(GROUP)).await?;
            self.served.store(list.resources.iter().any(|one| one.name == "ipaddresses"), Ordering::Relaxed);
        }
        Ok(self.served.load(Ordering::Relaxed).then_some(api))
    }

    /// Says what became of a call about an IPAddress; a server that has none of them is asked anew what it serves.
    fn heard<T>(&self, kind: Kind, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if kind == Kind::IpAddress && matches!(result, Err(StoreError::Failed { .. })) {
            self.served.store(false, Ordering::Relaxed);
        }
        result
    }

    async fn leases_of(&self, selector: &str, limit: Option<u32>) -> Result<Vec<Claim>, StoreError> {
        let params = ListParams { limit, ..ListParams::default().labels(selector) };
        let list = call("list leases in kvip-system", self.leases.list(&params)).await?;
        Ok(list.items.iter().filter_map(object::from_lease).collect())
    }
}

impl ClaimStore for KubeStore {
    async fn look(&self, uid: &str) -> Result<Look, StoreError> {
        let selector = object::selector_of(uid);
        let Some(api) = self.ip_addresses().await? else {
            return Ok(Look {
                claims: self.leases_of(&selector, None).await?,
                kinds: Kinds::of(false, false),
            });
        };
        let params = ListParams::default().labels(&selector);
        let addresses = call("list ipaddresses", api.list(&params));
        let any = object::selector();
        let (addresses, leases) = tokio::try_join!(addresses, self.leases_of(&any, Some(1)))?;
        let mut claims: Vec<Claim> = addresses.items.iter().filter_map(object::from_ip_address).collect();
        if !leases.is_empty() {
            claims.extend(self.leases_of(&selector, None).await?);
        }
        Ok(Look { claims, kinds: Kinds::of(true, !leases.is_empty()) })
    }

    async fn get(&self, address: IpAddr, kind: Kind) -> Result<Found, StoreError> {
        let name = object::name(address, kind);
        match kind {
            Kind::Lease => get(&self.leases, &name, object::from_lease).await,
            Kind::IpAddress => match self.ip_addresses().await? {
                Some(api) => get(api, &name, object::from_ip_address).await,
                None => Ok(Found::Nothing),
            },
        }
    }

    async fn create(&self, claim: &Claim) -> Result<(), StoreError> {
        let result = match claim.kind {
            Kind::Lease => create(&self.leases, &object::to_lease(claim)).await,
            Kind::IpAddress => create(&Api::all(self.client.clone()), &object::to_ip_address(claim)).await,
        };
        self.heard(claim.kind, result)
    }

    async fn change(&self, before: &Claim, after: &Claim) -> Result<(), StoreError> {
        let name = object::name(before.address, before.kind);
        let patch = object::patch(before, after);
        let result = match before.kind {
            Kind::Lease => change(&self.leases, &name, patch).await,
            Kind::IpAddress => change(&Api::<IPAddress>::all(self.client.clone()), &name, patch).await,
        };
        self.heard(before.kind, result)
    }

    async fn delete(&self, claim: &Claim) -> Result<(), StoreError> {
        let name = object::name(claim.address, claim.kind);
        let result = match claim.kind {
            Kind::Lease => delete(&self.leases, &name, claim).await,
            Kind::IpAddress => delete(&Api::<IPAddress>::all(self.client.clone()), &name, claim).await,
        };
        self.heard(claim.kind, result)
    }

    async fn service(&self, key: &ObjectKey) -> Result<Option<LiveService>, StoreError> {
        let api: Api<Read<Service>> = Api::namespaced(self.client.clone(), &key.namespace);
        let attempt = format!("get service {key}");
        let Some(read) = call(&attempt, api.get_opt(&key.name)).await? else { return Ok(None) };
        let object = read.object.map_err(|reason| StoreError::Failed { attempt, reason })?;
        Ok(Some(live(object, self.asking)))
    }
}

/// What the API has of a Service. One that is being deleted asks for nothing, however long a finalizer keeps it.
fn live(object: Service, asking: LoadBalancers) -> LiveService {
    let spec = object.spec.filter(|_| object.metadata.deletion_timestamp.is_none());
    LiveService {
        asks: spec.map_or(Asks::No, |spec| asks(&spec, asking)),
        uid: object.metadata.uid.unwrap_or_default(),
    }
}

/// Whether a Service asks kvip for an address out of a pool, where `asking` says which do.
pub fn asks(spec: &ServiceSpec, asking: LoadBalancers) -> Asks {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return Asks::No;
    }
    match (spec.load_balancer_class.as_deref(), asking) {
        (Some(class), _) if class != CLASS => Asks::No,
        (None, LoadBalancers::Default) | (Some(_), LoadBalancers::Default | LoadBalancers::Class) => {
            Asks::Yes
        }
        (None, LoadBalancers::Class) | (_, LoadBalancers::Off) => Asks::NotBySettings,
    }
}

async fn get<K>(api: &Api<K>, name: &str, read: impl Fn(&K) -> Option<Claim>) -> Result<Found, StoreError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let object = call(&format!("get {name}"), api.get_opt(name)).await?;
    Ok(object.map_or(Found::Nothing, |object| read(&object).map_or(Found::Foreign, Found::Ours)))
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), StoreError>
where
    K: Clone + DeserializeOwned + Debug + Serialize + Resource,
{
    let name = object.meta().name.as_deref().unwrap_or_default();
    call(&format!("create {name}"), api.create(&PostParams::default(), object)).await.map(drop)
}

async fn change<K>(api: &Api<K>, name: &str, patch: Value) -> Result<(), StoreError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = PatchParams::default();
    call(&format!("patch {name}"), api.patch(name, &params, &Patch::Merge(patch))).await.map(drop)
}

async fn delete<K>(api: &Api<K>, name: &str, claim: &Claim) -> Result<(), StoreError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let preconditions = Preconditions {
        uid: Some(claim.version.uid.clone()),
        resource_version: Some(claim.version.resource.clone()),
    };
    let params = DeleteParams::default().preconditions(preconditions);
    call(&format!("delete {name}"), api.delete(name, &params)).await.map(drop)
}

async fn call<T>(
    attempt: &str,
    answer: impl Future<Output = Result<T, ::kube::Error>>,
) -> Result<T, StoreError> {
    let failed = |reason: String| StoreError::Failed { attempt: attempt.to_owned(), reason };
    let answer = answer.map_err(|error| match &error {
        ::kube::Error::Api(status) if status.is_already_exists() => StoreError::Exists,
        ::kube::Error::Api(status) if status.is_conflict() || status.is_not_found() => StoreError::Changed,
        ::kube::Error::Api(status) => failed(status.message.clone()),
        other => failed(other.to_string()),
    });
    let late = || failed(format!("no answer in {} s", CALL_LIMIT.as_secs()));
    timeout(CALL_LIMIT, answer).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Service of that spec asks where `load_balancers` is off, class and default; `deleted` is more metadata.
    fn check(deleted: &str, spec: &str, want: [Asks; 3]) {
        let text = format!(r#"{{"metadata": {{"uid": "u1"{deleted}}}, "spec": {{{spec}}}}}"#);
        let object: Service = serde_json::from_str(&text).unwrap();
        let said = [LoadBalancers::Off, LoadBalancers::Class, LoadBalancers::Default].map(|asking| {
            let LiveService { uid, asks } = live(object.clone(), asking);
            assert_eq!(uid, "u1");
            asks
        });
        assert_eq!(said, want, "{text}");
    }

    const OURS: &str = r#""type": "LoadBalancer", "loadBalancerClass": "kvip.io/kvip""#;
    const CLASSLESS: &str = r#""type": "LoadBalancer""#;

    #[test]
    fn what_settings_alone_keep_from_asking_is_told_from_what_asks_nowhere() {
        check("", OURS, [Asks::NotBySettings, Asks::Yes, Asks::Yes]);
        check("", CLASSLESS, [Asks::NotBySettings, Asks::NotBySettings, Asks::Yes]);
        check("", r#""type": "LoadBalancer", "loadBalancerClass": "example.com/lb""#, [Asks::No; 3]);
        check("", r#""type": "NodePort""#, [Asks::No; 3]);
        check("", "", [Asks::No; 3]);
    }

    #[test]
    fn a_service_that_is_being_deleted_asks_for_nothing() {
        let deleted = r#", "deletionTimestamp": "2026-01-05T10:00:00Z", "finalizers": ["example.com/held"]"#;
        for spec in [OURS, CLASSLESS] {
            check(deleted, spec, [Asks::No; 3]);
        }
    }
}
