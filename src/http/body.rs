//! Bodies of requests: read chunk by chunk within bounds, and within what all of them may take.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_LENGTH, HeaderMap};
use actix_web::web;
use futures_util::StreamExt as _;

use super::error::ApiError;
use crate::limits::budget::Reserved;

/// The bounds of one body.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// At most so large.
    pub bytes: u64,
    /// It must have arrived after so long.
    pub time: Duration,
}

/// Reads a body; each chunk is reserved and shown to `seen` as it comes.
pub async fn read(
    headers: &HeaderMap,
    body: web::Payload,
    bounds: Bounds,
    reserved: &mut Reserved,
    seen: impl FnMut(&[u8]),
) -> Result<Vec<u8>, ApiError> {
    let reading = read_on(headers, body, bounds.bytes, reserved, seen);
    tokio::time::timeout(bounds.time, reading).await.unwrap_or_else(|_| {
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long"))
    })
}

async fn read_on(
    headers: &HeaderMap,
    mut body: web::Payload,
    max: u64,
    reserved: &mut Reserved,
    mut seen: impl FnMut(&[u8]),
) -> Result<Vec<u8>, ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max) {
        return Err(too_large(max));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| ApiError::bad_request("body_broken", "the body ended early"))?;
        if bytes.len() as u64 + chunk.len() as u64 > max {
            return Err(too_large(max));
        }
        if !reserved.grow(chunk.len() as u64) {
            return Err(ApiError::unavailable(
                "overloaded",
                "too many request bodies are in flight: try again",
            ));
        }
        seen(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

pub fn too_large(max: u64) -> ApiError {
    let message = format!("the body is larger than {max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}
