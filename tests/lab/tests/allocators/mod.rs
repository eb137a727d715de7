//! Allocators in this process, and the cluster as they and the test see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use kvip::config::{AddressRange, LoadBalancers, Pool};
use kvip::ipam::{
    Allocator, CLASS, Claims, Kind, Kinds, Known, KubeStore, Request, Reserved, Step, View as StepView,
    Wanted, Wish, granted, next_step, object, spawn,
};
use kvip::model::{Family, ObjectKey, Protocol};
use kvip::snapshot::{FamilyPolicy, Map};
use kvip_lab::alone::ApiServer;
use kvip_lab::command::wait_for;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
const LIMIT: Duration = Duration::from_secs(110);
/// How long a freed address rests here.
const REST: Duration = Duration::from_secs(2);

/// What an allocator sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Everything, soon.
    Fresh,
    /// Services, and of claims none.
    NoClaims,
    /// A cluster without IPAddresses.
    LeasesAlone,
}

/// The cluster at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    pub requests: Map<ObjectKey, Request>,
    pub claims: Claims,
    pub ip_addresses_served: bool,
}

impl Truth {
    /// How many of the Services whose names begin so have an address.
    pub fn served(&self, prefix: &str) -> usize {
        let requests = self.requests.values().filter(|request| request.service.name.starts_with(prefix));
        requests.filter(|request| !granted(request, &self.claims).addresses.is_empty()).count()
    }

    /// Whether no allocator that sees this has anything to do for a Service.
    fn is_settled(&self) -> bool {
        let known = Known { claims: self.claims.clone(), foreign: BTreeSet::new() };
        self.requests.values().all(|request| {
            let kinds = Kinds::of(self.ip_addresses_served, self.claims.any_lease());
            let reserved = &Reserved::default();
            let view = StepView { own: &self.claims, known: &known, reserved, kinds, rest: 0, now: 0 };
            matches!(next_step(request, view), Step::Done(_))
        })
    }
}

/// The cluster.
pub struct Cluster {
    runtime: Runtime,
    admin: Client,
    allocator: String,
}

/// One allocator with its watch.
pub struct Node {
    allocator: Allocator,
    _feed: JoinSet<()>,
}

impl Node {
    /// What it says to Services whose names begin so.
    pub fn refusals(&self, prefix: &str) -> Vec<String> {
        let outcomes = self.allocator.outcomes.borrow().clone();
        let ours = outcomes.iter().filter(|(key, _)| key.name.starts_with(prefix));
        ours.flat_map(|(_, outcome)| &outcome.refusals).map(ToString::to_string).collect()
    }
}

impl Cluster {
    /// Applies the package's roles, and keeps the kubeconfig of each in the state folder.
    pub fn new(server: &ApiServer) -> Result<Self> {
        for role in ["member", "allocator"] {
            std::fs::write(server.layout().state.join(format!("{role}.kubeconfig")), server.enroll(role)?)?;
        }
        let allocator = std::fs::read_to_string(server.layout().state.join("allocator.kubeconfig"))?;
        let admin = std::fs::read_to_string(kvip_lab::control::admin_kubeconfig(server.layout()))?;
        let runtime = Runtime::new()?;
        let admin = runtime.block_on(client(&admin))?;
        Ok(Self { runtime, admin, allocator })
    }

    /// Whether the API server knows of IPAddresses.
    pub fn serves_ip_addresses(&self) -> Result<bool> {
        Ok(self.runtime.block_on(serves_ip_addresses(&self.admin))?)
    }

    /// Starts an allocator on each node.
    pub fn start(&self, views: [View; 3], takeover_after: Duration) -> Result<Vec<Node>> {
        self.runtime.block_on(async {
            let mut nodes = Vec::new();
            for (name, view) in NODES.into_iter().zip(views) {
                let client = client(&self.allocator).await?;
                let store = match view {
                    View::LeasesAlone => KubeStore::with_leases_alone(client, LoadBalancers::Class),
                    View::Fresh | View::NoClaims => KubeStore::new(client, LoadBalancers::Class),
                };
                let (out, wanted) = watch::channel(None);
                let mut feed = JoinSet::new();
                feed.spawn(tell(self.admin.clone(), view, takeover_after, out));
                let allocator = spawn(name, Arc::new(store), wanted, Arc::new(|| true), Arc::new(now));
                nodes.push(Node { allocator, _feed: feed });
            }
            Ok(nodes)
        })
    }

    /// Makes a Service of kvip's class that wants an address of `pool`, or this very one.
    pub fn service(
        &self,
        name: &str,
        pool: &str,
        address: Option<&str>,
        share: Option<&str>,
        port: u16,
    ) -> Result<()> {
        let object = serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {"kvip.io/pool": pool, "kvip.io/share-key": share.unwrap_or("")}},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": CLASS, "loadBalancerIP": address,
                "allocateLoadBalancerNodePorts": false, "ports": [{"port": port}],
            },
        }))?;
        let api: Api<Service> = Api::namespaced(self.admin.clone(), "default");
        self.runtime.block_on(api.create(&PostParams::default(), &object))?;
        Ok(())
    }

    /// Gives a Service these finalizers, which keep it when it is deleted; an error when there is no such Service.
    pub fn finalizers(&self, name: &str, finalizers: &[&str]) -> Result<()> {
        let api: Api<Service> = Api::namespaced(self.admin.clone(), "default");
        let patch = json!({"metadata": {"finalizers": finalizers}});
        self.runtime.block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)))?;
        Ok(())
    }

    /// Deletes the Services whose names begin so.
    pub fn delete(&self, prefix: &str) -> Result<()> {
        let api: Api<Service> = Api::namespaced(self.admin.clone(), "default");
        self.runtime.block_on(async {
            let all = api.list_metadata(&ListParams::default()).await?;
            let names = all.items.iter().map(ResourceExt::name_any).filter(|name| name.starts_with(prefix));
            let names: Vec<String> = names.collect();
            let params = DeleteParams::default();
            try_join_all(names.iter().map(|name| api.delete(name, &params))).await?;
            Ok(())
        })
    }

    /// Deletes all Leases of kvip's, as an admin does.
    pub fn delete_leases(&self) -> Result<()> {
        let api: Api<Lease> = Api::namespaced(self.admin.clone(), object::NAMESPACE);
        let ours = ListParams::default().labels(&object::selector());
        self.runtime.block_on(api.delete_collection(&DeleteParams::default(), &ours))?;
        Ok(())
    }

    /// Patches the status of a Service as the allocator; what the API server said against it.
    pub fn patch_status(&self, service: &str, patch: &serde_json::Value) -> Result<Option<String>> {
        self.runtime.block_on(async {
            let api: Api<Service> = Api::namespaced(client(&self.allocator).await?, "default");
            let done = api.patch_status(service, &PatchParams::default(), &Patch::Merge(patch)).await;
            Ok(done.err().map(|error| error.to_string()))
        })
    }

    /// The cluster now.
    pub fn now(&self) -> Result<Truth> {
        Ok(self.runtime.block_on(truth(&self.admin))?)
    }

    /// Waits until `ask` of the cluster gives something.
    pub fn wait<T>(&self, what: &str, ask: impl Fn(&Truth) -> Option<T>) -> Result<T> {
        let last = std::cell::RefCell::new(Truth::default());
        let found = wait_for(what, LIMIT, || {
            *last.borrow_mut() = self.now().ok()?;
            ask(&last.borrow())
        });
        found.with_context(|| format!("{:#?}", last.borrow().claims.objects().collect::<Vec<_>>()))
    }

    /// The cluster when nothing is left to do, and nothing changed for two seconds.
    pub fn at_rest(&self) -> Result<Truth> {
        let mut last = (self.now()?, Instant::now());
        wait_for("an end of all allocation", LIMIT, || {
            let now = self.now().ok()?;
            if now != last.0 {
                last = (now, Instant::now());
            }
            let still = last.1.elapsed() > Duration::from_secs(2);
            (still && last.0.is_settled()).then(|| last.0.clone())
        })
    }

    /// The IPAddresses that are not kvip's, with their versions.
    pub fn foreign(&self) -> Result<BTreeMap<String, String>> {
        let api: Api<IPAddress> = Api::all(self.admin.clone());
        let list = self.runtime.block_on(api.list(&ListParams::default()))?;
        let foreign = list.items.iter().filter(|object| object::from_ip_address(object).is_none());
        let version = |object: &IPAddress| object.resource_version().unwrap_or_default();
        Ok(foreign.map(|object| (object.name_any(), version(object))).collect())
    }
}

async fn client(kubeconfig: &str) -> Result<Client> {
    let file = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn serves_ip_addresses(client: &Client) -> Result<bool, kube::Error> {
    let list = client.list_api_group_resources("networking.k8s.io/v1").await?;
    Ok(list.resources.iter().any(|resource| resource.name == "ipaddresses"))
}

/// Stands in for the watches: tells an allocator what there is, each fifth of a second.
async fn tell(client: Client, view: View, takeover_after: Duration, out: watch::Sender<Option<Arc<Wanted>>>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let Ok(truth) = truth(&client).await else { continue };
        let ip_addresses_served = truth.ip_addresses_served && view != View::LeasesAlone;
        let wanted = Wanted {
            requests: truth.requests,
            claims: seen(truth.claims, view),
            reserved: Arc::default(),
            allocators: NODES.map(str::to_owned).into(),
            ip_addresses_served,
            rest: REST,
            takeover_after,
        };
        let wanted = Some(Arc::new(wanted));
        out.send_if_modified(|told| {
            let news = *told != wanted;
            told.clone_from(&wanted);
            news
        });
    }
}

/// The claims as `view` shows them.
fn seen(claims: Claims, view: View) -> Claims {
    match view {
        View::Fresh => claims,
        View::NoClaims => Claims::default(),
        View::LeasesAlone => claims.objects().filter(|claim| claim.kind == Kind::Lease).cloned().collect(),
    }
}

async fn truth(client: &Client) -> Result<Truth, kube::Error> {
    let ours = ListParams::default().labels(&object::selector());
    let ip_addresses_served = serves_ip_addresses(client).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), object::NAMESPACE);
    let mut claims: Claims = leases.list(&ours).await?.items.iter().filter_map(object::from_lease).collect();
    if ip_addresses_served {
        let list = Api::<IPAddress>::all(client.clone()).list(&ours).await?;
        for claim in list.items.iter().filter_map(object::from_ip_address) {
            claims.insert(claim);
        }
    }
    let services = Api::<Service>::namespaced(client.clone(), "default").list(&ListParams::default()).await?;
    let requests = services.items.iter().filter_map(request);
    let requests = requests.map(|request| (request.service.clone(), Arc::new(request))).collect();
    Ok(Truth { requests, claims, ip_addresses_served })
}

fn request(object: &Service) -> Option<Request> {
    if object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let spec = object.spec.as_ref()?;
    spec.load_balancer_class.as_ref().filter(|class| *class == CLASS)?;
    let said = |key: &str| object.annotations().get(key).filter(|value| !value.is_empty()).cloned();
    let named = spec.load_balancer_ip.as_ref().and_then(|address| address.parse().ok());
    let wish = named.map_or_else(
        || Wish::Pool(said("kvip.io/pool").unwrap_or_default()),
        |one| Wish::Addresses(vec![one]),
    );
    let ports = spec.ports.iter().flatten().filter_map(|port| u16::try_from(port.port).ok());
    Some(Request {
        service: ObjectKey::new("default", object.name_any()),
        uid: object.uid()?,
        families: vec![Family::V4],
        policy: FamilyPolicy::SingleStack,
        wish,
        pools: pools(),
        nameable: Vec::new(),
        share_key: said("kvip.io/share-key").map(|key| format!("default/{key}")),
        ports: ports.map(|port| (Protocol::Tcp, port)).collect(),
    })
}

fn pools() -> Vec<Arc<Pool>> {
    let pool = |name: &str, first: [u8; 4], last: [u8; 4]| {
        Pool::standard(name, AddressRange::new(first.into(), last.into()).into_iter().collect())
    };
    let pools = [
        pool("lan", [10, 87, 2, 100], [10, 87, 2, 119]),
        pool("other", [10, 87, 3, 1], [10, 87, 3, 15]),
        pool("third", [10, 87, 3, 80], [10, 87, 3, 99]),
        pool("fourth", [10, 87, 3, 100], [10, 87, 3, 109]),
        pool("fifth", [10, 87, 3, 120], [10, 87, 3, 121]),
    ];
    pools.map(Arc::new).into()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or_default()
}
