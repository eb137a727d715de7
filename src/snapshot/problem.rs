//! Why there is no contact with the API server, told so that a person knows what to mend.
//!
//! Pure: sorts kube's errors into kinds that name the file, server or permission. Owns the texts.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use kube::client::AuthError;
use kube::config::{KubeconfigError, LoadDataError};

use super::kubeconfig::was_ended;
use super::yaml;
use crate::model::{Finding, ObjectKey};

/// The manifest that gives kvip its permissions, as packaged.
pub const RBAC_MANIFEST: &str = "/usr/share/kvip/kvip.yaml";

/// The script that applies it, and lets kvip read a ConfigMap of another name besides.
const MAKE_KUBECONFIG: &str = "/usr/share/kvip/make-kubeconfig";

/// What keeps kvip from the API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no kubeconfig.
    #[error("kubeconfig {} is not there", path.display())]
    KubeconfigMissing {
        /// The configured path.
        path: PathBuf,
    },
    /// The kubeconfig, or a file that it names, cannot be read.
    #[error("cannot read {}: {reason}", file.display())]
    Unreadable {
        /// The kubeconfig, or the certificate, key or token file that it names.
        file: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The file is there and is no kubeconfig that can be used.
    #[error("{} is not a usable kubeconfig: {reason}", path.display())]
    KubeconfigInvalid {
        /// The kubeconfig.
        path: PathBuf,
        /// What is wrong with it, with line and column where it is not YAML.
        reason: String,
    },
    /// The credential plugin (exec, OIDC or another provider) gave no credentials.
    #[error("the credential plugin of kubeconfig {} failed: {reason}", path.display())]
    PluginFailed {
        /// The kubeconfig.
        path: PathBuf,
        /// What the plugin said.
        reason: String,
    },
    /// TLS failed: a certificate does not verify, or the two sides find no common ground.
    #[error("TLS with API server {server} failed: {reason}")]
    Tls {
        /// The server's address, as in the kubeconfig.
        server: String,
        /// The kubeconfig, which holds the certificate authority.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// 401: the credentials are expired, revoked or unknown.
    #[error("API server {server} refuses the credentials of {} as expired, revoked or unknown (401)", path.display())]
    Unauthorized {
        /// The server's address.
        server: String,
        /// The kubeconfig.
        path: PathBuf,
    },
    /// 403: the credentials are good and do not allow this.
    #[error("API server {server} does not let kvip {verb} {resource} (403): {reason}")]
    Forbidden {
        /// The server's address.
        server: String,
        /// What was attempted: get, list or watch.
        verb: &'static str,
        /// On what, as in RBAC.
        resource: String,
        /// The one object that is asked for; `None` when it is all of a kind. Only ConfigMaps are asked for one by one.
        one: Option<Box<ObjectKey>>,
        /// The server's own words, which name the user.
        reason: String,
    },
    /// No answer: refused, timed out, no such name, no route.
    #[error("cannot reach API server {server}: {reason}")]
    Unreachable {
        /// The server's address.
        server: String,
        /// The kubeconfig.
        path: PathBuf,
        /// Refused, timed out, or what the resolver said.
        reason: String,
    },
    /// The folder of manifests cannot be read.
    #[error("cannot read the folder of manifests {}: {reason}; the last state read stays", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The server answers, with an error.
    #[error("API server {server} fails to {verb} {resource}: {reason}")]
    ServerError {
        /// The server's address.
        server: String,
        /// What was attempted.
        verb: &'static str,
        /// On what, as in RBAC.
        resource: String,
        /// The status' code and message, or what of the answer cannot be understood.
        reason: String,
    },
}

impl Problem {
    /// This, told of the cluster.
    pub fn finding(&self) -> Finding {
        Finding { mend: self.mend(), ..Finding::new("cluster", self.to_string()) }
    }

    /// Whether waiting may end it: what a server or the way to it lacks now may come. Of the others somebody must mend
    /// something first.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::ServerError { .. })
    }

    /// The next thing to type or to look at.
    pub fn mend(&self) -> Option<String> {
        Some(match self {
            Self::KubeconfigMissing { path } => {
                format!("put one at {}, or set cluster.kubeconfig in the settings", path.display())
            }
            Self::Unreadable { file, .. } => format!("ls -l {}", file.display()),
            Self::Folder { path, .. } => format!("ls -ld {}", path.display()),
            Self::KubeconfigInvalid { path, .. } => {
                format!("kubectl --kubeconfig {} config view", path.display())
            }
            Self::PluginFailed { path, .. } | Self::Unauthorized { path, .. } => {
                format!(
                    "kubectl --kubeconfig {} auth whoami; kvip reads renewed files by itself",
                    path.display()
                )
            }
            Self::Tls { path, .. } => {
                let path = path.display();
                format!("check certificate-authority-data and server in {path}, and this host's clock")
            }
            Self::Forbidden { one: Some(map), .. } => {
                format!("with an admin's kubeconfig: {MAKE_KUBECONFIG} --rights-only --config-map {map}")
            }
            Self::Forbidden { one: None, .. } => {
                format!("with an admin's kubeconfig: kubectl apply -f {RBAC_MANIFEST}")
            }
            Self::Unreachable { path, .. } => {
                format!("kubectl --kubeconfig {} get --raw /readyz", path.display())
            }
            Self::ServerError { .. } => return None,
        })
    }
}

/// A request as people know it, for the texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// The server's address.
    pub(super) server: &'a str,
    /// The kubeconfig.
    pub(super) path: &'a Path,
    /// get, list or watch.
    pub(super) verb: &'static str,
    /// The resource as in RBAC.
    pub(super) resource: &'a str,
    /// The one object of it, where it is one.
    pub(super) one: Option<&'a ObjectKey>,
}

impl Request<'_> {
    /// The problem behind `error`, which this request met.
    pub(super) fn problem(&self, error: &kube::Error) -> Problem {
        if let kube::Error::Api(status) = error {
            return self.status(status.code, &status.message, &status.reason);
        }
        if let Some(problem) = find::<AuthError>(error).map(|e| credential(self.path, e)) {
            return problem;
        }
        let server = self.server.to_owned();
        if let Some(e) = find::<rustls::Error>(error) {
            return Problem::Tls { server, path: self.path.into(), reason: e.to_string() };
        }
        match error {
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
                self.unreachable(reason_of(error))
            }
            other => self.server_error(other.to_string()),
        }
    }

    /// The problem behind a status that is not success.
    pub(super) fn status(&self, code: u16, message: &str, reason: &str) -> Problem {
        let said = if message.is_empty() { reason } else { message };
        match code {
            401 => Problem::Unauthorized { server: self.server.into(), path: self.path.into() },
            403 => Problem::Forbidden {
                server: self.server.into(),
                verb: self.verb,
                resource: self.resource.into(),
                one: self.one.cloned().map(Box::new),
                reason: said.into(),
            },
            _ => self.server_error(format!("{said} ({code})")),
        }
    }

    /// No answer, for `reason`.
    pub(super) fn unreachable(&self, reason: String) -> Problem {
        Problem::Unreachable { server: self.server.into(), path: self.path.into(), reason }
    }

    fn server_error(&self, reason: String) -> Problem {
        let resource = self.resource.to_owned();
        Problem::ServerError { server: self.server.into(), verb: self.verb, resource, reason }
    }
}

/// Why the kubeconfig at `path` gives no client.
pub(super) fn kubeconfig(path: &Path, error: &KubeconfigError) -> Problem {
    use KubeconfigError as E;
    let unreadable =
        |file: &Path, e: &io::Error| Problem::Unreadable { file: file.into(), reason: e.to_string() };
    match error {
        E::ReadConfig(e, _) if e.kind() == io::ErrorKind::NotFound => {
            Problem::KubeconfigMissing { path: path.into() }
        }
        E::ReadConfig(e, file)
        | E::LoadCertificateAuthority(LoadDataError::ReadFile(e, file))
        | E::LoadClientCertificate(LoadDataError::ReadFile(e, file))
        | E::LoadClientKey(LoadDataError::ReadFile(e, file)) => unreadable(file, e),
        E::Parse(e) => invalid(path, yaml(e)),
        E::CurrentContextNotSet => invalid(path, "it has no current-context"),
        E::LoadContext(name) => {
            invalid(path, format!("its current-context \"{name}\" is not among its contexts"))
        }
        E::LoadClusterOfContext(name) => {
            invalid(path, format!("the cluster \"{name}\" of its context is not among its clusters"))
        }
        E::MissingClusterUrl => invalid(path, "its cluster has no server"),
        other => invalid(path, other),
    }
}

/// Why the client of the kubeconfig at `path` cannot be built.
pub(super) fn client(path: &Path, error: &kube::Error) -> Problem {
    match error {
        kube::Error::InferKubeconfig(e) => kubeconfig(path, e),
        kube::Error::Auth(e) => credential(path, e),
        other => invalid(path, other),
    }
}

fn credential(path: &Path, error: &AuthError) -> Problem {
    let failed = |reason: String| Problem::PluginFailed { path: path.into(), reason };
    match error {
        AuthError::ReadTokenFile(e, file) => {
            Problem::Unreadable { file: file.clone(), reason: e.to_string() }
        }
        AuthError::InvalidBasicAuth(_) | AuthError::InvalidBearerToken(_) => invalid(path, error),
        AuthError::AuthExecRun { out, .. } if was_ended(out.status) => {
            failed("it did not come to an end in time".to_owned())
        }
        // Its command line is left out: kube's text of it holds the environment, which may hold secrets.
        AuthError::AuthExecRun { out, .. } => {
            failed(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim()))
        }
        AuthError::AuthExecParse(e) => failed(format!("its answer is no ExecCredential: {}", yaml(e))),
        other => failed(other.to_string()),
    }
}

/// What is wrong with YAML, and where.
fn yaml(error: &serde_saphyr::Error) -> String {
    let reason = yaml::reason(error);
    match error.location() {
        Some(at) => format!("{reason}, line {}, column {}", at.line(), at.column()),
        None => reason,
    }
}

fn invalid(path: &Path, reason: impl fmt::Display) -> Problem {
    Problem::KubeconfigInvalid { path: path.into(), reason: reason.to_string() }
}

/// The first `E` among `error` and its causes. An io error hides what it wraps from `source`: it is looked into.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    causes(error).find_map(|cause| cause.downcast_ref::<E>())
}

/// The last cause of `error`: what the system said. A time-out's own words are "deadline has elapsed", of no help.
fn reason_of(error: &(dyn StdError + 'static)) -> String {
    let timed_out = |cause: &(dyn StdError + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
    };
    if causes(error).any(timed_out) {
        return "the connection timed out".into();
    }
    causes(error).last().unwrap_or(error).to_string()
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&cause| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map(|e| e as &(dyn StdError + 'static)).or_else(|| cause.source())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request<'static> {
        let path = Path::new("/etc/kvip/kubeconfig");
        Request { server: "https://10.87.2.1:6443", path, verb: "list", resource: "nodes", one: None }
    }

    fn check(problem: &Problem, want: &str, mend: &str) {
        assert_eq!(problem.to_string(), want);
        assert!(problem.mend().unwrap_or_default().contains(mend), "{:?}", problem.mend());
    }

    #[test]
    fn statuses() {
        check(
            &request().status(401, "Unauthorized", "Unauthorized"),
            "API server https://10.87.2.1:6443 refuses the credentials of /etc/kvip/kubeconfig as expired, revoked or unknown (401)",
            "auth whoami",
        );
        check(
            &request().status(403, "nodes is forbidden: User \"kvip\" cannot list", "Forbidden"),
            "API server https://10.87.2.1:6443 does not let kvip list nodes (403): nodes is forbidden: User \"kvip\" cannot list",
            RBAC_MANIFEST,
        );
        check(
            &request().status(503, "", "ServiceUnavailable"),
            "API server https://10.87.2.1:6443 fails to list nodes: ServiceUnavailable (503)",
            "",
        );
    }

    #[test]
    fn what_hides_in_io_errors_is_found() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = kube::Error::Service(Box::new(io::Error::new(io::ErrorKind::InvalidData, tls)));
        check(
            &request().problem(&error),
            "TLS with API server https://10.87.2.1:6443 failed: invalid peer certificate: UnknownIssuer",
            "this host's clock",
        );
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        check(
            &request().problem(&kube::Error::Service(Box::new(io::Error::other(refused)))),
            "cannot reach API server https://10.87.2.1:6443: connection refused",
            "/readyz",
        );
    }

    #[test]
    fn kubeconfigs() {
        let path = Path::new("/etc/kvip/kubeconfig");
        let missing = KubeconfigError::ReadConfig(io::ErrorKind::NotFound.into(), path.into());
        check(
            &kubeconfig(path, &missing),
            "kubeconfig /etc/kvip/kubeconfig is not there",
            "set cluster.kubeconfig",
        );
        let denied = KubeconfigError::ReadConfig(io::ErrorKind::PermissionDenied.into(), path.into());
        check(&kubeconfig(path, &denied), "cannot read /etc/kvip/kubeconfig: permission denied", "ls -l");
        let twice = serde_saphyr::from_str::<serde_json::Value>("a: 1\na: 2\n").unwrap_err();
        check(
            &kubeconfig(path, &KubeconfigError::Parse(Box::new(twice))),
            "/etc/kvip/kubeconfig is not a usable kubeconfig: duplicate key \"a\", line 2, column 1",
            "config view",
        );
        let key = LoadDataError::ReadFile(io::ErrorKind::NotFound.into(), "/etc/kvip/tls.key".into());
        check(
            &kubeconfig(path, &KubeconfigError::LoadClientKey(key)),
            "cannot read /etc/kvip/tls.key: entity not found",
            "ls -l /etc/kvip/tls.key",
        );
    }
}
