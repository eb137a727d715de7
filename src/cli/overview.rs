//! `kvip` alone: what this is, which commands there are, and the next step.

use std::path::Path;

use clap::CommandFactory;
use serde::Serialize;

use super::style::{self, Style};
use super::{Cli, Exit, Global, daemon};
use crate::config::{Problem, Settings, Sources, nothing_allowed, read_host};
use crate::daemon::settings;
use crate::keepalived::Paths;
use crate::report::status::Status;

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
    Running,
}

/// Prints the overview; an unfinished installation and a finding are something to mend.
pub(super) async fn run(global: &Global) -> anyhow::Result<Exit> {
    let overview = match daemon::ask().await {
        Ok(status) => of_daemon(&status),
        Err(_) => of_installation(global),
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
fn of_installation(global: &Global) -> Overview {
    let host = read_host(&Sources::of_file(global.config()));
    let settings = host.map(|host| settings::known(&host, &Paths::default().state).settings);
    let kubeconfig = settings
        .as_ref()
        .is_ok_and(|settings| settings.cluster.manifests.is_some() || is_there(&settings.cluster.kubeconfig));
    let (state, next) = next_step(&settings, kubeconfig, global.config());
    Overview {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        state,
        summary: None,
        next,
    }
}

/// Whether the path leads to something; what cannot be looked at may well be there.
fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}

/// How far the installation is, and what comes next.
fn next_step(settings: &Result<Settings, Vec<Problem>>, kubeconfig: bool, file: &Path) -> (State, String) {
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
        Ok(settings) if !kubeconfig => {
            let path = settings.cluster.kubeconfig.display();
            (State::NotConfigured, format!("put the kubeconfig with which kvip reads the cluster at {path}"))
        }
        Ok(_) => (State::Configured, "systemctl enable --now kvip".to_owned()),
    }
}

fn text(overview: &Overview, style: Style) -> String {
    let state = match overview.state {
        State::NotConfigured => style.warn("not configured yet"),
        State::Wrong => style.bad("wrongly configured"),
        State::Configured => style.good("configured"),
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
        assert_eq!(next_step(&Err(vec![missing]), false, file), (State::NotConfigured, next));
        let wrong = Err(vec![problem("vrrp.vrid", "a VRID is 1 to 255")]);
        assert_eq!(
            next_step(&wrong, true, file),
            (State::Wrong, "kvip check     (1 problem in the settings)".into())
        );
        let (state, next) = next_step(&Ok(Settings::standard(Vec::new())), true, file);
        assert_eq!(state, State::NotConfigured);
        let mend = "in /etc/kvip/config.toml, write the networks that VIPs may come from under [vips], as in";
        assert_eq!(next, format!("{mend} allowed = [\"10.87.2.0/24\"]"));
        let (state, next) = next_step(&Ok(settings()), false, file);
        assert_eq!(state, State::NotConfigured);
        assert_eq!(next, "put the kubeconfig with which kvip reads the cluster at /etc/kvip/kubeconfig");
        assert_eq!(
            next_step(&Ok(settings()), true, file),
            (State::Configured, "systemctl enable --now kvip".into())
        );
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
