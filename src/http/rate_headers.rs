//! The header fields that tell clients the state of their rate limit.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

use super::error::ApiError;
use crate::limits::gcra::Decision;

/// The header fields of draft-ietf-httpapi-ratelimit-headers, in seconds.
fn rate_headers(decision: &Decision) -> [(HeaderName, HeaderValue); 3] {
    [
        (HeaderName::from_static("ratelimit-limit"), decision.limit.into()),
        (HeaderName::from_static("ratelimit-remaining"), decision.remaining.into()),
        (HeaderName::from_static("ratelimit-reset"), decision.reset_us.div_ceil(1_000_000).into()),
    ]
}

/// Adds the state of the rate limit to a response.
pub fn add_rate(headers: &mut HeaderMap, decision: &Decision) {
    for (name, value) in rate_headers(decision) {
        headers.insert(name, value);
    }
}

/// Adds the state of the rate limit to an error.
pub fn with_rate(error: ApiError, decision: &Decision) -> ApiError {
    let headers = rate_headers(decision).into_iter();
    headers.fold(error, |error, (name, value)| error.header(name, value))
}
