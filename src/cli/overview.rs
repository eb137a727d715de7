//! `kvip` alone: what this is, which commands there are, and the next step.

use std::path::Path;

use clap::CommandFactory;
use serde::Serialize;

use super::daemon::Unit;
use super::style::{self, Style};
use super::{Cli, Exit, Global, check, daemon};
use crate::config::{Problem, Settings, Sources, nothing_allowed, read_host};
use crate::daemon::settings;
use crate::keepalived::Paths;
use crate::report::status::Status;
use crate::snapshot::check_kubeconfig;
use crate::snapshot::problem::Problem as Unusable;

/// The name of the JSON form.
const SCHEMA: &str = "kvip.overview.v1";

/// What the overview tells; its JSON form is this, under a schema's name.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Overview {
    schema: &'static str,
    version: &'static str,
    node: String,
    state: State,
    /// What the running daemon says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    /// The next thing to do, as one line.
    next: String,
}

/// How far the installation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    NotConfigured,
    Wrong,
    Configured,
    /// systemd has it, and it does not run.
    NotRunning,
    /// It runs, and does not answer.
    NotAnswering,
    Running,
}

/// Prints the overview; an unfinished installation and a finding are something to mend.
pub(super) async fn run(global: &Global) -> anyhow::Result<Exit> {
    let overview = match daemon::ask().await {
        Ok(status) => of_daemon(&status),
        Err(_) => of_installation(global).await,
    };
    if global.json {
        style::print(&format!("{}\n", serde_json::to_string_pretty(&overview)?))?;
    } else {
        style::print(&text(&overview, Style::stdout()))?;
    }
    let fine = matches!(overview.state, State::Configured | State::Running) && !overview.next.contains(MEND);
    Ok(if fine { Exit::Fine } else { Exit::Mend })
}

/// What stands before a finding in the line `next`.
const MEND: &str = "     (";

/// The overview of a node whose daemon runs: the next step is the first finding's.
fn of_daemon(status: &Status) -> Overview {
    let next = status.findings.first().map_or_else(
        || "kvip status".to_owned(),
        |finding| format!("{}{MEND}{finding})", finding.mend.as_deref().unwrap_or("kvip status")),
    );
    Overview {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        node: status.node.clone(),
        state: State::Running,
        summary: Some(status.summary.clone()),
        next,
    }
}

/// The overview of a host on which no daemon answers.
async fn of_installation(global: &Global) -> Overview {
    let host = read_host(&Sources::of_file(global.config()));
    let settings = host.map(|host| settings::known(&host, &Paths::default().state).settings);
    let kubeconfig = match &settings {
        Ok(settings) if settings.cluster.manifests.is_none() => {
            check_kubeconfig(&settings.cluster.kubeconfig).await
        }
        _ => Ok(()),
    };
    // What this user cannot read may well be right.
    let kubeconfig = kubeconfig.err().filter(|problem| !check::is_only_for_root(problem));
    let unit = Unit::now().await;
    let (state, next) = next_step(&settings, kubeconfig.as_ref(), &unit, global.config());
    Overview {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        state,
        summary: None,
        next,
    }
}

/// How far the installation is, and what comes next.
fn next_step(
    settings: &Result<Settings, Vec<Problem>>,
    kubeconfig: Option<&Unusable>,
    unit: &Unit,
    file: &Path,
) -> (State, String) {
    match settings {
        Err(problems) => match problems.as_slice() {
            [Problem { file: Some(file), mend: Some(mend), .. }] => {
                (State::NotConfigured, format!("in {}, {mend}", file.display()))
            }
            more => {
                let number = style::count(more.len(), "problem");
                (State::Wrong, format!("kvip check     ({number} in the settings)"))
            }
        },
        // Whoever keeps them in the cluster's ConfigMap knows what to do next without being told.
        Ok(settings) if settings.allowed.is_empty() => {
            let mend = nothing_allowed(settings, file).and_then(|finding| finding.mend).unwrap_or_default();
            (State::NotConfigured, mend)
        }
        Ok(_) => match kubeconfig {
            Some(Unusable::KubeconfigMissing { path }) => {
                let path = path.display();
                (
                    State::NotConfigured,
                    format!("put the kubeconfig with which kvip reads the cluster at {path}"),
                )
            }
            Some(problem) => (State::Wrong, format!("kvip check{MEND}{problem})")),
            None => start(unit),
        },
    }
}

/// What comes next where all is configured and no daemon answers.
fn start(unit: &Unit) -> (State, String) {
    let journal = "journalctl -u kvip -n 50".to_owned();
    match unit.active.as_str() {
        "active" | "reloading" => (State::NotAnswering, journal),
        // Started again and again, for one.
        "activating" | "deactivating" | "failed" => (State::NotRunning, journal),
        _ if unit.enabled => (State::NotRunning, "systemctl start kvip".to_owned()),
        _ => (State::Configured, "systemctl enable --now kvip".to_owned()),
    }
}

fn text(overview: &Overview, style: Style) -> String {
    let state = match overview.state {
        State::NotConfigured => style.warn("not configured yet"),
        State::Wrong => style.bad("wrongly configured"),
        State::Configured => style.good("configured"),
        State::NotRunning => style.bad("not running"),
        State::NotAnswering => style.bad("not answering"),
        State::Running => style.good("running"),
    };
    let summary = overview.summary.as_ref().map_or_else(String::new, |summary| format!(", {summary}"));
    let commands: Vec<[String; 2]> = Cli::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            [style.strong(&format!("kvip {}", command.get_name())), lower_first(&about)]
        })
        .collect();
    format!(
        "kvip {} on {}: {state}{summary}\n\n{}\nnext: {}\n",
        overview.version,
        overview.node,
        style::indent(&style::table(&commands), 2),
        overview.next
    )
}

/// Help texts begin with a capital, lines of a list do not, unless with a name such as VIP.
fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !chars.clone().next().is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Finding;

    fn problem(subject: &str, text: &str) -> Problem {
        Problem { subject: Some(subject.into()), text: text.into(), ..Problem::default() }
    }

    fn settings() -> Settings {
        Settings::standard(vec!["10.87.2.0/24".parse().unwrap()])
    }

    #[test]
    fn says_the_next_step_of_the_installation() {
        let file = Path::new("/etc/kvip/config.toml");
        let missing = Problem {
            file: Some("/etc/kvip/config.toml".into()),
            mend: Some("write it".into()),
            ..problem("vips.allowed", "not set")
        };
        let next = "in /etc/kvip/config.toml, write it".to_owned();
        let unit = Unit::default();
        assert_eq!(next_step(&Err(vec![missing]), None, &unit, file), (State::NotConfigured, next));
        let wrong = Err(vec![problem("vrrp.vrid", "a VRID is 1 to 255")]);
        assert_eq!(
            next_step(&wrong, None, &unit, file),
            (State::Wrong, "kvip check     (1 problem in the settings)".into())
        );
        let (state, next) = next_step(&Ok(Settings::standard(Vec::new())), None, &unit, file);
        assert_eq!(state, State::NotConfigured);
        let mend = "in /etc/kvip/config.toml, write the networks that VIPs may come from under [vips], as in";
        assert_eq!(next, format!("{mend} allowed = [\"10.87.2.0/24\"]"));
        let path = || "/etc/kvip/kubeconfig".into();
        let missing = Unusable::KubeconfigMissing { path: path() };
        let (state, next) = next_step(&Ok(settings()), Some(&missing), &unit, file);
        assert_eq!(state, State::NotConfigured);
        assert_eq!(next, "put the kubeconfig with which kvip reads the cluster at /etc/kvip/kubeconfig");
        let unusable = Unusable::KubeconfigInvalid { path: path(), reason: "it is empty".into() };
        let next = "kvip check     (/etc/kvip/kubeconfig is not a usable kubeconfig: it is empty)".to_owned();
        assert_eq!(next_step(&Ok(settings()), Some(&unusable), &unit, file), (State::Wrong, next));
        assert_eq!(
            next_step(&Ok(settings()), None, &unit, file),
            (State::Configured, "systemctl enable --now kvip".into())
        );
    }

    #[test]
    fn a_daemon_that_should_run_and_does_not_answer_is_no_good_news() {
        let journal = "journalctl -u kvip -n 50";
        for (active, enabled, state, next) in [
            ("", false, State::Configured, "systemctl enable --now kvip"),
            ("inactive", false, State::Configured, "systemctl enable --now kvip"),
            ("inactive", true, State::NotRunning, "systemctl start kvip"),
            ("failed", true, State::NotRunning, journal),
            ("failed", false, State::NotRunning, journal),
            ("activating", true, State::NotRunning, journal),
            ("active", true, State::NotAnswering, journal),
        ] {
            let unit = Unit { active: active.into(), enabled };
            let file = Path::new("/etc/kvip/config.toml");
            let found = next_step(&Ok(settings()), None, &unit, file);
            assert_eq!(found, (state, next.to_owned()), "{active}");
        }
    }

    #[test]
    fn a_running_daemon_speaks_for_itself() {
        let finding = Finding::new("default/shop", "no ready endpoints").mend("kubectl get pods");
        let summary = "holds 2 of 3 VIPs; 41 Services; in sync; 1 finding".to_owned();
        let status = Status { node: "node-a".into(), summary, findings: vec![finding], ..Status::default() };
        let text = text(&of_daemon(&status), Style::PLAIN);
        assert!(text.starts_with(
            "kvip 0.1.0 on node-a: running, holds 2 of 3 VIPs; 41 Services; in sync; 1 finding\n"
        ));
        assert!(
            text.ends_with("\nnext: kubectl get pods     (default/shop: no ready endpoints)\n"),
            "{text}"
        );
    }

    #[test]
    fn lists_the_commands() {
        let overview = Overview {
            schema: "kvip.overview.v1",
            version: "0.1.0",
            node: "node-a".into(),
            state: State::Configured,
            summary: None,
            next: "x".into(),
        };
        let text = text(&overview, Style::PLAIN);
        assert!(text.starts_with("kvip 0.1.0 on node-a: configured\n\n"), "{text}");
        assert!(text.contains("  kvip check"), "{text}");
        assert!(text.contains("  is the configuration right\n"), "{text}");
        assert!(text.contains("  VIPs, who holds them, what is behind them\n"), "{text}");
        assert!(text.ends_with("\nnext: x\n"), "{text}");
        let json = serde_json::to_value(&overview).unwrap();
        let expected = serde_json::json!({
            "schema": "kvip.overview.v1", "version": "0.1.0", "node": "node-a", "state": "configured", "next": "x",
        });
        assert_eq!(json, expected);
    }
}
