//! The demo's stage: headings, commands as a person types them, their output, and a client's requests live.
//!
//! Owns the form of these lines and their colours. Never runs or decides anything.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::layout::NODES;
use crate::probe::Probe;
use crate::prober::{Outcome, Sample};

/// How often new requests are looked for.
const LOOK: Duration = Duration::from_millis(50);

const BOLD: &str = "1";
const RED: &str = "31";
/// A colour for each node, in their order.
const NODE_COLOURS: [&str; NODES.len()] = ["36", "32", "35"];

/// Prints the demo on standard output.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    colour: bool,
}

impl Stage {
    /// Coloured on a terminal, unless `NO_COLOR` (<https://no-color.org>) says otherwise.
    pub fn from_environment() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: !unwanted && io::stdout().is_terminal() }
    }

    /// Opens an act.
    pub fn act(self, number: usize, title: &str) {
        let heading = format!("{number}. {title}");
        print(&format!("\n{}\n{}", self.paint(BOLD, &heading), "=".repeat(heading.len())));
    }

    /// Says something to the audience, in a paragraph of its own.
    pub fn tell(self, text: &str) {
        print(&format!("\n{text}"));
    }

    /// Shows a command at the prompt of `place`: the admin's and the client's is `$`, a node's root has `#`.
    pub fn typed(self, place: &str, command: &str) {
        let sign = if NODES.iter().any(|node| node.name == place) { '#' } else { '$' };
        print(&format!("\n{}", self.paint(BOLD, &format!("{place}{sign} {command}"))));
    }

    /// Shows what a command said.
    pub fn output(self, text: &str) {
        if !text.trim().is_empty() {
            print(text.trim_end());
        }
    }

    /// Shows an event between the client's requests.
    pub fn event(self, text: &str) {
        print(&self.paint(BOLD, &format!("-- {text}")));
    }

    /// Does `work`, and shows meanwhile each request of `probe` that ends, with its time since `zero`.
    pub fn follow<T>(self, probe: &Probe, zero: SystemTime, work: impl FnOnce() -> T) -> T {
        let mut shown = probe.so_far().len();
        let (done, wait) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                loop {
                    let goes_on = wait.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout);
                    let samples = probe.so_far();
                    for sample in &samples[shown..] {
                        self.request(sample, zero);
                    }
                    shown = samples.len();
                    if !goes_on {
                        break;
                    }
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    fn request(self, sample: &Sample, zero: SystemTime) {
        print(&self.paint(colour_of(sample), &request_line(sample, zero)));
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn colour_of(sample: &Sample) -> &'static str {
    match &sample.outcome {
        Outcome::Answered { node, .. } => {
            let place = NODES.iter().position(|spec| spec.name == node);
            place.map_or("0", |place| NODE_COLOURS[place])
        }
        Outcome::Failed(_) => RED,
    }
}

/// One request: when it began, how long it took, and who answered or how it failed.
fn request_line(sample: &Sample, zero: SystemTime) -> String {
    let zero_us = zero.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let begun = Duration::from_micros(
        u64::try_from(u128::from(sample.start_us).saturating_sub(zero_us)).unwrap_or(u64::MAX),
    );
    let took = Duration::from_micros(sample.end_us.saturating_sub(sample.start_us)).as_millis();
    let outcome = match &sample.outcome {
        Outcome::Answered { node, pod, .. } => format!("{node}  {pod}"),
        Outcome::Failed(failure) => format!("no answer: {}", format!("{failure:?}").to_lowercase()),
    };
    format!("{:8.2} s {took:5} ms  {outcome}", begun.as_secs_f64())
}

/// Whoever listened may be gone; the demo then ends unheard.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prober::Failure;

    fn check_line(outcome: Outcome, line: &str) {
        let sample = Sample { connection: 0, start_us: 3_250_000, end_us: 3_262_000, outcome };
        assert_eq!(request_line(&sample, UNIX_EPOCH + Duration::from_secs(2)), line);
    }

    #[test]
    fn a_request_says_when_how_long_and_who() {
        let answer = Outcome::Answered { node: "node-a".into(), pod: "web-1".into(), body: String::new() };
        check_line(answer, "    1.25 s    12 ms  node-a  web-1");
        check_line(Outcome::Failed(Failure::Timeout), "    1.25 s    12 ms  no answer: timeout");
    }

    #[test]
    fn colours_are_for_terminals_only() {
        assert_eq!(Stage { colour: false }.paint(RED, "x"), "x");
        assert_eq!(Stage { colour: true }.paint(RED, "x"), "\x1b[31mx\x1b[0m");
    }
}
