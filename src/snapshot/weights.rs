//! The weights of endpoints, of their slice's annotations.
//!
//! Pure. The cluster copies no Pod's annotation to a slice: these are for slices written by hand, or by a controller that
//! knows what its endpoints can bear.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Endpoint;
use crate::config::ANNOTATIONS;
use crate::model::{Finding, ObjectKey};

/// What a weight is, for people.
pub const WEIGHTS_WANTED: &str = "weights from 0 to 65535";

/// What the names of kvip's annotations begin with.
const PREFIX: &str = "kvip.io/";
/// The weight of all endpoints of a slice.
const WEIGHT: &str = "kvip.io/weight";
/// The weights of some of them, as `10.2.4.10=5,10.2.4.11=1`.
const WEIGHTS: &str = "kvip.io/weights";

/// Gives `endpoints` the weights that the annotations of their slice `key` say; what cannot be read is a finding.
pub fn weigh(
    key: &ObjectKey,
    metadata: &ObjectMeta,
    endpoints: &mut [Endpoint],
    findings: &mut Vec<Finding>,
) {
    let said = |name: &str| metadata.annotations.as_ref()?.get(name).map(|text| text.trim());
    let mut note = |name: &str, text: String| {
        let mend = format!("kubectl -n {} annotate endpointslice {} {name}-", key.namespace, key.name);
        let text = format!("annotation {name} {text}");
        findings.push(Finding::new(format!("EndpointSlice {key}"), text).mend(mend));
    };
    for name in metadata.annotations.iter().flat_map(BTreeMap::keys) {
        if let Some(why) = unknown(name) {
            note(name, why);
        }
    }
    if let Some(text) = said(WEIGHT) {
        match text.parse() {
            Ok(weight) => endpoints.iter_mut().for_each(|endpoint| endpoint.weight = Some(weight)),
            Err(_) => note(WEIGHT, format!("ignored: \"{text}\" is not a weight, 0 to 65535")),
        }
    }
    let Some(text) = said(WEIGHTS) else { return };
    match each(text) {
        Some(weights) => {
            for (address, weight) in weights {
                let mut named =
                    endpoints.iter_mut().filter(|endpoint| endpoint.address == address).peekable();
                if named.peek().is_none() {
                    note(WEIGHTS, format!("names {address}, which is no endpoint of the slice"));
                }
                named.for_each(|endpoint| endpoint.weight = Some(weight));
            }
        }
        None => note(
            WEIGHTS,
            format!("ignored: \"{text}\" is not ADDRESS=WEIGHT with commas between them, {WEIGHTS_WANTED}"),
        ),
    }
}

/// What is to be said of the annotation `name` of a slice, if it begins as kvip's do and is none of a slice's.
fn unknown(name: &str) -> Option<String> {
    let word = name.strip_prefix(PREFIX).filter(|_| name != WEIGHT && name != WEIGHTS)?;
    let near = [WEIGHT, WEIGHTS]
        .map(|known| (strsim::damerau_levenshtein(&name.to_ascii_lowercase(), known), known));
    Some(match near.iter().filter(|(distance, _)| *distance <= 2).min() {
        _ if ANNOTATIONS.contains(&word) => "has no effect: it counts on Services alone".into(),
        Some((_, known)) => format!("is not known; did you mean {known}?"),
        None => format!("is not known; a slice may have {WEIGHT} and {WEIGHTS}"),
    })
}

fn each(text: &str) -> Option<BTreeMap<IpAddr, u16>> {
    let pair = |part: &str| {
        let (address, weight) = part.split_once('=')?;
        Some((address.trim().parse().ok()?, weight.trim().parse().ok()?))
    };
    text.split(',').map(pair).collect()
}
