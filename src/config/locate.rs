//! Where in a TOML file a key stands: the span-aware side of the settings.

use std::ops::Range;

use toml_edit::{Document, Item, Table, TomlError, Value};

use super::path::KeyPath;

/// A parsed file that still knows its text.
#[derive(Debug, Clone)]
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

    /// The line, from 1, of the key or list element at `path`.
    ///
    /// Falls back to the nearest parent that the file does name.
    pub(super) fn line(&self, path: &KeyPath) -> Option<usize> {
        let mut place = Place::Item(self.root());
        let mut span = None;
        for part in path.parts() {
            let Some((found, next)) = place.step(part) else { break };
            span = found.or(span);
            place = next;
        }
        span.map(|span| position(self.document.raw(), &span).0)
    }
}

/// A part of a document: toml_edit has types of their own for tables in a `[[list]]` and for values.
enum Place<'d> {
    Item(&'d Item),
    Table(&'d Table),
    Value(&'d Value),
}

impl<'d> Place<'d> {
    /// The part called `part`, and where it is written.
    fn step(&self, part: &str) -> Option<(Option<Range<usize>>, Place<'d>)> {
        let (table, list) = match self {
            Self::Item(item) => (item.as_table_like(), item.as_array()),
            Self::Table(table) => (Some(*table as &dyn toml_edit::TableLike), None),
            Self::Value(value) => {
                (value.as_inline_table().map(|table| table as &dyn toml_edit::TableLike), value.as_array())
            }
        };
        if let Some(table) = table {
            let (key, item) = table.get_key_value(part)?;
            return Some((header_span(item).or_else(|| key.span()), Self::Item(item)));
        }
        let index = part.parse().ok()?;
        if let Some(list) = list {
            let value = list.get(index)?;
            return Some((value.span(), Self::Value(value)));
        }
        let Self::Item(Item::ArrayOfTables(tables)) = self else { return None };
        let table = tables.get(index)?;
        Some((table.span(), Self::Table(table)))
    }
}

/// The span of a `[section]` header; none for plain values and for sections that only dotted keys imply.
fn header_span(item: &Item) -> Option<Range<usize>> {
    let first = item.as_array_of_tables().and_then(|tables| tables.get(0));
    item.as_table().or(first).and_then(Table::span)
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
    const TABLES: &str = "[[pools]]\nname = 'a'\n\n[[pools]]\nname = 'b'\naddresses = [\n  'x',\n  'y',\n]\n";
    const INLINE: &str = "pools = [\n  { name = 'a' },\n  { name = 'b', addresses = ['x',\n    'y'] },\n]\n";

    fn check(text: &str, path: &str, line: Option<usize>) {
        let located = Located::parse(text.to_owned()).unwrap();
        assert_eq!(located.line(&path.into()), line, "{path}");
    }

    #[test]
    fn finds_keys_elements_and_sections() {
        check(TEXT, "vips", Some(2));
        check(TEXT, "vips.allowed", Some(3));
        check(TEXT, "vips.allowed.1", Some(5));
        check(TEXT, "vrrp.vrid", Some(9));
        check(TEXT, "vrrp.gone", Some(8));
        check(TEXT, "gone", None);
        check("\nvrrp.vrid = 1\nvrrp.advert = '1s'\n", "vrrp.advert", Some(3));
        check("\nvrrp = { vrid = 1,\n advert = '1s' }\n", "vrrp.advert", Some(3));
    }

    #[test]
    fn finds_tables_in_lists() {
        check(TABLES, "pools", Some(1));
        check(TABLES, "pools.1", Some(4));
        check(TABLES, "pools.1.name", Some(5));
        check(TABLES, "pools.1.addresses.1", Some(8));
        check(TABLES, "pools.1.priority", Some(4));
        check(TABLES, "pools.2.name", Some(1));
        check(INLINE, "pools.0.name", Some(2));
        check(INLINE, "pools.1.addresses.1", Some(4));
    }

    #[test]
    fn counts_lines_and_characters() {
        assert_eq!(position("a\näb", &(4..5)), (2, 2));
        assert_eq!(position("", &(0..0)), (1, 1));
    }
}
