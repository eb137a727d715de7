//! Reads back what [`super::render()`] wrote: which VRIDs, VIPs and intervals a file of ours brings to keepalived.
//!
//! Owns nothing. It understands kvip's own files only, line by line, and is no parser of keepalived's language.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::Carried;
use super::render::MARKER;
use crate::model::Vrid;

/// Whether kvip wrote `text`.
pub fn is_ours(text: &str) -> bool {
    text.lines().next() == Some(MARKER)
}

/// The service VIPs in a file of ours; none in any other file.
pub fn vips_in(text: &str) -> BTreeSet<IpAddr> {
    lines_of_block(text, "virtual_ipaddress_excluded").filter_map(address).collect()
}

/// The service VIPs in a file of ours by the group whose instance carries them; none in any other file.
pub fn carried_in(text: &str) -> Carried {
    let mut vrid = None;
    let mut inside = false;
    let mut found = Vec::new();
    for line in lines(text) {
        if let Some(number) = line.strip_prefix("virtual_router_id ") {
            vrid = number.parse().ok().and_then(Vrid::new);
            found.extend(vrid.map(|vrid| (vrid, BTreeSet::new())));
        }
        inside = line == "virtual_ipaddress_excluded {" || inside && line != "}";
        if let (true, Some(vrid), Some(vip)) = (inside, vrid, address(line)) {
            found.push((vrid, BTreeSet::from([vip])));
        }
    }
    found.into_iter().collect()
}

/// The VRIDs in a file of ours; none in any other file.
pub fn vrids_in(text: &str) -> BTreeSet<Vrid> {
    values(text, "virtual_router_id").filter_map(|v| Vrid::new(v.parse().ok()?)).collect()
}

/// The longest advertisement interval in a file of ours.
pub fn advert_in(text: &str) -> Option<Duration> {
    values(text, "advert_int").filter_map(|v| Duration::try_from_secs_f64(v.parse().ok()?).ok()).max()
}

/// The lines of a file of ours, trimmed.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let ours = is_ours(text);
    text.lines().filter(move |_| ours).map(str::trim)
}

fn values<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    lines(text).filter_map(move |line| line.strip_prefix(keyword)?.strip_prefix(' '))
}

fn lines_of_block<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    let mut inside = false;
    lines(text).filter(move |line| {
        if line.strip_suffix(" {") == Some(keyword) {
            inside = true;
            return false;
        }
        inside &= *line != "}";
        inside
    })
}

fn address(line: &str) -> Option<IpAddr> {
    line.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Build, Carried, Config, Instance, Paths, Unicast, render};
    use super::*;
    use crate::model::Family;

    fn addresses(family: Family, most: usize) -> impl Strategy<Value = BTreeSet<IpAddr>> {
        prop::collection::btree_set(any::<u32>(), 0..most).prop_map(move |seeds| {
            seeds
                .into_iter()
                .map(|seed| match family {
                    Family::V4 => IpAddr::from(seed.to_be_bytes()),
                    Family::V6 => IpAddr::from((u128::from(seed) << 60).to_be_bytes()),
                })
                .collect()
        })
    }

    fn instance() -> impl Strategy<Value = Instance> {
        (1u8..=255, any::<bool>(), 1u64..1000, any::<bool>()).prop_flat_map(|(vrid, v4, advert, unicast)| {
            let family = if v4 { Family::V4 } else { Family::V6 };
            (addresses(family, 40), addresses(family, 4)).prop_map(move |(vips, peers)| Instance {
                vrid: Vrid::new(vrid.into()).unwrap(),
                family,
                interface: "eth0".into(),
                priority: 150,
                advert: Duration::from_millis(advert * 10),
                gone_after: Duration::from_secs(60 + u64::from(vrid % 2)),
                unicast: unicast.then(|| Unicast { source: "10.0.0.1".parse().unwrap(), peers }),
                vips,
            })
        })
    }

    proptest! {
        #[test]
        fn what_is_rendered_reads_back(instances in prop::collection::vec(instance(), 0..4), dbus: bool) {
            let config = Config { router_id: "n".into(), gone_after: Duration::from_secs(60), instances };
            let text = render(&config, &Paths::default(), Build { dbus });
            prop_assert!(is_ours(&text));
            prop_assert_eq!(vips_in(&text), config.instances.iter().flat_map(|i| i.vips.clone()).collect());
            let by_group = config.instances.iter().map(|i| (i.vrid, i.vips.clone())).collect::<Carried>();
            prop_assert_eq!(carried_in(&text), by_group);
            prop_assert_eq!(vrids_in(&text), config.instances.iter().map(|i| i.vrid).collect());
            prop_assert_eq!(advert_in(&text), config.instances.iter().map(|i| i.advert).max());
        }
    }

    #[test]
    fn a_foreign_file_lists_nothing_of_ours() {
        let text = "virtual_ipaddress_excluded {\n10.0.0.1/32\n}\nvirtual_router_id 5\nadvert_int 1\n";
        assert!(vips_in(text).is_empty() && vrids_in(text).is_empty());
        assert_eq!(advert_in(text), None);
    }
}
