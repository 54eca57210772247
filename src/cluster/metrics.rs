//! The metrics of the cluster.

use crate::telemetry::metrics::{Counter, Family, Gauge, label, metrics};

label! {
    /// Whether all nodes answered.
    enum RequestOutcome("outcome") {
        Answered = "answered",
        Incomplete = "incomplete",
    }
}

metrics! {
    Metrics("cluster_") {
        /// Nodes that are alive, this one included.
        nodes: Gauge,
        /// Requests to other nodes by whether all of them answered.
        requests: Family<RequestOutcome, Counter>,
    }
}
