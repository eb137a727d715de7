//! The settings in force: this host's over the cluster's ConfigMap, and the last good text of it on disk.
//!
//! A mistake in the ConfigMap reaches all nodes at once, so a text that cannot be used leaves the last good one in force,
//! over restarts too.

use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::config::{self, HostLayers, Loaded, Settings, Tenant};
use crate::files;
use crate::model::Finding;
use crate::snapshot::Unknown;

/// The last good text, in the state folder.
const FILE: &str = "cluster-settings.toml";

/// Host and cluster, joined.
#[derive(Debug)]
pub struct Joined {
    host: HostLayers,
    good: PathBuf,
    /// What the cluster said last; `None` before the first.
    said: Option<Result<Option<String>, Unknown>>,
    /// What was taken last of what the cluster says, or said.
    taken: Option<Settings>,
    /// What is wrong in either, and where they disagree.
    pub findings: Vec<Finding>,
}

impl Joined {
    /// What the host says, with the last good text of the cluster kept in the folder `state`.
    pub fn new(host: HostLayers, state: &Path) -> Self {
        Self { host, good: state.join(FILE), said: None, taken: None, findings: Vec::new() }
    }

    /// The settings before anything is heard of the cluster: by the last good text, if there is one.
    pub fn first(&mut self) -> Settings {
        let (loaded, _) = by_last_good(&self.host, read(&self.good).as_deref());
        self.take_loaded(loaded)
    }

    /// Takes what the host says anew; what the cluster says next is joined whatever it is.
    pub fn reload(&mut self, host: HostLayers) {
        self.host = host;
        self.said = None;
    }

    /// Takes what the cluster says; the settings, where they may be others than before.
    pub fn take(&mut self, said: Result<Option<&str>, Unknown>) -> Option<Settings> {
        let said = said.map(|text| text.map(str::to_owned));
        if self.said.as_ref() == Some(&said) {
            return None;
        }
        self.said = Some(said.clone());
        let said = said.as_ref().map(Option::as_deref).map_err(|unknown| *unknown);
        let (mut loaded, basis) = in_force(&self.host, said, read(&self.good).as_deref());
        match (basis, said, &self.taken) {
            (Basis::Said, Ok(text), _) => {
                info!("settings of host and cluster joined");
                self.keep_good(text);
            }
            (Basis::Host, _, Some(taken)) => loaded.settings = taken.clone(),
            _ => {}
        }
        self.taken = Some(loaded.settings.clone()).filter(|_| basis != Basis::Host).or(self.taken.take());
        Some(self.take_loaded(loaded))
    }

    fn take_loaded(&mut self, loaded: Loaded) -> Settings {
        self.findings = loaded.findings;
        loaded.settings
    }

    fn keep_good(&self, text: Option<&str>) {
        // That there is none is an answer too, kept as a text that sets nothing.
        if let Err(error) = files::replace(&self.good, text.unwrap_or_default(), files::PRIVATE) {
            warn!("the cluster's last good settings: {error}");
        }
    }
}

/// What settings go by beside this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// What the cluster says.
    Said,
    /// Its last good text.
    LastGood,
    /// Nothing: this host's settings make neither of any use, or there never was a good answer.
    Host,
}

/// The settings by what the cluster says, or by the last good text where that cannot be used.
///
/// Where neither can nobody knows what tenants may do, so they may do nothing.
pub fn in_force(
    host: &HostLayers,
    said: Result<Option<&str>, Unknown>,
    good: Option<&str>,
) -> (Loaded, Basis) {
    let wrong = match said.map(|text| config::with_cluster(host, text)) {
        Ok(Ok(loaded)) => return (loaded, Basis::Said),
        Ok(Err(unusable)) => unusable.findings,
        Err(Unknown) => Vec::new(),
    };
    let (mut loaded, basis) = by_last_good(host, good);
    if basis == Basis::Host {
        forbid_all(&mut loaded.settings);
    }
    loaded.findings.extend(wrong);
    (loaded, basis)
}

/// The settings as far as they are known without asking the cluster: by its last good text in the folder `state`.
pub fn known(host: &HostLayers, state: &Path) -> Loaded {
    by_last_good(host, last_good(state).as_deref()).0
}

fn by_last_good(host: &HostLayers, good: Option<&str>) -> (Loaded, Basis) {
    match good.map(|good| config::with_cluster(host, Some(good))) {
        Some(Ok(loaded)) => (loaded, Basis::LastGood),
        Some(Err(_)) => {
            let mut loaded = host.alone();
            forbid_all(&mut loaded.settings);
            (loaded, Basis::Host)
        }
        None => (host.alone(), Basis::Host),
    }
}

/// Where this host has no `[[tenants]]` of its own, nobody may do anything.
fn forbid_all(settings: &mut Settings) {
    if settings.tenants.is_empty() {
        settings.tenants.push(Tenant::nobody());
    }
}

/// The last good text of the cluster in the folder `state`.
pub fn last_good(state: &Path) -> Option<String> {
    read(&state.join(FILE))
}

fn read(path: &Path) -> Option<String> {
    files::read(path).unwrap_or_else(|error| {
        warn!("the cluster's last good settings: {error}");
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    const GOOD: &str = "[vips]\nallowed = [\"10.87.3.0/24\"]\n";

    fn joined() -> (tempfile::TempDir, Joined) {
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join("config.toml"), "[vrrp]\nvrid = 51\n").unwrap();
        let mut sources = Sources::of_file(folder.path().join("config.toml"));
        sources.env.clear();
        let joined = Joined::new(config::read_host(&sources).unwrap(), folder.path());
        (folder, joined)
    }

    #[test]
    fn a_text_that_cannot_be_used_leaves_the_last_good_one_over_a_restart_too() {
        let (folder, mut joined) = joined();
        assert_eq!(joined.take(Ok(Some(GOOD))).unwrap().allowed.len(), 1);
        assert_eq!(joined.take(Ok(Some(GOOD))), None, "nothing new");
        let kept = joined.take(Ok(Some("allowed = ["))).unwrap();
        assert_eq!((kept.allowed.len(), kept.vrrp.vrid.get(), kept.tenants.len()), (1, 51, 0));
        assert!(
            joined.findings.iter().any(|finding| finding.text.contains("last good")),
            "{:?}",
            joined.findings
        );
        let mut again = Joined::new(joined.host.clone(), folder.path());
        assert_eq!(again.first().allowed.len(), 1);
        assert_eq!(again.take(Err(Unknown)).unwrap().allowed.len(), 1);
        assert_eq!(again.take(Ok(None)).unwrap().allowed.len(), 0, "the admin deleted it");
        assert_eq!(last_good(folder.path()), Some(String::new()));
    }

    /// What this host adds may make all of the cluster's of no use; what holds goes on, and nobody gains a right by it.
    #[test]
    fn a_host_that_makes_the_good_text_of_no_use_goes_on_by_it() {
        const LIMITED: &str = "[[tenants]]\nnamespaces = [\"shop\"]\n";
        let (folder, mut joined) = joined();
        let said = format!("{GOOD}{LIMITED}");
        let before = joined.take(Ok(Some(&said))).unwrap();
        let overlapping =
            "[vips]\nallowed = [\"10.87.2.0/24\"]\n[cluster]\nservice_ranges = [\"10.87.3.0/24\"]\n";
        std::fs::write(folder.path().join("config.toml"), overlapping).unwrap();
        let mut sources = Sources::of_file(folder.path().join("config.toml"));
        sources.env.clear();
        joined.reload(config::read_host(&sources).unwrap());
        assert_eq!(joined.take(Ok(Some(&said))), Some(before));
        assert!(!joined.findings.is_empty());
        let mut again = Joined::new(joined.host.clone(), folder.path());
        assert_eq!(again.first().tenants, [Tenant::nobody()]);
        assert_eq!(again.take(Ok(Some(&said))).unwrap().tenants, [Tenant::nobody()]);
    }

    /// Its Role may be deleted later, and its namespace.
    #[test]
    fn that_there_are_no_settings_of_the_cluster_is_remembered_over_a_restart_too() {
        let (folder, mut joined) = joined();
        assert_eq!(joined.take(Ok(None)).unwrap().tenants, []);
        assert_eq!(joined.take(Err(Unknown)).unwrap().tenants, []);
        let mut again = Joined::new(joined.host.clone(), folder.path());
        assert_eq!(again.take(Err(Unknown)).unwrap().tenants, []);
    }

    #[test]
    fn without_any_good_text_tenants_may_do_nothing() {
        let (_folder, mut joined) = joined();
        for said in [Err(Unknown), Ok(Some("= nonsense"))] {
            assert_eq!(joined.take(said).unwrap().tenants, [Tenant::nobody()]);
        }
    }
}
