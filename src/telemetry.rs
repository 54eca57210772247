//! What the outside sees of the inside: log set-up, and every metric with its name and help.
//! Neither logs nor labels ever carry a payload, a token or a query string.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use prometheus_client::metrics::family::Family;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Starts logging to standard error with a `tracing` filter such as `info,campanile::hub=debug`.
/// `format` defaults to text on a terminal and to JSON elsewhere.
pub fn start_logging(filter: &str, format: Option<LogFormat>) -> anyhow::Result<()> {
    // The driver shows the values of queries, and so payloads, at `debug`: only whoever names it
    // gets that.
    let quiet = if filter.contains("tokio_postgres") { "" } else { ",tokio_postgres=info" };
    let filter = tracing_subscriber::EnvFilter::try_new(format!("{filter}{quiet}"))
        .map_err(|error| anyhow::anyhow!("the log filter `{filter}` is malformed: {error}"))?;
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging is on already: {error}"))
}

/// One label, for families that count kinds of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// Always one of a few fixed words.
    pub kind: &'static str,
}

/// One of a few things as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Name {
    pub name: &'static str,
}

/// A code of the client protocol as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Code {
    pub code: u32,
}

/// A number that only grows.
pub type Counter = prometheus_client::metrics::counter::Counter<u64, AtomicU64>;
type Count = Counter;
type Level = Gauge<i64, AtomicI64>;

/// What a store sends to its database. All clones are one.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Statements, those that begin and end transactions included.
    pub statements: Counter,
    /// Transactions that were to be committed.
    pub commits: Counter,
}

/// Every metric of this process. Cheap to share; registered once in [`Metrics::new`].
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open connections by transport.
    pub connections: Family<Kind, Level>,
    /// Connections by how their opening went: `open`; `refused`, by the client's fault; `failed`,
    /// by ours or for want of room.
    pub connects: Family<Kind, Count>,
    /// How much of each limit of this node is in use, and how much there is; as of the last look.
    pub limit_used: Family<Kind, Level>,
    /// See `limit_used`.
    pub limit_max: Family<Kind, Level>,
    /// Channels that streams of this node follow, counted once for each stream.
    pub subscriptions: Level,
    /// Worker threads whose deliveries share system calls.
    pub io_uring_workers: Level,
    /// Channels with a live actor on this node.
    pub channels: Level,
    /// Events handed to connections, by transport.
    pub deliveries: Family<Kind, Count>,
    /// Bytes handed to connections, by transport.
    pub delivered_bytes: Family<Kind, Count>,
    /// Seconds from a unit's arrival at the publisher to its commit.
    pub publish_seconds: Histogram,
    /// Seconds that one transaction took.
    pub commit_seconds: Histogram,
    /// Units of work in one transaction.
    pub commit_units: Histogram,
    /// Events appended to the log.
    pub events: Count,
    /// Units of work that wait for the publisher.
    pub publish_queue: Level,
    /// Seconds from accepting an event to handing it to a socket.
    pub event_latency_seconds: Histogram,
    /// Webhooks by outcome.
    pub webhooks: Family<Kind, Count>,
    /// Polls by outcome.
    pub polls: Family<Kind, Count>,
    /// Browsers that tried to sign in, by outcome.
    pub sign_ins: Family<Kind, Count>,
    /// Requests refused, by the stable code of the refusal.
    pub refusals: Family<Kind, Count>,
    /// Streams closed because their reader was too slow, by which bound was hit.
    pub slow_disconnects: Family<Kind, Count>,
    /// Errors of the client protocol that were told, to clients and by the server API.
    pub errors: Family<Code, Count>,
    /// Connections of the client protocol that ended, by the code of their end.
    pub disconnects: Family<Code, Count>,
    /// Gaps in announcements that a read of the log filled.
    pub gaps_healed: Count,
    /// Internal queues that overflowed, so that a channel refilled from the log.
    pub behind: Family<Kind, Count>,
    /// Channels whose history was replaced while they were followed.
    pub resets: Count,
    /// Fetches of the key set, by outcome.
    pub jwks_fetches: Family<Kind, Count>,
    /// Whether the store answers: 1 or 0.
    pub store_up: Level,
    /// What the store sends to its database.
    pub traffic: Traffic,
    /// Whether this node does the work that one node does for all, by lease: 1 or 0.
    pub leases_held: Family<Name, Level>,
    /// Whether Redis counts for all nodes now: 1 or 0.
    pub counts_shared: Level,
    /// Counts asked of Redis, by who decided: `shared`; `alone`, as it was away or late.
    pub counts: Family<Kind, Count>,
    /// Rows that retention removed, by table.
    pub trimmed: Family<Kind, Count>,
    /// Whether messages of other nodes arrive directly: 1 or 0. Always 1 for a single node.
    pub bus_up: Level,
    /// Messages to other nodes, by what carried them; `dropped` could not be said at all.
    pub bus_said: Family<Kind, Count>,
    /// Messages of other nodes, by what carried them; `unread` were not understood.
    pub bus_heard: Family<Kind, Count>,
    /// Connections of the bus that were lost, by where to.
    pub bus_reconnects: Family<Kind, Count>,
    /// Seconds that a message to oneself takes over Redis.
    pub bus_round_trip_seconds: Histogram,
    /// Nodes that are alive, this one included.
    pub nodes: Level,
    /// Questions to other nodes, by whether all have answered.
    pub questions: Family<Kind, Count>,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let seconds = || {
            Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0])
        };
        let mut metrics = Self {
            registry: Registry::default(),
            connections: Family::default(),
            connects: Family::default(),
            limit_used: Family::default(),
            limit_max: Family::default(),
            subscriptions: Level::default(),
            io_uring_workers: Level::default(),
            channels: Level::default(),
            deliveries: Family::default(),
            delivered_bytes: Family::default(),
            publish_seconds: seconds(),
            commit_seconds: seconds(),
            commit_units: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            events: Count::default(),
            publish_queue: Level::default(),
            event_latency_seconds: seconds(),
            webhooks: Family::default(),
            polls: Family::default(),
            sign_ins: Family::default(),
            refusals: Family::default(),
            slow_disconnects: Family::default(),
            errors: Family::default(),
            disconnects: Family::default(),
            gaps_healed: Count::default(),
            behind: Family::default(),
            resets: Count::default(),
            jwks_fetches: Family::default(),
            store_up: Level::default(),
            traffic: Traffic::default(),
            leases_held: Family::default(),
            counts_shared: Level::default(),
            counts: Family::default(),
            trimmed: Family::default(),
            bus_up: Level::default(),
            bus_said: Family::default(),
            bus_heard: Family::default(),
            bus_reconnects: Family::default(),
            bus_round_trip_seconds: seconds(),
            nodes: Level::default(),
            questions: Family::default(),
        };
        let mut registry = Registry::with_prefix("campanile");
        let r = &mut registry;
        r.register("connections", "Open connections by transport", metrics.connections.clone());
        r.register("connects", "Connections by how their opening went", metrics.connects.clone());
        r.register("limit_used", "How much of a limit is in use", metrics.limit_used.clone());
        r.register("limit_max", "How much of a limit there is", metrics.limit_max.clone());
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "The version that runs", version);
        r.register(
            "subscriptions",
            "Channels followed by streams, once for each stream",
            metrics.subscriptions.clone(),
        );
        r.register(
            "io_uring_workers",
            "Worker threads whose deliveries share system calls",
            metrics.io_uring_workers.clone(),
        );
        r.register("channels", "Channels with a live actor", metrics.channels.clone());
        r.register("deliveries", "Events handed to connections by transport", metrics.deliveries.clone());
        r.register(
            "delivered_bytes",
            "Bytes handed to connections by transport",
            metrics.delivered_bytes.clone(),
        );
        r.register_with_unit(
            "publish",
            "From arrival at the publisher to commit",
            Unit::Seconds,
            metrics.publish_seconds.clone(),
        );
        r.register_with_unit(
            "commit",
            "Length of one transaction",
            Unit::Seconds,
            metrics.commit_seconds.clone(),
        );
        r.register("commit_units", "Units of work in one transaction", metrics.commit_units.clone());
        r.register("events", "Events appended to the log", metrics.events.clone());
        r.register(
            "publish_queue",
            "Units of work that wait for the publisher",
            metrics.publish_queue.clone(),
        );
        r.register_with_unit(
            "event_latency",
            "From accepting an event to handing it to a socket",
            Unit::Seconds,
            metrics.event_latency_seconds.clone(),
        );
        r.register("webhooks", "Webhooks by outcome", metrics.webhooks.clone());
        r.register("polls", "Polls by outcome", metrics.polls.clone());
        r.register("sign_ins", "Browsers that tried to sign in by outcome", metrics.sign_ins.clone());
        r.register("refusals", "Requests refused by code", metrics.refusals.clone());
        r.register(
            "slow_disconnects",
            "Streams closed for a slow reader by bound",
            metrics.slow_disconnects.clone(),
        );
        r.register("errors", "Errors of the client protocol that were told by code", metrics.errors.clone());
        r.register(
            "disconnects",
            "Connections of the client protocol that ended by code",
            metrics.disconnects.clone(),
        );
        r.register("gaps_healed", "Gaps in announcements filled from the log", metrics.gaps_healed.clone());
        r.register("behind", "Internal queues that overflowed", metrics.behind.clone());
        r.register("resets", "Channels whose history was replaced while followed", metrics.resets.clone());
        r.register("jwks_fetches", "Fetches of the key set by outcome", metrics.jwks_fetches.clone());
        r.register("store_up", "Whether the store answers", metrics.store_up.clone());
        r.register(
            "store_statements",
            "Statements sent to the database, those that begin and end transactions included",
            metrics.traffic.statements.clone(),
        );
        r.register("store_commits", "Transactions committed", metrics.traffic.commits.clone());
        r.register(
            "lease_held",
            "Whether this node does what one does for all, by lease",
            metrics.leases_held.clone(),
        );
        r.register("counts_shared", "Whether Redis counts for all nodes now", metrics.counts_shared.clone());
        r.register("counts", "Counts asked of Redis by who decided", metrics.counts.clone());
        r.register("trimmed", "Rows removed by retention by table", metrics.trimmed.clone());
        r.register("bus_up", "Whether messages of other nodes arrive directly", metrics.bus_up.clone());
        r.register("bus_said", "Messages to other nodes by carrier", metrics.bus_said.clone());
        r.register("bus_heard", "Messages of other nodes by carrier", metrics.bus_heard.clone());
        r.register(
            "bus_reconnects",
            "Lost connections of the bus by carrier",
            metrics.bus_reconnects.clone(),
        );
        r.register_with_unit(
            "bus_round_trip",
            "How long a message to oneself takes over Redis",
            Unit::Seconds,
            metrics.bus_round_trip_seconds.clone(),
        );
        r.register("nodes", "Nodes that are alive, this one included", metrics.nodes.clone());
        r.register("questions", "Questions to other nodes by outcome", metrics.questions.clone());
        metrics.registry = registry;
        metrics.begin_at_zero();
        metrics
    }

    /// A count that appears with its first event looks as if it had always been there: whoever
    /// watches its growth misses that one. So the usual kinds are there from the start.
    fn begin_at_zero(&self) {
        let kinds: [(&Family<Kind, Count>, &[&'static str]); 15] = [
            (&self.connects, &["open", "refused", "failed"]),
            (&self.deliveries, &TRANSPORTS),
            (&self.delivered_bytes, &TRANSPORTS),
            (&self.webhooks, &["processed", "ignored", "failed", "duplicate", "overloaded", "unconfirmed"]),
            (&self.polls, &["ok", "not_modified", "limited"]),
            (&self.sign_ins, &["ok", "link_invalid", "too_many_sign_ins"]),
            (&self.refusals, &["rate_limited", "connection_limit", "overloaded", "store_unavailable"]),
            (&self.slow_disconnects, &["queue", "write_timeout"]),
            (&self.behind, &["channel", "worker"]),
            (&self.trimmed, &["events"]),
            (&self.bus_said, &["redis", "postgres", "dropped"]),
            (&self.bus_heard, &["redis", "postgres", "unread"]),
            (&self.bus_reconnects, &["redis"]),
            (&self.questions, &["answered", "incomplete"]),
            (&self.counts, &["shared", "alone"]),
        ];
        for (family, kinds) in kinds {
            kinds.iter().for_each(|kind| drop(family.get_or_create(&Kind { kind })));
        }
        for kind in TRANSPORTS {
            level(&self.connections, kind);
        }
        drop(self.disconnects.get_or_create(&Code { code: 3000 }));
    }

    /// The text that `/metrics` answers (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What carries connections, by its section in the config.
pub const TRANSPORTS: [&str; 6] =
    ["websocket", "http_stream", "sse", "uni_websocket", "uni_http_stream", "uni_sse"];

/// Counts one of `kind`.
pub fn count(family: &Family<Kind, Count>, kind: &'static str) {
    family.get_or_create(&Kind { kind }).inc();
}

/// The counter of `kind`, for who counts often.
pub fn counter(family: &Family<Kind, Counter>, kind: &'static str) -> Counter {
    family.get_or_create(&Kind { kind }).clone()
}

/// The level of `kind`.
pub fn level(family: &Family<Kind, Level>, kind: &'static str) -> Level {
    family.get_or_create(&Kind { kind }).clone()
}
