//! The metrics of connections.

use crate::hub::metrics::Transport;
use crate::telemetry::metrics::{Counter, Family, Gauge, label, metrics};

label! {
    /// How the opening of a connection ended.
    enum AttemptOutcome("outcome") {
        Open = "open",
        /// By a fault of the client.
        Refused = "refused",
        /// By a fault of this node, or because a limit was reached.
        Failed = "failed",
    }
}

label! {
    /// The code with which a connection ended.
    DisconnectedWith("code"): u32 = [3000]
}

metrics! {
    Metrics("") {
        /// Subscriptions refused because their user opened too many new channels.
        channels_refused: Counter,
        /// Joins that others were not told of, because their user joins too often.
        joins_unannounced: Counter,
        /// Open connections by transport.
        connections: Family<Transport, Gauge>,
        /// Connections whose client owes a pong for more than half of `client.pong_timeout`.
        connections_unhealthy: Gauge,
        /// Messages of clients by transport: frames, posts and first requests, but no pongs.
        messages_received: Family<Transport, Counter>,
        /// Connections by how their opening ended.
        connection_attempts: Family<AttemptOutcome, Counter>,
        /// Connections of the client protocol that ended, by code.
        disconnects: Family<DisconnectedWith, Counter>,
    }
}
