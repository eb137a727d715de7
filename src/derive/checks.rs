//! How a Service's endpoints are checked: as the settings say, or as its annotations do; and what follows when some are down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::annotations::{annotate, is_known};
use super::{Owner, Server, WantedServer};
use crate::config::{AllUnhealthy, CheckKind, Checks, Unhealthy};
use crate::health::check::{Check, Down, Kind, Target};
use crate::model::{Backend, Finding, ObjectKey, Protocol};
use crate::snapshot::Service;

/// What endpoints are asked; with `-path` and the like after it, how.
const CHECK: &str = "kvip.io/check";

/// How a Service's endpoints are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checking {
    check: Arc<Check>,
    port: Option<u16>,
    unhealthy: Unhealthy,
    all_unhealthy: AllUnhealthy,
}

/// What the checks make of a frontend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// What is to be asked.
    pub targets: BTreeSet<Target>,
    /// Those of them that do not answer, with what was found instead.
    pub down: BTreeMap<Target, Arc<str>>,
    /// Those that were taken out and are not to keep their connections.
    pub removed: BTreeSet<Backend>,
    /// Nobody answers, so all serve.
    pub all_are_tried: bool,
}

impl Checking {
    /// What `checks` ask for; `None`: nothing is asked.
    pub fn of(checks: &Checks) -> Option<Self> {
        let Checks { port, unhealthy, all_unhealthy, .. } = *checks;
        Some(Self { check: Arc::new(checks.check()?), port, unhealthy, all_unhealthy })
    }

    /// How endpoints behind a port of `protocol` are checked, if at all.
    pub fn check_of(&self, protocol: Protocol) -> Option<Arc<Check>> {
        self.asks(protocol).then(|| Arc::clone(&self.check))
    }

    /// How backends of a static VIP are checked, which no cluster vouches for: by a TCP connection, more often than others, as
    /// they may be all that there is of a control plane.
    pub fn of_static() -> Self {
        let (every, timeout) = (Duration::from_secs(2), Duration::from_millis(1500));
        let check = Check { kind: Kind::Tcp, every, timeout, rise: 1, fall: 2 };
        let (unhealthy, all_unhealthy) = (Unhealthy::Remove, AllUnhealthy::Serve);
        Self { check: Arc::new(check), port: None, unhealthy, all_unhealthy }
    }

    /// Takes those of `servers` out that are `down`. With `all_stay` those of TCP keep their places and get no connections:
    /// where all nodes' tables must be the same, none should lack a real server that another node can reach.
    pub fn judge(
        &self,
        protocol: Protocol,
        down: &Down,
        all_stay: bool,
        servers: &mut BTreeMap<Backend, Server>,
    ) -> Judged {
        if !self.asks(protocol) {
            return Judged::default();
        }
        let active = servers.iter().filter(|(_, server)| server.wanted == WantedServer::Active);
        let targets: Vec<(Backend, Target)> =
            active.map(|(backend, _)| (*backend, self.target(*backend))).collect();
        let out = || targets.iter().filter(|(_, target)| down.contains_key(target));
        let none_answers = !targets.is_empty() && out().count() == targets.len();
        let all_are_tried = none_answers && self.all_unhealthy == AllUnhealthy::Serve;
        // Clients of UDP and SCTP may keep one source port for ever: theirs would never leave.
        let stays = protocol == Protocol::Tcp && (all_stay || self.unhealthy == Unhealthy::Drain);
        let mut removed = BTreeSet::new();
        for (backend, _) in out().filter(|_| !all_are_tried) {
            if !stays {
                servers.remove(backend);
                removed.insert(*backend);
            } else if let Some(server) = servers.get_mut(backend) {
                server.wanted = WantedServer::Idle;
            }
        }
        let down = out().map(|(_, target)| (target.clone(), Arc::clone(&down[target]))).collect();
        let targets = targets.into_iter().map(|(_, target)| target).collect();
        Judged { targets, down, removed, all_are_tried }
    }

    /// Whether ports of `protocol` are asked: those that speak what the check does, or all when it names a port of its own.
    fn asks(&self, protocol: Protocol) -> bool {
        self.port.is_some() || protocol == spoken(&self.check.kind)
    }

    fn target(&self, backend: Backend) -> Target {
        let address = SocketAddr::new(backend.address, self.port.unwrap_or(backend.port));
        Target { address, check: Arc::clone(&self.check) }
    }
}

/// The protocol that a check speaks.
fn spoken(kind: &Kind) -> Protocol {
    if matches!(kind, Kind::Udp { .. }) { Protocol::Udp } else { Protocol::Tcp }
}

/// How the endpoints of `service` are checked. Where an annotation is wrong, what the settings say of it counts.
pub fn read(
    key: &ObjectKey,
    service: &Service,
    settings: &Checks,
    findings: &mut Vec<Finding>,
) -> Option<Checking> {
    let mut checks = settings.clone();
    let mut said = Vec::new();
    for (name, text) in written(service) {
        let rest = &name[CHECK.len()..];
        match checks.set(rest, text) {
            Ok(()) => said.push(name.as_str()),
            Err(allowed) => {
                let text = format!("annotation {name} = \"{text}\" ignored: {allowed}");
                findings.push(Finding::new(key, text).mend(annotate(key, &format!("{name}-"))));
            }
        }
    }
    let checking = Checking::of(&checks);
    findings.extend(without_effect(key, service, &said, &checks, checking.as_ref()));
    if let Some(checking) = &checking {
        findings.extend(said.iter().filter_map(|name| of_another_kind(key, name, &checking.check.kind)));
    }
    checking
}

/// The annotations of `service` that say how its endpoints are checked.
pub fn written(service: &Service) -> impl Iterator<Item = (&String, &String)> {
    let from = service.annotations.range(CHECK.to_owned()..);
    from.take_while(|(name, _)| name.starts_with(CHECK)).filter(|(name, _)| is_known(name))
}

/// What may come after `kvip.io/check` and only some kinds use.
const OF_KINDS: [(&str, &[&str]); 6] = [
    ("-path", &["http", "https"]),
    ("-status", &["http", "https"]),
    ("-host", &["http", "https"]),
    ("-service", &["grpc"]),
    ("-send", &["udp"]),
    ("-expect", &["udp"]),
];

/// The annotation `name` comes to nothing where endpoints are asked by `kind`.
fn of_another_kind(key: &ObjectKey, name: &str, kind: &Kind) -> Option<Finding> {
    let kind = kind.to_string();
    let (_, kinds) = OF_KINDS.iter().find(|(rest, _)| name.strip_prefix(CHECK) == Some(rest))?;
    if kinds.contains(&kind.as_str()) {
        return None;
    }
    let text =
        format!("annotation {name} does nothing: it counts for {}, and {kind} is asked", kinds.join(" and "));
    Some(Finding::new(key, text).mend(annotate(key, &format!("{name}-"))))
}

/// Annotations that come to nothing: no check at all, or none that fits a port.
fn without_effect(
    key: &ObjectKey,
    service: &Service,
    said: &[&str],
    checks: &Checks,
    checking: Option<&Checking>,
) -> Option<Finding> {
    let first = said.first()?;
    let Some(checking) = checking else {
        let text = format!("annotation {first} does nothing: nothing is checked without {CHECK}");
        let missing = checks.kind == CheckKind::None && !said.contains(&CHECK);
        return missing.then(|| Finding::new(key, text).mend(annotate(key, &format!("{CHECK}=http"))));
    };
    if service.ports.is_empty() || service.ports.iter().any(|port| checking.asks(port.protocol)) {
        return None;
    }
    let kind = &checking.check.kind;
    let protocol = spoken(kind);
    let text = format!("annotation {first} does nothing: {kind} asks {protocol} ports, and it has none");
    Some(Finding::new(key, text).mend(annotate(key, &format!("{CHECK}-port=PORT"))))
}

/// So many endpoints are named one by one.
const NAMED: usize = 3;

/// The findings of endpoints that are `down`.
pub fn findings(owner: &Owner, down: &BTreeMap<Target, Arc<str>>) -> Vec<Finding> {
    let named = down.iter().take(NAMED).map(|(target, found)| {
        let (address, kind) = (target.address, &target.check.kind);
        Finding::new(owner, format!("{address} does not answer its {kind} check ({found})"))
    });
    let more = down.len().saturating_sub(NAMED);
    let rest = (more > 0).then(|| Finding::new(owner, format!("{more} more do not answer their checks")));
    named.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::snapshot::ServicePort;

    fn service(protocol: Protocol, annotations: &[(&str, &str)]) -> Service {
        Service {
            ports: vec![ServicePort { name: String::new(), protocol, port: 80 }],
            annotations: annotations.iter().map(|(k, v)| (format!("kvip.io/{k}"), (*v).to_owned())).collect(),
            ..Service::default()
        }
    }

    /// What a TCP Service with these annotations comes to, and what is said of them.
    #[track_caller]
    fn check(annotations: &[(&str, &str)], wanted: &Checks, findings: &[&str]) {
        let mut found = Vec::new();
        let key = ObjectKey::new("default", "web");
        let checking = read(&key, &service(Protocol::Tcp, annotations), &Checks::standard(), &mut found);
        assert_eq!(checking, Checking::of(wanted));
        assert_eq!(found.iter().map(|finding| finding.text.as_str()).collect::<Vec<_>>(), findings);
    }

    #[test]
    fn annotations_count_before_the_settings() {
        check(&[], &Checks::standard(), &[]);
        check(&[("check", "none"), ("check-path", "/a")], &Checks::standard(), &[]);
        check(
            &[
                ("check", " https "),
                ("check-path", "/healthz?full"),
                ("check-status", "200-299,401"),
                ("check-host", "shop.example"),
                ("check-port", "8443"),
                ("check-every", "2s"),
                ("check-timeout", "500ms"),
                ("check-rise", "2"),
                ("check-fall", "3"),
                ("check-unhealthy", "remove"),
                ("check-all-unhealthy", "refuse"),
            ],
            &Checks {
                kind: CheckKind::Https,
                path: "/healthz?full".into(),
                status: "200-299,401".parse().unwrap(),
                host: Some("shop.example".into()),
                port: Some(8443),
                every: Duration::from_secs(2),
                timeout: Duration::from_millis(500),
                rise: 2,
                fall: 3,
                unhealthy: Unhealthy::Remove,
                all_unhealthy: AllUnhealthy::Refuse,
                ..Checks::standard()
            },
            &[],
        );
        let grpc = Checks { kind: CheckKind::Grpc, service: "shop.Cart".into(), ..Checks::standard() };
        check(&[("check", "grpc"), ("check-service", "shop.Cart")], &grpc, &[]);
        let (send, expect) = (vec![0, 0xff], Some(b"pong".to_vec()));
        let udp = Checks { kind: CheckKind::Udp, port: Some(53), send, expect, ..Checks::standard() };
        let said =
            [("check", "udp"), ("check-port", "53"), ("check-send", "0x00fF"), ("check-expect", "pong")];
        check(&said, &udp, &[]);
    }

    #[test]
    fn what_is_wrong_or_without_effect_is_told_and_the_rest_counts() {
        let tcp = Checks { kind: CheckKind::Tcp, rise: 3, ..Checks::standard() };
        check(
            &[("check", "tcp"), ("check-every", "5"), ("check-rise", "3"), ("check-send", "0x123")],
            &tcp,
            &[
                "annotation kvip.io/check-every = \"5\" ignored: needs a unit, 1s to 1h: \"5s\" or \"5m\"",
                "annotation kvip.io/check-send = \"0x123\" ignored: text, or 0x and pairs of hexadecimal digits, of up to 1024 bytes",
            ],
        );
        let one_of = "one of none, tcp, http, https, grpc, udp";
        let wrong = format!("annotation kvip.io/check = \"icmp\" ignored: {one_of}");
        check(&[("check", "icmp")], &Checks::standard(), &[&wrong]);
        let lone = "annotation kvip.io/check-path does nothing: nothing is checked without kvip.io/check";
        check(&[("check-path", "/a")], &Checks::standard(), &[lone]);
        let udp = Checks { kind: CheckKind::Udp, ..Checks::standard() };
        let none = "annotation kvip.io/check does nothing: udp asks udp ports, and it has none";
        check(&[("check", "udp")], &udp, &[none]);
        let mut found = Vec::new();
        let service = service(Protocol::Tcp, &[("check", "tcp"), ("check-every", "5")]);
        read(&ObjectKey::new("default", "web"), &service, &Checks::standard(), &mut found);
        let mend = "kubectl -n default annotate --overwrite service web kvip.io/check-every-";
        assert_eq!(found[0].mend.as_deref(), Some(mend));
    }

    #[test]
    fn words_of_another_kind_are_told() {
        let of = |kind| Checks { kind, ..Checks::standard() };
        let words =
            [("check-path", "/a"), ("check-status", "200"), ("check-host", "a"), ("check-service", "a")];
        let does_nothing = |word: &str, kinds: &str, kind: &str| {
            format!(
                "annotation kvip.io/check-{word} does nothing: it counts for {kinds}, and {kind} is asked"
            )
        };
        for (word, text) in words.into_iter().chain([("check-send", "a"), ("check-expect", "a")]) {
            let name = word.trim_start_matches("check-");
            let kinds = match name {
                "service" => "grpc",
                "send" | "expect" => "udp",
                _ => "http and https",
            };
            let mut found = Vec::new();
            let service = service(Protocol::Tcp, &[("check", "tcp"), (word, text)]);
            read(&ObjectKey::new("default", "web"), &service, &Checks::standard(), &mut found);
            let found: Vec<_> = found.iter().map(|finding| finding.text.as_str()).collect();
            assert_eq!(found, [does_nothing(name, kinds, "tcp")]);
        }
        let rise = [("check", "tcp"), ("check-rise", "3")];
        check(&rise, &Checks { rise: 3, ..of(CheckKind::Tcp) }, &[]);
    }

    /// Servers 1 to 4, of which these get connections after the checks, these stay without, and whether all are tried.
    #[track_caller]
    fn judge(annotations: &[(&str, &str)], down: &[u8], all_stay: bool, wanted: (&[u8], &[u8], bool)) {
        let service = service(Protocol::Tcp, annotations);
        let key = ObjectKey::new("default", "web");
        let checking = read(&key, &service, &Checks::standard(), &mut Vec::new()).unwrap();
        let backend = |last: u8| Backend { address: [10, 2, 4, last].into(), port: 80 };
        let down =
            down.iter().map(|last| (checking.target(backend(*last)), Arc::from("status 503"))).collect();
        let server = |wanted| Server { wanted, weight: 1, place: super::super::Place::Elsewhere };
        let active = |last| (backend(last), server(WantedServer::Active));
        let mut servers: BTreeMap<_, _> = (1..4).map(active).collect();
        servers.insert(backend(4), server(WantedServer::Draining));
        let judged = checking.judge(Protocol::Tcp, &down, all_stay, &mut servers);
        assert_eq!(judged.targets.len(), 3, "what drains already is not asked");
        let those = |is_active| {
            let all = servers.iter().filter(|(_, one)| (one.wanted == WantedServer::Active) == is_active);
            all.map(|(backend, _)| backend.address).collect::<Vec<_>>()
        };
        let addresses = |last: &[u8]| last.iter().map(|last| backend(*last).address).collect::<Vec<_>>();
        let (active, others, tried) = wanted;
        assert_eq!(those(true), addresses(active));
        assert_eq!(those(false), addresses(others));
        assert_eq!(judged.all_are_tried, tried);
        assert_eq!(judged.down.len(), down.len());
    }

    #[test]
    fn what_is_down_drains_or_goes_and_when_all_are_all_serve_or_none() {
        let (http, remove, refuse) =
            (("check", "http"), ("check-unhealthy", "remove"), ("check-all-unhealthy", "refuse"));
        judge(&[http], &[], false, (&[1, 2, 3], &[4], false));
        judge(&[http], &[2], false, (&[1, 3], &[2, 4], false));
        judge(&[http, remove], &[2], false, (&[1, 3], &[4], false));
        judge(&[http, remove], &[2], true, (&[1, 3], &[2, 4], false));
        judge(&[http], &[1, 2, 3], false, (&[1, 2, 3], &[4], true));
        judge(&[http, remove], &[1, 2, 3], true, (&[1, 2, 3], &[4], true));
        judge(&[http, refuse], &[1, 2, 3], false, (&[], &[1, 2, 3, 4], false));
        judge(&[http, refuse, remove], &[1, 2, 3], false, (&[], &[4], false));
        judge(&[http, refuse, remove], &[1, 2, 3], true, (&[], &[1, 2, 3, 4], false));
    }

    #[test]
    fn of_udp_and_sctp_none_stays_that_is_down() {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let service = service(protocol, &[("check", "tcp"), ("check-port", "8080")]);
            let key = ObjectKey::new("default", "dns");
            let checking = read(&key, &service, &Checks::standard(), &mut Vec::new()).unwrap();
            let backend = |last: u8| Backend { address: [10, 2, 4, last].into(), port: 53 };
            let server =
                Server { wanted: WantedServer::Active, weight: 1, place: super::super::Place::Elsewhere };
            for all_stay in [false, true] {
                let mut servers: BTreeMap<_, _> = (1..3).map(|last| (backend(last), server)).collect();
                let down = Down::from_iter([(checking.target(backend(1)), Arc::from("no answer"))]);
                checking.judge(protocol, &down, all_stay, &mut servers);
                assert_eq!(servers.into_keys().collect::<Vec<_>>(), [backend(2)], "{protocol} {all_stay}");
            }
        }
    }
}
