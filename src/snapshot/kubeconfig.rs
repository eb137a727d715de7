//! From a kubeconfig file to a client, and noticing when the file, or one that it names, changes.
//!
//! Reads files and, for a client that is to be used, runs the kubeconfig's credential plugin; speaks to no server.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use kube::config::{AuthInfo, ExecInteractiveMode, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::lookup_host;
use tracing::debug;

use super::problem::{self, Problem, Request};
use crate::files::is_named_pipe;

/// How long a connection may take to be made, TLS included: a frozen server accepts and then says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A kubeconfig is a few kilobytes; whatever is a thousand times as long is something else.
const SIZE_LIMIT: u64 = 4 << 20;

/// timeout(1) of coreutils: it runs a command in a process group of its own and ends that after a time.
const TIMEOUT: &str = "/usr/bin/timeout";

/// A client for the server of a kubeconfig. A copy shares its connections.
#[derive(Clone)]
pub struct Link {
    /// The client.
    pub client: Client,
    /// The server's address, for people.
    pub(super) server: String,
    pub(super) path: PathBuf,
}

impl Link {
    /// The server's addresses: of a name those that it stands for now, none where that cannot be told.
    pub(super) async fn addresses(&self) -> BTreeSet<IpAddr> {
        let server = self.server.parse::<hyper::Uri>().ok();
        let Some(host) = server.as_ref().and_then(hyper::Uri::host) else { return BTreeSet::new() };
        match lookup_host((host.trim_matches(['[', ']']), 0)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                debug!("{host} stands for no address: {error}");
                BTreeSet::new()
            }
        }
    }

    /// The connection of `client` to the API server at the address `server`, made from the kubeconfig at `path`.
    pub fn new(client: Client, server: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { client, server: server.into(), path: path.into() }
    }

    /// What ails a request that tried to `verb` the `resource`, both as in RBAC, told with its mend.
    pub fn problem(&self, verb: &'static str, resource: &str, error: &kube::Error) -> Problem {
        Request { server: &self.server, path: &self.path, verb, resource, one: None }.problem(error)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Reads the kubeconfig at `path`, which may run its credential plugin, for no longer than `plugin`. `files` becomes the
/// files that were read, as they were before: when one changes, it is time to load again, also after an error.
pub(super) async fn load(path: &Path, files: &mut Files, plugin: Duration) -> Result<Link, Problem> {
    let mut config = read(path, files).await?;
    adapt_plugin(&mut config.auth_info, plugin);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The watches retry by themselves, and tell why.
    config.default_retry = false;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    Ok(Link::new(client(path, config).await?, server, path))
}

/// Whether the kubeconfig at `path` makes a client, as far as that can be told without its credential plugin and its server.
///
/// # Errors
/// With what keeps it from that.
pub async fn check(path: &Path) -> Result<(), Problem> {
    let mut config = read(path, &mut Files::default()).await?;
    config.auth_info.exec = None;
    config.auth_info.auth_provider = None;
    client(path, config).await.map(drop)
}

/// What the kubeconfig at `path` says; runs no plugin.
async fn read(path: &Path, files: &mut Files) -> Result<Config, Problem> {
    *files = Files::at(&[path.to_owned()]);
    refuse_what_is_no_file(path)?;
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| problem::kubeconfig(path, &e))?;
    files.add(&named_files(&kubeconfig));
    refuse_named_pipes(&kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.map_err(|e| problem::kubeconfig(path, &e))
}

/// Building a client runs the plugin and waits for it, so it must not hold up this thread.
async fn client(path: &Path, config: Config) -> Result<Client, Problem> {
    let built = tokio::task::spawn_blocking(move || Client::try_from(config)).await;
    built.expect("building a client does not panic").map_err(|e| problem::client(path, &e))
}

/// A device, a pipe or a huge file in the kubeconfig's place would be read for ever.
fn refuse_what_is_no_file(path: &Path) -> Result<(), Problem> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    let invalid = |reason: &str| Problem::KubeconfigInvalid { path: path.into(), reason: reason.into() };
    if !metadata.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    if metadata.len() > SIZE_LIMIT {
        return Err(invalid("it is longer than 4 MiB"));
    }
    let text = fs::File::open(path).and_then(|mut file| {
        let mut text = String::new();
        file.read_to_string(&mut text).map(|_| text)
    });
    match text {
        Ok(text) if text.trim().is_empty() => Err(invalid("it is empty")),
        _ => Ok(()),
    }
}

/// Opening a pipe that the kubeconfig names would wait for its other end.
fn refuse_named_pipes(kubeconfig: &Kubeconfig) -> Result<(), Problem> {
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let tokens = users.filter_map(|user| user.token_file.as_ref()).map(PathBuf::from);
    match named_files(kubeconfig).into_iter().chain(tokens).find(|file| is_named_pipe(file)) {
        Some(file) => Err(Problem::Unreadable { file, reason: "it is a named pipe".to_owned() }),
        None => Ok(()),
    }
}

/// The certificates, keys and authorities beside the kubeconfig, which rotate. Token files are kube's to follow.
fn named_files(kubeconfig: &Kubeconfig) -> Vec<PathBuf> {
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let certificates = users.flat_map(|user| [&user.client_certificate, &user.client_key]);
    let authorities = clusters.map(|cluster| &cluster.certificate_authority);
    certificates.chain(authorities).flatten().map(PathBuf::from).collect()
}

/// A daemon has no terminal: a plugin that knows this fails at once and its words can be passed on. One that hangs is ended
/// after `limit`, with what it started: kube runs it anew in each request once its credentials have expired, beside those
/// that hang already.
fn adapt_plugin(user: &mut AuthInfo, limit: Duration) {
    let Some(exec) = &mut user.exec else { return };
    exec.interactive_mode = Some(ExecInteractiveMode::Never);
    if let Some(command) = exec.command.take() {
        exec.command = Some(TIMEOUT.to_owned());
        let words = ["--kill-after=1".to_owned(), limit.as_secs_f64().to_string(), command];
        exec.args = Some(words.into_iter().chain(exec.args.take().unwrap_or_default()).collect());
    }
}

/// Whether [`TIMEOUT`] ended the plugin; when it had to kill, it killed itself too.
pub(super) fn was_ended(status: ExitStatus) -> bool {
    status.code() == Some(124) || status.signal() == Some(9)
}

/// Files, as they were at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files(Vec<(PathBuf, Option<Stamp>)>);

/// What differs when a file is written, replaced, or reached through another link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Files {
    fn at(paths: &[PathBuf]) -> Self {
        Self(paths.iter().map(|path| (path.clone(), stamp(path))).collect())
    }

    fn add(&mut self, paths: &[PathBuf]) {
        self.0.extend(Self::at(paths).0);
    }

    /// Whether any of them is not as it was.
    pub(super) fn differ(&self) -> bool {
        self.0.iter().any(|(path, was)| stamp(path) != *was)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {

    use std::os::unix::fs::symlink;

    use super::*;

    const GOOD: &str = "{apiVersion: v1, kind: Config, current-context: c,
        clusters: [{name: k, cluster: {server: 'https://127.0.0.1:1'}}],
        users: [{name: u, user: USER}], contexts: [{name: c, context: {cluster: k, user: u}}]}";

    /// Longer than any plugin of these tests takes that is to come to its end.
    const LIMIT: Duration = Duration::from_secs(60);

    /// What loading a kubeconfig with `text` ends in, with the folder's name cut out.
    async fn check(text: &str, want: &str) {
        check_within(LIMIT, text, want).await;
    }

    async fn check_within(limit: Duration, text: &str, want: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        fs::write(&path, text).unwrap();
        let got = match load(&path, &mut Files::default(), limit).await {
            Ok(link) => link.server,
            Err(problem) => problem.to_string(),
        };
        let got = got.replace(&format!("{}/", dir.path().display()), "");
        assert!(got.starts_with(want), "{text}\n{got}");
    }

    #[tokio::test]
    async fn a_server_is_an_address_or_a_name() {
        for (server, address) in [
            ("https://10.87.2.9:6443", "10.87.2.9"),
            ("https://10.87.2.9/prefix", "10.87.2.9"),
            ("https://[fd00:87:2::9]:6443", "fd00:87:2::9"),
            ("https://[fd00:87:2::9]", "fd00:87:2::9"),
            ("https://localhost:6443", "127.0.0.1"),
        ] {
            let client = Client::try_from(Config::new("https://localhost".parse().unwrap()));
            let addresses = Link::new(client.unwrap(), server, "kubeconfig").addresses().await;
            assert!(addresses.contains(&address.parse().unwrap()), "{server}: {addresses:?}");
        }
    }

    #[tokio::test]
    async fn each_fault_says_what_it_is() {
        check(&GOOD.replace("USER", "{token: t}"), "https://127.0.0.1:1").await;
        check("", "kubeconfig is not a usable kubeconfig: it is empty").await;
        check("a: [", "kubeconfig is not a usable kubeconfig: ").await;
        check("just text", "kubeconfig is not a usable kubeconfig: ").await;
        check("{}", "kubeconfig is not a usable kubeconfig: it has no current-context").await;
        check(&GOOD.replace("USER", "{tokenFile: nowhere}"), "cannot read nowhere: No such file").await;
        let certificate = "{client-certificate: crt.pem, client-key: key.pem}";
        check(&GOOD.replace("USER", certificate), "cannot read crt.pem: No such file").await;
    }

    /// What checking a kubeconfig with `text` ends in, with the folder's name cut out.
    async fn checked(text: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        fs::write(&path, text).unwrap();
        make_pipe(&dir.path().join("pipe"));
        let folder = format!("{}/", dir.path().display());
        super::check(&path).await.map_err(|problem| problem.to_string().replace(&folder, ""))
    }

    fn make_pipe(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_check_finds_what_loading_would_and_runs_no_plugin() {
        let good = GOOD.replace("USER", "{token: t}");
        assert_eq!(checked(&good).await, Ok(()));
        let exec = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: \"false\"}}";
        assert_eq!(checked(&GOOD.replace("USER", exec)).await, Ok(()));
        let faults = [
            (
                "current-context: c",
                "current-context: b",
                "its current-context \"b\" is not among its contexts",
            ),
            ("cluster: k", "cluster: l", "the cluster \"l\" of its context is not among its clusters"),
            ("server: 'https://127.0.0.1:1'", "insecure-skip-tls-verify: true", "its cluster has no server"),
            ("https://127.0.0.1:1", "foo bar", "failed to parse cluster url: invalid uri character"),
        ];
        for (from, to, why) in faults {
            let want = format!("kubeconfig is not a usable kubeconfig: {why}");
            assert_eq!(checked(&good.replacen(from, to, 1)).await, Err(want));
        }
        let authority = |name: &str| {
            good.replace("127.0.0.1:1'", &format!("127.0.0.1:1', certificate-authority: {name}"))
        };
        let missing = "cannot read nowhere: No such file or directory (os error 2)";
        assert_eq!(checked(&authority("nowhere")).await, Err(missing.to_owned()));
        let pipe = Err("cannot read pipe: it is a named pipe".to_owned());
        assert_eq!(checked(&authority("pipe")).await, pipe);
        assert_eq!(checked(&GOOD.replace("USER", "{tokenFile: pipe}")).await, pipe);
    }

    /// Neither the line at fault nor those around it, which hold credentials.
    #[tokio::test]
    async fn no_fault_is_told_with_a_secret() {
        let users = |user: &str| {
            format!(
                "current-context: a\ncontexts: [{{name: a, context: {{cluster: c, user: u}}}}]\nusers:\n- name: u\n{user}"
            )
        };
        for user in [
            "  user:\n    token: SECRET\n   client-key-data: SECRET\n",
            "  user:\n    token: SECRET\n    token: SECRET\n",
            "  user: SECRET\n",
            "  user:\n    token: [SECRET]\n",
            "  user:\n    token: \"SECRET\n",
            "  user:\n    exec: SECRET\n",
            "  user:\n    client-key-data: SECRET\n    as-groups: SECRET\n",
            "SECRET\n",
        ] {
            let why = checked(&users(user)).await.unwrap_err();
            assert!(!why.contains("SECRET"), "{why}");
            assert!(why.starts_with("kubeconfig is not a usable kubeconfig: "), "{why}");
        }
    }

    #[tokio::test]
    async fn a_plugin_that_fails_is_named_with_its_words() {
        let exec = |command: &str| {
            let exec = format!(
                "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: sh, args: [-c, \"{command}\"]}}}}"
            );
            GOOD.replace("USER", &exec)
        };
        let failed = "the credential plugin of kubeconfig kubeconfig failed: ";
        check(&exec("echo no session >&2; exit 3"), &format!("{failed}exit status: 3: no session")).await;
        check(&exec("echo nonsense"), &format!("{failed}its answer is no ExecCredential")).await;
        check(
            &exec("exit 0").replace("sh", "not-here"),
            &format!("{failed}exit status: 127: /usr/bin/timeout: "),
        )
        .await;
        let hangs = format!("{failed}it did not come to an end in time");
        for command in ["sleep 1000", "trap '' TERM; while :; do sleep 1000; done"] {
            check_within(Duration::from_millis(100), &exec(command), &hangs).await;
        }
        let credential = "{\\\"apiVersion\\\":\\\"client.authentication.k8s.io/v1\\\",\\\"kind\\\":\\\"ExecCredential\\\",\\\"status\\\":{\\\"token\\\":\\\"t\\\"}}";
        check(&exec(&format!("echo '{credential}'")), "https://127.0.0.1:1").await;
    }

    #[tokio::test]
    async fn a_missing_file_or_a_device_is_told_at_once() {
        let mut files = Files::default();
        let missing = load(Path::new("/nowhere/kubeconfig"), &mut files, LIMIT).await.err().unwrap();
        assert_eq!(missing.to_string(), "kubeconfig /nowhere/kubeconfig is not there");
        let device = load(Path::new("/dev/zero"), &mut files, LIMIT).await.err().unwrap();
        assert_eq!(device.to_string(), "/dev/zero is not a usable kubeconfig: it is not a regular file");
    }

    #[test]
    fn files_differ_when_written_replaced_relinked_or_gone() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| dir.path().join(name));
        for file in [&a, &b] {
            fs::write(file, "same").unwrap();
        }
        symlink(&a, &link).unwrap();
        let have = Files::at(std::slice::from_ref(&link));
        assert!(!have.differ());
        fs::remove_file(&link).unwrap();
        assert!(have.differ(), "gone");
        symlink(&b, &link).unwrap();
        assert!(have.differ(), "another file of the same content");
        let have = Files::at(std::slice::from_ref(&link));
        fs::write(&b, "other").unwrap();
        assert!(have.differ(), "written through the link");
    }
}
