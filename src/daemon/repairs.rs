//! What another hand did to what is kvip's, and how often kvip has put it right.
//!
//! Pure: the time is passed in.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::ipvs::Table;
use crate::model::Finding;
use crate::report::status;
use crate::report::words::count;

/// More repairs than this within [`WINDOW`] are a fight, and a finding.
const FIGHT: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// What is not as kvip left it; found, and not yet put right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Virtual servers.
    pub ipvs: IpvsDrift,
    /// The table `inet kvip`.
    pub nftables: Option<TableDrift>,
    /// Policy rules and routes that were gone.
    pub routing: usize,
}

/// Virtual servers that are not as kvip left them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IpvsDrift {
    /// Those that are gone.
    pub gone: usize,
    /// Those that balance otherwise, or to others.
    pub altered: usize,
}

impl std::ops::AddAssign for IpvsDrift {
    fn add_assign(&mut self, other: Self) {
        self.gone += other.gone;
        self.altered += other.altered;
    }
}

/// The table `inet kvip` is not as kvip left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDrift {
    /// It is not there at all.
    pub gone: bool,
    /// The program that did it, as far as the kernel has told.
    pub by: Option<String>,
}

impl IpvsDrift {
    /// What differs from what was known in what is read now. Connections come and go.
    pub fn between(known: &Table, read: &Table) -> Self {
        let now = || known.iter().map(|(key, was)| (was, read.get(key)));
        Self {
            gone: now().filter(|(_, now)| now.is_none()).count(),
            altered: now().filter(|(was, now)| now.is_some_and(|now| !was.same_as(now))).count(),
        }
    }
}

/// `3 virtual servers were removed and 1 was changed by another program (kube-proxy, ipvsadm?)`.
impl fmt::Display for IpvsDrift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let were = |number: usize| if number == 1 { "was" } else { "were" };
        let what = count(self.gone.max(self.altered), "virtual server");
        match (self.gone, self.altered) {
            (gone, 0) => write!(f, "{what} {} removed", were(gone))?,
            (0, altered) => write!(f, "{what} {} changed", were(altered))?,
            (gone, altered) => write!(
                f,
                "{} {} removed and {altered} {} changed",
                count(gone, "virtual server"),
                were(gone),
                were(altered)
            )?,
        }
        f.write_str(" by another program (kube-proxy or ipvsadm?)")
    }
}

/// `nftables table inet kvip was removed by another program (nft)`.
impl fmt::Display for TableDrift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.gone { "removed" } else { "changed" };
        write!(f, "nftables table inet kvip was {done} by another program")?;
        self.by.as_ref().map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// What was put right since kvip began.
#[derive(Debug, Default)]
pub struct Repairs {
    ipvs: Times,
    nftables: Times,
    routing: Times,
}

impl Repairs {
    /// Takes note of what was put right now; says it.
    pub fn note(&mut self, drift: &Drift, now: Instant) -> Vec<String> {
        let mut said = Vec::new();
        if drift.ipvs != IpvsDrift::default() {
            self.ipvs.note(now);
            said.push(format!("repaired: {}", drift.ipvs));
        }
        if let Some(table) = &drift.nftables {
            self.nftables.note(now);
            said.push(format!("repaired: {table}"));
        }
        if drift.routing > 0 {
            self.routing.note(now);
            let what = match drift.routing {
                1 => "a policy rule or route was".to_owned(),
                more => format!("{more} policy rules and routes were"),
            };
            said.push(format!("repaired: {what} removed by another program (systemd-networkd?)"));
        }
        said
    }

    /// How often each was put right.
    pub fn counts(&self) -> status::Repairs {
        status::Repairs { ipvs: self.ipvs.count, nftables: self.nftables.count, routing: self.routing.count }
    }

    /// A finding for each that has to be put right again and again.
    pub fn fights(&self, now: Instant) -> Vec<Finding> {
        let fight = |times: &Times, subject: &str, what: &str, mend: &str| {
            let text = format!(
                "another program removes or changes {what}; repaired more than {FIGHT} times in a minute"
            );
            times.is_fight(now).then(|| Finding::new(subject, text).mend(mend))
        };
        let ipvs = "stop what does it: kube-proxy in ipvs mode unless its ipvs.excludeCIDRs names vips.allowed, or jobs that run \
                    ipvsadm -C; journalctl -u kvip has the times";
        let nftables =
            "stop what does it: nft monitor shows the changes, journalctl -u kvip the program and the times";
        let routing = "stop what does it: systemd-networkd unless networkd.conf says ManageForeignRoutes=no and \
                       ManageForeignRoutingPolicyRules=no; ip monitor rule route shows the changes";
        [
            fight(&self.ipvs, "IPVS", "kvip's virtual servers", ipvs),
            fight(&self.nftables, "nftables", "table inet kvip", nftables),
            fight(&self.routing, "routing", "kvip's policy rules and routes", routing),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// How often, and when of late.
#[derive(Debug, Default)]
struct Times {
    count: u64,
    /// The last [`FIGHT`] and one more.
    last: VecDeque<Instant>,
}

impl Times {
    fn note(&mut self, now: Instant) {
        self.count += 1;
        self.last.push_back(now);
        if self.last.len() > FIGHT + 1 {
            self.last.pop_front();
        }
    }

    fn is_fight(&self, now: Instant) -> bool {
        let first = self.last.front().filter(|_| self.last.len() > FIGHT);
        first.is_some_and(|first| now.saturating_duration_since(*first) < WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(gone: usize, altered: usize, text: &str) {
        let by = " by another program (kube-proxy or ipvsadm?)";
        assert_eq!(IpvsDrift { gone, altered }.to_string().strip_suffix(by), Some(text));
    }

    #[test]
    fn a_drift_is_said_in_words() {
        check(1, 0, "1 virtual server was removed");
        check(3, 0, "3 virtual servers were removed");
        check(0, 2, "2 virtual servers were changed");
        check(1, 2, "1 virtual server was removed and 2 were changed");
        check(2, 1, "2 virtual servers were removed and 1 was changed");
        let table = |gone, by: Option<&str>| TableDrift { gone, by: by.map(str::to_owned) }.to_string();
        assert_eq!(table(true, Some("nft")), "nftables table inet kvip was removed by another program (nft)");
        assert_eq!(table(false, None), "nftables table inet kvip was changed by another program");
    }

    #[test]
    fn repairs_of_routing_are_said_and_counted() {
        let mut repairs = Repairs::default();
        let mut said = |routing| repairs.note(&Drift { routing, ..Drift::default() }, Instant::now());
        let by = "removed by another program (systemd-networkd?)";
        assert_eq!(said(0), [""; 0]);
        assert_eq!(said(1), [format!("repaired: a policy rule or route was {by}")]);
        assert_eq!(said(4), [format!("repaired: 4 policy rules and routes were {by}")]);
        assert_eq!(repairs.counts().routing, 2);
    }

    #[test]
    fn more_than_ten_repairs_in_a_minute_are_a_finding_for_as_long() {
        let start = Instant::now();
        let mut repairs = Repairs::default();
        let drift = Drift { ipvs: IpvsDrift { gone: 1, altered: 0 }, ..Drift::default() };
        for second in 0..=10 {
            let now = start + Duration::from_secs(second);
            assert_eq!(repairs.fights(now), [], "{second}");
            repairs.note(&drift, now);
        }
        let said = |seconds| repairs.fights(start + Duration::from_secs(seconds)).len();
        assert_eq!([said(10), said(59), said(60)], [1, 1, 0]);
        assert_eq!(repairs.counts(), status::Repairs { ipvs: 11, ..status::Repairs::default() });
    }

    #[test]
    fn slow_repairs_are_no_fight() {
        let start = Instant::now();
        let mut repairs = Repairs::default();
        let table = Drift { nftables: Some(TableDrift { gone: true, by: None }), ..Drift::default() };
        for number in 0..30 {
            let now = start + 6 * number * Duration::from_secs(1);
            repairs.note(&table, now);
            assert_eq!(repairs.fights(now), [], "{number}");
        }
    }
}
