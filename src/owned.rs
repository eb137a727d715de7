//! What of this host is kvip's: VIPs that it rendered once, virtual servers by mark that it made, and sync daemons. Kept on
//! disk, as what an earlier run programmed is still kvip's to retire, and to go on with.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ipvs::{Key, SyncDaemon};
use crate::marks::Marks;
use crate::model::{Family, Frontend};

/// What is kvip's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Owned {
    /// VIPs, and with each the virtual servers on it and its address on an interface.
    pub vips: BTreeSet<IpAddr>,
    /// Firewall marks of virtual servers.
    pub marks: BTreeSet<(Family, u32)>,
    /// Frontends of mode dsr, with the marks that they are to keep.
    pub marked: BTreeSet<(Frontend, Marks)>,
    /// Sync daemons that kvip started.
    pub sync_daemons: BTreeSet<SyncDaemon>,
    /// It stands in, for this run, for a list that was lost: of marks that it does not name nobody knows whose they are.
    #[serde(skip)]
    pub stands_in: bool,
}

impl Owned {
    /// Whether the virtual server `key` is kvip's.
    pub fn has(&self, key: &Key) -> bool {
        match key {
            Key::Frontend(frontend) => self.vips.contains(&frontend.vip),
            Key::Mark(family, mark) => self.marks.contains(&(*family, *mark)),
        }
    }

    /// Those of `marks` that are others'. One family's is left to them in the other too. Where that is not known none is, so that
    /// frontends take up those that they had: an earlier run's could use all of them up.
    pub fn foreign_marks(&self, marks: &BTreeSet<(Family, u32)>) -> BTreeSet<u32> {
        if self.stands_in {
            return BTreeSet::new();
        }
        marks.difference(&self.marks).map(|(_, mark)| *mark).collect()
    }

    /// Whether nothing is kvip's.
    pub fn is_empty(&self) -> bool {
        self.vips.is_empty() && self.marks.is_empty()
    }
}

/// As it may stand on disk: before there were marks it was a list of VIPs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Vips(BTreeSet<IpAddr>),
    All {
        vips: BTreeSet<IpAddr>,
        #[serde(default)]
        marks: BTreeSet<(Family, u32)>,
        #[serde(default)]
        marked: BTreeSet<(Frontend, Marks)>,
        #[serde(default)]
        sync_daemons: BTreeSet<SyncDaemon>,
    },
}

impl From<Written> for Owned {
    fn from(written: Written) -> Self {
        match written {
            Written::Vips(vips) => Self { vips, ..Self::default() },
            Written::All { vips, marks, marked, sync_daemons } => {
                Self { vips, marks, marked, sync_daemons, stands_in: false }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::sync::Role;
    use crate::model::Protocol;

    #[test]
    fn both_forms_are_read() {
        let vips = BTreeSet::from(["10.87.2.50".parse().unwrap()]);
        let list: Owned = serde_json::from_str(r#"["10.87.2.50"]"#).unwrap();
        assert_eq!(list, Owned { vips: vips.clone(), ..Owned::default() });
        let daemon = SyncDaemon { role: Role::Backup, interface: "eth0".into(), sync_id: 50 };
        let frontend = Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        let owned = Owned {
            vips,
            marks: [(Family::V4, 0x101)].into(),
            marked: [(frontend, Marks { peers: 0x100, own: 0x101 })].into(),
            sync_daemons: [daemon].into(),
            stands_in: false,
        };
        let text = serde_json::to_string(&owned).unwrap();
        assert_eq!(serde_json::from_str::<Owned>(&text).unwrap(), owned);
    }
}
