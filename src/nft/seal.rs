//! How kvip knows its table again: a set without elements whose comment says of which ruleset the table is, and how nft
//! listed it.
//!
//! Pure. The digest of a listing is the sum of the digests of its elements, sets and chains, so that it follows from the
//! one before and the elements that came and went, without a look at thousands of others. Whatever another hand changes
//! is in the one sum and not in the other, for good, and shows.

use super::render::{TABLE, digest};

/// What the table says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seal {
    /// The fingerprint of the ruleset.
    pub(super) fingerprint: String,
    /// [`Listing::digest`] of the table, without the seal.
    pub(super) listing: u64,
}

const NAME: &str = "\tset seal {\n";

impl Seal {
    /// Puts it into the table, which has none.
    pub(super) fn add(&self) -> String {
        let Self { fingerprint, listing } = self;
        format!(
            "add set {TABLE} seal {{ type mark; comment \"ruleset {fingerprint} listing {listing:016x}\"; }}\n"
        )
    }

    /// Puts it in place of the one that is there.
    pub(super) fn replace(&self) -> String {
        format!("delete set {TABLE} seal\n") + &self.add()
    }

    fn parse(block: &str) -> Option<Self> {
        let (_, comment) = block.split_once("comment \"ruleset ")?;
        let (fingerprint, rest) = comment.split_once(" listing ")?;
        let (listing, _) = rest.split_once('"')?;
        Some(Self { fingerprint: fingerprint.to_owned(), listing: u64::from_str_radix(listing, 16).ok()? })
    }
}

/// What nft listed.
pub(super) struct Listing {
    /// The sum of the digests of all sets and chains but the seal.
    pub(super) digest: u64,
    /// The seal, when it is among them.
    pub(super) seal: Option<Seal>,
}

impl Listing {
    /// Reads a listing of the table, or of one of its sets.
    pub(super) fn parse(text: &str) -> Self {
        let body = text.strip_prefix("table inet kvip {\n").unwrap_or(text);
        let body = body.trim_end().strip_suffix('}').unwrap_or(body);
        let mut listing = Self { digest: 0, seal: None };
        for block in body.split("\n\n").map(str::trim_end).filter(|block| !block.is_empty()) {
            match Seal::parse(block).filter(|_| block.starts_with(NAME.trim_end())) {
                Some(seal) => listing.seal = Some(seal),
                None => listing.digest = listing.digest.wrapping_add(digest_of_block(block)),
            }
        }
        listing
    }
}

/// The digest of a set or chain, elements included.
fn digest_of_block(block: &str) -> u64 {
    let parts = block.split_once("\t\telements = { ").and_then(|(head, rest)| {
        let (elements, tail) = rest.split_once(" }\n")?;
        let name = head.split_whitespace().nth(1)?;
        let elements = elements.split(',').map(|element| digest_of_element(name, element.trim()));
        Some(elements.fold(digest(&format!("{head}{tail}")), u64::wrapping_add))
    });
    parts.unwrap_or_else(|| digest(block))
}

/// The digest of an element of the set `name`.
pub(super) fn digest_of_element(name: &str, element: &str) -> u64 {
    digest(&format!("{name} {element}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &str = "\tset vips4 {\n\t\ttype ipv4_addr\n\t}\n";
    const SEAL: &str =
        "\tset seal {\n\t\ttype mark\n\t\tcomment \"ruleset 12ab listing 00000000000034cd\"\n\t}\n";
    const CHAIN: &str = "\tchain input {\n\t}\n";

    fn table(blocks: &[&str]) -> Listing {
        Listing::parse(&format!("table inet kvip {{\n{}}}\n", blocks.join("\n")))
    }

    #[test]
    fn the_seal_is_read_and_counts_for_nothing() {
        let sealed = table(&[SET, SEAL, CHAIN]);
        assert_eq!(sealed.seal, Some(Seal { fingerprint: "12ab".into(), listing: 0x34cd }));
        assert_eq!(sealed.digest, table(&[SET, CHAIN]).digest);
        assert_eq!((table(&[SEAL]).digest, table(&[]).digest), (0, 0));
    }

    #[test]
    fn parts_add_up() {
        let sum = table(&[SET]).digest.wrapping_add(table(&[CHAIN]).digest);
        assert_eq!(table(&[SET, CHAIN]).digest, sum);
        assert_ne!(table(&[SET, SET]).digest, sum);
    }

    #[test]
    fn elements_add_up() {
        let with = |elements: &str| table(&[&SET.replace("\t}", &format!("{elements}\t}}"))]).digest;
        let two = "\t\telements = { 10.87.2.50,\n\t\t\t     10.87.2.51 }\n";
        let [one, other] = ["10.87.2.50", "10.87.2.51"].map(|element| digest_of_element("vips4", element));
        assert_eq!(with(two), with("").wrapping_add(one).wrapping_add(other));
        assert_eq!(with("\t\telements = { 10.87.2.50 }\n"), with("").wrapping_add(one));
    }

    #[test]
    fn a_table_of_another_hand_has_no_seal() {
        for listing in
            ["", "table inet kvip {\n}\n", "table inet kvip {\n\tset seal {\n\t\ttype mark\n\t}\n}\n"]
        {
            assert_eq!(Listing::parse(listing).seal, None, "{listing}");
        }
    }
}
