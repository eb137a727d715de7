//! How a command tells that it could not do its work: in lines for people, as one document for programs.

use serde::Serialize;
use serde_json::Value;

use super::{Exit, Global, check, style};
use crate::config::WrongSettings;

/// The document's shape; its number rises when a field changes its meaning or goes.
const SCHEMA: &str = "kvip.error.v1";

/// An error for which there may be something to type.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Stuck {
    /// What is the matter.
    pub text: String,
    /// The next command to type or setting to change, when there is one.
    pub mend: Option<String>,
}

/// An error for programs.
#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    /// What a person would read.
    error: String,
    mend: Option<String>,
    /// Each problem of the settings, where these are wrong.
    problems: Vec<Value>,
}

/// Tells `error`, to people on standard error. Settings that are wrong are something to mend; otherwise nothing could be
/// asked.
///
/// # Errors
/// When standard output cannot be written.
pub fn tell(error: &anyhow::Error, global: &Global) -> anyhow::Result<Exit> {
    let document = document(error);
    if global.json {
        style::print(&(serde_json::to_string_pretty(&document)? + "\n"))?;
    } else {
        eprintln!("kvip: {}", document.error);
        if let Some(mend) = &document.mend {
            eprintln!("  {mend}");
        }
    }
    Ok(if document.problems.is_empty() { Exit::CouldNotAsk } else { Exit::Mend })
}

fn document(error: &anyhow::Error) -> Document {
    let problems = error.downcast_ref::<WrongSettings>().map_or(&[][..], |wrong| &wrong.0);
    Document {
        schema: SCHEMA,
        error: format!("{error:#}"),
        mend: error.downcast_ref::<Stuck>().and_then(|stuck| stuck.mend.clone()),
        problems: problems.iter().map(check::problem_json).collect(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_mend_is_found_behind_what_was_tried() {
        let stuck = Stuck { text: "it is gone".into(), mend: Some("look".into()) };
        let error = Err::<(), _>(stuck).context("read it").unwrap_err();
        let expected = serde_json::json!({
            "schema": "kvip.error.v1", "error": "read it: it is gone", "mend": "look", "problems": [],
        });
        assert_eq!(serde_json::to_value(document(&error)).unwrap(), expected);
    }
}
