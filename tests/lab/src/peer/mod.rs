//! `lab-peer`: both ends of a conversation about who is who, over TCP, UDP and SCTP.
//!
//! A small program of its own, so that guests get it in a moment: in pods it answers on UDP and SCTP ports, and on the
//! client, nodes and in pods it asks. Owns the words of both ends. Never needs a name server or a file.
//!
//! An answer is what the pods' nginx says, behind the question's own word: `TOKEN NODE POD saw ADDRESS`.

pub mod ask;
pub mod drive;
pub mod install;
pub mod serve;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::bail;

use crate::prober::{Failure, Outcome};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Transport {
    /// HTTP over TCP, as the pods' nginx answers.
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

/// The answer to the question `token`.
fn answer(token: &str, node: &str, pod: &str, peer: IpAddr) -> String {
    format!("{token} {node} {pod} saw {peer}\n", peer = peer.to_canonical())
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
    fn what_is_no_answer_is_none() {
        assert_eq!(understand("7"), None);
        assert_eq!(understand("7 hello"), Some(("7", Outcome::Failed(Failure::BadAnswer))));
    }
}
