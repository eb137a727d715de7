//! YAML as people write it: cut into documents, read within limits, and what is wrong with it in their words.
//!
//! Pure.

use std::borrow::Cow;

use serde_json::Value;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

/// What is said of a document that is not read as it would take too much memory.
const TOO_MUCH: &str = "too large or too deeply nested to be read: write it as several documents";

/// A document of a file and the line, from 1, at which it starts.
pub(super) struct Document<'a> {
    pub(super) line: usize,
    pub(super) text: &'a str,
}

impl Document<'_> {
    /// The value of a document. How much it may hold goes by its length, so that the dump of a large cluster can be read; depth
    /// and aliases, which make much of a short one, keep their limits.
    pub(super) fn value(&self) -> Result<Value, serde_saphyr::Error> {
        let text = self.text;
        let mut budget = serde_saphyr::Budget::default();
        budget.max_nodes = budget.max_nodes.max(text.len());
        budget.max_events = budget.max_events.max(text.len().saturating_mul(2));
        serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: Some(budget) })
    }
}

/// Cuts `text` at its `---` lines, so that a document that cannot be read does not take the next ones with it.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push(Document { line: first, text: &text[start..offset] });
            (start, first) = (offset + line.len(), number + 2);
        }
        offset += line.len();
    }
    documents.push(Document { line: first, text: &text[start..] });
    documents
}

/// Why a document is not read.
pub(super) fn unread(error: &serde_saphyr::Error) -> String {
    match error.without_snippet() {
        serde_saphyr::Error::Budget { .. } => TOO_MUCH.to_owned(),
        error => format!("not YAML or JSON: {}", reason(error)),
    }
}

/// What is wrong with YAML, without place and without advice for programmers.
pub(super) fn reason(error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    let text = match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            Cow::Owned(format!("duplicate key \"{key}\""))
        }
        _ => UserMessageFormatter.format_message(error),
    };
    text.replace(char::is_control, " ")
}
