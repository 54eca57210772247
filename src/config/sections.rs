//! The sections of the configuration, an option each, with the defaults beside them.
//! `campanile.example.toml` says the same to operators, and a test compares the two.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::origin::Origin;
use super::values::{
    ForwardedHeader, LogFilter, LogFormat, NamespaceName, RepoName, Secret, StoreUrl, networks,
    optional_socket_address, socket_address,
};
use crate::domain::options::ChannelOptions;
use crate::domain::units::{Size, Span};
use crate::telemetry::LogAddresses;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// `[server]`: the process and its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Address and port to listen on; port 0 takes a free one.
    #[serde(deserialize_with = "socket_address")]
    pub listen: SocketAddr,
    /// A second address for health and metrics alone; `/metrics` is there alone then.
    #[serde(deserialize_with = "optional_socket_address")]
    pub internal_listen: Option<SocketAddr>,
    /// The name of this node; its host and port if unset.
    pub name: Option<String>,
    /// The origin under which browsers reach this gateway; always an allowed origin.
    pub public_url: Option<Origin>,
    /// Proxies whose `forwarded_header` is trusted.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say whom a request is from. The other one is never read: a proxy passes on
    /// what strangers put into it.
    pub forwarded_header: ForwardedHeader,
    /// How long a stop may take; connections are closed spread over this time.
    pub drain_timeout: Span,
    /// HTTP worker threads; as many as there are cores if unset.
    pub workers: Option<u32>,
    /// Let deliveries to many sockets share system calls, where the system allows io_uring.
    pub io_uring: bool,
    /// How long a browser stays signed in.
    pub session_ttl: Span,
    /// Folder of the SQLite file and of generated secrets; relative to where the process starts.
    pub data_dir: PathBuf,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            internal_listen: None,
            name: None,
            public_url: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            drain_timeout: Span::secs(30),
            workers: None,
            io_uring: true,
            session_ttl: Span::secs(7 * 24 * 60 * 60),
            data_dir: PathBuf::from("./data"),
        }
    }
}

/// `[store]`: where the log lives. Read [`Config::backend`](super::Config::backend) to open it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreConfig {
    /// `postgres://…` or `sqlite:PATH`; `campanile.db` in the data folder if unset.
    pub url: Option<StoreUrl>,
    /// Postgres without a pooler in between, for LISTEN and advisory locks; `url` if unset.
    pub direct_url: Option<Secret>,
    /// Certificates of the authorities that are trusted for Postgres, in PEM, if its address names none.
    pub ca_file: Option<PathBuf>,
    /// Connections to Postgres.
    pub pool_size: u32,
    /// Connections that read SQLite, beside the one that writes.
    pub readers: u32,
    /// How long one call may take; after that its connection is closed.
    pub deadline: Span,
    /// Keep statements prepared in the sessions of Postgres. Unset: yes, unless `direct_url` says that a
    /// pooler is in between.
    pub prepared_statements: Option<bool>,
    /// Accept a Postgres with `fsync` or `synchronous_commit` off, which may lose what it has confirmed.
    pub allow_data_loss: bool,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: None,
            direct_url: None,
            ca_file: None,
            pool_size: 16,
            readers: 4,
            deadline: Span::secs(5),
            prepared_statements: None,
            allow_data_loss: false,
        }
    }
}

/// `[bus]`: the path between nodes. Read [`Config::bus_backend`](super::Config::bus_backend) to open it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BusConfig {
    /// `redis://…` or `rediss://…`; without it the store carries the announcements.
    pub url: Option<Secret>,
    /// Certificates of the authorities that are trusted for a `rediss://`, in PEM; the public ones if
    /// unset.
    pub ca_file: Option<PathBuf>,
    /// Begins every name in Redis; the store's id follows it.
    pub prefix: String,
    /// What nodes sign messages to each other with: the first signs, all verify. Derived from
    /// `client.token.hmac_secret_key` if empty.
    pub secrets: Vec<Secret>,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self { url: None, ca_file: None, prefix: "campanile".to_owned(), secrets: Vec::new() }
    }
}

/// `[channel]`: namespaces and what channels may carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelConfig {
    /// The largest event.
    pub max_publication_size: Size,
    /// How often an active channel compares its position with the log.
    pub position_check_interval: Span,
    /// How long a channel stays in memory after its last subscriber left.
    pub linger: Span,
    /// How many channels may do so at once; one more ends the oldest.
    pub linger_limit: u32,
    /// Options of channels without a namespace.
    pub without_namespace: ChannelOptions,
    /// The configured namespaces.
    pub namespaces: Vec<Namespace>,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            max_publication_size: Size(256 * KIB),
            position_check_interval: Span::secs(10),
            linger: Span::secs(30),
            linger_limit: 10_000,
            without_namespace: ChannelOptions::default(),
            namespaces: Vec::new(),
        }
    }
}

/// One of `[[channel.namespaces]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// The text before the first `:` of its channels.
    pub name: NamespaceName,
    /// Its options, written beside the name.
    #[serde(flatten)]
    pub options: ChannelOptions,
}

/// `[http_api]`: the server API.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpApiConfig {
    /// The key that callers present; 16 bytes or more are advised.
    pub key: Option<Secret>,
}

/// `[github]`: the webhook source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GithubConfig {
    /// Secrets that may sign a delivery; several during a rotation. 16 bytes or more are advised.
    pub webhook_secrets: Vec<Secret>,
    /// What to do with which repository. If any is listed, the others are ignored.
    pub repos: BTreeMap<RepoName, RepoConfig>,
    /// Networks that deliveries may come from; everywhere if empty.
    #[serde(deserialize_with = "networks")]
    pub allowed_addresses: Vec<IpNet>,
}

/// What to do with one repository.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RepoConfig {
    /// Publish its events under this name.
    pub name: Option<RepoName>,
    /// Publish nothing about it.
    pub ignore: bool,
}

/// `[limits]`: bounds per node, address or user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// The largest webhook body; above it 413.
    pub webhook_body: Size,
    /// Webhook bodies held in memory at once; above it 503.
    pub webhook_in_flight: Size,
    /// How long the body of a webhook, or of a build's event, may take to arrive; after it 408.
    pub webhook_body_timeout: Span,
    /// How much of a body that is waited for has to come in a second; below it 408.
    pub body_min_rate: Size,
    /// Over how long that is measured.
    pub body_grace: Span,
    /// Webhooks with a wrong signature a minute and address; above it 429.
    pub invalid_signatures_per_minute: u32,
    /// Sign-ins with a wrong link a minute and address; above it 429.
    pub invalid_sign_ins_per_minute: u32,
    /// Browsers signed in at once; another one ends the oldest session.
    pub sessions: u32,
    /// Polls a minute and user; above it 429.
    pub polls_per_minute: u32,
    /// Events of builds a minute and user; above it 429.
    pub build_events_per_minute: u32,
    /// Events of builds held in memory while they arrive; above it 503.
    pub build_events_in_flight: Size,
    /// First commands and posts of clients over HTTP, sign-ins and calls of the server API, in memory while they arrive.
    pub client_bodies_in_flight: Size,
    /// Channels that nobody on this node follows yet, a minute and user; above it error 100.
    pub new_channels_per_minute: u32,
    /// Joins of a user that others are told of in a minute; above it they are not.
    pub joins_per_minute: u32,
    /// Posts to /emulation for streams of other nodes a minute and address; above it 429.
    pub relayed_posts_per_minute: u32,
    /// What returning clients get, held in memory at once, in bytes of data; more wait.
    pub replies_in_flight: Size,
    /// How many clients wait for that; above it error 100.
    pub replies_waiting: u32,
    /// Channels of one event stream, or of one poll; above it 400.
    pub stream_channels: u32,
    /// Streams open at once on this node, over any transport but WebSocket; above it 503.
    pub sse_connections: u32,
    /// TCP connections of this node; above it idle ones make way, or the new one gets 503. 0: what the limit of
    /// open files allows.
    pub connections: u32,
    /// TCP connections of one address; 0 turns the limit off.
    pub connections_per_address: u32,
    /// Connections that are read after a refusal, so that their peers see it; one more ends the oldest.
    pub lingering_connections: u32,
    /// Bytes that such a connection is read for.
    pub lingering_size: Size,
    /// How long such a connection is read.
    pub lingering_timeout: Span,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            webhook_body: Size(25 * MIB),
            webhook_in_flight: Size(256 * MIB),
            webhook_body_timeout: Span::secs(10),
            body_min_rate: Size(4 * KIB),
            body_grace: Span::secs(2),
            invalid_signatures_per_minute: 60,
            invalid_sign_ins_per_minute: 10,
            sessions: 1000,
            polls_per_minute: 60,
            build_events_per_minute: 600,
            build_events_in_flight: Size(32 * MIB),
            client_bodies_in_flight: Size(32 * MIB),
            new_channels_per_minute: 6000,
            joins_per_minute: 120,
            relayed_posts_per_minute: 6000,
            replies_in_flight: Size(64 * MIB),
            replies_waiting: 1000,
            stream_channels: 32,
            sse_connections: 10_000,
            connections: 0,
            connections_per_address: 0,
            lingering_connections: 1000,
            lingering_size: Size(32 * MIB),
            lingering_timeout: Span::secs(5),
        }
    }
}

/// `[telemetry]`: logs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TelemetryConfig {
    /// Which log lines are written.
    pub log: LogFilter,
    /// How they look.
    pub log_format: LogFormat,
    /// How much of a client's address they show.
    pub log_addresses: LogAddresses,
}
