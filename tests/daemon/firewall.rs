//! Other programs' rules that drop what is for a frontend: found, said, got round where that helps, and seen to be mended.

use crate::dsr::{dsr_snapshot, forwarded, only_finding};
use crate::world::{World, settings};

#[test]
fn a_firewall_that_drops_what_is_invalid_is_found_and_its_mend_seen() {
    let drops = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tct state \
                 invalid drop\n\t}\n}\n";
    let mut world = World::new(settings());
    world.kernel().rules = drops.into();
    world.list(dsr_snapshot());
    world.turn();
    world.after(1);
    assert_eq!(forwarded(&world)[1], "10.2.6.10:80 weight 1");
    let finding = only_finding(&world);
    let text = finding.to_string();
    assert!(text.contains("(ct state invalid drop (chain INPUT of table ip filter))"), "{text}");
    assert_eq!(finding.mend.unwrap(), "iptables -I INPUT -d 10.87.2.50 -j ACCEPT, and make it stay there");
    let mended = drops.replace("\t\tct state", "\t\tip daddr 10.87.2.50 accept\n\t\tct state");
    world.kernel().rules = mended;
    world.tick(62);
    assert_eq!(forwarded(&world)[1], "10.2.6.10:80 weight 1 direct route");
    assert_eq!(world.status().findings, []);
}

/// No other way of serving helps: what comes in is dropped whoever is to have it.
#[test]
fn a_firewall_that_drops_what_is_marked_is_a_finding_until_it_is_mended() {
    let drops = "table inet firewall {\n\tchain prerouting {\n\t\ttype filter hook prerouting priority filter + 10; policy \
                 accept;\n\t\tfib saddr . mark . iif oif missing drop\n\t}\n}\n";
    let mut world = World::new(settings());
    world.kernel().rules = drops.into();
    world.list(dsr_snapshot());
    world.turn();
    world.after(1);
    let direct = "10.2.6.10:80 weight 1 direct route";
    assert_eq!(forwarded(&world)[1], direct);
    let finding = only_finding(&world);
    let text = "default/nginx: 10.87.2.50 tcp 80 in mode dsr: this host drops packets by the mark that kvip gives them (fib saddr . \
                mark . iif oif missing drop (chain prerouting of table inet firewall)), so none that comes here gets to a pod";
    assert_eq!(finding.to_string(), text);
    let accept = "nft insert rule inet firewall prerouting ip daddr 10.87.2.50 accept, and make it stay there";
    assert_eq!(finding.mend.unwrap(), accept);
    world.kernel().rules = drops.replace("\t\tfib", "\t\tip daddr 10.87.2.50 accept\n\t\tfib");
    world.tick(62);
    assert_eq!(world.status().findings, []);
    assert_eq!(forwarded(&world)[1], direct);
}
