//! The metrics of the client protocol.

use crate::telemetry::metrics::{Counter, Family, label, metrics};

label! {
    /// A code of the client protocol.
    Code("code"): u32 = []
}

metrics! {
    Metrics("protocol_") {
        /// Errors of the client protocol by code, those that the server API answers included.
        errors: Family<Code, Counter>,
    }
}
