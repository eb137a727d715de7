//! Kubeconfigs for the lab's control plane, with all in one file, so that they can be copied to a node.
//!
//! Owns their form. Makes no identity: certificates come from [`crate::pki`], tokens from the API.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::layout::API_URL;
use crate::pki::Pki;

/// Who somebody is to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity<'a> {
    /// A bearer token: of the token file or of a service account.
    Token(&'a str),
    /// The client certificate of that name in the [`Pki`].
    Certificate(&'a str),
}

/// The text of a kubeconfig (JSON, which is YAML too).
pub fn text(pki: &Pki, identity: Identity<'_>) -> anyhow::Result<String> {
    let user = match identity {
        Identity::Token(token) => json!({ "token": token }),
        Identity::Certificate(name) => json!({
            "client-certificate-data": data(&pki.certificate(name))?,
            "client-key-data": data(&pki.key(name))?,
        }),
    };
    let cluster = json!({"server": API_URL, "certificate-authority-data": data(&pki.authority())?});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
    });
    Ok(format!("{config:#}\n"))
}

fn data(path: &Path) -> anyhow::Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Value::String(STANDARD.encode(bytes)))
}
