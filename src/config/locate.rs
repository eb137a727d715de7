//! Where in a TOML file a key stands: the span-aware side of the settings.

use std::ops::Range;

use toml_edit::{Document, Item, TomlError, Value};

/// A parsed file that still knows its text.
#[derive(Debug)]
pub(super) struct Located {
    document: Document<String>,
}

impl Located {
    /// Parses TOML; the error tells its span.
    pub(super) fn parse(text: String) -> Result<Self, TomlError> {
        Document::parse(text).map(|document| Self { document })
    }

    /// The parsed root.
    pub(super) fn root(&self) -> &Item {
        self.document.as_item()
    }

    /// The line, from 1, of the key `path`, or of the element with `index` in its list.
    ///
    /// Falls back to the nearest parent that the file does name.
    pub(super) fn line(&self, path: &[&str], index: Option<usize>) -> Option<usize> {
        let mut item = self.document.as_item();
        let mut span = None;
        for name in path {
            let Some((key, value)) = item.as_table_like().and_then(|table| table.get_key_value(name)) else {
                break;
            };
            span = header_span(value).or_else(|| key.span()).or(span);
            item = value;
        }
        let element = index.and_then(|index| item.as_array()?.get(index)).and_then(Value::span);
        element.or(span).map(|span| position(self.document.raw(), &span).0)
    }
}

/// The span of a `[section]` header; none for plain values and for sections that only dotted keys imply.
fn header_span(item: &Item) -> Option<Range<usize>> {
    item.as_table().and_then(toml_edit::Table::span)
}

/// The line and column, each from 1, where `span` begins in `text`; columns count characters.
pub(super) fn position(text: &str, span: &Range<usize>) -> (usize, usize) {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# kvip\n[vips]\nallowed = [\n  \"10.0.0.0/8\",\n  \"x\",\n]\n\n[vrrp]\nvrid = 1\n";

    fn check(text: &str, path: &[&str], index: Option<usize>, line: Option<usize>) {
        let located = Located::parse(text.to_owned()).unwrap();
        assert_eq!(located.line(path, index), line, "{path:?} {index:?}");
    }

    #[test]
    fn finds_keys_elements_and_sections() {
        check(TEXT, &["vips"], None, Some(2));
        check(TEXT, &["vips", "allowed"], None, Some(3));
        check(TEXT, &["vips", "allowed"], Some(1), Some(5));
        check(TEXT, &["vrrp", "vrid"], None, Some(9));
        check(TEXT, &["vrrp", "gone"], None, Some(8));
        check(TEXT, &["gone"], None, None);
        check("\nvrrp.vrid = 1\nvrrp.advert = '1s'\n", &["vrrp", "advert"], None, Some(3));
        check("\nvrrp = { vrid = 1,\n advert = '1s' }\n", &["vrrp", "advert"], None, Some(3));
    }

    #[test]
    fn counts_lines_and_characters() {
        assert_eq!(position("a\näb", &(4..5)), (2, 2));
        assert_eq!(position("", &(0..0)), (1, 1));
    }
}
