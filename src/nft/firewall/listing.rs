//! The chains in what nft lists, and where they see packets to a frontend.
//!
//! Pure.

/// Chains of the hook prerouting with this priority and lower ones see packets before conntrack does
/// (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;
/// That of kvip's own chain that marks packets (`NF_IP_PRI_MANGLE`). Of two chains with one priority that which came later
/// goes first (`nf_hook_entries_grow` in netfilter/core.c), which as a rule is kvip's.
const MARKING: i32 = -150;

/// A chain as nft lists it.
pub(super) struct Listed<'a> {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) lines: Vec<&'a str>,
}

/// Where a base chain sees packets to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On their way in.
    Input,
    /// Before the routing, where kvip has marked those of mode dsr.
    AfterMarking,
    /// As IPVS hands them on.
    Output,
}

impl Listed<'_> {
    /// Where it sees packets to a frontend, if it does.
    pub(super) fn place(&self) -> Option<Place> {
        let hook = self.lines.iter().find_map(|line| line.strip_prefix("type filter hook "))?;
        let (hook, priority) = hook.split(';').next()?.split_once(" priority ")?;
        match hook {
            "prerouting" => match number(priority)? {
                early if early <= CONNTRACK => None,
                early if early < MARKING => Some(Place::Input),
                _ => Some(Place::AfterMarking),
            },
            "input" => Some(Place::Input),
            "output" => Some(Place::Output),
            _ => None,
        }
    }
}

/// A priority as of `filter + 10`, by nft's names of them (nft(8)).
fn number(priority: &str) -> Option<i32> {
    let mut words = priority.split(' ');
    let base = match words.next()? {
        "raw" => -300,
        "mangle" => MARKING,
        "dstnat" => -100,
        "filter" => 0,
        "security" => 50,
        "srcnat" => 100,
        number => number.parse().ok()?,
    };
    match (words.next(), words.next()) {
        (Some("+"), Some(more)) => Some(base + more.parse::<i32>().ok()?),
        (Some("-"), Some(less)) => Some(base - less.parse::<i32>().ok()?),
        _ => Some(base),
    }
}

/// The chains in a listing of nft.
pub(super) fn chains_of(listing: &str) -> Vec<Listed<'_>> {
    let mut chains: Vec<Listed> = Vec::new();
    let (mut table, mut within) = ("", false);
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ").and_then(|rest| rest.strip_suffix(" {")) {
            (table, within) = (name, false);
        } else if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chains.push(Listed { table: table.to_owned(), name: name.to_owned(), lines: Vec::new() });
            within = true;
        } else if line == "}" {
            within = false;
        } else if within && let Some(chain) = chains.last_mut() {
            chain.lines.push(line);
        }
    }
    chains
}
