//! Nothing is silent for long: what a command waits for is said while it waits.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// Between two words on standard error.
const EVERY: Duration = Duration::from_secs(2);

/// Awaits `work`, and says `what` with the seconds that it takes, on standard error, where it takes more than two.
pub async fn tell<T>(what: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    tell_by(what, work, |line| eprintln!("{line}")).await
}

async fn tell_by<T>(what: impl Fn() -> String, work: impl Future<Output = T>, say: impl Fn(&str)) -> T {
    let mut work = pin!(work);
    let mut waited = Duration::ZERO;
    loop {
        if let Ok(done) = tokio::time::timeout(EVERY, &mut work).await {
            return done;
        }
        waited += EVERY;
        say(&format!("{}, {} s", what(), waited.as_secs()));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_said() {
        let said = RefCell::new(Vec::new());
        let say = |line: &str| said.borrow_mut().push(line.to_owned());
        let work = |millis| tokio::time::sleep(Duration::from_millis(millis));
        let what = || "reading the cluster".to_owned();
        tell_by(what, work(1900), say).await;
        assert_eq!(*said.borrow(), [""; 0]);
        tell_by(what, work(4100), say).await;
        assert_eq!(*said.borrow(), ["reading the cluster, 2 s", "reading the cluster, 4 s"]);
    }
}
