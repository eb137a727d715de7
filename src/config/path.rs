//! Where a value is among the settings: `vrrp.vrid`, `pools.0.addresses.1`.

use std::fmt;

/// Names and, below lists, numbers from 0, outermost first. A name may hold a dot itself where it was quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyPath(Vec<String>);

impl KeyPath {
    /// The path of a section, whatever its name holds.
    pub(super) fn of(name: &str) -> Self {
        Self(vec![name.to_owned()])
    }

    /// The same path with one more name or number.
    pub(super) fn with(&self, part: impl fmt::Display) -> Self {
        Self(self.0.iter().cloned().chain([part.to_string()]).collect())
    }

    /// Its names and numbers.
    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl From<&str> for KeyPath {
    /// Reads a path whose names hold no dots, as known keys do.
    fn from(path: &str) -> Self {
        Self(path.split('.').map(str::to_owned).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}
