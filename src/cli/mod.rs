//! The command line: which commands there are, what they share, and how they end.
//!
//! Each command lives in a file of its own with a `run` that returns an [`Exit`]. Nothing here knows how a cluster or a
//! host is asked.

mod accept;
mod check;
mod cleanup;
mod daemon;
mod done;
mod drain;
mod explain;
mod failure;
mod overview;
mod plan;
mod plan_haproxy;
mod status;
pub mod style;
mod unit;
mod view;
mod waiting;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{CONFIG_FILE, Sources};
use crate::model::Finding;

/// Virtual IP addresses for bare-metal Kubernetes that outlive any node.
#[derive(Debug, Parser)]
#[command(name = "kvip", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do; an overview when none is given.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The settings' file; its drop-ins are in config.d beside it [default: /etc/kvip/config.toml]
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Print JSON in place of text
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// The settings' file: the one named, or else the installed one.
    pub fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(CONFIG_FILE))
    }
}

/// The commands, in the order of the help.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// VIPs, who holds them, what is behind them
    Status,
    /// Why a Service or VIP is, or is not, served
    Explain(explain::Args),
    /// What kvip would change now, or for given manifests
    Plan(plan::Args),
    /// Is the configuration right
    Check(SettingsArgs),
    /// Hand this node's VIPs to another and keep them away
    Drain(drain::Args),
    /// End a drain: this node may hold VIPs again
    Undrain,
    /// Let a state of the cluster through that kvip holds back
    Accept,
    /// Remove all that kvip owns on this host
    Cleanup,
    /// The daemon, as systemd starts it
    Run(SettingsArgs),
    /// keepalived's ExecStartPre: no weight file may be missing
    #[command(hide = true)]
    PrepareWeights,
    /// keepalived's ExecStop: another node takes over first
    #[command(hide = true)]
    HandOver,
}

/// What commands take that read the settings.
#[derive(Debug, Clone, Default, Args)]
pub struct SettingsArgs {
    /// A setting that wins over files and environment; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    pub set: Vec<(String, String)>,
}

impl SettingsArgs {
    /// Where the settings come from, these flags among it.
    pub fn sources(&self, global: &Global) -> Sources {
        Sources { flags: self.set.clone(), ..Sources::of_file(global.config()) }
    }

    /// As [`sources`](Self::sources), but a config.toml among the manifests of `folder` stands for the installed file. One
    /// that is named with --config counts before it.
    pub fn sources_for(&self, folder: &Path, global: &Global) -> Sources {
        let own = folder.join(FOLDER_SETTINGS);
        let config = global.config.clone().or_else(|| own.exists().then_some(own));
        self.sources(&Global { config, ..global.clone() })
    }
}

/// The settings of a folder of manifests, beside these.
const FOLDER_SETTINGS: &str = "config.toml";

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 something to mend, 2 wrong usage, 3 could not ask";

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: all is well.
    Fine,
    /// 1: the command worked and found something to mend.
    Mend,
    /// 2: wrong usage; clap exits so by itself.
    Usage,
    /// 3: what the command needs to ask or to change did not answer.
    CouldNotAsk,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Fine => 0,
            Exit::Mend => 1,
            Exit::Usage => 2,
            Exit::CouldNotAsk => 3,
        })
    }
}

/// Parses the command line and runs it; an error is told and ends in [`Exit::CouldNotAsk`], but settings that are wrong in
/// [`Exit::Mend`].
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = run(&cli).or_else(|error| failure::tell(&error, &cli.global));
    exit.unwrap_or_else(|error| {
        eprintln!("kvip: {error:#}");
        Exit::CouldNotAsk
    })
    .into()
}

fn run(cli: &Cli) -> anyhow::Result<Exit> {
    let global = &cli.global;
    let runtime = || tokio::runtime::Runtime::new();
    match &cli.command {
        None => runtime()?.block_on(overview::run(global)),
        Some(Command::Check(args)) => runtime()?.block_on(check::run(args, global)),
        Some(Command::PrepareWeights) => unit::prepare_weights(),
        Some(Command::HandOver) => runtime()?.block_on(unit::hand_over()),
        Some(Command::Status) => runtime()?.block_on(status::run(global)),
        Some(Command::Explain(args)) => runtime()?.block_on(explain::run(args, global)),
        Some(Command::Plan(args)) => runtime()?.block_on(plan::run(args, global)),
        Some(Command::Drain(args)) => runtime()?.block_on(drain::drain(args, global)),
        Some(Command::Undrain) => runtime()?.block_on(drain::undrain(global)),
        Some(Command::Accept) => runtime()?.block_on(accept::run(global)),
        Some(Command::Cleanup) => runtime()?.block_on(cleanup::run(global)),
        Some(Command::Run(args)) => runtime()?.block_on(run_daemon(&args.sources(global))),
    }
}

/// Runs the daemon; settings that are wrong end it with all their problems in the journal.
async fn run_daemon(sources: &Sources) -> anyhow::Result<Exit> {
    crate::report::journal::init();
    match crate::daemon::run(sources).await {
        Ok(()) => Ok(Exit::Fine),
        Err(error) => {
            tracing::error!("{error:#}");
            Ok(Exit::Mend)
        }
    }
}

/// A finding as rows of a table: subject and text, then the mend below the text.
fn finding_rows(finding: &Finding) -> Vec<Vec<String>> {
    let mut rows = vec![vec![finding.subject.clone(), finding.text.clone()]];
    rows.extend(finding.mend.iter().map(|mend| vec![String::new(), mend.clone()]));
    rows
}

/// Splits `section.key=value`.
fn key_and_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(key, value)| (key.trim(), value));
    pair.filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "section.key=value is wanted, as in vrrp.vrid=51".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_sources() {
        let words = ["kvip", "check", "--config", "/x/kvip.toml", "--set", "vrrp.members=a=b"];
        let cli = Cli::try_parse_from(words).unwrap();
        let Some(Command::Check(args)) = &cli.command else { panic!("check is wanted") };
        let sources = args.sources(&cli.global);
        assert_eq!(sources.file, PathBuf::from("/x/kvip.toml"));
        assert_eq!(sources.drop_ins, PathBuf::from("/x/config.d"));
        assert_eq!(sources.flags, [("vrrp.members".to_owned(), "a=b".to_owned())]);
    }

    #[test]
    fn a_folders_settings_count_unless_others_are_named() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = |words: &[&str]| {
            let cli = Cli::try_parse_from(["kvip", "plan"].iter().chain(words)).unwrap();
            SettingsArgs::default().sources_for(folder.path(), &cli.global).file
        };
        assert_eq!(file(&[]), Path::new(CONFIG_FILE));
        let own = folder.path().join("config.toml");
        std::fs::write(&own, "").unwrap();
        assert_eq!(file(&[]), own);
        assert_eq!(file(&["--config", "/x/kvip.toml"]), Path::new("/x/kvip.toml"));
    }

    #[test]
    fn the_help_names_the_installed_file() {
        let help = Cli::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&format!("[default: {CONFIG_FILE}]")), "{help}");
    }

    #[test]
    fn wrong_usage_is_2() {
        for words in
            [["kvip", "frobnicate", ""], ["kvip", "check", "--set=vrid"], ["kvip", "check", "--set==1"]]
        {
            assert_eq!(Cli::try_parse_from(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
    }
}
