//! What `kvip plan` says of HAProxy: which proxies of its file come, change and go.

use std::collections::BTreeSet;

use super::plan::{Change, asked};
use super::view::View;
use crate::config::ProxyProtocol;
use crate::derive::Served;
use crate::haproxy::{self, Proxy};
use crate::model::Frontend;

/// The changes from the file that is there to the one that would be.
pub fn changes(view: &View) -> Vec<Change> {
    let (now, then) = (haproxy::sections(&view.haproxy_now), haproxy::sections(&view.haproxy_cfg));
    let mut all = Vec::new();
    let mut wanted = BTreeSet::new();
    for (frontend, proxy) in view.desired.haproxy.frontends.iter().filter(|(_, proxy)| !proxy.rests()) {
        let name = haproxy::name(frontend);
        let sign = match now.get(&*name) {
            Some(text) if then.get(&*name) == Some(text) => None,
            Some(_) => Some('~'),
            None => Some('+'),
        };
        if let (Some(sign), Some(served)) = (sign, view.desired.frontends.get(frontend)) {
            all.extend(whole(sign, frontend, proxy, served));
        }
        wanted.insert(name);
    }
    let gone = now.keys().filter(|name| !wanted.contains(**name));
    all.extend(gone.map(|name| change('-', "proxy", format!("tcp {name}"), "")));
    all
}

/// A proxy and all of its servers.
fn whole(sign: char, frontend: &Frontend, proxy: &Proxy, served: &Served) -> Vec<Change> {
    let told = match proxy.protocol {
        ProxyProtocol::Off => String::new(),
        protocol => format!(" PROXY {}", protocol.name()),
    };
    let first = change(sign, "proxy", format!("{frontend} {}{told}", proxy.balance), &asked(served));
    let behind = |(backend, weight): (&_, &u16)| {
        let why = if *weight == 0 { "draining" } else { "" };
        change(sign, "real server", format!("{backend} weight {weight}"), why)
    };
    std::iter::once(first).chain(proxy.servers.iter().map(behind)).collect()
}

fn change(sign: char, kind: &'static str, what: String, why: &str) -> Change {
    Change { sign, kind, what, why: why.into() }
}
