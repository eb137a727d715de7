//! What `kvip plan` says of HAProxy: which proxies of its file come, change and go.

use std::collections::BTreeMap;

use super::plan::{Change, View, asked};
use crate::config::ProxyProtocol;
use crate::derive::Served;
use crate::haproxy;
use crate::model::Frontend;

/// The changes from the file that is there to the one that would be.
pub fn changes(view: &View) -> Vec<Change> {
    let (now, then) = (haproxy::sections(&view.haproxy_now), haproxy::sections(&view.haproxy_cfg));
    let frontends = view.desired.haproxy.frontends.keys();
    let names: BTreeMap<String, &Frontend> =
        frontends.map(|frontend| (haproxy::name(frontend), frontend)).collect();
    let mut all = Vec::new();
    for (name, frontend) in &names {
        let sign = match now.get(&**name) {
            Some(text) if then.get(&**name) == Some(text) => continue,
            Some(_) => '~',
            None => '+',
        };
        if let Some(served) = view.desired.frontends.get(*frontend) {
            all.push(Change { sign, kind: "proxy", what: what(frontend, served), why: asked(served) });
        }
    }
    let gone = now.keys().filter(|name| !names.contains_key(**name));
    all.extend(gone.map(|name| Change {
        sign: '-',
        kind: "proxy",
        what: format!("tcp {name}"),
        why: String::new(),
    }));
    all
}

fn what(frontend: &Frontend, served: &Served) -> String {
    let Some(proxying) = served.proxying else { return frontend.to_string() };
    let servers: Vec<String> = served.servers.keys().map(ToString::to_string).collect();
    format!("{frontend} {} {} to {}", proxying.balance, told(proxying.protocol), servers.join(", "))
}

fn told(protocol: ProxyProtocol) -> String {
    match protocol {
        ProxyProtocol::Off => "without PROXY protocol".into(),
        protocol => format!("PROXY {}", protocol.name()),
    }
}
