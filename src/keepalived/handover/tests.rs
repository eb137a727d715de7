//! Hand-overs on a host whose anchors leave when the test says so, on paused time.

use std::convert::Infallible;

use super::*;
use crate::files;
use crate::net::Address;

const LIMIT: Duration = Duration::from_secs(10);

fn vrid(number: i64) -> Vrid {
    Vrid::new(number).unwrap()
}

/// A host on which VRIDs 50 and 51 have instances and weights.
fn host(weights: [i16; 2]) -> (tempfile::TempDir, Paths) {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    write(&paths.keepalived_conf, "");
    weight::write(&paths, vrid(50), weights[0]).unwrap();
    weight::write(&paths, vrid(51), weights[1]).unwrap();
    (root, paths)
}

/// kvip's file with both VRIDs.
fn write(file: &std::path::Path, more: &str) {
    let vrids = "    virtual_router_id 50\n    virtual_router_id 51\n";
    files::replace(file, format!("{}\n{vrids}{more}", super::super::MARKER), files::PUBLIC).unwrap();
}

fn weights_of(paths: &Paths) -> [Option<i16>; 2] {
    [50, 51].map(|n| weight::read(paths, vrid(n)).unwrap())
}

fn holding(held: bool) -> HostFacts {
    let address = |family| Address {
        ip: anchor(vrid(50), family),
        prefix_len: 32,
        link: "eth0".into(),
        noprefixroute: true,
    };
    let addresses = if held { [Family::V4, Family::V6].map(address).into() } else { BTreeSet::new() };
    HostFacts { addresses, ..HostFacts::default() }
}

/// The host's addresses: the anchors leave `time` after this call, and only while the weight asks for it.
fn leaving_after(paths: &Paths, time: Duration) -> impl AsyncFnMut() -> Result<HostFacts, Infallible> {
    let (start, paths) = (Instant::now(), paths.clone());
    async move || {
        let low = weight::read(&paths, vrid(50)).unwrap() <= Some(weight::LEAVING);
        Ok(holding(!(low && start.elapsed() >= time)))
    }
}

#[tokio::test(start_paused = true)]
async fn the_holder_leaves_softly() {
    let (_root, paths) = host([64, 0]);
    let read = leaving_after(&paths, Duration::from_secs(3));
    let outcome = before_stop(&paths, LIMIT, read).await.unwrap();
    let Outcome::Left { after } = outcome else { panic!("{outcome:?}") };
    assert!(after >= Duration::from_secs(3) && after < Duration::from_secs(4), "{after:?}");
    assert_eq!(weights_of(&paths), [Some(weight::OUT); 2]);
    assert!(hold::stopping(&paths));
    before_start(&paths, []).unwrap();
    assert!(!hold::held(&paths));
    assert_eq!(weights_of(&paths), [Some(weight::OUT); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_marked_only_where_instances_are_stopped() {
    let (_root, paths) = host([0, 0]);
    let stop = async || {
        before_stop(&paths, LIMIT, async || Ok::<_, Infallible>(holding(false))).await.unwrap();
        let marked = hold::stopping(&paths);
        before_start(&paths, []).unwrap();
        marked
    };
    assert!(stop().await);
    files::replace(&paths.keepalived_conf, "vrrp_instance A {\n}\n", files::PUBLIC).unwrap();
    write(&paths.fragment(), "");
    assert!(stop().await, "in the fragment");
    files::remove(&paths.fragment()).unwrap();
    assert!(!stop().await, "somebody else's");
    let none = format!("{}\nglobal_defs {{\n}}\n", super::super::MARKER);
    files::replace(&paths.keepalived_conf, none, files::PUBLIC).unwrap();
    assert!(!stop().await, "none");
    files::remove(&paths.keepalived_conf).unwrap();
    assert!(!stop().await, "no file: a start would be skipped, and with it what ends the mark");
    assert_eq!(weights_of(&paths), [Some(weight::OUT); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_backup_goes_out_at_once() {
    let (_root, paths) = host([0, 0]);
    let outcome =
        drain(&paths, LIMIT, WhenAlone::KeepServing, async || Ok::<_, Infallible>(holding(false))).await;
    assert_eq!(outcome.unwrap(), Outcome::NotHolder);
    assert_eq!(weights_of(&paths), [Some(weight::OUT); 2]);
    assert!(hold::drained(&paths));
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_nobody_answers_changes_nothing() {
    let (_root, paths) = host([64, weight::OUT]);
    let read = async || Ok::<_, Infallible>(holding(true));
    let outcome = drain(&paths, LIMIT, WhenAlone::KeepServing, read).await.unwrap();
    assert!(
        matches!(&outcome, Outcome::Alone { serving: true, anchors, .. } if anchors.len() == 2),
        "{outcome:?}"
    );
    assert_eq!(weights_of(&paths), [Some(64), Some(weight::OUT)]);
    assert!(!hold::drained(&paths));

    let outcome = drain(&paths, LIMIT, WhenAlone::GoDown, read).await.unwrap();
    assert!(matches!(outcome, Outcome::Alone { serving: false, .. }), "{outcome:?}");
    assert_eq!(weights_of(&paths), [Some(weight::OUT); 2]);
    assert!(hold::drained(&paths));
}

#[tokio::test(start_paused = true)]
async fn the_wait_lasts_four_adverts_at_least() {
    let (_root, paths) = host([64, 0]);
    write(&paths.keepalived_conf, "    advert_int 10\n");
    let start = Instant::now();
    let read = leaving_after(&paths, Duration::from_secs(38));
    let outcome = before_stop(&paths, LIMIT, read).await.unwrap();
    assert!(matches!(outcome, Outcome::Left { .. }), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(40));
}

#[tokio::test(start_paused = true)]
async fn a_stop_goes_down_even_when_the_addresses_cannot_be_read() {
    let (_root, paths) = host([64, 0]);
    let outcome = before_stop(&paths, LIMIT, async || Err::<HostFacts, _>("no netlink")).await;
    assert_eq!(outcome.unwrap_err().to_string(), "cannot read this host's addresses: no netlink");
    assert_eq!(weights_of(&paths), [Some(weight::OUT); 2]);
}

#[test]
fn missing_weights_are_made_for_every_vrid_of_the_file() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    write(&paths.fragment(), "");
    files::replace(&paths.weight(vrid(51)), "64\n", files::PUBLIC).unwrap();
    files::replace(&paths.weight(vrid(52)), "junk", files::PUBLIC).unwrap();
    hold::set_stopping(&paths).unwrap();
    before_start(&paths, []).unwrap();
    assert_eq!(vrids_here(&paths).unwrap(), [50, 51, 52].map(vrid).into());
    assert_eq!(weights_of(&paths), [Some(weight::OUT), Some(64)]);
    assert_eq!(weight::read(&paths, vrid(52)).unwrap(), Some(weight::OUT));
}

#[test]
fn a_weight_that_cannot_be_written_leaves_no_mark_of_a_stop() {
    let (_root, paths) = host([0, 0]);
    files::remove(&paths.weight(vrid(51))).unwrap();
    std::fs::create_dir(paths.weight(vrid(51))).unwrap();
    hold::set_stopping(&paths).unwrap();
    before_start(&paths, []).unwrap_err();
    assert!(!hold::stopping(&paths), "keepalived starts all the same");
}

#[tokio::test(start_paused = true)]
async fn of_two_groups_one_may_find_a_taker_and_the_other_not() {
    let (_root, paths) = host([64, 64]);
    let both = [50, 51].map(|n| anchor(vrid(n), Family::V4));
    let start = Instant::now();
    let read = async || {
        let left = start.elapsed() >= Duration::from_secs(2);
        let here = both.iter().filter(|ip| !left || **ip == both[1]);
        let address = |ip: &IpAddr| Address { ip: *ip, ..holding(true).addresses.pop_first().unwrap() };
        Ok::<_, Infallible>(HostFacts { addresses: here.map(address).collect(), ..HostFacts::default() })
    };
    let outcome = drain(&paths, LIMIT, WhenAlone::KeepServing, read).await.unwrap();
    let told = outcome.to_string();
    assert!(told.starts_with("no other node took over VRID 51 within 10."), "{told}");
    assert_eq!(weights_of(&paths), [Some(0), Some(64)], "what was taken over is not taken back");
    assert!(!hold::drained(&paths));
}

#[test]
fn groups_of_the_settings_are_closed_before_any_file_names_them() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::under(root.path());
    weight::write(&paths, vrid(50), 64).unwrap();
    before_start(&paths, [vrid(50), vrid(51)]).unwrap();
    assert_eq!(weights_of(&paths), [Some(64), Some(weight::OUT)]);
}
