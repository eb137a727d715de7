//! The control plane's keys: its authority, the API server's certificate, the key of service account tokens.
//!
//! Made anew for each lab by the openssl program (a crate for this would be the lab's largest dependency). Owns the folder
//! `pki` of the control plane's state; never used by anything but the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::command::{command, must};
use crate::layout::{BRIDGE_V4, BRIDGE_V6};

const LIMIT: Duration = Duration::from_secs(30);
/// Of 10.96.0.0/16, the address of the Service `kubernetes`.
const KUBERNETES_V4: &str = "10.96.0.1";

/// Where the keys are.
#[derive(Debug, Clone)]
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// The keys in `folder`, made if they are not there.
    pub fn ensure(folder: &Path) -> anyhow::Result<Self> {
        let pki = Self { folder: folder.to_path_buf() };
        if !pki.certificate("server").exists() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            pki.make()?;
        }
        Ok(pki)
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.certificate("ca")
    }

    /// The certificate of that name.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    /// The private key of that name.
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// Makes a client certificate for `user` in `groups`, valid for `days` (0: expired at once), to be found as `name`.
    pub fn client(&self, name: &str, user: &str, groups: &[&str], days: u32) -> anyhow::Result<()> {
        let parts = groups.iter().map(|group| format!("/O={group}")).chain([format!("/CN={user}")]);
        self.signed(name, &parts.collect::<String>(), "extendedKeyUsage=clientAuth\n", days)
    }

    fn make(&self) -> anyhow::Result<()> {
        self.new_key("ca")?;
        let (key, certificate) = (self.key("ca"), self.authority());
        self.openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            text(&key)?,
            "-subj",
            "/CN=lab",
            "-days",
            "3650",
            "-out",
            text(&certificate)?,
        ])?;
        let names = format!(
            "extendedKeyUsage=serverAuth\nsubjectAltName=IP:{BRIDGE_V4},IP:{BRIDGE_V6},IP:127.0.0.1,IP:{KUBERNETES_V4},DNS:kubernetes.default.svc\n"
        );
        self.new_key("service-account")?;
        self.signed("server", "/CN=kube-apiserver", &names, 3650)
    }

    fn new_key(&self, name: &str) -> anyhow::Result<()> {
        let key = self.key(name);
        self.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", text(&key)?])
    }

    fn signed(&self, name: &str, subject: &str, extensions: &str, days: u32) -> anyhow::Result<()> {
        self.new_key(name)?;
        let [request, extension] = ["csr", "ext"].map(|suffix| self.folder.join(format!("{name}.{suffix}")));
        let (key, certificate) = (self.key(name), self.certificate(name));
        let (authority, authority_key) = (self.authority(), self.key("ca"));
        fs::write(&extension, extensions)?;
        self.openssl(&["req", "-new", "-key", text(&key)?, "-subj", subject, "-out", text(&request)?])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            text(&request)?,
            "-CA",
            text(&authority)?,
            "-CAkey",
            text(&authority_key)?,
            "-CAcreateserial",
            "-days",
            &days.to_string(),
            "-extfile",
            text(&extension)?,
            "-out",
            text(&certificate)?,
        ])
    }

    #[expect(clippy::unused_self, reason = "reads as one of the steps")]
    fn openssl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let words: Vec<&str> = std::iter::once("openssl").chain(arguments.iter().copied()).collect();
        must(command(&words), b"", LIMIT).map(drop)
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
