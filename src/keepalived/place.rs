//! Which file is kvip's to write: `keepalived.conf` itself, or a fragment that a foreign `keepalived.conf` includes.
//!
//! Owns the rule that a file without kvip's marker is never overwritten. Reads the disk in one function, decides in
//! others, writes nothing.

use std::path::{Path, PathBuf};

use super::{Build, Config, Paths, is_ours, render, render_fragment};
use crate::files::{self, FileError};

/// keepalived's files as they are on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// `keepalived.conf`.
    pub main: Option<String>,
    /// `keepalived.conf.sample`, which Debian ships.
    pub sample: Option<String>,
    /// `conf.d/kvip.conf`.
    pub fragment: Option<String>,
    /// The text that keepalived is known to run.
    pub loaded: Option<String>,
}

/// The file that kvip writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `keepalived.conf` is absent, empty, the distribution's sample, or kvip's.
    Main,
    /// `keepalived.conf` is somebody else's.
    Fragment {
        /// Whether it includes the fragment.
        included: bool,
    },
}

impl Disk {
    /// Reads the files.
    pub fn read(paths: &Paths) -> Result<Self, FileError> {
        Ok(Self {
            main: files::read(&paths.keepalived_conf)?,
            sample: files::read(&paths.keepalived_conf.with_extension("conf.sample"))?,
            fragment: files::read(&paths.fragment())?,
            loaded: files::read(&paths.loaded())?,
        })
    }

    /// Where kvip may write; `None` when both files are somebody else's.
    pub fn place(&self, paths: &Paths) -> Option<Place> {
        let Some(foreign) = self.main.as_deref().filter(|text| !self.free(text)) else {
            return Some(Place::Main);
        };
        let fragment = self.fragment.as_deref().unwrap_or_default();
        self.free(fragment).then(|| Place::Fragment { included: includes(foreign, paths) })
    }

    /// The text at `place`, when kvip wrote it.
    pub fn ours(&self, place: Place) -> Option<&str> {
        let text = match place {
            Place::Main => &self.main,
            Place::Fragment { .. } => &self.fragment,
        };
        text.as_deref().filter(|text| is_ours(text))
    }

    /// Whether nobody misses `text` when it is overwritten.
    fn free(&self, text: &str) -> bool {
        is_ours(text) || says_nothing(text) || self.sample.as_deref() == Some(text)
    }
}

impl Place {
    /// The file's path.
    pub fn path(self, paths: &Paths) -> PathBuf {
        match self {
            Self::Main => paths.keepalived_conf.clone(),
            Self::Fragment { .. } => paths.fragment(),
        }
    }

    /// What the file says for `config`.
    pub fn render(self, config: &Config, paths: &Paths, build: Build) -> String {
        match self {
            Self::Main => render(config, paths, build),
            Self::Fragment { .. } => render_fragment(config, paths),
        }
    }
}

/// Nothing but blank lines and comments, which begin with `#` or `!` (keepalived.conf(5)).
fn says_nothing(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with(['#', '!']))
}

/// Whether a line of `text` includes the fragment: `include`, or one of its variants such as `includer`, with a glob
/// pattern that is absolute or relative to the file's folder (keepalived.conf(5)).
fn includes(text: &str, paths: &Paths) -> bool {
    let fragment = paths.fragment();
    text.lines().filter_map(included).any(|pattern| {
        let pattern = paths.keepalived_folder().join(pattern);
        matches_path(&pattern, &fragment)
    })
}

fn included(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.next().filter(|word| word.starts_with("include"))?;
    Some(words.next()?.trim_matches('"'))
}

fn matches_path(pattern: &Path, path: &Path) -> bool {
    let parts =
        |path: &Path| path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    let (patterns, names): (Vec<String>, Vec<String>) = (parts(pattern), parts(path));
    patterns.len() == names.len()
        && patterns
            .iter()
            .zip(&names)
            .all(|(pattern, name)| matches_name(pattern.as_bytes(), name.as_bytes()))
}

/// `*` and `?` of glob(7); what else a pattern may hold is taken literally.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skip| matches_name(rest, &name[skip..])),
        (Some((b'?', rest)), Some((_, name))) => matches_name(rest, name),
        (Some((want, rest)), Some((have, name))) => want == have && matches_name(rest, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::MARKER;
    use super::*;

    #[track_caller]
    fn check(main: Option<&str>, fragment: Option<&str>, want: Option<Place>) {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let sample = Some("vrrp_instance SAMPLE {\n}\n".to_owned());
        let disk = Disk { main: text(main), fragment: text(fragment), sample, loaded: None };
        assert_eq!(disk.place(&Paths::default()), want, "{main:?} {fragment:?}");
    }

    const FOREIGN: &str = "vrrp_instance A {\n}\n";

    #[test]
    fn keepalived_conf_is_taken_when_nobody_misses_it() {
        let ours = format!("{MARKER}\nglobal_defs {{\n}}\n");
        for text in
            [None, Some(""), Some("\n# nothing\n! yet\n"), Some("vrrp_instance SAMPLE {\n}\n"), Some(&*ours)]
        {
            check(text, None, Some(Place::Main));
        }
        check(Some(&format!("# comment first\n{ours}")), None, Some(Place::Fragment { included: false }));
    }

    #[test]
    fn a_foreign_file_gets_a_fragment_beside_it() {
        let ours = format!("{MARKER}\n");
        check(Some(FOREIGN), None, Some(Place::Fragment { included: false }));
        check(Some(FOREIGN), Some(&ours), Some(Place::Fragment { included: false }));
        check(Some(FOREIGN), Some("vrrp_instance B {\n}\n"), None);
        for line in [
            "include /etc/keepalived/conf.d/kvip.conf",
            "include conf.d/kvip.conf",
            "  include conf.d/*.conf  # all",
            "includer \"/etc/keepalived/*/k??p.conf\"",
        ] {
            check(Some(&format!("{FOREIGN}{line}\n")), None, Some(Place::Fragment { included: true }));
        }
        for line in [
            "#include conf.d/kvip.conf",
            "include *.conf",
            "include /etc/keepalived/conf.d/a*.conf",
            "include",
        ] {
            check(Some(&format!("{FOREIGN}{line}\n")), None, Some(Place::Fragment { included: false }));
        }
    }
}
