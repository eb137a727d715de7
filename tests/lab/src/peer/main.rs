//! `lab-peer`: asks over TCP, UDP or SCTP, and answers in pods.
//!
//! Owns the command line only; each subcommand is a call into the library.

use clap::{Parser, Subcommand};
use kvip_lab::peer::ask::{self, Question};
use kvip_lab::peer::pulse;
use kvip_lab::peer::serve::{self, Listener};

#[derive(Parser)]
#[command(name = "lab-peer", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// Both ends of a conversation about who is who.
#[derive(Subcommand)]
enum Verb {
    /// Ask again and again; prints a line of JSON a request.
    Ask(Question),
    /// Print a line of JSON for each time that this machine stood still, until standard input ends.
    Pulse,
    /// Answer `TOKEN NODE POD saw ADDRESS` until killed.
    Serve {
        /// The node's name.
        node: String,
        /// The pod's name.
        pod: String,
        /// Where: tcp:ADDRESS:PORT, udp:ADDRESS:PORT, sctp:ADDRESS:PORT.
        #[arg(required = true)]
        listeners: Vec<Listener>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Ask(question) => {
            ask::run(question);
            Ok(())
        }
        Verb::Pulse => {
            pulse::run();
            Ok(())
        }
        Verb::Serve { node, pod, listeners } => serve::run(&node, &pod, &listeners),
    }
}
