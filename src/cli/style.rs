//! How output looks: aligned columns, ages, and colour where a person looks on.
//!
//! Colour never carries a meaning of its own: with none the words say the same.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};

pub use crate::report::words::{age, count};

/// What begins every escape sequence for colour.
const ESCAPE: char = '\u{1b}';

/// Whether to colour, decided once for each output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// No colour at all.
    pub const PLAIN: Self = Self { colour: false };

    /// For standard output: coloured on a terminal, unless `NO_COLOR` is set and not empty (no-color.org).
    pub fn stdout() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self::decide(io::stdout().is_terminal() && !dumb, std::env::var_os("NO_COLOR").as_deref())
    }

    /// The decision behind [`Style::stdout`].
    pub fn decide(terminal: bool, no_color: Option<&OsStr>) -> Self {
        Self { colour: terminal && no_color.is_none_or(OsStr::is_empty) }
    }

    /// A heading, or the name of what a line is about.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What is as it should be.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What someone has to mend.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// What may need care.
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// What matters least.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("{ESCAPE}[{code}m{text}{ESCAPE}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Rows with their columns lined up, two spaces apart, a line each; no line ends in spaces.
///
/// Rows may differ in length. Colour in a cell takes no room.
pub fn table<R: AsRef<[C]>, C: AsRef<str>>(rows: &[R]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.as_ref().iter().enumerate() {
            widths.resize(widths.len().max(column + 1), 0);
            widths[column] = widths[column].max(width(cell.as_ref()));
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, wide) in row.as_ref().iter().zip(&widths) {
            let cell = cell.as_ref();
            line.push_str(cell);
            line.push_str(&" ".repeat(wide - width(cell) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Each non-empty line of `text` moved right by `spaces`.
pub fn indent(text: &str, spaces: usize) -> String {
    let margin = " ".repeat(spaces);
    let lines =
        text.lines().map(|line| if line.is_empty() { "\n".into() } else { format!("{margin}{line}\n") });
    lines.collect()
}

/// Writes `text` to standard output; a reader that has gone, as in `kvip status | head`, is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The room that `text` takes on a terminal: its characters without escape sequences for colour.
fn width(text: &str) -> usize {
    let mut width = 0;
    let mut escaped = false;
    for c in text.chars() {
        match (escaped, c) {
            (false, ESCAPE) => escaped = true,
            (false, _) => width += 1,
            (true, 'm') => escaped = false,
            (true, _) => {}
        }
    }
    width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        assert_eq!(Style::decide(true, None), Style { colour: true });
        assert_eq!(Style::decide(true, Some(OsStr::new(""))), Style { colour: true });
        assert_eq!(Style::decide(true, Some(OsStr::new("1"))), Style::PLAIN);
        assert_eq!(Style::decide(false, None), Style::PLAIN);
        assert_eq!(Style::PLAIN.bad("x"), "x");
        assert_eq!(Style { colour: true }.bad("x"), "\u{1b}[31mx\u{1b}[0m");
    }

    #[test]
    fn columns_line_up_whatever_their_colour() {
        let style = Style { colour: true };
        let rows = [
            vec!["VIP".to_owned(), "FOR".into()],
            vec![style.good("10.0.0.1"), "3d".into(), "é".into()],
            vec![],
        ];
        assert_eq!(table(&rows), "VIP       FOR\n\u{1b}[32m10.0.0.1\u{1b}[0m  3d   é\n\n");
        assert_eq!(indent("a\n\nb\n", 2), "  a\n\n  b\n");
    }
}
