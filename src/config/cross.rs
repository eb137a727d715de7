//! What tables must not be to each other: two of a name, two of a VRID, ranges that overlap, VIPs that are not allowed.
//!
//! Pure. Of two that exclude each other the one written first stays, and the other is left out.

use ipnet::IpNet;

use super::entries::Row;
use super::path::KeyPath;
use super::raw::Merged;
use super::{AddressRange, Group, Pool, Static, Tenant, Vrrp, annotations};
use crate::model::{Family, Protocol};

/// What the group of `[vrrp]` is called.
const FIRST_GROUP: &str = "vips";

/// What is wrong with a table, and where in it.
type Fault = (KeyPath, String);

/// Leaves the pools that do not stand in each other's way and whose addresses are allowed.
pub(super) fn pools(merged: &mut Merged, rows: Vec<Row<Pool>>, allowed: &[IpNet]) -> Vec<Row<Pool>> {
    keep(merged, rows, |kept, row| {
        let mut faults = same_name(kept, row, |pool| &pool.name);
        for (index, range) in row.value.addresses.iter().enumerate() {
            let others = kept.iter().flat_map(|other| {
                other.value.addresses.iter().map(|range| (*range, format!("of pool {}", other.value.name)))
            });
            let own = row.value.addresses[..index].iter().map(|range| (*range, "of this pool".to_owned()));
            let fault = not_allowed(*range, allowed).or_else(|| overlap(*range, others.chain(own), "pool"));
            faults.extend(fault.map(|text| (row.path.with("addresses").with(index), text)));
        }
        faults
    })
}

/// Leaves the groups that do not stand in each other's way, nor in that of the group of `[vrrp]`.
pub(super) fn groups(merged: &mut Merged, rows: Vec<Row<Group>>, base: &Vrrp) -> Vec<Row<Group>> {
    keep(merged, rows, |kept, row| {
        let mut faults = same_name(kept, row, |group| &group.name);
        if row.value.name == FIRST_GROUP {
            let text = "so is the group of [vrrp] called; choose another name".to_owned();
            faults.push((row.path.with("name"), text));
        }
        faults.extend(same_vrid(kept, row, base).map(|text| (row.path.with("vrid"), text)));
        for (index, range) in row.value.addresses.iter().enumerate() {
            let others = kept.iter().flat_map(|other| {
                other.value.addresses.iter().map(|range| (*range, format!("of group {}", other.value.name)))
            });
            let fault = overlap(*range, others, "group");
            faults.extend(fault.map(|text| (row.path.with("addresses").with(index), text)));
        }
        faults
    })
}

/// Reports addresses of groups of which none may be a VIP; the group stays, for what else it carries.
pub(super) fn ranges_of_groups(merged: &mut Merged, rows: &[Row<Group>], allowed: &[IpNet]) {
    for row in rows {
        none_allowed(merged, &row.path, &row.value.addresses, allowed);
    }
}

/// Reports what tenants are given and what gives them nothing: addresses that no VIP may have, and annotations that are
/// none. The tenant stays, for what else it may have.
pub(super) fn tenants(merged: &mut Merged, rows: &[Row<Tenant>], allowed: &[IpNet]) {
    for row in rows {
        none_allowed(merged, &row.path, &row.value.addresses, allowed);
        for (index, pattern) in row.value.annotations.iter().flatten().enumerate() {
            if let Some(text) = annotations::none_called(pattern) {
                merged.complain(&row.path.with("annotations").with(index), text);
            }
        }
    }
}

/// Reports pools that tenants name and that are not there; such a name gives nothing, so the tenant stays. A lone `*` is for
/// all pools, however few.
pub(super) fn pools_of_tenants(merged: &mut Merged, rows: &[Row<Tenant>], pools: &[String]) {
    let there = match pools {
        [] => "there are no [[pools]]".to_owned(),
        pools => format!("there are {}", pools.join(", ")),
    };
    for row in rows {
        for (index, pattern) in row.value.pools.iter().enumerate() {
            if pattern.as_str() != "*" && !pools.iter().any(|pool| pattern.matches(pool)) {
                let text = format!("no pool is called so; {there}");
                merged.complain(&row.path.with("pools").with(index), text);
            }
        }
    }
}

/// Leaves the static VIPs that can be served, each frontend once.
pub(super) fn statics(merged: &mut Merged, rows: Vec<Row<Static>>, allowed: &[IpNet]) -> Vec<Row<Static>> {
    keep(merged, rows, |kept, row| {
        let (path, value) = (&row.path, &row.value);
        let frontend = |other: &Static| (other.vip, other.protocol, other.port);
        let mut faults = match kept.iter().find(|other| frontend(&other.value) == frontend(value)) {
            Some(other) => {
                let text =
                    format!("{} {}:{} is that of {} too", value.protocol, value.vip, value.port, other.path);
                vec![(path.with("vip"), text)]
            }
            None => same_name(kept, row, |value| &value.name),
        };
        let outside = not_allowed(IpNet::from(value.vip).into(), allowed);
        faults.extend(outside.map(|text| (path.with("vip"), text)));
        if value.check && value.protocol != Protocol::Tcp {
            faults.push((path.with("check"), "only backends of protocol tcp can be asked".to_owned()));
        }
        faults.extend(bad_backends(row));
        faults
    })
}

fn bad_backends(row: &Row<Static>) -> Vec<Fault> {
    let Static { vip, backends, .. } = &row.value;
    let family = Family::of(*vip);
    let fault = |index: usize| {
        let backend = backends[index];
        if Family::of(backend.ip()) != family {
            let number = family.number();
            return Some(format!("{vip} is IPv{number} and needs IPv{number} backends"));
        }
        if backend.ip() == *vip {
            return Some("that is the VIP itself; name the hosts' own addresses".to_owned());
        }
        backends[..index].contains(&backend).then(|| "written twice".to_owned())
    };
    let faults = (0..backends.len()).filter_map(|index| Some((index, fault(index)?)));
    faults.map(|(index, text)| (row.path.with("backends").with(index), text)).collect()
}

/// Leaves the rows without a fault, each looked at beside those before it.
fn keep<T>(
    merged: &mut Merged,
    rows: Vec<Row<T>>,
    faults: impl Fn(&[Row<T>], &Row<T>) -> Vec<Fault>,
) -> Vec<Row<T>> {
    let mut kept = Vec::new();
    for row in rows {
        let found = faults(&kept, &row);
        if found.is_empty() {
            kept.push(row);
        }
        for (path, text) in found {
            merged.complain(&path, text);
        }
    }
    kept
}

fn same_name<T>(kept: &[Row<T>], row: &Row<T>, name: impl Fn(&T) -> &String) -> Vec<Fault> {
    let other = kept.iter().find(|other| name(&other.value) == name(&row.value));
    let text = |other: &Row<T>| format!("{} is called so too; each needs a name of its own", other.path);
    other.map(|other| (row.path.with("name"), text(other))).into_iter().collect()
}

fn same_vrid(kept: &[Row<Group>], row: &Row<Group>, base: &Vrrp) -> Option<String> {
    let vrid = row.value.vrrp.vrid;
    let other = if vrid == base.vrid {
        Some("vrrp.vrid".to_owned())
    } else {
        let other = kept.iter().find(|other| other.value.vrrp.vrid == vrid);
        other.map(|other| other.path.with("vrid").to_string())
    };
    other.map(|other| format!("{other} is {vrid} too; each group needs a VRID of its own"))
}

fn overlap(
    range: AddressRange,
    mut others: impl Iterator<Item = (AddressRange, String)>,
    kind: &str,
) -> Option<String> {
    let (other, whose) = others.find(|(other, _)| range.overlaps(*other))?;
    Some(format!("overlaps with {other} {whose}; an address belongs to one {kind}, once"))
}

/// Reports those of the table's `addresses` that lie outside of what is allowed with all of their own.
fn none_allowed(merged: &mut Merged, table: &KeyPath, addresses: &[AddressRange], allowed: &[IpNet]) {
    for (index, range) in addresses.iter().enumerate() {
        if !allowed.iter().any(|network| range.overlaps((*network).into()))
            && let Some(text) = not_allowed(*range, allowed)
        {
            merged.complain(&table.with("addresses").with(index), text);
        }
    }
}

/// Where nothing is allowed there is a finding for the whole, and none for each.
fn not_allowed(range: AddressRange, allowed: &[IpNet]) -> Option<String> {
    let outside = !allowed.is_empty() && !range.within(allowed);
    outside.then(|| {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        format!("outside of vips.allowed ({})", allowed.join(", "))
    })
}
