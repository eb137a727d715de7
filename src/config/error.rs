//! What is wrong with the settings, each as one line that says the place, what was found and what is allowed.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::model::Finding;
use crate::report::words::escaped;

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

impl Problem {
    /// The same as a finding: where it is written comes first, as that is what the reader opens.
    pub fn finding(&self) -> Finding {
        let [place, subject, text] = self.parts().map(|part| escaped(&part));
        let (subject, text) = match (place.is_empty(), subject.is_empty()) {
            (false, false) => (place, format!("{subject}: {text}")),
            (false, true) => (place, text),
            (true, _) => (subject, text),
        };
        let finding = Finding::new(subject, text);
        match &self.mend {
            Some(mend) => finding.mend(mend),
            None => finding,
        }
    }

    /// The place, what holds which value, and what is wrong, as they were found, control characters among them.
    fn parts(&self) -> [String; 3] {
        let numbers = [self.line, self.column].into_iter().flatten().map(|number| format!(":{number}"));
        let place = self.file.iter().map(|file| file.display().to_string()).chain(numbers).collect();
        let found = self.found.as_ref().map(|found| format!(" = {found}")).unwrap_or_default();
        let subject = self.subject.as_ref().map(|subject| format!("{subject}{found}")).unwrap_or_default();
        [place, subject, self.text.clone()]
    }
}

impl fmt::Display for Problem {
    /// One line, whatever a key or a value holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [place, subject, text] = self.parts();
        let mend = self.mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default();
        let text = format!("{text}{mend}");
        let parts = [place, subject, text].into_iter().filter(|part| !part.is_empty());
        f.write_str(&escaped(&parts.collect::<Vec<_>>().join(": ")))
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
        (problem.file, problem.line) = (None, None);
        assert_eq!(problem.to_string(), "vrrp.vrid = 256: a VRID is 1 to 255");
        problem.found = Some("1\n\u{1b}[0m".into());
        problem.mend = Some("write it".into());
        assert_eq!(problem.to_string(), "vrrp.vrid = 1\\n\\u{1b}[0m: a VRID is 1 to 255; write it");
    }
}
