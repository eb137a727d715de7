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
    let found = firewall.dropping(&frontend(Protocol::Tcp, 80)).map(|found| found.0[0].1);
    assert_eq!(found, expected, "{rules:?}");
    assert_eq!(firewall.dropping(&frontend(Protocol::Udp, 80)), None);
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
    let found = firewall.dropping(&frontend(Protocol::Tcp, 80)).map(|found| found.0[0].1);
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
        let found = firewall.dropping(&frontend(Protocol::Tcp, 80));
        assert_eq!(found.as_ref().map(Dropping::words).as_deref(), words);
        let vip = FRONTEND.parse().unwrap();
        assert_eq!(found.map(|found| found.mend(vip)).unwrap_or_default(), mend);
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
        let chain = Chain { table: table.into(), name: chain.into(), rules: Vec::new(), closed: false };
        chain.open(vip.parse().unwrap())
    };
    assert_eq!(mend("ip filter", "INPUT", FRONTEND), "iptables -I INPUT -d 10.87.2.52 -j ACCEPT");
    assert_eq!(mend("ip6 filter", "INPUT", "fd00::1"), "ip6tables -I INPUT -d fd00::1 -j ACCEPT");
    assert_eq!(mend("ip filter", "OUTPUT", FRONTEND), "iptables -I OUTPUT -d 10.87.2.52 -j ACCEPT");
    assert_eq!(
        mend("inet filter", "input", "fd00::1"),
        "nft insert rule inet filter input ip6 daddr fd00::1 accept"
    );
}
