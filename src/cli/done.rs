//! What a command did that changes something: lines for people, one document for programs.

use serde::Serialize;

use super::{Exit, Global, style};

/// The document's shape; its number rises when a field changes its meaning or goes.
const SCHEMA: &str = "kvip.done.v1";

/// What was done, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    schema: &'static str,
    /// The command, such as `drain`.
    command: &'static str,
    /// Whether all that was asked for is done.
    complete: bool,
    /// What happened, in order.
    messages: Vec<String>,
    /// What went wrong or is left to mend.
    problems: Vec<String>,
}

impl Done {
    /// A command that has done nothing yet.
    pub fn new(command: &'static str) -> Self {
        Self { schema: SCHEMA, command, complete: true, messages: Vec::new(), problems: Vec::new() }
    }

    /// Something happened.
    pub fn say(&mut self, message: impl Into<String>) {
        self.messages.push(message.into());
    }

    /// Something did not happen that was asked for.
    pub fn fail(&mut self, problem: impl Into<String>) {
        self.complete = false;
        self.problems.push(problem.into());
    }

    /// Prints it: messages to standard output and problems to standard error, or the document.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, global: &Global) -> anyhow::Result<Exit> {
        if global.json {
            style::print(&(serde_json::to_string_pretty(self)? + "\n"))?;
        } else {
            for message in &self.messages {
                style::print(&format!("{message}\n"))?;
            }
            for problem in &self.problems {
                eprintln!("{problem}");
            }
        }
        Ok(if self.complete { Exit::Fine } else { Exit::Mend })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_was_done_and_what_was_not() {
        let mut done = Done::new("drain");
        done.say("another node took over after 0.8 s");
        done.fail("not drained");
        let document = serde_json::to_value(&done).unwrap();
        let expected = serde_json::json!({
            "schema": "kvip.done.v1",
            "command": "drain",
            "complete": false,
            "messages": ["another node took over after 0.8 s"],
            "problems": ["not drained"],
        });
        assert_eq!(document, expected);
    }
}
