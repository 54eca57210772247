//! The metrics of the hub, its fan-outs and its outboxes.

use crate::telemetry::metrics::{Counter, Family, Gauge, Histogram, durations, label, metrics};

label! {
    /// What carries a connection, by the name of its section in the configuration.
    Transport("transport"): &'static str =
        ["websocket", "http_stream", "sse", "uni_websocket", "uni_http_stream", "uni_sse"]
}

label! {
    /// An internal queue.
    enum Queue("queue") {
        /// From the bus to the actor of a channel.
        Channel = "channel",
        /// From a channel to a worker thread.
        Worker = "worker",
    }
}

label! {
    /// Why a connection was too slow.
    enum SlowReason("reason") {
        /// Too many bytes waited for it.
        Queue = "queue",
        /// A write took too long.
        WriteTimeout = "write_timeout",
    }
}

metrics! {
    Metrics("") {
        /// Channels with a live actor.
        channels: Gauge,
        /// Channels without subscribers that ended before `channel.linger` because there were too many of them.
        channels_evicted: Counter,
        /// Channels followed by connections, once for each connection.
        subscriptions: Gauge,
        /// Worker threads that write to their sockets by io_uring.
        io_uring_workers: Gauge,
        /// Messages handed to connections by transport.
        messages_sent: Family<Transport, Counter>,
        /// Bytes handed to connections by transport.
        sent_bytes: Family<Transport, Counter>,
        /// From accepting an event to handing it to a socket.
        event_latency_seconds: Histogram = durations(),
        /// Connections closed because the client read too slowly by reason.
        slow_disconnects: Family<SlowReason, Counter>,
        /// Gaps between announced events that were filled from the log.
        gaps_filled: Counter,
        /// Internal queues that overflowed, so that events had to be read from the log again.
        queue_overflows: Family<Queue, Counter>,
        /// Channels whose history was replaced while they were followed.
        channel_resets: Counter,
    }
}
