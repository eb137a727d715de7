//! TOML as the values that layers hold.
//!
//! Pure. Places in the text are found by `locate`.

use figment::value::{Dict, Value};
use toml_edit::Item;

/// A TOML item as a plain value; dates become text, which no setting takes.
pub(super) fn value(item: &Item) -> Value {
    if let Some(table) = item.as_table_like() {
        let dict: Dict = table.iter().map(|(name, item)| (name.to_owned(), value(item))).collect();
        return Value::from(dict);
    }
    if let Some(tables) = item.as_array_of_tables() {
        let tables = tables.iter().map(|table| value(&Item::Table(table.clone())));
        return Value::from(tables.collect::<Vec<_>>());
    }
    item.as_value().map_or_else(|| Value::from(""), plain)
}

fn plain(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::from(text.value().as_str()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        toml_edit::Value::Float(number) => Value::from(*number.value()),
        toml_edit::Value::Boolean(truth) => Value::from(*truth.value()),
        toml_edit::Value::Datetime(date) => Value::from(date.value().to_string()),
        toml_edit::Value::Array(list) => Value::from(list.iter().map(plain).collect::<Vec<_>>()),
        toml_edit::Value::InlineTable(_) => self::value(&Item::Value(value.clone())),
    }
}

/// A value as JSON, whose texts, numbers and lists read as TOML's do.
pub(super) fn json(value: &Value) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}
