//! What the handlers of a node share.

use crate::config::Config;
use crate::limits::budget::Budget;

/// What is limited on this node.
pub struct Budgets {
    /// Bodies of webhooks, in bytes.
    pub webhook_bytes: Budget,
    /// Bodies of build events, in bytes.
    pub build_bytes: Budget,
    /// First commands and posts of clients over HTTP, in bytes.
    pub client_bytes: Budget,
    /// Open streams.
    pub streams: Budget,
    /// What returning clients get, in bytes.
    pub replies: Budget,
    /// TCP connections.
    pub connections: Budget,
    /// Connections that are read after a refusal.
    pub lingering: Budget,
    /// Open connections; `None` without a limit.
    pub sockets: Option<Budget>,
}

impl From<&Config> for Budgets {
    fn from(config: &Config) -> Self {
        let limits = &config.limits;
        let sockets = Some(config.client.connection_limit).filter(|limit| *limit > 0);
        Self {
            webhook_bytes: Budget::new(limits.webhook_in_flight.0),
            build_bytes: Budget::new(limits.build_events_in_flight.0),
            client_bytes: Budget::new(limits.client_bodies_in_flight.0),
            streams: Budget::new(limits.sse_connections.into()),
            replies: Budget::new(limits.replies_in_flight.0),
            connections: Budget::new(most_connections(config)),
            lingering: Budget::new(limits.lingering_connections.into()),
            sockets: sockets.map(|limit| Budget::new(limit.into())),
        }
    }
}

/// As many connections as are configured, or as the limit of open files leaves room for beside the store, the
/// bus and second handles on the sockets of streams.
fn most_connections(config: &Config) -> u64 {
    let configured = u64::from(config.limits.connections);
    if configured > 0 {
        return configured;
    }
    let files = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(1024, |(soft, _)| soft);
    (files - files / 8).saturating_sub(256).clamp(64, 1 << 20)
}

impl Budgets {
    /// All of them, by the names that `/metrics` gives them.
    pub fn named(&self) -> Vec<(&'static str, Budget)> {
        let mut named = vec![
            ("webhook_bytes", self.webhook_bytes.clone()),
            ("build_bytes", self.build_bytes.clone()),
            ("client_bytes", self.client_bytes.clone()),
            ("streams", self.streams.clone()),
            ("replies", self.replies.clone()),
            ("connections", self.connections.clone()),
            ("lingering", self.lingering.clone()),
        ];
        named.extend(self.sockets.clone().map(|sockets| ("sockets", sockets)));
        named
    }
}
