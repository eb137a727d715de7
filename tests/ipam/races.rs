//! Properties: whatever happens in whatever order.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::sleep;

use crate::cluster::{Cluster, Event, Shape};

fn shapes() -> impl Strategy<Value = Shape> {
    let fixed = proptest::option::weighted(0.3, 1_u8..6);
    let ports = proptest::sample::subsequence(vec![80, 443, 53], 1..=2);
    (0_u8..3, fixed, any::<bool>(), ports).prop_map(|(policy, fixed, shared, ports)| Shape {
        policy,
        fixed,
        shared,
        ports,
    })
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_u8..6, any::<bool>(), shapes()).prop_map(|(name, again, shape)| Event::Ask { name, again, shape }),
        2 => (0_u8..6).prop_map(|name| Event::Delete { name }),
        2 => (0_usize..3).prop_map(|node| Event::Crash { node }),
        3 => (0_usize..3, [0_u64..40, 0_u64..40]).prop_map(|(node, lag)| Event::Start { node, lag }),
        1 => (1_u8..6).prop_map(|last| Event::Foreign { last }),
    ]
}

/// Each event with the time until the next, in milliseconds: mostly none to some seconds, at times long.
fn scripts() -> impl Strategy<Value = Vec<(Event, u64)>> {
    let pause = prop_oneof![3 => 0_u64..200, 5 => 200_u64..8_000, 1 => 8_000_u64..400_000];
    proptest::collection::vec((events(), pause), 1..40)
}

fn run(script: Vec<(Event, u64)>, seed: u64, failing: u64, upgrade_at: Option<usize>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::new(upgrade_at.is_none(), seed);
        *cluster.failing.lock().unwrap() = failing;
        for node in 0..3 {
            cluster.start(node, [0, 0], upgrade_at.is_some() && node == 0);
        }
        for (place, (event, pause)) in script.iter().enumerate() {
            if upgrade_at == Some(place) {
                cluster.api.be_lax();
                cluster.api.serve_ip_addresses();
            }
            cluster.happen(event);
            sleep(Duration::from_millis(*pause)).await;
        }
        if upgrade_at.is_some() {
            cluster.api.be_lax();
            cluster.api.serve_ip_addresses();
        }
        cluster.end_well().await;
    });
}

proptest! {
    // PROPTEST_CASES asks for more; each is hours of a cluster's life.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    #[test]
    fn no_address_serves_two_and_no_claim_is_lost(script in scripts(), seed: u64, failing in 0_u64..40) {
        run(script, seed, failing, None);
    }

    #[test]
    fn nor_while_a_cluster_is_upgraded(script in scripts(), seed: u64, at in 0_usize..40, failing in 0_u64..20) {
        run(script, seed, failing, Some(at));
    }
}
