//! The pulse of an emulated machine: for how long it stood still, by its own clock.
//!
//! A host that has too little time for its machines leaves one without any for seconds. What its pods do not answer then says
//! nothing of kvip.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, thread};

use crate::prober::{Failure, Outcome, Sample, now_us, report};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(100);
/// Without a beat for so long it stood still.
pub const STILL: Duration = Duration::from_secs(1);

/// Beats until standard input ends, and prints a line of JSON for each time without a beat, and one as it begins.
pub fn run() {
    static ENDS: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        ENDS.store(true, Ordering::Relaxed);
    });
    let mut last = now_us();
    print(last, last);
    while !ENDS.load(Ordering::Relaxed) {
        thread::sleep(BEAT);
        let now = now_us();
        if Duration::from_micros(now.saturating_sub(last)) >= STILL {
            print(last, now);
        }
        last = now;
    }
}

fn print(start_us: u64, end_us: u64) {
    report(&Sample { connection: 0, start_us, end_us, outcome: Outcome::Failed(Failure::Timeout) });
}
