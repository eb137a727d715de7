//! All findings of a turn, from whoever has some, and which of them are news.

use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use super::super::core::news;
use super::super::pass;
use super::Daemon;
use crate::host::Host;
use crate::ipam;
use crate::keepalived;
use crate::model::Finding;
use crate::snapshot::problem::Problem;

impl<H: Host, L: pass::Ledger> Daemon<H, L> {
    /// Says which findings came and which went.
    pub(super) fn tell_findings(&mut self, keepalived: &keepalived::Status, now: Instant) {
        let findings = self.all_findings(keepalived, now);
        if findings == *self.findings {
            return;
        }
        let (came, went) = news(&self.findings, &findings);
        for finding in came {
            warn!(subject = finding.subject, mend = finding.mend, "{finding}");
        }
        for finding in went {
            info!(subject = finding.subject, "no longer so: {finding}");
        }
        self.findings = Arc::new(findings);
    }

    fn all_findings(&self, keepalived: &keepalived::Status, now: Instant) -> Vec<Finding> {
        let mut all = Vec::new();
        if let Some(outcome) = &self.outcome {
            all.extend(outcome.problems.iter().chain(&outcome.refusals).cloned());
            all.extend(outcome.desired.findings.iter().cloned());
            all.extend(self.weights.findings(self.core.settings.cluster.stale_after, now));
        }
        all.extend(
            self.core.snapshot.iter().flat_map(|snapshot| snapshot.skipped.values().flatten().cloned()),
        );
        all.extend(keepalived.problem.clone());
        all.extend(self.unwritten.iter().chain(self.saving.problem()).cloned());
        all.extend(self.applied.findings.iter().cloned());
        all.extend(self.applied.repairs.fights(now));
        all.extend(self.joined.iter().flat_map(|joined| joined.findings.iter().cloned()));
        let answers = &self.inputs.answers;
        all.extend(self.inputs.haproxy.borrow().problems.iter().cloned());
        all.extend(self.inputs.conntrack.borrow().clone());
        all.extend(answers.said.borrow().iter().cloned());
        all.extend(answers.heard.borrow().findings.iter().cloned());
        all.extend(troubles(&answers.outcomes.borrow()));
        if let Some(held) = self.admitted.held() {
            all.push(Finding::new("cluster", held.to_string()).mend("kvip accept"));
        }
        all.extend(self.inputs.contact.borrow().problem.as_ref().map(Problem::finding));
        all
    }
}

/// Services whose addresses the API does not let kvip see to.
fn troubles(outcomes: &ipam::Outcomes) -> Vec<Finding> {
    let troubled = outcomes.iter().filter_map(|(key, outcome)| Some((key, outcome.trouble.as_ref()?)));
    troubled.map(|(key, trouble)| Finding::new(key, trouble.clone())).collect()
}
