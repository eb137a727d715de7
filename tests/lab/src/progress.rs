//! Progress for whoever waits: each step says when it starts and ends, and its age in between.
//!
//! Owns the form of these lines. Never decides what is done.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing is silent for longer than this.
const TICK: Duration = Duration::from_secs(2);

/// Prints one line of progress on stderr.
pub fn say(text: &str) {
    eprintln!("lab: {text}");
}

/// Does `work`, saying that it still goes on (every two seconds) and at last how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    step_with(what, String::new, work)
}

/// As [`step`], and says with each tick what is being done by then.
pub fn step_with<T>(
    what: &str,
    detail: impl Fn() -> String + Send,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = ticking(what, detail, work);
    if result.is_ok() {
        say(&format!("{what}: {:.1} s", start.elapsed().as_secs_f32()));
    }
    result
}

/// Does `work`, and says only while it takes long that it still goes on.
pub fn patiently<T>(what: &str, work: impl FnOnce() -> T) -> T {
    ticking(what, String::new, work)
}

fn ticking<T>(what: &str, detail: impl Fn() -> String + Send, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let (done, wait) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while wait.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                say(format!("{what} ... {} s {}", start.elapsed().as_secs(), detail()).trim_end());
            }
        });
        let result = work();
        drop(done);
        result
    })
}
