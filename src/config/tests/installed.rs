//! Tests that the installed file says what is so.

use std::path::Path;

use super::*;

fn installed_file() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/config.toml")).unwrap()
}

/// Lines such as `#vrid = 50`; sentences have a space after the sign.
fn uncommented(text: &str, keep: impl Fn(&str) -> bool) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') && !rest.is_empty() && keep(rest) => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn installed_file_works_when_only_allowed_is_set() {
    let text = uncommented(&installed_file(), |line| line.starts_with("allowed"));
    assert_eq!(Case::new(Some(&text)).settings(), defaults());
}

/// Each key of the file as it is shown: those outside of tables, and those of one table of each list.
fn every_key() -> Vec<String> {
    let tables = TABLES
        .iter()
        .flat_map(|table| table.keys.iter().map(move |key| format!("{}.0.{}", table.name, key.path)));
    KEYS.iter().map(|key| key.path.to_owned()).chain(tables).collect()
}

#[test]
fn installed_file_says_every_key_and_its_default() {
    // The folder of manifests has no default, and stands there for the other source.
    let text = uncommented(&installed_file(), |line| !line.starts_with("manifests"));
    let loaded = load_with_origins(&Case::new(Some(&text)).sources).unwrap();
    let mut keys = every_key();
    assert_eq!(effective(&loaded.settings).into_iter().map(|(key, _)| key).collect::<Vec<_>>(), keys);
    keys.retain(|key| key != "cluster.manifests");
    keys.sort_unstable();
    assert_eq!(loaded.origins.into_keys().collect::<Vec<_>>(), keys, "every key is in the file");
    assert_eq!(loaded.findings, []);
    assert!(installed_file().contains("\n#manifests = \"/etc/kvip/manifests\"\n"));

    let Settings { node, pools, tenants, groups, statics, .. } = loaded.settings.clone();
    let example = Node {
        name: Some("node-a".into()),
        interface: Some("ens18".into()),
        address: "10.87.2.4".parse().ok(),
    };
    assert_eq!(node, example);
    let Balancing { timeouts, sync, .. } = &loaded.settings.balancing;
    let minutes = [timeouts.tcp, timeouts.tcp_fin, timeouts.udp].map(|time| time.unwrap().as_secs() / 60);
    assert_eq!(minutes, [15, 2, 5], "what the kernel begins with");
    assert_eq!(*sync, Sync { on: false, interface: Some("ens19".into()), id: Some(50) });
    let Balancing { timeouts, sync, .. } = defaults().balancing;
    let balancing = Balancing { timeouts, sync, ..loaded.settings.balancing };
    let written = Settings { node: Node::default(), balancing, ..loaded.settings };
    assert_eq!(
        written,
        Settings {
            pools: pools.clone(),
            tenants,
            groups: groups.clone(),
            statics: statics.clone(),
            ..defaults()
        }
    );

    // What stands in an example is the default of a table that says no more than it must.
    let least = "[[pools]]\nname = 'public'\naddresses = ['10.87.2.64/28', '10.87.2.100-10.87.2.120', '10.87.2.7']\n\
        [[groups]]\nname = 'edge'\naddresses = ['10.87.2.64/28']\nvrid = 60\ninterface = 'ens19'\n\
        [[static]]\nname = 'control-plane'\nvip = '10.87.2.10'\nport = 6443\n\
        backends = ['10.87.2.4:6443', '10.87.2.5:6443', '10.87.2.6:6443']\n";
    let least = Case::new(Some(&format!("{ALLOWED}{least}"))).settings();
    assert_eq!((least.pools, least.groups, least.statics), (pools, groups, statics));
}

#[test]
fn installed_file_as_it_is_runs_and_asks_for_allowed() {
    let case = Case::new(Some(&installed_file()));
    let loaded = load_with_origins(&case.sources).unwrap();
    assert_eq!(loaded.settings, Settings::standard(Vec::new()));
    let file = case.sources.file.display();
    let text = format!("not set, so no VIP is served until {file} or ConfigMap kvip-system/kvip sets it");
    assert_eq!(loaded.findings, [Finding::new("vips.allowed", text).mend(format!("in {file}, {MEND}"))]);
}
