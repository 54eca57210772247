//! The metrics of shared limits.

use crate::telemetry::metrics::{Counter, Family, Gauge, label, metrics};

label! {
    /// Whose counters decided.
    enum Source("source") {
        /// The counters shared by all nodes.
        Redis = "redis",
        /// Those of this node alone, because Redis was down or too slow.
        Local = "local",
    }
}

metrics! {
    Metrics("") {
        /// Whether Redis counts for all nodes now: 1 or 0.
        limits_redis_up: Gauge,
        /// Checks of shared limits by whose counters decided.
        limit_checks: Family<Source, Counter>,
    }
}
