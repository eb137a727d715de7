//! Whether a node's machine stood still while something was watched: what is lost then says nothing of kvip.
//!
//! Owns the nodes' pulses, and brings their clocks together. A node that dies or boots meanwhile has none.

use std::time::Duration;

use crate::lab::{Lab, Node};
use crate::peer::install::PROGRAM;
use crate::peer::pulse::STILL;
use crate::probe::Probe;
use crate::prober::{Sample, now_us};
use crate::ssh;

/// A node's first beat is known here a moment after it was.
const ROOM: Duration = Duration::from_millis(500);
/// For a node to begin to beat.
const BEGIN: Duration = Duration::from_secs(20);

/// The pulses of all nodes that have one.
pub struct Pulses(Vec<Pulse>);

struct Pulse {
    node: &'static str,
    probe: Probe,
    /// When the first beat was known here, by this host's clock.
    known_us: u64,
}

/// A time in which a node stood still, by this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// The node.
    pub node: &'static str,
    from_us: u64,
    to_us: u64,
}

impl Pulses {
    /// Takes the pulse of all nodes from now on.
    pub fn start(lab: &Lab) -> Self {
        let take = |node: Node<'_>| -> anyhow::Result<Pulse> {
            node.install_peer()?;
            let name = node.spec().name;
            let probe = Probe::start(lab.enter(&ssh::argv(lab.layout(), name, &format!("{PROGRAM} pulse"))))?;
            let what = format!("the pulse of {name}");
            let known_us = lab.wait_for(&what, BEGIN, || (!probe.so_far().is_empty()).then(now_us))?;
            Ok(Pulse { node: name, probe, known_us })
        };
        Self(lab.on_all_nodes(take).into_iter().filter_map(Result::ok).collect())
    }

    /// When nodes stood still.
    pub fn stop(self) -> Vec<Stall> {
        let stalls = self.0.into_iter().filter_map(|Pulse { node, probe, known_us }| {
            let report = probe.stop().ok()?;
            Some(stalls(node, report.samples(), known_us))
        });
        stalls.flatten().collect()
    }
}

/// The stalls among a node's beats, of which the first was known here at `known_us`.
fn stalls(node: &'static str, beats: &[Sample], known_us: u64) -> Vec<Stall> {
    let Some((first, rest)) = beats.split_first() else { return Vec::new() };
    let here = |us: u64| (us + known_us).saturating_sub(first.start_us);
    rest.iter().map(|beat| Stall { node, from_us: here(beat.start_us), to_us: here(beat.end_us) }).collect()
}

impl Stall {
    /// Whether the request was under way while the node stood still, give or take what the clocks differ by.
    pub fn excuses(&self, request: &Sample) -> bool {
        let room = u64::try_from(ROOM.as_micros()).expect("a part of a second fits");
        request.start_us <= self.to_us + room && request.end_us + room >= self.from_us
    }
}

impl std::fmt::Display for Stall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let length = Duration::from_micros(self.to_us - self.from_us);
        write!(f, "{} stood still for {length:.1?} (more than {STILL:?} is told)", self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prober::{Failure, Outcome};

    fn sample(start_us: u64, end_us: u64) -> Sample {
        Sample { connection: 0, start_us, end_us, outcome: Outcome::Failed(Failure::Timeout) }
    }

    #[test]
    fn a_request_is_excused_by_a_stall_at_its_time_alone() {
        // The node's clock is 100 s behind.
        let second = 1_000_000;
        let beats = [sample(0, 0), sample(10 * second, 14 * second)];
        let found = stalls("node-a", &beats, 100 * second);
        assert_eq!(found, [Stall { node: "node-a", from_us: 110 * second, to_us: 114 * second }]);
        let excused = |from: u64, to: u64| found[0].excuses(&sample(from * second, to * second));
        assert!(excused(111, 113) && excused(108, 110) && excused(109, 120));
        assert!(!excused(106, 109) && !excused(115, 118));
    }
}
