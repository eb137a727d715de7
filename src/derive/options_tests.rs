//! What each annotation may say; what comes of it in IPVS is in the cases tests/golden/options and options-wrong.

use super::*;
use crate::config::SchedulerFlag;
use crate::snapshot::ServicePort;

/// The options of a Service with these annotations and one UDP port, and what is wrong with them.
fn read(said: &[(&str, &str)], affinity: bool) -> (Options, Vec<String>) {
    let service = Service {
        annotations: said
            .iter()
            .map(|(name, text)| (format!("kvip.io/{name}"), (*text).to_owned()))
            .collect(),
        affinity: affinity.then_some(Duration::from_mins(1)),
        ports: vec![ServicePort { name: String::new(), protocol: Protocol::Udp, port: 53 }],
        ..Service::default()
    };
    let mut settings = Settings::standard(Vec::new());
    settings.balancing.scheduler_flags = [SchedulerFlag::ShPort, SchedulerFlag::MhFallback].into();
    let mut findings = Vec::new();
    let options = Options::of(&ObjectKey::new("default", "web"), &service, &settings, &mut findings);
    (options, findings.into_iter().map(|finding| finding.text).collect())
}

/// IPVS balances a UDP port of IPv4 so.
#[track_caller]
fn check(said: &[(&str, &str)], affinity: bool, balanced: &str) {
    let (options, findings) = read(said, affinity);
    assert_eq!(findings, [""; 0], "{said:?}");
    let frontend = Frontend { vip: [10, 87, 2, 50].into(), protocol: Protocol::Udp, port: 53 };
    assert_eq!(options.balancing(frontend).to_string(), balanced, "{said:?}");
}

#[test]
fn annotations_count_before_settings() {
    check(&[], false, "wlc");
    for scheduler in Scheduler::ALL {
        let flags = match scheduler {
            Scheduler::Sh => "sh sh-port",
            Scheduler::Mh => "mh mh-fallback",
            other => other.name(),
        };
        check(&[("scheduler", scheduler.name())], false, flags);
    }
    check(&[("scheduler", "mh"), ("scheduler-flags", "")], false, "mh");
    check(
        &[("scheduler", "sh"), ("scheduler-flags", "sh-fallback, sh-port")],
        false,
        "sh sh-fallback sh-port",
    );
    check(&[("one-packet", "true")], false, "wlc ops");
    check(&[("one-packet", "false")], false, "wlc");
}

#[test]
fn persistence_is_by_address_or_network() {
    check(&[], true, "wlc persistent 60 s");
    check(&[("persistence-netmask", "24")], true, "wlc persistent 60 s by /24");
    check(&[("persistence-netmask", "255.255.0.0")], true, "wlc persistent 60 s by /16");
    let (options, _) = read(&[("persistence-netmask-v6", "64")], true);
    let affinity = options.affinity.unwrap();
    assert_eq!((affinity.prefix_v4, affinity.prefix_v6), (32, 64));
}

#[test]
fn thresholds_are_one_number_or_two() {
    let of = |text: &str| annotations::thresholds(text).ok().map(|found| (found.lower, found.upper));
    assert_eq!(of("100"), Some((0, 100)));
    assert_eq!(of("80-100"), Some((80, 100)));
    assert_eq!(of("100 - 100"), Some((100, 100)));
    for wrong in ["", "0", "0-5", "6-5", "-5", "5-", "1-2-3", "x", "4294967296"] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
}

#[test]
fn weights_are_by_zone() {
    let of = |text: &str| {
        annotations::zone_weights(text).ok().map(|weights| weights.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(of("a=3, b=0"), Some(vec![("a".into(), 3), ("b".into(), 0)]));
    for wrong in ["", "a", "a=", "=1", "a=-1", "a=65536", "a=1,", "a=1,a=2", "a=1;b=2"] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
}

#[test]
fn what_is_wrong_does_not_count_and_is_told() {
    for (name, text) in [
        ("scheduler", "WLC"),
        ("scheduler-flags", "sh-port"),
        ("persistence-netmask", "33"),
        ("persistence-netmask", "255.0.255.0"),
        ("persistence-netmask-v6", "ffff::"),
        ("thresholds", "many"),
        ("one-packet", "yes"),
        ("tunnel", "gue:0"),
        ("zone-weights", "a"),
    ] {
        let (options, findings) = read(&[(name, text)], true);
        assert_eq!(options, read(&[], true).0, "{name}");
        assert_eq!(findings.len(), 1, "{name}: {findings:?}");
        let start = format!("annotation kvip.io/{name} ignored: \"{text}\" is not ");
        assert!(findings[0].starts_with(&start), "{}", findings[0]);
    }
}
