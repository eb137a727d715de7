//! Durations as people write them: `250ms`, `5m`, `1h30m`.
//!
//! Pure; the ranges that a setting allows are the reader's, in `values`.

use std::time::Duration;

/// Each unit with its length in milliseconds, longest first, as they must follow each other in a text.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number without a unit, or nothing at all.
    #[error("needs a unit: ms, s, m, h or d")]
    NoUnit,
    /// Anything that is not a whole number followed by a unit.
    #[error("not a duration, which is whole numbers with units, longest first, as in \"1h30m\"")]
    Malformed,
    /// More milliseconds than 64 bits hold.
    #[error("too long")]
    TooLong,
}

/// Reads whole numbers with the units `d`, `h`, `m`, `s` and `ms`, longest first, as in `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.trim();
    if rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DurationError::NoUnit);
    }
    let mut units = UNITS.iter();
    let mut millis = 0_u64;
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit());
        let (name, after) = split(after, |c| c.is_ascii_alphabetic());
        if number.is_empty() {
            return Err(DurationError::Malformed);
        }
        if name.is_empty() && after.is_empty() {
            return Err(DurationError::NoUnit);
        }
        let (_, length) = units.find(|(unit, _)| *unit == name).ok_or(DurationError::Malformed)?;
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*length));
        millis = part.and_then(|part| millis.checked_add(part)).ok_or(DurationError::TooLong)?;
        rest = after;
    }
    Ok(Duration::from_millis(millis))
}

/// `number` with each unit, shortest first: as it is written, and how long that is.
pub(super) fn with_each_unit(number: u64) -> impl Iterator<Item = (String, Duration)> {
    UNITS.iter().rev().filter_map(move |(unit, length)| {
        Some((format!("{number}{unit}"), Duration::from_millis(number.checked_mul(*length)?)))
    })
}

/// Writes a duration as [`parse_duration`] reads it; what is below a millisecond is left out.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let parts = UNITS.iter().map(|(unit, length)| {
        let count = rest / length;
        rest %= length;
        if count > 0 { format!("{count}{unit}") } else { String::new() }
    });
    let text: String = parts.collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The longest start of `text` whose characters all `fit`, and what follows it.
fn split(text: &str, fit: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !fit(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<u64, DurationError>) {
        assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text:?}");
    }

    #[test]
    fn reads_numbers_with_units() {
        check("250ms", Ok(250));
        check("5m", Ok(300_000));
        check("1h30m", Ok(5_400_000));
        check(" 60s ", Ok(60_000));
        check("1d2h3m4s5ms", Ok(93_784_005));
        check("0s", Ok(0));
    }

    #[test]
    fn refuses_everything_else() {
        check("", Err(DurationError::NoUnit));
        check("250", Err(DurationError::NoUnit));
        check("1h30", Err(DurationError::NoUnit));
        check("1.5s", Err(DurationError::Malformed));
        check("-1s", Err(DurationError::Malformed));
        check("s", Err(DurationError::Malformed));
        check("5min", Err(DurationError::Malformed));
        check("30m1h", Err(DurationError::Malformed));
        check("5m5m", Err(DurationError::Malformed));
        check("5 m", Err(DurationError::Malformed));
        check("99999999999999999d", Err(DurationError::TooLong));
        check("99999999999999999999999s", Err(DurationError::TooLong));
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["250ms", "5m", "1h30m", "1d2h3m4s5ms", "0s", "1m"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(format_duration(Duration::from_secs(90)), "1m30s");
    }
}
