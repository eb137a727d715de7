//! The shield with real packets: rules such as kube-proxy's take connections from another host and from this one, and
//! shielded ones they do not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use kvip::nft::{Ruleset, client};

use super::sources::{Client, VIPS};
use super::{frontend, in_namespace, nft, ruleset};

/// Port 80 stands for what IPVS would take, 81 for where kube-proxy sends connections.
const RULES: &str = "
table inet foreign {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local tcp dport 80 redirect to :81
	}
	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local tcp dport 80 redirect to :81
	}
}
";

fn listen() {
    for port in [80, 81] {
        let listener = TcpListener::bind(("::", port)).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                // Who asked may be gone.
                let _ = stream.write_all(port.to_string().as_bytes());
            }
        });
    }
}

/// The port on which a connection to port 80 of `vip` ends.
fn taken_on(vip: &str) -> String {
    let address = SocketAddr::new(vip.parse().unwrap(), 80);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

/// The first VIP of each family is shielded where `shielded` says so, the others never are.
#[test]
fn shielded_connections_are_kept_from_other_rules() {
    if !in_namespace("shield::shielded_connections_are_kept_from_other_rules") {
        return;
    }
    let other_host = Client::join();
    listen();
    assert_eq!(nft(&["-f", "-"], RULES), (true, String::new()));
    let frontends =
        ["tcp 10.87.2.50 80", "tcp 10.87.2.51 80", "tcp fd00:87:2::50 80", "tcp fd00:87:2::51 80"];
    let bare = ruleset(&frontends, &[], &["10.2.4.0/24"]);
    let shielded = [frontends[0], frontends[2]].map(frontend).into();
    for (ruleset, expected) in [(bare.clone(), "81"), (Ruleset { shielded, ..bare }, "80")] {
        client::apply(&ruleset).unwrap();
        for (vip, expected) in VIPS.into_iter().zip([expected, "81", expected, "81"]) {
            assert_eq!(taken_on(vip), expected, "{vip} from here");
            assert_eq!(other_host.run(|| taken_on(vip)), expected, "{vip} from another host");
        }
    }
}
