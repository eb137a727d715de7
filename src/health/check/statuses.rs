//! The HTTP status codes that are good answers: `200-399,401`.

use std::fmt;
use std::str::FromStr;

/// Status codes, as ranges in the order written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Statuses(Vec<(u16, u16)>);

/// It is not a list of status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("status codes from 100 to 599 and ranges of them, joined by commas, as in \"200-399,401\"")]
pub struct NotStatuses;

impl Statuses {
    /// Whether `status` is a good answer.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }
}

impl FromStr for Statuses {
    type Err = NotStatuses;

    fn from_str(text: &str) -> Result<Self, NotStatuses> {
        let code = |text: &str| text.trim().parse().ok().filter(|code| (100..600).contains(code));
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = (code(first)?, code(last)?);
            (range.0 <= range.1).then_some(range)
        };
        text.split(',').map(range).collect::<Option<_>>().map(Self).ok_or(NotStatuses)
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |(first, last): &(u16, u16)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        f.write_str(&self.0.iter().map(range).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_codes_and_ranges_and_nothing_else() {
        let statuses: Statuses = "200-299, 401".parse().unwrap();
        assert_eq!(statuses.to_string(), "200-299,401");
        for (status, good) in
            [(199, false), (200, true), (299, true), (300, false), (401, true), (402, false)]
        {
            assert_eq!(statuses.contains(status), good, "{status}");
        }
        for wrong in ["", "ok", "200,", "200-", "299-200", "99", "200-600", "2xx", "200 401"] {
            assert_eq!(wrong.parse::<Statuses>(), Err(NotStatuses), "{wrong}");
        }
    }
}
