//! Ages, counts and other people's text in words, the same wherever kvip speaks to people.
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

/// A value is repeated up to so many characters.
const VALUE: usize = 80;

/// A value's text, cut where it is too long to be repeated.
pub fn short(text: String) -> String {
    if text.chars().count() > VALUE { text.chars().take(VALUE - 1).chain(['…']).collect() } else { text }
}

/// What was written elsewhere may be longer than is of use to anybody.
const LONGEST: usize = 500;

/// `text` on one line of bearable length. It may hold what tenants have written.
pub fn one_line(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => escaped(&text[..end]) + "…",
        None => escaped(text),
    }
}

/// `text` on one line: what a terminal would take for an order to it, or would show in another direction, is written as its code.
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // UAX #9: the directional formatting characters.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                line.extend(c.escape_unicode());
            }
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// `text` of several lines as one: white space of any kind and length is one space.
pub fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tenants_write_stays_on_its_line() {
        let forged = "x\u{1b}[2J\nall is well\u{202e}";
        assert_eq!(one_line(forged), "x\\u{1b}[2J\\nall is well\\u{202e}");
        assert_eq!(one_line("ä → ü"), "ä → ü");
        assert_eq!(one_line(&"x".repeat(600)).chars().count(), 501);
    }

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
