//! What keepalived may make of a new file, and what is brought back when it falls over it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_keepalived_that_falls_gets_its_file_back() {
    let mut bench = Bench::serving(2).await;
    let good = bench.text();
    bench.fake.asked();
    bench.fake.with(|inner| inner.falls_over = Some("10.0.1.2/32"));
    bench.want(config(3));
    let status = bench.until(|status| matches!(status.state, State::Failed(_))).await;
    assert_eq!(
        status.problem.unwrap().text,
        "keepalived did not survive a reload with its new configuration"
    );
    assert_eq!(status.vips.len(), 2);
    assert_eq!(bench.text(), good);
    assert_eq!(bench.fake.asked(), ["reload", "start"]);

    sleep(DISTRUST / 2).await;
    assert_eq!(bench.fake.asked(), [""; 0], "a text that keepalived fell over is left alone for a while");
    bench.fake.with(|inner| inner.falls_over = None);
    bench.until_active(3).await;
    assert_eq!(bench.fake.asked(), ["reload"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_by_hand_right_after_a_reload_is_respected() {
    let mut bench = Bench::serving(2).await;
    bench.fake.asked();
    bench.fake.with(|inner| {
        inner.meanwhile = Some(|inner| {
            hold::set_stopping(&inner.paths).unwrap();
            inner.unit.active = "deactivating".into();
        });
    });
    bench.want(config(3));
    bench.until(|status| status.state == State::Waiting("for keepalived to stop".into())).await;
    bench.fake.with(|inner| inner.unit.active = "inactive".into());
    let status = bench.until(|status| status.problem.is_some()).await;
    assert_eq!(status.problem.unwrap().text, "stopped by hand");
    sleep(DISTRUST).await;
    assert_eq!(bench.fake.asked(), ["reload"]);

    hold::clear_stopping(&bench.paths).unwrap();
    bench.fake.with(|inner| (inner.meanwhile, inner.unit.active) = (None, "active".into()));
    let started = Instant::now();
    bench.until_active(3).await;
    assert!(started.elapsed() < Duration::from_secs(15), "its file is trusted");
}

#[tokio::test(start_paused = true)]
async fn a_restart_right_after_a_reload_is_no_fall() {
    let mut bench = Bench::serving(2).await;
    bench.fake.asked();
    bench.fake.with(|inner| {
        inner.meanwhile = Some(|inner| {
            inner.unit.main_pid += 1;
            inner.meanwhile = None;
        });
    });
    bench.want(config(3));
    let good = |status: &Status| status.state == State::Active && status.vips.len() == 3;
    let status = bench.until(|status| good(status) || status.problem.is_some()).await;
    assert_eq!(status.problem, None);
    assert_eq!(bench.fake.asked(), ["reload", "reload"]);
}

#[tokio::test(start_paused = true)]
async fn a_keepalived_that_each_reload_replaces_gets_its_file_back() {
    let mut bench = Bench::serving(2).await;
    let good = bench.text();
    bench.fake.asked();
    bench.fake.with(|inner| inner.meanwhile = Some(|inner| inner.unit.main_pid += 1));
    bench.want(config(3));
    bench.until(|status| matches!(status.state, State::Failed(_))).await;
    assert_eq!(bench.text(), good);
    assert_eq!(bench.fake.asked(), ["reload", "reload", "reload"]);
}

/// kvip's run ended between its writing a file with three VIPs and its knowing that keepalived survives it.
async fn check_after_an_interrupted_write(active: &str, asked: [&str; 2]) {
    let text = |vips, paths: &Paths| render(&config(vips), paths, Build { dbus: true });
    let mut bench = Bench::with_files(active, |paths| {
        files::replace(&paths.keepalived_conf, text(3, paths), files::PUBLIC).unwrap();
        files::replace(&paths.loaded(), text(2, paths), files::PUBLIC).unwrap();
    });
    bench.fake.with(|inner| inner.falls_over = Some("10.0.1.2/32"));
    bench.want(config(3));
    let status = bench.until(|status| matches!(status.state, State::Failed(_))).await;
    assert_eq!(status.vips.len(), 2);
    assert_eq!(bench.text(), Some(text(2, &bench.paths)));
    sleep(DISTRUST / 2).await;
    assert_eq!(bench.fake.asked(), asked);
    bench.fake.with(|inner| inner.falls_over = None);
    bench.until_active(3).await;
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_write_is_rolled_back_too() {
    check_after_an_interrupted_write("failed", ["start", "start"]).await;
    check_after_an_interrupted_write("active", ["reload", "start"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_fall_is_seen_as_one_after_systemd_has_ended_the_rest_of_it() {
    let mut bench = Bench::serving(2).await;
    let good = bench.text();
    bench.fake.with(|inner| inner.meanwhile = Some(|inner| inner.unit.active = "deactivating".into()));
    bench.want(config(3));
    bench
        .until(|status| status.state == State::Waiting("for keepalived to read its configuration".into()))
        .await;
    sleep(STEADY * 2).await;
    bench.fake.with(|inner| (inner.meanwhile, inner.unit.active) = (None, "activating".into()));
    bench.until(|status| matches!(status.state, State::Failed(_))).await;
    assert_eq!(bench.text(), good);
}

#[tokio::test(start_paused = true)]
async fn a_keepalived_that_dies_while_a_text_is_left_alone_is_started_with_the_one_before() {
    let mut bench = Bench::serving(2).await;
    bench.fake.with(|inner| inner.falls_over = Some("10.0.1.2/32"));
    bench.want(config(3));
    bench.until(|status| matches!(status.state, State::Failed(_))).await;
    bench.fake.asked();
    bench.fake.with(|inner| inner.unit.active = "inactive".into());
    bench.until(|status| status.vips.is_empty()).await;
    bench.until(|status| status.vips.len() == 2).await;
    assert_eq!(bench.fake.asked(), ["start"]);
}

#[tokio::test(start_paused = true)]
async fn a_first_file_that_keepalived_does_not_start_with_is_removed() {
    let mut bench = Bench::new("inactive");
    bench.fake.with(|inner| inner.falls_over = Some("10.0.1.0/32"));
    bench.want(config(1));
    bench.until(|status| matches!(status.state, State::Failed(_))).await;
    assert_eq!(bench.text(), None);
}
