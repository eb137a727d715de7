//! Many requests to the API server in one go: one `kubectl proxy` and one curl, some milliseconds a request.
//!
//! Owns how requests are written for curl. Decides nothing about what is sent.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::control;
use crate::lab::Lab;

/// What a batch may take, on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Starts the proxy, which the words behind the script name, and runs curl beside it.
const SCRIPT: &str = "rm -f /run/batch.sock; \"$@\" >/dev/null & proxy=$!; \
    until [ -S /run/batch.sock ] || ! kill -0 $proxy; do sleep 0.05; done; \
    curl --silent --show-error --config -; status=$?; kill $proxy; exit $status";

/// One change of one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Makes the object at that path, or makes it be as the body says.
    Apply(String, Value),
    /// Changes some of its fields; `null` takes one away.
    Merge(String, Value),
    /// Deletes it.
    Delete(String),
}

impl Edit {
    /// As curl's configuration has it.
    fn request(&self) -> String {
        let (method, path, kind, body) = match self {
            Self::Apply(path, body) => {
                ("PATCH", format!("{path}?fieldManager=batch&force=true"), "apply-patch+yaml", Some(body))
            }
            Self::Merge(path, body) => ("PATCH", path.clone(), "merge-patch+json", Some(body)),
            Self::Delete(path) => ("DELETE", path.clone(), "json", None),
        };
        let mut text = format!(
            "url = \"http://localhost{path}\"\nunix-socket = \"/run/batch.sock\"\nrequest = \"{method}\"\n\
             header = \"Content-Type: application/{kind}\"\noutput = \"/dev/null\"\nwrite-out = \"%{{http_code}}\\n\"\n"
        );
        if let Some(body) = body {
            let body = body.to_string().replace('\\', "\\\\").replace('"', "\\\"");
            writeln!(text, "data-binary = \"{body}\"").expect("a String takes all text");
        }
        text
    }
}

impl Lab {
    /// Sends the edits, one after the other, and gives the HTTP status of each.
    pub fn send(&self, edits: &[Edit]) -> Result<Vec<u16>> {
        let config = edits.iter().map(Edit::request).collect::<Vec<_>>().join("next\n");
        let proxy = control::kubectl_argv(self.layout(), &["proxy", "--unix-socket=/run/batch.sock"]);
        let script = ["sh", "-c", SCRIPT, "batch"].map(str::to_owned);
        let words: Vec<String> = script.into_iter().chain(proxy).collect();
        let output = self.host_within(LIMIT, &words, config.as_bytes())?;
        let answers: Vec<u16> = output.stdout.lines().filter_map(|line| line.parse().ok()).collect();
        if !output.ok() || answers.len() != edits.len() {
            bail!("{} of {} edits were answered: {output}", answers.len(), edits.len());
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_survives_curls_quoting() {
        let edit = Edit::Merge("/api/v1/x".into(), serde_json::json!({"a": "b\"c"}));
        let text = edit.request();
        assert!(text.contains(r#"data-binary = "{\"a\":\"b\\\"c\"}""#), "{text}");
        assert!(text.contains("url = \"http://localhost/api/v1/x\"\n"), "{text}");
    }
}
