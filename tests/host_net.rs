//! The host's network, read and watched on the real kernel.
//!
//! Each test runs itself again inside a fresh network namespace, so that it sees only what it made.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use kvip::model::Family;
use kvip::net::{self, Address, HostFacts, PolicyKind, PolicyRoute};
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

/// Says that the process is inside its namespace already.
const INSIDE: &str = "KVIP_TEST_INSIDE_NAMESPACE";

/// Longer than anything here takes, so that a wait for something that never comes ends.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs the test called `name` inside a network namespace of its own with the veth pair `one` and `two`.
fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        ip("link add one type veth peer name two");
        ip("link set one up");
        ip("link set two up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(test());
    }
    let flags = if rustix::process::geteuid().is_root() { "-n" } else { "-Urn" };
    let output = Command::new("unshare")
        .args([flags.as_ref(), std::env::current_exe().expect("the test's own path").as_os_str()])
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare, of util-linux");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "inside the namespace:\n{said}");
}

/// Runs `ip` with `arguments`, which must succeed.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("ip, of iproute2");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Runs many `ip` commands in one process, which is fast.
fn ip_batch(lines: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("batch");
    std::fs::write(&file, lines).expect("a file");
    ip(&format!("-batch {}", file.display()));
}

/// Waits until the watched facts are as `wanted`.
async fn until(facts: &mut Receiver<HostFacts>, what: &str, wanted: impl FnMut(&HostFacts) -> bool) {
    let seen = timeout(LIMIT, facts.wait_for(wanted)).await.map(|result| result.is_ok());
    assert_eq!(seen, Ok(true), "{what}: {:#?}", *facts.borrow());
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

fn vip(text: &str) -> Address {
    let ip = address(text);
    let prefix_len = if ip.is_ipv4() { 32 } else { 128 };
    Address { ip, prefix_len, link: "one".into(), noprefixroute: true }
}

#[test]
fn a_read_finds_links_addresses_and_gateways() {
    isolated("a_read_finds_links_addresses_and_gateways", || async {
        ip("link set two down");
        ip("address add 10.9.0.1/24 dev one");
        ip("address add 10.9.0.50/32 dev one noprefixroute");
        ip("address add fd00::50/128 dev one noprefixroute nodad");
        ip("link set two up");
        ip("route add default via 10.9.0.254");
        ip("route add default via 10.9.0.253 metric 9 table 77");
        ip("-6 route add default via fe80::1 dev one");
        let facts = net::read().await.expect("facts");

        assert_eq!(facts.hostname, std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim_end());
        assert!(facts.links["lo"].loopback && !facts.links["one"].loopback);
        assert!(facts.links["one"].up && facts.links["two"].up);
        assert!(facts.addresses.contains(&vip("10.9.0.50")) && facts.addresses.contains(&vip("fd00::50")));
        let own = facts.addresses.iter().find(|a| a.ip == address("10.9.0.1")).expect("the node's address");
        assert_eq!((own.prefix_len, own.link.as_str(), own.noprefixroute), (24, "one", false));
        assert_eq!(facts.gateways, BTreeSet::from([address("10.9.0.254"), address("fe80::1")]));
        assert_eq!(facts.link_of(address("127.0.0.1")), Some("lo"));
    });
}

#[test]
fn many_next_hops_are_all_gateways() {
    isolated("many_next_hops_are_all_gateways", || async {
        ip("address add 10.9.0.1/24 dev one");
        ip("route add default nexthop via 10.9.0.2 nexthop via 10.9.0.3");
        ip("route add default via inet6 fe80::7 dev one metric 5");
        let facts = net::read().await.expect("facts");
        let wanted = ["10.9.0.2", "10.9.0.3", "fe80::7"].map(address);
        assert_eq!(facts.gateways, BTreeSet::from(wanted));
    });
}

#[test]
fn a_watch_sees_addresses_come_and_go() {
    isolated("a_watch_sees_addresses_come_and_go", || async {
        let mut facts = net::watch().await.expect("a watch");
        for text in ["10.9.0.50", "fd00::50", "169.254.255.51", "fe80::6b76:6970:51"] {
            let bits = if text.contains(':') { "128 nodad" } else { "32" };
            let (plain, mark) = (address(text), vip(text));
            let line = format!("{text}/{bits} dev one noprefixroute")
                .replace("128 nodad dev one", "128 dev one nodad");
            ip(&format!("address add {line}"));
            until(&mut facts, "added", |f| f.addresses.contains(&mark)).await;
            ip(&format!("address del {text}/{} dev one", mark.prefix_len));
            until(&mut facts, "removed", |f| !f.has(plain)).await;
        }
    });
}

#[test]
fn a_watch_sees_links_change() {
    isolated("a_watch_sees_links_change", || async {
        let mut facts = net::watch().await.expect("a watch");
        ip("link set two down");
        until(&mut facts, "no carrier", |f| !f.links["one"].up && !f.links["two"].up).await;
        ip("link set two up");
        until(&mut facts, "carrier", |f| f.links["one"].up && f.links["two"].up).await;
        ip("address add 10.9.0.1/24 dev one");
        ip("link set one name uno");
        until(&mut facts, "renamed", |f| f.link_of(address("10.9.0.1")) == Some("uno")).await;
        ip("link add bridge0 type bridge");
        ip("link set two master bridge0");
        ip("link set two nomaster");
        ip("link add last type veth peer name least");
        until(&mut facts, "added", |f| f.links.contains_key("last")).await;
        assert!(facts.borrow().links.contains_key("two"), "leaving a bridge is not being deleted");
        ip("link del uno");
        until(&mut facts, "deleted", |f| !f.links.contains_key("uno") && !f.has(address("10.9.0.1"))).await;
    });
}

#[test]
fn a_watch_sees_gateways_change() {
    isolated("a_watch_sees_gateways_change", || async {
        let gateways = |texts: &[&str]| texts.iter().map(|text| address(text)).collect::<BTreeSet<_>>();
        let mut facts = net::watch().await.expect("a watch");
        ip("address add 10.9.0.1/24 dev one");
        ip("route add default via 10.9.0.2");
        until(&mut facts, "added", |f| f.gateways == gateways(&["10.9.0.2"])).await;
        ip("route replace default via 10.9.0.3");
        until(&mut facts, "replaced", |f| f.gateways == gateways(&["10.9.0.3"])).await;
        ip("-6 route add default via fe80::1 dev one");
        until(&mut facts, "v6 added", |f| f.gateways == gateways(&["10.9.0.3", "fe80::1"])).await;
        ip("route del default");
        until(&mut facts, "deleted", |f| f.gateways == gateways(&["fe80::1"])).await;
        ip("route add default via 10.9.0.2");
        until(&mut facts, "back", |f| f.gateways.len() == 2).await;
        ip("link set one down");
        until(&mut facts, "gone with the link, of which the kernel says nothing", |f| f.gateways.is_empty())
            .await;
    });
}

#[test]
fn what_changes_nothing_is_not_published() {
    isolated("what_changes_nothing_is_not_published", || async {
        ip("address add 10.9.0.1/24 dev one");
        let mut facts = net::watch().await.expect("a watch");
        // The links' own fe80:: addresses appear when their check for duplicates is over.
        until(&mut facts, "link-local", |f| f.addresses.iter().filter(|a| a.ip.is_ipv6()).count() == 3).await;
        facts.mark_unchanged();
        ip("link set one mtu 1400");
        ip("link set one alias idle");
        ip("route add 10.10.0.0/16 via 10.9.0.2");
        ip("address change 10.9.0.1/24 dev one valid_lft 5000 preferred_lft 5000");
        ip("address add 10.9.0.77/32 dev one");
        timeout(LIMIT, facts.changed()).await.expect("in time").expect("a watch");
        assert!(facts.borrow_and_update().has(address("10.9.0.77")), "published before the one change");
    });
}

#[test]
fn a_new_holder_is_known_within_milliseconds() {
    isolated("a_new_holder_is_known_within_milliseconds", || async {
        let mut facts = net::watch().await.expect("a watch");
        let mut best = LIMIT;
        for _ in 0..20 {
            ip("address add 10.9.0.50/32 dev one noprefixroute");
            let start = std::time::Instant::now();
            until(&mut facts, "added", |f| f.has(address("10.9.0.50"))).await;
            best = best.min(start.elapsed());
            ip("address del 10.9.0.50/32 dev one");
            until(&mut facts, "removed", |f| !f.has(address("10.9.0.50"))).await;
        }
        assert!(best < Duration::from_millis(10), "{best:?}");
    });
}

#[test]
fn a_watch_ends_with_its_readers() {
    isolated("a_watch_ends_with_its_readers", || async {
        let metrics = tokio::runtime::Handle::current().metrics();
        let facts = net::watch().await.expect("a watch");
        assert_eq!(metrics.num_alive_tasks(), 1);
        drop(facts);
        let ended = async || {
            while metrics.num_alive_tasks() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, ended()).await.expect("in time");
    });
}

#[test]
fn a_watch_survives_lost_events() {
    isolated("a_watch_survives_lost_events", || async {
        let mut facts = net::watch().await.expect("a watch");
        let line = |n: u32| format!("address add 10.20.{}.{}/32 dev one noprefixroute", n / 250, n % 250 + 1);
        let storm: Vec<String> = (0..4000).map(line).collect();
        // The runtime has but this thread, so that nobody reads events meanwhile: far more than the socket holds.
        ip_batch(&storm.join("\n"));
        ip("address add 10.9.0.50/32 dev one noprefixroute");
        until(&mut facts, "all", |f| f.addresses.contains(&vip("10.9.0.50")) && f.addresses.len() > 4000)
            .await;
        ip("address del 10.9.0.50/32 dev one");
        until(&mut facts, "and goes on", |f| !f.has(address("10.9.0.50"))).await;
    });
}

#[test]
fn an_address_is_removed_once_and_for_all() {
    isolated("an_address_is_removed_once_and_for_all", || async {
        ip("address add 10.9.0.1/24 dev one");
        ip("address add 10.9.0.50/32 dev one noprefixroute");
        ip("address add fd00::50/128 dev one noprefixroute nodad");
        for text in ["10.9.0.50", "fd00::50"] {
            assert!(net::read().await.expect("facts").has(address(text)));
            for time in ["first", "second"] {
                net::remove_address(&vip(text))
                    .await
                    .unwrap_or_else(|error| panic!("{text} {time}: {error:?}"));
                assert!(!net::read().await.expect("facts").has(address(text)));
            }
        }
        let nowhere = Address { link: "nowhere".into(), ..vip("10.9.0.50") };
        net::remove_address(&nowhere).await.expect("a link that is gone took its addresses along");
        assert!(net::read().await.expect("facts").has(address("10.9.0.1")));
    });
}

#[test]
fn an_address_that_is_no_vip_is_left_alone() {
    isolated("an_address_that_is_no_vip_is_left_alone", || async {
        ip("address add 10.9.0.1/24 dev one noprefixroute");
        ip("address add 10.9.0.2/32 dev one");
        for own in net::read().await.expect("facts").addresses {
            let error = net::remove_address(&own).await.expect_err("no VIP's mark");
            assert!(matches!(error, net::Error::NotMarked { .. }), "{error:?}");
        }
        let facts = net::read().await.expect("facts");
        assert!(facts.has(address("10.9.0.1")) && facts.has(address("10.9.0.2")));
    });
}

#[test]
fn rules_and_routes_of_others_are_left_alone() {
    isolated("rules_and_routes_of_others_are_left_alone", || async {
        let foreign = |act: &str| {
            for family in ["-4", "-6"] {
                ip(&format!(
                    "{family} rule {act} priority 51 fwmark 0x1000000/0x1000000 lookup 5087 protocol static"
                ));
                ip(&format!("{family} route {act} local default dev lo table 5087 proto static metric 7"));
            }
        };
        foreign("add");
        assert_eq!(net::read().await.expect("facts").policy_routes, BTreeSet::new());
        let kinds = [PolicyKind::Rule { mark: 0x100_0000, priority: 50 }, PolicyKind::LocalRoute];
        let own = |family| kinds.map(|kind| PolicyRoute { family, table: 5087, kind });
        let own: BTreeSet<PolicyRoute> = [Family::V4, Family::V6].into_iter().flat_map(own).collect();
        for time in ["first", "second"] {
            for one in &own {
                assert!(net::add_policy_route(one).await.expect("added"), "{one} the {time} time");
            }
            assert_eq!(net::read().await.expect("facts").policy_routes, own);
            for one in &own {
                net::remove_policy_route(one).await.expect("removed");
                net::remove_policy_route(one).await.expect("gone already is success");
            }
            assert_eq!(net::read().await.expect("facts").policy_routes, BTreeSet::new());
        }
        // Only what is there can be deleted.
        foreign("del");
    });
}

#[test]
fn neighbours_tell_who_holds_an_address() {
    isolated("neighbours_tell_who_holds_an_address", || async {
        // The peer lives in a namespace of its own, else the kernel would answer for both over loopback.
        let mut peer = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().expect("a namespace");
        let moved = async || {
            while !Command::new("ip")
                .args(["link", "set", "two", "netns", &peer.id().to_string()])
                .status()?
                .success()
                || net::read().await.is_ok_and(|facts| facts.links.contains_key("two"))
            {
                tokio::task::yield_now().await;
            }
            std::io::Result::Ok(())
        };
        timeout(LIMIT, moved()).await.expect("in time").expect("moved");
        let inside = |command: &str| {
            let pid = peer.id().to_string();
            let status = Command::new("nsenter")
                .args(["-t", &pid, "-n", "ip"])
                .args(command.split_whitespace())
                .status()
                .expect("nsenter, of util-linux");
            assert!(status.success(), "{command}");
        };
        inside("link set two address 02:00:00:00:00:02 up");
        inside("address add 10.9.0.2/24 dev two");
        inside("address add 10.9.0.50/32 dev two noprefixroute");
        inside("address add fd00::2/64 dev two nodad");
        ip("address add 10.9.0.1/24 dev one");
        ip("address add fd00::1/64 dev one nodad");
        // The kernel asks from a link-local address, of which it takes two seconds to be sure that nobody has it.
        ip("address add fe80::1/64 dev one nodad");
        let link = net::read().await.expect("facts").links["one"].index;

        let wanted = ["10.9.0.2", "10.9.0.50", "fd00::2"].map(address);
        let table = net::resolve(link, &BTreeSet::from(wanted), LIMIT).await.expect("a table");
        // Nobody says that an address leaves, and the kernel remembers who had it.
        inside("address del 10.9.0.50/32 dev two");
        let moment = Duration::from_secs(1);
        let later = net::resolve(link, &BTreeSet::from(wanted), moment).await.expect("a table");
        inside("address add 10.9.0.50/32 dev two noprefixroute");
        let again = net::resolve(link, &BTreeSet::from(wanted), LIMIT).await.expect("a table");
        ip("neighbour add 10.9.0.7 lladdr 02:00:00:00:00:07 dev one nud permanent");
        let fixed = net::resolve(link, &[address("10.9.0.7")].into(), moment).await.expect("a table");
        peer.kill().expect("ended");
        peer.wait().expect("ended");
        assert_eq!(wanted.map(|ip| later.contains_key(&ip)), [true, false, true]);
        assert!(fixed.contains_key(&address("10.9.0.7")), "what the admin says stands");
        assert_eq!(again, table);

        for ip in wanted {
            assert_eq!(table.get(&ip).map(ToString::to_string).as_deref(), Some("02:00:00:00:00:02"), "{ip}");
        }
        let nodes = [("node-b", vec![wanted[0]]), ("node-c", vec![address("10.9.0.3")])];
        let nodes = nodes.map(|(name, addresses)| (name.to_owned(), addresses)).into();
        assert_eq!(net::owner_of(wanted[1], &table, &nodes), Some("node-b"));
        let missing =
            net::resolve(link, &BTreeSet::from([address("10.9.0.9")]), Duration::from_millis(50)).await;
        assert!(!missing.expect("a table").contains_key(&address("10.9.0.9")));
    });
}
