//! Beside a keepalived.conf of somebody else's.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_foreign_file_stays_and_its_owner_is_told_what_to_add() {
    let foreign = "vrrp_instance A {\n}\n";
    let mut bench = Bench::with_files("active", |paths| {
        files::replace(&paths.keepalived_conf, foreign, files::PUBLIC).unwrap();
    });
    bench.want(config(1));
    let status = bench.until(|status| matches!(status.state, State::Foreign { .. })).await;
    let State::Foreign { include_line } = status.state else { unreachable!() };
    assert_eq!(bench.text().as_deref(), Some(foreign));
    assert_eq!(bench.fake.asked(), [""; 0]);
    files::replace(&bench.paths.keepalived_conf, format!("{foreign}{include_line}\n"), files::PUBLIC)
        .unwrap();
    bench.until_active(1).await;
    assert_eq!(bench.fake.asked(), ["reload"]);
}

impl Bench {
    /// Beside a file of somebody else's that includes kvip's and has these words, keepalived runs one VIP.
    async fn beside(words: &str) -> Self {
        let mut bench = Self::with_files("active", |_| {});
        bench.foreign(words);
        bench.want(config(1));
        bench.until_active(1).await;
        assert_eq!(bench.fake.asked(), ["reload"]);
        bench
    }

    fn foreign(&self, words: &str) {
        let foreign = format!("vrrp_instance A {{\n    {words}\n}}\n{}\n", self.paths.include_line());
        files::replace(&self.paths.keepalived_conf, foreign, files::PUBLIC).unwrap();
    }

    /// The fragment says what keepalived runs, and keepalived was not asked to read anything.
    #[track_caller]
    fn check_as_it_was(&self) {
        let fragment = files::read(&self.paths.fragment()).unwrap();
        assert_eq!(fragment, Some(render_fragment(&config(1), &self.paths)));
        assert_eq!(self.fake.asked(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn beside_a_foreign_file_only_what_the_fragment_does_to_it_counts() {
    let mut bench = Bench::beside("").await;
    bench.fake.with(|inner| inner.refuses = Some("warned"));
    bench.foreign("warned");
    bench.want(config(2));
    bench.until_active(2).await;
    bench.want(config(1));
    bench.until_active(1).await;
    bench.fake.asked();
    bench.fake.with(|inner| inner.clashes = Some("10.0.1.1/32"));
    bench.want(config(2));
    let status = bench.until(|status| matches!(status.state, State::Refused(_))).await;
    assert!(status.problem.unwrap().text.contains("warned; 10.0.1.1/32"));
    bench.check_as_it_was();
}

#[tokio::test(start_paused = true)]
async fn a_foreign_file_that_keepalived_would_end_on_is_not_read_again() {
    const NO_INTERFACE: &str = "Non-existent interface specified in configuration";
    let mut bench = Bench::beside("").await;
    bench.fake.with(|inner| inner.refuses = Some(NO_INTERFACE));
    bench.foreign(NO_INTERFACE);
    bench.want(config(2));
    let status = bench.until(|status| matches!(status.state, State::Refused(_))).await;
    assert!(status.problem.unwrap().text.ends_with(NO_INTERFACE));
    bench.check_as_it_was();
    bench.foreign("");
    bench.until_active(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_foreign_file_over_which_the_check_never_ends_is_not_read_again() {
    let mut bench = Bench::beside("").await;
    bench.fake.with(|inner| inner.ponders = true);
    bench.want(config(2));
    let status = bench.until(|status| matches!(status.state, State::Failed(_))).await;
    assert_eq!(status.problem.unwrap().text, "keepalived did not answer within 10 s");
    bench.check_as_it_was();
}

#[tokio::test(start_paused = true)]
async fn a_foreign_file_that_begins_to_include_kvips_is_looked_at_before_a_reload() {
    let mut bench = Bench::with_files("active", |paths| {
        files::replace(&paths.keepalived_conf, "vrrp_instance A {\n}\n", files::PUBLIC).unwrap();
    });
    bench.want(config(1));
    bench.until(|status| matches!(status.state, State::Foreign { .. })).await;
    bench.fake.with(|inner| inner.refuses = Some("Unknown interface!"));
    bench.foreign("Unknown interface!");
    bench.until(|status| matches!(status.state, State::Refused(_))).await;
    bench.check_as_it_was();
}
