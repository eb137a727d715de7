//! The list of what kvip owns on this host, on disk.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tracing::error;

use crate::files;
use crate::keepalived::Paths;
use crate::keepalived::handover::vips_here;
use crate::model::Finding;
use crate::owned::Owned;

/// The list's name in the state folder.
pub const NAME: &str = "owned.json";

/// The name of a list that could not be read, kept for a person.
pub const DAMAGED: &str = "owned.json.damaged";

/// The list's file, `/var/lib/kvip/owned.json`.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// The list in the folder `state`.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join(NAME) }
    }

    /// Reads the list; no file is an empty list.
    ///
    /// # Errors
    /// When the file cannot be read, or is no such list.
    pub fn load(&self) -> anyhow::Result<Owned> {
        Ok(self.read()?.unwrap_or_default())
    }

    fn read(&self) -> anyhow::Result<Option<Owned>> {
        match std::fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("read {} as the list of what kvip owns", self.path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", self.path.display())),
        }
    }

    /// What stands in for a list that cannot be read: the VIPs in kvip's file for keepalived.
    pub fn stand_in(paths: &Paths) -> Owned {
        Owned { vips: vips_here(paths).unwrap_or_default(), stands_in: true, ..Owned::default() }
    }

    /// Reads the list for the daemon, which goes on without it: a list that cannot be read is kept beside, for a person, and
    /// replaced by what stands in for it. So is one that is missing while keepalived's file has VIPs of kvip's, which come
    /// after the list.
    pub fn load_or_stand_in(&self, paths: &Paths) -> Owned {
        let stand_in = Self::stand_in(paths);
        let lost = match self.read() {
            Ok(Some(owned)) => return owned,
            Ok(None) if stand_in.vips.is_empty() => return Owned::default(),
            Ok(None) => format!("{} is missing", self.path.display()),
            Err(problem) => format!("{problem:#}; it is {}", self.put_aside()),
        };
        error!(
            "{lost}\n  the VIPs of keepalived's file count as kvip's; virtual servers, by mark too, and sync daemons that nobody \
             asks for now may be left: look with ipvsadm -Ln and ipvsadm -L --daemon"
        );
        stand_in
    }

    /// Keeps the file beside, and says how that went.
    fn put_aside(&self) -> String {
        let aside = self.path.with_file_name(DAMAGED);
        match std::fs::rename(&self.path, &aside) {
            Ok(()) => format!("kept as {}", aside.display()),
            Err(error) => format!("cannot be kept as {}: {error}", aside.display()),
        }
    }
}

impl super::pass::Ledger for Ledger {
    fn save(&self, owned: &Owned) -> Result<(), Finding> {
        let text = serde_json::to_string(owned).expect("addresses and numbers are JSON");
        files::replace(&self.path, &text, files::PUBLIC).map_err(|error| {
            Finding::new(self.path.display(), error.to_string())
                .mend("check the disk and the unit's StateDirectory")
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::net::IpAddr;

    use super::*;
    use crate::keepalived::MARKER;

    const CUT_OFF: &str = r#"{"vips":["10.87"#;

    /// A host whose list is damaged, with this VIP in keepalived's file.
    pub fn damaged(root: &Path) -> (Paths, IpAddr) {
        let paths = Paths::under(root);
        fs::create_dir_all(&paths.state).unwrap();
        fs::create_dir_all(paths.keepalived_folder()).unwrap();
        fs::write(paths.state.join(NAME), CUT_OFF).unwrap();
        let block = "vrrp_instance a {\nvirtual_ipaddress_excluded {\n10.87.2.50/32 dev eth0\n}\n}\n";
        fs::write(&paths.keepalived_conf, format!("{MARKER}\n{block}")).unwrap();
        (paths, "10.87.2.50".parse().unwrap())
    }

    #[test]
    fn a_damaged_list_is_kept_and_the_vips_of_keepalived_stand_in() {
        let root = tempfile::tempdir().unwrap();
        let (paths, vip) = damaged(root.path());
        let stand_in = Owned { vips: [vip].into(), stands_in: true, ..Owned::default() };
        let ledger = Ledger::new(&paths.state);
        assert_eq!(ledger.load_or_stand_in(&paths), stand_in);
        assert_eq!(fs::read_to_string(paths.state.join(DAMAGED)).unwrap(), CUT_OFF);
        assert!(!paths.state.join(NAME).exists());
        assert_eq!(ledger.load_or_stand_in(&paths), stand_in, "it is missing now");
        fs::remove_file(&paths.keepalived_conf).unwrap();
        assert_eq!(ledger.load_or_stand_in(&paths), Owned::default(), "nothing was kvip's");
    }
}
