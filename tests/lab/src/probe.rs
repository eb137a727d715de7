//! A client's view of a VIP, measured: what was asked, what was answered by whom, and the longest gap.
//!
//! Owns the prober process while it runs, and the report's arithmetic. Never asks by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use crate::prober::{Failure, Outcome, Sample};

/// A running prober.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    samples: Arc<Mutex<Vec<Sample>>>,
    reader: Option<JoinHandle<()>>,
}

impl Probe {
    /// Starts `command`, which is to print a sample a line and to end with its stdin.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the prober")?;
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let samples = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&samples);
        let reader = thread::spawn(move || {
            for sample in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            }
        });
        Ok(Self { child, samples, reader: Some(reader) })
    }

    /// What is known so far, in the order in which it became known. Requests still open are not in it.
    pub fn so_far(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks no more, waits for the last answers (a second at most) and reports.
    pub fn stop(mut self) -> anyhow::Result<Report> {
        self.end()?;
        Ok(Report::new(self.so_far()))
    }

    fn end(&mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| anyhow::anyhow!("reading the prober's lines failed"))?;
        }
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // A test that has failed already is not to fail again.
        let _ = self.end();
    }
}

/// A time without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last sign of life before it: an answer's end, or the first request's start.
    pub from_us: u64,
    /// The first answer's end after it, or the last request's.
    pub to_us: u64,
}

impl Gap {
    /// How long it was.
    pub fn length(&self) -> Duration {
        Duration::from_micros(self.to_us - self.from_us)
    }
}

/// All samples of a probe, in the order in which the requests were started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    samples: Vec<Sample>,
}

impl Report {
    /// A report on these samples.
    pub fn new(mut samples: Vec<Sample>) -> Self {
        samples.sort_by_key(|sample| (sample.start_us, sample.end_us));
        Self { samples }
    }

    /// The samples themselves.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The requests started at `time` or later.
    #[must_use]
    pub fn after(&self, time: SystemTime) -> Self {
        let from = since_epoch_us(time);
        self.only(|sample| sample.start_us >= from)
    }

    /// The requests started before `time`.
    #[must_use]
    pub fn before(&self, time: SystemTime) -> Self {
        let to = since_epoch_us(time);
        self.only(|sample| sample.start_us < to)
    }

    /// The answers from `node`.
    #[must_use]
    pub fn from_node(&self, node: &str) -> Self {
        self.only(|sample| matches!(&sample.outcome, Outcome::Answered { node: from, .. } if from == node))
    }

    /// A report for each connection that was held, by its number.
    pub fn connections(&self) -> BTreeMap<u32, Self> {
        let numbers = self.samples.iter().map(|sample| sample.connection).filter(|number| *number > 0);
        let view = |number| (number, self.only(|sample| sample.connection == number));
        numbers.collect::<BTreeSet<_>>().into_iter().map(view).collect()
    }

    /// How the last request failed; none when it was answered. Of a connection: how it ended.
    pub fn end(&self) -> Option<Failure> {
        match self.samples.last()?.outcome {
            Outcome::Failed(failure) => Some(failure),
            Outcome::Answered { .. } => None,
        }
    }

    /// How many requests were made.
    pub fn asked(&self) -> usize {
        self.samples.len()
    }

    /// How many were answered.
    pub fn answered(&self) -> usize {
        self.nodes().values().sum()
    }

    /// How many failed, by kind.
    pub fn failures(&self) -> BTreeMap<Failure, usize> {
        count(self.samples.iter().filter_map(|sample| match sample.outcome {
            Outcome::Failed(failure) => Some(failure),
            Outcome::Answered { .. } => None,
        }))
    }

    /// How many answers came from each node.
    pub fn nodes(&self) -> BTreeMap<String, usize> {
        self.count_answers(|node, _| node.to_owned())
    }

    /// How many answers came from each pod.
    pub fn pods(&self) -> BTreeMap<String, usize> {
        self.count_answers(|_, pod| pod.to_owned())
    }

    /// How many answers say which address their pod saw.
    pub fn sources(&self) -> BTreeMap<String, usize> {
        count(self.samples.iter().filter_map(|sample| match &sample.outcome {
            Outcome::Answered { body, .. } => body.rsplit_once(" saw ").map(|(_, source)| source.to_owned()),
            Outcome::Failed(_) => None,
        }))
    }

    /// The longest time without an answer, the probe's start and end included; none without a request.
    pub fn longest_gap(&self) -> Option<Gap> {
        let first = self.samples.first()?.start_us;
        let last = self.samples.iter().map(|sample| sample.end_us).max()?;
        let answers = self.samples.iter().filter(|sample| matches!(sample.outcome, Outcome::Answered { .. }));
        let mut marks: Vec<u64> = answers.map(|sample| sample.end_us).chain([first, last]).collect();
        marks.sort_unstable();
        let gaps = marks.windows(2).map(|pair| Gap { from_us: pair[0], to_us: pair[1] });
        // Of equal ones the first.
        gaps.rev().max_by_key(Gap::length)
    }

    fn only(&self, keep: impl Fn(&Sample) -> bool) -> Self {
        Self { samples: self.samples.iter().filter(|sample| keep(sample)).cloned().collect() }
    }

    fn count_answers(&self, name: impl Fn(&str, &str) -> String) -> BTreeMap<String, usize> {
        count(self.samples.iter().filter_map(|sample| match &sample.outcome {
            Outcome::Answered { node, pod, .. } => Some(name(node, pod)),
            Outcome::Failed(_) => None,
        }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} asked, {} answered", self.asked(), self.answered())?;
        for (node, number) in self.nodes() {
            write!(f, ", {number} by {node}")?;
        }
        for (failure, number) in self.failures() {
            write!(f, ", {number} {failure:?}")?;
        }
        if let (Some(gap), Some(first)) = (self.longest_gap(), self.samples.first()) {
            let seconds =
                |time: u64| Duration::from_micros(time.saturating_sub(first.start_us)).as_secs_f32();
            let length = gap.length().as_secs_f32();
            write!(
                f,
                "; longest gap {length:.3} s, from {:.2} s to {:.2} s",
                seconds(gap.from_us),
                seconds(gap.to_us)
            )?;
        }
        Ok(())
    }
}

fn count<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

fn since_epoch_us(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(start_us: u64, end_us: u64, node: &str) -> Sample {
        let outcome = Outcome::Answered { node: node.to_owned(), pod: String::new(), body: String::new() };
        Sample { connection: 0, start_us, end_us, outcome }
    }

    fn timeout(start_us: u64) -> Sample {
        let outcome = Outcome::Failed(Failure::Timeout);
        Sample { connection: 0, start_us, end_us: start_us + 900, outcome }
    }

    fn check_gap(samples: Vec<Sample>, gap: Option<(u64, u64)>) {
        let found = Report::new(samples).longest_gap().map(|gap| (gap.from_us, gap.to_us));
        assert_eq!(found, gap);
    }

    #[test]
    fn the_longest_gap_lies_between_the_ends_of_answers() {
        check_gap(vec![], None);
        check_gap(vec![answer(0, 10, "a"), answer(100, 110, "a"), answer(500, 540, "b")], Some((110, 540)));
        // Lines arrive in the order of their ends.
        check_gap(vec![answer(100, 110, "a"), answer(0, 400, "a"), answer(500, 510, "a")], Some((110, 400)));
    }

    #[test]
    fn silence_at_the_start_or_the_end_is_a_gap() {
        check_gap(vec![timeout(0), timeout(500)], Some((0, 1400)));
        check_gap(vec![answer(0, 10, "a"), timeout(100), timeout(200)], Some((10, 1100)));
        check_gap(vec![timeout(0), answer(2000, 2010, "a")], Some((0, 2010)));
    }

    #[test]
    fn each_connection_has_a_report_and_an_end() {
        let on = |connection, sample| Sample { connection, ..sample };
        let samples =
            vec![answer(0, 10, "a"), on(2, timeout(100)), on(1, timeout(50)), on(1, answer(90, 99, "b"))];
        let report = Report::new(samples);
        let ends: Vec<_> =
            report.connections().into_iter().map(|(number, view)| (number, view.end())).collect();
        assert_eq!(ends, [(1, None), (2, Some(Failure::Timeout))]);
    }

    #[test]
    fn counts_are_by_node_and_kind_and_views_by_start() {
        let report = Report::new(vec![answer(0, 10, "a"), timeout(100), answer(200, 210, "b")]);
        assert_eq!((report.asked(), report.answered()), (3, 2));
        assert_eq!(report.failures(), BTreeMap::from([(Failure::Timeout, 1)]));
        let at = UNIX_EPOCH + Duration::from_micros(100);
        assert_eq!(report.after(at).nodes(), BTreeMap::from([("b".to_owned(), 1)]));
        assert_eq!(report.before(at).asked(), 1);
    }
}
