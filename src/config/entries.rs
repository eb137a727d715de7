//! Reads the lists of tables: pools, tenants, groups and static VIPs.
//!
//! A table with something wrong in it is left out whole, so that a misspelt restriction never widens what it meant to
//! narrow; the other tables of its list stay. What they must not be to each other is in `cross`.

use figment::value::{Dict, Value};

use super::error::Problem;
use super::keys::{self, Table};
use super::layer::Layer;
use super::path::KeyPath;
use super::raw::{self, Merged, Raw, Tables};
use super::values_tables::{
    ANNOTATIONS_WANTED, BACKENDS_WANTED, NAMESPACES_WANTED, POOLS_WANTED, RANGES_WANTED,
};
use super::{Group, Pool, Static, Tenant, Vrrp, values, values_tables};
use crate::model::Protocol;

/// A table that was read, and where it stands.
#[derive(Debug)]
pub(super) struct Row<T> {
    /// `pools.0`, as written.
    pub(super) path: KeyPath,
    /// The place of each key that it sets, by the key's name.
    pub(super) origins: Vec<(&'static str, String)>,
    /// What it says.
    pub(super) value: T,
}

/// The pools.
pub(super) fn pools(merged: &mut Merged) -> Vec<Row<Pool>> {
    rows(merged, "pools", pool).0
}

/// The groups; what they leave out is as in `base`, the settings of `[vrrp]`.
pub(super) fn groups(merged: &mut Merged, base: &Vrrp) -> Vec<Row<Group>> {
    rows(merged, "groups", |entry| group(entry, base)).0
}

/// The static VIPs.
pub(super) fn statics(merged: &mut Merged) -> Vec<Row<Static>> {
    rows(merged, "static", static_vip).0
}

/// The tenants. When one cannot be understood, one that is nobody takes its place: without any tenant all namespaces may
/// ask for everything, and a mistake must not open what was closed.
pub(super) fn tenants(merged: &mut Merged) -> (Vec<Row<Tenant>>, Option<Tenant>) {
    let (rows, all_read) = rows(merged, "tenants", tenant);
    (rows, (!all_read).then(Tenant::nobody))
}

/// The tables of a list that are right, and whether all are.
fn rows<T>(
    merged: &mut Merged,
    name: &'static str,
    read: impl Fn(&mut Entry) -> Option<T>,
) -> (Vec<Row<T>>, bool) {
    let table = keys::table(name).expect("the table is known");
    let Some(Tables { layer, list, is_list }) = merged.tables(name) else { return (Vec::new(), true) };
    let mut rows = Vec::new();
    for (index, written) in list.iter().enumerate() {
        let path = KeyPath::of(name).with(index);
        let Value::Dict(_, dict) = written else {
            let text = format!("a table is wanted, written under [[{name}]]");
            merged.problems.push(layer.problem(&path, Some(layer.render(written)), text));
            continue;
        };
        let mut entry = Entry::new(table, layer, dict, path);
        let value = read(&mut entry);
        let Entry { path, problems, origins, .. } = entry;
        if let (Some(value), true) = (value, problems.is_empty()) {
            rows.push(Row { path, origins, value });
        }
        merged.problems.extend(problems);
    }
    let all_read = is_list && rows.len() == list.len();
    (rows, all_read)
}

fn pool(entry: &mut Entry) -> Option<Pool> {
    let name = entry.value("name", values_tables::label);
    let addresses = entry.some("addresses", RANGES_WANTED, values_tables::address_range);
    let auto_assign = entry.value("auto_assign", values::truth);
    let priority = entry.value("priority", values_tables::priority);
    let namespaces = entry.list("namespaces", NAMESPACES_WANTED, values_tables::name_pattern);
    let namespace_labels = entry.value("namespace_labels", values::selector);
    let service_labels = entry.value("service_labels", values::selector);
    let avoid_0_255 = entry.value("avoid_0_255", values::truth);
    Some(Pool {
        name: name?,
        addresses,
        auto_assign: auto_assign?,
        priority: priority?,
        namespaces,
        namespace_labels: namespace_labels?,
        service_labels: service_labels?,
        avoid_0_255: avoid_0_255?,
    })
}

fn tenant(entry: &mut Entry) -> Option<Tenant> {
    let namespaces = entry.list("namespaces", NAMESPACES_WANTED, values_tables::name_pattern);
    let namespace_labels = entry.value("namespace_labels", values::selector);
    let pools = entry.list("pools", POOLS_WANTED, values_tables::name_pattern);
    let addresses = entry.list("addresses", RANGES_WANTED, values_tables::address_range);
    let annotations = entry
        .dict
        .contains_key("annotations")
        .then(|| entry.list("annotations", ANNOTATIONS_WANTED, values_tables::annotation_pattern));
    Some(Tenant { namespaces, namespace_labels: namespace_labels?, pools, addresses, annotations })
}

fn group(entry: &mut Entry, base: &Vrrp) -> Option<Group> {
    let name = entry.value("name", values_tables::label);
    let addresses = entry.some("addresses", RANGES_WANTED, values_tables::address_range);
    let vrid = entry.value("vrid", values::vrid);
    let interface = entry.optional("interface", values::interface);
    let advert = entry.optional("advert", values::advert);
    let transport = entry.optional("transport", values::transport);
    let members = entry.optional("members", values::selector);
    let excluded_too = entry.optional("excluded_too", values::truth);
    let gone_after = entry.optional("gone_after", values::gone_after);
    let vrrp = Vrrp {
        vrid: vrid?,
        advert: advert.unwrap_or(base.advert),
        transport: transport.unwrap_or(base.transport),
        members: members.unwrap_or_else(|| base.members.clone()),
        excluded_too: excluded_too.unwrap_or(base.excluded_too),
        gone_after: gone_after.unwrap_or(base.gone_after),
    };
    Some(Group { name: name?, addresses, vrrp, interface })
}

fn static_vip(entry: &mut Entry) -> Option<Static> {
    let name = entry.optional("name", values_tables::title);
    let vip = entry.value("vip", values_tables::vip);
    let protocol = entry.value("protocol", values_tables::protocol);
    let port = entry.value("port", values::port);
    let backends = entry.some("backends", BACKENDS_WANTED, values_tables::backend);
    let check = entry.optional("check", values::truth);
    let (vip, protocol, port) = (vip?, protocol?, port?);
    let name = name.unwrap_or_else(|| Static::default_name(vip, protocol, port));
    let check = check.unwrap_or(protocol == Protocol::Tcp);
    Some(Static { name, vip, protocol, port, backends, check })
}

/// One table while it is read.
struct Entry<'l> {
    table: &'static Table,
    layer: &'l Layer,
    dict: &'l Dict,
    path: KeyPath,
    problems: Vec<Problem>,
    origins: Vec<(&'static str, String)>,
}

impl<'l> Entry<'l> {
    fn new(table: &'static Table, layer: &'l Layer, dict: &'l Dict, path: KeyPath) -> Self {
        let unknown = dict.keys().filter(|key| table.key(key).is_none());
        let problems = unknown.map(|key| layer.unknown(&path.with(key), table.nearest(key))).collect();
        Self { table, layer, dict, path, problems, origins: Vec::new() }
    }

    /// A key that is given or has a default; reports one that has neither.
    fn value<T>(&mut self, name: &'static str, parse: impl Fn(Raw) -> Result<T, String>) -> Option<T> {
        if self.dict.contains_key(name) {
            return self.optional(name, parse);
        }
        let Some(default) = self.default(name) else {
            self.missing(name);
            return None;
        };
        Some(parse(Raw { value: &default, loose: true }).expect("a default is a good value"))
    }

    /// A key that may be left out.
    fn optional<T>(&mut self, name: &'static str, parse: impl Fn(Raw) -> Result<T, String>) -> Option<T> {
        let value = self.dict.get(name)?;
        let path = self.path.with(name);
        match parse(Raw { value, loose: self.layer.is_loose() }) {
            Ok(parsed) => {
                self.origins.push((name, self.layer.place(&path)));
                Some(parsed)
            }
            Err(text) => {
                self.problems.push(self.layer.problem(&path, Some(self.layer.render(value)), text));
                None
            }
        }
    }

    /// The good elements of a list that may be left out.
    fn list<T>(
        &mut self,
        name: &'static str,
        wanted: &str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(value) = self.dict.get(name) else { return Vec::new() };
        let path = self.path.with(name);
        let (good, bad) = raw::list(self.layer, &path, value, wanted, parse);
        self.problems.extend(bad);
        self.origins.push((name, self.layer.place(&path)));
        good
    }

    /// A list that must be given and hold something.
    fn some<T>(
        &mut self,
        name: &'static str,
        wanted: &str,
        parse: impl Fn(Raw) -> Result<T, String>,
    ) -> Vec<T> {
        match self.dict.get(name) {
            None => self.missing(name),
            Some(Value::Array(_, list)) if list.is_empty() => {
                let path = self.path.with(name);
                self.problems.push(self.layer.problem(&path, Some("[]".into()), wanted.to_owned()));
            }
            Some(_) => {}
        }
        self.list(name, wanted, parse)
    }

    fn default(&self, name: &str) -> Option<Value> {
        self.table.key(name)?.default.map(Value::from)
    }

    fn missing(&mut self, name: &str) {
        let text = format!("{name} is not set; each [[{}]] needs it", self.table.name);
        self.problems.push(self.layer.problem(&self.path, None, text));
    }
}
