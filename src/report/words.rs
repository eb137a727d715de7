//! Ages and counts in words, the same wherever kvip speaks to people.
//!
//! Pure.

use std::time::Duration;

/// An age in its largest whole unit: `12s`, `3m`, `5h`, `3d`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A count with its noun: `1 finding`, `2 findings`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_counts() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_599, "59m"),
            (3_600, "1h"),
            (86_399, "23h"),
            (259_200, "3d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        assert_eq!([count(0, "VIP"), count(1, "VIP"), count(2, "VIP")], ["0 VIPs", "1 VIP", "2 VIPs"]);
    }
}
