//! Which VRRP group carries a VIP, and which nodes are in it with what priority.
//!
//! Priorities are a pure function of the group and the node names, so that all nodes agree without talking.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::{AddressRange, Settings, Vrrp};
use crate::model::{Finding, Vrid};
use crate::rank;
use crate::snapshot::{Node, Snapshot};

/// The name of the group of `[vrrp]`.
pub const DEFAULT_GROUP: &str = "vips";

/// Nodes with this label are to be left out of load balancing. As in Kubernetes' own service controller the key counts,
/// whatever its value, and cordoning a node changes nothing.
pub const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Base priorities of the first three ranks; steps of 20 keep elections free of ties.
const FIRST_PRIORITIES: [u8; 3] = [190, 170, 150];
/// The priorities of all further ranks; ties fall to the higher address (RFC 9568, section 6.4.3).
const LAST_PRIORITIES: std::ops::RangeInclusive<u8> = 141..=149;

/// A group of the settings.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Its name.
    pub name: &'a str,
    /// How it speaks.
    pub vrrp: &'a Vrrp,
    /// The interface, when the group has one of its own.
    pub interface: Option<&'a str>,
    /// A static VIP of it. It must be held before anybody knows a label, by the nodes that run the control plane, and
    /// kubeadm labels just those [`EXCLUDED`]: so a group with a static VIP ignores the label.
    pub fixed: Option<IpAddr>,
    /// The VIPs that it carries; `None`: all that no other group does.
    addresses: Option<&'a [AddressRange]>,
}

/// The groups of `settings` in the order in which a VIP looks for its own: the group of `[vrrp]` comes last.
pub fn groups(settings: &Settings) -> Vec<Group<'_>> {
    let own = settings.groups.iter().map(|group| Group {
        name: &group.name,
        vrrp: &group.vrrp,
        interface: group.interface.as_deref(),
        fixed: None,
        addresses: Some(&group.addresses),
    });
    let rest =
        Group { name: DEFAULT_GROUP, vrrp: &settings.vrrp, interface: None, fixed: None, addresses: None };
    let mut all: Vec<Group> = own.chain([rest]).collect();
    for one in &settings.statics {
        let group = all.iter_mut().find(|group| group.carries(one.vip));
        group.expect("the last group carries everything").fixed.get_or_insert(one.vip);
    }
    all
}

impl Group<'_> {
    /// Whether `vip` is its own, unless that of an earlier group.
    pub fn carries(&self, vip: IpAddr) -> bool {
        self.addresses.is_none_or(|ranges| ranges.iter().any(|range| range.contains(vip)))
    }

    /// Whether `node` is a member.
    pub fn takes(&self, node: &Node) -> bool {
        self.selects(node) && (self.ignores_label() || !node.labels.contains_key(EXCLUDED))
    }

    /// The members among the Nodes of the cluster.
    pub fn members<'s>(&self, snapshot: &'s Snapshot) -> BTreeMap<&'s str, &'s Node> {
        let nodes = snapshot.nodes.iter().filter(|(_, node)| self.takes(node));
        nodes.map(|(name, node)| (name.as_str(), &**node)).collect()
    }

    fn selects(&self, node: &Node) -> bool {
        self.vrrp.members.iter().all(|(key, value)| node.labels.get(key) == Some(value))
    }

    fn ignores_label(&self) -> bool {
        self.vrrp.excluded_too || self.fixed.is_some()
    }

    /// What is said of a group that has VIPs and no members.
    pub fn nobody(&self, snapshot: &Snapshot, vips: &[IpAddr]) -> Option<Finding> {
        let first = vips.iter().min()?;
        let selected = snapshot.nodes.values().filter(|node| self.selects(node)).count();
        let (why, mend) = match (snapshot.nodes.len(), selected) {
            // Without any Node there is more to say than this, and it is said of this host.
            (0, _) => return None,
            (nodes, 0) => {
                let labels: Vec<String> =
                    self.vrrp.members.iter().map(|(key, value)| format!("{key}={value}")).collect();
                (
                    format!("none of the cluster's {nodes} Nodes has the labels {}", labels.join(",")),
                    format!("kubectl label node NODE {}", labels.join(" ")),
                )
            }
            (_, selected) => (
                format!("all {selected} Nodes that could are labelled {EXCLUDED}"),
                format!(
                    "set excluded_too = true in {}, or kubectl label node NODE {EXCLUDED}-",
                    self.table()
                ),
            ),
        };
        let more = match vips.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let text = format!("no node may hold {first}{more}: {why}");
        Some(Finding::new(format!("group {}", self.name), text).mend(mend))
    }

    /// What is said of a group whose static VIP makes labelled nodes hold its other VIPs too.
    pub fn mixed(&self, snapshot: &Snapshot, others: bool) -> Option<Finding> {
        let fixed = self.fixed.filter(|_| others && !self.vrrp.excluded_too)?;
        let nodes = snapshot.nodes.iter().filter(|(_, node)| self.selects(node));
        let labelled: Vec<&str> = nodes
            .filter(|(_, node)| node.labels.contains_key(EXCLUDED))
            .map(|(name, _)| name.as_str())
            .collect();
        let text = format!(
            "nodes labelled {EXCLUDED} are members too ({}): its static VIP {fixed} ignores the label, and its other VIPs go with it",
            labelled.join(", ")
        );
        let mend = format!(
            "give static VIPs a group of their own ([[groups]]), or set excluded_too = true in {}",
            self.table()
        );
        (!labelled.is_empty()).then(|| Finding::new(format!("group {}", self.name), text).mend(mend))
    }

    /// Where the settings describe it.
    fn table(&self) -> String {
        if self.addresses.is_none() { "[vrrp]".into() } else { format!("[[groups]] {}", self.name) }
    }
}

/// Base priorities by rendezvous rank: each group has an order of nodes of its own.
pub fn priorities(vrid: Vrid, members: &BTreeMap<&str, &Node>) -> BTreeMap<String, u8> {
    let ranked = rank::ranked(&[vrid.get()], members.keys().copied());
    let rest = LAST_PRIORITIES.rev().chain(std::iter::repeat(*LAST_PRIORITIES.start()));
    let priorities = FIRST_PRIORITIES.into_iter().chain(rest);
    ranked.into_iter().zip(priorities).map(|(name, priority)| (name.to_owned(), priority)).collect()
}

/// The base priority of a node that knows of no other: below the first three ranks of any that does, and most likely not
/// that of another that knows as little.
pub fn lone_priority(vrid: Vrid, node: &str) -> u8 {
    let (low, high) = LAST_PRIORITIES.into_inner();
    let place = rank::weight(&[vrid.get()], node) % u64::from(high - low + 1);
    low + u8::try_from(place).expect("less than ten")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ranks_give_wide_steps_first_and_stay_in_range() {
        let node = Node::default();
        let names: Vec<String> = (0..40).map(|n| format!("node-{n}")).collect();
        let members: BTreeMap<&str, &Node> = names.iter().map(|name| (name.as_str(), &node)).collect();
        let mut got: Vec<u8> = priorities(Vrid::new(50).unwrap(), &members).into_values().collect();
        got.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(got[..5], [190, 170, 150, 149, 148]);
        assert_eq!(got[11..], [141; 29]);
    }

    #[test]
    fn groups_have_orders_of_their_own() {
        let node = Node::default();
        let members: BTreeMap<&str, &Node> = ["node-a", "node-b", "node-c"].map(|name| (name, &node)).into();
        let first = |vrid| {
            let all = priorities(Vrid::new(vrid).unwrap(), &members);
            all.into_iter().find(|(_, priority)| *priority == 190).unwrap().0
        };
        let firsts: BTreeSet<String> = (1..=20).map(first).collect();
        assert_eq!(firsts.len(), 3, "twenty groups spread over three nodes");
    }

    #[test]
    fn lone_nodes_rank_below_those_that_know_each_other() {
        let lone: BTreeSet<u8> =
            (0..40).map(|n| lone_priority(Vrid::new(50).unwrap(), &format!("node-{n}"))).collect();
        assert!(lone.iter().all(|priority| LAST_PRIORITIES.contains(priority)), "{lone:?}");
        assert!(lone.len() > 4, "{lone:?}");
    }
}
