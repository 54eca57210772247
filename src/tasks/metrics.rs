//! The metrics of periodic work.

use crate::telemetry::metrics::{Counter, Family, Gauge, label, metrics};

label! {
    /// How a fetch of the key set ended.
    FetchOutcome("outcome"): &'static str = []
}

label! {
    /// A lease by its name.
    LeaseName("lease"): &'static str = []
}

label! {
    /// A table of the store; `payloads` are those of webhooks, whose rows stay.
    Table("table"): &'static str = ["events"]
}

metrics! {
    Metrics("") {
        /// Fetches of the key set by outcome.
        jwks_fetches: Family<FetchOutcome, Counter>,
        /// Whether this node does the work that one node does for all, by lease: 1 or 0.
        lease_held: Family<LeaseName, Gauge>,
        /// Rows removed because they were too old or too many by table.
        rows_removed: Family<Table, Counter>,
    }
}
