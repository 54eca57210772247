//! The metrics of the publisher.

use crate::telemetry::metrics::{Counter, Gauge, Histogram, durations, metrics};

metrics! {
    Metrics("") {
        /// From the arrival of a unit of work at the publisher to its commit.
        publish_seconds: Histogram = durations(),
        /// Duration of one transaction.
        commit_seconds: Histogram = durations(),
        /// Units of work in one transaction.
        commit_batch_size: Histogram = Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
        /// Events appended to the log.
        events: Counter,
        /// Units of work that wait for the publisher.
        publish_queue_length: Gauge,
    }
}
