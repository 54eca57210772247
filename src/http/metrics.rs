//! The metrics of HTTP requests.

use crate::telemetry::metrics::{Counter, Family, Gauge, label, metrics};

label! {
    /// A status of a stored webhook, or the code of its refusal.
    WebhookOutcome("outcome"): &'static str =
        [
        "processed",
        "ignored",
        "failed",
        "duplicate",
        "overloaded",
        "unconfirmed",
        "signature_invalid",
        "signature_missing",
        "signature_malformed",
        "signature_sha1"
    ]
}

label! {
    /// How a poll was answered, or the code of its refusal.
    PollOutcome("outcome"): &'static str = ["ok", "not_modified", "limited"]
}

label! {
    /// How a sign-in ended, or the code of its refusal.
    SignInOutcome("outcome"): &'static str = ["ok", "link_invalid", "too_many_sign_ins"]
}

label! {
    /// The stable code of an error.
    RefusalCode("code"): &'static str =
        ["rate_limited", "connection_limit", "overloaded", "store_unavailable", "token_invalid", "token_expired"]
}

label! {
    /// A limit of this node.
    Limit("limit"): &'static str = []
}

label! {
    /// Why a connection is not accepted, or does not last.
    enum TurnedAwayBy("reason") {
        /// Its address has more than its share.
        Address = "address",
        /// There are as many as there may be, and all are busy.
        Full = "full",
        /// It was idle, and made way for a new one.
        Evicted = "evicted",
    }
}

label! {
    /// Why a connection that was refused is not read any more although its peer may still write.
    enum LingeringCut("reason") {
        /// It has written `limits.lingering_size`.
        Size = "size",
        /// It has taken `limits.lingering_timeout`.
        Time = "time",
        /// More than `limits.lingering_connections` linger, and it was the oldest.
        Evicted = "evicted",
    }
}

metrics! {
    Metrics("") {
        /// Webhooks by outcome.
        webhooks: Family<WebhookOutcome, Counter>,
        /// Polls by outcome.
        polls: Family<PollOutcome, Counter>,
        /// Browsers that tried to sign in by outcome.
        sign_ins: Family<SignInOutcome, Counter>,
        /// Requests refused by code.
        refusals: Family<RefusalCode, Counter>,
        /// TCP connections that were not accepted, or made way for others by reason.
        connections_turned_away: Family<TurnedAwayBy, Counter>,
        /// Lingering connections that were closed before their peer had said everything by reason.
        lingering_cut: Family<LingeringCut, Counter>,
        /// How much of a limit is in use.
        limit_used: Family<Limit, Gauge>,
        /// How much of a limit there is.
        limit_max: Family<Limit, Gauge>,
        /// Memory of this process that is in RAM.
        resident_memory_bytes: Gauge,
        /// The memory that this process may have, by its control group or the machine.
        memory_limit_bytes: Gauge,
    }
}
