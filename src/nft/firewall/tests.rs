use super::*;

const FRONTEND: &str = "10.87.2.52";

fn frontend(protocol: Protocol, port: u16) -> Frontend {
    Frontend { vip: FRONTEND.parse().unwrap(), protocol, port }
}

/// A table whose chain of the hook input has these rules.
fn listing(table: &str, rules: &[&str], others: &str) -> String {
    let rules = rules.iter().map(|rule| ["\t\t", rule, "\n"].concat()).collect::<Vec<_>>().concat();
    format!(
        "table {table} {{\n\tchain input {{\n\t\ttype filter hook input priority filter; policy accept;\n{rules}\t}}\n{others}}}\n"
    )
}

/// Whether the rules drop what mode dsr needs at port 80, and in which words.
#[track_caller]
fn check(rules: &[&str], others: &str, expected: Option<&str>) {
    let mut firewall = Firewall::default();
    firewall.add(&listing("inet filter", rules, others));
    let found = firewall.dropping(&frontend(Protocol::Tcp, 80), Mode::Dsr).map(|found| found.rules[0].1);
    assert_eq!(found, expected, "{rules:?}");
    assert_eq!(firewall.dropping(&frontend(Protocol::Udp, 80), Mode::Dsr), None);
}

#[test]
fn rules_that_drop_what_is_invalid_are_found_however_they_are_written() {
    for rule in [
        "ct state invalid drop",
        "ct state invalid counter packets 12 bytes 720 drop",
        "ct state { invalid, untracked } drop",
        "ct state invalid,new drop",
        "ct state != { established, related, new } drop",
        "ct state vmap { invalid : drop, established : accept, related : accept }",
        "ct state invalid log prefix \"bad: \" level info drop comment \"strict\"",
        "ip daddr 10.87.2.0/24 meta l4proto tcp ct state invalid reject with icmp port-unreachable",
        "iifname != \"lo\" ct state invalid drop",
    ] {
        check(&["iifname \"lo\" accept", rule], "", Some(rule));
    }
}

#[test]
fn rules_that_are_for_others_are_not() {
    for rule in [
        "ct state established,related accept",
        "ct state vmap { established : accept, related : accept }",
        "ip saddr 192.0.2.0/24 ct state invalid drop",
        "iifname \"wan0\" ct state invalid drop",
        "ip daddr 10.87.3.0/24 ct state invalid drop",
        "udp dport 53 ct state invalid drop",
        "tcp flags & (fin | syn) == fin | syn drop",
        "meta nfproto ipv6 ct state invalid drop",
        "drop",
    ] {
        check(&[rule], "", None);
    }
}

#[test]
fn what_is_accepted_before_is_not_dropped() {
    let invalid = "ct state invalid drop";
    for rule in [
        "ip daddr 10.87.2.52 accept",
        "ip daddr { 10.87.2.0/24, 10.9.0.1 } tcp dport { 80, 8000-8080 } counter accept",
        "tcp dport 80 accept",
        "iifname { \"eth0\", \"eth1\" } ip daddr 10.87.2.52 accept",
    ] {
        check(&[rule, invalid], "", None);
        check(&[invalid, rule], "", Some(invalid));
    }
    check(&["tcp dport 443 accept", invalid], "", Some(invalid));
    check(&["ip daddr @trusted accept", invalid], "", Some(invalid));
}

/// The first packet of a connection is let in, and what comes after it is invalid where one way of it is seen.
#[test]
fn what_lets_in_new_ones_alone_drops_what_is_invalid_at_its_end() {
    let established = "ct state established,related accept";
    for (rules, end) in [
        (&["tcp dport 80 ct state new accept", established][..], "drop"),
        (
            &["iif \"lo\" accept", established, "tcp dport { 22, 80, 443 } ct state new accept"],
            "counter drop",
        ),
        (&["ct state vmap { established : accept, related : accept, new : jump services }"], "reject"),
        (&["ct state established,related,new accept"], "drop"),
        (&[established, "ct state new jump services"], "drop"),
        (&["ct state != invalid accept"], "drop"),
        (
            &[established, "iifname \"eth0\" tcp dport 80 ct state new,untracked counter accept"],
            "tcp dport 80 drop",
        ),
    ] {
        let services = "\n\tchain services {\n\t\ttcp dport 80 accept\n\t}\n";
        check_end(rules, services, Some(end), Some("policy drop"), end);
    }
    let debian = "ct state vmap { established : accept, related : accept, invalid : drop }";
    check_end(&[debian, "tcp dport 80 ct state new accept"], "", Some(debian), Some(debian), "counter drop");
}

#[test]
fn what_closes_this_host_or_lets_in_all_is_no_drop_of_what_is_invalid() {
    let established = "ct state established,related accept";
    for rules in [
        &[][..],
        &["iif \"lo\" accept", established],
        &[established, "tcp dport 80 accept"],
        &[established, "iifname \"eth0\" tcp dport 80 accept"],
        &[established, "ip daddr 10.87.2.52 accept", "tcp dport 80 ct state new accept"],
        &[established, "tcp dport 80 ct state { new, invalid } accept"],
        &[established, "tcp dport 443 ct state new accept"],
        &[established, "udp dport 80 ct state new accept"],
        &[established, "tcp dport 80 ct state new drop", "ct state new accept"],
        &["tcp dport 80 ct state new accept", "accept"],
    ] {
        check_end(rules, "", None, None, "drop");
    }
    let others = "\n\tchain guarded {\n\t\tip saddr 10.0.0.0/8 return\n\t\tdrop\n\t}\n";
    check(&["tcp dport 80 ct state new accept", "jump guarded"], others, None);
    check(&["tcp dport 80 ct state new accept", "iifname \"wan0\" drop"], "", None);
}

/// As [`check`], once with the rule `end` behind the others and once with a policy that drops.
#[track_caller]
fn check_end(rules: &[&str], others: &str, by_rule: Option<&str>, by_policy: Option<&str>, end: &str) {
    check(&[rules, &[end]].concat(), others, by_rule);
    let mut firewall = Firewall::default();
    firewall.add(&listing("inet filter", rules, others).replace("policy accept", "policy drop"));
    let found = firewall.dropping(&frontend(Protocol::Tcp, 80), Mode::Dsr).map(|found| found.rules[0].1);
    assert_eq!(found, by_policy, "{rules:?}");
    check(rules, others, by_rule.filter(|rule| *rule != end));
}

#[test]
fn chains_are_followed() {
    let others = "\n\tchain before {\n\t\tct state invalid drop\n\t}\n\n\tchain zone {\n\t\tip daddr 10.87.2.52 accept\n\t}\n";
    check(&["counter jump before"], others, Some("ct state invalid drop"));
    check(&["iifname \"eth0\" goto zone", "jump before"], others, None);
    check(&["tcp dport 22 jump before"], others, None);
    check(&["iifname \"wan0\" jump before"], others, None);
    let logged = "\n\tchain bad {\n\t\tlog prefix \"bad: \"\n\t\tcounter drop\n\t}\n";
    check(&["ct state invalid counter jump bad"], logged, Some("counter drop"));
    check(&["ct state new jump bad"], logged, None);
    let endless = "\n\tchain before {\n\t\tjump before\n\t\tct state invalid drop\n\t}\n";
    check(&["jump before"], endless, Some("ct state invalid drop"));
}

/// What IPVS hands on passes the hook output too.
#[test]
fn what_is_closed_on_the_way_out_is_named_beside_the_way_in() {
    let open = "ct state established,related,new accept";
    let policy = |listing: String| listing.replace("policy accept", "policy drop");
    let outward = |listing: String| listing.replace("input", "output");
    let within = policy(listing("inet filter", &["iif \"lo\" accept", open], ""));
    let out = outward(policy(listing("inet filter", &["oif \"lo\" accept", open], "")));
    let check = |listings: &[&str], words: Option<&str>, mend: &str| {
        let mut firewall = Firewall::default();
        for listing in listings {
            firewall.add(listing);
        }
        let found = firewall.dropping(&frontend(Protocol::Tcp, 80), Mode::Dsr);
        assert_eq!(found.as_ref().map(Dropping::words).as_deref(), words);
        let vip = FRONTEND.parse().unwrap();
        let mend = (!mend.is_empty()).then(|| format!("{mend}, and make it stay there"));
        assert_eq!(found.map(|found| found.mend(vip)), mend);
    };
    let words = |chain: &str| format!("policy drop (chain {chain} of table inet filter)");
    let mend = |chain: &str| format!("nft insert rule inet filter {chain} ip daddr 10.87.2.52 accept");
    let [both, mends] = [words("input") + " and " + &words("output"), mend("input") + "; " + &mend("output")];
    check(&[&within, &out], Some(&both), &mends);
    let mended = within.replace("\t\tiif", "\t\tip daddr 10.87.2.52 accept\n\t\tiif");
    check(&[&mended, &out], Some(&words("output")), &mend("output"));
    let mended_too = out.replace("\t\toif", "\t\tip daddr 10.87.2.52 accept\n\t\toif");
    check(&[&mended, &mended_too], None, "");
    assert_eq!(Firewall::tables(&out), ["inet filter"]);
}

/// A firewall of one table, whose chain of the hook prerouting has that priority and these rules.
fn before_routing(table: &str, priority: &str, policy: &str, rules: &[&str]) -> Firewall {
    let hook = format!("hook prerouting priority {priority}; policy {policy}");
    let mut firewall = Firewall::default();
    firewall.add(&listing(table, rules, "").replace("hook input priority filter; policy accept", &hook));
    firewall
}

/// `iptables -t mangle -A PREROUTING -m conntrack --ctstate INVALID -j DROP`, as of many a guide.
#[test]
fn what_is_invalid_is_dropped_before_the_routing_too() {
    for (priority, found) in [
        ("mangle", true),
        ("filter", true),
        ("raw + 101", true),
        ("-199", true),
        ("-200", false),
        ("raw", false),
    ] {
        let firewall = before_routing(
            "ip mangle",
            priority,
            "accept",
            &["ct state invalid counter packets 0 bytes 0 drop"],
        );
        assert_eq!(firewall.dropping(&frontend(Protocol::Tcp, 80), Mode::Dsr).is_some(), found, "{priority}");
        assert_eq!(firewall.dropping(&frontend(Protocol::Udp, 80), Mode::Dsr), None);
        assert_eq!(firewall.dropping_marked(&frontend(Protocol::Tcp, 80), Mode::Dsr), None);
    }
    let chains = "table ip mangle {\n\tchain PREROUTING {\n\t\ttype filter hook prerouting priority mangle; policy accept;\n\t}\n}\n\
                  table ip raw {\n\tchain PREROUTING {\n\t\ttype filter hook prerouting priority raw; policy accept;\n\t}\n}\n";
    assert_eq!(Firewall::tables(chains), ["ip mangle"]);
}

/// Whether rules before the routing drop what kvip has marked, of all protocols alike.
#[track_caller]
fn check_marked(priority: &str, policy: &str, rules: &[&str], expected: [Option<&str>; 2]) {
    let firewall = before_routing("inet firewall", priority, policy, rules);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let found = [FRONTEND, "fd00::1"].map(|vip| {
            let frontend = Frontend { vip: vip.parse().unwrap(), ..frontend(protocol, 80) };
            assert_eq!(firewall.dropping(&frontend, Mode::Dsr), None, "{rules:?}");
            firewall.dropping_marked(&frontend, Mode::Dsr).map(|found| found.rules[0].1)
        });
        assert_eq!(found, expected, "{rules:?} at {priority}");
    }
}

#[test]
fn rules_that_look_for_the_way_back_by_the_mark_are_found() {
    let strict = "fib saddr . mark . iif oif missing drop";
    check_marked("filter + 10", "accept", &[strict], [Some(strict); 2]);
    check_marked("mangle", "accept", &[strict], [Some(strict); 2]);
    let loose = "fib saddr . mark oif missing log prefix \"rpfilter_DROP: \" drop";
    check_marked("filter + 10", "accept", &[loose], [Some(loose); 2]);
    // iptables -t mangle -A PREROUTING -m rpfilter --validmark --invert -j DROP
    let iptables = "fib saddr . mark . iif oif 0 counter packets 2 bytes 131 drop";
    check_marked("mangle", "accept", &[iptables], [Some(iptables); 2]);
    for exists in ["fib saddr . mark . iif oif exists accept", "fib saddr . mark . iif oif != 0 accept"] {
        check_marked("mangle + 10", "drop", &[exists], [Some("policy drop"); 2]);
        check_marked("mangle + 10", "accept", &[exists, "drop"], [Some("drop"); 2]);
    }
    let firewalld = "meta nfproto ipv6 fib saddr . mark . iif oif missing drop";
    let neighbours = "icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept";
    check_marked("filter + 10", "accept", &[neighbours, firewalld], [None, Some(firewalld)]);
    let mended = ["ip daddr 10.87.2.52 accept", "ip6 daddr fd00::1 tcp dport 443 accept", strict];
    check_marked("filter + 10", "accept", &mended, [None, Some(strict)]);
}

#[test]
fn rules_that_see_no_mark_or_go_by_none_are_not() {
    let strict = "fib saddr . mark . iif oif missing drop";
    for priority in ["raw + 10", "-200", "-160", "mangle - 1"] {
        check_marked(priority, "accept", &[strict], [None; 2]);
    }
    for rule in [
        "fib saddr . iif oif missing drop",
        "fib daddr . mark . iif type != local drop",
        "iifname \"wan0\" fib saddr . mark . iif oif missing drop",
        "fib saddr . mark . iif oif exists accept",
        "ct state new drop",
        "drop",
    ] {
        check_marked("filter + 10", "accept", &[rule], [None; 2]);
    }
    let mut within = Firewall::default();
    within.add(&listing("inet filter", &[strict], ""));
    assert_eq!(within.dropping_marked(&frontend(Protocol::Tcp, 80), Mode::Dsr), None);
}

#[test]
fn the_mend_for_what_is_marked_is_firewallds_own_setting_or_a_rule() {
    let mend = |table: &str| {
        let firewall =
            before_routing(table, "filter + 10", "accept", &["fib saddr . mark . iif oif missing drop"]);
        let frontend = Frontend { vip: "fd00::1".parse().unwrap(), ..frontend(Protocol::Tcp, 80) };
        firewall.dropping_marked(&frontend, Mode::Dsr).unwrap().mend(frontend.vip)
    };
    assert_eq!(
        mend("inet firewalld"),
        "IPv6_rpfilter=no in /etc/firewalld/firewalld.conf, then systemctl restart firewalld"
    );
    assert_eq!(
        mend("inet filter"),
        "nft insert rule inet filter input ip6 daddr fd00::1 accept, and make it stay there"
    );
}

/// What is wrapped leaves as another packet, which is new.
#[test]
fn what_is_handed_on_as_it_came_alone_passes_the_way_out() {
    let rules = listing("inet filter", &["ct state invalid drop"], "");
    for (listing, modes) in [
        (rules.clone(), &[Mode::Dsr, Mode::Dr, Mode::Tunnel][..]),
        (rules.replace("hook input", "hook output"), &[Mode::Dsr, Mode::Dr]),
    ] {
        let mut firewall = Firewall::default();
        firewall.add(&listing);
        let frontend = frontend(Protocol::Tcp, 80);
        let dropping = |mode: &Mode| firewall.dropping(&frontend, *mode).is_some();
        assert_eq!(Mode::ALL.into_iter().filter(dropping).collect::<Vec<_>>(), modes);
    }
    let marked = before_routing("inet f", "filter", "accept", &["fib saddr . mark . iif oif missing drop"]);
    let dropping = |mode: &Mode| marked.dropping_marked(&frontend(Protocol::Tcp, 80), *mode).is_some();
    assert_eq!(Mode::ALL.into_iter().filter(dropping).collect::<Vec<_>>(), [Mode::Dsr]);
}

#[test]
fn only_tables_that_see_what_comes_in_or_goes_out_are_read() {
    let base = |table: &str| listing(table, &[], "");
    let forward = "table inet other {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n}\n";
    let all =
        [base("ip filter"), forward.to_owned(), base("inet kvip"), base("ip kube-proxy"), base("inet a")];
    assert_eq!(Firewall::tables(&all.concat()), ["ip filter", "inet a"]);
}

#[test]
fn the_mend_is_in_the_tools_own_words() {
    let mend = |table: &str, chain: &str, vip: &str| {
        let (table, name) = (table.into(), chain.into());
        let chain = Chain { table, name, place: Place::Input, rules: Vec::new(), closed: false };
        chain.open(vip.parse().unwrap())
    };
    assert_eq!(mend("ip filter", "INPUT", FRONTEND), "iptables -I INPUT -d 10.87.2.52 -j ACCEPT");
    assert_eq!(mend("ip6 filter", "INPUT", "fd00::1"), "ip6tables -I INPUT -d fd00::1 -j ACCEPT");
    assert_eq!(mend("ip filter", "OUTPUT", FRONTEND), "iptables -I OUTPUT -d 10.87.2.52 -j ACCEPT");
    assert_eq!(
        mend("ip mangle", "PREROUTING", FRONTEND),
        "iptables -t mangle -I PREROUTING -d 10.87.2.52 -j ACCEPT"
    );
    assert_eq!(
        mend("ip6 mangle", "PREROUTING", "fd00::1"),
        "ip6tables -t mangle -I PREROUTING -d fd00::1 -j ACCEPT"
    );
    assert_eq!(
        mend("inet filter", "input", "fd00::1"),
        "nft insert rule inet filter input ip6 daddr fd00::1 accept"
    );
}

/// What connection tracking does not know is neither new nor established nor invalid.
#[test]
fn rules_that_drop_what_is_untracked_are_found() {
    #[track_caller]
    fn check(rules: &[&str], policy: &str, expected: Option<&str>) {
        let mut firewall = Firewall::default();
        let listing = listing("inet filter", rules, "");
        firewall.add(&listing.replace("policy accept", &format!("policy {policy}")));
        let found = firewall.dropping_untracked(&frontend(Protocol::Udp, 514)).map(|found| found.rules[0].1);
        assert_eq!(found, expected, "{rules:?}");
    }
    let established = "ct state established,related accept";
    check(&[established, "udp dport 514 ct state new accept"], "drop", Some("policy drop"));
    check(&[established, "udp dport 514 ct state new accept", "reject"], "accept", Some("reject"));
    check(&["ct state untracked drop", "udp dport 514 accept"], "drop", Some("ct state untracked drop"));
    check(&[established, "udp dport 514 ct state { new, untracked } accept"], "drop", None);
    check(&[established, "udp dport 514 accept"], "drop", None);
    check(&["ct state invalid drop"], "accept", None);
    check(&[established], "drop", None);
}
