//! The real kernel's word for what is kvip's own change of its table, and what another hand's.

use std::process::Command;
use std::time::Duration;

use kvip::nft::client;
use kvip::nft::watch::{Touched, watch};
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

use super::{in_namespace, ruleset};

/// Longer than anything here takes, so that a wait for something that never comes ends.
const LIMIT: Duration = Duration::from_secs(10);
/// Several times as long as the watch gathers before it tells.
const SILENCE: Duration = Duration::from_millis(500);

async fn told(touched: &mut Receiver<Touched>) -> Touched {
    timeout(LIMIT, touched.changed()).await.expect("told within 10 s").expect("the watch lives");
    touched.borrow_and_update().clone()
}

/// Runs `nft` with `arguments`, and what the watch says within a while.
async fn check(touched: &mut Receiver<Touched>, arguments: &str, expected: bool) {
    let status = Command::new(client::PROGRAM).args(arguments.split(' ')).status().expect("nft runs");
    assert!(status.success(), "nft {arguments}");
    if expected {
        assert_eq!(told(touched).await.by.as_deref(), Some("nft"), "{arguments}");
    } else {
        assert!(timeout(SILENCE, touched.changed()).await.is_err(), "told of nft {arguments}");
    }
}

#[test]
fn another_hand_is_noticed_and_kvips_own_changes_are_not() {
    if !in_namespace("watch::another_hand_is_noticed_and_kvips_own_changes_are_not") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut touched = watch();
        assert_eq!(told(&mut touched).await, Touched { times: 1, by: None }, "it has begun");
        let [one, two] = [["tcp 10.87.2.50 80"], ["tcp 10.87.2.51 80"]].map(|all| ruleset(&all, &[], &[]));
        client::apply(&one).unwrap();
        told(&mut touched).await;
        client::change(&one, &two).unwrap();
        assert!(timeout(SILENCE, touched.changed()).await.is_err(), "told of kvip's own change");
        check(&mut touched, "add table inet theirs", false).await;
        check(&mut touched, "add element inet kvip vips4 { 10.87.2.77 }", true).await;
        check(&mut touched, "flush ruleset", true).await;
    });
}
