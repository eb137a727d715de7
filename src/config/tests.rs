//! Tests of loading as a whole: what a file, drop-ins, variables and flags come to, and every error's line.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::Finding;

mod balancing;
mod checks;
mod cluster;
mod installed;
mod tables;

const ALLOWED: &str = "[vips]\nallowed = [\"10.87.2.0/24\"]\n";
const MEND: &str =
    "write the networks that VIPs may come from under [vips], as in allowed = [\"10.87.2.0/24\"]";

/// Files in a folder of their own, and what is given beside them.
struct Case {
    folder: TempDir,
    sources: Sources,
}

impl Case {
    fn new(file: Option<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let sources = Sources {
            file: folder.path().join("config.toml"),
            drop_ins: folder.path().join("config.d"),
            env: Vec::new(),
            flags: Vec::new(),
        };
        if let Some(text) = file {
            fs::write(&sources.file, text).unwrap();
        }
        Self { folder, sources }
    }

    fn drop_in(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(&self.sources.drop_ins).unwrap();
        fs::write(self.sources.drop_ins.join(name), text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources.flags.push((key.into(), value.into()));
        self
    }

    fn settings(&self) -> Settings {
        load(&self.sources).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    /// Each problem's line, with the folder's name left out.
    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        let problems = load(&self.sources).expect_err("problems are expected");
        problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }
}

/// The one problem of a file that starts with a good `[vips]` in lines 1 and 2.
fn check(toml: &str, expected: &str) {
    let case = Case::new(Some(&format!("{ALLOWED}{toml}\n")));
    assert_eq!(case.problems(), [format!("config.toml:{expected}")], "{toml}");
}

/// The one problem of a file with this `allowed` alone.
fn check_allowed(element: &str, expected: &str) {
    let case = Case::new(Some(&format!("[vips]\nallowed = [\"{element}\"]\n")));
    assert_eq!(case.problems(), [format!("config.toml:2: vips.allowed.0 = \"{element}\": {expected}")]);
}

fn defaults() -> Settings {
    Settings::standard(vec!["10.87.2.0/24".parse().unwrap()])
}

#[test]
fn only_allowed_is_needed() {
    assert_eq!(Case::new(Some(ALLOWED)).settings(), defaults());
}

#[test]
fn later_sources_win_and_lists_replace_lists() {
    let case =
        Case::new(Some("vips.allowed = ['10.0.0.0/24', '10.0.1.0/24']\n[vrrp]\nvrid = 1\nadvert = '1s'"))
            .drop_in("20-b.toml", "[vrrp]\nvrid = 3")
            .drop_in(
                "10-a.toml",
                "[vrrp]\nvrid = 2\ntransport = 'unicast'\n[vips]\nallowed = ['fd00:87::/64']",
            )
            .drop_in("30-c.toml.bak", "not TOML")
            .drop_in(".hidden.toml", "not TOML");
    let settings = case.settings();
    assert_eq!(settings.vrrp.vrid.get(), 3);
    assert_eq!(settings.vrrp.advert, Duration::from_secs(1));
    assert_eq!(settings.vrrp.transport, Transport::Unicast);
    assert_eq!(settings.allowed, ["fd00:87::/64".parse().unwrap()]);

    let case =
        case.env("KVIP_VRRP__VRID", "4").env("KVIP_VRRP__MEMBERS", "edge=,zone=a").env("KVIP_LOG", "debug");
    let settings = case.settings();
    assert_eq!(settings.vrrp.vrid.get(), 4);
    assert_eq!(
        settings.vrrp.members,
        BTreeMap::from([("edge".into(), String::new()), ("zone".into(), "a".into())])
    );

    let case = case.flag("vrrp.vrid", "5").flag("vips.allowed", "[\"10.1.0.0/24\", 10.1.1.0/24]");
    let loaded = load_with_origins(&case.sources).unwrap();
    assert_eq!(loaded.settings.vrrp.vrid.get(), 5);
    assert_eq!(loaded.settings.allowed.len(), 2);
    let folder = case.folder.path().display().to_string();
    let origins = BTreeMap::from([
        ("vips.allowed", "--set".to_owned()),
        ("vrrp.vrid", "--set".to_owned()),
        ("vrrp.advert", format!("{folder}/config.toml:4")),
        ("vrrp.transport", format!("{folder}/config.d/10-a.toml:3")),
        ("vrrp.members", "KVIP_VRRP__MEMBERS".to_owned()),
    ]);
    let origins: BTreeMap<String, String> =
        origins.into_iter().map(|(key, place)| (key.to_owned(), place)).collect();
    assert_eq!(loaded.origins, origins);
}

#[test]
fn every_source_may_give_allowed() {
    assert_eq!(Case::new(None).env("KVIP_VIPS__ALLOWED", "10.87.2.0/24").settings(), defaults());
    assert_eq!(Case::new(None).drop_in("a.toml", ALLOWED).settings(), defaults());
}

#[test]
fn missing_allowed_says_what_to_write() {
    assert_eq!(Case::new(None).problems(), [format!("config.toml: not there; {MEND}")]);
    // The cluster's ConfigMap may say it, so a file that does not is no mistake yet.
    assert_eq!(Case::new(Some("")).settings(), Settings::standard(Vec::new()));
    assert_eq!(
        Case::new(Some("[vips]\nallowed = []")).problems(),
        ["config.toml:2: vips.allowed = []: no VIP could be served; name at least one network"]
    );
}

#[test]
fn every_problem_is_told_at_once() {
    let case = Case::new(Some(
        "[vips]\nallowed = [\n  '10.87.2.1/24',\n  '10.88.0.0/24',\n  'x',\n]\n[vrrp]\nvrid = 256\nvird = 1\n",
    ))
    .drop_in("a.toml", "[balancing]\nmode = 'dsp'")
    .drop_in("b.toml", "[balancing\n")
    .drop_in("c.toml", "[vips]\nallowed = [10.87.2.0/24]")
    .env("KVIP_VRRP__ADVERT", "3ms")
    .flag("cluster.config_map", "a/b/c");
    assert_eq!(
        case.problems(),
        [
            "config.d/a.toml:2: balancing.mode = \"dsp\": one of nat, dsr, dr, tunnel, proxy, announce",
            "config.d/b.toml:1:11: not TOML: unclosed table, expected `]`",
            "config.d/c.toml:2:17: not TOML: text needs quotes, as in allowed = [\"10.87.2.0/24\"]",
            "config.toml:3: vips.allowed.0 = \"10.87.2.1/24\": has host bits set; the network is \"10.87.2.0/24\"",
            "config.toml:5: vips.allowed.2 = \"x\": not a network, as in \"10.87.2.0/24\" or \"fd00:87::/64\"",
            "config.toml:8: vrrp.vrid = 256: a VRID is 1 to 255",
            "config.toml:9: unknown key `vrrp.vird`; did you mean `vrid`?",
            "--set cluster.config_map = a/b/c: namespace/name is wanted, as in \"default/vip-configmap\"",
            "KVIP_VRRP__ADVERT = 3ms: 10ms to 10s",
        ]
    );
}

#[test]
fn links_to_nowhere_and_named_pipes_are_told_and_nothing_waits() {
    use std::os::unix::fs::symlink;
    let case = Case::new(Some(ALLOWED)).drop_in("a.toml", "");
    symlink("/nowhere/at-all", case.sources.drop_ins.join("b.toml")).unwrap();
    let pipe = case.sources.drop_ins.join("c.toml");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    symlink("/dev/null", case.sources.drop_ins.join("masked.toml")).unwrap();
    assert_eq!(
        case.problems(),
        [
            "config.d/b.toml: a link to what is not there",
            "config.d/c.toml: cannot be read: it is a named pipe"
        ]
    );
    let case = Case::new(None);
    symlink("/nowhere/at-all", &case.sources.file).unwrap();
    symlink("/nowhere/at-all", &case.sources.drop_ins).unwrap();
    let both = ["config.d: a link to what is not there", "config.toml: a link to what is not there"];
    assert_eq!(case.problems(), both);
}

#[test]
fn a_folder_of_manifests_that_another_file_turns_off_names_that_file() {
    let manifests = "[cluster]\nsource = 'files'\nmanifests = '/x'\n";
    let case = Case::new(Some(&format!("{ALLOWED}{manifests}")))
        .drop_in("a.toml", "[cluster]\nsource = 'kubernetes'");
    let place = format!("{}/config.d/a.toml:2", case.folder.path().display());
    let text = load(&case.sources).unwrap_err()[0].text.clone();
    assert_eq!(
        text,
        format!("read with source = \"files\" only, and {place} sets another; change one of them")
    );
}

#[test]
fn allowed_networks() {
    let number = "needs a prefix length; for that address alone write";
    check_allowed("10.87.2.1", &format!("{number} \"10.87.2.1/32\""));
    check_allowed("fd00::1", &format!("{number} \"fd00::1/128\""));
    check_allowed("10.87.2.1/24", "has host bits set; the network is \"10.87.2.0/24\"");
    check_allowed("10.87.2.0/33", "not a network, as in \"10.87.2.0/24\" or \"fd00:87::/64\"");
    check_allowed("0.0.0.0/0", "every address there is; name the networks that are yours");
    check_allowed("::/0", "every address there is; name the networks that are yours");
    check_allowed("127.0.0.0/8", "no VIP can lie in 127.0.0.0/8: loopback addresses");
    check_allowed("169.254.7.0/24", "no VIP can lie in 169.254.0.0/16: link-local addresses");
    check_allowed("224.0.0.0/24", "no VIP can lie in 224.0.0.0/4: multicast addresses");
    check_allowed("::1/128", "no VIP can lie in ::/127: the unspecified and the loopback address");
    check_allowed("fe80::/64", "no VIP can lie in fe80::/10: link-local addresses");
    check_allowed("ff02::/16", "no VIP can lie in ff00::/8: multicast addresses");
    check_allowed(
        "::ffff:10.0.0.0/104",
        "no VIP can lie in ::ffff:0:0/96: IPv4 addresses written as IPv6; write them as IPv4",
    );
    check(
        "[cluster]\nservice_ranges = ['10.80.0.0/12', '10.87.2.0/28']",
        "2: vips.allowed.0 = \"10.87.2.0/24\": no VIP can lie in the Service range 10.80.0.0/12 of cluster.service_ranges",
    );
    check("[vips.more]\na = 1", "3: unknown key `vips.more`");
}

#[test]
fn cluster_and_node() {
    check(
        "[cluster]\nsource = 'files'",
        "4: cluster.source = \"files\": needs the folder to read, as in manifests = \"/etc/kvip/manifests\"",
    );
    check(
        "[cluster]\nmanifests = '/x'",
        "4: cluster.manifests = \"/x\": read with source = \"files\" only; set that too, or take this out",
    );
    check(
        "[cluster]\nsource = 'files'\nmanifests = 'x'",
        "5: cluster.manifests = \"x\": the whole path is wanted, from / on",
    );
    check(
        "[cluster]\nsource = 'etcd'",
        "4: cluster.source = \"etcd\": \"kubernetes\", a cluster's API, or \"files\", a folder of manifests",
    );
    check(
        "[cluster]\nsettings_map = 'kvip'",
        "4: cluster.settings_map = \"kvip\": namespace/name is wanted, as in \"default/vip-configmap\"",
    );
    check(
        "[cluster]\nkubeconfig = 'kubeconfig'",
        "4: cluster.kubeconfig = \"kubeconfig\": the whole path is wanted, from / on",
    );
    check(
        "[cluster]\nconfig_map = 'Default/x'",
        "4: cluster.config_map = \"Default/x\": namespace/name is wanted, as in \"default/vip-configmap\"",
    );
    check("[cluster]\nstale_after = '1s'", "4: cluster.stale_after = \"1s\": 2m to 1d");
    check(
        "[cluster]\nservice_ranges = '10.96.0.0/12'",
        "4: cluster.service_ranges = \"10.96.0.0/12\": a list of networks is wanted, as in [\"10.87.2.0/24\"]",
    );
    check(
        "[cluster]\nservice_ranges = ['10.96.0.1/12']",
        "4: cluster.service_ranges.0 = \"10.96.0.1/12\": has host bits set; the network is \"10.96.0.0/12\"",
    );
    check(
        "[node]\nname = 'Node A'",
        "4: node.name = \"Node A\": a Node's name is 1 to 253 lower-case letters, digits, '-' and '.'; see `kubectl get nodes`",
    );
    for name in ["", "sixteen-letters-", "a b", "a/b", "a\\n}"] {
        check(
            &format!("[node]\ninterface = \"{name}\""),
            &format!(
                "4: node.interface = \"{name}\": an interface's name is 1 to 15 letters, digits, '.', '_', '-' and '+'; see `ip link`"
            ),
        );
    }
    for address in
        ["0.0.0.0", "127.0.0.1", "224.0.0.18", "255.255.255.255", "::", "ff02::1", "::ffff:10.0.0.1"]
    {
        check(
            &format!("[node]\naddress = '{address}'"),
            &format!(
                "4: node.address = \"{address}\": a unicast address of this host is wanted; see `ip address`"
            ),
        );
    }
    check("[node]\naddress = '10.0.0'", "4: node.address = \"10.0.0\": not an IP address");
    check(
        "[node]\naddress = '10.0.0.1/24'",
        "4: node.address = \"10.0.0.1/24\": an address without a prefix length is wanted",
    );
}

#[test]
fn vrrp() {
    for vrid in ["0", "256", "-1", "1.5", "true"] {
        check(&format!("[vrrp]\nvrid = {vrid}"), &format!("4: vrrp.vrid = {vrid}: a VRID is 1 to 255"));
    }
    check("[vrrp]\nvrid = \"51\"", "4: vrrp.vrid = \"51\": a number, without quotes: a VRID is 1 to 255");
    check("[vrrp]\nexcluded_too = 'true'", "4: vrrp.excluded_too = \"true\": true or false, without quotes");
    check("[vrrp]\nadvert = 250", "4: vrrp.advert = 250: needs a unit, 10ms to 10s: \"250ms\"");
    check("[vrrp]\nadvert = '250'", "4: vrrp.advert = \"250\": needs a unit, 10ms to 10s: \"250ms\"");
    check("[vrrp]\nadvert = 11", "4: vrrp.advert = 11: needs a unit, 10ms to 10s");
    check(
        "[vrrp]\ngone_after = 1",
        "4: vrrp.gone_after = 1: needs a unit, 1s to 1h: \"1s\", \"1m\" or \"1h\"",
    );
    check(
        "[cluster]\nstale_after = 5",
        "4: cluster.stale_after = 5: needs a unit, 2m to 1d: \"5m\" or \"5h\"",
    );
    let flags = Case::new(Some(ALLOWED)).flag("cluster.stale_after", "5").flag("vrrp.vrid", "x");
    assert_eq!(
        flags.problems(),
        [
            "--set cluster.stale_after = 5: needs a unit, 2m to 1d: \"5m\" or \"5h\"",
            "--set vrrp.vrid = x: a VRID is 1 to 255",
        ]
    );
    check(
        "[vrrp]\nadvert = true",
        "4: vrrp.advert = true: a duration in quotes is wanted, as in \"250ms\" or \"5m\"",
    );
    check("[vrrp]\nadvert = '255ms'", "4: vrrp.advert = \"255ms\": a multiple of 10ms");
    check("[vrrp]\nadvert = '9ms'", "4: vrrp.advert = \"9ms\": 10ms to 10s");
    check("[vrrp]\nadvert = '11s'", "4: vrrp.advert = \"11s\": 10ms to 10s");
    check("[vrrp]\ntransport = 'udp'", "4: vrrp.transport = \"udp\": \"multicast\" or \"unicast\"");
    check("[vrrp]\ngone_after = '500ms'", "4: vrrp.gone_after = \"500ms\": 1s to 1h");
    check("[vrrp]\ngone_after = '1s500ms'", "4: vrrp.gone_after = \"1s500ms\": a multiple of 1s");
    check("[vrrp]\ngone_after = '2h'", "4: vrrp.gone_after = \"2h\": 1s to 1h");
    check(
        "[vrrp]\nmembers = 'edge'",
        "4: vrrp.members = \"edge\": a selector is key=value pairs joined by commas, as in \"node-role=edge\"",
    );
    check("[vrrp]\nmembers = 'a=b,a=c'", "4: vrrp.members = \"a=b,a=c\": the label a is given twice");
    check("[vrrp]\nmembers = '/x=b'", "4: vrrp.members = \"/x=b\": \"/x\" is not a label's key");
    check("[vrrp]\nmembers = 'x=b c'", "4: vrrp.members = \"x=b c\": \"b c\" is not a label's value");
    check(
        "[vrrp.members]\nedge = 'a'",
        "3: vrrp.members = {\"edge\":\"a\"}: a selector in quotes is wanted, as in \"node-role=edge\"",
    );
}

#[test]
fn asking() {
    check("[asking]\nannotations = 'yes'", "4: asking.annotations = \"yes\": true or false, without quotes");
    check(
        "[asking]\nload_balancers = 'all'",
        "4: asking.load_balancers = \"all\": \"off\", \"class\" (those of class kvip.io/kvip) or \"default\" (those without a class too)",
    );
    check("[asking]\nexternal_ips = 1", "4: asking.external_ips = 1: true or false, without quotes");
    check(
        "[asking]\nallocators = 'edge'",
        "4: asking.allocators = \"edge\": a selector is key=value pairs joined by commas, as in \"node-role=edge\"",
    );
    check("[asking]\ntakeover_after = '1h'", "4: asking.takeover_after = \"1h\": 1s to 10m");
    let case = Case::new(Some(ALLOWED)).env("KVIP_ASKING__EXTERNAL_IPS", "ja");
    assert_eq!(case.problems(), ["KVIP_ASKING__EXTERNAL_IPS = ja: true or false"]);

    let case =
        Case::new(Some(&format!("{ALLOWED}[asking]\nload_balancers = 'default'\nallocators = 'a=b'\n")))
            .env("KVIP_ASKING__EXTERNAL_IPS", "true")
            .flag("asking.annotations", "false");
    let expected = Asking {
        annotations: false,
        load_balancers: LoadBalancers::Default,
        external_ips: true,
        allocators: BTreeMap::from([("a".into(), "b".into())]),
        ..Asking::standard()
    };
    assert_eq!(case.settings(), Settings { asking: expected, ..defaults() });
}

#[test]
fn a_folder_of_manifests() {
    let case = Case::new(Some(&format!("{ALLOWED}[cluster]\nsource = 'files'\nmanifests = '/srv/x'\n")));
    assert_eq!(case.settings().cluster.manifests, Some("/srv/x".into()));
}

#[test]
fn keys_that_are_not_there() {
    check("[vrpp]\nvrid = 1", "3: unknown key `vrpp`; did you mean `vrrp`?");
    check("[report]\nx = 1", "3: `report` is not available in this version");
    check("[[pool]]\nname = 'x'", "3: unknown key `pool`; did you mean `pools`?");
    let case = Case::new(Some(&format!("allowed = []\nvrrp = 5\n{ALLOWED}")));
    assert_eq!(
        case.problems(),
        [
            "config.toml:1: unknown key `allowed`; did you mean `vips.allowed`?",
            "config.toml:2: vrrp = 5: a section is wanted, written [vrrp]",
        ]
    );
    let case = Case::new(Some(ALLOWED))
        .env("KVIP_VRRP__VIRD", "1")
        .env("KVIP_VRRP_ADVERT", "1s")
        .env("KVIP_VRRP_ADVERTS", "1s")
        .env("KVIP_ALLOWED", "10.9.0.0/24")
        .env("KVIP_PROBE_PORT", "1")
        .env("KVIP_COLOUR", "red")
        .flag("vrid", "1")
        .flag("vrrp", "1");
    assert_eq!(
        case.problems(),
        [
            "--set vrid: unknown key `vrid`; did you mean `vrrp.vrid`?",
            "--set vrrp = 1: a section; say --set vrrp.KEY=VALUE",
            "KVIP_ALLOWED: unknown variable; did you mean `KVIP_VIPS__ALLOWED`?",
            "KVIP_COLOUR: unknown variable; those of settings are called KVIP_SECTION__KEY",
            "KVIP_PROBE_PORT: unknown variable; did you mean `KVIP_BALANCING__PROBE_PORT`?",
            "KVIP_VRRP_ADVERT: unknown variable; did you mean `KVIP_VRRP__ADVERT`?",
            "KVIP_VRRP_ADVERTS: unknown variable; did you mean `KVIP_VRRP__ADVERT`?",
            "KVIP_VRRP__VIRD: unknown key `vrrp.vird`; did you mean `KVIP_VRRP__VRID`?",
        ]
    );
}

/// What a pod gets of a Service called kvip or kvip-…, and what is not a setting.
#[test]
fn variables_that_are_no_settings() {
    let mut case = Case::new(Some(ALLOWED)).env("KVIP_LOG", "debug").env("KVIP_LAB_CACHE", "/tmp");
    for service in ["", "WEB_"] {
        for (end, value) in [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "80"),
            ("SERVICE_PORT_HTTP", "80"),
            ("PORT", "tcp://10.0.0.1:80"),
            ("PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("PORT_80_TCP_ADDR", "10.0.0.1"),
        ] {
            case = case.env(&format!("KVIP_{service}{end}"), value);
        }
    }
    case.settings();
}

#[test]
fn files_that_cannot_be_read() {
    let case = Case::new(None).drop_in("a.toml", ALLOWED);
    fs::create_dir(&case.sources.file).unwrap();
    assert_eq!(case.problems(), ["config.toml: a folder, where a file is wanted"]);

    let case = Case::new(Some(ALLOWED)).drop_in("a.toml", "");
    fs::write(case.sources.drop_ins.join("a.toml"), b"\xff").unwrap();
    assert_eq!(case.problems(), ["config.d/a.toml: not UTF-8 text"]);

    let case = Case::new(Some(ALLOWED));
    fs::write(&case.sources.drop_ins, "").unwrap();
    assert_eq!(case.problems(), ["config.d: a file, where a folder is wanted"]);
}

#[test]
fn a_long_or_wild_value_stays_on_its_line() {
    let problems =
        Case::new(Some(ALLOWED)).env("KVIP_NODE__NAME", &format!("a\n{}", "b".repeat(200))).problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("KVIP_NODE__NAME = \"a\\nbbb") && problems[0].contains("…: a Node's name")
    );
    assert!(!problems[0].contains('\n'));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever stands in a file or a variable, loading ends in settings or in problems of one line each.
    #[test]
    fn no_text_is_too_wild(key in "[a-z]{1,9}|\"\\PC{0,9}\"", value in "\\PC{0,20}|[0-9'\"a-z\\[\\]{}=,./\n]{0,20}") {
        let dotted = |path: &str| format!("{path} = {value}\n");
        let known: String = KEYS.iter().map(|key| dotted(key.path)).collect();
        let tables = TABLES.iter().map(|table| {
            let keys: String = table.keys.iter().map(|key| dotted(key.path)).collect();
            format!("[[{}]]\n{keys}", table.name)
        });
        let mut cases = vec![Case::new(Some(&known)), Case::new(Some(&dotted(&key)))];
        cases.extend(KEYS.iter().map(|known| Case::new(Some(&dotted(known.path)))));
        cases.extend(TABLES.iter().map(|table| Case::new(Some(&dotted(table.name)))));
        cases.extend(tables.map(|text| Case::new(Some(&text))));
        let variables = KEYS.iter().map(|key| format!("KVIP_{}", key.path.replace('.', "__").to_uppercase()));
        cases.push(variables.fold(Case::new(None).flag(&key, &value), |case, name| case.env(&name, &value)));
        for problem in cases.iter().filter_map(|case| load(&case.sources).err()).flatten() {
            prop_assert!(!problem.to_string().contains('\n'), "{problem}");
        }
    }
}
