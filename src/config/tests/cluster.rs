//! Tests of the cluster's settings: what the ConfigMap comes to beside a host's files.

use super::*;

const PLACE: &str = "ConfigMap kvip-system/kvip, key config.toml";
const POOL: &str = "[[pools]]\nname = 'a'\naddresses = ['10.87.2.64/28']\n";

fn host(toml: &str) -> (Case, HostLayers) {
    let case = Case::new(Some(toml));
    let host = read_host(&case.sources).unwrap_or_else(|problems| panic!("{problems:#?}"));
    (case, host)
}

/// What `cluster` comes to below a host that sets `own`.
fn combined(own: &str, cluster: &str) -> Loaded {
    with_cluster(&host(own).1, Some(cluster)).unwrap_or_else(|unusable| panic!("{unusable:#?}"))
}

/// The findings as lines, with the host's folder left out.
fn findings(own: &str, cluster: &str) -> Vec<String> {
    let (case, host) = host(own);
    let folder = format!("{}/", case.folder.path().display());
    let loaded = with_cluster(&host, Some(cluster)).unwrap_or_else(|unusable| panic!("{unusable:#?}"));
    loaded.findings.iter().map(|finding| finding.to_string().replace(&folder, "")).collect()
}

/// The one finding about the cluster's text `toml`, which follows after a good `[vips]` in lines 1 and 2, and that the
/// settings are those of `[vips]` and `good` alone.
fn check_left_out(toml: &str, expected: &str, good: &str) {
    assert_eq!(findings("", &format!("{ALLOWED}{toml}\n")), [format!("{PLACE}:{expected}")], "{toml}");
    let left = combined("", &format!("{ALLOWED}{toml}\n")).settings;
    assert_eq!(left, combined("", &format!("{ALLOWED}{good}\n")).settings, "{toml}");
}

#[test]
fn the_cluster_may_say_all_that_must_agree() {
    let text = format!(
        "{ALLOWED}[asking]\nexternal_ips = true\n[vrrp]\nvrid = 51\n[balancing]\nscheduler = 'rr'\n{POOL}\
         [[tenants]]\nnamespaces = ['shop']\npools = ['a']\n\
         [[groups]]\nname = 'edge'\naddresses = ['10.87.2.70']\nvrid = 60\n"
    );
    let loaded = combined("[node]\nname = 'node-a'\n", &text);
    assert_eq!(loaded.findings, []);
    // The same text as a host's own comes to the same.
    let own = Case::new(Some(&format!("node.name = 'node-a'\n{text}"))).settings();
    assert_eq!(loaded.settings, own);
    assert_eq!(loaded.origins["vrrp.vrid"], format!("{PLACE}:6"));
    assert_eq!(loaded.origins["pools.0.name"], format!("{PLACE}:10"));
}

#[test]
fn without_a_config_map_the_host_is_alone() {
    let (_case, host) = host(ALLOWED);
    assert_eq!(with_cluster(&host, None), Ok(host.alone()));
    assert_eq!(with_cluster(&host, Some("")), Ok(host.alone()));
    assert_eq!(host.alone().settings, defaults());
}

#[test]
fn what_the_host_says_counts_and_the_difference_is_told() {
    let cluster = format!("{ALLOWED}[vrrp]\nvrid = 51\nadvert = '1s'\ntransport = 'unicast'\n");
    let case = Case::new(Some("[vrrp]\nvrid = 52\nadvert = '1000ms'\n"))
        .drop_in("a.toml", "vips.allowed = ['10.87.3.0/24']")
        .env("KVIP_VRRP__TRANSPORT", "multicast");
    let folder = case.folder.path().display();
    let loaded = with_cluster(&read_host(&case.sources).unwrap(), Some(&cluster)).unwrap();
    assert_eq!((loaded.settings.vrrp.vrid.get(), loaded.settings.vrrp.transport), (52, Transport::Multicast));
    assert_eq!(loaded.settings.allowed, ["10.87.3.0/24".parse().unwrap()]);
    let finding = |key: &str, text: String| {
        Finding::new(key, text).mend(format!("take {key} out of one of them, so that all nodes do the same"))
    };
    let expected = [
        finding(
            "vips.allowed",
            format!(
                "{folder}/config.d/a.toml:1 sets [\"10.87.3.0/24\"], which counts on this node; {PLACE}:2 sets [\"10.87.2.0/24\"], which does not"
            ),
        ),
        finding(
            "vrrp.vrid",
            format!(
                "{folder}/config.toml:2 sets 52, which counts on this node; {PLACE}:4 sets 51, which does not"
            ),
        ),
        finding(
            "vrrp.transport",
            format!(
                "KVIP_VRRP__TRANSPORT sets multicast, which counts on this node; {PLACE}:6 sets \"unicast\", which does not"
            ),
        ),
    ];
    assert_eq!(loaded.findings, expected, "1000ms and 1s are the same");
    assert_eq!(
        findings(&format!("{ALLOWED}{POOL}"), "[[pools]]\nname = 'b'\naddresses = ['10.87.2.7']\n"),
        [format!(
            "pools: config.toml:3 writes [[pools]], which counts on this node; {PLACE}:1 writes [[pools]], which does not"
        )]
    );
    assert_eq!(findings(&format!("{ALLOWED}{POOL}"), POOL), Vec::<String>::new());
}

#[test]
fn a_bad_value_is_left_out_alone() {
    let vrid = "[vrrp]\nvrid = 51\n";
    check_left_out(&format!("{vrid}advert = '3ms'"), "5: vrrp.advert = \"3ms\": 10ms to 10s", vrid);
    check_left_out(
        &format!("{vrid}advrt = '1s'"),
        "5: unknown key `vrrp.advrt`; did you mean `advert`?",
        vrid,
    );
    check_left_out("[balancing]\nmode = 5", "4: balancing.mode = 5: text in quotes is wanted", "");
}

#[test]
fn a_bad_table_is_left_out_alone() {
    let bad = "[[pools]]\nname = 'b'\naddresses = ['10.87.2.7', 'x']\n";
    let addresses = "addresses are written \"10.87.2.64/28\", \"10.87.2.100-10.87.2.120\" or \"10.87.2.7\"";
    check_left_out(&format!("{bad}{POOL}"), &format!("5: pools.0.addresses.1 = \"x\": {addresses}"), POOL);
    // A misspelt restriction must not widen what it was to narrow.
    check_left_out(
        &format!("{POOL}namspaces = ['shop']\n[[pools]]\nname = 'b'\naddresses = ['10.87.2.7']"),
        "6: unknown key `pools.0.namspaces`; did you mean `namespaces`?",
        "[[pools]]\nname = 'b'\naddresses = ['10.87.2.7']",
    );
    check_left_out(
        &format!("{POOL}[[pools]]\nname = 'b'\naddresses = ['10.88.0.0/24']"),
        "8: pools.1.addresses.0 = \"10.88.0.0/24\": outside of vips.allowed (10.87.2.0/24)",
        POOL,
    );
    check_left_out(
        "[[groups]]\nname = 'a'\naddresses = ['10.87.2.7']\nvrid = 50",
        "6: groups.0.vrid = 50: vrrp.vrid is 50 too; each group needs a VRID of its own",
        "",
    );
    let wanted = "a list of tables is wanted, each written under [[pools]]";
    assert_eq!(findings("", &format!("pools = 5\n{ALLOWED}")), [format!("{PLACE}:1: pools = 5: {wanted}")]);
}

#[test]
fn where_a_good_table_stands_does_not_shift() {
    let loaded = combined("", &format!("{ALLOWED}[[pools]]\nname = 'b'\n{POOL}"));
    assert_eq!(loaded.settings.pools.len(), 1);
    assert_eq!(loaded.origins["pools.0.name"], format!("{PLACE}:6"));
    assert!(effective(&loaded.settings).contains(&("pools.0.name".into(), "a".into())));
}

/// That tenancy stays closed when the cluster's tenants are `toml`: none of them was understood.
fn check_closed(toml: &str) {
    let tenants = combined("", &format!("{toml}\n{ALLOWED}")).settings.tenants;
    assert_eq!(tenants, [Tenant::nobody()], "{toml}");
    assert!(!tenants[0].namespaces.iter().any(|name| name.matches("shop")));
}

#[test]
fn tenants_that_cannot_be_understood_open_nothing() {
    check_closed("[[tenants]]\nnamespaces = ['S']\npools = ['a*']");
    check_closed("[[tenants]]\nnamspaces = ['shop']\npools = ['a*']");
    check_closed("tenants = ['shop']");
    check_closed("tenants = 5");
    assert_eq!(combined("", &format!("tenants = []\n{ALLOWED}")).settings.tenants, []);
    // A pool that is not there gives nothing, so its tenant stays as it is.
    let text = format!("{ALLOWED}[[tenants]]\nnamespaces = ['shop']\npools = ['a', 'b']\n{POOL}");
    let loaded = combined("", &text);
    let finding = "tenants.0.pools.1 = \"b\": no pool is called so; there are a";
    assert_eq!(loaded.findings, [Finding::new(format!("{PLACE}:5"), finding)]);
    assert_eq!(loaded.settings.tenants[0].pools.len(), 2);
    // So with an annotation, and with addresses that are not allowed any more.
    let own = "[[tenants]]\nannotations = ['shedule', 'mode']\naddresses = ['10.88.0.1']\n".to_owned();
    let said = findings("", &format!("{ALLOWED}{own}"));
    assert_eq!(
        said,
        [
            format!(
                "{PLACE}:4: tenants.0.annotations.0 = \"shedule\": no annotation of Services is called so; did you mean \"scheduler\"?"
            ),
            format!(
                "{PLACE}:5: tenants.0.addresses.0 = \"10.88.0.1\": outside of vips.allowed (10.87.2.0/24)"
            ),
        ]
    );
    assert_eq!(combined("", &format!("{ALLOWED}{own}")).settings.tenants[0].addresses.len(), 1);
}

#[test]
fn what_is_the_hosts_own_does_not_count() {
    let own = "each host's own, so it does not count here; set it in config.toml on the hosts";
    check_left_out("[node]\nname = 'x'", &format!("3: node: {own}"), "");
    check_left_out("[cluster]\nkubeconfig = '/x'\nx = 1", &format!("3: cluster: {own}"), "");
    check_left_out("[[static]]\nvip = '10.87.2.7'", &format!("3: static: {own}"), "");
}

#[test]
fn what_the_cluster_makes_wrong_on_the_host_is_left_out() {
    let own = format!(
        "{POOL}[[static]]\nvip = '10.87.2.10'\nport = 1\nbackends = ['10.87.2.4:1']\n\
         [[groups]]\nname = 'edge'\naddresses = ['10.87.2.7']\nvrid = 51\n"
    );
    let cluster = "[vips]\nallowed = ['10.88.0.0/16']\n[vrrp]\nvrid = 51\n";
    assert_eq!(
        findings(&own, cluster),
        [
            "config.toml:3: pools.0.addresses.0 = \"10.87.2.64/28\": outside of vips.allowed (10.88.0.0/16)",
            "config.toml:5: static.0.vip = \"10.87.2.10\": outside of vips.allowed (10.88.0.0/16)",
            "config.toml:11: groups.0.vrid = 51: vrrp.vrid is 51 too; each group needs a VRID of its own",
        ]
    );
    let settings = combined(&own, cluster).settings;
    assert_eq!((settings.pools, settings.statics, settings.groups), (Vec::new(), Vec::new(), Vec::new()));
}

#[test]
fn no_vip_is_allowed_until_someone_says_which() {
    let own = "cluster.settings_map = 'kube-system/vips'\n";
    let text =
        "vips.allowed: not set, so no VIP is served until config.toml or ConfigMap kube-system/vips sets it";
    assert_eq!(findings(own, "[vrrp]\nvrid = 51\n"), [text]);
    assert_eq!(findings(own, ALLOWED), Vec::<String>::new());
    let bad = "vrrp.vrid = 0\nvips.allowed = ['10.0.0.0/8']";
    assert_eq!(
        findings(own, bad),
        ["ConfigMap kube-system/vips, key config.toml:1: vrrp.vrid = 0: a VRID is 1 to 255"]
    );
}

/// Why the cluster's text cannot be used at all.
fn check_unusable(cluster: &str, expected: &str) {
    let unusable = with_cluster(&host("").1, Some(cluster)).expect_err("unusable");
    let lines: Vec<String> = unusable.findings.iter().map(ToString::to_string).collect();
    assert_eq!(lines, [format!("{PLACE}:{expected}; the last good settings of the cluster stay")]);
}

#[test]
fn a_text_that_would_take_every_vip_is_not_used() {
    check_unusable("[vrrp\n", "1:6: not TOML: unclosed table, expected `]`");
    check_unusable(
        "vips.allowed = []",
        "1: vips.allowed = []: no VIP could be served; name at least one network",
    );
    check_unusable(
        "vrrp.vrid = 0\nvips.allowed = '10.87.2.0/24'",
        "2: vips.allowed = \"10.87.2.0/24\": a list of networks is wanted, as in [\"10.87.2.0/24\"]",
    );
}

/// One network too few takes all VIPs that lie in it, so the whole text waits to be mended.
#[test]
fn a_text_that_would_take_some_vips_is_not_used() {
    let bad = "vips.allowed = ['10.87.3.0/24', '10.87.2.1/24']\nvrrp.vrid = 51\nvrrp.gone = 1";
    let text = "vips.allowed.1 = \"10.87.2.1/24\": has host bits set; the network is \"10.87.2.0/24\"";
    check_unusable(bad, &format!("1: {text}"));
    check_unusable("vips = 5", "1: vips = 5: a section is wanted, written [vips]");
    let allowed = "unknown key `vips.alowed`; did you mean `allowed`?";
    check_unusable("[vips]\nalowed = ['10.87.2.0/24']", &format!("2: {allowed}"));
    let section = "unknown key `vip`; did you mean `vips`?";
    check_unusable("vrrp.vrid = 51\n[vip]\nallowed = ['10.87.2.0/24']", &format!("2: {section}"));
    // Also where the host's own files say what is allowed: otherwise nodes would disagree about the rest.
    with_cluster(&host(ALLOWED).1, Some("vips.allowed = []")).expect_err("unusable");
    let refused = with_cluster(&host(ALLOWED).1, Some(bad)).expect_err("unusable");
    let kept = "; the last good settings of the cluster stay";
    assert_eq!(refused.findings, [Finding::new(format!("{PLACE}:1"), format!("{text}{kept}"))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever stands in the ConfigMap, there are settings or there is a reason, and each finding is one line.
    #[test]
    fn no_text_of_the_cluster_is_too_wild(value in "\\PC{0,20}|[0-9'\"a-z\\[\\]{}=,./\n]{0,20}") {
        let (_case, host) = host(ALLOWED);
        let keys = KEYS.iter().map(|key| format!("{} = {value}\n", key.path));
        let lists = TABLES.iter().map(|table| format!("{} = {value}\n", table.name));
        let tables = TABLES.iter().map(|table| {
            let keys: Vec<String> = table.keys.iter().map(|key| format!("{} = {value}\n", key.path)).collect();
            format!("[[{}]]\n{}", table.name, keys.concat())
        });
        for text in keys.chain(lists).chain(tables) {
            let findings = match with_cluster(&host, Some(&text)) {
                Ok(loaded) => loaded.findings,
                Err(unusable) => unusable.findings,
            };
            for finding in findings {
                prop_assert!(!finding.to_string().contains('\n'), "{finding}");
            }
        }
    }
}
