//! The order in which a pool's addresses are tried.
//!
//! Pure. For one Service it is the same on every node; for different Services it begins at different places, so that
//! allocators at work for many of them seldom want the same address. Services that share an address begin at the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::claim::Claims;
use super::refusal::{PoolUse, Refusal};
use super::request::{Request, Reserved, Wish};
use crate::config::{AddressRange, Pool};
use crate::model::Family;
use crate::rank;

/// What is known of the addresses that are not to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// kvip's claims.
    pub claims: Claims,
    /// Addresses that objects of others have.
    pub foreign: BTreeSet<IpAddr>,
}

/// The first free address in the request's order, with its pool.
pub(super) fn free_address<'a>(
    request: &'a Request,
    family: Family,
    known: &Known,
    reserved: &Reserved,
) -> Result<(IpAddr, &'a Pool), Refusal> {
    let pools = request.pools_to_try();
    let pools: Vec<&Pool> = pools.into_iter().filter(|pool| size(pool, family) > 0).collect();
    let hash = rank::weight(request.share_key.as_ref().unwrap_or(&request.uid).as_bytes(), name_of(family));
    let found = pools.iter().find_map(|pool| Some((first_free(pool, family, hash, known, reserved)?, *pool)));
    found.ok_or_else(|| refusal(request, family, &pools, known))
}

fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "4",
        Family::V6 => "6",
    }
}

fn refusal(request: &Request, family: Family, pools: &[&Pool], known: &Known) -> Refusal {
    if pools.is_empty() {
        let named = match &request.wish {
            Wish::Pool(name) => Some(name.clone()),
            Wish::Any | Wish::Addresses(_) => None,
        };
        return Refusal::NoPool { family, named, usable: names(request) };
    }
    Refusal::Exhausted {
        family,
        pools: pools.iter().map(|pool| pool_use(pool, family, &known.claims)).collect(),
    }
}

/// The names of the pools that a request may use.
pub(super) fn names(request: &Request) -> Vec<String> {
    let names: BTreeSet<&String> = request.pools.iter().map(|pool| &pool.name).collect();
    names.into_iter().cloned().collect()
}

/// How full `pool` is.
pub fn pool_use(pool: &Pool, family: Family, claims: &Claims) -> PoolUse {
    let of_family: Vec<AddressRange> = ranges(pool, family).collect();
    let inside = claims.addresses().filter(|address| of_family.iter().any(|range| range.contains(*address)));
    let (resting, used): (Vec<_>, Vec<_>) =
        inside.filter_map(|address| claims.at(address)).partition(|claim| claim.released.is_some());
    PoolUse {
        name: pool.name.clone(),
        ranges: of_family.iter().map(|range| text(*range)).collect(),
        size: size(pool, family),
        used: used.len(),
        resting: resting.len(),
    }
}

fn text(range: AddressRange) -> String {
    if range.first() == range.last() {
        range.first().to_string()
    } else {
        format!("{}-{}", range.first(), range.last())
    }
}

fn ranges(pool: &Pool, family: Family) -> impl Iterator<Item = AddressRange> {
    pool.addresses.iter().copied().filter(move |range| Family::of(range.first()) == family)
}

fn size(pool: &Pool, family: Family) -> u128 {
    ranges(pool, family).fold(0, |sum: u128, range| sum.saturating_add(span_size(span(range))))
}

/// First and last address of a range as numbers.
type Span = (u128, u128);

fn span(range: AddressRange) -> Span {
    (number(range.first()), number(range.last()))
}

fn span_size((first, last): Span) -> u128 {
    (last - first).saturating_add(1)
}

fn first_free(pool: &Pool, family: Family, hash: u64, known: &Known, reserved: &Reserved) -> Option<IpAddr> {
    let spans: Vec<Span> = ranges(pool, family).map(span).collect();
    let begin = u128::from(hash) % size(pool, family);
    turned(&spans, begin).into_iter().find_map(|span| {
        let mut next = Some(span.0);
        // Ends: each step goes on, past one used address or past a whole reserved range.
        while let Some(at) = next.filter(|at| *at <= span.1) {
            let address = address(at, family);
            match obstacle(pool, address, known, reserved) {
                None => return Some(address),
                Some(last) => next = last.checked_add(1),
            }
        }
        None
    })
}

/// The last address that is not to be had from `address` on, as a number; `None` when it is free.
fn obstacle(pool: &Pool, address: IpAddr, known: &Known, reserved: &Reserved) -> Option<u128> {
    if let Some((range, _)) = reserved.range(address) {
        return Some(number(range.last()));
    }
    let shunned = pool.avoid_0_255 && matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255));
    let used = shunned
        || reserved.addresses.contains_key(&address)
        || known.foreign.contains(&address)
        || known.claims.at(address).is_some();
    used.then(|| number(address))
}

/// The spans from the address at place `begin` on, and round to it again.
fn turned(spans: &[Span], begin: u128) -> Vec<Span> {
    let mut before = Vec::new();
    let mut after = Vec::new();
    let mut place = 0_u128;
    for &(first, last) in spans {
        let size = span_size((first, last));
        let end = place.saturating_add(size);
        if end <= begin {
            before.push((first, last));
        } else if place >= begin {
            after.push((first, last));
        } else {
            let cut = first + (begin - place);
            before.push((first, cut - 1));
            after.push((cut, last));
        }
        place = end;
    }
    after.extend(before);
    after
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(number).expect("it lies in an IPv4 range")).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
#[path = "candidates_tests.rs"]
mod tests;
