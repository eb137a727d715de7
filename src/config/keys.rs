//! The keys that settings know, with their defaults, and the nearest known key to an unknown one.

/// One key of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The key with its section, such as `vrrp.vrid`.
    pub path: &'static str,
    /// The default as an environment variable would say it; none where the key must be given or is found out.
    pub default: Option<&'static str>,
}

/// A key with a default.
const fn key(path: &'static str, default: &'static str) -> Key {
    Key { path, default: Some(default) }
}

/// A key without one.
const fn bare(path: &'static str) -> Key {
    Key { path, default: None }
}

/// A list of tables, each written under `[[name]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// The list's name.
    pub name: &'static str,
    /// The keys of each table, in the order of the installed file; their paths are without the table's.
    pub keys: &'static [Key],
}

/// Every key outside of tables, in the order of the installed file.
pub const KEYS: [Key; 51] = [
    key("cluster.source", "kubernetes"),
    bare("cluster.manifests"),
    key("cluster.kubeconfig", "/etc/kvip/kubeconfig"),
    key("cluster.config_map", "default/vip-configmap"),
    key("cluster.settings_map", "kvip-system/kvip"),
    key("cluster.stale_after", "5m"),
    key("cluster.service_ranges", ""),
    bare("node.name"),
    bare("node.interface"),
    bare("node.address"),
    bare("vips.allowed"),
    key("asking.annotations", "true"),
    key("asking.load_balancers", "class"),
    key("asking.external_ips", "false"),
    key("asking.allocators", ""),
    key("asking.takeover_after", "10s"),
    key("vrrp.vrid", "50"),
    key("vrrp.advert", "250ms"),
    key("vrrp.transport", "multicast"),
    key("vrrp.members", ""),
    key("vrrp.excluded_too", "false"),
    key("vrrp.gone_after", "60s"),
    key("balancing.mode", "nat"),
    key("balancing.scheduler", "wlc"),
    key("balancing.scheduler_flags", ""),
    key("balancing.tunnel", "ipip"),
    key("balancing.drain_limit", "60s"),
    key("balancing.probe_port", "10250"),
    key("balancing.health_check_node_port", "false"),
    key("balancing.shield", "auto"),
    key("balancing.beside_kube_proxy_ipvs", "false"),
    bare("balancing.tcp_timeout"),
    bare("balancing.tcp_fin_timeout"),
    bare("balancing.udp_timeout"),
    key("balancing.sync", "false"),
    bare("balancing.sync_interface"),
    bare("balancing.sync_id"),
    key("balancing.proxy_protocol", "v1"),
    key("dsr.mark_bits", "0x1001fff"),
    key("dsr.route_table", "5087"),
    key("dsr.rule_priority", "50"),
    key("checks.kind", "none"),
    key("checks.every", "5s"),
    key("checks.timeout", "3s"),
    key("checks.rise", "1"),
    key("checks.fall", "2"),
    key("checks.unhealthy", "drain"),
    key("checks.all_unhealthy", "serve"),
    key("checks.path", "/"),
    key("checks.status", "200-399"),
    key("checks.host", ""),
];

/// Every list of tables, in the order of the installed file.
pub const TABLES: [Table; 4] = [
    Table {
        name: "pools",
        keys: &[
            bare("name"),
            bare("addresses"),
            key("auto_assign", "true"),
            key("priority", "0"),
            key("namespaces", ""),
            key("namespace_labels", ""),
            key("service_labels", ""),
            key("avoid_0_255", "false"),
        ],
    },
    Table {
        name: "tenants",
        keys: &[
            key("namespaces", ""),
            key("namespace_labels", ""),
            key("pools", ""),
            key("addresses", ""),
            bare("annotations"),
        ],
    },
    // Keys without a default here but `name`, `addresses`, `vrid` and `interface` have that of [vrrp].
    Table {
        name: "groups",
        keys: &[
            bare("name"),
            bare("addresses"),
            bare("vrid"),
            bare("interface"),
            bare("advert"),
            bare("transport"),
            bare("members"),
            bare("excluded_too"),
            bare("gone_after"),
        ],
    },
    Table {
        name: "static",
        keys: &[
            bare("name"),
            bare("vip"),
            key("protocol", "tcp"),
            bare("port"),
            bare("backends"),
            bare("check"),
        ],
    },
];

/// Names longer than this many edits away are no better than no hint.
const FARTHEST: usize = 3;

/// Whether some key lies in the section `name`.
pub(super) fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

/// Whether `path` is a key.
pub(super) fn is_key(path: &str) -> bool {
    KEYS.iter().any(|key| key.path == path)
}

/// Whether a key called `name`, without its section, is one that is true or false.
pub(super) fn takes_truth(name: &str) -> bool {
    called(name).any(|key| matches!(key.default, Some("true" | "false")))
}

/// Whether a key called `name`, without its section, is one that is a number.
pub(super) fn takes_number(name: &str) -> bool {
    // These have no default to know it by.
    let is_bare = matches!(name, "port" | "sync_id");
    is_bare || called(name).any(|key| key.default.is_some_and(|default| default.parse::<u32>().is_ok()))
}

/// The keys called `name` in all sections and tables.
fn called(name: &str) -> impl Iterator<Item = &'static Key> {
    let all = KEYS.iter().chain(TABLES.iter().flat_map(|table| table.keys));
    all.filter(move |key| split(key.path).1 == name)
}

/// The list of tables called `name`.
pub(super) fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

/// Whether there is a section or a list of tables called `name`.
pub(super) fn is_known(name: &str) -> bool {
    tops().any(|known| known == name)
}

/// Whether the section or list `name` may stand in the cluster's settings; the others are each host's own.
pub(super) fn is_cluster_wide(name: &str) -> bool {
    !matches!(name, "cluster" | "node" | "static")
}

/// The headers of the lists whose tables have a key called `name`, as one would say them: `[[pools]] or [[groups]]`.
pub(super) fn headers(name: &str) -> Option<String> {
    let tables = TABLES.iter().filter(|table| table.key(name).is_some());
    let headers: Vec<String> = tables.map(|table| format!("[[{}]]", table.name)).collect();
    (!headers.is_empty()).then(|| headers.join(" or "))
}

impl Table {
    /// The key called `name` in each table.
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.path == name)
    }

    /// The known key that an unknown one was probably meant to be.
    pub(super) fn nearest(&self, name: &str) -> Option<&'static str> {
        closest(name, self.keys.iter().map(|key| (key.path, key.path)))
    }
}

/// The known key or section that an unknown `path` was probably meant to be.
///
/// In a known section the nearest key of it; otherwise a key of that name in another section, or the nearest section.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let lower = path.to_ascii_lowercase();
    let (section, name) = lower.split_once('.').unwrap_or(("", &lower));
    let here = KEYS.iter().map(|key| key.path).filter(|known| split(known).0 == section);
    let elsewhere = || KEYS.iter().map(|key| key.path).find(|known| split(known).1 == name);
    // Of `a.b` the section may be misspelt, of a lone `a` it is all there is.
    let misspelt = if section.is_empty() { name } else { section };
    closest(name, here.map(|known| (split(known).1, known))).or_else(elsewhere).or_else(|| {
        let unknown = !is_section(path.split('.').next().unwrap_or_default());
        unknown.then(|| closest(misspelt, tops().map(|known| (known, known)))).flatten()
    })
}

/// The sections, each as often as it has keys.
fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| split(key.path).0)
}

/// The sections and the lists of tables.
fn tops() -> impl Iterator<Item = &'static str> {
    sections().chain(TABLES.iter().map(|table| table.name))
}

/// A path's section and name.
fn split(path: &'static str) -> (&'static str, &'static str) {
    path.split_once('.').unwrap_or(("", path))
}

/// The answer of the candidate nearest to `wrong`, if one is near; capitals count for nothing.
pub(crate) fn closest(
    wrong: &str,
    candidates: impl Iterator<Item = (&'static str, &'static str)>,
) -> Option<&'static str> {
    let limit = FARTHEST.min(wrong.len() / 2);
    let wrong = wrong.to_ascii_lowercase();
    candidates
        .map(|(name, answer)| (strsim::damerau_levenshtein(&wrong, &name.to_ascii_lowercase()), answer))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, answer)| answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_at_the_nearest_key() {
        for (wrong, hint) in [
            ("balancing.schedular", Some("balancing.scheduler")),
            ("vrrp.vird", Some("vrrp.vrid")),
            ("allowed", Some("vips.allowed")),
            ("vrrp.allowed", Some("vips.allowed")),
            ("vrpp", Some("vrrp")),
            ("vrpp.vrid", Some("vrrp.vrid")),
            ("balancer.speed", Some("balancing")),
            ("pool", Some("pools")),
            ("statics", Some("static")),
            ("VRRP", Some("vrrp")),
            ("VRRP.vrid", Some("vrrp.vrid")),
            ("vrrp.VRID", Some("vrrp.vrid")),
            ("VRRP.colour", Some("vrrp")),
            ("Pools", Some("pools")),
            ("vrrp.colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(wrong), hint, "{wrong}");
        }
    }
}
