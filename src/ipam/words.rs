//! Words for ports and lists in what people read.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::claim::Port;

/// `port tcp 80`, `ports tcp 80, udp 53`.
pub(super) fn ports(ports: &BTreeSet<Port>) -> String {
    let all: Vec<String> = ports.iter().map(|(protocol, port)| format!("{protocol} {port}")).collect();
    format!("{} {}", if all.len() == 1 { "port" } else { "ports" }, all.join(", "))
}

/// `a, b`.
pub(super) fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    all.join(", ")
}
