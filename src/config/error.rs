//! What is wrong with the settings, each as one line that says the place, what was found and what is allowed.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// One thing to mend in the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, when it is in one.
    pub file: Option<PathBuf>,
    /// The line in the file, from 1.
    pub line: Option<usize>,
    /// The column in the line, from 1, counted in characters; given where the file is not TOML.
    pub column: Option<usize>,
    /// What holds the value: a key such as `vrrp.vrid`, an environment variable or a flag.
    pub subject: Option<String>,
    /// The value found, as it was written.
    pub found: Option<String>,
    /// What is wrong, or what is allowed: lower case, no full stop.
    pub text: String,
    /// What to write, where a setting is missing.
    pub mend: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            for number in [self.line, self.column].into_iter().flatten() {
                write!(f, ":{number}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(subject) = &self.subject {
            f.write_str(subject)?;
            if let Some(found) = &self.found {
                write!(f, " = {found}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.text)?;
        self.mend.iter().try_for_each(|mend| write!(f, "; {mend}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_place_found_and_allowed() {
        let mut problem = Problem {
            file: Some("/etc/kvip/config.toml".into()),
            line: Some(14),
            subject: Some("vrrp.vrid".into()),
            found: Some("256".into()),
            text: "a VRID is 1 to 255".into(),
            ..Problem::default()
        };
        assert_eq!(problem.to_string(), "/etc/kvip/config.toml:14: vrrp.vrid = 256: a VRID is 1 to 255");
        problem.file = None;
        assert_eq!(problem.to_string(), "vrrp.vrid = 256: a VRID is 1 to 255");
    }
}
