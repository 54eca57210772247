//! The metrics of the bus.

use crate::telemetry::metrics::{Counter, Family, Gauge, Histogram, durations, label, metrics};

label! {
    /// What carries messages between nodes.
    enum Carrier("carrier") {
        Redis = "redis",
        /// PostgreSQL's NOTIFY.
        Postgres = "postgres",
    }
}

label! {
    /// Why a message is not trusted.
    enum RefusedFor("reason") {
        Forged = "forged",
        Stale = "stale",
    }
}

metrics! {
    Metrics("bus_") {
        /// Whether messages of other nodes arrive directly: 1 or 0. Always 1 for a single node.
        up: Gauge,
        /// Messages sent to other nodes by carrier.
        messages_sent: Family<Carrier, Counter>,
        /// Messages for other nodes that no carrier could send.
        messages_dropped: Counter,
        /// Messages received from other nodes by carrier.
        messages_received: Family<Carrier, Counter>,
        /// Messages received that could not be decoded.
        messages_unreadable: Counter,
        /// Messages received that no node of this cluster has made, or too long ago.
        messages_refused: Family<RefusedFor, Counter>,
        /// Connections to Redis that were lost.
        redis_reconnects: Counter,
        /// Time that a message to oneself takes over Redis.
        round_trip_seconds: Histogram = durations(),
    }
}
