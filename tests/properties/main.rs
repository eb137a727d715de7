//! Properties of derive and plan over arbitrary clusters: what must hold whatever people write.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail their test")]

mod cluster;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use kvip::config::{CheckKind, Mode};
use kvip::daemon::core::Core;
use kvip::daemon::objects::{self, to_say};
use kvip::derive::{self, Changed, Deriver, Desired, Inputs};
use kvip::health::check::Down;
use kvip::ipam::{CLASS, Outcomes};
use kvip::ipvs::model::{Forward, Thresholds};
use kvip::ipvs::{Command, Key, RealServer, Service as IpvsService, Table, VirtualServer};
use kvip::keepalived::Carried;
use kvip::marks::MarkBits;
use kvip::model::{Backend, Family, Frontend, ObjectKey, Protocol, Vrid};
use kvip::net::HostFacts;
use kvip::nft::Ruleset;
use kvip::owned::Owned;
use kvip::plan::{self, Have, Plan};
use kvip::report::objects::{State, Verdict};
use kvip::snapshot::{Condition, Service, Snapshot};
use proptest::prelude::*;

use cluster::{NODES, edit, facts, in_dsr, other_facts, refusing_facts, settings, snapshot};

fn desired(snapshot: &Snapshot) -> Desired {
    derived(&mut Deriver::default(), snapshot, &BTreeSet::new(), &Down::new()).0
}

fn derived(
    deriver: &mut Deriver,
    snapshot: &Snapshot,
    dead: &BTreeSet<String>,
    unhealthy: &Down,
) -> (Desired, Changed) {
    derived_on(&facts(), deriver, snapshot, dead, unhealthy)
}

fn derived_on(
    facts: &HostFacts,
    deriver: &mut Deriver,
    snapshot: &Snapshot,
    dead: &BTreeSet<String>,
    unhealthy: &Down,
) -> (Desired, Changed) {
    let (mut settings, leaving) = (settings(), derive::Leaving::new());
    settings.checks.kind = CheckKind::Tcp;
    deriver.derive(&Inputs {
        settings: &settings,
        snapshot,
        facts,
        dead,
        leaving: &leaving,
        unhealthy,
        reach: &kvip::derive::Reach::default(),
        foreign_marks: &BTreeSet::new(),
    })
}

/// What is desired where other programs have virtual servers by `marks`.
fn derived_beside(marks: &BTreeSet<u32>, deriver: &mut Deriver, snapshot: &Snapshot) -> Desired {
    let (mut settings, facts) = (settings(), facts());
    settings.checks.kind = CheckKind::Tcp;
    settings.dsr.mark_bits = MarkBits::new(0x0100_007f).unwrap();
    let inputs = Inputs {
        settings: &settings,
        snapshot,
        facts: &facts,
        dead: &BTreeSet::new(),
        leaving: &derive::Leaving::new(),
        unhealthy: &Down::new(),
        reach: &kvip::derive::Reach::default(),
        foreign_marks: marks,
    };
    deriver.derive(&inputs).0
}

/// What is said of Services, where `before` was said.
fn said(snapshot: &Snapshot, desired: &Desired, before: &State) -> State {
    let (settings, outcomes, here) = (settings(), Outcomes::default(), BTreeSet::new());
    let assignment = &desired.assignment;
    to_say(
        &objects::Inputs {
            settings: &settings,
            snapshot,
            assignment,
            outcomes: &outcomes,
            here: &here,
            agreed: true,
        },
        before,
    )
}

/// Whether a Service asks for an address by what it says itself.
fn asks(service: &Service) -> bool {
    let ours = service.load_balancer.as_ref().is_some_and(|one| one.class.as_deref() == Some(CLASS));
    let named = service.annotations.contains_key(derive::VIPS) || !service.external_ips.is_empty();
    !service.deleting && (ours || named)
}

/// The host with what it holds: kvip's table, the VIPs that keepalived has, the addresses. `settled`: drains are over, and
/// HAProxy serves what it is to.
fn planned(desired: &Desired, table: &Table, keepalived: &BTreeSet<IpAddr>, settled: bool) -> Plan {
    planned_over(&Ruleset::default(), desired, table, keepalived, settled)
}

/// As [`planned`], where those rules were `written` before.
fn planned_over(
    written: &Ruleset,
    desired: &Desired,
    table: &Table,
    keepalived: &BTreeSet<IpAddr>,
    settled: bool,
) -> Plan {
    let facts = facts();
    let servers = desired.frontends.values().flat_map(|served| {
        served.virtual_servers.iter().flat_map(|one| served.servers.keys().map(|backend| (one.key, *backend)))
    });
    let drained = if settled { servers.collect() } else { BTreeSet::new() };
    let proxied = desired.haproxy.frontends.keys().copied().filter(|_| settled).collect();
    let carried: Carried = [(Vrid::new(50).unwrap(), keepalived.clone())].into_iter().collect();
    plan::plan(
        desired,
        &Have {
            table,
            facts: &facts,
            keepalived: &carried,
            haproxy: &proxied,
            written,
            drained: &drained,
            refused: &BTreeSet::new(),
        },
    )
}

fn applied<'a>(table: &Table, commands: impl IntoIterator<Item = &'a Command>) -> Table {
    let mut table = table.clone();
    commands.into_iter().for_each(|command| command.apply(&mut table));
    table
}

/// Brings an empty host to what is desired, until nothing changes.
fn settle(desired: &Desired, table: &Table) -> Table {
    let (mut table, nothing) = (table.clone(), BTreeSet::new());
    for _ in 0..3 {
        let plan = planned(desired, &table, &nothing, true);
        table = applied(&table, plan.prepare.iter().chain(&plan.retire));
    }
    table
}

/// `table` without the order of real servers where it does not count.
fn ordered(desired: &Desired, mut table: Table) -> Table {
    let balanced = desired.frontends.values().flat_map(|served| &served.virtual_servers);
    for one in balanced.filter(|one| !one.goes_by_order(&one.service)) {
        table.entry(one.key).and_modify(|server| server.added.clear());
    }
    table
}

/// Virtual servers as other programs may have them, some where kvip has its own in other clusters.
fn others() -> impl Strategy<Value = Table> {
    let frontend =
        |(last, protocol, port)| Key::from(Frontend { vip: IpAddr::from([10, 87, 2, last]), protocol, port });
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let by_address = (48_u8..64, protocol, prop::sample::select(vec![80, 443])).prop_map(frontend);
    let mark = prop_oneof![0_u32..0x1_0000, 0_u32..0x80];
    let by_mark = mark.prop_map(|mark| Key::Mark(Family::V4, mark));
    let server = || {
        let service = IpvsService { scheduler: "rr".into(), persistence: None, flags: 0 };
        let backend = Backend { address: [10, 99, 0, 2].into(), port: 443 };
        let real = RealServer::new(Forward::Masquerade, 3);
        VirtualServer { real_servers: [(backend, real)].into(), ..VirtualServer::new(service) }
    };
    let keys = prop::collection::vec(prop_oneof![by_address, by_mark], 0..8);
    keys.prop_map(move |keys| keys.into_iter().map(|key| (key, server())).collect())
}

/// Real servers that may get a connection: those with a weight.
fn serving(server: Option<&VirtualServer>) -> usize {
    server.map_or(0, |server| server.real_servers.values().filter(|real| real.weight > 0).count())
}

proptest! {
    #[test]
    fn planning_again_is_empty(snapshot in snapshot()) {
        let desired = desired(&snapshot);
        let table = settle(&desired, &Table::new());
        let again = planned(&desired, &table, &BTreeSet::new(), true);
        prop_assert_eq!((again.prepare, again.retire), (vec![], vec![]));
    }

    #[test]
    fn applying_reaches_what_is_desired(before in snapshot(), after in snapshot()) {
        let desired_after = desired(&after);
        let table = settle(&desired_after, &settle(&desired(&before), &Table::new()));
        let wanted = || desired_after.frontends.values().flat_map(|served| served.virtual_servers.iter().map(move |one| (served, one)));
        let keys: BTreeSet<Key> = wanted().map(|(_, one)| one.key).collect();
        prop_assert_eq!(table.keys().copied().collect::<BTreeSet<_>>(), keys);
        for (served, one) in wanted() {
            let active = served.real_servers(one).filter(|(_, wanted, _)| *wanted == derive::WantedServer::Active);
            prop_assert_eq!(serving(table.get(&one.key)), active.count());
            prop_assert_eq!(&table[&one.key].service, &one.service);
        }
    }

    #[test]
    fn the_way_there_does_not_matter(before in snapshot(), after in snapshot()) {
        let desired_after = desired(&after);
        let by_way_of = settle(&desired_after, &settle(&desired(&before), &Table::new()));
        let fresh = settle(&desired_after, &Table::new());
        prop_assert_eq!(ordered(&desired_after, by_way_of), ordered(&desired_after, fresh));
    }

    /// So that open connections go on at their pods when another node takes a VIP over, whatever each has seen before.
    #[test]
    fn mh_fills_the_same_table_on_all_nodes(
        before in in_dsr(),
        after in in_dsr(),
        dies: bool,
    ) {
        let (nobody, dead) = (BTreeSet::new(), dies.then(|| NODES[2].to_owned()).into_iter().collect());
        let on = |facts: &HostFacts, dead, snapshot| {
            derived_on(facts, &mut Deriver::default(), snapshot, dead, &Down::new()).0
        };
        let one = on(&facts(), &dead, &after);
        let by_way_of = settle(&one, &settle(&on(&facts(), &nobody, &before), &Table::new()));
        let other = on(&other_facts(), &dead, &after);
        let fresh = settle(&other, &Table::new());
        let split = |desired: &Desired| {
            let all = desired.frontends.values().flat_map(|served| served.virtual_servers.clone());
            all.filter(|one| one.forwarding == derive::Forwarding::Split).map(|one| one.key).collect::<Vec<_>>()
        };
        prop_assert_eq!(split(&one).len(), 1);
        prop_assert_eq!(split(&one), split(&other));
        for key in split(&one) {
            prop_assert_eq!(&by_way_of[&key].added, &fresh[&key].added, "{}", key);
        }
    }

    #[test]
    fn a_served_frontend_keeps_a_backend_after_every_step(
        before in snapshot(),
        after in snapshot(),
        dead in prop::collection::btree_set(prop::sample::select(&NODES[..]), 0..2),
    ) {
        let table = settle(&desired(&before), &Table::new());
        let dead = dead.into_iter().map(str::to_owned).collect();
        let desired_after = derived(&mut Deriver::default(), &after, &dead, &Down::new()).0;
        let plan = planned(&desired_after, &table, &BTreeSet::new(), false);
        // What is given to others to balance is none of IPVS's any more.
        let stays = |served: &derive::Served| served.active() > 0 && served.mode != Mode::Announce;
        let both = |frontend: &Frontend| {
            serving(table.get(&Key::from(*frontend))) > 0 && stays(&desired_after.frontends[frontend])
        };
        let kept: Vec<Key> = desired_after.frontends.keys().filter(|frontend| both(frontend)).map(|frontend| (*frontend).into()).collect();
        let mut step = table.clone();
        for command in plan.prepare.iter().chain(&plan.retire) {
            command.apply(&mut step);
            for key in &kept {
                prop_assert!(serving(step.get(key)) > 0, "{} has no backend after {:?}", key, command);
            }
        }
    }

    #[test]
    fn a_vip_that_is_still_here_keeps_its_frontends(before in snapshot(), after in snapshot()) {
        let (before, after) = (desired(&before), desired(&after));
        let table = settle(&before, &Table::new());
        let here: BTreeSet<IpAddr> = before.vips.keys().copied().collect();
        let written = [&*before.ruleset, &Ruleset::default()];
        let [plan, in_next_run] = written.map(|written| planned_over(written, &after, &table, &here, false));
        let [rules, in_next_run] = [&plan, &in_next_run].map(|plan| plan.ruleset.as_ref().unwrap());
        let frontends = table.keys().filter_map(Key::frontend);
        for frontend in frontends.filter(|frontend| !after.vips.contains_key(&frontend.vip)) {
            prop_assert!(rules.frontends.contains(frontend));
            prop_assert_eq!(rules.sources.get(frontend), before.ruleset.sources.get(frontend));
            prop_assert!(in_next_run.closed.contains(&frontend.vip));
            prop_assert!(!in_next_run.frontends.contains(frontend), "whom it is closed to is not known");
            prop_assert!(!plan.retire.contains(&Command::DelService((*frontend).into())));
        }
    }

    #[test]
    fn what_others_balance_stays_as_it_is(before in snapshot(), after in snapshot(), others in others()) {
        let mut deriver = Deriver::default();
        let others_marks: BTreeSet<u32> = others.keys().filter_map(Key::mark).map(|(_, mark)| mark).collect();
        let mut beside_them = |snapshot| derived_beside(&others_marks, &mut deriver, snapshot);
        let (before, after) = (beside_them(&before), beside_them(&after));
        let mut core = Core::new(settings(), facts(), Owned::default());
        core.own(&before);
        core.own(&after);
        prop_assert!(others_marks.iter().all(|mark| !core.owned.has(&Key::Mark(Family::V4, *mark))));
        let others: Table = others.into_iter().filter(|(key, _)| !core.owned.has(key)).collect();
        let mut host = settle(&before, &Table::new());
        host.extend(others.clone());
        // The daemon reads no more than what it owns.
        let read = host.iter().filter(|(key, _)| core.owned.has(key)).map(|(key, server)| (*key, server.clone()));
        core.know(read.collect(), &after);
        let plan = core.decide(&after, Instant::now()).plan;
        let host = applied(&host, plan.prepare.iter().chain(&plan.retire));
        for (key, server) in &others {
            prop_assert_eq!(host.get(key), Some(server));
        }
    }

    #[test]
    fn the_order_of_the_input_is_irrelevant(snapshot in snapshot()) {
        let mut turned = snapshot.clone();
        let names: Vec<_> = turned.slices.keys().cloned().collect();
        let mut slices: Vec<_> = turned.slices.values().rev().map(|slice| (**slice).clone()).collect();
        for slice in &mut slices {
            slice.endpoints.reverse();
            slice.ports.reverse();
        }
        let slices = slices.into_iter().map(Arc::new);
        turned.slices = names.into_iter().zip(slices).collect();
        prop_assert_eq!(desired(&snapshot), desired(&turned));
    }

    /// Allocators on hosts that differ must not contradict each other for ever. What waits for a claim is settled by claims.
    #[test]
    fn what_is_said_to_be_served_is_the_same_on_all_hosts(snapshot in snapshot()) {
        let served = |service: &Service| {
            let message = "served at 10.87.2.50".to_owned();
            let condition = Some(Condition { message, ..Condition::default() });
            Arc::new(Service { condition, ..service.clone() })
        };
        let services = snapshot.services.iter().map(|(key, service)| (key.clone(), served(service))).collect();
        let snapshot = Snapshot { services, ..snapshot };
        let said_on = |facts: HostFacts| {
            let (nobody, none) = (BTreeSet::new(), Down::new());
            let (desired, _) = derived_on(&facts, &mut Deriver::default(), &snapshot, &nobody, &none);
            said(&snapshot, &desired, &State::default()).services
        };
        let waits = |verdict: &Verdict| matches!(verdict, Verdict::Refused { reason, .. } if reason == "NoAddress");
        let (one, other) = (said_on(facts()), said_on(refusing_facts()));
        for key in snapshot.services.keys() {
            let of = |said: &kvip::snapshot::Map<_, kvip::report::objects::Wanted>| {
                said.get(key).map(|wanted| (wanted.verdict.clone(), wanted.addresses.clone()))
            };
            let both = (of(&one), of(&other));
            if ![&both.0, &both.1].into_iter().flatten().any(|(verdict, _)| waits(verdict)) {
                prop_assert_eq!(both.0, both.1);
            }
        }
    }

    #[test]
    fn one_bad_key_blocks_no_other(snapshot in snapshot(), bad in "[a-z0-9.]{1,12}") {
        let mut with_bad = snapshot.clone();
        let map = with_bad.vip_map.get_or_insert_default();
        prop_assume!(!map.contains_key(&bad) && bad.parse::<IpAddr>().is_err() && bad.replace('-', ":").parse::<IpAddr>().is_err());
        map.insert(bad, "default/a".into());
        let (clean, with_bad) = (desired(&snapshot), desired(&with_bad));
        prop_assert_eq!(&clean.frontends, &with_bad.frontends);
        prop_assert_eq!(clean.findings.len() + 1, with_bad.findings.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// What was kept up edit by edit is what a fresh start makes of the end, after each of 200 edits, and what is said to
    /// have changed covers all that did.
    #[test]
    fn two_hundred_edits_end_where_a_fresh_start_does(
        first in snapshot(),
        edits in prop::collection::vec((any::<u8>(), snapshot(), prop::collection::btree_set(0_usize..3, 0..2)), 200),
    ) {
        let (mut now, mut deriver) = (first, Deriver::default());
        let (mut before, _) = derived(&mut deriver, &now, &BTreeSet::new(), &Down::new());
        let mut state = said(&now, &before, &State::default());
        for (which, from, dead) in edits {
            edit(&mut now, which, &from);
            let dead = dead.into_iter().filter(|_| which >= 200).map(|index| NODES[index].to_owned()).collect();
            let falls = |position: usize| which >> (position % 8) & 1 == 1;
            let checked = before.checked.iter().enumerate().filter(|(position, _)| falls(*position));
            let down = checked.map(|(_, target)| (target.clone(), Arc::<str>::from("no answer"))).collect();
            let (kept, changed) = derived(&mut deriver, &now, &dead, &down);
            let marks = before.assignment.marks();
            let (fresh, _) = derived(&mut Deriver::keeping(marks), &now, &dead, &down);
            prop_assert_eq!(&kept, &fresh);
            state = said(&now, &kept, &state);
            prop_assert_eq!(&state, &said(&now, &fresh, &State::default()));
            for (key, service) in now.services.iter().filter(|(_, service)| !asks(service)) {
                let left = service.condition.is_some().then_some(&Verdict::NotOurs);
                prop_assert_eq!(state.services.get(key).map(|wanted| &wanted.verdict), left);
            }
            if let Changed::Servers(touched) = changed {
                let differ = |f: &Frontend| before.frontends.get(f) != fresh.frontends.get(f);
                let all = before.frontends.keys().chain(fresh.frontends.keys());
                prop_assert!(all.filter(|f| differ(f)).all(|f| touched.contains(f)));
                prop_assert_eq!(&before.ruleset, &fresh.ruleset);
                prop_assert_eq!(&before.keepalived, &fresh.keepalived);
            }
            before = fresh;
        }
    }
}

/// UDP and SCTP clients may keep one source port for ever: their endpoint goes at once, a TCP one drains.
#[test]
fn only_tcp_drains() {
    for (protocol, gone) in [(Protocol::Tcp, false), (Protocol::Udp, true), (Protocol::Sctp, true)] {
        let frontend = Frontend { vip: "10.87.2.50".parse().unwrap(), protocol, port: 80 };
        let backend = Backend { address: "10.2.0.10".parse().unwrap(), port: 8080 };
        let busy = RealServer { connections: 5, ..RealServer::new(Forward::Masquerade, 1) };
        let service = IpvsService { scheduler: "wlc".into(), persistence: None, flags: 0 };
        let wanted = derive::WantedServer::Draining;
        let draining = derive::Server { wanted, weight: 1, place: derive::Place::Elsewhere };
        let served = derive::Served {
            owner: derive::Owner::Service(ObjectKey::new("default", "a")),
            source: derive::Source::ConfigMap,
            mode: Mode::Nat,
            virtual_servers: vec![derive::Balanced {
                key: frontend.into(),
                service: service.clone(),
                forwarding: derive::Forwarding::All(Forward::Masquerade),
            }],
            servers: [(backend, draining)].into(),
            check: None,
            thresholds: Thresholds::default(),
            proxying: None,
            total: 1,
        };
        let desired =
            Desired { frontends: [(frontend, Arc::new(served))].into_iter().collect(), ..Desired::default() };
        let table: Table = [(
            frontend.into(),
            VirtualServer { real_servers: [(backend, busy)].into(), ..VirtualServer::new(service) },
        )]
        .into();
        let plan = planned(&desired, &table, &BTreeSet::new(), false);
        let key = Key::from(frontend);
        let drained = Command::SetDest(key, backend, RealServer { weight: 0, connections: 0, ..busy });
        assert_eq!(plan.retire, [if gone { Command::DelDest(key, backend) } else { drained }]);
    }
}
