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

/// Every key, in the order of the installed file.
pub const KEYS: [Key; 18] = [
    key("cluster.source", "kubernetes"),
    key("cluster.kubeconfig", "/etc/kvip/kubeconfig"),
    key("cluster.config_map", "default/vip-configmap"),
    key("cluster.stale_after", "5m"),
    key("cluster.service_ranges", ""),
    bare("node.name"),
    bare("node.interface"),
    bare("node.address"),
    bare("vips.allowed"),
    key("vrrp.vrid", "50"),
    key("vrrp.advert", "250ms"),
    key("vrrp.transport", "multicast"),
    key("vrrp.members", ""),
    key("vrrp.gone_after", "60s"),
    key("balancing.mode", "nat"),
    key("balancing.scheduler", "wlc"),
    key("balancing.drain_limit", "60s"),
    key("balancing.probe_port", "10250"),
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

/// The known key or section that an unknown `path` was probably meant to be.
///
/// In a known section the nearest key of it; otherwise a key of that name in another section, or the nearest section.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let (section, name) = path.split_once('.').unwrap_or(("", path));
    let here = KEYS.iter().map(|key| key.path).filter(|known| split(known).0 == section);
    let elsewhere = || KEYS.iter().map(|key| key.path).find(|known| split(known).1 == name);
    // Of `a.b` the section may be misspelt, of a lone `a` it is all there is.
    let misspelt = if section.is_empty() { name } else { section };
    closest(name, here.map(|known| (split(known).1, known))).or_else(elsewhere).or_else(|| {
        let unknown = !is_section(section);
        unknown.then(|| closest(misspelt, sections().map(|known| (known, known)))).flatten()
    })
}

/// The sections, each as often as it has keys.
fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| split(key.path).0)
}

/// A path's section and name.
fn split(path: &'static str) -> (&'static str, &'static str) {
    path.split_once('.').unwrap_or(("", path))
}

/// The answer of the candidate nearest to `wrong`, if one is near.
fn closest(
    wrong: &str,
    candidates: impl Iterator<Item = (&'static str, &'static str)>,
) -> Option<&'static str> {
    let limit = FARTHEST.min(wrong.len() / 2);
    candidates
        .map(|(name, answer)| (strsim::damerau_levenshtein(wrong, name), answer))
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
            ("vrrp.colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(wrong), hint, "{wrong}");
        }
    }
}
