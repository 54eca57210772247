//! Checks that no single type can make: bounds, and options that contradict each other.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::error::Problem;
use super::origin::OriginPattern;
use super::values::{Secret, StoreUrl, is_postgres};
use super::{Config, Source};
use crate::domain::options::ChannelOptions;
use crate::domain::units::{Size, Span};
use crate::net::tls::{self, Trust};

/// The longest duration: longer is a mistake, and this one can be added to any time.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// The most HTTP workers; more are a mistake.
const MAX_WORKERS: u32 = 1024;
/// The most events that are read at once, because they are in memory together.
const MAX_EVENTS: u32 = 10_000;
/// The most by which clocks differ that are set at all; more would make old tokens good.
const LONGEST_LEEWAY: Duration = Duration::from_secs(300);
/// The longest message of a client; more is a mistake.
const LARGEST_MESSAGE: Size = Size(64 << 20);
/// The fastest that bodies must come: hardly any sender is faster.
const FASTEST: Size = Size(1 << 20);
/// Advised lengths in bytes. HS256 has no more strength than its key (RFC 7518 §3.2 asks for 32).
const JWT_SECRET: usize = 32;
const OTHER_SECRET: usize = 16;

/// Problems of single options.
pub(super) fn alone(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |option: &str, wrong: &str, remedy: &str| {
        problems.push(Problem::new(config.source(option), option, wrong, remedy));
    };

    let (client, limits) = (&config.client, &config.limits);
    let counts = [
        ("server.workers", config.server.workers.unwrap_or(1)),
        ("store.pool_size", config.store.pool_size),
        ("store.readers", config.store.readers),
        ("client.channel_limit", client.channel_limit),
        ("client.history_max_publication_limit", client.history_max_publication_limit),
        ("client.recovery_max_publication_limit", client.recovery_max_publication_limit),
        ("limits.invalid_signatures_per_minute", limits.invalid_signatures_per_minute),
        ("limits.invalid_sign_ins_per_minute", limits.invalid_sign_ins_per_minute),
        ("limits.sessions", limits.sessions),
        ("limits.polls_per_minute", limits.polls_per_minute),
        ("limits.build_events_per_minute", limits.build_events_per_minute),
        ("limits.new_channels_per_minute", limits.new_channels_per_minute),
        ("limits.joins_per_minute", limits.joins_per_minute),
        ("channel.linger_limit", config.channel.linger_limit),
        ("limits.relayed_posts_per_minute", limits.relayed_posts_per_minute),
        ("limits.replies_waiting", limits.replies_waiting),
        ("limits.stream_channels", limits.stream_channels),
        ("limits.sse_connections", limits.sse_connections),
        ("limits.lingering_connections", limits.lingering_connections),
    ];
    let sizes = [
        ("client.queue_max_size", client.queue_max_size),
        ("websocket.message_size_limit", config.websocket.message_size_limit),
        ("uni_websocket.message_size_limit", config.uni_websocket.message_size_limit),
        ("http_stream.max_request_body_size", config.http_stream.max_request_body_size),
        ("sse.max_request_body_size", config.sse.max_request_body_size),
        ("uni_http_stream.max_request_body_size", config.uni_http_stream.max_request_body_size),
        ("uni_sse.max_request_body_size", config.uni_sse.max_request_body_size),
        ("emulation.max_request_body_size", config.emulation.max_request_body_size),
        ("emulation.queue_max_size", config.emulation.queue_max_size),
        ("limits.client_bodies_in_flight", limits.client_bodies_in_flight),
        ("channel.max_publication_size", config.channel.max_publication_size),
        ("limits.webhook_body", limits.webhook_body),
        ("limits.webhook_in_flight", limits.webhook_in_flight),
        ("limits.build_events_in_flight", limits.build_events_in_flight),
        ("limits.lingering_size", limits.lingering_size),
        ("limits.replies_in_flight", limits.replies_in_flight),
        ("client.recovery_max_size", client.recovery_max_size),
        ("limits.body_min_rate", limits.body_min_rate),
    ];
    let positive_spans = [
        ("server.session_ttl", config.server.session_ttl),
        ("store.deadline", config.store.deadline),
        ("client.write_timeout", client.write_timeout),
        ("client.ping_interval", client.ping_interval),
        ("client.pong_timeout", client.pong_timeout),
        ("client.stale_close_delay", client.stale_close_delay),
        ("limits.webhook_body_timeout", limits.webhook_body_timeout),
        ("limits.lingering_timeout", limits.lingering_timeout),
        ("limits.body_grace", limits.body_grace),
        ("channel.position_check_interval", config.channel.position_check_interval),
        ("sse.ping_interval", config.sse.ping_interval),
    ];
    let other_spans = [
        ("server.drain_timeout", config.server.drain_timeout),
        ("client.expired_close_delay", client.expired_close_delay),
        ("client.expired_sub_close_delay", client.expired_sub_close_delay),
        ("channel.linger", config.channel.linger),
        ("client.token.leeway", client.token.leeway),
    ];

    let zero_counts = counts.iter().filter(|(_, count)| *count == 0).map(|(option, _)| *option);
    let zero_sizes = sizes.iter().filter(|(_, size)| *size == Size(0)).map(|(option, _)| *option);
    let zero_spans = positive_spans.iter().filter(|(_, span)| span.0.is_zero()).map(|(option, _)| *option);
    for option in zero_counts.chain(zero_sizes).chain(zero_spans) {
        refuse(option, "0 is not allowed here", "write more than 0, or leave it out");
    }
    if config.server.workers.is_some_and(|workers| workers > MAX_WORKERS) {
        refuse("server.workers", "more than 1024 workers are a mistake", "leave it out: one per core");
    }
    for (option, limit) in [
        ("client.history_max_publication_limit", client.history_max_publication_limit),
        ("client.recovery_max_publication_limit", client.recovery_max_publication_limit),
    ] {
        if limit > MAX_EVENTS {
            refuse(option, "this is more than can be read at once", "write at most 10000");
        }
    }
    for (option, size) in sizes.iter().filter(|(option, _)| {
        option.ends_with(".message_size_limit") || option.ends_with(".max_request_body_size")
    }) {
        if *size > LARGEST_MESSAGE {
            let remedy = "write at most \"64MiB\"; \"64KiB\" is the default";
            refuse(option, "messages are held in memory", remedy);
        }
    }
    let ping = client.ping_interval.0;
    if !ping.is_zero() && ping < Duration::from_secs(1) {
        refuse(
            "client.ping_interval",
            "clients are told the interval in whole seconds",
            "write \"1s\" or more",
        );
    }
    let in_namespaces =
        option_sets(config).map(|(path, options)| (format!("{path}.history_ttl"), options.history_ttl));
    let named = positive_spans.into_iter().chain(other_spans).map(|(path, span)| (path.to_owned(), span));
    for (option, Span(span)) in named.chain(in_namespaces) {
        if span > LONGEST {
            refuse(&option, "this is longer than ten years", "write at most \"3650d\"");
        }
    }

    if client.token.leeway.0 > LONGEST_LEEWAY {
        let remedy = "write at most \"5m\", and set the clocks by NTP";
        refuse("client.token.leeway", "clocks that are set do not differ so much", remedy);
    }
    if config.server.data_dir.as_os_str().is_empty() {
        refuse("server.data_dir", "the path is empty", "write \"./data\", or leave it out");
    }
    if limits.body_min_rate > FASTEST {
        let remedy = "write at most \"1MiB\" (bytes a second)";
        refuse("limits.body_min_rate", "hardly any body comes so fast", remedy);
    }
    let public = config.server.public_url.as_ref();
    if public.is_some_and(|origin| !matches!(origin.scheme(), "http" | "https")) {
        refuse("server.public_url", "browsers reach a gateway by http or https", "write https://HOST");
    }
    if config.store.direct_url.as_ref().is_some_and(|url| !is_postgres(url.expose())) {
        refuse("store.direct_url", "this is not an address of Postgres", "write postgres://…");
    }
    for (option, address) in config.postgres_addresses() {
        if let Err(error) = address {
            refuse(option, &error.to_string(), "write postgres://…?sslmode=verify-full, or leave it out");
        }
    }
    let is_redis =
        |url: &str| ["redis://", "rediss://"].iter().any(|s| url.len() > s.len() && url.starts_with(s));
    if config.bus.url.as_ref().is_some_and(|url| !is_redis(url.expose())) {
        refuse("bus.url", "this is not an address of Redis", "write redis://HOST:PORT or rediss://HOST:PORT");
    } else if config.bus.url.as_ref().is_some_and(|url| url.expose().ends_with("#insecure")) {
        let remedy = "name the authority of its certificate by bus.ca_file";
        refuse(
            "bus.url",
            "without a trusted authority anybody on the network path could impersonate Redis",
            remedy,
        );
    } else if let Some(error) = config.bus.url.as_ref().and_then(|url| tls::redis(url.expose(), None).err()) {
        refuse("bus.url", &error.to_string(), "write redis://USER:PASSWORD@HOST:PORT, or rediss://…");
    }
    if config.jwks_endpoint().is_some_and(|url| !url.is_https()) && !client.token.jwks_allow_http {
        let wrong = "a key set that is fetched without TLS can be forged";
        let remedy = "write https://…, or set client.token.jwks_allow_http on a network that you trust";
        refuse("client.token.jwks_public_endpoint", wrong, remedy);
    }
    let prefix = &config.bus.prefix;
    let in_prefix = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    if !(1..=64).contains(&prefix.len()) || !prefix.bytes().all(in_prefix) {
        refuse("bus.prefix", "the prefix is invalid", "use 1 to 64 letters, digits, `-`, `_`, `.` or `:`");
    }
    problems.extend(config.bad_pems());
    problems.extend(config.bad_retention());
    problems
}

/// Contradictions between options.
pub(super) fn together(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |option: &str, wrong: String, remedy: &str| {
        problems.push(Problem::new(config.source(option), option, wrong, remedy));
    };

    if !matches!(config.store.url, Some(StoreUrl::Postgres(_))) {
        if config.store.direct_url.is_some() {
            let wrong = "a direct address of Postgres makes no sense while the store is SQLite";
            refuse("store.direct_url", wrong.to_owned(), "set DATABASE_URL to Postgres, or leave this out");
        }
        if config.store.ca_file.is_some() {
            let wrong = "a certificate authority has no use while the store is SQLite".to_owned();
            refuse("store.ca_file", wrong, "set DATABASE_URL to Postgres, or leave this out");
        }
        if config.bus.url.is_some() {
            let wrong = "Redis joins nodes, and nodes cannot share a SQLite store";
            refuse("bus.url", wrong.to_owned(), "set DATABASE_URL to Postgres, or leave Redis out");
        }
    }
    let (listen, internal) = (config.server.listen, config.server.internal_listen);
    let meet = |other: SocketAddr| {
        let every = listen.ip().is_unspecified() || other.ip().is_unspecified();
        other.port() != 0 && other.port() == listen.port() && (every || other.ip() == listen.ip())
    };
    if internal.is_some_and(meet) {
        let wrong = format!("server.listen has that port already: {listen}");
        refuse("server.internal_listen", wrong, "write another port, or leave it out");
    }
    let (body, in_flight) = (config.limits.webhook_body, config.limits.webhook_in_flight);
    if in_flight < body {
        let wrong = format!("{in_flight} does not hold one webhook of limits.webhook_body, {body}");
        refuse("limits.webhook_in_flight", wrong, "raise it, or lower limits.webhook_body");
    }
    let (event, in_flight) = (config.channel.max_publication_size, config.limits.build_events_in_flight);
    if in_flight.0 < 2 * event.0 {
        let wrong = format!("{in_flight} does not hold two events of channel.max_publication_size, {event}");
        refuse("limits.build_events_in_flight", wrong, "raise it, or lower channel.max_publication_size");
    }
    let (reply, in_flight) = (config.client.recovery_max_size, config.limits.replies_in_flight);
    if in_flight < reply {
        let wrong = format!("{in_flight} does not hold one reply of client.recovery_max_size, {reply}");
        refuse("limits.replies_in_flight", wrong, "raise it, or lower client.recovery_max_size");
    }
    let (queue, event) = (config.client.queue_max_size, config.channel.max_publication_size);
    if queue < event {
        let wrong = format!("{queue} does not hold one event of channel.max_publication_size, {event}");
        refuse("client.queue_max_size", wrong, "raise it, or lower channel.max_publication_size");
    }

    let (ping, pong) = (config.client.ping_interval, config.client.pong_timeout);
    if pong >= ping && !ping.0.is_zero() {
        let wrong = format!("{pong} is not below client.ping_interval, {ping}");
        refuse("client.pong_timeout", wrong, "lower it, or raise client.ping_interval");
    }

    for (path, options) in option_sets(config).filter(|(_, options)| !options.has_history()) {
        let needing = [
            ("force_recovery", options.force_recovery),
            ("force_positioning", options.force_positioning),
            ("allow_recovery", options.allow_recovery),
            ("allow_positioning", options.allow_positioning),
            ("auto_cache_recover", options.auto_cache_recover),
            ("delta_publish", options.delta_publish),
            ("allowed_delta_types", !options.allowed_delta_types.is_empty()),
        ];
        for (option, _) in needing.iter().filter(|(_, on)| *on) {
            let wrong = "there are no positions without history".to_owned();
            refuse(
                &format!("{path}.{option}"),
                wrong,
                "set history_size and history_ttl above 0, or leave it out",
            );
        }
    }
    let personal = &config.client.subscribe_to_user_personal_channel;
    let declared = |name: &str| config.channel.namespaces.iter().any(|space| space.name.as_str() == name);
    let space = personal.personal_channel_namespace.as_str();
    if personal.enabled && !space.is_empty() && !declared(space) {
        let option = "client.subscribe_to_user_personal_channel.personal_channel_namespace";
        refuse(option, format!("the namespace `{space}` is not declared"), "declare it, or leave this empty");
    }
    let mut names = HashSet::new();
    for (index, namespace) in config.channel.namespaces.iter().enumerate() {
        let name = namespace.name.as_str();
        if !names.insert(name) {
            let wrong = format!("the namespace `{name}` is declared twice");
            refuse(&format!("channel.namespaces[{index}].name"), wrong, "keep one of them");
        }
    }
    let over_tls = |url: &Secret| url.expose().starts_with("rediss://");
    if config.bus.ca_file.is_some() && !config.bus.url.as_ref().is_some_and(over_tls) {
        let wrong = "a certificate authority has no use without TLS to Redis".to_owned();
        refuse("bus.ca_file", wrong, "write rediss://… into bus.url, or leave this out");
    }
    let mut targets = BTreeSet::new();
    for (repo, rule) in &config.github.repos {
        let option = format!("github.repos.\"{}\"", repo.as_str());
        if rule.ignore && rule.name.is_some() {
            let wrong = "a repository that is ignored needs no name".to_owned();
            refuse(&option, wrong, "leave out `name` or `ignore`");
        } else if !rule.ignore && !targets.insert(rule.name.as_ref().unwrap_or(repo)) {
            let wrong = "another repository is published under the same name".to_owned();
            refuse(&option, wrong, "give them different names");
        }
    }
    problems
}

/// Settings that are allowed but probably unintended. One sentence each, for the log at start.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut short = |option: &str, length: usize, advised: usize| {
        if length < advised {
            warnings.push(format!(
                "{option} has {length} bytes and could be guessed; use {advised} or more, \
                 for example from `openssl rand -hex 32`"
            ));
        }
    };
    if let Some(secret) = &config.client.token.hmac_secret_key {
        short("client.token.hmac_secret_key", secret.expose().len(), JWT_SECRET);
    }
    if let Some(secret) = &config.http_api.key {
        short("http_api.key", secret.expose().len(), OTHER_SECRET);
    }
    for (index, secret) in config.github.webhook_secrets.iter().enumerate() {
        short(&format!("github.webhook_secrets[{index}]"), secret.expose().len(), OTHER_SECRET);
    }
    for (index, secret) in config.bus.secrets.iter().enumerate() {
        short(&format!("bus.secrets[{index}]"), secret.expose().len(), OTHER_SECRET);
    }
    if config.client.insecure {
        warnings.push(
            "client.insecure is on: ANYBODY may connect, and subscribe to, publish to and read every configured \
             namespace. This is for tests only, NEVER for production"
                .to_owned(),
        );
    }
    if config.jwks_endpoint().is_some_and(|url| !url.is_https()) {
        warnings.push(
            "client.token.jwks_public_endpoint is fetched without TLS: anybody on the network path can forge tokens"
                .to_owned(),
        );
    }
    if config.client.allowed_origins.contains(&OriginPattern::Every) {
        warnings.push(
            "client.allowed_origins has `*`: every web site may connect, and pages out of files and apps"
                .to_owned(),
        );
    }
    for (option, _) in config
        .postgres_addresses()
        .into_iter()
        .filter(|(_, address)| address.as_ref().is_ok_and(|address| address.trust == Trust::Anybody))
    {
        warnings.push(format!(
            "{option} has sslmode=require: the connection to Postgres is encrypted, but anybody on the network path could impersonate it; use sslmode=verify-full"
        ));
    }
    warnings.extend(config.retention_warnings());
    if config.store.allow_data_loss {
        warnings.push(
            "store.allow_data_loss is on: a Postgres that may lose confirmed transactions is accepted"
                .to_owned(),
        );
    }
    for (path, options) in option_sets(config) {
        if (options.history_size > 0) == options.history_ttl.0.is_zero() {
            warnings
                .push(format!("{path} keeps no history: history_size and history_ttl must both be above 0"));
        }
        if options.auto_cache_recover && !options.is_cache() {
            warnings.push(format!(
                "{path}.auto_cache_recover does nothing without force_recovery_mode = \"cache\""
            ));
        }
        if options.delta_publish && options.allowed_delta_types.is_empty() {
            warnings.push(format!("{path}.delta_publish does nothing without allowed_delta_types"));
        }
        if options.force_push_join_leave && !options.join_leave {
            warnings.push(format!("{path}.force_push_join_leave does nothing without join_leave"));
        }
        let unused = [
            ("subscribe", options.allow_subscribe_for_anonymous, options.allow_subscribe_for_client),
            ("publish", options.allow_publish_for_anonymous, options.allow_publish_for_client),
            ("history", options.allow_history_for_anonymous, options.allow_history_for_client),
            ("presence", options.allow_presence_for_anonymous, options.allow_presence_for_client),
        ];
        for (right, _, _) in unused.iter().filter(|(_, anonymous, client)| *anonymous && !client) {
            warnings.push(format!(
                "{path}.allow_{right}_for_anonymous does nothing without allow_{right}_for_client"
            ));
        }
    }
    warnings
}

/// The options of every namespace and of channels without one, with their path.
fn option_sets(config: &Config) -> impl Iterator<Item = (String, &ChannelOptions)> {
    let named = config.channel.namespaces.iter().enumerate();
    let named = named.map(|(index, ns)| (format!("channel.namespaces[{index}]"), &ns.options));
    named.chain([("channel.without_namespace".to_owned(), &config.channel.without_namespace)])
}

impl Config {
    /// Who set the option with this path: itself, or something in or around it.
    pub(super) fn source(&self, option: &str) -> Source {
        let exact = self.sources.iter().find(|(path, _)| path.to_string() == option);
        let near = || {
            self.sources.iter().find(|(path, _)| {
                let path = path.to_string();
                path.starts_with(option) || option.starts_with(&path)
            })
        };
        exact.or_else(near).map_or(Source::Default, |(_, source)| source.clone())
    }
}
