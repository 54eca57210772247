//! The configuration, read once at start: defaults, then a file, then the environment,
//! then flags. Afterwards these are plain values; nothing here is static and nothing reads the
//! environment again. A configuration that exists was checked as a whole; whatever is wrong with
//! it is reported at once, each with its place and a remedy. Secrets never print.

mod changes;
mod client;
mod describe;
mod environment;
mod error;
mod keys;
mod load;
mod origin;
mod retention;
mod schema;
mod secrets;
mod sections;
mod settings;
mod validate;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::net::tls::{self, PostgresAddress, TlsError};
pub use client::{
    ClientConfig, EmulationConfig, PersonalChannelConfig, SseConfig, StreamConfig, TokenConfig,
    WebsocketConfig,
};
pub use error::{ConfigError, Problem, Source};
pub use load::{DEFAULT_FILE, Loader};
pub use origin::{Origin, OriginPattern};
pub use retention::RetentionConfig;
pub use secrets::{FoundSecrets, Secrets};
pub use sections::{
    BusConfig, ChannelConfig, GithubConfig, HttpApiConfig, LimitsConfig, Namespace, RepoConfig, ServerConfig,
    StoreConfig, TelemetryConfig,
};
pub use values::{ForwardedHeader, JwksUrl, LogFilter, LogFormat, NamespaceName, RepoName, Secret, StoreUrl};

/// The SQLite file in the data folder, if `store.url` names no other.
const SQLITE_FILE: &str = "campanile.db";

/// The whole configuration, a field per section. Made by a [`Loader`]; the default is valid.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The process and its address.
    pub server: ServerConfig,
    /// Where the log lives.
    pub store: StoreConfig,
    /// The path between nodes.
    pub bus: BusConfig,
    /// What connections may do.
    pub client: ClientConfig,
    /// Namespaces and what channels may carry.
    pub channel: ChannelConfig,
    /// The server API.
    pub http_api: HttpApiConfig,
    /// The webhook source.
    pub github: GithubConfig,
    pub limits: LimitsConfig,
    pub retention: RetentionConfig,
    /// `/connection/websocket`.
    pub websocket: WebsocketConfig,
    /// `/connection/http_stream`.
    pub http_stream: StreamConfig,
    /// `/connection/sse` and `/api/events/stream`.
    pub sse: SseConfig,
    /// `/emulation`.
    pub emulation: EmulationConfig,
    /// `/connection/uni_websocket`.
    pub uni_websocket: WebsocketConfig,
    /// `/connection/uni_http_stream`.
    pub uni_http_stream: StreamConfig,
    /// `/connection/uni_sse`.
    pub uni_sse: StreamConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
    /// Where each option was set; options at their default are missing.
    #[serde(skip)]
    sources: BTreeMap<schema::OptionPath, Source>,
}

/// The store to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Embedded: one node, one file.
    Sqlite {
        /// The database file.
        path: PathBuf,
    },
    /// Cluster: any number of nodes.
    Postgres {
        /// For all queries, perhaps through a pooler.
        url: Secret,
        /// Without the pooler, for LISTEN and advisory locks, if that is another address.
        direct_url: Option<Secret>,
    },
}

/// The bus to open. There is none over Redis without Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusBackend {
    /// A single node needs no other bus.
    InProcess,
    /// NOTIFY and reading the log.
    Postgres,
    /// Redis, with NOTIFY when Redis fails.
    Redis {
        url: Secret,
        /// The certificate authorities that are trusted for it; the public ones if unset.
        ca_file: Option<PathBuf>,
        /// Begins every name; the store's id follows it.
        prefix: String,
    },
}

impl Config {
    /// The store to open.
    pub fn backend(&self) -> Backend {
        match &self.store.url {
            None => Backend::Sqlite { path: self.server.data_dir.join(SQLITE_FILE) },
            Some(StoreUrl::Sqlite(path)) => Backend::Sqlite { path: path.clone() },
            Some(StoreUrl::Postgres(url)) => Backend::Postgres {
                url: self.with_authorities(url),
                direct_url: self.store.direct_url.as_ref().map(|url| self.with_authorities(url)),
            },
        }
    }

    /// The address of a Postgres with the certificate authorities that are trusted for it.
    fn with_authorities(&self, url: &Secret) -> Secret {
        match &self.store.ca_file {
            Some(file) => Secret::new(tls::with_authorities(url.expose(), file)),
            None => url.clone(),
        }
    }

    /// Whether the files of the trusted certificate authorities can be read.
    pub fn check_authorities(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut check = |option: &'static str, error: Option<TlsError>| {
            let remedy = "name a file of certificates in PEM that this user may read";
            let problem =
                |error: TlsError| Problem::new(self.source(option), option, error.to_string(), remedy);
            problems.extend(error.map(problem));
        };
        for (option, address) in self.postgres_addresses() {
            check(option, address.and_then(|address| address.trust.client()).err());
        }
        check("bus.ca_file", self.bus.ca_file.as_deref().and_then(|file| tls::authorities_in(file).err()));
        ConfigError::check(problems)
    }

    /// How each Postgres is reached, by the option that names it.
    fn postgres_addresses(&self) -> Vec<(&'static str, Result<PostgresAddress, TlsError>)> {
        let Backend::Postgres { url, direct_url } = self.backend() else { return Vec::new() };
        let named = [("store.url", Some(url)), ("store.direct_url", direct_url)];
        named.into_iter().filter_map(|(option, url)| Some((option, url?.expose().parse()))).collect()
    }

    /// The bus to open.
    pub fn bus_backend(&self) -> BusBackend {
        match (&self.store.url, &self.bus.url) {
            (Some(StoreUrl::Postgres(_)), Some(url)) => {
                let (ca_file, prefix) = (self.bus.ca_file.clone(), self.bus.prefix.clone());
                BusBackend::Redis { url: url.clone(), ca_file, prefix }
            }
            (Some(StoreUrl::Postgres(_)), None) => BusBackend::Postgres,
            _ => BusBackend::InProcess,
        }
    }

    /// Whether several nodes may share the store, so that none of them can invent a secret.
    pub fn is_cluster(&self) -> bool {
        matches!(self.store.url, Some(StoreUrl::Postgres(_)))
    }

    /// Settings that are allowed but probably unintended: a sentence each, to be logged at start.
    pub fn warnings(&self) -> Vec<String> {
        validate::warnings(self)
    }
}
