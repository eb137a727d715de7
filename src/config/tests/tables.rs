//! Tests of pools, tenants, groups and static VIPs in a host's own files.

use super::*;
use crate::model::Protocol;

const POOL: &str = "[[pools]]\nname = 'a'\naddresses = ['10.87.2.64/28']\n";
const GROUP: &str = "[[groups]]\nname = 'a'\naddresses = ['10.87.2.64/28']\nvrid = 60\n";
const STATIC: &str = "[[static]]\nvip = '10.87.2.10'\nport = 6443\nbackends = ['10.87.2.4:6443']\n";

/// The one problem of a file in which `toml` follows after `before`, which begins in line 3.
fn check_after(before: &str, toml: &str, expected: &str) {
    check(&format!("{before}{toml}"), expected);
}

fn of(toml: &str) -> Settings {
    Case::new(Some(&format!("{ALLOWED}{toml}"))).settings()
}

fn range(first: &str, last: &str) -> AddressRange {
    AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
}

fn labels(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.into(), value.into())])
}

#[test]
fn pools_say_what_they_give() {
    let text = "[[pools]]\nname = 'a'\naddresses = ['10.87.2.64/28', '10.87.2.100 - 10.87.2.120', '10.87.2.7']\n\
        auto_assign = false\npriority = -3\nnamespaces = ['shop', 'team-*']\nnamespace_labels = 'x=y'\n\
        service_labels = 'z='\navoid_0_255 = true\n[[pools]]\nname = 'b'\naddresses = ['10.87.2.200']\n";
    let first = Pool {
        name: "a".into(),
        addresses: vec![
            range("10.87.2.64", "10.87.2.79"),
            range("10.87.2.100", "10.87.2.120"),
            range("10.87.2.7", "10.87.2.7"),
        ],
        auto_assign: false,
        priority: -3,
        namespaces: vec![NamePattern::new("shop"), NamePattern::new("team-*")],
        namespace_labels: labels("x", "y"),
        service_labels: labels("z", ""),
        avoid_0_255: true,
    };
    let second = Pool::standard("b", vec![range("10.87.2.200", "10.87.2.200")]);
    assert_eq!(of(text).pools, [first, second]);
    let text =
        "vips.allowed = ['fd00:87::/64']\n[[pools]]\nname = 'a'\naddresses = ['fd00:87::10-fd00:87::1f']\n";
    let pools = Case::new(Some(text)).settings().pools;
    assert_eq!(pools[0].addresses, [range("fd00:87::10", "fd00:87::1f")]);
}

#[test]
fn pools_that_are_wrong() {
    let need = "each [[pools]] needs it";
    check("[[pools]]\naddresses = ['10.87.2.7']", &format!("3: pools.0: name is not set; {need}"));
    check("[[pools]]\nname = 'a'", &format!("3: pools.0: addresses is not set; {need}"));
    check(
        "[[pools]]\nname = 'A'\naddresses = ['10.87.2.7']",
        "4: pools.0.name = \"A\": a name is 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends",
    );
    check_after(POOL, "adresses = []", "6: unknown key `pools.0.adresses`; did you mean `addresses`?");
    check_after(POOL, "colour = 1", "6: unknown key `pools.0.colour`");
    check_after(POOL, "auto_assign = 'no'", "6: pools.0.auto_assign = \"no\": true or false, without quotes");
    check_after(POOL, "avoid_0_255 = 0", "6: pools.0.avoid_0_255 = 0: true or false, without quotes");
    check_after(
        POOL,
        "priority = '1'",
        "6: pools.0.priority = \"1\": a number, without quotes: a whole number from -1000 to 1000; pools with a higher one are tried first",
    );
    for priority in ["1001", "1.5"] {
        check_after(
            POOL,
            &format!("priority = {priority}"),
            &format!(
                "6: pools.0.priority = {priority}: a whole number from -1000 to 1000; pools with a higher one are tried first"
            ),
        );
    }
    check_after(
        POOL,
        "namespaces = 'shop'",
        "6: pools.0.namespaces = \"shop\": a list of namespaces is wanted, as in [\"shop\", \"team-*\"]",
    );
    for name in ["*-a", "Team*", "a**", "-*", ""] {
        check_after(
            POOL,
            &format!("namespaces = ['b', '{name}']"),
            &format!(
                "6: pools.0.namespaces.1 = \"{name}\": a name, or the beginning of names with one * at its end, as in \"team-*\""
            ),
        );
    }
    check_after(
        POOL,
        "namespace_labels = ['a=b']",
        "6: pools.0.namespace_labels = [\"a=b\"]: a selector in quotes is wanted, as in \"node-role=edge\"",
    );
    check_after(
        POOL,
        "service_labels = '=b'",
        "6: pools.0.service_labels = \"=b\": \"\" is not a label's key",
    );
    check(
        "[pools]\nname = 'a'",
        "3: pools = {\"name\":\"a\"}: a list of tables is wanted, each written under [[pools]]",
    );
    let case =
        Case::new(Some(&format!("pools = [1, {{ name = 'a', addresses = ['10.87.2.7'] }}]\n{ALLOWED}")));
    assert_eq!(case.problems(), ["config.toml:1: pools.0 = 1: a table is wanted, written under [[pools]]"]);
}

/// The one problem of a pool with these addresses, the last of which is wrong.
fn check_addresses(addresses: &str, expected: &str) {
    check(
        &format!("[[pools]]\nname = 'a'\naddresses = {addresses}"),
        &format!("5: pools.0.addresses{expected}"),
    );
}

#[test]
fn addresses_that_are_wrong() {
    let forms = "addresses are written \"10.87.2.64/28\", \"10.87.2.100-10.87.2.120\" or \"10.87.2.7\"";
    let list = "a list of addresses is wanted, as in [\"10.87.2.64/28\", \"10.87.2.100-10.87.2.120\"]";
    check_addresses("'10.87.2.7'", &format!(" = \"10.87.2.7\": {list}"));
    check_addresses("[]", &format!(" = []: {list}"));
    check_addresses("['10.87.2']", &format!(".0 = \"10.87.2\": {forms}"));
    check_addresses("['10.87.2.7', 'a-b']", &format!(".1 = \"a-b\": {forms}"));
    check_addresses(
        "['10.87.2.1-10.87.2.9-10.87.2.10']",
        &format!(".0 = \"10.87.2.1-10.87.2.9-10.87.2.10\": {forms}"),
    );
    check_addresses("[7]", ".0 = 7: text in quotes is wanted");
    check_addresses(
        "['10.87.2.65/28']",
        ".0 = \"10.87.2.65/28\": has host bits set; the network is \"10.87.2.64/28\"",
    );
    check_addresses(
        "['10.87.2.120-10.87.2.100']",
        ".0 = \"10.87.2.120-10.87.2.100\": the range runs backwards; write \"10.87.2.100-10.87.2.120\"",
    );
    check_addresses(
        "['10.87.2.1-fd00::1']",
        ".0 = \"10.87.2.1-fd00::1\": a range lies in one family: both ends IPv4, or both IPv6",
    );
    check_addresses(
        "['127.0.0.1-127.0.0.9']",
        ".0 = \"127.0.0.1-127.0.0.9\": no VIP can lie in 127.0.0.0/8: loopback addresses",
    );
    check_addresses("['10.87.3.0/28']", ".0 = \"10.87.3.0/28\": outside of vips.allowed (10.87.2.0/24)");
    check_addresses(
        "['10.87.2.250-10.87.3.1']",
        ".0 = \"10.87.2.250-10.87.3.1\": outside of vips.allowed (10.87.2.0/24)",
    );
    check_addresses(
        "['10.87.2.64/28', '10.87.2.70']",
        ".1 = \"10.87.2.70\": overlaps with 10.87.2.64/28 of this pool; an address belongs to one pool, once",
    );
}

#[test]
fn pools_that_stand_in_each_others_way() {
    check_after(
        POOL,
        "[[pools]]\nname = 'a'\naddresses = ['10.87.2.7']",
        "7: pools.1.name = \"a\": pools.0 is called so too; each needs a name of its own",
    );
    check_after(
        POOL,
        "[[pools]]\nname = 'b'\naddresses = ['10.87.2.7', '10.87.2.70-10.87.2.90']",
        "8: pools.1.addresses.1 = \"10.87.2.70-10.87.2.90\": overlaps with 10.87.2.64/28 of pool a; an address belongs to one pool, once",
    );
}

#[test]
fn tenants() {
    let text = "[[tenants]]\nnamespaces = ['shop', '*']\nnamespace_labels = 'x=y'\npools = ['a', '*']\naddresses = ['10.87.2.9']\nannotations = ['mode', 'check*']\n";
    let tenant = Tenant {
        namespaces: vec![NamePattern::new("shop"), NamePattern::new("*")],
        namespace_labels: labels("x", "y"),
        pools: vec![NamePattern::new("a"), NamePattern::new("*")],
        addresses: vec![range("10.87.2.9", "10.87.2.9")],
        annotations: Some(vec![NamePattern::new("mode"), NamePattern::new("check*")]),
    };
    assert_eq!(of(&format!("{POOL}{text}")).tenants, [tenant]);
    assert_eq!(of("[[tenants]]\nnamespaces = ['a']").tenants[0].annotations, None, "all");
    check_after(
        POOL,
        "[[tenants]]\npools = ['a', 'b']",
        "7: tenants.0.pools.1 = \"b\": no pool is called so; there are a",
    );
    check_after(
        POOL,
        "[[tenants]]\npools = 'a'",
        "7: tenants.0.pools = \"a\": a list of pools is wanted, as in [\"public\", \"test-*\"]",
    );
    check(
        "[[tenants]]\nnamspaces = ['a']",
        "4: unknown key `tenants.0.namspaces`; did you mean `namespaces`?",
    );
    check(
        "[[tenants]]\naddresses = ['10.87.2.9/24']",
        "4: tenants.0.addresses.0 = \"10.87.2.9/24\": has host bits set; the network is \"10.87.2.0/24\"",
    );
    // Pools may come from the cluster; without any at all the name is a finding.
    let case = Case::new(Some(&format!("{ALLOWED}[[tenants]]\npools = ['a']\n")));
    let loaded = load_with_origins(&case.sources).unwrap();
    let place = format!("{}:4", case.sources.file.display());
    let text = "tenants.0.pools.0 = \"a\": no pool is called so; there are no [[pools]]";
    assert_eq!(loaded.findings, [Finding::new(place, text)]);
    assert_eq!(loaded.settings.tenants.len(), 1);
}

/// What is right by itself and gives or carries nothing.
#[test]
fn what_can_have_no_effect_is_told() {
    let outside = "outside of vips.allowed (10.87.2.0/24)";
    check(
        "[[tenants]]\naddresses = ['10.87.0.0/16', '10.9.9.9']",
        &format!("4: tenants.0.addresses.1 = \"10.9.9.9\": {outside}"),
    );
    check_after(
        GROUP,
        "[[groups]]\nname = 'b'\naddresses = ['10.88.0.0/24']\nvrid = 61",
        &format!("9: groups.1.addresses.0 = \"10.88.0.0/24\": {outside}"),
    );
    check_after(
        POOL,
        "[[tenants]]\npools = ['a*', '*', 'zz*']",
        "7: tenants.0.pools.2 = \"zz*\": no pool is called so; there are a",
    );
    let annotation = |name: &str, problem: &str| {
        let toml = format!("[[tenants]]\nannotations = ['mod*', '*', '{name}']");
        check(&toml, &format!("4: tenants.0.annotations.2 = \"{name}\": {problem}"));
    };
    let none = "no annotation of Services is called so";
    annotation("schedulr", &format!("{none}; did you mean \"scheduler\"?"));
    annotation(
        "check-intervall*",
        &format!(
            "{none}; there are vips, pool, share-key, mode, scheduler, scheduler-flags, \
        persistence-netmask, persistence-netmask-v6, thresholds, one-packet, tunnel, zone-weights, proxy-protocol, check, check-*"
        ),
    );
    annotation("kvip.io/scheduler", "write it without kvip.io/: \"scheduler\"");
}

#[test]
fn groups_speak_as_vrrp_says_unless_they_say_otherwise() {
    let base = "[vrrp]\nadvert = '1s'\nmembers = 'a=b'\ngone_after = '90s'\n";
    let group = of(&format!("{base}{GROUP}")).groups.remove(0);
    let expected = Group {
        name: "a".into(),
        addresses: vec![range("10.87.2.64", "10.87.2.79")],
        vrrp: Vrrp {
            vrid: Vrid::new(60).unwrap(),
            advert: Duration::from_secs(1),
            transport: Transport::Multicast,
            members: labels("a", "b"),
            excluded_too: false,
            gone_after: Duration::from_secs(90),
        },
        interface: None,
    };
    assert_eq!(group, expected);
    let more = "interface = 'ens19'\nadvert = '10ms'\ntransport = 'unicast'\nmembers = ''\nexcluded_too = true\ngone_after = '5s'\n";
    let group = of(&format!("{base}{GROUP}{more}")).groups.remove(0);
    let vrrp = Vrrp {
        vrid: Vrid::new(60).unwrap(),
        advert: Duration::from_millis(10),
        transport: Transport::Unicast,
        members: BTreeMap::new(),
        excluded_too: true,
        gone_after: Duration::from_secs(5),
    };
    assert_eq!(group, Group { vrrp, interface: Some("ens19".into()), ..expected });

    let case = Case::new(Some(&format!("{ALLOWED}{GROUP}advert = '10ms'\n")));
    let origins = load_with_origins(&case.sources).unwrap().origins;
    assert_eq!(origins["groups.0.advert"], format!("{}:7", case.sources.file.display()));
    assert_eq!(origins["groups.0.transport"], "as in [vrrp]");
    assert!(!origins.contains_key("groups.0.interface"));
}

#[test]
fn groups_that_are_wrong() {
    check(
        "[[groups]]\nname = 'a'\naddresses = ['10.87.2.7']",
        "3: groups.0: vrid is not set; each [[groups]] needs it",
    );
    check(
        "[[groups]]\nname = 'vips'\naddresses = ['10.87.2.7']\nvrid = 60",
        "4: groups.0.name = \"vips\": so is the group of [vrrp] called; choose another name",
    );
    check(
        "[[groups]]\nname = 'a'\naddresses = ['10.87.2.7']\nvrid = 256",
        "6: groups.0.vrid = 256: a VRID is 1 to 255",
    );
    check(
        "[[groups]]\nname = 'a'\naddresses = ['10.87.2.7']\nvrid = 50",
        "6: groups.0.vrid = 50: vrrp.vrid is 50 too; each group needs a VRID of its own",
    );
    check_after(
        GROUP,
        "[[groups]]\nname = 'b'\naddresses = ['10.87.2.7']\nvrid = 60",
        "10: groups.1.vrid = 60: groups.0.vrid is 60 too; each group needs a VRID of its own",
    );
    check_after(
        GROUP,
        "[[groups]]\nname = 'a'\naddresses = ['10.87.2.7']\nvrid = 61",
        "8: groups.1.name = \"a\": groups.0 is called so too; each needs a name of its own",
    );
    check_after(
        GROUP,
        "[[groups]]\nname = 'b'\naddresses = ['10.87.2.79']\nvrid = 61",
        "9: groups.1.addresses.0 = \"10.87.2.79\": overlaps with 10.87.2.64/28 of group a; an address belongs to one group, once",
    );
    check_after(GROUP, "advert = '9ms'", "7: groups.0.advert = \"9ms\": 10ms to 10s");
    check_after(GROUP, "interfaces = 'a'", "7: unknown key `groups.0.interfaces`; did you mean `interface`?");
}

#[test]
fn static_vips() {
    let text = "[[static]]\nvip = '10.87.2.10'\nport = 53\nprotocol = 'udp'\nbackends = ['10.87.2.4:53']\n";
    let first = Static {
        name: "10.87.2.10:6443".into(),
        vip: "10.87.2.10".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 6443,
        backends: vec!["10.87.2.4:6443".parse().unwrap()],
        check: true,
    };
    let second = Static {
        name: "10.87.2.10:53/udp".into(),
        protocol: Protocol::Udp,
        port: 53,
        backends: vec!["10.87.2.4:53".parse().unwrap()],
        check: false,
        ..first.clone()
    };
    assert_eq!(of(&format!("{STATIC}{text}")).statics, [first.clone(), second]);
    let named = of(&format!("{STATIC}name = 'the API'\ncheck = false\n")).statics.remove(0);
    assert_eq!(named, Static { name: "the API".into(), check: false, ..first });
    let text = "vips.allowed = ['fd00:87::/64']\n[[static]]\nvip = 'fd00:87::a'\nport = 6443\nbackends = ['[fd00:87::4]:6443']\n";
    assert_eq!(Case::new(Some(text)).settings().statics[0].name, "[fd00:87::a]:6443");
}

/// The one problem of a static VIP with these values.
fn check_static(vip: &str, port: &str, backends: &str, expected: &str) {
    let toml = format!("[[static]]\nvip = '{vip}'\nport = {port}\nbackends = {backends}");
    check(&toml, expected);
}

#[test]
fn static_vips_that_are_wrong() {
    let good = "['10.87.2.4:6443']";
    check(
        "[[static]]\nport = 1\nbackends = ['10.87.2.4:1']",
        "3: static.0: vip is not set; each [[static]] needs it",
    );
    for (vip, error) in [
        ("10.87.2.10/32", "\"10.87.2.10/32\": an address without a prefix length is wanted"),
        ("x", "\"x\": not an IP address"),
        ("127.0.0.1", "\"127.0.0.1\": no VIP can lie in 127.0.0.0/8: loopback addresses"),
        ("10.87.3.1", "\"10.87.3.1\": outside of vips.allowed (10.87.2.0/24)"),
    ] {
        check_static(vip, "1", good, &format!("4: static.0.vip = {error}"));
    }
    check_static("10.87.2.10", "0", good, "5: static.0.port = 0: a port is 1 to 65535");
    check_after(
        STATIC,
        STATIC.trim_end(),
        "8: static.1.vip = \"10.87.2.10\": tcp 10.87.2.10:6443 is that of static.0 too",
    );
    check_after(STATIC, "protocol = 'icmp'", "7: static.0.protocol = \"icmp\": \"tcp\", \"udp\" or \"sctp\"");
    check_after(
        STATIC,
        "protocol = 'udp'\ncheck = true",
        "8: static.0.check = true: only backends of protocol tcp can be asked",
    );
    check_after(STATIC, "name = ''", "7: static.0.name = \"\": a name is 1 to 63 characters on one line");
    check_after(STATIC, "chek = true", "7: unknown key `static.0.chek`; did you mean `check`?");
}

#[test]
fn backends_of_static_vips_that_are_wrong() {
    let form = "a backend is written \"10.87.2.4:6443\" or \"[fd00:87::4]:6443\"";
    for (backends, error) in [
        ("['10.87.2.4']", &*format!(".0 = \"10.87.2.4\": {form}")),
        ("['10.87.2.4:0']", ".0 = \"10.87.2.4:0\": a port is 1 to 65535"),
        ("['node-a:1']", &*format!(".0 = \"node-a:1\": {form}")),
        ("['127.0.0.1:1']", ".0 = \"127.0.0.1:1\": no backend can lie in 127.0.0.0/8: loopback addresses"),
        ("[]", " = []: a list of backends is wanted, as in [\"10.87.2.4:6443\"]"),
        (
            "['10.87.2.4:1', '[fd00::4]:1']",
            ".1 = \"[fd00::4]:1\": 10.87.2.10 is IPv4 and needs IPv4 backends",
        ),
        ("['10.87.2.10:1']", ".0 = \"10.87.2.10:1\": that is the VIP itself; name the hosts' own addresses"),
        ("['10.87.2.4:1', '10.87.2.4:1']", ".1 = \"10.87.2.4:1\": written twice"),
    ] {
        check_static("10.87.2.10", "1", backends, &format!("6: static.0.backends{error}"));
    }
}

#[test]
fn a_list_of_tables_replaces_a_list_of_tables() {
    let case = Case::new(Some(&format!("{ALLOWED}{POOL}{STATIC}")))
        .drop_in("a.toml", "[[pools]]\nname = 'b'\naddresses = ['10.87.2.7']\n");
    let loaded = load_with_origins(&case.sources).unwrap();
    let names: Vec<&str> = loaded.settings.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!((names, loaded.settings.statics.len()), (vec!["b"], 1));
    let folder = case.folder.path().display();
    assert_eq!(loaded.origins["pools.0.name"], format!("{folder}/config.d/a.toml:2"));
    let case = case.drop_in("b.toml", "pools = []\n");
    assert_eq!(case.settings().pools, []);
}

#[test]
fn variables_and_flags_cannot_set_tables() {
    let case = Case::new(Some(ALLOWED))
        .env("KVIP_POOLS", "x")
        .env("KVIP_POOLS__0__NAME", "x")
        .flag("static", "x")
        .flag("groups.0.vrid", "1");
    let text = |name: &str| {
        format!(
            "`{name}` is a list of tables, which only a file can set: write [[{name}]] in config.toml or a file of config.d"
        )
    };
    assert_eq!(
        case.problems(),
        [
            format!("--set groups.0.vrid: {}", text("groups")),
            format!("--set static: {}", text("static")),
            format!("KVIP_POOLS: {}", text("pools")),
            format!("KVIP_POOLS__0__NAME: {}", text("pools")),
        ]
    );
}

#[test]
fn a_table_without_its_header_is_understood() {
    check("backends = []", "3: unknown key `vips.backends`; is [[static]] missing above it?");
    check(
        "[balancing]\nname = 'a'",
        "4: unknown key `balancing.name`; did you mean `node.name`? Or is [[pools]] or [[groups]] or [[static]] missing above it?",
    );
}

#[test]
fn every_problem_of_every_table_is_told_at_once() {
    let case = Case::new(Some(&format!(
        "{ALLOWED}[[pools]]\nname = 'B'\npriority = 'x'\n{POOL}{GROUP}advert = '1'\n[[tenants]]\npools = ['a', 'c']\n"
    )));
    let problems = case.problems();
    let starts = [
        "config.toml:3: pools.0: addresses is not set",
        "config.toml:4: pools.0.name = \"B\"",
        "config.toml:5: pools.0.priority = \"x\"",
        "config.toml:13: groups.0.advert = \"1\"",
        "config.toml:15: tenants.0.pools.1 = \"c\": no pool is called so; there are B, a",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem}");
    }
}
