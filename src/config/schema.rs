//! Which options exist. The list is derived from the configuration itself, with an example for every
//! optional value, as a JSON tree.
//! A map is a table with the one key `*`; a list of tables holds one example.

use std::fmt;

use serde_json::{Map, Value, json};

use super::Config;
use super::sections::RepoConfig;
use super::values::{JwksUrl, MASK, Secret, StoreUrl};

/// One step from a table into what it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The path of an option, written `channel.namespaces[0].name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct OptionPath(pub(super) Vec<Step>);

impl OptionPath {
    pub(super) fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    pub(super) fn is_under(&self, above: &Self) -> bool {
        self.0.starts_with(&above.0)
    }

    /// `CAMPANILE_STORE__POOL_SIZE` for `store.pool_size`.
    pub(super) fn variable(&self) -> String {
        format!("CAMPANILE_{}", self.to_string().to_uppercase().replace('.', "__"))
    }
}

impl fmt::Display for OptionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => write!(f, "{}{}", if at > 0 { "." } else { "" }, bare_or_quoted(key))?,
            }
        }
        Ok(())
    }
}

/// A key as TOML requires it.
pub(super) fn bare_or_quoted(key: &str) -> String {
    let bare =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'*'));
    if bare { key.to_owned() } else { toml::Value::from(key).to_string() }
}

/// A node of the tree.
pub(super) enum Shape<'a> {
    Table(&'a Map<String, Value>),
    /// Any key, each with one of these as its value.
    MapOf(&'a Value),
    /// Any number of these.
    ListOf(&'a Value),
    Leaf,
}

pub(super) fn shape(schema: &Value) -> Shape<'_> {
    match schema {
        Value::Object(keys) => keys.get("*").map_or(Shape::Table(keys), Shape::MapOf),
        Value::Array(items) => match items.as_slice() {
            [one @ Value::Object(_)] => Shape::ListOf(one),
            _ => Shape::Leaf,
        },
        _ => Shape::Leaf,
    }
}

/// Whether the values of this option must not be shown.
pub(super) fn is_secret(leaf: &Value) -> bool {
    match leaf {
        Value::String(text) => text.contains(MASK),
        Value::Array(items) => items.iter().any(is_secret),
        _ => false,
    }
}

/// Every table, map, list and option below the sections, parents first.
pub(super) fn every_path(schema: &Value) -> Vec<OptionPath> {
    fn below(schema: &Value, path: &OptionPath, found: &mut Vec<OptionPath>) {
        let Shape::Table(keys) = shape(schema) else { return };
        for (key, inner) in keys {
            let path = path.key(key);
            if path.0.len() > 1 {
                found.push(path.clone());
            }
            below(inner, &path, found);
        }
    }
    let mut found = Vec::new();
    below(schema, &OptionPath::default(), &mut found);
    found
}

/// The node at `path`, if there is one.
pub(super) fn at<'a>(schema: &'a Value, path: &OptionPath) -> Option<&'a Value> {
    path.0.iter().try_fold(schema, |schema, step| match (shape(schema), step) {
        (Shape::Table(keys), Step::Key(key)) => keys.get(key),
        (Shape::MapOf(inner), Step::Key(_)) | (Shape::ListOf(inner), Step::Index(_)) => Some(inner),
        _ => None,
    })
}

/// The defaults, with an example wherever there is none.
pub(super) fn schema() -> Value {
    let secret = || Some(Secret::new("example"));
    let mut config = Config::default();
    config.server.public_url = "https://live.example.com".parse().ok();
    config.server.name = Some("node-1".to_owned());
    config.server.workers = Some(4);
    config.store.url = Some(StoreUrl::Postgres(Secret::new("postgres://example")));
    config.store.direct_url = secret();
    config.store.ca_file = Some("/etc/campanile/postgres-ca.pem".into());
    config.bus.url = secret();
    config.bus.ca_file = Some("/etc/campanile/redis-ca.pem".into());
    config.client.token.hmac_secret_key = secret();
    let pem = || Some("-----BEGIN PUBLIC KEY-----".to_owned());
    config.client.token.rsa_public_key = pem();
    config.client.token.ecdsa_public_key = pem();
    config.client.token.ed25519_public_key = pem();
    config.client.token.jwks_file = Some("/etc/campanile/jwks.json".into());
    config.client.token.jwks_public_endpoint =
        JwksUrl::try_from("https://login.example.com/.well-known/jwks.json".to_owned()).ok();
    config.client.token.audience = Some("campanile".to_owned());
    config.client.token.issuer = Some("https://login.example.com".to_owned());
    config.retention.sessions = Some(crate::domain::units::Span::secs(7 * 24 * 60 * 60));
    config.http_api.key = secret();
    config.github.webhook_secrets.extend(secret());
    config.bus.secrets.extend(secret());

    let mut tree = plain(&config);
    tree["server"]["trusted_proxies"] = json!(["10.0.0.0/8"]);
    tree["github"]["allowed_addresses"] = json!(["192.30.252.0/22"]);
    tree["client"]["allowed_origins"] = json!(["https://*.example.com"]);
    tree["github"]["repos"] = json!({ "*": plain(&RepoConfig::default()) });
    tree["github"]["repos"]["*"]["name"] = json!("acme/site");
    tree["channel"]["namespaces"] = json!([tree["channel"]["without_namespace"]]);
    tree["channel"]["namespaces"][0]["name"] = json!("chat");
    tree
}

/// A part of the configuration as JSON, secrets masked and unset options `null`.
pub(super) fn plain<T: serde::Serialize>(part: &T) -> Value {
    serde_json::to_value(part).expect("a configuration has only text keys and plain values")
}
