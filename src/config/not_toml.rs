//! Why a text is not TOML, in words that say what to write.
//!
//! Pure. The parser says what it expected at one place; the two mistakes that people make most, text without quotes and a
//! section begun twice, get their names.

use std::ops::Range;

use toml_edit::{Document, TomlError, Value};

use super::keys;
use crate::report::words::joined;

/// A mend that is longer than this does not help anyone to see what to write.
const MEND_MAX: usize = 80;

/// What is wrong in `text`, of which the parser says `error`.
pub(super) fn why(text: &str, error: &TomlError) -> String {
    let Some(span) = error.span() else { return joined(error.message()) };
    if error.message() == "duplicate key" {
        return written_twice(text, &span);
    }
    if let Some(line) = truth(text, &span) {
        return format!("true or false is wanted, without quotes, as in {line}");
    }
    if let Some(line) = number(text, &span) {
        return format!("a number is digits alone, without zeros before them, as in {line}");
    }
    match quoted(text, &span) {
        Some(line) if line.chars().count() <= MEND_MAX => format!("text needs quotes, as in {line}"),
        Some(_) => "text needs quotes".to_owned(),
        None => joined(error.message()),
    }
}

/// A key or a section that the text has above already.
fn written_twice(text: &str, span: &Range<usize>) -> String {
    let (_, line) = line_at(text, span);
    let header = line.trim_start().split_inclusive(']').take(1).find(|part| part.starts_with('['));
    match header {
        Some(header) => {
            format!("duplicate key: {header} is written above already; write its keys there")
        }
        None => {
            let key = text.get(span.clone()).unwrap_or_default();
            format!("duplicate key: {key} is written above already; take one of them out")
        }
    }
}

/// The line of `span` with quotes around its bare words, where these are what it lacked.
fn quoted(text: &str, span: &Range<usize>) -> Option<String> {
    let (place, line) = line_at(text, span);
    let (key, value) = line.split_once('=').unwrap_or(("", line));
    let start = line.len() - value.len();
    let value = without_comment(value).trim_end();
    let whole = value.trim();
    let refused = |word: &str| is_number(word) && word.parse::<Value>().is_err();
    if whole.is_empty() || is_truth(whole) || is_number(whole) || value.split(is_sign).any(refused) {
        return None;
    }
    let words = format!("{}{}", &line[..start], words_quoted(value));
    let whole = format!("{key}= \"{whole}\"");
    [words, whole].into_iter().find(|mended| is_mend(text, &place, mended)).map(|line| line.trim().to_owned())
}

/// Whether with `mended` in its place the line is right, whatever follows.
fn is_mend(text: &str, place: &Range<usize>, mended: &str) -> bool {
    let whole = [&text[..place.start], mended, &text[place.end..]].concat();
    let end = place.start + mended.len();
    Document::parse(whole).map_or_else(|error| error.span().is_some_and(|span| span.start > end), |_| true)
}

/// `value` with each bare word that is no TOML in quotes.
fn words_quoted(value: &str) -> String {
    let mut quoted = String::new();
    let mut rest = value;
    // Each turn takes at least one character off.
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' => string_length(rest, first),
            first if is_sign(first) => first.len_utf8(),
            _ => rest.find(is_sign).unwrap_or(rest.len()),
        };
        let (part, after) = rest.split_at(length);
        let bare = !is_sign(first) && part.parse::<Value>().is_err() && !is_truth(part);
        let quote = if bare { "\"" } else { "" };
        quoted.extend([quote, part, quote]);
        rest = after;
    }
    quoted
}

/// What stands between words.
fn is_sign(c: char) -> bool {
    c.is_whitespace() || "[]{},\"'".contains(c)
}

/// How far the string goes that `text` begins with.
fn string_length(text: &str, quote: char) -> usize {
    text[1..].find(quote).map_or(text.len(), |end| end + 2)
}

fn without_comment(value: &str) -> &str {
    let mut within = None;
    for (place, c) in value.char_indices() {
        match (c, within) {
            ('#', None) => return &value[..place],
            ('"' | '\'', None) => within = Some(c),
            (c, Some(quote)) if c == quote => within = None,
            _ => {}
        }
    }
    value
}

/// The line of `span` with true or false in the place of another word for it, where the key is one that takes these alone.
fn truth(text: &str, span: &Range<usize>) -> Option<String> {
    let (key, value) = key_and_value(text, span)?;
    let word = match value.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" => "true",
        "no" | "off" | "false" => "false",
        _ => return None,
    };
    keys::takes_truth(name_of(key)).then(|| format!("{key} = {word}"))
}

/// The line of `span` with the number alone, where the key is one that takes a number.
fn number(text: &str, span: &Range<usize>) -> Option<String> {
    let (key, value) = key_and_value(text, span)?;
    let is_meant = is_number(value) && value.parse::<Value>().is_err() && keys::takes_number(name_of(key));
    let digits = without_end(value).trim_start_matches('0');
    is_meant.then(|| format!("{key} = {}", if digits.is_empty() { "0" } else { digits }))
}

fn key_and_value<'t>(text: &'t str, span: &Range<usize>) -> Option<(&'t str, &'t str)> {
    let (key, value) = line_at(text, span).1.split_once('=')?;
    Some((key.trim(), without_comment(value).trim()))
}

/// A dotted key without its section.
fn name_of(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A number that TOML does not take: with a sign behind it, or zeros before it. Quotes would not make it right.
fn is_number(word: &str) -> bool {
    let digits = without_end(word);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// `word` without the signs that end a line elsewhere.
fn without_end(word: &str) -> &str {
    word.trim_end_matches([',', ';', ' ', '\t'])
}

/// Quotes would not make it right.
fn is_truth(word: &str) -> bool {
    ["true", "false"].iter().any(|truth| word.eq_ignore_ascii_case(truth))
}

/// The line in which `span` begins, and where it stands.
fn line_at<'t>(text: &'t str, span: &Range<usize>) -> (Range<usize>, &'t str) {
    let (before, after) = text.split_at_checked(span.start).unwrap_or((text, ""));
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let end = before.len() + after.find('\n').unwrap_or(after.len());
    (start..end, &text[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let error = Document::parse(text.to_owned()).expect_err("no TOML is wanted");
        assert_eq!(why(text, &error), expected, "{text}");
    }

    #[test]
    fn text_without_quotes() {
        let quotes = |text: &str, mend: &str| check(text, &format!("text needs quotes, as in {mend}"));
        quotes("[vips]\nallowed = [10.87.2.0/24]\n", "allowed = [\"10.87.2.0/24\"]");
        quotes("allowed = ['10.87.2.0/24', fd00:87::/64]", "allowed = ['10.87.2.0/24', \"fd00:87::/64\"]");
        quotes("allowed = [\n  10.87.2.0/24,\n]", "\"10.87.2.0/24\",");
        quotes("address = 10.87.2.4  # ours", "address = \"10.87.2.4\"");
        quotes("interface = ens18\nmode = nat\n", "interface = \"ens18\"");
        quotes("members = edge=true", "members = \"edge=true\"");
        quotes("name = node a", "name = \"node a\"");
        check(&format!("a = [{}]", "b,".repeat(50)), "text needs quotes");
    }

    #[test]
    fn true_and_false_are_written_so_and_without_quotes() {
        let truth = |text: &str, mend: &str| {
            check(text, &format!("true or false is wanted, without quotes, as in {mend}"));
        };
        truth("[asking]\nexternal_ips = yes\n", "external_ips = true");
        truth("asking.external_ips = Off  # not yet", "asking.external_ips = false");
        truth("[[pools]]\nauto_assign = No", "auto_assign = false");
        truth("sync = True", "sync = true");
        check("shield = on", "text needs quotes, as in shield = \"on\"");
        check("name = no", "text needs quotes, as in name = \"no\"");
    }

    #[test]
    fn a_number_gets_no_quotes() {
        let alone = "a number is digits alone, without zeros before them, as in";
        for text in ["vrid = 50,", "vrid = 50;", "vrid = 050", "[vrrp]\nvrid = 050 # ours\n"] {
            check(text, &format!("{alone} vrid = 50"));
        }
        check("vrrp.vrid = 50 ,", &format!("{alone} vrrp.vrid = 50"));
        check("[[static]]\nport = 0080", &format!("{alone} port = 80"));
        check("name = 007", "unexpected leading zero, expected nothing");
        check("a = [050]", "unexpected leading zero, expected nothing");
    }

    #[test]
    fn other_mistakes_are_the_parsers_to_tell() {
        check("a = True", "invalid boolean, expected `true`");
        check("a = \"x", "invalid basic string, expected `\"`");
        check("[balancing\n", "unclosed table, expected `]`");
        check("a = 1\n y", "key with no value, expected `=`");
        check("a =", "string values must be quoted, expected literal string");
    }

    #[test]
    fn what_is_written_twice_is_named() {
        let there = "is written above already";
        check(
            "[vips]\na = 1\n [vips] # again\n",
            &format!("duplicate key: [vips] {there}; write its keys there"),
        );
        check("vips.a = 1\n[vips]", &format!("duplicate key: [vips] {there}; write its keys there"));
        check("a = 1\na = 2", &format!("duplicate key: a {there}; take one of them out"));
    }
}
