//! `lab-peer`: both ends of a conversation about who is who, over TCP, UDP and SCTP.
//!
//! A small program of its own, so that guests get it in a moment: in pods it answers on UDP and SCTP ports and on TCP ports
//! named `echo`, and on the client, nodes and in pods it asks. Owns the words of both ends. Never needs a name server or a file.
//!
//! A question is a line: `TOKEN`, or `TOKEN OCTETS` for an answer of that length. The answer is one too: what the pods' nginx
//! says behind the question's own word, `TOKEN NODE POD saw ADDRESS`, and spaces up to the length.

pub mod ask;
pub mod drive;
pub mod hold;
pub mod install;
pub mod pulse;
pub mod serve;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::bail;

use crate::prober::{Failure, Outcome};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Transport {
    /// HTTP, as the pods' nginx answers; on a connection that is held, lines as over the others.
    Tcp,
    /// A datagram for a datagram.
    Udp,
    /// An association a question, one-to-one style (RFC 6458, section 4).
    Sctp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl FromStr for Transport {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => bail!("{text} is no transport: tcp, udp or sctp"),
        }
    }
}

/// The longest question or answer, in octets.
const LONGEST: usize = 512;

/// The answer to `question`.
fn answer(question: &str, node: &str, pod: &str, peer: IpAddr) -> String {
    let mut words = question.split_whitespace();
    let token = words.next().unwrap_or("?");
    let octets: usize = words.next().and_then(|octets| octets.parse().ok()).unwrap_or(0);
    let text = format!("{token} {node} {pod} saw {peer}", peer = peer.to_canonical());
    let padding = " ".repeat(octets.saturating_sub(text.len() + 1));
    format!("{text}{padding}\n")
}

/// The word of the question that was answered, and what the answer says.
fn understand(answer: &str) -> Option<(&str, Outcome)> {
    let (token, body) = answer.trim_end().split_once(' ')?;
    let words: Vec<&str> = body.split(' ').collect();
    let outcome = match words[..] {
        [node, pod, "saw", _] => {
            Outcome::Answered { node: node.to_owned(), pod: pod.to_owned(), body: body.to_owned() }
        }
        _ => Outcome::Failed(Failure::BadAnswer),
    };
    Some((token, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_to_what_from_whom_and_who_was_seen() {
        let text = answer("7", "node-a", "echo-1", "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(text, "7 node-a echo-1 saw 10.0.0.1\n");
        let (token, outcome) = understand(&text).unwrap();
        let body = "node-a echo-1 saw 10.0.0.1".to_owned();
        assert_eq!(token, "7");
        assert_eq!(outcome, Outcome::Answered { node: "node-a".into(), pod: "echo-1".into(), body });
    }

    #[test]
    fn an_answer_is_as_long_as_was_asked_for() {
        let text = answer("7 200000", "node-a", "echo-1", "10.0.0.1".parse().unwrap());
        assert_eq!((text.len(), text.lines().count()), (200_000, 1));
        assert_eq!(understand(&text), understand("7 node-a echo-1 saw 10.0.0.1\n"));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        assert_eq!(understand("7"), None);
        assert_eq!(understand("7 hello"), Some(("7", Outcome::Failed(Failure::BadAnswer))));
    }
}
