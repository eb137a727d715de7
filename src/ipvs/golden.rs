//! Messages in tests, as bytes laid out by hand.

/// `text`: hexadecimal bytes, spaces between them, a comment behind each `#`.
pub(super) fn bytes(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter_map(|line| line.split('#').next()).collect();
    digits.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// A message is the one laid out.
#[track_caller]
pub(super) fn check(message: &[u8], golden: &str) {
    let golden = bytes(golden);
    assert_eq!(message, golden, "\n  have {message:02x?}\n  want {golden:02x?}");
}
