//! Whether the nodes' cluster-wide settings are the same: each says its own, and hears the others'.
//!
//! Pure: the time is passed in. A node says its settings when it starts and when they change. One that hears others
//! than its own says its own again, unless what it said is still there to be read: so both know, and an idle cluster
//! is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::fingerprint::differences;
use crate::model::Finding;

/// API servers keep Events for an hour unless told otherwise: so long the others can read what was said.
const KEPT: Duration = Duration::from_secs(3600);

/// Who differs has answered what this node says within this.
const ANSWERED: Duration = Duration::from_secs(30);

/// Nodes that are remembered at most: as many as a cluster may have.
const NODES: usize = 5_000;

/// This node and what it knows of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The cluster's UID: what was said in another one counts for nothing.
    pub cluster: Option<String>,
    /// This node's name.
    pub node: String,
    /// Its settings, as [`super::fingerprint::fingerprint`] writes them.
    pub fingerprint: String,
    /// All Nodes: what is heard of others counts for nothing.
    pub nodes: BTreeSet<String>,
}

/// What is known of the other nodes' settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Whose settings are others than this node's, and what keeps nodes from hearing each other.
    pub findings: Vec<Finding>,
    /// Whoever differs has had the time to say so.
    pub all: bool,
}

impl Heard {
    /// Whether all nodes go by the same settings, as far as can be known.
    pub fn agreed(&self) -> bool {
        self.all && self.findings.is_empty()
    }
}

/// What was said and heard.
#[derive(Debug, Default)]
pub struct Agreement {
    own: Option<Own>,
    said: Option<(String, Instant)>,
    /// What was said is no longer there to be read.
    expired: bool,
    /// Somebody has to hear it again.
    again: bool,
    others: BTreeMap<String, String>,
}

impl Agreement {
    /// This node is, and has, `own`.
    pub fn know(&mut self, own: Own) {
        let moved = |was: &Own| was.cluster != own.cluster || was.node != own.node;
        if self.own.as_ref().is_some_and(moved) {
            *self = Self::default();
        }
        // Its own words of an earlier run may have been heard first.
        self.others.remove(&own.node);
        self.own = Some(own);
    }

    /// The node `node` has said that its settings are `fingerprint`.
    pub fn hear(&mut self, node: &str, fingerprint: &str, now: Instant) {
        let known = self.others.len() < NODES || self.others.contains_key(node);
        if !known || self.is_own(node) {
            return;
        }
        self.others.insert(node.to_owned(), fingerprint.to_owned());
        let Some((said, at)) = &self.said else { return };
        let kept = !self.expired && now.saturating_duration_since(*at) < KEPT;
        self.again |= said != fingerprint && !kept;
    }

    /// What `node` has said is no longer there.
    pub fn expire(&mut self, node: &str) {
        self.expired |= self.is_own(node);
    }

    /// What is to be said now, if anything.
    pub fn to_say(&self) -> Option<&Own> {
        let own = self.own.as_ref()?;
        let new = self.said.as_ref().is_none_or(|(said, _)| *said != own.fingerprint);
        (new || self.again).then_some(own)
    }

    /// That was said.
    pub fn said(&mut self, fingerprint: &str, now: Instant) {
        self.said = Some((fingerprint.to_owned(), now));
        self.expired = false;
        self.again = false;
    }

    /// Whether whoever differs has had the time to answer what this node says.
    pub fn is_answered(&self, now: Instant) -> bool {
        let said = self.said.as_ref().filter(|_| self.to_say().is_none());
        said.is_some_and(|(_, at)| now.saturating_duration_since(*at) >= ANSWERED)
    }

    /// Whose settings are others than this node's.
    pub fn findings(&self) -> Vec<Finding> {
        let Some(own) = &self.own else { return Vec::new() };
        let others =
            self.others.iter().filter(|(node, said)| own.nodes.contains(*node) && **said != own.fingerprint);
        others.map(|(node, said)| finding(own, node, said)).collect()
    }

    fn is_own(&self, node: &str) -> bool {
        self.own.as_ref().is_some_and(|own| own.node == node)
    }
}

fn finding(own: &Own, node: &str, said: &str) -> Finding {
    let differences = differences(said, &own.fingerprint);
    let text = format!("{node}'s cluster-wide settings differ from this node's: {differences}");
    let mend = format!(
        "make them the same, best in the ConfigMap that all nodes read; `kvip check` on {node} and {} shows both",
        own.node
    );
    Finding::new("settings", text).mend(mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(fingerprint: &str) -> Own {
        let nodes = ["node-a", "node-b", "node-c"].map(str::to_owned).into();
        Own { cluster: Some("c".into()), node: "node-a".into(), fingerprint: fingerprint.into(), nodes }
    }

    struct Fixture {
        agreement: Agreement,
        start: Instant,
    }

    impl Fixture {
        /// A node that has said `vrrp.vrid=50` when it started.
        fn started() -> Self {
            let mut fixture = Self { agreement: Agreement::default(), start: Instant::now() };
            fixture.agreement.know(own("vrrp.vrid=50"));
            assert_eq!(fixture.says(0).as_deref(), Some("vrrp.vrid=50"));
            fixture
        }

        fn at(&self, minutes: u64) -> Instant {
            self.start + Duration::from_secs(60 * minutes)
        }

        /// Says what is to be said.
        fn says(&mut self, minutes: u64) -> Option<String> {
            let line = self.agreement.to_say()?.fingerprint.clone();
            let now = self.at(minutes);
            self.agreement.said(&line, now);
            assert_eq!(self.agreement.to_say(), None, "once");
            Some(line)
        }

        fn hears(&mut self, node: &str, line: &str, minutes: u64) -> Option<String> {
            let now = self.at(minutes);
            self.agreement.hear(node, line, now);
            self.says(minutes)
        }

        fn findings(&self) -> Vec<String> {
            self.agreement.findings().into_iter().map(|finding| finding.text).collect()
        }
    }

    #[test]
    fn nothing_is_said_before_the_node_is_known() {
        let mut agreement = Agreement::default();
        agreement.hear("node-b", "a=1", Instant::now());
        assert_eq!((agreement.to_say(), agreement.findings()), (None, Vec::new()));
        agreement.know(own("a=2"));
        assert_eq!(agreement.findings().len(), 1, "and what was heard before counts");
        let mut restarted = Agreement::default();
        restarted.hear("node-a", "a=1", Instant::now());
        restarted.know(own("a=2"));
        assert!(restarted.findings().is_empty(), "but for what it said itself in an earlier run");
    }

    #[test]
    fn equal_settings_are_silence_for_ever() {
        let mut fixture = Fixture::started();
        for minutes in [1, 59, 61, 10_000] {
            assert_eq!(fixture.hears("node-b", "vrrp.vrid=50", minutes), None);
        }
        assert!(fixture.findings().is_empty());
    }

    #[test]
    fn a_change_is_said_at_once() {
        let mut fixture = Fixture::started();
        fixture.agreement.know(own("vrrp.vrid=51"));
        assert_eq!(fixture.says(1).as_deref(), Some("vrrp.vrid=51"));
        fixture.agreement.know(own("vrrp.vrid=51"));
        assert_eq!(fixture.says(2), None);
    }

    #[test]
    fn others_have_some_time_to_answer() {
        let mut fixture = Fixture::started();
        assert!(!fixture.agreement.is_answered(fixture.start + ANSWERED / 2));
        assert!(fixture.agreement.is_answered(fixture.start + ANSWERED));
        fixture.agreement.know(own("vrrp.vrid=51"));
        assert!(!fixture.agreement.is_answered(fixture.at(10)), "nothing was said of that yet");
        fixture.says(11);
        assert!(!fixture.agreement.is_answered(fixture.at(11)));
        assert!(fixture.agreement.is_answered(fixture.at(12)));
    }

    #[test]
    fn others_settings_are_a_finding_until_they_are_equal_or_the_node_is_gone() {
        let mut fixture = Fixture::started();
        fixture.hears("node-b", "vrrp.vrid=51", 1);
        fixture.hears("node-c", "", 1);
        fixture.hears("stranger", "vrrp.vrid=9", 1);
        assert_eq!(
            fixture.findings(),
            [
                "node-b's cluster-wide settings differ from this node's: vrrp.vrid is 51 there and 50 here",
                "node-c's cluster-wide settings differ from this node's: vrrp.vrid is the default there and 50 here",
            ]
        );
        fixture.agreement.expire("node-b");
        assert_eq!(fixture.findings().len(), 2, "an Event that ended with its time changes nothing");
        fixture.hears("node-b", "vrrp.vrid=50", 2);
        assert_eq!(fixture.findings().len(), 1);
        let mut own = own("vrrp.vrid=50");
        own.nodes.remove("node-c");
        fixture.agreement.know(own);
        assert!(fixture.findings().is_empty());
    }

    #[test]
    fn who_hears_others_says_its_own_again_only_when_it_can_no_longer_be_read() {
        let mut fixture = Fixture::started();
        assert_eq!(fixture.hears("node-b", "vrrp.vrid=51", 59), None);
        assert_eq!(fixture.says(500), None, "nothing is said without a reason");
        assert_eq!(fixture.hears("node-b", "vrrp.vrid=51", 501).as_deref(), Some("vrrp.vrid=50"));
        assert_eq!(fixture.hears("node-c", "vrrp.vrid=51", 502), None);
        // A server that keeps Events for less than an hour.
        fixture.agreement.expire("node-c");
        assert_eq!(fixture.hears("node-c", "vrrp.vrid=52", 503), None);
        fixture.agreement.expire("node-a");
        assert_eq!(fixture.hears("node-c", "vrrp.vrid=53", 504).as_deref(), Some("vrrp.vrid=50"));
    }

    #[test]
    fn two_nodes_that_disagree_both_know_and_then_fall_silent() {
        let start = Instant::now();
        let mut nodes = [("node-a", "x=1"), ("node-b", "x=2")].map(|(node, line)| {
            let mut agreement = Agreement::default();
            agreement.know(Own { node: node.into(), ..own(line) });
            agreement
        });
        let mut writes = 0;
        // The first has run for two hours when the second starts; all Events reach both.
        nodes[0].said("x=1", start);
        let now = start + Duration::from_secs(7200);
        for _ in 0..10 {
            for speaker in [1, 0] {
                let Some(own) = nodes[speaker].to_say().cloned() else { continue };
                writes += 1;
                nodes[speaker].said(&own.fingerprint, now);
                for node in &mut nodes {
                    node.hear(&own.node, &own.fingerprint, now);
                }
            }
        }
        assert_eq!(writes, 2);
        assert!(nodes.iter().all(|node| node.findings().len() == 1));
    }

    #[test]
    fn another_cluster_is_told_anew() {
        let mut fixture = Fixture::started();
        fixture.hears("node-b", "x=1", 1);
        fixture.agreement.know(Own { cluster: Some("d".into()), ..own("vrrp.vrid=50") });
        assert!(fixture.findings().is_empty());
        assert_eq!(fixture.says(2).as_deref(), Some("vrrp.vrid=50"));
    }
}
